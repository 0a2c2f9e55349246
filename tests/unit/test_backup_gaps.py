"""No restore point is offered across a hole in an archived log, however it came about."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from pgherd.backup import choice
from pgherd.backup.gaps import Logs, cut_off, file_name, present
from pgherd.backup.records import Backup, Point
from pgherd.backup.wal import SEGMENT_BYTES, History, parse_lsn
from tests.support.backups import SYSTEM, backup, lsn, point

PER_HOUR = (1 << 28) // SEGMENT_BYTES
SEGMENT = 1 / PER_HOUR


def files(*ranges: tuple[int, int], timeline: int = 1) -> set[str]:
    return {file_name(timeline, number) for first, last in ranges for number in range(first, last + 1)}


def logs(*holey: Collection[str], histories: Sequence[History] = ()) -> Logs:
    """Group 1 has these files, the others all that there may be."""
    whole = files((0, 40 * PER_HOUR))

    def names(group: int, system: str) -> Collection[str]:
        return set().union(*holey) if group == 1 else whole

    return Logs(names, lambda group, system: histories)


def is_offered(what: Point, backups: Sequence[Backup], known: Logs) -> bool:
    return choice.bases(what, backups, lambda group, system: (), known) is not None


@pytest.mark.parametrize(
    ("hours", "offered"),
    [
        (2.0, True),
        (4.0, True),
        (4 + 1.5 * SEGMENT, False),
        (4 + 2 * SEGMENT, False),
        (5.0, False),
        (9.0, False),
    ],
)
def test_points_before_a_hole_are_offered_and_those_behind_it_are_not(hours: float, offered: bool) -> None:
    hole = files((0, 4 * PER_HOUR - 1), (4 * PER_HOUR + 1, 10 * PER_HOUR))
    assert is_offered(point(hours), [backup(1)], logs(hole)) is offered


def test_a_copy_from_behind_the_hole_serves_again() -> None:
    known = logs(files((0, 4 * PER_HOUR - 1), (4 * PER_HOUR + 1, 10 * PER_HOUR)))
    assert not is_offered(point(5.5), [backup(1), backup(6)], known)
    assert is_offered(point(7), [backup(1), backup(6)], known)


def test_a_hole_while_the_copy_was_made_is_one() -> None:
    hole = files((0, PER_HOUR), (PER_HOUR + 2, 10 * PER_HOUR))
    assert not is_offered(point(2), [backup(1)], logs(hole))


def test_a_log_that_nobody_can_list_is_taken_for_whole() -> None:
    known = Logs(lambda group, system: None, lambda group, system: ())
    assert is_offered(point(2), [backup(1)], known)


def test_the_file_in_which_a_timeline_was_left_is_taken_from_the_next_one() -> None:
    left = 2 * PER_HOUR
    histories = [History(2, {1: parse_lsn(lsn(2.02))})]
    both = files((0, left - 1)) | files((left, 4 * PER_HOUR), timeline=2)
    known = logs(both, histories=histories)
    assert known.is_whole(1, backup(1).groups[1], point(3, timeline=2).groups[1])
    ends_early = (both - files((left, left), timeline=2)) | files((left, left))
    assert not logs(ends_early, histories=histories).is_whole(
        1, backup(1).groups[1], point(3, timeline=2).groups[1]
    )


def test_what_a_left_timeline_went_on_with_fills_no_hole() -> None:
    histories = [History(2, {1: parse_lsn(lsn(2))})]
    names = files((0, 4 * PER_HOUR)) | files((3 * PER_HOUR, 4 * PER_HOUR), timeline=2)
    found = present(names, 2, histories)
    assert found is not None
    assert [(gap.first, gap.last) for gap in found.gaps] == [(2 * PER_HOUR, 3 * PER_HOUR - 1)]


def test_a_group_is_cut_off_until_a_copy_is_behind_its_last_hole() -> None:
    hole = files((0, 4 * PER_HOUR - 1), (4 * PER_HOUR + 1, 10 * PER_HOUR))
    systems = dict.fromkeys(range(3), SYSTEM)
    assert list(cut_off(systems, [backup(1)], logs(hole))) == [1]
    assert cut_off(systems, [backup(1), backup(5)], logs(hole)) == {}
    assert cut_off(systems, [backup(1)], logs(files((0, 10 * PER_HOUR)))) == {}


def test_a_copy_of_another_system_is_not_asked_about() -> None:
    other = replace(backup(1), groups={})
    assert cut_off({1: SYSTEM}, [other], logs(files((0, 3)))) == {}
