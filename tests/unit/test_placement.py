"""Plans that a reader can work out by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from pgherd.model.placement import Item, Move, apply, optimum, plan


def even(count: int, segments: Sequence[int], size: int = 100, colocation: int = 1) -> list[Item]:
    """``count`` groups of one size, dealt round robin."""
    return [Item(colocation, i, segments[i % len(segments)], size) for i in range(count)]


def equally(*segments: int) -> dict[int, float]:
    return dict.fromkeys(segments, 1.0)


def counts(items: Sequence[Item]) -> dict[int, int]:
    return dict(sorted(Counter(item.segment for item in items).items()))


def bytes_held(items: Sequence[Item]) -> Mapping[int, int]:
    held: Counter[int] = Counter()
    for item in items:
        held[item.segment] += item.bytes
    return held


@pytest.mark.parametrize(
    ("groups", "before", "after", "moved", "ends"),
    [
        (32, 2, 4, 16, [8, 8, 8, 8]),
        (32, 4, 3, 8, [10, 11, 11]),
        (32, 2, 3, 10, [10, 11, 11]),
        (32, 4, 5, 6, [6, 6, 6, 7, 7]),
        (32, 16, 17, 1, [1] * 2 + [2] * 15),
        (32, 1, 64, 31, [0] * 32 + [1] * 32),
        (128, 8, 12, 40, [10] * 4 + [11] * 8),
        (4, 4, 1, 3, [4]),
        (2, 4, 1, 1, [2]),
    ],
)
@pytest.mark.parametrize("size", [100, 0])
def test_groups_of_one_size_end_even_with_the_fewest_moves(
    groups: int, before: int, after: int, moved: int, ends: list[int], size: int
) -> None:
    items = even(groups, range(1, before + 1), size)
    wanted = equally(*range(1, after + 1))
    moves = plan(items, wanted)
    held = counts(apply(items, moves))
    assert len(moves) == moved
    assert sorted(held.get(segment, 0) for segment in wanted) == ends


def test_each_colocation_is_spread_by_itself_and_their_odd_groups_do_not_pile_up() -> None:
    items = [item for k in range(9) for item in even(32, [1, 2], size=0, colocation=k)]
    placed = apply(items, plan(items, equally(1, 2, 3)))
    for k in range(9):
        assert set(counts([item for item in placed if item.colocation == k]).values()) <= {10, 11, 12}
    assert counts(placed) == {1: 96, 2: 96, 3: 96}


def test_sizes_decide_which_groups_go() -> None:
    items = [Item(1, i, 1 + i % 2, (i % 16 + 1) * 10) for i in range(32)]
    held = bytes_held(apply(items, plan(items, equally(1, 2, 3, 4))))
    fair = sum(held.values()) / 4
    assert all(abs(size - fair) <= 0.1 * fair for size in held.values())


def test_a_giant_makes_counts_give_way_to_bytes() -> None:
    items = [Item(1, 0, 1, 1000), *(Item(1, i, 1 + i % 2, 50) for i in range(1, 32))]
    held = bytes_held(apply(items, plan(items, equally(1, 2), rebalance=True)))
    assert max(held.values()) - min(held.values()) <= 50


def test_weights_are_honoured() -> None:
    items = even(32, [1])
    assert counts(apply(items, plan(items, {1: 1.0, 2: 3.0}))) == {1: 8, 2: 24}


def test_a_shrink_only_empties_what_retires() -> None:
    items = even(32, [1, 2, 3, 4])
    moves = plan(items, equally(1, 2, 3, 4), retiring=[4])
    assert {move.source for move in moves} == {4}
    assert len(moves) == 8


def test_a_replacement_moves_nothing_twice() -> None:
    items = even(32, [1, 2, 3])
    moves = plan(items, equally(1, 2, 4))
    assert sorted((m.colocation, m.index) for m in moves) == sorted({(m.colocation, m.index) for m in moves})
    assert sorted(counts(apply(items, moves)).values()) == [10, 11, 11]


def test_an_expansion_can_be_planned_again_from_where_it_stopped() -> None:
    items = even(32, [1, 2])
    wanted = equally(1, 2, 3, 4)
    first = plan(items, wanted)
    halfway = apply(items, first[:7])
    rest = plan(halfway, wanted, new=[3, 4])
    assert len(rest) == len(first) - 7
    assert counts(apply(halfway, rest)) == {1: 8, 2: 8, 3: 8, 4: 8}


def test_nothing_moves_where_nothing_is_new_or_retiring() -> None:
    items = [*even(20, [1]), *(Item(1, i, 2, 100) for i in range(20, 24))]
    assert plan(items, equally(1, 2)) == []
    assert counts(apply(items, plan(items, equally(1, 2), rebalance=True))) == {1: 12, 2: 12}


def test_an_even_cluster_needs_no_rebalance() -> None:
    assert plan(even(32, [1, 2, 3]), equally(1, 2, 3), rebalance=True) == []


def test_a_cluster_without_tables_needs_no_moves() -> None:
    assert plan([], equally(1, 2)) == []
    assert optimum([], equally(1, 2)).bytes == 0


def test_the_optimum_of_an_expansion_is_what_the_new_ones_must_receive() -> None:
    best = optimum(even(32, [1, 2]), equally(1, 2, 3))
    assert best.groups == pytest.approx(32 / 3)
    assert best.bytes == pytest.approx(3200 / 3)


def test_the_optimum_of_a_shrink_is_what_the_retiring_ones_hold() -> None:
    best = optimum(even(32, [1, 2, 3, 4]), equally(1, 2, 3, 4), retiring=[4])
    assert (best.groups, best.bytes) == (8, 800)


@pytest.mark.parametrize(
    ("items", "segments", "retiring", "problem"),
    [
        ([], {}, [], "no segment would be left"),
        ([Item(1, 0, 1, 5)], {1: 1.0}, [1], "no segment would be left"),
        ([], {1: 0.0}, [], "the weight of segment 1 must be a positive number, got 0.0"),
        ([], {1: float("nan")}, [], "the weight of segment 1 must be a positive number, got nan"),
        ([Item(1, 0, 1, 5), Item(1, 0, 2, 5)], {1: 1.0}, [], "shard group 1/0 is listed twice"),
    ],
)
def test_what_makes_no_sense_is_refused(
    items: list[Item], segments: dict[int, float], retiring: list[int], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        plan(items, segments, retiring=retiring)


def test_moves_name_where_each_group_was_and_its_size() -> None:
    assert plan([Item(3, 7, 1, 42)], equally(2)) == [Move(3, 7, 1, 2, 42)]


def test_a_shrink_does_not_fill_segments_that_were_empty_before() -> None:
    items = even(16, [1, 2])
    assert plan(items, equally(1, 2, 3, 4), retiring=[4]) == []
    assert len(plan(items, equally(1, 2, 3), new=[3])) == 5
