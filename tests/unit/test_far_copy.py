"""A running cluster that is copied into pods: what is run there, what the source is asked to keep, what ends a try."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgherd.backup import held_log, restoring
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.far_copy import FarCopy, FarMethod, Place, _described, run
from pgherd.backup.held_log import HeldLog
from pgherd.backup.live_copy import LiveCopy
from pgherd.backup.pauses import Awaited, after_pause, is_worth_a_try
from pgherd.backup.records import GroupBackup, GroupPoint, Point
from pgherd.backup.store import MemoryStore
from pgherd.errors import BadInput, Cancelled, NoSuchCluster, PgherdError, Unavailable
from pgherd.model import spec
from pgherd.platform.kubernetes.crd import crd
from pgherd.platform.machine import Machine
from tests.support.backups import backup, point

MANIFEST = """\
{ "Path": "base/1/112", "Size": 8192, "Last-Modified": "2026-11-01 10:00:00 GMT" }
],
"WAL-Ranges": [
{ "Timeline": 3, "Start-LSN": "0/5000028", "End-LSN": "0/5000120" }
],
"Manifest-Checksum": "b21a"}
"""
NOBODY: Any = None


class Pod(Machine):
    """A machine that notes what is run there."""

    major = 17

    def __init__(self, names: Sequence[str] = (), fails: PgherdError | None = None) -> None:
        self.ran: list[Sequence[str]] = []
        self.done: list[str] = []
        self._names, self._fails = names, fails

    def program(self, name: str) -> str:
        return f"/bin/{name}"

    def output(self, command: Sequence[str], **how: Any) -> bytes:
        self.done.append(" ".join(command))
        return {"du": b"4096\tx\n", "tail": MANIFEST.encode(), "cat": b"17\n"}.get(command[0], b"")

    def run(self, command: Sequence[str], **how: Any) -> None:
        self.ran.append(command)
        how.get("watch", print)("  1024/2048 kB (50%), 0/1 tablespace")
        if self._fails is not None:
            raise self._fails

    def start(self, command: Sequence[str], log: Path) -> Any:
        raise NotImplementedError

    def entrance(self, folder: Path) -> Any:
        raise NotImplementedError

    def end_strays(self, argument: str) -> None:
        self.done.append(f"end {argument}")

    def write(self, path: Path, text: str) -> None:
        raise NotImplementedError

    def names(self, folder: Path, ending: str) -> Sequence[str]:
        return self._names

    def make_folder(self, path: Path) -> None:
        self.done.append(f"make {path}")

    def remove(self, path: Path) -> None:
        self.done.append(f"remove {path}")


def method(pod: Pod) -> FarMethod:
    made = FarMethod(lambda group: Place(pod, Path("/v/from-backup"), Path("/v/spool/received")), "shop")
    made.systems_now = {1: "7"}
    return made


WAY = {"host": "shop-segment-1-1", "user": "replicator", "password": "/keys/it", "sslrootcert": "/keys/crt"}


# what is run


def test_a_group_is_copied_to_where_its_members_data_will_be_with_the_log_of_meanwhile() -> None:
    pod, told = Pod(), []
    made = method(pod).back_up(
        "live", 1, "full", None, WAY, lambda *amount: told.append(amount), lambda: False
    )
    assert pod.done[:2] == ["end /v/from-backup", "remove /v/from-backup"], "first what an earlier try left"
    [command] = pod.ran
    assert command[command.index("--pgdata") + 1] == "/v/from-backup"
    assert "--wal-method=stream" in command
    assert told == [(1 << 20, 2 << 20)]
    assert (made.system, made.timeline, made.start, made.stop) == ("7", 3, "0/5000028", "0/5000120")
    assert made.bytes == 4096


def test_the_sources_password_is_read_in_the_pod_and_is_no_argument() -> None:
    pod = Pod()
    run(pod, ["/bin/pg_receivewal"], WAY, lambda: False)
    [command] = pod.ran
    assert command[:2] == ["/bin/bash", "-c"]
    assert 'PGPASSWORD=$(< "$1")' in command[2]
    assert command[4:6] == ["/keys/it", "/bin/pg_receivewal"]
    assert command[-1] == "--dbname=host=shop-segment-1-1 user=replicator sslrootcert=/keys/crt"


def test_what_a_program_complains_of_is_told_with_its_name() -> None:
    pod = Pod(fails=PgherdError("/bin/bash: no space left"))
    with pytest.raises(PgherdError, match=r"^pg_basebackup: no space left"):
        run(pod, ["/usr/lib/postgresql/17/bin/pg_basebackup"], WAY, lambda: False)


def test_a_copy_is_verified_and_on_the_disk_before_it_counts() -> None:
    pod = Pod()
    method(pod).restore(["live"], 1, Path("/v/from-backup"), print, lambda: False)
    assert pod.ran[0][0] == "/bin/pg_verifybackup"
    assert pod.done == ["sync -f /v/from-backup", "sync -f /v/spool/received"]
    with pytest.raises(PgherdError, match="the copy of segment-1 is damaged"):
        method(Pod(fails=PgherdError("checksum"))).restore(["live"], 1, Path("/v"), print, lambda: False)


def test_the_log_that_was_received_is_what_recovery_reads() -> None:
    asked = method(Pod()).restore_command(1, "7")
    assert asked == "[ -f /v/spool/received/%f ] && cp /v/spool/received/%f %p"


@pytest.mark.parametrize(
    ("names", "timeline"),
    [
        (["00000003.history", "000000030000000000000005"], 3),
        (["00000003.history", "000000030000000000000005.partial"], None),
        (["000000030000000000000005"], None),
        ([], None),
    ],
)
def test_a_point_is_there_once_its_file_and_its_timelines_history_are(
    names: list[str], timeline: int | None
) -> None:
    assert method(Pod(names)).readable_timeline(1, GroupPoint("7", 3, "0/5000120")) == timeline


def test_a_manifest_that_says_nothing_is_no_copy() -> None:
    with pytest.raises(PgherdError, match="the manifest of a copy can't be read"):
        _described("{", "7", 1, 1.0)


def test_what_is_remembered_in_memory_is_what_a_directory_would_hold() -> None:
    known = Catalogue(MemoryStore("nowhere"))
    known.create("shop")
    known.remember_backup(made := backup(1))
    known.remember_point(point(1))
    assert [each.id for each in known.backups()] == [made.id]
    assert [each.name for each in known.points()] == ["p1"]
    known.remove_backup(made.id)
    assert known.backups() == []


# what the source keeps


class Session:
    """One at a group's primary."""

    def __init__(self, group: int, asked: list[tuple[int, str]], fails: threading.Event) -> None:
        self._group, self._asked, self._fails = group, asked, fails

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self._asked.append((self._group, "end"))

    def execute(self, sql: str, parameters: Any = None) -> None:
        self._asked.append((self._group, f"{' '.join(sql.split())} {parameters}"))
        if "advance" in sql and self._fails.is_set():
            raise psycopg.OperationalError("terminating connection due to administrator command")


def test_each_groups_log_is_held_by_a_slot_that_ends_with_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_log, "EVERY_SECONDS", 0.01)
    asked: list[tuple[int, str]] = []
    fails = threading.Event()
    databases: Any = SimpleNamespace(connect=lambda group, **how: Session(group, asked, fails))
    told: dict[int, str] = {}
    with HeldLog(databases, [0, 1], "pgherd_copy_1", told.__setitem__):
        for group in (0, 1):
            own = [text for which, text in asked if which == group]
            assert any("idle_session_timeout = '60s'" in text for text in own), "nobody's fills no disk"
            made = "SELECT pg_create_physical_replication_slot(%s, true, true) ['pgherd_copy_1']"
            assert made in own, "at once, and temporary"
        wait(lambda: sum("advance" in text for _, text in asked) > 4)
        assert told == {}
        fails.set()
        wait(lambda: bool(told))
    assert told == {0: "the server keeps it no more: terminating connection due to administrator command"}
    assert sorted(group for group, text in asked if text == "end") == [0, 1]


def test_a_group_that_can_not_hold_its_log_leaves_no_other_one_holding_it() -> None:
    asked: list[tuple[int, str]] = []

    def connect(group: int, **how: Any) -> Session:
        if group == 1:
            raise Unavailable("group 1 can't be reached")
        return Session(group, asked, threading.Event())

    databases: Any = SimpleNamespace(connect=connect)
    with pytest.raises(Unavailable), HeldLog(databases, [0, 1], "pgherd_copy_1", print):
        raise AssertionError
    assert asked[-1] == (0, "end")


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# what ends a try


class Copies(LiveCopy):
    """Copies of nothing that last until they are told to stop."""

    def __init__(self, trouble: str = "") -> None:
        far = FarMethod(NOBODY, "shop")
        engine: Any = SimpleNamespace(segments=lambda: [1])
        super().__init__(engine, NOBODY, far, lambda: not trouble)
        self._then = trouble
        self._copying = threading.Event()

    def _prepare(self, cluster: str, systems: Mapping[int, str]) -> None:
        return

    def _keeping_the_log(self, groups: list[int]) -> AbstractContextManager[object]:
        return nullcontext()

    def _receive(self, group: int, system: str) -> None:
        self._copying.wait(10)
        if self._then:
            self._trouble[group] = self._then

    def _is_receiving(self, group: int, system: str) -> bool:
        return True

    def _standby(self, group: int) -> None:
        return None

    def _way_to(self, group: int, member: Any, user: str) -> dict[str, str]:
        return {}


def test_a_copy_whose_log_has_a_hole_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    standing = SimpleNamespace(system="7")
    monkeypatch.setattr("pgherd.backup.points.look", lambda *_: dict.fromkeys((0, 1), standing))
    for trouble, expected in (("its primary ended", PgherdError), ("", Cancelled)):
        copies = Copies(trouble)

        def copying(self: Any, *arguments: Any, copies: Copies = copies, **named: Any) -> GroupBackup:
            stopping = arguments[-1]
            copies._copying.set()
            wait(stopping)
            raise Cancelled("pg_basebackup was stopped")

        monkeypatch.setattr(FarMethod, "back_up", copying)
        with pytest.raises(expected, match=trouble or "stopped") as ended:
            copies.make("shop", lambda *_: None)
        assert isinstance(ended.value, Cancelled) == (not trouble)


class Trying(FarCopy):
    """One that gets no further than what it is given."""

    def __init__(self, fails: Exception) -> None:
        self._far, self._fails = method(Pod()), fails


@pytest.mark.parametrize(
    ("fails", "tried_again"),
    [
        (PgherdError("the log of segment-1 can't be received: its primary ended"), True),
        (Unavailable("no primary"), True),
        (BadInput("spec.segments.count: must be 2 as in the backup, got 3"), False),
    ],
)
def test_what_may_pass_is_begun_anew_and_what_makes_no_sense_is_not(
    monkeypatch: pytest.MonkeyPatch, fails: PgherdError, tried_again: bool
) -> None:
    def make(*_: Any) -> Point:
        raise fails

    monkeypatch.setattr(LiveCopy, "make", make)
    with pytest.raises((PgherdError, psycopg.OperationalError)) as ended:
        Trying(fails).make("shop", lambda *_: None)
    assert is_worth_a_try(ended.value, {}) == tried_again
    assert is_worth_a_try(ended.value, {"tries": 9}) == isinstance(fails, Unavailable)


def running(segments: int) -> Any:
    """A source that is declared to have so many."""
    counted = SimpleNamespace(spec=SimpleNamespace(segments=SimpleNamespace(count=segments)))
    return SimpleNamespace(stopped=False, deleting=False, cluster=counted)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        (None, "there is no cluster shop here: it is waited for"),
        (SimpleNamespace(stopped=True, deleting=False), "shop is stopped: it is waited for"),
        (SimpleNamespace(stopped=False, deleting=True), "shop is being deleted: it is waited for"),
        (running(3), "shop is to have 3 segments, and has 2 now: it is waited for"),
        (running(4), r"shop does not answer \(no primary\): it is waited for"),
    ],
)
def test_a_source_that_is_not_there_is_waited_for(declared: Any, told: str) -> None:
    def declaration(name: str) -> Any:
        if declared is None:
            raise NoSuchCluster("no")
        return declared

    platform: Any = SimpleNamespace(
        declaration=declaration,
        workshop=lambda name: SimpleNamespace(heed=lambda stopping: None),
    )

    def segments() -> list[int]:
        if declared.cluster.spec.segments.count == 4:
            raise Unavailable("no primary")
        return [1, 2]

    world: Any = (SimpleNamespace(segments=segments), NOBODY)
    clone = restoring._Clone(platform, clone_of("shop"), "shop", lambda name: world, lambda: False)
    _, live = clone.far(NOBODY)
    with pytest.raises(Unavailable, match=told) as waits:
        live(lambda *_: None)
    known = after_pause(waits.value, {"tries": 3})
    assert (known["tries"], known["waits"]) == (0, str(waits.value)), "that is no try"


@pytest.mark.parametrize("segments", [0, 1])
def test_on_one_machine_a_source_that_is_still_being_made_is_waited_for_too(segments: int) -> None:
    platform: Any = SimpleNamespace(
        declaration=lambda name: running(2),
        workshop=lambda name: SimpleNamespace(scratch=lambda: Path("/nowhere")),
        programs=lambda: NOBODY,
    )
    world: Any = (SimpleNamespace(segments=lambda: [1, 2][:segments]), NOBODY)
    clone = restoring._Clone(platform, clone_of("shop"), "shop", lambda name: world, lambda: False)
    _, live = clone.near()
    with pytest.raises(Awaited, match=f"shop is to have 2 segments, and has {segments} now: it is waited"):
        live(lambda *_: None)


def test_on_one_machine_too_what_can_be_no_copy_is_refused_before_anything_is_copied() -> None:
    platform: Any = SimpleNamespace(
        declaration=lambda name: running(3),
        workshop=lambda name: SimpleNamespace(scratch=lambda: Path("/nowhere")),
        programs=lambda: NOBODY,
    )
    engine, databases = SimpleNamespace(name="fdw", segments=lambda: [1, 2, 3]), SimpleNamespace(database="b")
    world: Any = (engine, databases)
    clone = restoring._Clone(platform, clone_of("shop"), "shop", lambda name: world, lambda: False)
    _, live = clone.near()
    with pytest.raises(BadInput) as refused:
        live(lambda *_: None)
    assert list(refused.value.problems) == [
        "spec.engine: must be fdw as in the backup, got citus",
        "spec.database: must be b as in the backup, got app",
        "spec.segments.count: must be 3 as in the backup, got 2",
    ]


def test_on_one_machine_a_source_that_is_not_there_is_told_at_once() -> None:
    def declaration(name: str) -> Any:
        raise NoSuchCluster(f"no cluster {name!r}")

    platform: Any = SimpleNamespace(
        declaration=declaration,
        workshop=lambda name: SimpleNamespace(scratch=lambda: Path("/nowhere")),
        programs=lambda: NOBODY,
    )
    clone = restoring._Clone(platform, clone_of("shop"), "shop", lambda name: NOBODY, lambda: False)
    _, live = clone.near()
    with pytest.raises(NoSuchCluster):
        live(lambda *_: None)


# what is declared


def clone_of(source: str, platform: str = "kubernetes") -> spec.PostgresCluster:
    raw = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": "brook"},
        "spec": {"bootstrap": {"clone": {"cluster": source}}},
    }
    return spec.from_mapping(raw, source="brook", platform=platform)


@pytest.mark.parametrize("platform", ["kubernetes", "local"])
def test_a_clone_may_be_declared_but_not_of_itself(platform: str) -> None:
    assert clone_of("spring", platform).spec.bootstrap is not None
    with pytest.raises(BadInput, match=r"spec\.bootstrap\.clone\.cluster: is the cluster itself"):
        clone_of("brook", platform)


def test_the_api_server_refuses_a_clone_of_itself_and_no_other() -> None:
    [version] = crd()["spec"]["versions"]
    rules = [each for each in rules_of(version["schema"]) if "bootstrap.clone" in each["rule"]]
    assert [each["rule"].endswith("bootstrap.clone.cluster != self.metadata.name") for each in rules] == [
        True
    ]


def rules_of(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(schema["openAPIV3Schema"]["x-kubernetes-validations"])
