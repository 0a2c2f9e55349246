"""What ends a restore or a repair for good, and what it waits for: the cluster's files are real, its steps fail."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from psycopg import errors

from pgherd.backup import finding, pauses, private_server, repair, restore, restoring, wish
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.records import Point
from pgherd.backup.repository import Repository
from pgherd.backup.restore import Restore, Site
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore
from pgherd.backup.wal import History
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable
from pgherd.model.spec import RecoverySpec
from pgherd.model.topology import Member
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.local.workshop import LocalWorkshop
from pgherd.postgres.connections import is_passing
from tests.support.backups import at, backup, point
from tests.support.bench import Bench
from tests.support.platform import cluster

GONE = errors.UndefinedFile('could not open file "base/5/1259":\nNo such file or directory')
LOST = psycopg.OperationalError("server closed the connection unexpectedly")
SILENT = Unavailable("group 1 can't be reached")


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (SILENT, True),
        (LOST, True),
        (errors.ConnectionFailure(), True),
        (errors.AdminShutdown(), True),
        (errors.CannotConnectNow(), True),
        (errors.DeadlockDetected(), True),
        (errors.LockNotAvailable(), True),
        (GONE, False),
        (errors.IoError(), False),
        (errors.DiskFull(), False),
        (errors.OutOfMemory(), False),
        (errors.DataCorrupted(), False),
        (PgherdError("damaged"), False),
        (KeyError(0), False),
    ],
)
def test_only_what_says_that_nobody_answered_may_pass(error: Exception, passing: bool) -> None:
    assert is_passing(error) == passing


def test_a_server_that_lets_nobody_in_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("pgherd.backup.private_server.time.monotonic", lambda: clock[0])
    since = None
    for text in (
        'connection to server on socket "s" failed: No such file or directory',
        "connection failed: FATAL:  the database system is starting up",
        "connection failed: FATAL:  the database system is not yet accepting connections",
    ):
        since = private_server._refused_since(psycopg.OperationalError(text), since)
        clock[0] += 10 * private_server.REFUSED_SECONDS
    assert since is None
    damaged = psycopg.OperationalError('connection failed: FATAL:  could not open file "base/5/1259"')
    since = private_server._refused_since(damaged, since)
    assert private_server._refused_since(damaged, since) == since
    clock[0] += private_server.REFUSED_SECONDS + 1
    with pytest.raises(
        PgherdError, match="the server lets nobody in: connection failed: FATAL: could not open"
    ):
        private_server._refused_since(damaged, since)


class Home:
    """A cluster with data, that is to be restored in place."""

    def __init__(self, home: Path) -> None:
        self.platform = LocalPlatform(home)
        self.platform.declare(cluster(engine="fdw", segments=2))
        self.workshop = self.platform.workshop("shop")
        self.workshop.write_state(restore.IN_PLACE)
        self.data = Layout(home).member(Member("shop", 0, 0)).data / "row"
        self.data.parent.mkdir(parents=True)
        self.data.write_text("precious")

    def site(self, method: Any = None) -> Site:
        nothing: Any = None
        there: Any = method or SimpleNamespace(repository=SimpleNamespace(require=lambda: None))
        return Site(self.platform, cluster(engine="fdw", segments=2), there, nothing, lambda: False, "shop")

    def fails(self, error: Exception, step: str = "reached") -> dict[str, Any]:
        """One try, which comes as far as this step again and ends so; what is written down then."""

        class Failing(Restore):
            def _plan(self) -> None:
                self._tell(phase="copying", point=point(1).as_json(), bases={}, message="restoring to p1")

            def _carry_on(self) -> None:
                self._pass(step)
                raise error

        with pytest.raises(type(error)):
            Failing(self.site()).run()
        return self.workshop.read_state() or {}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize("error", [GONE, errors.DiskFull("no space left"), PgherdError("a copy is damaged")])
def test_what_will_never_work_is_taken_back_at_once(home: Home, error: Exception) -> None:
    state = home.fails(error)
    assert (state["phase"], state["error"]) == (restore.REVERTED, " ".join(str(error).split()))
    assert home.data.read_text() == "precious"


@pytest.mark.parametrize("error", [LOST, KeyError("0"), PermissionError(13, "Permission denied")])
def test_what_nobody_expected_is_tried_some_times_and_then_taken_back(home: Home, error: Exception) -> None:
    for number in range(1, pauses.TRIES):
        state = home.fails(error)
        assert (state["phase"], state["tries"]) == ("copying", number)
        assert not home.data.exists()
        assert str(error).strip("'") in restoring.operation_status(state)["message"]
    state = home.fails(error)
    assert state["phase"] == restore.REVERTED
    assert str(error).strip("'") in state["error"]
    assert restoring.operation_status(state)["message"] == "restoring to p1"
    assert home.data.read_text() == "precious"


def test_what_is_being_taken_back_is_taken_back_by_whoever_comes_next(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: LocalWorkshop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LocalWorkshop, "put_back", killed)
        with pytest.raises(KeyboardInterrupt):
            home.fails(GONE)
    state = home.workshop.read_state() or {}
    assert restoring.operation_status(state)["phase"] == "taking it back"
    assert wish.is_due(state, cluster(engine="fdw"), True)
    Restore(home.site()).run()
    state = home.workshop.read_state() or {}
    assert (state["phase"], state["error"]) == (restore.REVERTED, " ".join(str(GONE).split()))
    assert home.data.read_text() == "precious"


def test_killed_while_it_puts_the_data_back_it_goes_on_with_that(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not aside any more is in its place: it was not removed by somebody."""

    remove = files.remove

    def killed(path: Path) -> None:
        if path.name == "before-restore":
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            home.fails(GONE)
    assert home.data.read_text() == "precious"
    Restore(home.site()).run()
    assert (home.workshop.read_state() or {})["phase"] == restore.REVERTED
    assert home.data.read_text() == "precious"
    assert home.workshop.kept == []


def test_what_can_not_be_taken_back_because_the_old_data_were_removed_goes_on_and_says_so(home: Home) -> None:
    home.fails(Unavailable("it begins"), "copied")
    [aside] = home.workshop.kept
    shutil.rmtree(aside)
    state = home.fails(GONE, "settled")
    assert state["phase"] == "copying"
    assert "is gone" in state["noWayBack"]
    told = restoring.operation_status(state)["message"]
    assert "so it can't be taken back (could not open file" in told
    assert wish.is_due(state, cluster(engine="fdw"), True)
    for _ in range(2 * pauses.TRIES):
        state = home.fails(PgherdError("a copy is damaged"), "settled")
    assert state["phase"] == "copying", "there is nothing else to be had"
    assert "a copy is damaged" in restoring.operation_status(state)["message"]
    known = restoring.in_place(home.platform, "shop")
    assert known is not None
    assert known["noWayBack"] == state["noWayBack"]

    class Done(Restore):
        def _carry_on(self) -> None:
            self._tell(phase=restore.DONE, finishedAt="now")

    Done(home.site()).run()
    known = restoring.in_place(home.platform, "shop")
    assert known is not None
    assert (known["phase"], known["kept"], known["noWayBack"]) == (restore.DONE, [], None)


@pytest.mark.parametrize("left", [None, restore.DONE, restore.REVERTED])
def test_a_wish_that_is_gone_when_its_turn_comes_is_not_begun(home: Home, left: str | None) -> None:
    state = {} if left is None else {"phase": left, "inPlace": True, "id": "an earlier one"}
    home.workshop.write_state(state)
    site = home.site()
    object.__setattr__(site, "id", "a")
    Restore(site).run()
    assert home.workshop.read_state() == state
    assert home.data.read_text() == "precious"


def test_progress_gives_new_tries(home: Home) -> None:
    for step in ("copied", "reached", "opened"):
        for _ in range(pauses.TRIES - 1):
            state = home.fails(LOST, step)
    assert (state["phase"], state["tries"]) == ("copying", pauses.TRIES - 1)


def test_a_server_that_does_not_answer_is_waited_for_and_the_status_says_so(home: Home) -> None:
    for _ in range(3 * pauses.TRIES):
        state = home.fails(SILENT)
    assert state["phase"] == "copying"
    message = restoring.operation_status(state)["message"]
    assert message.startswith(f"restoring to p1; try {3 * pauses.TRIES} ended so, ")
    assert message.endswith("group 1 can't be reached")


def test_a_server_of_its_own_that_lets_nobody_in_is_not_waited_for_without_end(home: Home) -> None:
    class Failing(Restore):
        def _plan(self) -> None:
            self._tell(phase="copying", point=point(1).as_json(), bases={})

        def _carry_on(self) -> None:
            self._settle_alive()

        def _settle(self) -> None:
            raise SILENT

    for _ in range(pauses.TRIES):
        with pytest.raises(psycopg.OperationalError, match="group 1 can't be reached"):
            Failing(home.site()).run()
    assert (home.workshop.read_state() or {})["phase"] == restore.REVERTED
    assert home.data.read_text() == "precious"


def test_one_that_is_asked_to_stop_has_not_failed(home: Home) -> None:
    for _ in range(3 * pauses.TRIES):
        state = home.fails(Cancelled("the restore was stopped"))
    assert not state.get("tries")


def test_a_point_whose_copies_have_gone_meanwhile_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path / "repository")
    repository.create("shop")

    def histories(group: int, system: str) -> list[History]:
        return []

    def found(method: object, wanted: object) -> tuple[Point, None]:
        return point(1), None

    method = SimpleNamespace(repository=repository, histories=histories, location="there")
    recovery = {"cluster": "shop", "repository": {"path": str(tmp_path)}}
    declared = cluster(engine="fdw", segments=2, bootstrap={"recovery": recovery})
    monkeypatch.setattr(finding, "find", found)
    site: Any = home.site(method)
    object.__setattr__(site, "cluster", declared)
    assert declared.spec.bootstrap is not None
    object.__setattr__(site, "recovery", declared.spec.bootstrap.recovery)
    with pytest.raises(
        PgherdError, match="p1 can't be restored any more: a copy that it needs is gone from there"
    ):
        Restore(site).run()
    assert home.data.read_text() == "precious"


@pytest.mark.parametrize("content", [b"", bytes(100), b"pgherd-sealed-1\nand no more"])
def test_a_restore_from_a_backup_whose_sealed_record_is_damaged_fails_and_waits_for_nobody(
    tmp_path: Path, content: bytes
) -> None:
    plain = DirectoryStore(tmp_path / "repository")
    repository = Catalogue(SealedStore(plain, "open sesame"))
    repository.create("shop")
    for hours in (1, 5):
        repository.remember_backup(backup(hours))
        repository.remember_point(point(hours + 0.5, backup=f"f{hours}"))
    plain.write("backups/f1/backup.json", content)
    method: Any = SimpleNamespace(
        repository=Catalogue(SealedStore(plain, "open sesame")),
        histories=lambda group, system: [],
        log_names=lambda group, system: None,
        location="there",
    )
    recovery = {"cluster": "shop", "repository": {"path": str(tmp_path)}, "backup": "f1"}
    declared = cluster(engine="fdw", segments=2, bootstrap={"recovery": recovery})
    platform, nothing = LocalPlatform(tmp_path / "home"), None
    platform.declare(declared)
    assert declared.spec.bootstrap is not None
    wanted = declared.spec.bootstrap.recovery
    site = Site(platform, declared, method, cast(Any, nothing), lambda: False, "shop", wanted)
    with pytest.raises(BadInput, match="no backup 'f1' can be restored"):
        Restore(site).run()
    state = platform.workshop("shop").read_state() or {}
    assert (state["phase"], state.get("waits")) == (restore.FAILED, None)
    assert (
        finding.find_point(method, RecoverySpec.model_validate({**recovery, "backup": "f5"})).name == "p5.5"
    )


def test_a_restore_says_which_point_a_time_is_and_which_is_the_next(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.create("shop")
    repository.remember_backup(backup(1))
    for hours in (1.5, 2.5):
        repository.remember_point(point(hours, backup="f1" if hours < 2 else None))
    method: Any = SimpleNamespace(
        repository=repository,
        histories=lambda group, system: [],
        log_names=lambda group, system: None,
        location="there",
    )
    told = []

    class Begun(Restore):
        def _check_version(self, bases: object) -> None:
            return

        def _carry_on(self) -> None:
            told.append(restoring.operation_status(self._state)["message"])
            raise Cancelled("far enough")

    for number, time in enumerate((at(2), at(3))):
        recovery = {"cluster": "shop", "repository": {"path": str(tmp_path)}, "time": time}
        declared = cluster(engine="fdw", segments=2, bootstrap={"recovery": recovery})
        platform, nothing = LocalPlatform(tmp_path / f"home-{number}"), None
        platform.declare(declared)
        assert declared.spec.bootstrap is not None
        wanted = declared.spec.bootstrap.recovery
        with pytest.raises(Cancelled):
            Begun(Site(platform, declared, method, cast(Any, nothing), lambda: False, "shop", wanted)).run()
    assert told == [
        f"restoring to p1.5 ({at(1.5)}); the next one is p2.5 ({at(2.5)})",
        f"restoring to p2.5 ({at(2.5)})",
    ]


# repairs


def repaired(bench: Bench, error: Exception, *past: str) -> dict[str, Any]:
    class Failing(repair.Repair):
        def _carry_on(self) -> None:
            for step in past:
                if not self._is_past(step):
                    self._pass(step)
            raise error

    site: Any = SimpleNamespace(name="shop", title="segment-1", bench=bench, stopping=lambda: False)
    with pytest.raises(type(error)):
        Failing(site).run()
    return dict(bench.known["state"])


def test_a_repair_that_will_never_work_fails_and_one_that_waits_says_for_what() -> None:
    assert repaired(Bench(accept=False), GONE)["phase"] == repair.FAILED
    bench = Bench(accept=False)
    states = [repaired(bench, KeyError("0")) for _ in range(pauses.TRIES)]
    assert [state["phase"] for state in states] == [*["copying"] * (pauses.TRIES - 1), repair.FAILED]
    bench = Bench(accept=False)
    for _ in range(3 * pauses.TRIES):
        assert repaired(bench, SILENT)["phase"] == "copying"
    known: Any = SimpleNamespace(benches=lambda name: {1: bench})
    assert "group 1 can't be reached" in restoring.repairs(known, "shop")[1]["reason"]


def test_a_repair_that_is_in_force_never_fails_whatever_was_written_down() -> None:
    bench = Bench(accept=False)
    bench.in_force = True
    for _ in range(3 * pauses.TRIES):
        state = repaired(bench, PgherdError("its data could not be synchronised"), "aside")
        assert state["phase"] == "copying"
    assert "could not be synchronised" in state["waits"]
    for _ in range(3 * pauses.TRIES):
        assert repaired(bench, PgherdError("no operation is running"), "placed")["phase"] == "copying"


def test_a_repair_whose_data_are_in_their_place_takes_nothing_back() -> None:
    bench = Bench(accept=False)
    for _ in range(3 * pauses.TRIES):
        assert repaired(bench, GONE, "placed")["phase"] == "copying"
