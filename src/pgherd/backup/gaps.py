"""Holes in the archived logs: what was let go, or is damaged, between a base copy and a place in the log. Pure.

A log is archived in order, so as a rule it is whole. It is not where members had to let files of it go because the
repository did not take them for long (``whenFull: drop``), or where somebody removed one. Nothing is believed about it:
what is missing is seen in the names of what is there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pgherd.backup.records import Backup, GroupBackup, GroupPoint
from pgherd.backup.wal import (
    SEGMENT_BYTES,
    SEGMENT_NAME,
    History,
    is_past,
    parse_lsn,
    segment_number,
    timelines,
)

Names = Callable[[int, str], Collection[str] | None]
"""of a group's database system; None: nobody can tell"""


@dataclass(frozen=True)
class Gap:
    """Files of a log that are missing between others: their numbers, first and last."""

    first: int
    last: int


@dataclass(frozen=True)
class Present:
    """What is archived of a log on the way to one timeline."""

    first: int
    last: int
    gaps: tuple[Gap, ...]

    def is_whole(self, begin: int, end: int) -> bool:
        """Whether everything between two places (bytes) is there."""
        first, last = begin // SEGMENT_BYTES, max(end - 1, begin) // SEGMENT_BYTES
        if first < self.first or last > self.last:
            return False
        position = bisect_left(self.gaps, first, key=lambda gap: gap.last)
        return position == len(self.gaps) or self.gaps[position].first > last


def present(names: Collection[str], timeline: int, histories: Sequence[History]) -> Present | None:
    """What is archived on the way to a timeline; None: nothing."""
    own = next((each for each in histories if each.timeline == timeline), History(timeline, {}))
    numbers = set()
    for name in names:
        number = segment_number(name) if SEGMENT_NAME.fullmatch(name) and len(name) == 24 else None
        if number is None:
            continue
        # Of the file in which a timeline was left only the next timeline's goes on after that place.
        on = int(name[:8], 16)
        if on == timeline or (on in own.left and number < own.left[on] // SEGMENT_BYTES):
            numbers.add(number)
    if not numbers:
        return None
    return Present(min(numbers), max(numbers), _gaps(sorted(numbers)))


def _gaps(numbers: Sequence[int]) -> tuple[Gap, ...]:
    pairs = pairwise(numbers)
    return tuple(Gap(before + 1, after - 1) for before, after in pairs if after > before + 1)


class Logs:
    """The archived logs of all groups, looked at once.

    :param names: asked once for each database system
    :param histories: those of its timelines
    """

    def __init__(self, names: Names, histories: Callable[[int, str], Sequence[History]]) -> None:
        self._names = names
        self._histories = histories
        self._listed: dict[tuple[int, str], tuple[Collection[str] | None, Sequence[History]]] = {}
        self._known: dict[tuple[int, str, int], Present | None] = {}

    def is_whole(self, group: int, copy: GroupBackup, at: GroupPoint) -> bool:
        """Whether the log between a base copy and a point is archived without a hole."""
        if self._list(group, at.system)[0] is None:
            return True
        found = self.present(group, at.system, at.timeline)
        return found is not None and found.is_whole(parse_lsn(copy.start), parse_lsn(at.lsn))

    def present(self, group: int, system: str, timeline: int) -> Present | None:
        """What is archived on the way to a timeline; None: nothing, or nobody can tell."""
        key = (group, system, timeline)
        if key not in self._known:
            names, histories = self._list(group, system)
            self._known[key] = None if names is None else present(names, timeline, histories)
        return self._known[key]

    def histories(self, group: int, system: str) -> Sequence[History]:
        """Those of a system's timelines."""
        return self._list(group, system)[1]

    def newest_timeline(self, group: int, system: str) -> int | None:
        """The last timeline of a system of which a file is archived."""
        names, _ = self._list(group, system)
        return max(timelines(name for name in names or () if len(name) == 24), default=None)

    def _list(self, group: int, system: str) -> tuple[Collection[str] | None, Sequence[History]]:
        if (group, system) not in self._listed:
            names = self._names(group, system)
            histories = self._histories(group, system) if names is not None else ()
            self._listed[group, system] = (names, histories)
        return self._listed[group, system]


def cut_off(systems: Mapping[int, str], backups: Sequence[Backup], logs: Logs) -> dict[int, Gap]:
    """Groups whose newest base copy does not lead to the end of their archived log: the last hole in between.

    :param systems: the database system of each group
    :param backups: those that are complete
    """
    found = {}
    for group, system in sorted(systems.items()):
        timeline = logs.newest_timeline(group, system)
        there = None if timeline is None else logs.present(group, system, timeline)
        if timeline is None or there is None:
            continue
        histories = logs.histories(group, system)
        copies = [
            made
            for each in backups
            if (made := each.groups.get(group)) is not None
            and made.system == system
            and is_past(made.timeline, parse_lsn(made.stop), timeline, histories, unknown=True)
        ]
        if not copies:
            continue
        begin = max(parse_lsn(made.start) for made in copies) // SEGMENT_BYTES
        holes = [gap for gap in there.gaps if gap.last >= begin]
        if holes:
            found[group] = holes[-1]
    return found


def file_name(timeline: int, number: int) -> str:
    """The name of a file of a log by its number."""
    per_id = (1 << 32) // SEGMENT_BYTES
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"
