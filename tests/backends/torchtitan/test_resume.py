"""Saving, stopping, continuing, and what happens when the disk or the files are not what they should be."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from gang import Ran

from primus.backends.base import Session
from primus.backends.torchtitan.checkpoint import Checkpoints
from primus.checkpoints import store
from primus.config.experiment import Checkpoint
from primus.events.types import Event, Notice

TOLERANCE = 1e-5


def steps(root: Path, name: str) -> list[int]:
    return sorted(info.step for info in store.complete(root / name))


def resumed_from(ran: Ran) -> int | None:
    (started,) = ran.of("run_started")
    step: int | None = started["resumed_from"]
    return step


def assert_continues(ran: Ran, whole: Ran, step: int) -> None:
    """`ran` began after `step` and made the losses and gradient norms of the unbroken run, bit by bit."""
    ran.ended()
    assert resumed_from(ran) == step
    assert ran.losses == {number: loss for number, loss in whole.losses.items() if number > step}
    assert ran.norms == {number: norm for number, norm in whole.norms.items() if number > step}


@pytest.mark.parametrize(
    ("name", "step"),
    [("resumed", 4), ("background-resumed", 6), ("flipped", 4), ("cut", 2), ("stopped-resumed", 3)],
)
def test_resumed_losses_are_bitwise_equal(one: dict[str, Ran], name: str, step: int) -> None:
    assert_continues(one[name], one["whole"], step)


def test_saving_does_not_touch_training(one: dict[str, Ran]) -> None:
    assert one["background"].ended().losses == one["whole"].ended().losses


def test_a_mixture_of_experts_resumes_bitwise(one: dict[str, Ran]) -> None:
    assert_continues(one["deepseek-resumed"], one["deepseek"], 4)


def test_two_processes_resume_bitwise(two: dict[str, Ran]) -> None:
    assert_continues(two["shard-resumed"], two["shard"], 6)
    assert_continues(two["shard-flipped"], two["shard"], 4)


@pytest.mark.parametrize("name", ["to-shard", "to-tensor", "to-pipeline", "pipeline-to-tensor"])
def test_another_layout_continues(one: dict[str, Ran], two: dict[str, Ran], name: str) -> None:
    ran = two[name].ended()
    assert resumed_from(ran) == 4
    expected = {number: loss for number, loss in one["whole"].losses.items() if number > 4}
    assert ran.losses == pytest.approx(expected, abs=TOLERANCE, rel=0)


def test_another_world_size_continues(one: dict[str, Ran], four: dict[str, Ran]) -> None:
    ran = four["shard-to-hybrid"].ended()
    assert resumed_from(ran) == 6
    assert ran.losses == pytest.approx({number: one["whole"].losses[number] for number in (7, 8)}, abs=TOLERANCE, rel=0)


def test_checkpoints_are_kept_as_asked(root: Path, one: dict[str, Ran]) -> None:
    one["whole"].ended()
    assert [event["step"] for event in one["whole"].of("checkpoint_saved")] == [3, 6, 8]
    assert steps(root, "whole") == [6, 8]
    assert steps(root, "background") == [2, 4, 6, 8]
    for info in store.complete(root / "whole"):
        assert store.verify(info) == []
        assert info.consumed_samples == info.step * 8


def test_checkpoint_events_measure(one: dict[str, Ran]) -> None:
    for event in one["background"].of("checkpoint_saved"):
        assert event["bytes"] > 2_000_000
        assert 0 < event["seconds"] < 60
        assert 0 <= event["blocked_seconds"] < 60


def test_damage_is_reported(one: dict[str, Ran], two: dict[str, Ran]) -> None:
    for ran, found in (
        (one["flipped"], {6: "__0_1.distcp"}),
        (one["cut"], {6: "manifest", 4: ".metadata"}),
        (two["shard-flipped"], {6: "__1_0.distcp"}),
    ):
        messages = [event["message"] for event in ran.of("notice") if "damaged and skipped" in event["message"]]
        assert len(messages) == len(found)
        for message, (step, words) in zip(messages, found.items(), strict=True):
            assert f"step {step} is damaged and skipped" in message
            assert words in message


def test_a_damaged_checkpoint_does_not_push_out_good_ones(root: Path, one: dict[str, Ran]) -> None:
    ran = one["flipped-stopped"].ended()
    assert ran.result == {"reason": "stopped", "step": 5}
    assert steps(root, "flipped-stopped") == [5]
    assert [path.name for path in (root / "flipped-stopped/checkpoints").glob("*aside*")] == ["step-6.aside-1"]
    assert any("step-6.aside-1" in event["message"] for event in ran.of("notice"))


def checkpoints_of(directory: Path, keep: int, heard: list[Event]) -> Checkpoints:
    """Enough of a Checkpoints for what rank 0 does to files."""
    made: Checkpoints = object.__new__(Checkpoints)
    attempt = directory / "attempts" / "1"
    attempt.mkdir(parents=True)
    made.session = Session(0, 0, 1, directory, attempt, 1, heard.append, lambda: False)
    made._settings = Checkpoint(keep=keep)
    return made


def save(directory: Path, step: int) -> None:
    (store.begin(directory, step) / "weights").write_bytes(b"1")
    store.seal(store.directory_of(directory, step), step=step, consumed_samples=step, model={})


def test_what_cannot_be_removed_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    made = checkpoints_of(tmp_path, 1, heard)
    save(tmp_path, 1)
    save(tmp_path, 2)

    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(store.shutil, "rmtree", busy)
    made._prune(2)
    assert [info.step for info in store.complete(tmp_path)] == [2]
    (notice,) = heard
    assert isinstance(notice, Notice)
    assert "old checkpoints stay for now" in notice.message
    assert "Directory not empty" in notice.message


def test_a_restart_within_an_attempt_does_not_start_over_again(tmp_path: Path) -> None:
    made = checkpoints_of(tmp_path, 1, [])
    save(tmp_path, 3)
    assert made._start_over()
    assert store.complete(tmp_path) == []
    save(tmp_path, 4)
    assert not made._start_over()
    assert [info.step for info in store.complete(tmp_path)] == [4]


def test_no_intact_checkpoint_is_an_error_and_nothing_is_lost(root: Path, one: dict[str, Ran]) -> None:
    ran = one["hopeless"]
    assert "CheckpointError" in ran.errors[0]
    assert "no checkpoint of this run is intact" in ran.errors[0]
    assert "truncated" in ran.errors[0]
    assert ran.losses == {}
    assert (root / "hopeless/checkpoints/step-4/manifest.json").exists()


def test_a_checkpoint_of_another_model_is_refused(one: dict[str, Ran]) -> None:
    error = one["other-model"].errors[0]
    assert "CheckpointError" in error
    assert "model.num_hidden_layers" in error
    assert "model.rope_theta" in error
    assert one["other-model"].losses == {}


def test_resume_never_starts_over(one: dict[str, Ran]) -> None:
    assert resumed_from(one["never"].ended()) is None
    assert one["never"].losses == {step: one["whole"].losses[step] for step in (1, 2)}


def test_a_complete_run_does_nothing(one: dict[str, Ran]) -> None:
    ran = one["complete"].ended()
    assert ran.result == {"reason": "complete", "step": 4}
    assert ran.losses == {}
    assert ran.of("checkpoint_saved") == []


@pytest.mark.parametrize(("name", "kept", "failing", "last"), [("full-disk", [4], 6, 8), ("shard-full-disk", [], 4, 6)])
def test_a_full_disk_keeps_what_is_good(  # noqa: PLR0917
    root: Path, one: dict[str, Ran], two: dict[str, Ran], name: str, kept: list[int], failing: int, last: int
) -> None:
    ran = {**one, **two}[name]
    notices = [event["message"] for event in ran.of("notice")]
    assert any(
        f"checkpoint of step {failing} was not saved" in notice and "File too large" in notice for notice in notices
    )
    assert max(ran.losses) == last, "training went on after the interval save failed"
    for error in ran.errors:
        assert "CheckpointError" in error
        assert f"the checkpoint of step {last} was not saved" in error
    assert steps(root, name) == kept
    assert sorted(path.name for path in (root / name / "checkpoints").iterdir()) == [f"step-{step}" for step in kept]


def test_a_stop_saves_and_says_so(root: Path, one: dict[str, Ran], two: dict[str, Ran]) -> None:
    assert one["stopped"].ended().result == {"reason": "stopped", "step": 3}
    assert steps(root, "stopped") == [3]
    # asked on rank 1 only, agreed on both
    assert two["shard-stopped"].ended().result == {"reason": "stopped", "step": 3}
    assert steps(root, "shard-stopped") == [3]


def test_a_loss_that_is_not_finite_stops_before_the_update(
    root: Path, one: dict[str, Ran], two: dict[str, Ran]
) -> None:
    ran = one["exploding"]
    bad = max(ran.losses) + 1
    assert f"step {bad}: " in ran.errors[0]
    assert "AnomalyError" in ran.errors[0]
    assert steps(root, "exploding")[-1] == bad - 1
    assert f"the checkpoint of step {bad - 1} is intact" in ran.errors[0]
    assert store.verify(store.complete(root / "exploding")[0]) == []
    for error in two["exploding-pipeline"].errors:
        assert "AnomalyError" in error, "no rank is left waiting for another"
        assert f"step {bad}: " in error
