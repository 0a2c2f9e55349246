"""What the supervisor's thread does with schedules: a clock of the test's own, and backups that are only records."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgherd.backup import records, scheduling
from pgherd.backup.base import BackupMethod, NoBackups
from pgherd.backup.records import Backup
from pgherd.backup.repository import Repository
from pgherd.cli.main import run
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.documents import schedule_from
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import steering
from pgherd.reconcile.drills import Course, Drill, Ground, Wish
from pgherd.supervisor import backups, drill, schedules
from pgherd.supervisor.client import Client
from tests.support.home import wait_for
from tests.support.platform import cluster
from tests.unit.test_backup_kinds import SCHEDULE

BEGIN = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class Day:
    """A home with a cluster that has backups, a scheduler, and a clock."""

    def __init__(self, home: Path, repository: Path) -> None:
        self.platform = LocalPlatform(home)
        declared = cluster(backup={"repository": {"path": str(repository)}})
        backups.prepare(self.platform, declared)
        self.platform.declare(declared)
        self.repository = Repository(repository / "shop")
        self.now = BEGIN
        self.drills: list[dict[str, Any]] = []
        self.swept = 0
        self.ended = threading.Event()
        self.begin()

    def begin(self) -> None:
        """A supervisor starts."""
        client: Any = self
        self.scheduler = schedules.Scheduler(self.platform, client, threading.Event(), lambda: self.now)

    def declare(self, name: str = "nightly", cron: str = "0 2 * * *", **extra: Any) -> None:
        schedules.declare(self.platform, declared(name, cron, **extra))

    def look(self, now: str) -> None:
        self.now = datetime.fromisoformat(f"2026-11-{now}+00:00")
        self.scheduler.look("shop")

    def backups(self) -> list[tuple[str, str]]:
        return [(each.id, each.phase) for each in self.repository.backups()]

    def end(self, phase: str = "done") -> None:
        for each in self.repository.backups():
            if each.is_open:
                self.repository.remember_backup(replace(each, phase=phase))

    def row(self) -> dict[str, Any]:
        (row,) = schedules.listed(self.platform, "shop")
        return row

    # in place of the client

    def drill(self, name: str, **options: Any) -> dict[str, Any]:
        self.drills.append(options)
        result = {
            "restorePoint": "p",
            "passed": True,
            "problems": [],
            "seconds": 1.0,
            "finishedAt": self.now.isoformat(),
        }
        files.write(self.repository.root / "drills.json", json.dumps([result]))
        return result

    def sweep_drill(self, name: str) -> None:
        self.swept += 1

    def end_drill(self, name: str) -> None:
        self.ended.set()


def declared(name: str, cron: str, **extra: Any) -> PostgresBackupSchedule:
    return schedule_from(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresBackupSchedule",
            "metadata": {"name": name},
            "spec": {"cluster": "shop", "cron": cron, **extra},
        },
        source="test",
    )


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path / "home", tmp_path / "repository")


def test_a_backup_is_asked_for_when_its_time_comes_and_once(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    day.look("21T01:59:59")
    assert day.backups() == []
    for second in ("00", "01", "59"):
        day.look(f"21T02:00:{second}")
    assert day.backups() == [("nightly-20261121-0200", "requested")]
    assert day.row()["lastBackup"] == "nightly-20261121-0200"
    day.end()
    day.look("22T02:00:00")
    assert len(day.backups()) == 2


def test_a_supervisor_that_was_away_makes_up_for_what_was_missed_once(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    day.begin()
    day.look("27T08:00:00")
    day.end()
    day.look("27T08:00:01")
    assert day.backups() == [("nightly-20261127-0200", "done")]


@pytest.mark.parametrize(("moment", "left"), [("schedule:planned", 0), ("schedule:asked", 1)])
def test_one_that_is_killed_while_it_asks_asks_for_the_same_and_once(
    day: Day, monkeypatch: pytest.MonkeyPatch, moment: str, left: int
) -> None:
    day.declare()
    day.look("20T12:00:01")

    def killed(name: str) -> None:
        if name == moment:
            raise SystemExit

    monkeypatch.setattr(scheduling, "crash_point", killed)
    with pytest.raises(SystemExit):
        day.look("21T02:00:00")
    monkeypatch.undo()
    assert len(day.backups()) == left
    day.end()
    day.begin()
    day.look("21T09:00:00")
    day.look("21T09:00:01")
    assert [name for name, _ in day.backups()] == ["nightly-20261121-0200"]


def test_while_its_backup_is_running_no_other_begins_and_it_is_said(day: Day) -> None:
    day.declare(cron="0 * * * *")
    day.look("20T12:00:01")
    day.look("20T13:00:00")
    day.look("20T14:00:00")
    assert len(day.backups()) == 1
    assert day.row()["skipped"] == "2026-11-20 14:00: nightly-20261120-1300 was not done yet"
    day.end()
    day.look("20T14:30:00")
    assert len(day.backups()) == 1
    day.look("20T15:00:00")
    assert len(day.backups()) == 2


def test_somebody_elses_backup_is_waited_for(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    day.repository.remember_backup(Backup("by-hand", "full", "running", BEGIN.isoformat()))
    day.look("21T02:00:00")
    assert day.backups() == [("by-hand", "running")]
    day.end()
    day.look("21T02:10:00")
    assert day.backups() == [("by-hand", "done"), ("nightly-20261121-0200", "requested")]


def test_a_suspended_schedule_rests_and_goes_on_with_what_comes_next(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    schedules.suspend(day.platform, "nightly", True)
    day.look("21T02:00:00")
    day.look("22T02:00:00")
    schedules.suspend(day.platform, "nightly", False)
    day.look("22T09:00:00")
    assert day.backups() == []
    day.look("23T02:00:00")
    assert day.backups() == [("nightly-20261123-0200", "requested")]


def test_a_stopped_cluster_is_backed_up_when_it_is_back(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    day.platform.set_stopped("shop", True)
    day.look("21T02:00:00")
    assert day.backups() == []
    day.platform.set_stopped("shop", False)
    day.look("21T09:00:00")
    assert day.backups() == [("nightly-20261121-0200", "requested")]


def test_a_repository_that_is_away_is_said_and_the_backup_made_up_for(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    away = day.repository.root.with_name("unplugged")
    day.repository.root.rename(away)
    day.look("21T02:00:00")
    assert "there is no repository at" in day.row()["problem"]
    away.rename(day.repository.root)
    day.look("21T02:00:01")
    assert day.backups() == [("nightly-20261121-0200", "requested")]
    assert day.row()["problem"] is None


def test_a_deleted_schedule_is_gone_and_its_backups_stay(day: Day) -> None:
    day.declare()
    day.look("20T12:00:01")
    day.look("21T02:00:00")
    schedules.remove(day.platform, "nightly")
    assert schedules.listed(day.platform, None) == []
    day.look("22T02:00:00")
    assert len(day.backups()) == 1
    assert not any(Layout(day.platform.home).schedules("shop").iterdir())


def test_two_schedules_of_one_cluster_do_not_disturb_each_other(day: Day) -> None:
    day.declare("weekly", "0 2 * * 0")
    day.declare("hourly", "0 * * * *")
    day.look("21T12:00:01")
    day.look("22T02:00:00")
    assert day.backups() == [("hourly-20261122-0200", "requested")]
    day.end()
    day.look("22T02:05:00")
    assert ("weekly-20261122-0200", "requested") in day.backups()


# drills


def drilled(day: Day, count: int) -> Callable[[], bool]:
    def done() -> bool:
        return len(day.drills) == count and not day.scheduler._is_drilling("shop")

    return done


@pytest.fixture
def possible(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    answer = [True]
    monkeypatch.setattr(drill, "is_possible", lambda method: answer[0])
    return answer


def test_drills_are_made_as_often_as_declared(day: Day, possible: list[bool]) -> None:
    day.declare(drill={"every": "7d", "keep": True, "tables": ["account"]})
    day.look("20T12:00:01")
    wait_for(drilled(day, 1), "the first drill is made at once", 10)
    assert (day.drills[0]["keep"], day.drills[0]["tables"]) == (True, ("account",))
    assert day.drills[0]["timeout"] == 86400.0, "a day, unless something else is declared"
    day.look("27T12:00:00")
    assert len(day.drills) == 1
    day.look("27T12:00:01")
    wait_for(drilled(day, 2), "the second drill is made a week later", 10)
    assert day.row()["drill"]["dueAt"] == "2026-12-04T12:00:01+00:00"


def test_a_drill_waits_for_the_first_point_and_is_overdue_without_one(day: Day, possible: list[bool]) -> None:
    possible[0] = False
    day.declare(drill={"every": "7d"})
    day.look("20T12:00:01")
    assert day.row()["problem"] is None
    day.look("21T13:00:00")
    assert "a drill is overdue" in day.row()["problem"]
    possible[0] = True
    day.look("21T13:05:00")
    wait_for(drilled(day, 1), "the drill is made", 10)
    wait_for(lambda: day.row()["problem"] is None, "nothing is wrong any more", 10)


@pytest.mark.parametrize(
    "error",
    [
        BadInput("table x: there is none"),
        PgherdError("no room"),
        psycopg.errors.UndefinedFile("could not open file"),
        KeyError("unexpected"),
    ],
)
def test_a_drill_that_can_not_be_made_is_said_and_tried_again_after_a_rest(
    day: Day, possible: list[bool], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried = []

    def fail(name: str, **options: Any) -> dict[str, Any]:
        tried.append(name)
        raise error

    day.declare(drill={"every": "7d"})
    with monkeypatch.context() as patched:
        patched.setattr(day, "drill", fail, raising=False)
        day.look("20T12:00:01")
        wait_for(lambda: day.row()["problem"] == f"a drill could not be made: {error}", "it is said", 10)
        wait_for(lambda: not day.scheduler._is_drilling("shop"), "the failed drill is over", 10)
        day.look("20T12:00:30")
        wait_for(lambda: not day.scheduler._is_drilling("shop"), "none is going on", 10)
    assert (day.row()["problem"] is None, len(tried)) == (False, 1)
    day.look("20T12:02:00")
    wait_for(drilled(day, 1), "the drill is made", 10)


def test_a_drill_that_does_not_end_in_time_is_said_and_loses_its_scratch(
    day: Day, possible: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(name: str, **options: Any) -> dict[str, Any]:
        assert day.ended.wait(20), "nobody ends it"
        raise PgherdError("server closed the connection unexpectedly")

    monkeypatch.setattr(day, "drill", hang, raising=False)
    day.declare(drill={"every": "7d", "timeout": "2h"})
    day.look("20T12:00:01")
    day.look("20T14:00:30")
    assert not day.ended.is_set(), "it may still end by itself"
    day.look("20T14:01:02")
    wait_for(day.ended.is_set, "its scratch is removed", 10)
    wait_for(lambda: not day.scheduler._is_drilling("shop"), "it is over", 10)
    wait_for(lambda: "server closed" in (day.row()["problem"] or ""), "it is said", 10)
    monkeypatch.undo()
    monkeypatch.setattr(drill, "is_possible", lambda method: True)
    day.look("20T14:03:00")
    wait_for(drilled(day, 1), "another one is made", 10)


def test_a_drill_that_nothing_ends_is_a_problem_of_its_schedule(
    day: Day, possible: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(day, "drill", lambda name, **options: let_go.wait(20), raising=False)
    day.declare(drill={"every": "7d", "timeout": "2h"})
    day.look("20T12:00:01")
    day.look("20T14:02:00")
    wait_for(lambda: day.row()["problem"] == schedules.LATE, "it is said", 10)
    let_go.set()
    wait_for(lambda: not day.scheduler._is_drilling("shop"), "it is over", 10)


def test_a_repository_that_keeps_who_asks_holds_up_no_other_cluster(
    day: Day, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day.platform.declare(cluster("other", backup={"repository": {"path": str(tmp_path / "silent")}}))
    let_go, looked = threading.Event(), threading.Event()

    def look(name: str) -> None:
        if name == "other":  # comes first
            let_go.wait(20)
        else:
            looked.set()

    monkeypatch.setattr(schedules, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(day.scheduler, "look", look)
    day.scheduler.start()
    assert looked.wait(10)
    day.scheduler._stop_asked.set()
    let_go.set()
    day.scheduler.join(10)


def test_a_drill_that_was_cut_short_is_swept_up(day: Day) -> None:
    day.declare()
    files.write_json(
        Layout(day.platform.home).drill("shop"), {"scratch": "shop-drill", "pid": 1, "started": 0}
    )
    day.look("20T12:00:01")
    wait_for(lambda: day.swept == 1, "it is swept up", 10)


class Scratch(Ground):
    """One that comes up, and dies or is damaged when it is examined."""

    def __init__(self, error: Exception) -> None:
        self.name, self.scratch, self._error = "shop", "shop-drill", error
        self.paused = 0

    def method(self) -> BackupMethod:
        return NoBackups()

    def restored(self) -> dict[str, Any]:
        return {}

    def world(self, name: str) -> Any:
        assert name == self.scratch
        raise self._error

    def plan(self, point: str | None) -> tuple[str, str]:
        return "p", BEGIN.isoformat()

    def declare(self, restore_point: str) -> None:
        assert restore_point == "p"

    def wait(self, wish: Wish) -> None:
        return

    def amcheck(self, world: Any, group: int, watch: Callable[[str], None]) -> None:
        raise AssertionError("nobody can be asked")

    def pause(self, seconds: float) -> None:
        self.paused += 1


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UndefinedFile('could not open file "base/5/1259":\nNo such file or directory'),
        psycopg.errors.DataCorrupted("invalid page in block 3"),
        psycopg.OperationalError("server closed the connection unexpectedly"),
    ],
)
def test_a_scratch_that_dies_or_is_damaged_is_what_a_drill_finds(error: Exception) -> None:
    ground = Scratch(error)
    found = Drill(ground, Wish(), Course("1", BEGIN.isoformat())).run()
    assert (found["restorePoint"], found["passed"], ground.paused) == ("p", False, 0)
    assert found["problems"] == [" ".join(str(error).split())]


def test_a_scratch_that_does_not_answer_is_asked_again_before_that_is_a_finding() -> None:
    ground = Scratch(Unavailable("shop-drill-segment-1-0 does not run"))
    found = Drill(ground, Wish(), Course("1", BEGIN.isoformat())).run()
    assert ground.paused == 2
    assert found["problems"] == ["shop-drill-segment-1-0 does not run"]


class Endless(Scratch):
    """One that never comes up, or is examined for ever."""

    def __init__(self, at: str) -> None:
        super().__init__(PgherdError("not asked"))
        self._at = at

    def world(self, name: str) -> Any:
        return SimpleNamespace(databases=SimpleNamespace(addresses=lambda: {0: [], 1: []}))

    def wait(self, wish: Wish) -> None:
        while self._at == "wait":
            Ground.pause(self, 0.01)

    def amcheck(self, world: Any, group: int, watch: Callable[[str], None]) -> None:
        while True:
            watch("1/100 pages")


@pytest.mark.parametrize(
    ("at", "doing"),
    [("wait", "restoring p .* into shop-drill"), ("amcheck", "reading tables and btree indexes")],
)
def test_a_drill_that_takes_longer_than_it_may_has_failed(
    at: str, doing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "findings", lambda world: [])
    found = Drill(Endless(at), Wish(timeout=0.2), Course("1", records.now())).run()
    assert not found["passed"]
    (problem,) = found["problems"]
    assert re.fullmatch(f"it was not done after 0 s: {doing}.*", problem)


def test_a_drill_that_is_to_stop_is_no_failed_one() -> None:
    with pytest.raises(Cancelled):
        Drill(Scratch(Cancelled("the process ends")), Wish(), Course("1", BEGIN.isoformat())).run()


def test_what_a_deletion_kept_under_the_scratches_name_is_not_destroyed(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Layout(day.platform.home).members("shop-drill")
    kept.mkdir(parents=True)
    monkeypatch.setattr(Client, "ensure_daemon", lambda self: None)
    with pytest.raises(BadInput, match="the data of a cluster shop-drill that was deleted are kept"):
        Client(day.platform.home).drill("shop")
    assert kept.is_dir()


# what the commands say


@pytest.fixture
def quiet_client(day: Day, monkeypatch: pytest.MonkeyPatch) -> Day:
    """Commands on this home start no supervisor."""
    monkeypatch.setattr(Client, "ensure_daemon", lambda self: None)
    monkeypatch.setenv("PGHERD_HOME", str(day.platform.home))
    return day


def test_schedules_are_declared_listed_suspended_and_deleted_by_command(
    quiet_client: Day, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nightly.yaml"
    file.write_text(SCHEDULE + "  drill: {every: 7d}\n")
    assert run(["up", "-f", str(file)]) == 0
    assert "nightly: full backups of shop; the next backup is due at" in capsys.readouterr().out
    assert run(["up", "-f", str(file)]) == 0
    assert run(["backup-schedules"]) == 0
    out = capsys.readouterr().out
    assert "0 2 * * *" in out
    assert "every 7d" in out
    assert run(["suspend-schedule", "nightly"]) == 0
    assert run(["backup-schedules", "shop", "-o", "json"]) == 0
    assert '"suspend": true' in capsys.readouterr().out
    assert run(["resume-schedule", "nightly"]) == 0
    assert "the next backup is due at" in capsys.readouterr().out
    assert run(["delete-schedule", "nightly"]) == 0
    assert run(["backup-schedules"]) == 0
    assert "no schedules here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("cluster: shop", "cluster: nobody"), "no cluster 'nobody'"),
        (("cluster: shop", "cluster: bare"), "PostgresBackupSchedule nightly: bare has no backups"),
        (("0 2 * * *", "0 0 30 2 *"), "spec.cron: never comes: no such day in that month"),
        (("nightly", "Nightly"), "metadata.name: must be at most"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused_and_nothing_is_written(
    quiet_client: Day,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    complaint: str,
) -> None:
    quiet_client.platform.declare(cluster("bare"))
    file = tmp_path / "nightly.yaml"
    file.write_text(SCHEDULE.replace(*change))
    assert run(["up", "-f", str(file)]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert len(told.splitlines()) == 1
    assert schedules.listed(quiet_client.platform, None) == []


def test_a_schedule_can_not_change_its_cluster(
    quiet_client: Day, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = cluster("other", backup={"repository": {"path": str(tmp_path / "other")}})
    quiet_client.platform.declare(other)
    quiet_client.declare()
    file = tmp_path / "nightly.yaml"
    file.write_text(SCHEDULE.replace("cluster: shop", "cluster: other"))
    assert run(["up", "-f", str(file)]) == 2
    assert "spec.cluster: can't be changed: schedule nightly is of shop, got other" in capsys.readouterr().err


def test_an_unknown_schedule_is_refused_with_those_that_there_are(
    quiet_client: Day, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet_client.declare()
    for command in ("suspend-schedule", "resume-schedule", "delete-schedule"):
        assert run([command, "daily"]) == 2
        assert "no schedule 'daily' in" in (told := capsys.readouterr().err)
        assert "there are: nightly" in told


def test_the_next_times_are_counted_from_now(day: Day) -> None:
    day.declare()
    following = datetime.fromisoformat(day.row()["nextAt"])
    assert timedelta(0) < following - datetime.now(UTC) <= timedelta(days=1)
