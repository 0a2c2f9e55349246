"""What is being read is left by retention: the repository is real files, who reads and who keeps take turns."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import keeper, pins, points, records, repair, restore, restoring, wish
from pgherd.backup.catalogue import NEVER, Away, Catalogue
from pgherd.backup.native import Native
from pgherd.backup.pins import EXPIRING, FOLDER, Reading
from pgherd.backup.repository import Repository
from pgherd.backup.restore import Restore, Site
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore, Store
from pgherd.errors import BadInput, Cancelled, NoSuchCluster, PgherdError, Refused, Unavailable
from pgherd.platform.base import CALLED_OFF, Lost
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import loop as loop_module
from pgherd.reconcile import plan, status
from pgherd.reconcile.loop import ClusterLoop
from pgherd.supervisor.client import Client
from tests.support.backups import BEGIN, backup, point
from tests.support.bench import Bench
from tests.support.platform import cluster
from tests.unit.test_backup_keeper import Retention
from tests.unit.test_client import DONE

NOTHING: Any = None


class Reader:
    """Somebody who reads, and what is written down of him."""

    def __init__(self, repository: Catalogue, name: str = "copy") -> None:
        self.state: dict[str, Any] = {}
        self.method: Any = SimpleNamespace(repository=repository)
        self.name = name
        self.start()

    def start(self) -> Reading:
        """A process, or the next one after it was killed."""
        who = f"restore of {self.name}"
        self.reading = Reading(self.method, self.name, who, lambda: self.state, self.state.update)
        return self.reading


@pytest.fixture
def retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Retention:
    return Retention(tmp_path / "shop", monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time passes when a test says so, for all alike."""
    now = [1000.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    time = SimpleNamespace(monotonic=lambda: now[0])
    for module in (keeper, points, pins):
        monkeypatch.setattr(module, "time", time)

    def at() -> datetime:
        return BEGIN + timedelta(hours=160, seconds=now[0])

    def since(text: str) -> float:
        return (at() - records.moment(text)).total_seconds()

    monkeypatch.setattr(pins, "now", lambda: at().isoformat(timespec="milliseconds"))
    monkeypatch.setattr(pins, "seconds_since", since)
    return wait


def there(retention: Retention) -> list[str]:
    return [each.id for each in retention.repository.backups()]


def pinned(retention: Retention) -> list[Path]:
    folder = retention.repository.root / FOLDER
    return sorted(path for path in folder.glob("*") if path.name != "expiring.json")


def look(retention: Retention, wait: Callable[[float], None], seconds: float) -> None:
    """A keeper goes on for so long; it retains when that is due."""
    for _ in range(int(seconds / keeper.HELD_SECONDS) + 1):
        wait(keeper.HELD_SECONDS)
        retention.keeper._see_to_readers()
        if retention.keeper._retained == NEVER:
            retention.retain(full=1, days=0)


def test_what_is_read_stays_with_its_log_and_its_points_and_goes_when_that_has_ended(
    retention: Retention, clock: Callable[[float], None]
) -> None:
    reader = Reader(retention.repository)
    reader.reading.begin(["f0"])
    retention.retain(full=1, days=0)
    assert there(retention) == ["f0", "f150"]
    assert retention.restorable() == ["p1", "p151"]
    logs = len(list(retention.log.iterdir()))
    assert logs >= 40
    assert retention.complaint() == "", "nothing is wrong"
    [told] = retention.told()["readers"]
    assert told["backups"] == ["f0"]
    assert told["reader"].startswith("restore of copy at ")
    reader.reading.end(over=True)
    look(retention, clock, 0)
    assert there(retention) == ["f150"]
    assert len(list(retention.log.iterdir())) < logs
    assert "readers" not in retention.told()


def test_what_is_built_on_stays_with_what_is_read(retention: Retention) -> None:
    retention.repository.remember_backup(backup(20, "incremental", "f0", groups=1))
    Reader(retention.repository).reading.begin(["i20"])
    retention.retain(full=1, days=0)
    assert there(retention) == ["f0", "i20", "f150"]


def test_several_read_and_each_holds_its_own(retention: Retention) -> None:
    first, second = Reader(retention.repository, "a"), Reader(retention.repository, "b")
    first.reading.begin(["f0"])
    second.reading.begin(["f0", "f100"])
    second.reading.end(over=True)
    retention.retain(full=1, days=0)
    assert there(retention) == ["f0", "f150"]


def test_who_begins_to_read_while_retention_has_decided_is_seen_or_waits(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write and look of one, the other one comes in between."""
    reader = Reader(retention.repository)
    found: list[type[Exception] | None] = []

    def begin() -> None:
        try:
            reader.start().begin(["f0"])
        except PgherdError as error:
            found.append(type(error))
        else:
            found.append(None)

    write = DirectoryStore.write

    def announced(store: DirectoryStore, name: str, content: bytes) -> None:
        write(store, name, content)
        if name == EXPIRING and not found:
            begin()

    with monkeypatch.context() as patched:
        patched.setattr(DirectoryStore, "write", announced)
        retention.retain(full=1, days=0)
    assert found == [Unavailable]
    assert there(retention) == ["f0", "f150"], "it is left: somebody is about to read it"
    begin()
    assert found == [Unavailable, None]


def test_who_comes_when_nothing_stops_retention_any_more_learns_that_it_is_gone(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(retention.repository)
    remove = retention.method.remove_backup

    def late(backup: str) -> None:
        if backup == "f0":
            with pytest.raises(
                Unavailable, match=r"retention is about to remove f0, .* remove pins/expiring"
            ):
                reader.start().begin(["f0"])
        remove(backup)

    monkeypatch.setattr(retention.method, "remove_backup", late)
    retention.retain(full=1, days=0)
    assert there(retention) == ["f150"]
    with pytest.raises(PgherdError, match="f0, which is to be read, is gone from"):
        reader.start().begin(["f0"])
    reader.start().begin(["f0"], unread=())  # its copies are made: only the log is still to be read
    assert not (retention.repository.root / EXPIRING).exists()


def test_what_a_killed_retention_wrote_down_is_taken_back_by_the_next(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(backup: str) -> None:
        raise KeyboardInterrupt

    reader = Reader(retention.repository)
    with monkeypatch.context() as patched:
        patched.setattr(retention.method, "remove_backup", killed)
        with pytest.raises(KeyboardInterrupt):
            retention.retain(full=1, days=0)
    with pytest.raises(Unavailable):
        reader.reading.begin(["f0"])
    retention.begin()
    retention.retain(full=1, days=0)
    assert there(retention) == ["f0", "f150"]
    reader.start().begin(["f0"])


@pytest.mark.parametrize("fails", ["points", "look", "backup", "log"])
def test_a_retention_that_is_cut_short_keeps_nobody_waiting(
    retention: Retention, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A restore in place ends the members that it needs, and nobody retains while it is made."""

    def gone(*arguments: object) -> None:
        raise Unavailable("the members are gone")

    looked = []

    def second(readers: pins.Readers, repository: Catalogue) -> Any:
        looked.append(True)
        return gone() if len(looked) == 3 else look_for_pins(readers, repository)

    look_for_pins = pins.Readers.look
    reader = Reader(retention.repository)
    with monkeypatch.context() as patched:
        if fails == "points":
            patched.setattr(points, "forget", gone)
        elif fails == "look":
            patched.setattr(pins.Readers, "look", second)
        else:
            patched.setattr(retention.method, f"remove_{fails}", gone)
        with pytest.raises(Unavailable):
            retention.retain(full=1, days=0)
    assert not (retention.repository.root / EXPIRING).exists()
    reader.reading.begin(["f150"])
    if fails != "log":
        reader.start().begin(["f0"])
        retention.retain(full=1, days=0)
        assert there(retention) == ["f0", "f150"]


def killed(retention: Retention, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention writes down that f0 and f100 go, and removes nothing of that."""

    def dies(backup: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(retention.method, "remove_backup", dies)
        with pytest.raises(KeyboardInterrupt):
            retention.retain(full=1, days=0)


def test_what_a_killed_retention_wrote_down_is_minded_for_an_hour_by_who_reads_elsewhere(
    retention: Retention, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    killed(retention, monkeypatch)
    reader = Reader(retention.repository)
    for _ in range(6):
        with pytest.raises(Unavailable, match="is minded for an hour"):
            reader.start().begin(["f0"])
        clock(595)
    clock(35)
    reader.start().begin(["f0"])
    assert not (retention.repository.root / EXPIRING).exists()


def test_what_retention_writes_down_anew_is_minded_from_then_on(
    retention: Retention, clock: Callable[[float], None]
) -> None:
    reader = Reader(retention.repository)
    for since in range(4):
        retention.repository.store.write(EXPIRING, json.dumps({"backups": ["f0"], "since": since}).encode())
        with pytest.raises(Unavailable):
            reader.start().begin(["f0"])
        clock(3500)
    clock(200)
    reader.start().begin(["f0"])


def test_what_a_killed_retention_wrote_down_is_minded_by_nobody_once_nobody_keeps_the_repository(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(retention, monkeypatch)
    state: dict[str, Any] = {}
    method: Any = SimpleNamespace(repository=retention.repository)
    kept = [True]
    for _ in range(2):
        reading = Reading(method, "shop", "restore of shop", lambda: state, state.update, lambda: not kept[0])
        if kept[0]:
            with pytest.raises(Unavailable):
                reading.begin(["f0"])
            kept[0] = False
        else:
            reading.begin(["f0"])


def test_whoever_keeps_a_repository_next_takes_back_what_a_killed_retention_wrote_down(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the cluster may not serve, and then nothing is let go for days."""
    killed(retention, monkeypatch)
    retention.begin()
    retention.keeper._kept = replace(retention.keeper._kept, ready=lambda: False)
    retention.keeper._round()
    assert not (retention.repository.root / EXPIRING).exists()
    retention.repository.store.write(EXPIRING, b"{}")
    retention.keeper._round()
    assert (retention.repository.root / EXPIRING).exists(), "its own are in force"


def test_whoever_goes_on_to_read_beside_a_retention_that_was_halted_is_seen_before_his_copy_goes(
    retention: Retention, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    """A process stood still for hours, and goes on where it was."""
    remove = retention.method.remove_backup
    removed: list[str] = []

    def halted(backup: str) -> None:
        remove(backup)
        if not removed:
            reader = Reader(retention.repository)
            with pytest.raises(Unavailable):
                reader.reading.begin(["f0"])
            clock(4000)
            reader.start().begin(["f0"])
        removed.append(backup)

    logs = set(retention.log.iterdir())
    monkeypatch.setattr(retention.method, "remove_backup", halted)
    retention.retain(full=1, days=0)
    assert removed == ["f100"]
    assert there(retention) == ["f0", "f150"]
    assert set(retention.log.iterdir()) == logs
    assert not (retention.repository.root / EXPIRING).exists()
    look(retention, clock, 60)
    assert there(retention) == ["f0", "f150"]


def test_what_retention_is_about_to_remove_and_nobody_can_read_is_waited_for(retention: Retention) -> None:
    retention.repository.store.write(EXPIRING, b"{")
    with pytest.raises(Unavailable, match=r"expiring\.json is damaged"):
        Reader(retention.repository).reading.begin(["f0"])
    retention.retain()
    Reader(retention.repository).reading.begin(["f0"])


def test_a_pin_is_renewed_while_its_reader_lives_and_not_after(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "RENEW_SECONDS", 0.01)
    reader, renewed = Reader(retention.repository), threading.Event()
    reader.reading.begin(["f0"])
    [path] = pinned(retention)
    before = json.loads(path.read_text())
    path.unlink()
    for _ in range(1000):
        if path.exists():
            break
        renewed.wait(0.01)
    after = json.loads(path.read_text())
    assert after["renewed"] > before["renewed"]
    assert {**after, "renewed": ""} == {**before, "renewed": ""}
    reader.reading.end(over=True)
    renewed.wait(0.1)
    assert pinned(retention) == []


def test_whoever_goes_on_after_a_kill_has_the_same_pin_and_removes_it(retention: Retention) -> None:
    reader = Reader(retention.repository)
    reader.reading.begin(["f0"])
    before = pinned(retention)
    reader.reading.end(over=False)
    assert pinned(retention) == before
    reader.start().begin(["f0"])
    assert pinned(retention) == before
    reader.reading.end(over=True)
    assert pinned(retention) == []


def test_a_pin_that_nobody_renews_lapses_a_day_later(
    retention: Retention, clock: Callable[[float], None]
) -> None:
    Reader(retention.repository).reading.begin(["f0"])
    retention.retain(full=1, days=0)
    look(retention, clock, 23.9 * 3600)
    assert there(retention) == ["f0", "f150"]
    look(retention, clock, 600)
    assert there(retention) == ["f150"]
    assert pinned(retention) == []


def test_a_keeper_that_begins_anew_waits_an_hour_for_who_may_still_be_there(
    retention: Retention, clock: Callable[[float], None]
) -> None:
    reader = Reader(retention.repository)
    reader.reading.begin(["f0"])
    clock(10 * 24 * 3600)
    retention.begin()
    retention.retain(full=1, days=0)
    look(retention, clock, 3000)
    assert there(retention) == ["f0", "f150"]
    reader.start().begin(["f0"])  # it was halted, and goes on
    look(retention, clock, 3600)
    assert there(retention) == ["f0", "f150"]
    look(retention, clock, 24 * 3600)
    assert there(retention) == ["f150"]


@pytest.mark.parametrize("days", [-400, 400])
def test_a_reader_whose_clock_is_wrong_is_heeded_while_it_lives_and_not_after(
    retention: Retention, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    right: Callable[[], str] = vars(pins)["now"]

    def wrong() -> str:
        return (records.moment(right()) + timedelta(days=days)).isoformat()

    monkeypatch.setattr(pins, "now", wrong)
    reader = Reader(retention.repository)
    reader.reading.begin(["f0"])
    retention.retain(full=1, days=0)
    for _ in range(40):
        look(retention, clock, 3000)
        reader.start().begin(["f0"])
    assert there(retention) == ["f0", "f150"]
    look(retention, clock, 3700)
    assert there(retention) == ["f150"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"backups": 1}', '{"backups": ["f0"], "reader": "x"}'])
def test_a_pin_that_can_not_be_read_holds_everything_for_a_day(
    retention: Retention, clock: Callable[[float], None], content: str
) -> None:
    reader = Reader(retention.repository)
    reader.reading.begin(["f0"])
    [path] = pinned(retention)
    path.write_text(content)
    files = retention.files()
    retention.retain(full=1, days=0)
    assert retention.files() == files
    assert f"can't be read: {FOLDER}/{path.name} in" in retention.complaint()
    look(retention, clock, 23.9 * 3600)
    assert there(retention) == ["f0", "f100", "f150"]
    look(retention, clock, 600)
    assert (there(retention), retention.complaint()) == (["f150"], "")


def test_a_pin_that_is_mended_by_its_reader_holds_only_what_it_names(
    retention: Retention, clock: Callable[[float], None]
) -> None:
    reader = Reader(retention.repository)
    reader.reading.begin(["f0"])
    [path] = pinned(retention)
    path.write_text("{")
    retention.retain(full=1, days=0)
    reader.start().begin(["f0"])
    look(retention, clock, 0)
    assert (there(retention), retention.complaint()) == (["f0", "f150"], "")


def test_a_pin_in_a_sealed_repository_is_sealed_and_one_that_is_damaged_is_noticed(tmp_path: Path) -> None:
    plain = DirectoryStore(tmp_path / "shop")
    repository = Catalogue(SealedStore(plain, "open sesame"))
    repository.create("shop")
    repository.remember_backup(backup(0))
    reader = Reader(repository)
    reader.reading.begin(["f0"])
    readers = pins.Readers()
    assert readers.look(Catalogue(SealedStore(plain, "open sesame"))).backups == {"f0"}
    [path] = (tmp_path / "shop" / FOLDER).iterdir()
    assert b"f0" not in path.read_bytes()
    path.write_bytes(bytes(100))
    assert readers.look(repository).unread == (f"{FOLDER}/{path.name}",)


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(store: Store, name: str, content: bytes) -> None:
        if name.startswith(FOLDER):
            raise error

    monkeypatch.setattr(DirectoryStore, "write", refuse)


def unwritable(number: int) -> PgherdError:
    error = PgherdError(f"could not write pins: {os.strerror(number).lower()}")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    "error", [unwritable(errno.EROFS), unwritable(errno.ENOSPC), Refused("s3://safe refuses these keys")]
)
def test_a_repository_that_nobody_may_write_to_is_read_all_the_same_and_that_is_told(
    retention: Retention, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    reader = Reader(retention.repository)
    with monkeypatch.context() as patched:
        broken(patched, error)
        reader.reading.begin(["f0"])
    told = restoring.operation_status({"phase": "copying", "message": "restoring", **reader.state})["message"]
    assert told == f"restoring; retention may remove what is read: its pin can't be written ({error})"
    assert "retention" not in restoring.operation_status({**reader.state, "phase": "failed"})["message"]
    reader.start().begin(["f0"])
    assert reader.state[pins.UNPINNED] is None
    assert len(pinned(retention)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write where somebody else keeps his backups")
def test_a_pin_of_root_can_be_read_by_whoever_keeps_the_repository(retention: Retention) -> None:
    os.chown(retention.repository.root, 12345, 12346)
    Reader(retention.repository).reading.begin(["f0"])
    [path] = pinned(retention)
    owners = {(each.stat().st_uid, each.stat().st_gid) for each in (path, path.parent)}
    assert owners == {(12345, 12346)}


def test_a_repository_that_is_away_is_waited_for_and_nothing_is_made_in_its_place(
    retention: Retention,
) -> None:
    root = retention.repository.root
    root.rename(root.with_name("away"))
    root.mkdir()
    with pytest.raises(Away):
        Reader(retention.repository).reading.begin(["f0"])
    assert list(root.iterdir()) == []


def test_a_disk_that_drops_is_not_taken_for_one_that_nobody_reads(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reader(retention.repository).reading.begin(["f0"])
    names, root = DirectoryStore.names, retention.repository.root

    def dropped(store: DirectoryStore, folder: str) -> Any:
        if folder == FOLDER:
            root.rename(root.with_name("away"))
        return names(store, folder)

    with monkeypatch.context() as patched:
        patched.setattr(DirectoryStore, "names", dropped)
        with pytest.raises(Away):
            retention.keeper._readers.look(retention.repository)
    root.with_name("away").rename(root)


def test_a_full_repository_is_made_room_in_though_nobody_can_be_told_of_it(
    retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reader(retention.repository).reading.begin(["f0"])
    broken(monkeypatch, unwritable(errno.ENOSPC))
    retention.retain(full=1, days=0)
    assert there(retention) == ["f0", "f150"]


# restores


class Home:
    """A cluster that is to be made from the first backup of a repository."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.platform = LocalPlatform(folder)
        self.repository = repository
        self.given_up = False
        self.declare("p1")

    def declare(self, point: str) -> None:
        recovery = {
            "cluster": "shop",
            "repository": {"path": str(self.repository.root.parent)},
            "restorePoint": point,
        }
        declared = cluster(engine="fdw", segments=1, bootstrap={"recovery": recovery})
        self.platform.declare(declared)
        assert declared.spec.bootstrap is not None
        self.site = Site(
            self.platform,
            declared,
            Native(self.repository.root, NOTHING),
            NOTHING,
            lambda: False,
            "shop",
            declared.spec.bootstrap.recovery,
            given_up=lambda: self.given_up,
        )

    @property
    def state(self) -> dict[str, Any]:
        return self.platform.workshop("shop").read_state() or {}

    def run(self, ends: Exception | None = None) -> list[str]:
        """Files in which it was written down that somebody reads while the copies were made."""
        found: list[str] = []

        class Carried(Restore):
            def _plan(self) -> None:
                self._tell(phase="copying", point=point(1).as_json(), bases={"0": ["f0"], "1": ["f0"]})

            def _carry_on(self) -> None:
                found.extend(each.name for each in self._site.method.repository.store.names(FOLDER))
                if ends is not None:
                    raise ends
                self._tell(phase=restore.DONE)

        if ends is None:
            Carried(self.site).run()
        else:
            with pytest.raises(type(ends)):
                Carried(self.site).run()
        return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    repository = Repository(tmp_path / "shop")
    repository.create("shop")
    repository.remember_backup(backup(0, groups=2))
    return Home(tmp_path / "home", repository)


def left(home: Home) -> list[str]:
    return [each.name for each in home.repository.store.names(FOLDER)]


@pytest.mark.parametrize("ends", [None, PgherdError("a copy is damaged")])
def test_a_restore_pins_what_it_reads_until_it_has_ended(home: Home, ends: Exception | None) -> None:
    assert home.run(ends) == [f"{FOLDER}/{home.state[pins.KEY]}.json"]
    assert home.state["phase"] == (restore.FAILED if ends else restore.DONE)
    assert left(home) == []


def test_a_restore_that_pauses_keeps_its_pin_and_whoever_goes_on_has_the_same(home: Home) -> None:
    found = home.run(Cancelled("the supervisor ends"))
    assert left(home) == found
    assert home.run() == found
    assert left(home) == []


def test_a_restore_that_nobody_will_go_on_with_leaves_no_pin(home: Home) -> None:
    home.given_up = True
    home.run(Cancelled("it is being deleted"))
    assert left(home) == []


def test_a_restore_whose_copies_went_before_they_were_pinned_fails_before_anything_is_made(
    home: Home,
) -> None:
    home.repository.remove_backup("f0")
    assert home.run(PgherdError("not reached")) == []
    assert home.state["phase"] == restore.FAILED
    assert "f0, which is to be read, is gone from" in home.state["error"]


def test_a_restore_waits_for_a_retention_that_has_just_decided(home: Home) -> None:
    home.repository.store.write(EXPIRING, b'{"backups": ["f0"]}')
    assert home.run(Unavailable("not reached")) == []
    assert home.state["phase"] == "copying"
    assert "retention is about to remove f0" in home.state["waits"]
    home.repository.store.remove(EXPIRING)
    assert len(home.run()) == 1


def stopped_in_the_middle(home: Home) -> None:
    home.run(Cancelled("it is stopped"))
    assert len(left(home)) == 1


def deleted(home: Home) -> ClusterLoop:
    """A supervisor that never made it is asked to remove it."""
    home.platform.set_deleting("shop", purge=True)
    return ClusterLoop(home.platform, "shop", threading.Event())


def test_a_restore_that_is_deleted_when_nobody_is_at_it_leaves_no_pin(home: Home) -> None:
    stopped_in_the_middle(home)
    with pytest.raises(NoSuchCluster):
        deleted(home).round()
    assert left(home) == []
    assert home.state == {}


def test_a_restore_that_is_deleted_though_it_makes_no_sense_any_more_leaves_no_pin(home: Home) -> None:
    stopped_in_the_middle(home)
    assert deleted(home)._is_done_with(BadInput("spec.segments.count: must be >= 1, got 0"))
    assert left(home) == []


def test_a_deletion_waits_for_who_still_reads_to_remove_his_pin_himself(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_in_the_middle(home)
    asked: list[bool] = []
    loop, ends = deleted(home), threading.Event()
    recovery = threading.Thread(target=ends.wait)
    recovery.start()
    monkeypatch.setattr(restoring, "unpin", lambda platform, name: asked.append(recovery.is_alive()))
    loop._recovery = recovery
    threading.Timer(0.2, ends.set).start()
    with pytest.raises(NoSuchCluster):
        loop.round()
    assert asked == [False]


@pytest.mark.parametrize("way", ["silent", "refuses"])
def test_no_deletion_is_held_up_by_a_repository_that_is_away(
    home: Home, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    stopped_in_the_middle(home)
    answers = threading.Event()
    asked: list[str] = []
    answered: list[str] = []

    def away(store: DirectoryStore, name: str) -> None:
        asked.append(name)
        if way == "silent":
            answers.wait(20)
            answered.append(name)
        raise PgherdError("it does not answer")

    monkeypatch.setattr(loop_module, "UNPIN_SECONDS", 0.1)
    monkeypatch.setattr(DirectoryStore, "remove", away)
    loop = deleted(home)
    try:
        with pytest.raises(NoSuchCluster):
            loop.round()
        loop._unpin()
        assert answered == []
    finally:
        answers.set()
    assert len(asked) == 1, "once"
    assert home.state == {}


def test_a_restore_that_is_led_elsewhere_while_nobody_is_at_it_has_the_same_pin(home: Home) -> None:
    home.run(Cancelled("it is stopped"))
    before = left(home)
    home.declare("p2")
    assert home.run() == before
    assert left(home) == []


def test_a_clone_goes_on_with_no_pin_of_a_restore(home: Home) -> None:
    home.run(Cancelled("it is stopped"))
    clone = cluster(engine="fdw", segments=1, bootstrap={"clone": {"cluster": "old"}})
    assert wish.standing(home.state, clone) == {}


@pytest.mark.parametrize(
    ("own", "kept", "minds"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_a_restore_in_place_from_its_own_repository_knows_that_nobody_keeps_that(
    home: Home, own: bool, kept: bool, minds: bool
) -> None:
    path = {"path": str(home.repository.root.parent)}
    declared = cluster(engine="fdw", segments=1, backup={"repository": path})
    recovery = {"cluster": "shop" if own else "old", "repository": path, "restorePoint": "p1"}
    home.platform.declare(declared)
    home.platform.workshop("shop").write_state({**restore.IN_PLACE, "recovery": recovery})
    loop = ClusterLoop(home.platform, "shop", threading.Event())
    keeps: Any = SimpleNamespace(is_alive=lambda: kept)
    loop._keeper = keeps
    made = restoring.begin(home.platform, declared, NOTHING, threading.Event(), NOTHING, loop._is_unkept)
    assert made is not None
    assert made._site.is_unkept() != minds


def test_a_loop_tells_a_restore_whether_its_keeper_has_ended(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(restoring, "begin", lambda *what: asked.append(what[-1]))
    loop = ClusterLoop(home.platform, "shop", threading.Event())
    seen: Any = SimpleNamespace(declaration=home.platform.declaration("shop"))
    loop._recover(seen)
    assert asked == [loop._is_unkept]


# repairs


@pytest.mark.parametrize(
    ("error", "stays"), [(PgherdError("a copy is damaged"), False), (Unavailable("no pod yet"), True)]
)
def test_a_repair_pins_what_it_copies_until_it_has_ended(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception, stays: bool
) -> None:
    monkeypatch.setattr(repair, "newest_copy", lambda method, group: (["f0"], point(1).groups[1]))
    found: list[list[str]] = []

    def fails(*arguments: object) -> None:
        found.append(left(home))
        raise error

    bench: Any = Bench()
    bench.data = Path("/nowhere")
    site: Any = SimpleNamespace(
        **{"name": "shop", "group": 1, "title": "segment-1", "bench": bench},
        **{"stopping": bool, "is_retired": bool, "has_primary": bool},
        method=SimpleNamespace(repository=home.repository, restore=fails, equip=lambda: None),
    )
    for _ in range(2 if stays else 1):
        with pytest.raises(type(error)):
            repair.Repair(site).run()
    names = {name for each in found for name in each}
    assert names == {f"{FOLDER}/{bench.state[pins.KEY]}.json"}
    assert left(home) == (sorted(names) if stays else [])
    assert bench.state["phase"] == ("copying" if stays else repair.FAILED)
    if stays:
        bench.known["wish"][CALLED_OFF] = True
        repair.Repair(site).run()
        assert left(home) == []


def test_a_repair_that_begins_anew_keeps_the_name_of_its_pin() -> None:
    bench: Any = Bench()
    bench.renew = lambda state: bench.write("state", state)
    bench.write("state", {"id": "0", "phase": "copying", pins.KEY: "a"})
    site: Any = SimpleNamespace(name="shop", title="segment-1", bench=bench)
    carried = repair.Repair(site)
    carried._state = bench.state
    carried._begin("1")
    carried._pause(Lost("its volume is gone", 1))
    assert (bench.state["id"], bench.state[pins.KEY]) == ("1", "a")


# the status


@dataclass(frozen=True)
class Seen:
    """A look at a cluster, as far as it matters."""

    declaration: Any
    backups: dict[str, Any] | None


def test_a_fresh_look_says_who_reads_as_the_supervisor_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(tmp_path / "home")
    client._platform.declare(cluster())
    told = [{"reader": "restore of copy", "backups": ["f0"]}]
    client._platform.write_status("shop", {**DONE, "backups": {"readers": told}})
    shown: list[Any] = []

    def build(seen: Any, *arguments: object, **more: object) -> dict[str, Any]:
        shown.append(seen.backups)
        return {}

    monkeypatch.setattr(status, "build", build)
    monkeypatch.setattr(plan, "plan", lambda seen: [])
    declaration = client._platform.declaration("shop")
    for backups in ({"method": "native"}, None):
        known: Any = Seen(declaration, backups)
        client._render(known)
    assert shown == [{"method": "native", "readers": told}, None]
