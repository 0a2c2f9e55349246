"""What a restore makes of a declaration that changes, of keys that are not there yet, and of what it has done already:
the cluster's files are real, its steps are not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import pauses, pgbackrest_config, restore, restoring, wish
from pgherd.backup.catalogue import Away
from pgherd.backup.pauses import Awaited
from pgherd.backup.pgbackrest import PgBackRest
from pgherd.backup.pgbackrest_program import WithMembers
from pgherd.backup.private_server import Controlled
from pgherd.backup.restore import Restore, Site
from pgherd.errors import BadInput, Cancelled, PgherdError, Refused, Unavailable, Withheld
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Member
from pgherd.platform.base import Lost
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.machine import LocalMachine
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.local.workshop import LocalWorkshop
from tests.support.backups import point
from tests.support.platform import cluster

NOTHING: Any = None
SILENT = Withheld("s3://safe does not answer")
NO_SECRET = Refused("spec.backup.secretRef: there is no Secret keys of namespace prod")


def declared(point: str = "p1", **source: Any) -> PostgresCluster:
    recovery = {"cluster": "old", "repository": {"path": "/nowhere"}, "restorePoint": point, **source}
    return cluster(engine="fdw", segments=2, bootstrap={"recovery": recovery})


def far(**source: Any) -> PostgresCluster:
    bucket = {"s3": {"bucket": "safe", "region": "eu-central-1"}}
    return declared(method="pgbackrest", repository=bucket, **source)


class Repository:
    """One that says always the same."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.repository, self.location = self, "s3://safe/old"
        self.store = SimpleNamespace(
            read=lambda name: None, write=lambda name, content: None, remove=lambda name: None
        )
        self._problem = problem

    def require(self) -> None:
        if self._problem is not None:
            raise self._problem

    def without_record(self, backups: Collection[str]) -> list[str]:
        return []


class Home:
    """A home in which a cluster is declared to be made from a backup."""

    def __init__(self, home: Path) -> None:
        self.folder, self.platform = home, LocalPlatform(home)
        self.platform.declare(declared())
        self.workshop = self.platform.workshop("shop")

    def know(self, now: PostgresCluster | None = None, **state: Any) -> None:
        """What was written down, when this was declared."""
        self.workshop.write_state(
            {wish.KEY: wish.told(now or declared()), "point": point(1).as_json(), "bases": {}, **state}
        )

    @property
    def state(self) -> dict[str, Any]:
        return self.workshop.read_state() or {}

    def due(self, now: PostgresCluster | None = None) -> Any:
        return restoring.state(self.platform, now or declared())

    def begin(self, now: PostgresCluster | None = None) -> Restore | None:
        return restoring.begin(self.platform, now or declared(), NOTHING, threading.Event(), NOTHING)

    def site(self, now: PostgresCluster | None = None, method: Any = None, **more: Any) -> Site:
        known: Any = method or Repository()
        return Site(self.platform, now or declared(), known, NOTHING, lambda: False, "old", **more)

    def place_data(self) -> None:
        control = Layout(self.folder).member(Member("shop", 0, 0)).data / "global" / "pg_control"
        control.parent.mkdir(parents=True)
        control.write_text("")

    def runs(self, now: PostgresCluster | None = None, **more: Any) -> bool:
        """Carry it on; whether a point was chosen for that."""
        planned = []

        class Carried(Restore):
            def _plan(self) -> None:
                planned.append(True)

            def _carry_on(self) -> None:
                self._tell(phase="copying")

        Carried(self.site(now, **more)).run()
        return bool(planned)

    def fails(self, error: Exception, method: Any = None) -> None:
        class Failing(Restore):
            def _carry_on(self) -> None:
                raise error

        with pytest.raises(type(error)):
            Failing(self.site(method=method)).run()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


# what is declared


def test_a_point_that_is_declared_meanwhile_is_restored_and_not_the_one_before(home: Home) -> None:
    home.know(phase="copying", steps=["copied:0", "copied"])
    assert not home.runs(), "the same goes on where it was"
    assert home.runs(declared("p2"))
    assert wish.told(declared("p2")) == home.state[wish.KEY]
    assert not home.state.get("steps")


def test_places_that_are_lost_go_before_another_point_is_restored(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.know(phase="copying", steps=[], lost=[0, 1])
    discarded: list[int] = []
    monkeypatch.setattr(
        LocalWorkshop, "discard", lambda shop, member: discarded.append(member.group), raising=False
    )
    assert home.due(declared("p2")) == {"lost": [0, 1]}
    assert home.runs(declared("p2"))
    assert (discarded, home.state["lost"]) == ([0, 1], [])


def test_a_process_at_work_on_another_point_ends(home: Home) -> None:
    home.know(phase="copying")
    carried = home.begin()
    assert carried is not None
    assert not carried._site.stopping()
    home.platform.declare(declared("p2"))
    assert carried._site.stopping()


def test_other_keys_for_the_same_backups_change_nothing_of_what_is_done(home: Home) -> None:
    home.know(far(secretRef="/mistyped"), phase="copying", steps=["copied"])
    assert not home.runs(far(secretRef="/right"))
    assert home.state["steps"] == ["copied"]
    assert home.runs(far(cluster="other", secretRef="/right"))


def test_what_an_earlier_version_wrote_down_goes_on(home: Home) -> None:
    home.workshop.write_state({"phase": "copying", "point": point(1).as_json(), "bases": {}})
    assert not home.runs(declared("p2"))


def test_another_point_is_refused_once_data_may_be_in_their_places(home: Home) -> None:
    home.know(phase="copying", steps=["copied", "reached", "opened", "settled"])
    assert home.begin() is not None
    with pytest.raises(BadInput, match=r"all but restored to p1: declare that again, or delete .* --purge"):
        home.begin(declared("p2"))


def test_a_declaration_that_makes_no_sense_ends_no_restore(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.know(phase="copying")
    carried = home.begin()
    assert carried is not None

    def broken(name: str) -> Any:
        raise BadInput("spec.segments.count: must be >= 1, got 0")

    monkeypatch.setattr(home.platform, "declaration", broken)
    assert not carried._site.stopping()


# after the end


def test_a_failure_counts_until_something_else_is_declared(home: Home) -> None:
    home.know(phase="failed", error="no restore point 'p1' can be restored")
    assert home.due()["error"]
    assert home.due(declared("p2")) == {}
    assert home.runs(declared("p2"))


def test_a_cluster_whose_data_went_before_it_ever_served_is_made_again(home: Home) -> None:
    home.know(phase="done", steps=list(restore.STEPS))
    assert home.due() == {}
    carried = home.begin()
    assert carried is not None
    assert carried._site.anew
    assert home.runs(anew=True)


def test_what_a_cluster_lost_that_served_is_never_made_anew_from_an_old_point(home: Home) -> None:
    home.know(phase="done", steps=list(restore.STEPS))
    home.platform.write_status("shop", {"name": "shop", "phase": "Degraded", "admitted": [1, 2]})
    assert home.due() is None


def test_a_restore_that_is_done_is_left_alone_whoever_saw_it_last(home: Home) -> None:
    home.know(phase="done", steps=list(restore.STEPS))
    before = home.state
    assert not home.runs()
    assert home.state == before
    home.place_data()
    assert home.due() is None
    assert home.begin() is None


def test_a_restore_that_fails_while_its_data_are_put_in_their_places_keeps_them_and_goes_on(
    home: Home,
) -> None:
    """They are whole, and nobody has served them: what is in the way is mended, or the cluster is deleted."""
    home.know(phase="copying", bases=BASES, steps=["copied", "reached", "opened", "settled"])
    made = [
        Layout(home.folder).member(Member("shop", group, 0)).directory / restore.FOLDER for group in range(3)
    ]
    for folder in made:
        folder.mkdir(parents=True)
    full = PgherdError("could not put segment-1 in its place: no space left on device: make room")
    for _ in range(2 * pauses.TRIES):
        home.fails(full)
    assert home.state["phase"] == "copying"
    assert restoring.operation_status(home.state)["message"].endswith(str(full))
    assert restoring.operation_status(home.state)["phase"] == "placing"
    assert all(folder.is_dir() for folder in made)
    assert home.due()["steps"][-1] == "settled", "it goes on from there"
    home.know(phase="copying", bases=BASES, steps=["copied", "reached", "opened"])
    home.fails(full)
    assert home.state["phase"] == "failed", "before that it is cleared away"
    assert not any(folder.exists() for folder in made)


# what is waited for


@pytest.mark.parametrize("error", [SILENT, NO_SECRET])
def test_keys_and_stores_that_are_not_there_are_waited_for_and_the_status_says_so(
    home: Home, error: PgherdError
) -> None:
    home.know(phase="copying", message="choosing the point")
    for _ in range(3 * pauses.TRIES):
        home.fails(error)
    assert home.state["phase"] == "copying"
    assert restoring.operation_status(home.state)["message"].endswith(str(error))


def test_a_repository_that_is_away_is_not_taken_for_damaged_copies_and_logs(home: Home) -> None:
    home.know(phase="copying")
    damaged = PgherdError("the log of segment-1 does not lead to p1")
    home.fails(damaged, Repository(SILENT))
    assert (home.state["phase"], home.state["waits"]) == ("copying", str(SILENT))
    home.fails(damaged, Repository())
    assert (home.state["phase"], home.state["error"]) == ("failed", str(damaged))


def test_a_repository_that_was_removed_is_not_waited_for(home: Home) -> None:
    """A store says so that answers: nothing comes back by itself."""
    home.know(phase="copying")
    home.fails(PgherdError("a copy is damaged"), Repository(PgherdError("there is no repository")))
    assert (home.state["phase"], home.state["error"]) == ("failed", "a copy is damaged")


AWAY = Away("there is no repository at /disk/shop: see to it that its disk is mounted")


@pytest.mark.parametrize("error", [PgherdError("a copy is damaged"), FileNotFoundError("PG_VERSION"), AWAY])
def test_a_directory_that_was_there_when_the_point_was_chosen_is_waited_for_and_what_is_copied_stays(
    home: Home, error: Exception
) -> None:
    home.know(phase="copying", bases=BASES, steps=["copied:0"])
    made = Layout(home.folder).member(Member("shop", 0, 0)).directory / restore.FOLDER
    made.mkdir(parents=True)
    for _ in range(2 * pauses.TRIES):
        method = Repository()
        # It drops when what is read was just pinned, and the next time before that.
        method.store.write = lambda name, content, there=method: setattr(there, "_problem", AWAY)
        home.fails(error, method)
        home.fails(AWAY, Repository(AWAY))
    assert (home.state["phase"], home.state["waits"]) == ("copying", str(AWAY))
    assert restoring.operation_status(home.state)["message"].endswith(str(AWAY))
    assert made.is_dir()
    assert home.state["steps"] == ["copied:0"]


def test_a_directory_in_which_no_point_could_be_chosen_is_an_error(home: Home) -> None:
    class Choosing(Restore):
        def _plan(self) -> None:
            self._tell(phase="copying")
            raise AWAY

    with pytest.raises(Away):
        Choosing(home.site(method=Repository(AWAY))).run()
    assert (home.state["phase"], home.state["error"]) == ("failed", str(AWAY))


def test_what_a_clone_is_made_of_does_not_come_back(home: Home) -> None:
    home.know(phase="copying")

    class Failing(Restore):
        def _carry_on(self) -> None:
            raise AWAY

    with pytest.raises(Away):
        Failing(home.site(method=Repository(AWAY), live=lambda report: point(1))).run()
    assert (home.state["phase"], home.state["error"]) == ("failed", str(AWAY))


def test_in_place_nobody_waits_for_keys_while_the_data_are_aside(home: Home) -> None:
    home.place_data()
    home.workshop.write_state({**restore.IN_PLACE, "point": point(1).as_json(), "bases": {}})
    home.fails(NO_SECRET)
    assert home.state["phase"] == restore.REVERTED


@pytest.mark.parametrize(
    ("said", "hindrance"),
    [
        ("P00   WARN: repo1: [HostConnectError] unable to connect to 's3:443': refused", "unable to connect"),
        ("P00  ERROR: [039]: HTTP request failed with 403 (Forbidden):", "403"),
        (
            "P00  ERROR: [103]: unable to find a valid repository:\nrepo1: [ProtocolError] HTTP",
            "ProtocolError",
        ),
        ("P00   WARN: repo1: [ChecksumError] invalid checksum\nP00  ERROR: [026]: unable to get 0000", None),
        (
            'P00   WARN: [HostConnectError] no\nLOG:  restored log file "00000001" from archive\nFATAL:  bad',
            None,
        ),
        ("ERROR:  canceling statement due to statement timeout", None),
        ("FATAL:  recovery ended before configured recovery target was reached", None),
    ],
)
def test_a_log_that_nobody_could_read_is_told_from_one_that_ends(said: str, hindrance: str | None) -> None:
    for near in (False, True):
        found = pgbackrest_config.hindrance(said, near=near)
        assert (found is None) if hindrance is None else (hindrance in (found or ""))


def test_a_bucket_that_lost_what_a_log_begins_with_is_not_away() -> None:
    """It would be waited for without end; a directory where not even that is there may have its disk elsewhere."""
    said = (
        "P00  ERROR: [103]: unable to find a valid repository:\n"
        "repo1: [FileMissingError] unable to load info file '/r/archive/coordinator-7/archive.info' or ..."
    )
    assert pgbackrest_config.hindrance(said, near=False) is None
    assert "archive.info" in (pgbackrest_config.hindrance(said, near=True) or "")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ERROR: [049]: unable to connect to 's3:443': [110] Connection timed out", Withheld),
        ("ERROR: [039]: HTTP request failed with 403 (Forbidden):\n*** Path/Query ***", Withheld),
        ("ERROR: [039]: HTTP request failed with 503 (Service Unavailable)", Withheld),
        (
            "ERROR: [055]: unable to open missing file '/etc/pgherd-recovery/pgbackrest.conf' for read",
            Withheld,
        ),
        ("ERROR: [055]: unable to open missing file 'x'", PgherdError),
        ("ERROR: [026]: error restoring 'base/1': actual checksum does not match expected", PgherdError),
    ],
)
def test_keys_that_have_not_come_into_a_pod_yet_are_not_taken_for_a_damaged_copy(
    said: str, kind: type[PgherdError]
) -> None:
    def fail(*command: Any, **how: Any) -> Any:
        raise PgherdError(said)

    pod: Any = SimpleNamespace(run=fail, output=fail)
    machines: Any = SimpleNamespace(folder=Path("/etc/pgherd-backup"))
    runner = WithMembers(machines)
    calls: list[Callable[[], object]] = [
        lambda: runner.run(["restore"], pod, stopping=bool),
        lambda: runner.output(["info"], pod),
    ]
    for call in calls:
        with pytest.raises(PgherdError) as failed:
            call()
        assert type(failed.value) is kind


# what is done already


class Copies(Repository):
    """Copies that take no time."""

    def __init__(self, then: Callable[[int], None] = lambda group: None) -> None:
        super().__init__()
        self.made: list[int] = []
        self._then = then

    def restore(self, copies: Any, group: int, target: Path, report: Any, stopping: Any) -> None:
        report(10, 100)
        self.made.append(group)
        self._then(group)
        report(100, 100)


class Copying(Restore):
    """Comes to the end of the copies, on no machine at all."""

    def _machine(self, group: int) -> Any:
        return SimpleNamespace(remove=lambda path: None)

    def _end_strays(self) -> None:
        return

    def _start_and_reach(self, group: int) -> None:
        raise Cancelled("far enough")


BASES = {"0": ["b1"], "1": ["b1"], "2": ["b1"]}


def copied(home: Home, method: Copies, error: type[Exception] = Cancelled) -> Restore:
    carried = Copying(home.site(method=method))
    with pytest.raises(error):
        carried.run()
    return carried


def test_groups_that_are_copied_are_not_copied_again(home: Home) -> None:
    home.know(phase="copying", bases=BASES)

    def fails(group: int) -> None:
        if group == 1:
            raise Unavailable("the connection to shop-segment-1-0-restore broke")

    copied(home, first := Copies(fails), Unavailable)
    assert sorted(first.made) == [0, 1, 2]
    assert {"copied:0", "copied:2"} <= set(home.state["steps"])
    assert "copied" not in home.state["steps"]
    copied(home, again := Copies())
    assert again.made == [1]
    assert "copied" in home.state["steps"]
    assert (home.state["bytesDone"], home.state["bytesTotal"]) == (300, 300)


def test_a_restore_that_goes_on_measures_how_fast_it_copies_now(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not how much of it a supervisor had copied that was killed a year ago."""
    year = "2025-11-22T09:00:00+00:00"
    home.know(phase="copying", bases=BASES, startedAt=year, steps=["copied:0"], copiedBytes={"0": [500, 500]})
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(restore, "PARALLEL", 1)

    def look(group: int) -> None:
        told.append(restoring.operation_status(home.state))

    copied(home, Copies(look))
    assert [(each["bytesDone"], each["bytesTotal"]) for each in told] == [(510, 700), (600, 700)]
    assert all(each["bytesPerSecond"] and each["etaSeconds"] is not None for each in told)
    assert all(each["etaSeconds"] < 3600 for each in told)
    assert home.state["copiedBefore"] == 500
    assert home.state["copyingSince"] <= home.state["copiedAt"]
    assert (home.state["bytesDone"], home.state["bytesTotal"]) == (700, 700)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(
    ("steps", "again"),
    [(["copied", "reached"], [1]), (["copied", "reached", "opened", "settled"], [0, 1, 2])],
)
def test_a_group_whose_place_is_lost_is_made_anew_and_if_some_may_be_placed_all_are(
    home: Home, monkeypatch: pytest.MonkeyPatch, steps: list[str], again: list[int], killed: bool
) -> None:
    done = ["aside", *(f"copied:{group}" for group in range(3)), *steps]
    sizes = {str(group): (100, 100) for group in range(3)}
    home.know(phase="copying", bases=BASES, steps=done, copiedBytes=sizes)
    discarded: list[int] = []
    kills = [killed]

    class OnADeadNode(Copying):
        def _start_and_reach(self, group: int) -> None:
            if group == 1:
                raise Lost("data-shop-segment-1-0 was used on node n1", 1)

        def _open(self, group: int) -> None:
            raise AssertionError("no group goes on alone")

        def _stop_servers(self) -> None:
            return

        def _carry_on(self) -> None:
            if not self._is_to_do("settled"):
                raise Lost("data-shop-segment-1-0 was used on node n1", 1)
            super()._carry_on()

    def discard(workshop: Any, member: Member) -> None:
        if kills[-1] and len(discarded) == len(again) - 1:
            raise KeyboardInterrupt
        discarded.append(member.group)

    monkeypatch.setattr(LocalWorkshop, "discard", discard, raising=False)
    carried = OnADeadNode(home.site(method=(method := Copies())))
    with pytest.raises(KeyboardInterrupt if killed else Lost):
        carried.run()
    assert discarded == (again[:-1] if killed else again)
    assert home.state["lost"] == (again if killed else [])
    assert method.made == []
    kept = [f"copied:{group}" for group in range(3) if group not in again]
    assert home.state["steps"] == ["aside", *kept], "written down before anything goes"
    assert "was used on node n1" in restoring.operation_status(home.state)["message"]
    kills.append(False)
    copied(home, method)
    assert discarded == ([*again[:-1], *again] if killed else again), "none stays of those that are made anew"
    assert home.state["lost"] == []
    assert sorted(method.made) == again
    assert home.state["copiedBytes"].keys() == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("timeline", "told"),
    [(1, ["end", "remove standby.signal", "write recovery.signal", "start"]), (2, ["end", "start"])],
)
def test_a_copy_of_a_standby_recovers_with_the_signal_that_goes_when_it_is_opened(
    home: Home, monkeypatch: pytest.MonkeyPatch, timeline: int, told: list[str]
) -> None:
    """PostgreSQL that finds both removes that of the standby only: taken up again, what is open would recover anew."""
    done: list[str] = []
    machine = SimpleNamespace(
        remove=lambda path: done.append(f"remove {path.name}"),
        write=lambda path, text: done.append(f"write {path.name}"),
    )

    class Server:
        def __init__(self, *_: Any) -> None:
            self.controlled = lambda: Controlled({}, timeline, True, False)

        def start(self, settings: Any) -> None:
            done.append("start")
            raise Cancelled("enough")

    monkeypatch.setattr("pgherd.backup.restore.PrivateServer", Server)
    monkeypatch.setattr(LocalWorkshop, "machine", lambda *_: machine)
    monkeypatch.setattr(LocalWorkshop, "end_processes", lambda *_: done.append("end"))
    home.know(phase="copying", bases=BASES)
    restore = Restore(home.site(method=SimpleNamespace(restore_command=lambda *_: "")))
    restore._state = home.state
    with pytest.raises(Cancelled):
        restore._start_and_reach(1)
    assert done == told


def test_a_clone_whose_place_is_lost_is_copied_anew_as_a_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.know(phase="copying", bases=BASES, steps=["copied:0", "copied:1", "copied:2", "copied"])
    discarded: list[int] = []
    monkeypatch.setattr(
        LocalWorkshop, "discard", lambda self, member: discarded.append(member.group), raising=False
    )

    class OnADeadNode(Copying):
        def _carry_on(self) -> None:
            raise Lost("data-shop-segment-1-0 was used on node n1", 1)

    def live(report: Any) -> Any:
        raise AssertionError("its point is known")

    with pytest.raises(Lost):
        OnADeadNode(home.site(live=live)).run()
    assert discarded == [0, 1, 2], "the others stopped at a point that this one can't be brought to"
    assert home.state["steps"] == []
    assert "point" not in home.state


@pytest.mark.parametrize(
    "before", [Awaited("old is stopped: it is waited for"), Unavailable("old is silent")]
)
def test_a_clone_that_copies_says_no_more_what_it_waited_for(home: Home, before: Exception) -> None:
    wanted = cluster(engine="fdw", segments=1, bootstrap={"clone": {"cluster": "old"}})
    told: list[str] = []

    def look() -> None:
        told.append(restoring.operation_status(home.state)["message"])

    def waits(report: Any) -> Any:
        look()
        raise before

    def copies(report: Any) -> Any:
        look()
        report(0, 1, 100)
        look()
        raise Cancelled("the supervisor ends")

    for live in (waits, waits, copies):
        with pytest.raises(PgherdError):
            Restore(home.site(wanted, live=live)).run()
    assert [str(before) in each for each in told] == [False, True, True, False], "only what it waits for now"
    assert told[-1] == "copying old"


def test_nobody_copies_before_there_is_a_place_for_every_group(home: Home) -> None:
    home.know(phase="copying", bases=BASES)

    class Nowhere(Copying):
        def _machine(self, group: int) -> Any:
            if group == 2:
                raise Unavailable("shop-segment-2-0-restore does not run yet: no node has room")

    with pytest.raises(Unavailable):
        Nowhere(home.site(method=(method := Copies()))).run()
    assert method.made == []


def test_progress_that_can_not_be_written_down_ends_no_copy(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.know(phase="copying", bases=BASES)
    method = Copies()
    carried = Copying(home.site(method=method))
    write = carried._workshop.write_state

    def blip(state: Any) -> None:
        if "bytesDone" in state and len(method.made) < len(BASES):
            raise Unavailable("could not apply ConfigMap shop.recovery: 503")
        write(state)

    monkeypatch.setattr(carried._workshop, "write_state", blip)
    monkeypatch.setattr("pgherd.backup.restore.time.sleep", lambda seconds: None)
    with pytest.raises(Cancelled):
        carried.run()
    assert sorted(method.made) == [0, 1, 2]
    assert {"copied:0", "copied:1", "copied:2", "copied"} <= set(home.state["steps"])


@pytest.mark.parametrize("begun", [False, True])
def test_pgbackrest_goes_on_where_its_own_manifest_says_that_it_was_at_work(
    tmp_path: Path, begun: bool
) -> None:
    target, commands = tmp_path / "from-backup", []
    target.mkdir()
    (target / "1").write_text("some of it")
    if begun:
        (target / "backup.manifest").write_text("")

    def run(arguments: Any, machine: Any, **how: Any) -> None:
        commands.append((arguments, (target / "1").exists()))

    class Here(LocalMachine):
        def end_strays(self, argument: str) -> None:
            return

    here = Here(NOTHING)
    runner: Any = SimpleNamespace(of=lambda group: here, run=run, prepare=lambda settings: None)
    place: Any = SimpleNamespace(settings=lambda: None, is_current=lambda: True)

    class Method(PgBackRest):
        repository: Any = SimpleNamespace(store=SimpleNamespace(near=False))

        def _copy_of(self, backup: str, group: int) -> Any:
            return SimpleNamespace(system="7", label="20261121F", bytes=10)

    Method(place, runner).restore(["b1"], 1, target, lambda done, total: None, lambda: False)
    [(arguments, kept)] = commands
    assert ("--delta" in arguments, kept) == (begun, begun)
