"""Which shard group goes where: a pure function from the present map to an ordered list of moves.

The model. A shard group (`Item`) is the smallest thing that moves; colocated tables are inside one, so they
can't be torn apart. Every segment has a weight; its *fair share* of anything is total x weight / sum of weights.
Two things are to be fair at once: the **count** of each colocation's groups (so that every table uses all
segments, and tables that are still empty will fill them evenly) and the **bytes** of all groups together.

Three movements exist, and `plan` composes them:

* **drain**: everything leaves the retiring segments, the largest first, each to the emptiest segment that may
  take it.
* **fill**: the new segments receive. Only they receive, so nothing ever moves between two old segments.
* **rebalance**: any segment gives or receives. Never done unless asked for.

Each is planned in up to three styles. `COUNTS` brings every colocation's count within one of its fair share and
uses what freedom is left (which group, from whom) to even out bytes. `BYTES` and `GIANTS` look at bytes first;
they differ in the group they take first: the one that fits best, or the largest that helps; of several
alike, one of the colocation that is the most uneven. `COUNTS` wins unless
it moves too many bytes, or leaves them more than 10 % uneven where another does clearly better: that happens when
a few giant groups sit next to many small ones.

What holds for every plan (tests/unit/test_placement_bounds.py holds it to this; n is the number of wanted
segments):

(a) it moves at most `optimum` plus one shard group per segment, by count (drain and fill) and by bytes (all);
(b) no segment ends further above its fair share of bytes than 10 % of it or, where that is more, one largest
    shard group, provided that the placement it started from was that even (a fill can't repair what is uneven
    between old segments, (e) forbids it);
(c) after every prefix of the moves, `badness` is no higher than before;
(d) a move is a whole shard group;
(e) a fill moves from old to new segments only, a drain from retiring to wanted ones only.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

TOLERANCE = 0.10
"""how uneven bytes may be before counts give way to them"""

_EPSILON = 1e-9


class Style(Enum):
    """What a plan looks at first."""

    COUNTS = auto()
    BYTES = auto()
    GIANTS = auto()


@dataclass(frozen=True, order=True)
class Item:
    """One shard group where it is now; ``bytes`` with everything that moves along (indexes, TOAST)."""

    colocation: int
    index: int
    segment: int
    bytes: int


@dataclass(frozen=True, order=True)
class Move:
    """One shard group on its way from ``source`` to ``target``."""

    colocation: int
    index: int
    source: int
    target: int
    bytes: int


@dataclass(frozen=True)
class Optimum:
    """The least that any plan with an even result has to move. Fractions of a shard group are possible."""

    groups: float
    bytes: float


def plan(
    items: Sequence[Item],
    segments: Mapping[int, float],
    *,
    retiring: Collection[int] = (),
    new: Collection[int] | None = None,
    rebalance: bool = False,
) -> list[Move]:
    """The moves that make ``segments`` hold everything fairly, in the order in which to do them.

    The same arguments always give the same moves. A plan that was carried out in part can be planned again
    from where it stands: name the segments that are still to be filled in ``new``.

    :param items: every shard group and its place; a place that is not in ``segments`` counts as retiring
    :param segments: the wanted segments and their weights (any positive unit)
    :param retiring: segments to be emptied; they are not wanted, even if ``segments`` names them
    :param new: the wanted segments that only receive; left out: those that hold nothing, or none if any retire
    :param rebalance: also even out between segments that are neither new nor retiring
    :raises ValueError: no segment would be left, a weight is not positive, or a shard group is listed twice
    """
    weights = _wanted(segments, retiring)
    _refuse_duplicates(items)
    added = _added(items, weights, retiring, new)
    drained = _better(items, lambda style: _drain(_Map(items, weights), style), math.inf)
    placed = apply(items, drained)
    bound = optimum(placed, weights, new=added, rebalance=rebalance).bytes
    slack = len(weights) * max((item.bytes for item in items), default=0)

    def spread(style: Style) -> _Map:
        now = _Map(placed, weights, drained)
        return _rebalance(now, style) if rebalance else _fill(now, added, style)

    return drained + _better(placed, spread, bound + slack)


def optimum(
    items: Sequence[Item],
    segments: Mapping[int, float],
    *,
    retiring: Collection[int] = (),
    new: Collection[int] | None = None,
    rebalance: bool = False,
) -> Optimum:
    """The yardstick for :func:`plan` with the same arguments.

    A segment that retires has to give all it holds. A new one has to receive its fair share, less what it
    holds; what it receives from a retiring one counts once. A rebalance has to bring each segment what it lacks
    to its fair share.
    """
    weights = _wanted(segments, retiring)
    added = _added(items, weights, retiring, new)
    given = [item for item in items if item.segment not in weights]

    def least(size: Callable[[Item], int]) -> float:
        held: dict[int, int] = defaultdict(int)
        for item in items:
            held[item.segment] += size(item)
        fair = sum(held.values()) / sum(weights.values())
        lacking = {segment: max(0.0, fair * weight - held[segment]) for segment, weight in weights.items()}
        receivers = weights if rebalance else added
        return max(float(sum(map(size, given))), sum(lacking[segment] for segment in receivers))

    return Optimum(least(lambda _: 1), least(lambda item: item.bytes))


def badness(items: Sequence[Item], segments: Mapping[int, float]) -> tuple[int, float]:
    """How far from good a placement is: shard groups outside ``segments``, then the fullest segment's bytes
    per weight. Lower is better, compared in this order."""
    held: dict[int, int] = defaultdict(int)
    for item in items:
        held[item.segment] += item.bytes
    stranded = sum(item.segment not in segments for item in items)
    return stranded, max(held[segment] / weight for segment, weight in segments.items())


def apply(items: Sequence[Item], moves: Sequence[Move]) -> list[Item]:
    """The placement after ``moves``."""
    place = {(item.colocation, item.index): item for item in items}
    for move in moves:
        place[move.colocation, move.index] = Item(move.colocation, move.index, move.target, move.bytes)
    return list(place.values())


# What is asked for


def _wanted(segments: Mapping[int, float], retiring: Collection[int]) -> dict[int, float]:
    weights = {segment: segments[segment] for segment in sorted(segments) if segment not in retiring}
    if not weights:
        raise ValueError("no segment would be left to hold the data: at least one has to stay")
    for segment, weight in weights.items():
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of segment {segment} must be a positive number, got {weight}")
    return weights


def _refuse_duplicates(items: Sequence[Item]) -> None:
    seen: set[tuple[int, int]] = set()
    for item in items:
        if (item.colocation, item.index) in seen:
            raise ValueError(f"shard group {item.colocation}/{item.index} is listed twice")
        seen.add((item.colocation, item.index))


def _added(
    items: Sequence[Item],
    weights: Mapping[int, float],
    retiring: Collection[int],
    new: Collection[int] | None,
) -> frozenset[int]:
    if new is not None:
        return frozenset(new) & frozenset(weights)
    occupied = {item.segment for item in items}
    return frozenset() if retiring or not occupied <= weights.keys() else frozenset(weights) - occupied


# The present map, changed move by move


class _Map:
    """Where everything is while a plan is being made, and what is fair."""

    def __init__(
        self, items: Sequence[Item], weights: Mapping[int, float], moved: Sequence[Move] = ()
    ) -> None:
        whole = sum(weights.values())
        self.weights = weights
        self.share = {segment: weight / whole for segment, weight in weights.items()}
        self.size = sum(item.bytes for item in items)
        self.count = len(items)
        self.moves: list[Move] = []
        self.shelves: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        """segment -> colocation -> (bytes, index), ascending: what may still move (nothing moves twice)"""
        self.counts: dict[tuple[int, int], int] = defaultdict(int)
        self.bytes: dict[int, int] = defaultdict(int)
        self.totals: dict[int, int] = defaultdict(int)
        per_colocation: dict[int, int] = defaultdict(int)
        settled = {(move.colocation, move.index) for move in moved}
        for item in items:
            per_colocation[item.colocation] += 1
            self._put(item.segment, item.colocation, item.bytes)
            if (item.colocation, item.index) not in settled:
                insort(self.shelves[item.segment][item.colocation], (item.bytes, item.index))
        self.colocations = sorted(per_colocation)
        quota = {(k, s): per_colocation[k] * self.share[s] for k in per_colocation for s in weights}
        self.quota: dict[tuple[int, int], float] = defaultdict(float, quota)
        """(colocation, segment) -> its fair count; a retiring segment's is 0"""
        self.floor = defaultdict(int, {key: math.floor(fair + _EPSILON) for key, fair in quota.items()})
        self.ceiling = defaultdict(int, {key: math.ceil(fair - _EPSILON) for key, fair in quota.items()})

    def _put(self, segment: int, colocation: int, size: int, count: int = 1) -> None:
        self.bytes[segment] += size
        self.totals[segment] += count
        self.counts[colocation, segment] += count

    def move(self, colocation: int, position: int, source: int, target: int) -> None:
        """Move what is at ``position`` of a shelf, and write it down."""
        size, index = self.shelves[source][colocation].pop(position)
        self._put(source, colocation, -size, -1)
        self._put(target, colocation, size)
        self.moves.append(Move(colocation, index, source, target, size))

    def held(self, colocation: int, segment: int) -> int:
        return self.counts[colocation, segment]

    def above_floor(self, colocation: int, segment: int) -> int:
        return self.held(colocation, segment) - self.floor[colocation, segment]

    def surplus(self, colocation: int, segment: int) -> float:
        """Groups above the fair share (negative: below)."""
        return self.counts[colocation, segment] - self.quota[colocation, segment]

    def lacking(self, segment: int) -> float:
        """Bytes below the fair share (negative: above)."""
        return self.size * self.share[segment] - self.bytes[segment]

    def lacking_groups(self, segment: int) -> float:
        return self.count * self.share[segment] - self.totals[segment]

    def usage(self, segment: int) -> float:
        return self.bytes[segment] / self.weights[segment]

    def highest(self) -> float:
        """How full the fullest segment is."""
        return max(map(self.usage, self.weights))

    def deviation(self) -> float:
        """The worst distance from a fair share of the bytes, as a share of it; 0 if there are no bytes."""
        if not self.size:
            return 0.0
        return max(abs(self.lacking(segment)) / (self.size * self.share[segment]) for segment in self.weights)


def _better(items: Sequence[Item], movement: Callable[[Style], _Map], allowed: float) -> list[Move]:
    """The plan by counts, unless it moves more bytes than allowed or another leaves bytes clearly more even."""
    if not items:
        return []
    counts = movement(Style.COUNTS)
    is_thrifty = sum(move.bytes for move in counts.moves) <= allowed
    if is_thrifty and counts.deviation() <= TOLERANCE:
        return counts.moves
    best = min(map(movement, (Style.BYTES, Style.GIANTS)), key=_Map.highest)
    fair = counts.size / sum(counts.weights.values())
    largest = max(item.bytes for item in items) / min(counts.weights.values())
    limit = max(fair * (1 + TOLERANCE), min(fair + largest, best.highest() * (1 + TOLERANCE)), best.highest())
    return counts.moves if is_thrifty and counts.highest() <= limit else best.moves


# Drain


def _drain(now: _Map, style: Style) -> _Map:
    leaving = [segment for segment in now.shelves if segment not in now.weights]
    queue = sorted(
        (-size, colocation, index, source)
        for source in leaving
        for colocation, shelf in now.shelves[source].items()
        for size, index in shelf
    )
    left: dict[int, int] = defaultdict(int)
    for _, colocation, _, _ in queue:
        left[colocation] += 1
    for negative, colocation, index, source in queue:
        takers = _takers(now, colocation, left[colocation]) if style is Style.COUNTS else list(now.weights)
        target = min(takers, key=lambda t: _fullness(now, t, colocation, -negative))
        now.move(colocation, now.shelves[source][colocation].index((-negative, index)), source, target)
        left[colocation] -= 1
    return now


def _takers(now: _Map, colocation: int, left: int) -> list[int]:
    """Segments that may take one of the ``left`` groups without spoiling the count."""
    needs = {s: -now.above_floor(colocation, s) for s in now.weights if now.above_floor(colocation, s) < 0}
    if left <= sum(needs.values()):
        return list(needs)
    return [s for s in now.weights if now.held(colocation, s) < now.ceiling[colocation, s]]


def _fullness(now: _Map, target: int, colocation: int, size: int) -> tuple[float, float, float, int]:
    """How full a segment would be: by bytes, then by the colocation's count, then by all counts."""
    weight = now.weights[target]
    held = now.held(colocation, target)
    return (now.bytes[target] + size) / weight, (held + 1) / weight, now.totals[target] / weight, target


# Fill and rebalance: step by step, each step for the poorest target that can be helped


Choice = tuple[int, float, float, float]
"""a colocation, and how many bytes a group of it must have at least, at most, and would best have"""
Chooser = Callable[[_Map, int, int], Iterable[Choice]]


def _fill(now: _Map, added: Collection[int], style: Style) -> _Map:
    sources = [segment for segment in now.weights if segment not in added]
    room = sum(max(0, _most(now, target) - now.totals[target]) for target in added)

    def is_full(now: _Map, target: int) -> bool:
        if style is Style.COUNTS:
            return now.totals[target] >= _most(now, target)
        # Where bytes come first one segment may get many small groups, as long as all together do not get more.
        return len(now.moves) >= room

    def capped(choices: Chooser) -> Chooser:
        return lambda now, source, target: () if is_full(now, target) else choices(now, source, target)

    for choices in _choosers(style):
        _repeat(now, sources, sorted(added), choices if choices is _needs else capped(choices))
    return now


def _rebalance(now: _Map, style: Style) -> _Map:
    sources = targets = list(now.weights)
    if style is not Style.COUNTS:
        # who gives never receives, so that each oversteps its fair share by less than one group, once
        sources = [segment for segment in now.weights if now.lacking(segment) < 0]
        targets = [segment for segment in now.weights if now.lacking(segment) >= 0]
    for choices in _choosers(style):
        _repeat(now, sources, targets, choices)
    return now


def _choosers(style: Style) -> Sequence[Chooser]:
    """What to do until it no longer helps, in this order."""
    return {
        Style.COUNTS: (_needs, _extras),
        Style.BYTES: (_best_fitting, _gentle_needs),
        Style.GIANTS: (_largest_fitting, _gentle_needs),
    }[style]


def _most(now: _Map, target: int) -> int:
    """How many groups a new segment may hold: its fair share of all, rounded up."""
    return math.ceil(now.count * now.share[target] - _EPSILON)


def _repeat(now: _Map, sources: Sequence[int], targets: Sequence[int], choices: Chooser) -> None:
    while _step(now, sources, targets, choices):
        pass


def _step(now: _Map, sources: Sequence[int], targets: Sequence[int], choices: Chooser) -> bool:
    """Move one group to the poorest target from the fullest source that has one to give."""
    fullest = sorted(sources, key=lambda s: (-now.usage(s), now.lacking_groups(s) / now.weights[s], s))
    highest = now.highest()
    for target in sorted(targets, key=lambda t: (now.usage(t), -now.lacking_groups(t) / now.weights[t], t)):
        room = (
            highest * now.weights[target] - now.bytes[target] + _EPSILON
        )  # (c): nobody becomes the new fullest
        for source in fullest:
            if source == target:
                continue
            for colocation, least, most, ideal in choices(now, source, target):
                position = _best_fit(now.shelves[source][colocation], least, min(most, room), ideal)
                if position is not None:
                    now.move(colocation, position, source, target)
                    return True
    return False


def _best_fit(shelf: Sequence[tuple[int, int]], least: float, most: float, ideal: float) -> int | None:
    """Where on a shelf the group is whose size is nearest to ``ideal`` within the limits."""
    ideal = max(least, min(most, ideal))
    position = bisect_left(shelf, (ideal, 0))
    near = [i for i in (position - 1, position) if 0 <= i < len(shelf) and least <= shelf[i][0] <= most]
    return min(near, key=lambda i: (abs(shelf[i][0] - ideal), i), default=None)


def _average(now: _Map, target: int) -> float:
    """The size of the groups that would bring the target its share of bytes with its share of groups."""
    return now.lacking(target) / max(1.0, now.lacking_groups(target))


def _needs(now: _Map, source: int, target: int) -> Iterable[Choice]:
    """Colocations of which the target is below its floor and the source above it, the most uneven first."""
    found = [
        (now.surplus(k, target) - now.surplus(k, source), k)
        for k in now.colocations
        if now.above_floor(k, target) < 0 < now.above_floor(k, source)
    ]
    ideal = _average(now, target)
    return [(colocation, 0, math.inf, ideal) for _, colocation in sorted(found)]


def _extras(now: _Map, source: int, target: int) -> Iterable[Choice]:
    """Colocations of which the target may have one above its floor: where the source has too many, or where it
    brings the two nearer to each other, by bytes or (a group without bytes) by the count of all groups."""
    ideal, most = _average(now, target), _room_between(now, source, target)
    may_be_empty = (
        now.lacking_groups(source) < 0 < now.lacking_groups(target)
        and (now.totals[target] + 1) / now.weights[target] < now.totals[source] / now.weights[source]
    )
    found = [
        k
        for k in now.colocations
        if now.counts[k, target] < now.ceiling[k, target] and now.counts[k, source] > now.floor[k, source]
    ]
    for k in sorted(found, key=lambda k: (now.quota[k, source] - now.counts[k, source], k)):
        if now.counts[k, source] > now.ceiling[k, source]:
            yield k, 0, math.inf, ideal
        if most >= 1:
            yield k, 1, most, ideal
        if may_be_empty:
            yield k, 0, 0, 0


def _best_fitting(now: _Map, source: int, target: int) -> Iterable[Choice]:
    """Any colocation, if source and target are nearer to each other afterwards: what fits best first."""
    return _by_size(now, source, target, now.lacking(target))


def _largest_fitting(now: _Map, source: int, target: int) -> Iterable[Choice]:
    """The same, the largest first."""
    return _by_size(now, source, target, math.inf)


def _by_size(now: _Map, source: int, target: int, ideal: float) -> Iterable[Choice]:
    most = _room_between(now, source, target)
    if most < 1:
        return []

    def distance(colocation: int) -> float:
        shelf = now.shelves[source][colocation]
        position = _best_fit(shelf, 1, most, ideal)
        return math.inf if position is None else abs(shelf[position][0] - min(most, ideal))

    def order(colocation: int) -> tuple[float, float, int]:
        # Of groups that fit alike, of the colocation that the two are most uneven in.
        return (
            distance(colocation),
            now.surplus(colocation, target) - now.surplus(colocation, source),
            colocation,
        )

    return [(k, 1, most, ideal) for k in sorted(now.colocations, key=order)]


def _gentle_needs(now: _Map, source: int, target: int) -> Iterable[Choice]:
    """What the counts ask for, as far as the target stays below its fair share of bytes and below what the source
    had. A group without bytes may always go."""
    behind = now.usage(source) * now.weights[target] - now.bytes[target]
    most = max(0.0, min(now.lacking(target), behind * (1 - _EPSILON)))
    return [(k, 0, most, ideal) for k, _, _, ideal in _needs(now, source, target)]


def _room_between(now: _Map, source: int, target: int) -> float:
    """The most bytes that a group may have to leave the target less full than the source was; 0 if the source
    has no more than its fair share or the target no less."""
    if now.lacking(source) >= 0 or now.lacking(target) <= 0:
        return 0.0
    return (now.usage(source) * now.weights[target] - now.bytes[target]) * (1 - _EPSILON)
