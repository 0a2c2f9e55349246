"""A rebuilt group is called complete only if that is proven; else it is said what is known to be missing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pgherd.backup.records import Point
from pgherd.backup.repair import marks_of
from pgherd.backup.verdict import Reached, Verdict, judge
from pgherd.backup.wal import SEGMENT_BYTES, History, parse_history
from pgherd.platform.bench import Ending, LastWords
from pgherd.platform.local.endings import parse_control
from tests.support.backups import SYSTEM, lsn, point

END = 7 * SEGMENT_BYTES
CHECKPOINT = END + 0x28
PRIMARY, STANDBY = Ending(True, 1, CHECKPOINT), Ending(False, 1, CHECKPOINT)


def verdict(
    *endings: Ending | None, reached: int = END, timeline: int = 1, store: int | None = None, **more: object
) -> Verdict:
    known = {f"shop-segment-1-{n}": ending for n, ending in enumerate(endings)}
    data = more.pop("data", ())
    marks = more.pop("marks", {})
    assert isinstance(data, tuple)
    assert isinstance(marks, dict)
    return judge(Reached(timeline, reached, None), LastWords(known, store, data), marks)


def test_a_group_that_was_shut_down_and_archived_to_its_last_checkpoint_is_complete() -> None:
    assert verdict(PRIMARY).complete
    assert verdict(PRIMARY, STANDBY, store=CHECKPOINT).complete
    assert verdict(STANDBY, PRIMARY, marks={END - 100: "a point"}).complete


@pytest.mark.parametrize(
    "endings",
    [
        (None,),
        (PRIMARY, None),
        (STANDBY,),
        (STANDBY, STANDBY),
        (),
        (PRIMARY, Ending(False, 2, CHECKPOINT)),
    ],
)
def test_without_the_last_word_of_every_member_nothing_is_proven(endings: tuple[Ending | None, ...]) -> None:
    found = verdict(*endings)
    assert not found.complete
    assert found.missing_bytes == 0
    assert "was not shut down" in found.reason


def test_a_log_that_ends_before_the_last_checkpoint_lacks_its_end() -> None:
    found = verdict(PRIMARY, reached=END - SEGMENT_BYTES)
    assert (found.complete, found.missing_bytes) == (False, SEGMENT_BYTES + 0x28)
    assert "its primary was shut down there" in found.reason


def test_records_before_the_checkpoint_in_its_own_file_are_missing_if_that_is_not_archived() -> None:
    assert not verdict(Ending(True, 1, CHECKPOINT + 100)).complete


def test_what_the_store_or_a_point_knows_of_is_missing_if_it_is_not_there() -> None:
    found = verdict(None, store=END + 5000)
    assert (found.complete, found.missing_bytes) == (False, 5000)
    assert "0/7001388 (its primary told Patroni's store" in found.reason
    assert verdict(None, marks={END + 70: "restore point p"}).missing_bytes == 70


@pytest.mark.parametrize("reason", ['at restore point "p1"', "no recovery target specified"])
def test_points_that_were_left_behind_are_not_missing(reason: str) -> None:
    """By a restore in place, or by a failover, whose timeline was followed."""
    history = parse_history(2, f"1\t{lsn(1)}\t{reason}\n")
    points = [point(0.5), point(1.5), point(2), point(1.2, timeline=2)]
    assert told(points, 2, history) == {"p0.5", "p1.2"}
    assert told(points, 1) == {"p0.5", "p1.5", "p2", "p1.2"}, "a younger timeline that was not reached tells"
    assert told([point(1.5, timeline=3)], 2, history) == {"p1.5"}
    assert told(points, 2) == {"p0.5", "p1.5", "p2", "p1.2"}, "nothing is known to be left behind"


def told(points: Sequence[Point], reached: int, *histories: History) -> set[str]:
    return {said.split()[2] for said in marks_of(points, 1, SYSTEM, reached, histories).values()}


def test_a_store_that_knows_more_than_the_shutdown_says_refutes_it() -> None:
    assert not verdict(PRIMARY, store=CHECKPOINT + SEGMENT_BYTES).complete


def test_another_timeline_than_that_of_the_shutdown_proves_nothing() -> None:
    assert not verdict(PRIMARY, timeline=2).complete


def test_data_that_are_left_are_never_passed_over() -> None:
    found = verdict(PRIMARY, data=("/home/x/data",))
    assert not found.complete
    assert "/home/x/data" in found.reason


def test_a_control_file_tells_how_its_server_ended() -> None:
    text = (
        "Database cluster state:               {}\n"
        "Latest checkpoint location:           1/A0000028\n"
        "Latest checkpoint's TimeLineID:       3\n"
    )
    assert parse_control(text.format("shut down")) == Ending(True, 3, (1 << 32) + 0xA0000028)
    assert parse_control(text.format("shut down in recovery")) == Ending(False, 3, (1 << 32) + 0xA0000028)
    assert parse_control(text.format("in production")) is None
    assert parse_control("") is None
