"""How a global batch is cut among ranks, and among groups of which some may be missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from primus.backends.pytorch.samples import share

SMALL = st.integers(1, 4)


@given(SMALL, SMALL, SMALL, SMALL, st.data())
def test_groups_that_are_there_make_the_whole_batch(
    micro: int, ranks: int, groups: int, each: int, data: st.DataObject
) -> None:
    batch = micro * ranks * groups * each
    there = data.draw(st.integers(1, groups))
    positions = []
    for part in range(there):
        sizes = set()
        for rank in range(ranks):
            first, size = share(batch, micro, dp_rank=rank, dp_size=ranks, part=part, parts=there)
            assert size % micro == 0
            sizes.add(size)
            positions += range(first, first + size)
        assert len(sizes) == 1, "all ranks of a group make as many passes"
    assert positions == list(range(batch))


@given(SMALL, SMALL, SMALL, SMALL)
def test_all_groups_cut_it_as_one_group_of_all_ranks(micro: int, ranks: int, groups: int, each: int) -> None:
    batch = micro * ranks * groups * each
    for number in range(ranks * groups):
        group, rank = divmod(number, ranks)
        assert share(batch, micro, dp_rank=rank, dp_size=ranks, part=group, parts=groups) == share(
            batch, micro, dp_rank=number, dp_size=ranks * groups, part=0, parts=1
        )
