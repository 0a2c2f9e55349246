"""The bounds (a) to (e) of the placement, for any cluster up to 64 segments and 1024 shard groups."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pgherd.model.placement import Item, Move, apply, badness, optimum, plan

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

SEGMENTS = st.integers(min_value=1, max_value=64)
SIZES = {
    "empty": st.just(0),
    "equal": st.just(8192),
    "alike": st.integers(min_value=900, max_value=1100),
    "any": st.integers(min_value=0, max_value=10**12),
    "giants": st.sampled_from([0, 1, 10, 100, 10**6]),
}


@st.composite
def groups(draw: st.DrawFn, kinds: Sequence[str] = tuple(SIZES)) -> list[Item]:
    """Up to 1024 shard groups of up to 32 colocations, all on segment 1; sizes repeat to keep drawing cheap."""
    items: list[Item] = []
    for colocation in range(draw(st.integers(min_value=1, max_value=8))):
        size = SIZES[draw(st.sampled_from(list(kinds)))]
        sizes = draw(st.lists(size, min_size=1, max_size=17))
        count = draw(st.sampled_from([1, 2, 5, 16, 32, 64, 128]))
        items += [Item(colocation, i, 1, sizes[i % len(sizes)]) for i in range(count)]
    return items


def equally(count: int) -> dict[int, float]:
    return dict.fromkeys(range(1, count + 1), 1.0)


def settled(items: Sequence[Item], count: int) -> list[Item]:
    """The groups as an expansion from one segment leaves them."""
    return apply(items, plan(items, equally(count)))


def scattered(draw: st.DrawFn, items: Sequence[Item], count: int) -> list[Item]:
    places = draw(st.lists(st.integers(min_value=1, max_value=count), min_size=1, max_size=31))
    return [Item(i.colocation, i.index, places[n % len(places)], i.bytes) for n, i in enumerate(items)]


def assert_prefixes_are_no_worse(
    items: Sequence[Item], moves: Sequence[Move], wanted: dict[int, float]
) -> None:
    # equal to badness(apply(items, moves[:n]), wanted) for each n, but in one pass
    held: Counter[int] = Counter()
    for item in items:
        held[item.segment] += item.bytes
    stranded, worst = badness(items, wanted)
    for move in moves:
        held[move.source] -= move.bytes
        held[move.target] += move.bytes
        now = stranded - (move.source not in wanted), max(held[s] / weight for s, weight in wanted.items())
        assert now <= (stranded, worst * (1 + 1e-9))
        stranded, worst = now
    assert (stranded, worst) == badness(apply(items, moves), wanted)


def assert_whole_groups_move_once(items: Sequence[Item], moves: Sequence[Move]) -> None:
    places = {(item.colocation, item.index): item for item in items}
    for move in moves:
        item = places.pop((move.colocation, move.index))  # a KeyError: moved twice, or unknown
        assert (item.segment, item.bytes) == (move.source, move.bytes)
        assert move.source != move.target


def assert_even(items: Sequence[Item], moves: Sequence[Move], wanted: dict[int, float]) -> None:
    fair = sum(item.bytes for item in items) / len(wanted)
    largest = max(item.bytes for item in items)
    assert badness(apply(items, moves), wanted)[1] <= fair + max(0.1 * fair, largest) + 1e-6


def assert_bytes_bound(items: Sequence[Item], moves: Sequence[Move], best: float, count: int) -> None:
    assert sum(move.bytes for move in moves) <= best + count * max(item.bytes for item in items) + 1e-6


@MANY
@given(items=groups(), before=SEGMENTS, after=SEGMENTS)
def test_an_expansion_keeps_every_bound(items: list[Item], before: int, after: int) -> None:
    assume(before < after)
    items = settled(items, before)
    wanted = equally(after)
    new = range(before + 1, after + 1)
    moves = plan(items, wanted, new=new)
    best = optimum(items, wanted, new=new)
    assert len(moves) <= best.groups + after
    assert_bytes_bound(items, moves, best.bytes, after)
    assert_even(items, moves, wanted)
    assert_prefixes_are_no_worse(items, moves, wanted)
    assert_whole_groups_move_once(items, moves)
    assert all(move.source <= before < move.target for move in moves)


@MANY
@given(items=groups(), before=SEGMENTS, after=SEGMENTS)
def test_a_shrink_keeps_every_bound(items: list[Item], before: int, after: int) -> None:
    assume(before > after)
    items = settled(items, before)
    wanted = equally(after)
    moves = plan(items, equally(before), retiring=range(after + 1, before + 1))
    assert {(m.colocation, m.index) for m in moves} == {
        (i.colocation, i.index) for i in items if i.segment > after
    }
    assert_even(items, moves, wanted)
    assert_prefixes_are_no_worse(items, moves, wanted)
    assert_whole_groups_move_once(items, moves)
    assert all(move.source > after >= move.target for move in moves)


@MANY
@given(data=st.data(), items=groups(), before=SEGMENTS, after=SEGMENTS)
def test_a_rebalance_from_anywhere_keeps_every_bound(
    data: st.DataObject, items: list[Item], before: int, after: int
) -> None:
    items = data.draw(st.composite(scattered)(items, before))
    wanted = equally(after)
    moves = plan(items, wanted, rebalance=True)
    best = optimum(items, wanted, rebalance=True)
    assert_bytes_bound(items, moves, best.bytes, max(before, after))
    assert_prefixes_are_no_worse(items, moves, wanted)
    assert_whole_groups_move_once(items, moves)
    if before <= after:  # else the drain had to go first, and filled what was poor
        assert_even(items, moves, wanted)


@MANY
@given(items=groups(["empty", "equal"]), steps=st.lists(SEGMENTS, min_size=1, max_size=4))
def test_groups_of_one_size_stay_even_by_count_through_any_history(
    items: list[Item], steps: list[int]
) -> None:
    items = [Item(i.colocation, i.index, 1, items[0].bytes) for i in items]
    for count in steps:
        items = apply(items, plan(items, equally(count)))
        fair = len(items) / count
        held = Counter(item.segment for item in items)
        colocations = Counter(item.colocation for item in items)
        each = Counter((item.colocation, item.segment) for item in items)
        assert all(abs(held[s] - fair) <= len(colocations) for s in equally(count))
        assert all(
            abs(each[k, s] - size / count) < 2 for k, size in colocations.items() for s in equally(count)
        )


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [
        ([1, 1, 1, 1, 2, 5, 32, 128], (50, 57)),
        ([128, 32, 128, 32], (57, 64)),
        ([128, 2, 128, 16, 128, 16, 16, 2], (60, 64)),
    ],
)
def test_where_bytes_come_first_the_groups_of_one_size_are_taken_from_every_table(
    sizes: list[int], steps: tuple[int, int]
) -> None:
    items = [Item(k, i, 1, 8192) for k, size in enumerate(sizes) for i in range(size)]
    for count in steps:
        items = apply(items, plan(items, equally(count)))
    each = Counter((item.colocation, item.segment) for item in items)
    assert all(abs(each[k, s] - size / count) < 2 for k, size in enumerate(sizes) for s in equally(count))


@MANY
@given(items=groups(), before=SEGMENTS, after=SEGMENTS, rebalance=st.booleans())
def test_the_order_of_the_input_changes_nothing(
    items: list[Item], before: int, after: int, rebalance: bool
) -> None:
    items = settled(items, before)
    wanted = equally(after)
    backwards = dict(reversed(wanted.items()))
    assert plan(items, wanted, rebalance=rebalance) == plan(items[::-1], backwards, rebalance=rebalance)


@MANY
@given(
    items=groups(["alike"]),
    weights=st.lists(st.floats(min_value=0.5, max_value=4), min_size=2, max_size=64),
)
def test_weights_keep_the_bounds_too(items: list[Item], weights: list[float]) -> None:
    wanted = dict(enumerate(weights, start=1))
    moves = plan(items, wanted)
    best = optimum(items, wanted)
    assert len(moves) <= best.groups + len(wanted)
    assert_bytes_bound(items, moves, best.bytes, len(wanted))
    assert_prefixes_are_no_worse(items, moves, wanted)
    assert all(move.source == 1 for move in moves)


# The yardstick


def jump_hash(key: int, buckets: int) -> int:
    """Jump consistent hash (arXiv 1406.2294): moves the least share of keys that any even hash can."""
    bucket, jump = -1, 0
    while jump < buckets:
        bucket = jump
        key = (key * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        jump = int((bucket + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return bucket


@pytest.mark.parametrize(
    ("key", "buckets", "expected"),
    [
        (1, 1, 0),
        (42, 57, 43),
        (0xDEAD10CC, 1, 0),
        (0xDEAD10CC, 666, 361),
        (256, 1024, 520),
        (10863919174838991, 11, 6),
    ],
)
def test_the_yardstick_is_right(key: int, buckets: int, expected: int) -> None:
    assert jump_hash(key, buckets) == expected


@MANY
@given(before=SEGMENTS, after=SEGMENTS, count=st.sampled_from([32, 64, 128, 1024]))
def test_no_larger_share_moves_than_jump_hash_would_move_plus_one_group_a_segment(
    before: int, after: int, count: int
) -> None:
    items = settled([Item(1, i, 1, 1) for i in range(count)], before)
    share = len(plan(items, equally(after))) / count
    least = abs(after - before) / max(after, before)
    assert share <= least + max(after, before) / count


def test_jump_hash_moves_what_the_bound_says() -> None:
    keys = range(0, 2_000_000, 97)
    for before, after in [(4, 5), (4, 8), (8, 9), (8, 12), (5, 4)]:
        moved = sum(jump_hash(key, before) != jump_hash(key, after) for key in keys) / len(keys)
        assert moved == pytest.approx(abs(after - before) / max(after, before), abs=0.02)


def test_a_thousand_groups_on_64_segments_are_planned_in_less_than_a_second() -> None:
    items = [Item(k, i, 1 + i % 8, 1000 + (i * 7919) % 500) for k in range(32) for i in range(32)]
    started = time.perf_counter()
    assert plan(items, equally(64))
    assert time.perf_counter() - started < 1


def test_many_small_groups_make_up_for_a_few_large_ones() -> None:
    """Half of the new segments have their share with one large group; the small ones all go to the other half."""
    items = [Item(0, i, 1, 8192) for i in range(32)]
    items += [Item(colocation, i, 1, 900) for colocation in (1, 2) for i in range(32)]
    assert_even(items, plan(items, equally(51)), equally(51))
