"""Which points a keeper follows, in a repository of real files; the cluster's database is only told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.backup import finding, histories, keeper, points
from pgherd.backup.catalogue import Away
from pgherd.backup.keeper import Keeper, Kept
from pgherd.backup.native import Native
from pgherd.backup.pgbackrest import PgBackRest, Place
from pgherd.backup.pgbackrest_config import Settings
from pgherd.backup.pgbackrest_program import Runner
from pgherd.backup.records import Backup, Point
from pgherd.backup.repository import Repository
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore, Entry
from pgherd.backup.wal import segment_before
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.spec import BackupSpec
from pgherd.platform.local.machine import LocalMachine
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.machine import Machine
from pgherd.reconcile.loop import ClusterLoop
from tests.support.backups import BEGIN, SYSTEM, backup, copy, lsn, point, rust


class Herd:
    """A keeper of a cluster of one group, its repository, and what its database was told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = Repository(root)
        self.repository.create("shop")
        self.log = self.repository.logs(0) / SYSTEM
        self.log.mkdir(parents=True)
        self.recorded: list[str] = []
        self.is_away = False
        monkeypatch.setattr(points, "record", self._record)
        monkeypatch.setattr(keeper, "POINTS_SECONDS", 0.0)
        self.method = Native(root, self._no_programs)
        self.begin()

    def begin(self) -> None:
        """A supervisor starts."""
        nobody: Any = None
        kept = Kept("shop", nobody, nobody, self.method, lambda: None, dict, lambda: False, threading.Event())
        self.keeper = Keeper(kept)

    def _no_programs(self) -> Any:
        raise AssertionError("nothing is run here")

    def _record(self, databases: object, point: Point) -> None:
        if self.is_away:
            raise Unavailable("the coordinator is away")
        self.recorded.append(point.name)

    def make(self, hours: float, timeline: int = 1) -> Point:
        """A point that is written down."""
        made = replace(point(hours, groups=1, timeline=timeline), archived=False)
        self.repository.remember_point(made)
        return made

    def archive(self, at: float, timeline: int = 1) -> None:
        """The file of the log that holds this place is in the repository."""
        high, _, low = lsn(at).partition("/")
        (self.log / segment_before(timeline, (int(high, 16) << 32) + int(low, 16))).touch()

    def fork(self, timeline: int, at: float) -> None:
        """A timeline leaves the first one."""
        (self.log / f"{timeline:08X}.history").write_text(f"1\t{lsn(at)}\tno recovery target specified\n")

    def offered(self) -> list[str]:
        return [each.name for each in self.repository.points() if each.archived]

    def lines(self) -> int:
        """Lines that were written of points."""
        files = (self.repository.root / "points").iterdir()
        return sum(len(each.read_text().split("\n\n")) for each in files)


@pytest.fixture
def herd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Herd:
    return Herd(tmp_path / "shop", monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time passes when a test says so."""
    now = [1000.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    for module in (keeper, points):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return wait


def test_a_point_of_somebody_else_is_followed_without_any_backup_going_on(herd: Herd) -> None:
    herd.keeper._note_archived()
    herd.make(1)
    herd.archive(1)
    herd.keeper._note_archived()
    assert herd.offered() == ["p1"]
    assert herd.recorded == ["p1"]


def test_while_the_coordinator_is_away_points_are_offered_and_each_line_is_written_once(herd: Herd) -> None:
    for hours in (1, 2):
        herd.make(hours)
        herd.archive(hours)
    herd.is_away = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            herd.keeper._note_archived()
    assert herd.offered() == ["p1", "p2"]
    before = herd.lines()
    herd.is_away = False
    herd.keeper._note_archived()
    herd.keeper._note_archived()
    assert herd.lines() == before
    assert herd.recorded == ["p1", "p2"]


def test_a_log_that_comes_late_makes_its_point_good_after_all(
    herd: Herd, clock: Callable[[float], None]
) -> None:
    herd.make(1)
    herd.archive(2)
    for _ in range(2):
        herd.keeper._note_archived()
        clock(points.LOST_SECONDS + 1)
    herd.archive(1)
    herd.keeper._note_archived()
    assert herd.offered() == []  # it is looked for now and then only
    clock(keeper.LOST_AGAIN_SECONDS)
    herd.keeper._note_archived()
    assert herd.offered() == ["p1"]


def test_what_retention_let_go_does_not_come_back(herd: Herd) -> None:
    herd.make(1)
    herd.keeper._note_archived()
    herd.repository.forget_points({"p1"})
    herd.keeper._forget("p1")
    herd.archive(1)
    herd.keeper._note_archived()
    assert herd.repository.points() == []


# what is let go


class Retention(Herd):
    """Three full backups, a point after each, and the log in between; it is hour 160."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root, monkeypatch)
        monkeypatch.setattr(points, "forget", lambda databases, names: None)
        monkeypatch.setattr(
            keeper, "datetime", SimpleNamespace(now=lambda zone: BEGIN + timedelta(hours=160))
        )
        for begin in (0, 100, 150):
            self.repository.remember_backup(backup(begin, groups=1))
            (self.repository.folder(f"f{begin}") / "coordinator").mkdir()
            for number in range(20):
                self.archive(begin + (number + 1) / 16)
            self.repository.remember_point(point(begin + 1, groups=1))

    def record(self, hours: int) -> Path:
        return self.repository.folder(f"f{hours}") / "backup.json"

    def retain(self, full: int = 7, days: int = 30) -> None:
        kept = {"full": full, "days": days}
        self.keeper.retain(BackupSpec.model_validate({"repository": {"path": "/x"}, "retention": kept}))

    def restorable(self) -> list[str]:
        return [each.name for each in finding.restorable(self.method)]

    def complaint(self) -> str:
        """What the status says is wrong."""
        return str(self.told().get("error", ""))

    def told(self) -> dict[str, Any]:
        """What the status says."""
        loop = ClusterLoop(LocalPlatform(self.repository.root.parent / "home"), "shop", threading.Event())
        loop._keeper = self.keeper
        return dict(loop._with_complaint({}) or {})

    def files(self) -> set[Path]:
        return {path for path in self.repository.root.rglob("*") if path.name != "lock"}


@pytest.fixture
def retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Retention:
    return Retention(tmp_path / "shop", monkeypatch)


@pytest.fixture
def bad_sectors(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files that the disk can't read any more."""
    return rust(monkeypatch)


ALL = ["p1", "p101", "p151"]


@pytest.mark.parametrize("hours", [0, 100, 150])
@pytest.mark.parametrize("content", ["{", "", '{"id": "f0", "shape": 2}'])
@pytest.mark.parametrize(("full", "days"), [(7, 30), (1, 0)])
def test_nothing_is_let_go_while_a_record_can_not_be_read(
    retention: Retention, hours: int, content: str, full: int, days: int
) -> None:
    assert retention.restorable() == ALL
    retention.repository.remember_backup(backup(90, groups=1, phase="failed"))
    (retention.repository.folder("f90") / "coordinator").mkdir()
    before = retention.record(hours).read_text()
    retention.record(hours).write_text(content)
    there = retention.files()
    retention.retain(full, days)
    assert retention.files() == there
    assert retention.keeper.error is None
    told = retention.complaint()
    assert f"removes nothing while what may need it can't be read: backups/f{hours}/backup.json in" in told
    retention.record(hours).write_text(before)
    assert retention.restorable() == ALL
    retention.retain()
    assert retention.complaint() == ""
    assert retention.restorable() == ALL


def test_retention_goes_on_soon_after_what_could_not_be_read_is_put_back(
    retention: Retention, clock: Callable[[float], None]
) -> None:
    before = retention.record(0).read_text()
    retention.record(0).write_text("{")
    retention.retain(full=1, days=0)
    assert retention.keeper._retained + keeper.RETENTION_SECONDS == 1000.0 + keeper.HELD_SECONDS
    retention.record(0).write_text(before)
    retention.retain(full=1, days=0)
    assert retention.restorable() == ["p151"]
    assert retention.keeper._retained == 1000.0


def test_a_backup_that_can_not_be_read_and_is_removed_holds_nothing_any_more(retention: Retention) -> None:
    retention.record(0).write_text("{")
    retention.retain(full=1, days=0)
    retention.repository.remove_backup("f0")
    retention.retain(full=1, days=0)
    assert retention.keeper.complaint is None
    assert retention.restorable() == ["p151"]


@pytest.mark.parametrize("begins", ["another supervisor", "the same"])
@pytest.mark.parametrize("way", ["moved aside", "removed"])
def test_nothing_is_let_go_while_a_record_is_being_put_back(
    retention: Retention, way: str, begins: str
) -> None:
    record = retention.record(0)
    before = record.read_text()
    record.write_text("{")
    retention.retain(full=1, days=0)
    there = retention.files()
    if way == "removed":
        record.unlink()
    else:
        record.rename(record.with_name("backup.json.bad"))
    if begins == "another supervisor":
        retention.method = Native(retention.repository.root, retention._no_programs)
        retention.begin()
    retention.retain(full=1, days=0)
    moved = {record, *record.parent.glob("backup.json.bad")}
    assert retention.files() - moved == there - moved
    told = retention.complaint()
    assert "removes nothing while what may need it can't be read: backups/f0/backup.json in" in told
    record.write_text(before)
    assert retention.restorable() == ALL
    retention.retain()
    assert (retention.complaint(), retention.restorable()) == ("", ALL)


def test_nothing_is_let_go_while_the_disk_can_not_read_a_record(
    retention: Retention, bad_sectors: set[Path]
) -> None:
    bad_sectors.add(retention.record(0))
    there = retention.files()
    retention.retain(full=1, days=0)
    assert retention.files() == there
    assert "can't be read: backups/f0/backup.json in" in retention.complaint()
    assert retention.restorable() == ["p101", "p151"]
    bad_sectors.clear()
    assert retention.restorable() == ALL


def test_nothing_is_let_go_while_the_disk_can_not_read_points(
    retention: Retention, bad_sectors: set[Path]
) -> None:
    name = f"points/{BEGIN:%Y-%m-%d}.jsonl"
    bad_sectors.add(retention.repository.root / name)
    there = retention.files()
    retention.retain(full=1, days=0)
    assert retention.files() == there
    assert f"can't be read: {name} in" in retention.complaint()


def test_nothing_is_let_go_of_a_disk_that_comes_back_while_it_is_looked_at(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It seemed to have no points, of which one needs the first backup."""
    there, root = retention.files(), retention.repository.root
    names = DirectoryStore.names

    def dropped(store: DirectoryStore, folder: str) -> list[Entry]:
        root.rename(root.with_name("away"))
        return names(store, folder)

    monkeypatch.setattr(DirectoryStore, "names", dropped)
    with pytest.raises(Away):
        retention.retain(full=1, days=200)
    root.with_name("away").rename(root)
    assert retention.files() == there


def test_many_records_that_can_not_be_read_are_told_in_one_line(retention: Retention) -> None:
    for number in range(5):
        retention.repository.remember_backup(replace(backup(1, groups=1), id=f"b{number}"))
        (retention.repository.folder(f"b{number}") / "backup.json").write_text("{")
    retention.retain()
    told = retention.keeper.complaint or ""
    assert "backups/b2/backup.json and 2 more in" in told
    assert "b3" not in told


class Elsewhere(Runner):
    """A pgBackRest that runs on no machine."""

    command, left = ("pgbackrest",), ()

    def prepare(self, settings: Settings) -> None:
        return

    def of(self, group: int | None) -> Any:
        return None

    at = end_strays = lock = environment = of  # type: ignore[assignment]


class Quiet(Elsewhere):
    """A pgBackRest whose repository holds copies of these backups of ours; it notes what it is told."""

    def __init__(self, *owners: str) -> None:
        self.owners = owners
        self.expired: list[str] = []

    def output(self, arguments: Sequence[str], machine: Machine) -> bytes:
        if "expire" in arguments:
            self.expired += [each.removeprefix("--set=") for each in arguments if each.startswith("--set=")]
            return b""
        made = [{"label": f"{each}-label", "annotation": {"pgherd-backup": each}} for each in self.owners]
        return json.dumps([{"backup": made}]).encode()


def sealed_method(root: Path, runner: Runner) -> tuple[PgBackRest, DirectoryStore]:
    plain, nobody = DirectoryStore(root), None
    made = PgBackRest(
        Place(
            str(root), "", "", lambda: (SealedStore(plain, "open sesame"), plain), lambda: cast(Any, nobody)
        ),
        runner,
    )
    made.repository.create("shop")
    return made, plain


def test_nothing_is_let_go_while_sealed_points_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies that points of the last days need may be older than these days."""
    runner = Quiet()
    method, plain = sealed_method(tmp_path, runner)
    for hours in (0, 100, 150):
        method.repository.remember_backup(backup(hours, groups=1))
        method.repository.remember_point(point(hours + 1, groups=1))
    monkeypatch.setattr(points, "forget", lambda databases, names: None)
    monkeypatch.setattr(keeper, "datetime", SimpleNamespace(now=lambda zone: BEGIN + timedelta(hours=160)))
    nobody: Any = None
    kept = Kept("shop", nobody, nobody, method, lambda: None, dict, lambda: True, threading.Event())
    made = Keeper(kept)
    declared = BackupSpec.model_validate({"repository": {"path": "/x"}, "retention": {"full": 1, "days": 0}})
    name = "points/2026-11-01T01.jsonl"
    before = plain.read(name) or b""
    plain.write(name, bytes(100))
    made.retain(declared)
    assert f"can't be read: {name} in" in (made.complaint or "")
    assert [each.id for each in method.repository.backups()] == ["f0", "f100", "f150"]
    plain.write(name, before)
    made.retain(declared)
    assert made.complaint is None
    assert [each.id for each in method.repository.backups()] == ["f150"]


def test_copies_of_a_backup_whose_record_can_not_be_read_are_no_orphans(tmp_path: Path) -> None:
    runner = Quiet("f0", "torn", "newer", "failed", "unheard-of")
    method, plain = sealed_method(tmp_path, runner)
    method.repository.remember_backup(backup(0))
    method.repository.remember_backup(replace(backup(1, phase="failed"), id="failed"))
    plain.write("backups/torn/backup.json", b"{")
    method.repository.store.write("backups/newer/backup.json", b'{"id": "newer", "shape": 2}')
    method._expire_orphans(0, "coordinator-7")
    assert runner.expired == ["unheard-of-label", "failed-label"]


def test_no_copy_is_an_orphan_of_a_directory_that_was_away(tmp_path: Path) -> None:
    """Its disk comes back before pgBackRest tells of the copies."""
    root, away = tmp_path / "shop", tmp_path / "away"

    class Back(Quiet):
        def output(self, arguments: Sequence[str], machine: Machine) -> bytes:
            if away.exists():
                away.rename(root)
            return super().output(arguments, machine)

    runner = Back("f0", "f1")
    method, _ = sealed_method(root, runner)
    for hours in (0, 1):
        method.repository.remember_backup(backup(hours))
    root.rename(away)
    with pytest.raises(Away):
        method._expire_orphans(0, "coordinator-7")
    method._output(["info"])
    method._expire_orphans(0, "coordinator-7")
    assert runner.expired == []


def test_nothing_is_begun_in_a_directory_that_is_away(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    method, _ = sealed_method(root, Quiet())
    root.rename(tmp_path / "away")
    with pytest.raises(Away):
        method.back_up("f0", 0, "full", None, {}, lambda done, total: None, lambda: False)
    assert not root.exists()


def test_a_round_goes_on_though_sealed_files_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, plain = sealed_method(tmp_path, Quiet())
    for hours in (1, 3):
        method.repository.remember_point(replace(point(hours, groups=1), archived=False))
        method.repository.remember_backup(backup(hours, groups=1))
    plain.write("points/2026-11-01T01.jsonl", bytes(100))
    plain.write("backups/f1/backup.json", bytes(100))
    again, _ = sealed_method(tmp_path, Quiet())
    monkeypatch.setattr(points, "record", lambda databases, point: None)
    monkeypatch.setattr(points, "archived", lambda method, point: replace(point, archived=True))
    nobody: Any = None
    made = Keeper(Kept("shop", nobody, nobody, again, lambda: None, dict, lambda: False, threading.Event()))
    made._round()
    assert [(each.name, each.archived) for each in again.repository.points()] == [("p3", True)]
    assert [each.id for each in again.repository.backups()] == ["f3"]


# what is lost


def is_lost(herd: Herd, made: Point, clock: Callable[[float], None]) -> bool:
    lost = points.Lost(herd.method)
    lost.is_certain(made)
    clock(points.LOST_SECONDS + 1)
    return lost.is_certain(made)


def test_an_abandoned_branch_that_is_farther_says_nothing(herd: Herd, clock: Callable[[float], None]) -> None:
    herd.archive(9)  # then it was restored to an earlier place, where timeline 2 began
    herd.fork(2, 3)
    herd.archive(3, timeline=2)
    assert not is_lost(herd, herd.make(4, timeline=2), clock)
    herd.archive(5, timeline=2)
    assert is_lost(herd, herd.make(4, timeline=2), clock)


@pytest.mark.parametrize(("hours", "lost"), [(2, False), (4, True)])
def test_a_point_is_passed_where_a_later_timeline_left_its_way_before_it(
    herd: Herd, clock: Callable[[float], None], hours: float, lost: bool
) -> None:
    herd.fork(2, 3)
    herd.archive(1.9, timeline=2)
    assert is_lost(herd, herd.make(hours), clock) == lost


class Places:
    """A repository as it is declared, with keys that are renewed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def method(self, declared: str, stamp: str) -> PgBackRest:
        def opened() -> tuple[DirectoryStore, DirectoryStore]:
            return DirectoryStore(self.folder), DirectoryStore(self.folder)

        nobody: Any = None
        return PgBackRest(Place("s3://safe/shop", declared, stamp, opened, nobody), nobody)


def standing(timeline: int) -> points.Standing:
    return points.Standing(SYSTEM, "", timeline, 9, 9, {})


def test_each_groups_histories_are_looked_for_in_their_own_time(
    herd: Herd, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    """One whose primary does not answer keeps nobody from sending those of the others."""
    asked: list[int] = []
    away, lacking = {1}, {2}

    def send(databases: object, group: int, known: object) -> list[int]:
        asked.append(group)
        if group in away:
            raise Unavailable(f"group {group} has no primary")
        return [2] if group in lacking else []

    monkeypatch.setattr(histories, "send_again", send)
    herd.keeper._standing = {group: standing(2 if group else 1) for group in range(4)}

    def look() -> list[int]:
        asked.clear()
        for _ in range(4):
            with suppress(Unavailable):
                herd.keeper._see_to_histories()
        return list(asked)

    assert look() == [1, 2, 3], "the first one has none"
    assert look() == []
    away.clear()
    clock(keeper.HISTORIES_SECONDS + 1)
    assert look() == [1, 2], "all are there of the last one"
    lacking.clear()
    clock(keeper.HISTORIES_SECONDS + 1)
    assert look() == [2]
    clock(keeper.HISTORIES_GOOD_SECONDS)
    assert look() == [1, 2, 3]
    herd.keeper._standing = {3: standing(3)}
    assert look() == [3], "another timeline has another history"


def test_keys_that_are_renewed_do_not_end_a_backup_while_the_old_ones_do(tmp_path: Path) -> None:
    places, going = Places(tmp_path), threading.Event()
    nobody: Any = None
    kept = Kept(
        "shop", nobody, nobody, places.method("a", "1"), lambda: None, dict, lambda: True, threading.Event()
    )
    made = Keeper(kept)
    same, renewed, elsewhere = (places.method(*each) for each in (("a", "1"), ("a", "2"), ("b", "2")))
    assert not made.is_to_leave_for(same)
    assert made.is_to_leave_for(renewed), "nothing is going on that would be lost"
    made._maker = threading.Thread(target=going.wait)
    made._maker.start()
    try:
        assert not made.is_to_leave_for(renewed)
        assert made.is_to_leave_for(elsewhere)
        made.error = "s3://safe refuses these keys"
        assert made.is_to_leave_for(renewed)
    finally:
        going.set()
        made._maker.join()
    made.error = None
    assert made.is_to_leave_for(renewed)


class Restoring(Elsewhere):
    """A pgBackRest that notes what it is told to do on this machine."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def of(self, group: int | None) -> Any:
        return LocalMachine(cast(Any, None))

    def run(self, arguments: Sequence[str], machine: Machine, **how: Any) -> None:
        self.told += arguments


def test_a_restore_empties_no_spool_of_the_machine_it_runs_on(tmp_path: Path) -> None:
    """Debian's package brings one that only the user postgres may look into."""
    runner = Restoring()
    method, _ = sealed_method(tmp_path / "repository", runner)
    method.repository.remember_backup(backup(0))
    target = tmp_path / "pgdata"
    method.restore(["f0"], 0, target, lambda done, total: None, lambda: False)
    assert f"--spool-path={target}.lock" in runner.told


class Torn(Elsewhere):
    """A pgBackRest whose words do not arrive whole."""

    def output(self, arguments: Sequence[str], machine: Machine) -> bytes:
        return b'"backup": [{}]}]'


def test_words_of_pgbackrest_that_make_no_sense_are_an_error_with_its_stanza(tmp_path: Path) -> None:
    nobody: Any = None

    def opened() -> tuple[DirectoryStore, DirectoryStore]:
        return DirectoryStore(tmp_path), DirectoryStore(tmp_path)

    method = PgBackRest(Place("s3://safe/shop", "", "", opened, lambda: nobody), Torn())
    with pytest.raises(PgherdError, match=f"what pgbackrest tells of coordinator-{SYSTEM} can't be read"):
        method.remove_log(0, SYSTEM, 1)


def test_a_round_that_meets_what_nobody_expected_is_told(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        herd.keeper.leave()
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(keeper, "FAR_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(herd.keeper, "_round", broken)
    monkeypatch.setattr(herd.keeper._kept.stop, "wait", lambda seconds: False)
    monkeypatch.setattr(herd.keeper, "_is_over", herd.keeper._leaving.is_set)
    herd.keeper.run()
    assert herd.keeper.error is not None
    assert "by nothing" in herd.keeper.error


# backups that failed


class Idle(Keeper):
    """One that only notes what it begins; every group has a copy."""

    begun: list[Backup]

    def _start(self, backup: Backup) -> None:
        self.begun.append(backup)


@pytest.fixture
def idle(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> Idle:
    monkeypatch.setattr("pgherd.backup.choice.missing_base", lambda *those: [])
    made = Idle(herd.keeper._kept)
    made.begun = []
    return made


def failed(name: str, seconds_ago: float, *, again: bool = True, order: int = 0) -> Backup:
    ended = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
    since = f"2026-11-01T00:00:{order:02}+00:00"
    known = Backup(name, "differential", "failed", since, wanted=(0, 1), finished_at=ended, again=again)
    return replace(known, error="no space left on device")


def test_a_backup_that_failed_of_what_may_pass_is_made_anew(herd: Herd, idle: Idle) -> None:
    herd.repository.remember_backup(failed("b1", keeper.AGAIN_SECONDS - 5))
    idle._see_to_backups()
    assert idle.begun == []
    herd.repository.remember_backup(failed("b1", keeper.AGAIN_SECONDS + 5))
    idle._see_to_backups()
    [begun] = idle.begun
    assert (begun.type, begun.wanted, begun.phase) == ("differential", (0, 1), "requested")


def test_a_backup_that_failed_of_what_stays_is_left_to_somebody(herd: Herd, idle: Idle) -> None:
    herd.repository.remember_backup(failed("b1", 1e6, again=False))
    idle._see_to_backups()
    assert idle.begun == []


def test_a_backup_that_does_not_fit_is_tried_less_and_less_often(herd: Herd, idle: Idle) -> None:
    for number in range(5):
        herd.repository.remember_backup(failed(f"b{number}", 8 * keeper.AGAIN_SECONDS, order=number))
    idle._see_to_backups()
    assert idle.begun == []
    for number in range(5, 40):
        herd.repository.remember_backup(failed(f"b{number}", keeper.AGAIN_MOST_SECONDS + 5, order=number))
    idle._see_to_backups()
    assert len(idle.begun) == 1, "but never given up"


def test_a_copy_that_is_missing_and_does_not_fit_is_tried_less_and_less_often(
    herd: Herd, idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgherd.backup.choice.missing_base", lambda *those: [0, 1])
    for number in range(5):
        herd.repository.remember_backup(failed(f"b{number}", keeper.AGAIN_SECONDS + 1, order=number))
    idle._see_to_backups()
    assert idle.begun == []
    for number in range(5, 10):
        herd.repository.remember_backup(
            failed(f"b{number}", keeper.MISSING_MOST_SECONDS + 5, again=False, order=number)
        )
    idle._see_to_backups()
    [begun] = idle.begun
    assert (begun.type, begun.wanted) == ("full", (0, 1)), "never given up, and soon enough"


def done_in_part(group: int, order: int) -> Backup:
    since = f"2026-11-01T00:00:{order:02}+00:00"
    return Backup(f"part{order}", "full", "done", since, {group: copy(1)}, (group,))


def test_a_backup_that_failed_is_made_anew_though_a_copy_of_one_group_was_made_since(
    herd: Herd, idle: Idle
) -> None:
    herd.repository.remember_backup(failed("sched", 7200))
    herd.repository.remember_backup(done_in_part(2, 1))
    idle._see_to_backups()
    [begun] = idle.begun
    assert (begun.type, begun.wanted) == ("differential", (0, 1))


def test_copies_of_one_group_that_fail_are_no_reason_to_wait_longer_for_all(herd: Herd, idle: Idle) -> None:
    herd.repository.remember_backup(failed("sched", keeper.AGAIN_SECONDS + 5))
    for number in range(1, 5):
        herd.repository.remember_backup(replace(failed(f"b{number}", 5, order=number), wanted=(2,)))
    herd.repository.remember_backup(done_in_part(2, 5))
    idle._see_to_backups()
    assert [each.wanted for each in idle.begun] == [(0, 1)]


def test_a_copy_of_one_group_that_failed_is_not_repeated_once_another_backup_is_done(
    herd: Herd, idle: Idle
) -> None:
    """The group may be gone: it would be made again and again."""
    herd.repository.remember_backup(replace(failed("b1", 7200), wanted=(2,)))
    herd.repository.remember_backup(done_in_part(3, 1))
    idle._see_to_backups()
    assert idle.begun == []


def long_ago_failed(name: str, hours: float) -> Backup:
    since = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
    return Backup(name, "full", "failed", since, wanted=(0,), finished_at=since, again=True)


def test_records_of_backups_that_failed_do_not_pile_up_while_there_is_no_full_one(
    herd: Herd, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[str] = []
    monkeypatch.setattr(herd.method, "discard", discarded.append)
    names = [f"20261101-0000{number:02}-full" for number in range(50)]
    for number, name in enumerate(names):
        herd.repository.remember_backup(long_ago_failed(name, 100 - number))
    herd.repository.remember_backup(long_ago_failed("somebodys", 200))
    declared = BackupSpec.model_validate({"repository": {"path": "/x"}})
    torn = herd.repository.folder("torn") / "backup.json"
    torn.parent.mkdir()
    torn.write_text("{")
    herd.keeper.retain(declared)
    assert len(herd.repository.backups()) == 51, "nothing goes while anything is held"
    herd.repository.remove_backup("torn")
    herd.keeper.retain(declared)
    left = [each.id for each in herd.repository.backups()]
    assert left == ["somebodys", *names[-10:]], "what has a name would be begun anew without its record"
    assert set(names) == set(discarded)
    discarded.clear()
    herd.keeper.retain(declared)
    assert sorted(discarded) == names[-10:]


def test_records_of_backups_that_failed_today_stay(herd: Herd) -> None:
    names = [f"20261101-0000{number:02}-full" for number in range(20)]
    for number, name in enumerate(names):
        herd.repository.remember_backup(long_ago_failed(name, 20 - number))
    herd.keeper.retain(BackupSpec.model_validate({"repository": {"path": "/x"}}))
    assert [each.id for each in herd.repository.backups()] == names


class Resuming:
    """A maker that meets a repository which is away at first, and then is at work until it is told to end."""

    tries = 0
    going = threading.Event()

    def __init__(self, job: object, backup: Backup) -> None:
        return

    def run(self) -> None:
        type(self).tries += 1
        if self.tries == 1:
            raise PgherdError("/mnt/backups is not there: see to it that its disk is mounted")
        self.going.wait(60)


def test_a_backup_that_goes_on_is_not_told_to_be_interrupted_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    places, nobody = Places(tmp_path), cast(Any, None)
    method = places.method("a", "1")
    method.repository.create("shop")
    method.repository.remember_backup(Backup("b1", "full", "running", "2026-11-01T00:00:00+00:00"))
    kept = Kept("shop", nobody, nobody, method, lambda: None, dict, lambda: True, threading.Event())
    made = Keeper(kept)
    monkeypatch.setattr(Resuming, "tries", 0)
    monkeypatch.setattr(Resuming, "going", threading.Event())
    monkeypatch.setattr(keeper, "Maker", Resuming)

    def one_round() -> None:
        over = iter([False, True])
        monkeypatch.setattr(made, "_round", made._see_to_backups)
        monkeypatch.setattr(made, "_is_over", lambda: next(over))
        monkeypatch.setattr(made._kept.stop, "wait", lambda seconds: False)
        made.run()

    one_round()
    assert made._maker is not None
    made._maker.join()
    one_round()
    assert "see to it that its disk is mounted" in (made.complaint or "")
    clock(keeper.INTERRUPTED_SECONDS + 1)
    one_round()
    try:
        assert Resuming.tries == 2
        assert made.complaint is not None, "it may be interrupted by the same in a moment"
        clock(keeper.GOES_ON_SECONDS + 1)
        one_round()
        assert made.complaint is None
        assert not made.is_to_leave_for(places.method("a", "2")), "it would be begun anew"
    finally:
        Resuming.going.set()
        made._maker.join()


def test_nothing_is_told_of_a_backup_that_was_interrupted_and_is_not_there_any_more(
    herd: Herd, idle: Idle
) -> None:
    idle._interrupted = "backup b1 was interrupted"
    idle._see_to_backups()
    assert idle._interrupted is None


def test_what_holds_retention_is_told_beside_what_goes_wrong(herd: Herd) -> None:
    assert herd.keeper.complaint is None
    herd.keeper.error, herd.keeper._held = "backup b1 was interrupted", "retention removes nothing"
    assert herd.keeper.complaint == "backup b1 was interrupted; retention removes nothing"


def test_retention_makes_room_where_there_is_none_to_write_in(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = retention.repository.folder("f0")
    forget = retention.repository.forget_points

    def forget_points(names: set[str]) -> None:
        if gone.exists():
            raise PgherdError("could not write points/2026-11-01T01.jsonl: No space left on device")
        forget(names)

    monkeypatch.setattr(retention.method.repository, "forget_points", forget_points)
    assert retention.restorable() == ALL
    retention.retain(full=1, days=0)
    assert not gone.exists()
    assert [each.name for each in retention.repository.points()] == ["p151"]


def test_a_backup_that_is_interrupted_rests_before_it_goes_on(
    herd: Herd, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    tries: list[str] = []

    class Interrupted:
        def __init__(self, job: object, backup: Backup) -> None:
            self.backup = backup

        def run(self) -> None:
            tries.append(self.backup.id)
            raise PgherdError("could not write backup.json: no space left on device")

    monkeypatch.setattr(keeper, "Maker", Interrupted)
    herd.repository.remember_backup(Backup("b1", "full", "running", "2026-11-01T00:00:00+00:00"))

    def look() -> None:
        herd.keeper._see_to_backups()
        if herd.keeper._maker is not None:
            herd.keeper._maker.join()

    for _ in range(3):
        look()
    assert tries == ["b1"]
    clock(keeper.INTERRUPTED_SECONDS + 1)
    look()
    assert tries == ["b1", "b1"]
