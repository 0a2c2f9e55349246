"""When a schedule's backups and drills are due, with a clock of the test's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.backup import schedule as schedules
from pgherd.backup.records import Backup
from pgherd.backup.schedule import Standing
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.cron import last_time, next_time
from pgherd.model.documents import schedule_from

BEGIN = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)
NIGHTLY = "0 2 * * *"


def declared(cron: str = NIGHTLY, **extra: object) -> PostgresBackupSchedule:
    raw = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresBackupSchedule",
        "metadata": {"name": "nightly"},
        "spec": {"cluster": "shop", "cron": cron, **extra},
    }
    return schedule_from(raw, source="test")


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-{text}+00:00")


def backup(name: str, phase: str) -> Backup:
    return Backup(name, "full", phase, BEGIN.isoformat())


def begun(schedule: PostgresBackupSchedule, now: datetime = BEGIN) -> Standing:
    return schedules.adjusted(None, schedule, now)


def test_nothing_is_due_before_the_first_time_comes() -> None:
    nightly = declared()
    standing = begun(nightly)
    assert schedules.due(standing, nightly, at("21T01:59:59")) is None
    assert schedules.due(standing, nightly, at("21T02:00:00")) == at("21T02:00")
    assert schedules.next_due(standing, nightly) == at("21T02:00")


def test_times_that_were_missed_are_made_up_for_once() -> None:
    nightly = declared()
    due = schedules.due(begun(nightly), nightly, at("25T09:00"))
    assert due == at("25T02:00")
    standing = schedules.answer(begun(nightly), "nightly", due, [])
    assert standing is not None
    assert standing.planned == "nightly-20261125-0200"
    standing = schedules.asked(standing)
    assert (standing.planned, standing.backup) == (None, "nightly-20261125-0200")
    assert schedules.due(standing, nightly, at("25T09:01")) is None
    assert schedules.due(standing, nightly, at("26T02:00")) == at("26T02:00")


def test_what_is_planned_is_asked_for_before_anything_else_is_due() -> None:
    nightly = declared()
    standing = schedules.answer(begun(nightly), "nightly", at("21T02:00"), [])
    assert standing is not None
    again = schedules.standing_from(standing.as_json())
    assert again == standing
    assert schedules.due(again, nightly, at("29T02:00")) is None


def test_a_schedule_whose_backup_is_running_does_not_begin_another() -> None:
    standing = begun(declared("* * * * *"))
    first = schedules.answer(standing, "nightly", at("21T02:00"), [])
    assert first is not None
    first = schedules.asked(first)
    running = [backup("nightly-20261121-0200", "running")]
    second = schedules.answer(first, "nightly", at("21T02:01"), running)
    assert second is not None
    assert (second.planned, second.backup) == (None, "nightly-20261121-0200")
    assert second.skipped == "2026-11-21 02:01: nightly-20261121-0200 was not done yet"
    done = [backup("nightly-20261121-0200", "done")]
    third = schedules.answer(second, "nightly", at("21T02:02"), done)
    assert third is not None
    assert third.planned == "nightly-20261121-0202"


def test_a_schedule_waits_for_a_backup_that_is_not_its_own() -> None:
    hourly = declared("0 * * * *")
    standing = begun(hourly)
    assert schedules.answer(standing, "hourly", at("21T02:00"), [backup("weekly-1", "running")]) is None
    assert schedules.due(standing, hourly, at("21T02:10")) == at("21T02:00")


def test_what_passed_while_it_was_suspended_is_not_made_up_for() -> None:
    nightly, suspended = declared(), declared(suspend=True)
    standing = schedules.adjusted(begun(nightly), suspended, at("20T13:00"))
    assert schedules.due(standing, suspended, at("25T09:00")) is None
    assert schedules.next_due(standing, suspended) is None
    standing = schedules.adjusted(standing, nightly, at("25T09:00"))
    assert schedules.due(standing, nightly, at("25T09:01")) is None
    assert schedules.next_due(standing, nightly) == at("26T02:00")


def test_another_cron_line_counts_from_when_it_was_declared() -> None:
    standing = schedules.adjusted(begun(declared()), declared("0 8 * * *"), at("25T09:00"))
    assert schedules.next_due(standing, declared("0 8 * * *")) == at("26T08:00")
    assert schedules.adjusted(standing, declared("0 8 * * *"), at("28T09:00")) == standing


def test_a_damaged_standing_begins_anew() -> None:
    for raw in (None, {}, {"cron": "x"}, {"cron": NIGHTLY, "since": "never", "drills_since": ""}):
        assert schedules.standing_from(raw) is None


@given(
    st.sampled_from([NIGHTLY, "*/7 * * * *", "0 0 29 2 *", "30 4 1,15 * 5", "0 22 * * 1-5", "5 0 L * *"]),
    st.integers(0, 3_000_000_000),
    st.integers(0, 40_000_000),
)
def test_the_last_time_is_the_last_of_all_between(cron: str, begin: int, seconds: int) -> None:
    since = datetime.fromtimestamp(begin, UTC)
    now = since + timedelta(seconds=seconds)
    found = last_time(cron, since, now)
    if found is None:
        assert next_time(cron, since) > now
    else:
        assert since < found <= now
        assert next_time(cron, found) > now


# drills


def test_the_first_drill_is_due_at_once_and_the_next_after_its_time() -> None:
    schedule = declared(drill={"every": "7d"})
    standing = begun(schedule)
    assert schedules.drill_due(standing, schedule, None) == BEGIN
    assert schedules.drill_due(standing, schedule, at("21T03:00")) == at("28T03:00")


def test_a_drill_is_overdue_a_day_after_it_was_due_or_sooner_where_drills_are_frequent() -> None:
    weekly, frequent = declared(drill={"every": "7d"}), declared(drill={"every": "1h"})
    assert not schedules.is_overdue(weekly, BEGIN, BEGIN + timedelta(hours=23))
    assert schedules.is_overdue(weekly, BEGIN, BEGIN + timedelta(hours=25))
    assert not schedules.is_overdue(frequent, BEGIN, BEGIN + timedelta(minutes=59))
    assert schedules.is_overdue(frequent, BEGIN, BEGIN + timedelta(minutes=61))


def test_a_schedule_that_was_suspended_for_long_is_not_overdue_when_it_goes_on() -> None:
    running, suspended = declared(drill={"every": "1d"}), declared(drill={"every": "1d"}, suspend=True)
    standing = schedules.adjusted(begun(running), suspended, at("20T13:00"))
    assert schedules.drill_due(standing, suspended, at("19T00:00")) is None
    standing = schedules.adjusted(standing, running, at("27T00:00"))
    assert schedules.drill_due(standing, running, at("19T00:00")) == at("27T00:00")


@pytest.mark.parametrize("drill", [None, {"every": "7d", "tables": ["account"]}])
def test_a_schedule_is_described_with_what_comes_next(drill: dict[str, object] | None) -> None:
    schedule = declared(drill=drill)
    shown = schedules.described(schedule, begun(schedule), None, at("25T09:00"))
    assert (shown["name"], shown["cluster"], shown["nextAt"]) == (
        "nightly",
        "shop",
        "2026-11-21T02:00+00:00",
    )
    if drill is None:
        assert shown["drill"] is None
    else:
        assert shown["drill"] == {
            "every": "7d",
            "timeout": "1d",
            "keep": False,
            "tables": ["account"],
            "dueAt": "2026-11-20T12:00:30+00:00",
            "overdueAt": "2026-11-21T12:00:30+00:00",
            "overdue": True,
        }
