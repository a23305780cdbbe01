"""Samples as the numerics contract defines them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from token_data import Make, MakePlan, write_by_hand

from primus.config.experiment import Data, DataSource
from primus.data.format import bin_path
from primus.data.order import SampleOrder
from primus.data.reader import IGNORED, open_training, open_validation
from primus.errors import DataError


def test_windows_have_stride_seq_length_and_the_tail_is_dropped(make_dataset: Make, make_plan: MakePlan) -> None:
    """29 tokens, S = 7: windows begin at 0, 7, 14, 21 (the last ends with token 28); in any order."""
    prefix = make_dataset("d", [list(range(29))])
    batch = open_training(make_plan(Data(train=str(prefix)), seq_length=7)).read(0, 4)
    rows = {tuple(row) for row in np.column_stack((batch.inputs, batch.labels[:, -1])).tolist()}
    assert rows == {tuple(range(start, start + 8)) for start in (0, 7, 14, 21)}
    for array in (batch.inputs, batch.labels, batch.positions):
        assert array.shape == (4, 7)
        assert array.dtype == np.int64
    assert np.array_equal(batch.inputs + 1, batch.labels)
    assert np.array_equal(batch.positions, np.tile(np.arange(7), (4, 1)))


@pytest.mark.parametrize(("tokens", "windows"), [(8, 1), (14, 1), (15, 2), (28, 3), (29, 4)])
def test_a_window_needs_one_token_more_than_the_sequence(
    make_dataset: Make, make_plan: MakePlan, tokens: int, windows: int
) -> None:
    prefix = make_dataset("d", [list(range(tokens))])
    reader = open_training(make_plan(Data(train=str(prefix)), seq_length=7))
    firsts = reader.read(0, 4 * windows).inputs[:, 0]
    assert sorted(firsts.tolist()) == sorted(4 * [7 * window for window in range(windows)])


def test_samples_are_those_of_the_sample_order(make_dataset: Make, make_plan: MakePlan) -> None:
    a = make_dataset("a", [list(range(500))])
    b = make_dataset("b", [list(range(500, 900))], "int32")
    plan = make_plan(Data(train=[str(a), DataSource(path=str(b), weight=3.0)]), seq_length=10, seed=5)
    assert [source.share for source in plan.data.sources] == [1024, 3072]
    sources, windows = SampleOrder([49, 39], [1024, 3072], plan.data.digest, 5).locate(4000, 300)
    expected = np.where(sources == 0, 0, 500) + 10 * windows
    assert np.array_equal(open_training(plan).read(4000, 300).inputs[:, 0], expected)


@pytest.mark.parametrize("within", [False, True])
def test_any_cut_into_batches_gives_the_same_samples(make_dataset: Make, make_plan: MakePlan, within: bool) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 1000, size).tolist() for size in rng.integers(0, 40, 60)]
    sources: list[str | DataSource] = [
        str(make_dataset("a", documents)),
        str(make_dataset("b", documents[::-1], "int32")),
    ]
    data = Data(train=sources, document_attention="within" if within else "full")
    whole = open_training(make_plan(data)).read(4000, 200)
    reader = open_training(make_plan(data))
    for first, count in ((4000, 1), (4199, 1), (4090, 13), (4001, 199), (4096, 5)):
        batch, part = reader.read(first, count), slice(first - 4000, first - 4000 + count)
        assert np.array_equal(batch.inputs, whole.inputs[part])
        assert np.array_equal(batch.labels, whole.labels[part])
        assert np.array_equal(batch.positions, whole.positions[part])


def test_positions_restart_where_documents_start(tmp_path: Path, make_plan: MakePlan) -> None:
    """Documents of several sequences, empty ones, one that starts at a window's first and one at its last token."""
    shape = [[3, 2], [0], [4], [1], [6, 1], [7], [2, 2, 1], [16]]
    documents = [[[1] * size for size in sizes] for sizes in shape]
    starts = set(np.cumsum([0, *(sum(sizes) for sizes in shape)])[:-1].tolist())
    prefix = write_by_hand(tmp_path / "d", documents)
    plan = make_plan(Data(train=str(prefix), document_attention="within"), seq_length=6)
    batch = open_training(plan).read(0, 7)
    _, windows = SampleOrder([7], [4096], plan.data.digest, 1).locate(0, 7)
    for row, window in enumerate(windows.tolist()):
        position, expected = 0, []
        for token in range(6 * window, 6 * window + 6):
            position = 0 if token in starts or token == 6 * window else position + 1
            expected.append(position)
        assert batch.positions[row].tolist() == expected


def test_end_of_document_targets_are_left_out(
    make_dataset: Make, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = make_dataset("d", [[5, 6, 0], [7, 0], [8, 9, 9, 0], [1] * 9])
    plan = make_plan(Data(train=str(prefix)))
    data = plan.data.model_copy(update={"mask_eod": True, "eod_id": 0})
    batch = open_training(plan.model_copy(update={"data": data})).read(0, 2)
    plain = open_training(plan).read(0, 2)
    assert np.array_equal(batch.inputs, plain.inputs)
    assert np.array_equal(batch.labels, np.where(plain.labels == 0, IGNORED, plain.labels))
    assert (batch.labels == IGNORED).sum() == 3


def test_validation_is_the_end_in_plain_order_and_gone_from_training(make_dataset: Make, make_plan: MakePlan) -> None:
    """100 tokens in documents of 10; the last 0.25 begins at the first document from token 75: 80."""
    prefix = make_dataset("d", [list(range(start, start + 10)) for start in range(0, 100, 10)])
    plan = make_plan(Data(train=str(prefix), validation=0.25), seq_length=6)
    validation = open_validation(plan)
    assert validation is not None
    assert validation.length == 3
    batch = validation.read(0, 3)
    assert batch.inputs.tolist() == [list(range(start, start + 6)) for start in (80, 86, 92)]
    assert batch.labels[-1].tolist() == list(range(93, 99))
    training = open_training(plan).read(0, 13 * 3)
    assert training.labels.max() == 78  # 13 windows: 0..78
    assert sorted(set(training.inputs[:, 0].tolist())) == [6 * window for window in range(13)]
    with pytest.raises(IndexError, match=r"samples 2\.\.3 of 3"):
        validation.read(2, 2)


def test_validation_goes_source_by_source(make_dataset: Make, make_plan: MakePlan) -> None:
    a = make_dataset("a", [list(range(start, start + 10)) for start in range(0, 100, 10)])
    b = make_dataset("b", [list(range(start, start + 10)) for start in range(200, 300, 10)])
    validation = open_validation(make_plan(Data(train=[str(a), str(b)], validation=0.2), seq_length=6))
    assert validation is not None
    assert validation.length == 6
    assert validation.read(0, 6).inputs[:, 0].tolist() == [80, 86, 92, 280, 286, 292]
    assert validation.read(2, 2).inputs[:, 0].tolist() == [92, 280]


def test_validation_from_a_dataset_of_its_own_or_none(make_dataset: Make, make_plan: MakePlan) -> None:
    train, other = make_dataset("t", [list(range(50))]), make_dataset("v", [list(range(100, 120))])
    validation = open_validation(make_plan(Data(train=str(train), validation=str(other))))
    assert validation is not None
    assert validation.read(0, 2).inputs[:, 0].tolist() == [100, 108]
    assert open_validation(make_plan(Data(train=str(train)))) is None


@pytest.mark.parametrize(("dtype", "bad"), [("uint16", 1000), ("int32", 1000), ("int32", -1), ("int64", 2**40)])
def test_an_id_outside_the_vocabulary_is_named(make_dataset: Make, make_plan: MakePlan, dtype: str, bad: int) -> None:
    tokens = list(range(50))
    tokens[37] = bad
    prefix = make_dataset("d", [tokens], dtype)
    reader = open_training(make_plan(Data(train=str(prefix)), vocab_size=1000))
    with pytest.raises(DataError, match=rf"d\.bin: token 37 has id {bad}, outside the model's vocabulary of 1000"):
        reader.read(0, 6)


def test_the_largest_id_is_inside(make_dataset: Make, make_plan: MakePlan) -> None:
    prefix = make_dataset("d", [[999] * 50])
    assert open_training(make_plan(Data(train=str(prefix)), vocab_size=1000)).read(0, 1).inputs.max() == 999


def test_a_dataset_replaced_since_planning_is_refused(make_dataset: Make, make_plan: MakePlan) -> None:
    plan = make_plan(Data(train=str(make_dataset("d", [[1] * 50]))))
    make_dataset("d", [[1] * 60])
    with pytest.raises(
        DataError, match="changed since planning: 60 uint16 tokens in 1 documents where the plan has 50"
    ):
        open_training(plan)


def test_a_dataset_that_is_cut_while_it_is_read_is_refused(make_dataset: Make, make_plan: MakePlan) -> None:
    """Reading what is gone from a mapped file would end the process."""
    prefix = make_dataset("d", [[1] * 5_000])
    reader = open_training(make_plan(Data(train=str(prefix))))
    reader.read(0, 4)
    os.truncate(bin_path(prefix), 100)
    with pytest.raises(DataError, match="became shorter while it was read: 100 of 10,000 bytes are left"):
        reader.read(4, 4)


def test_a_truncated_dataset_is_refused_at_opening(make_dataset: Make, make_plan: MakePlan) -> None:
    prefix = make_dataset("d", [[1] * 50])
    plan = make_plan(Data(train=str(prefix)))
    bin_path(prefix).write_bytes(bin_path(prefix).read_bytes()[:-10])
    with pytest.raises(DataError, match="truncated: 90 bytes where the index ends at 100"):
        open_training(plan)


def test_synthetic_tokens_are_the_same_everywhere_and_fill_the_vocabulary(make_plan: MakePlan) -> None:
    plan = make_plan(Data(train="synthetic", validation=0.1), seq_length=16, vocab_size=50, seed=3)
    reader = open_training(plan)
    assert reader.length is None
    batch = reader.read(10**9, 400)
    assert set(np.unique(batch.inputs)) == set(range(50))
    assert np.array_equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    assert np.array_equal(reader.read(10**9 + 7, 1).inputs[0], batch.inputs[7])
    # fixed values: another machine or version that disagrees would break the sample order's promise
    assert open_training(plan).read(0, 1).inputs[0, :8].tolist() == [23, 40, 43, 21, 33, 31, 18, 21]
    validation = open_validation(plan)
    assert validation is not None
    assert not np.array_equal(validation.read(0, 1).inputs, reader.read(0, 1).inputs)
    with pytest.raises(IndexError):
        validation.read(validation.length or 0, 1)
