"""Positions in a log, the files they are in, and the histories of timelines. Pure.

A position (LSN) is a number of bytes, written ``1/A0000028``. A timeline is a branch of the history of one database
system: every promotion begins a new one, which shares everything before it with the one it left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SEGMENT_BYTES = 16 << 20
"""what initdb makes, and pgherd's members are made by initdb"""
SEGMENT_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.[0-9A-F]{8}\.backup|\.partial)?")
_PER_ID = (1 << 32) // SEGMENT_BYTES
_BY_A_RESTORE = "at restore point"
"""why a timeline was left, as PostgreSQL writes it"""


def parse_lsn(text: str) -> int:
    """``1/A0000028`` as bytes.

    :raises ValueError: it is not a position
    """
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not a position in a log: {text!r}")
    return (int(high, 16) << 32) + int(low, 16)


def segment_before(timeline: int, lsn: int) -> str:
    """The name of the file that holds the last byte before a position."""
    number = max(lsn - 1, 0) // SEGMENT_BYTES
    return f"{timeline:08X}{number // _PER_ID:08X}{number % _PER_ID:08X}"


def segment_number(name: str) -> int | None:
    """Which file of its timeline this is; None for what is no part of the log (histories)."""
    match = SEGMENT_NAME.fullmatch(name)
    return None if match is None else int(match[2], 16) * _PER_ID + int(match[3], 16)


def timelines(names: Iterable[str]) -> set[int]:
    """Those of which files of the log are among these."""
    return {int(name[:8], 16) for name in names if SEGMENT_NAME.fullmatch(name)}


@dataclass(frozen=True)
class History:
    """Where a timeline comes from: which earlier ones it goes through, and where it left each."""

    timeline: int
    left: Mapping[int, int]
    """earlier timeline -> position at which it was left"""
    restored: frozenset[int] = frozenset()
    """those of them that were left by a restore to a point: nothing happened to what they went on with"""

    def holds(self, timeline: int, lsn: int) -> bool:
        """Whether what is on ``timeline`` before ``lsn`` is part of this timeline's past."""
        return timeline == self.timeline or (timeline in self.left and lsn <= self.left[timeline])

    def abandons(self, timeline: int, lsn: int) -> bool:
        """Whether a promotion left ``timeline`` before ``lsn``.

        Nobody went on with what is there, and the file in which it was left may have been archived as those who
        followed had received it: without its end.
        """
        return timeline in self.left and timeline not in self.restored and self.left[timeline] < lsn


def parse_history(timeline: int, text: str) -> History:
    """What a ``.history`` file says; lines that say nothing are passed over."""
    left: dict[int, int] = {}
    restored = set()
    for line in text.splitlines():
        fields = line.split("#")[0].split(None, 2)
        if len(fields) >= 2 and fields[0].isdecimal() and "/" in fields[1]:
            left[int(fields[0])] = parse_lsn(fields[1])
            if fields[2:] and fields[2].startswith(_BY_A_RESTORE):
                restored.add(int(fields[0]))
    return History(timeline, left, frozenset(restored))


def is_past(on: int, lsn: int, timeline: int, histories: Sequence[History], *, unknown: bool = False) -> bool:
    """Whether all that is on one timeline before ``lsn`` is part of another one's past.

    :param unknown: the answer where no history tells: it is not archived (yet), or ``on`` is the younger one
    """
    if on == timeline:
        return True
    known = [each for each in histories if each.timeline == timeline > on]
    return any(each.holds(on, lsn) for each in known) if known else unknown


def readable_timeline(
    timeline: int, lsn: int, histories: Sequence[History], archived: Mapping[str, object]
) -> int | None:
    """On which timeline a position can be reached with what is archived; None: on none (yet).

    A timeline that is later than the first can be followed only with its history. As a rule it is the position's own.
    Where a primary died before its last file was archived, the file of the timeline that its successor began holds the
    same up to there. What the successor did not have is lost, whatever is archived under its name.

    :param histories: of all timelines
    :param archived: the archived files by name
    """
    known = timeline == 1 or any(history.timeline == timeline for history in histories)
    abandoned = any(history.abandons(timeline, lsn) for history in histories)
    if known and not abandoned and segment_before(timeline, lsn) in archived:
        return timeline
    for history in sorted(histories, key=lambda each: each.timeline):
        reaches = history.timeline > timeline and history.holds(timeline, lsn)
        if reaches and segment_before(history.timeline, lsn) in archived:
            return history.timeline
    return None


def may_be_beyond(name: str, timeline: int, lsn: int) -> bool:
    """Whether an archived file may be from after a position: as its number says, or its timeline."""
    number = segment_number(name)
    return number is not None and (int(name[:8], 16) > timeline or number > max(lsn - 1, 0) // SEGMENT_BYTES)


def is_passed(timeline: int, lsn: int, histories: Iterable[History], names: Iterable[str]) -> bool:
    """Whether an archived log has gone past a position that is not in it: on the position's own way there are later
    files, or a later timeline has left that way before it.

    Files of other branches say nothing: one that was abandoned, in a restore to an earlier place, is always farther.

    :param histories: of all timelines
    :param names: of the archived files
    """
    later = [history for history in histories if history.timeline > timeline]
    own = {timeline, *(history.timeline for history in later if history.holds(timeline, lsn))}
    elsewhere = {history.timeline for history in later} - own
    number = max(lsn - 1, 0) // SEGMENT_BYTES
    for name in names:
        at = segment_number(name)
        if at is not None and ((on := int(name[:8], 16)) in elsewhere or (on in own and at > number)):
            return True
    return False
