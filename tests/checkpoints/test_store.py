"""Checkpoints stay good whatever happens to the process, the disk or the directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import xxhash

from primus.checkpoints import integrity, store
from primus.errors import CheckpointError

MODEL = {"model_type": "llama", "hidden_size": 64, "num_key_value_heads": None, "init_std": 0.02}


def save(run: Path, step: int, *, content: bytes = b"weights" * 1000) -> store.CheckpointInfo:
    directory = store.begin(run, step)
    (directory / "shards").mkdir()
    (directory / "shards" / "rank0.bin").write_bytes(content)
    (directory / ".metadata").write_bytes(b"meta")
    return store.seal(directory, step=step, consumed_samples=step * 8, model=MODEL)


def steps(run: Path) -> list[int]:
    return [info.step for info in store.complete(run)]


def test_seal_makes_a_checkpoint_visible_with_every_file(tmp_path: Path) -> None:
    info = save(tmp_path, 10)
    assert store.complete(tmp_path) == [info]
    assert info.consumed_samples == 80
    assert info.model == MODEL
    assert info.bytes == 7004
    assert {file.path: file.digest for file in info.files} == {
        ".metadata": xxhash.xxh3_128_hexdigest(b"meta"),
        "shards/rank0.bin": xxhash.xxh3_128_hexdigest(b"weights" * 1000),
    }
    assert store.verify(info) == []
    assert info.file(".metadata").size == 4
    with pytest.raises(CheckpointError, match="no file 'rank1'"):
        info.file("rank1")


def test_digests_of_the_writer_are_taken_as_they_are(tmp_path: Path) -> None:
    directory = store.begin(tmp_path, 1)
    (directory / "a").write_bytes(b"a")
    (directory / "b").write_bytes(b"b")
    info = store.seal(directory, step=1, consumed_samples=1, model={}, digests={"a": "0" * 32})
    assert [file.digest for file in info.files] == ["0" * 32, xxhash.xxh3_128_hexdigest(b"b")]
    assert [problem.where for problem in store.verify(info)] == [str(directory / "a")]
    with pytest.raises(CheckpointError, match="do not exist: c"):
        store.seal(directory, step=1, consumed_samples=1, model={}, digests={"c": "0" * 32})


def test_nothing_to_seal_and_links_are_refused(tmp_path: Path) -> None:
    directory = store.begin(tmp_path, 1)
    with pytest.raises(CheckpointError, match="without files"):
        store.seal(directory, step=1, consumed_samples=1, model={})
    (directory / "elsewhere").symlink_to(tmp_path)
    (directory / "link").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"cannot hold links: .*link"):
        store.seal(directory, step=1, consumed_samples=1, model={})
    assert store.complete(tmp_path) == []


def test_no_directory_and_odd_entries_are_no_checkpoints(tmp_path: Path) -> None:
    assert store.entries(tmp_path) == []
    save(tmp_path, 5)
    folder = tmp_path / "checkpoints"
    for name in ("step-", "step-07", "step-x", "step-5.bak", "tmp", "step--1"):
        (folder / name).mkdir()
    (folder / "step-8").write_text("a file")
    (folder / "step-9").symlink_to(folder / "step-5")
    assert [entry.step for entry in store.entries(tmp_path)] == [5]
    assert store.prune(tmp_path, 1) == []
    assert (folder / "step-5.bak").is_dir()


def test_an_unfinished_save_is_partial_and_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1)
    directory = store.begin(tmp_path, 2)
    (directory / "rank0.bin").write_bytes(b"half")
    (directory / ".manifest-123").write_text("{")
    assert [(entry.step, entry.state) for entry in store.entries(tmp_path)] == [(2, "partial"), (1, "complete")]
    info, problems = store.newest_intact(tmp_path)
    assert info is not None
    assert (info.step, problems) == (1, [])


def truncate(directory: Path) -> None:
    os.truncate(directory / "shards" / "rank0.bin", 10)


def grow(directory: Path) -> None:
    with (directory / ".metadata").open("ab") as stream:
        stream.write(b"!")


def lose(directory: Path) -> None:
    (directory / ".metadata").unlink()


def tear_manifest(directory: Path) -> None:
    os.truncate(directory / "manifest.json", 100)


def empty_manifest(directory: Path) -> None:
    os.truncate(directory / "manifest.json", 0)


def edit_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"consumed_samples": 16', '"consumed_samples": 17'))


def binary_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_bytes(b"\xff\xfe\x00garbage")


def list_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text("[]")


def future_manifest(directory: Path) -> None:
    body = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(body | {"format": 99}))


def other_step(directory: Path) -> None:
    text = (directory.parent / "step-1" / "manifest.json").read_text()
    (directory / "manifest.json").write_text(text)


def manifest_directory(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "truncated: 10 of 7,000 bytes"),
        (grow, "has 5 bytes, 4 were written"),
        (lose, "missing"),
        (tear_manifest, "cannot be read"),
        (empty_manifest, "cannot be read"),
        (edit_manifest, "was altered"),
        (binary_manifest, "cannot be read"),
        (list_manifest, "not a JSON object"),
        (future_manifest, "format 99, this version reads 1"),
        (other_step, "of step 1, the directory of step 2"),
        (manifest_directory, "cannot be read"),
    ],
)
def test_the_newest_intact_one_is_used_and_the_damage_named(tmp_path: Path, harm, message: str) -> None:
    save(tmp_path, 1)
    directory = save(tmp_path, 2).directory
    harm(directory)
    info, problems = store.newest_intact(tmp_path)
    assert info is not None
    assert info.step == 1
    assert message in problems[0].message
    assert problems[0].where.startswith(str(directory))
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("path", ["../step-1/x", "/etc/passwd", ""])
def test_a_manifest_cannot_point_outside(tmp_path: Path, path: str) -> None:
    directory = save(tmp_path, 1).directory
    body = json.loads((directory / "manifest.json").read_text())
    body.pop("manifest_xxh3_128")
    body["files"][0]["path"] = path
    integrity._write_manifest(directory, body)
    assert store.entries(tmp_path)[0].state == "damaged"


def test_verify_names_the_altered_the_missing_the_truncated_and_the_extra(tmp_path: Path) -> None:
    directory = store.begin(tmp_path, 3)
    for name in ("altered", "missing", "short", "good"):
        (directory / name).write_bytes(b"0123456789" * 100)
    info = store.seal(directory, step=3, consumed_samples=3, model=MODEL)
    with (directory / "altered").open("r+b") as stream:
        stream.seek(500)
        stream.write(b"X")
    (directory / "missing").unlink()
    os.truncate(directory / "short", 5)
    (directory / "extra").write_bytes(b"?")
    found = {Path(problem.where).name: problem.message for problem in store.verify(info)}
    assert set(found) == {"altered", "missing", "short", "extra"}
    assert "altered" in found["altered"]
    assert "5 of 1,000" in found["short"]
    assert "not part" in found["extra"]


def test_prune_keeps_the_newest_and_clears_what_is_left_behind(tmp_path: Path) -> None:
    for step in (1, 3, 5, 7):
        save(tmp_path, step)
    for step in (2, 6, 9):  # killed prunes and saves, and one save that still runs
        (store.begin(tmp_path, step) / "x").write_bytes(b"x")
    damaged = save(tmp_path, 8).directory
    truncate(damaged)
    expected = [tmp_path / "checkpoints" / f"step-{step}" for step in (6, 3, 2, 1)]
    assert store.prunable(tmp_path, 2) == expected
    assert store.prune(tmp_path, 2) == expected
    assert [(entry.step, entry.state) for entry in store.entries(tmp_path)] == [
        (9, "partial"), (8, "damaged"), (7, "complete"), (5, "complete"),
    ]  # fmt: skip
    assert store.prune(tmp_path, 2) == []


def test_prune_never_removes_the_last_good_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for step in (2, 3):
        truncate(save(tmp_path, step).directory)
    assert store.prune(tmp_path, 1) == []
    assert steps(tmp_path) == [1]
    with pytest.raises(CheckpointError, match="keep is 0"):
        store.prune(tmp_path, 0)


def test_prune_without_a_good_checkpoint_removes_nothing(tmp_path: Path) -> None:
    store.begin(tmp_path, 1)
    truncate(save(tmp_path, 2).directory)
    assert store.prune(tmp_path, 1) == []
    assert len(store.entries(tmp_path)) == 2


def test_two_prunes_and_a_reader_at_once(tmp_path: Path) -> None:
    for step in range(1, 41):
        save(tmp_path, step, content=b"x")
    failures: list[BaseException] = []

    def repeat(action) -> None:
        try:
            for _ in range(10):
                action()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    def read() -> None:
        info, problems = store.newest_intact(tmp_path)
        assert info is not None
        assert (info.step, problems) == (40, [])

    actions = [lambda: store.prune(tmp_path, 3), lambda: store.prune(tmp_path, 3), read]
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert steps(tmp_path) == [40, 39, 38]


def test_begin_clears_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    save(tmp_path, 4)
    directory = store.begin(tmp_path, 4)
    assert list(directory.iterdir()) == []
    assert steps(tmp_path) == []


def test_a_link_in_the_place_of_a_checkpoint_gives_way_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    save(tmp_path, 5)
    folder = tmp_path / "checkpoints"
    for step, target in ((6, "step-5"), (7, "/nowhere")):
        (folder / f"step-{step}").symlink_to(target)
        save(tmp_path, step)
    assert steps(tmp_path) == [7, 6, 5]
    assert not (folder / "step-6").is_symlink()


def test_a_link_to_a_file_system_that_is_away_is_no_new_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to("/nowhere/checkpoints")
    with pytest.raises(CheckpointError, match="this link leads nowhere"):
        store.newest_intact(tmp_path)


def test_begin_names_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match="cannot be made"):
        store.begin(tmp_path, 1)


def test_a_full_disk_leaves_the_checkpoint_invisible_and_the_old_one_good(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 1)
    directory = store.begin(tmp_path, 2)
    (directory / "a").write_bytes(b"a")
    real = os.fsync
    calls = iter(range(100))

    def full(descriptor: int) -> None:
        if next(calls) == 1:  # the manifest's own fsync, after that of the one file
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.seal(directory, step=2, consumed_samples=2, model=MODEL)
    monkeypatch.undo()
    assert steps(tmp_path) == [1]
    assert [path.name for path in directory.iterdir()] == ["a"]


def test_killed_at_any_moment_the_visible_ones_verify(tmp_path: Path) -> None:
    """A child saves and prunes without pause and is killed with SIGKILL; whatever is visible then is whole."""
    code = (
        "import sys; from pathlib import Path; from primus.checkpoints import store\n"
        "run = Path(sys.argv[1]); start = max([i.step for i in store.complete(run)], default=0)\n"
        "for step in range(start + 1, start + 10**6):\n"
        "    d = store.begin(run, step)\n"
        "    for name in 'abc': (d / name).write_bytes(name.encode() * 300000)\n"
        "    store.seal(d, step=step, consumed_samples=step, model={})\n"
        "    store.prune(run, 2); print(step, flush=True)\n"
    )
    last = 0
    for round_ in range(4):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05 + 0.037 * round_)
        child.send_signal(signal.SIGKILL)
        printed = child.stdout.read().split()
        child.wait()
        infos = store.complete(tmp_path)
        assert infos
        assert infos[0].step > last
        assert infos[0].step >= int(printed[-1] if printed else 0)
        assert [store.verify(info) for info in infos] == [[] for _ in infos]
        last = infos[0].step


def test_compare_model_names_each_field(tmp_path: Path) -> None:
    info = save(tmp_path, 1)
    assert store.compare_model(info, {"model_type": "llama", "hidden_size": 64, "init_std": 0.5}) == []
    problems = store.compare_model(info, {"model_type": "qwen3", "hidden_size": 128, "q_lora_rank": 8})
    assert [problem.where for problem in problems] == ["model.hidden_size", "model.model_type", "model.q_lora_rank"]
    assert "has 64, the experiment says 128" in problems[0].message


def test_set_aside_hides_newer_ones_and_deletes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        for step in (2, 4, 6):
            save(tmp_path, step)
        truncate(tmp_path / "checkpoints" / "step-6")
        assert store.set_aside(tmp_path, 2)
        assert steps(tmp_path) == [2]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-2", "step-4.aside-1", "step-4.aside-2", "step-6.aside-1", "step-6.aside-2"]
    assert store.set_aside(tmp_path, 2) == []
    assert store.prune(tmp_path, 1) == []
