"""A predecessor that was killed may have committed, or be about to: what follows takes a segment for no copy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.engine.base import Clone
from pgherd.engine.citus import clone, move, nodes, numbering, restore_point, restored
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import Credentials, Endpoint
from pgherd.operations import splits, steps
from pgherd.operations.base import NotNowError
from pgherd.postgres.connections import Databases
from pgherd.reconcile import observe

Rows = Sequence[tuple[Any, ...]]


class Answer(list[tuple[Any, ...]]):
    """Rows as a cursor gives them."""

    def __init__(self, rows: Rows, rowcount: int) -> None:
        super().__init__(rows)
        self.rowcount = rowcount

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(iter(self), None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self)


@dataclass
class Server:
    """Answers by the first of these words that a statement has; remembers the statements."""

    says: Mapping[str, Rows]
    heard: list[tuple[str, Any]] = field(default_factory=list)
    rowcount: int = 1
    fails: str = ""

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def transaction(self) -> Server:
        return self

    def commit(self) -> None:
        pass

    def execute(self, query: Any, values: Any = None) -> Answer:
        text = query.decode() if isinstance(query, bytes) else str(query)
        self.heard.append((text, values))
        found = next((rows for word, rows in self.says.items() if word in text), [])
        if self.fails and self.fails in text:
            raise Unavailable(text)
        return Answer(found, self.rowcount)

    def changed(self) -> list[str]:
        return [text for text, _ in self.heard if text.split()[0] in ("INSERT", "UPDATE", "DELETE")]


@dataclass(frozen=True)
class Servers(Databases):
    """One server for each group."""

    servers: Mapping[int, Server] = field(default_factory=dict)

    def connect(self, group: int, **how: Any) -> Any:
        if group not in self.servers:
            raise Unavailable(f"group {group} can't be reached: no answer")
        return self.servers[group]


def databases(servers: Mapping[int, Server], *present: int) -> Servers:
    members = {group: [Endpoint("10.0.0.1", 5000 + group)] for group in present}
    return Servers("app", Credentials("s", "r", "o", "p"), lambda: members, servers=servers)


def test_a_copy_that_became_a_segment_while_its_row_was_waited_for_is_not_given_up() -> None:
    # The split's commit takes the row away that somebody else waits for.
    desk = Server({"FROM pgherd.clone": [], "FROM pgherd.segment": [(1,)]})
    assert clone.begin(databases({0: desk}, 0, 1, 3), operation=7, group=3, source=1)
    assert desk.changed() == []


def test_members_of_a_group_that_nobody_knows_are_given_up_first() -> None:
    desk = Server({"FROM pgherd.clone": [], "FROM pgherd.segment": [(0,)]})
    assert not clone.begin(databases({0: desk}, 0, 1, 3), operation=7, group=3, source=1)
    assert [values for text, values in desk.heard if "INTO pgherd.clone" in text] == [[3, 1, 7, "undone"]]


def test_a_copy_that_was_given_up_while_it_was_promoted_becomes_no_segment() -> None:
    desk = Server({}, rowcount=0)
    with pytest.raises(Unavailable, match="segment-3 was given up meanwhile"):
        clone._take_in(desk, 7, 3, 1)  # type: ignore[arg-type]
    [deleted] = desk.changed()
    assert "state = %s" in deleted
    clone._take_in(taken := Server({}), 7, 3, 1)  # type: ignore[arg-type]
    assert "INSERT INTO pgherd.segment (group_id) VALUES (%s)" in taken.changed()


@pytest.mark.parametrize("begun_anew", [False, True])
def test_a_copy_that_was_given_up_is_not_forgotten_once_it_is_begun_anew(begun_anew: bool) -> None:
    """Somebody who cleans up saw it before; an operation has taken its row since."""
    desk = Server({"FOR UPDATE": [] if begun_anew else [()], "SELECT group_id": [(3,)], "count(*)": [(0,)]})
    clone.remove_undone(databases({0: desk}, 0, 1))
    forgotten = [text for text in desk.changed() if text.startswith("DELETE")]
    assert ("DELETE FROM pgherd.clone WHERE group_id = %s" in forgotten) is not begun_anew
    assert bool(forgotten) is not begun_anew


@pytest.mark.parametrize(("group", "lossy", "skips"), [(2, True, True), (2, False, False), (0, True, False)])
def test_sequences_of_a_group_that_lost_the_end_of_its_log_give_no_value_again(
    group: int, lossy: bool, skips: bool
) -> None:
    """Rows on other nodes may have it. Values of a coordinator's are no range of its own."""
    rebuilt = Server({})
    restored.settle_rebuilt(databases({}), group, databases({group: rebuilt}), lossy=lossy)
    found = [values for text, values in rebuilt.heard if "setval" in text]
    first, last = numbering.range_of(group)
    assert found == ([{"first": first, "last": last, "margin": numbering.MARGIN}] if skips else [])


def test_a_copy_begins_with_nothing_left_of_a_segment_of_its_number() -> None:
    node = ("10.0.0.1", 5003, False)
    desk = Server({"FROM pgherd.clone": [], "FROM pgherd.segment": [(0,)], "FROM pg_dist_node": [node]})
    assert clone.begin(databases({0: desk}, 0, 1), operation=7, group=3, source=1)
    said = [text.partition("(")[0] for text, _ in desk.heard]
    assert said.index("SELECT pg_terminate_backend") < said.index("SELECT citus_remove_node")
    assert ("DELETE FROM pg_dist_cleanup WHERE node_group_id = %s", [3]) in desk.heard
    assert [values for text, values in desk.heard if "INTO pgherd.clone" in text] == [[3, 1, 7, "copying"]]


def test_what_was_to_be_dropped_on_an_earlier_segment_is_not_dropped_on_the_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Citus drops by number and name: a shard that is the copy's from the commit on."""
    for name in ("clone_name.require_quiet", "clone._await_last_byte"):
        monkeypatch.setattr(f"pgherd.engine.citus.{name}", lambda *of: None)
    monkeypatch.setattr(nodes, "segments", lambda databases: [])
    desk = Server({"count(*)": [(0,)]}, fails="citus_promote")
    asked = databases({0: desk, 1: Server({"count(*)": [(0,)]}), 3: Server({})}, 0, 1, 3)
    with pytest.raises(Unavailable, match="citus_promote"):
        clone._part(asked, operation=7, group=3, source=1, node=5, alone=asked)
    said = [text for text, _ in desk.heard]
    forgotten = said.index("DELETE FROM pg_dist_cleanup WHERE node_group_id = %s")
    assert said.index("LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE") < forgotten
    assert forgotten < said.index("SELECT citus_promote_clone_and_rebalance(%s)")


def test_nobody_waits_for_the_pause_of_a_segment() -> None:
    engine = SimpleNamespace(hold_clone=lambda group: None, segments=lambda: [1, 2, 3])
    context = SimpleNamespace(held=lambda group: False)
    told: list[str] = []

    def wait(seconds: float) -> None:
        assert seconds == splits.HELD_SECONDS, "it waits for what does not come"

    journal = SimpleNamespace(set_phase=lambda phase: None, tell=told.append)
    work = SimpleNamespace(engine=engine, context=context, journal=journal, wishes=SimpleNamespace(wait=wait))
    splits._hold(work, 3, 1)  # type: ignore[arg-type]
    assert told == []


@pytest.mark.parametrize(("streams", "may_be_promoted"), [([], False), ([(0,)], True)])
def test_a_copy_that_is_ahead_of_its_source_and_does_not_follow_it_is_not_promoted(
    streams: Rows, may_be_promoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone, "LAST_BYTE_SECONDS", 0.1)
    original = Server({"pg_stat_replication": streams, "pg_current_wal_lsn": [("0/5000000",)]})
    copy = Server({"pg_last_wal_replay_lsn": [(True,)]})
    if may_be_promoted:
        clone._await_last_byte(original, copy, 3)  # type: ignore[arg-type]
        return
    with pytest.raises(Unavailable, match="segment-3 does not get what its source has"):
        clone._await_last_byte(original, copy, 3)  # type: ignore[arg-type]


def test_what_is_left_of_a_copy_is_forgotten_before_members_are_waited_for_in_its_place() -> None:
    """Nobody else does while an operation runs, and no member is started of a copy that was given up."""
    forgotten: list[bool] = []
    engine = SimpleNamespace(forget_clones=lambda: forgotten.append(True))
    context = SimpleNamespace(segment_ready=lambda group: bool(forgotten))
    waits = iter(range(3))
    work = SimpleNamespace(
        engine=engine,
        context=context,
        journal=SimpleNamespace(tell=lambda message: None),
        wishes=SimpleNamespace(wait=lambda seconds: next(waits)),
    )
    step = SimpleNamespace(detail={"segments": [3]})
    assert steps.members(work, step) == "the members of segment-3 are up"  # type: ignore[arg-type]


def check_of(held: Sequence[tuple[int, str]] | Exception) -> str:
    """The step that looks whether segment-3 can begin as a copy of segment-1, whose database system is 7123."""

    def archived() -> Sequence[tuple[int, str]]:
        if isinstance(held, Exception):
            raise held
        return held

    engine = SimpleNamespace(
        unfit=list, shard_groups=list, clone_problems=list, preflight=lambda groups, blocking: []
    )
    servers = databases({1: Server({"pg_control_system": [("7123",)]})}, 0, 1)
    context = SimpleNamespace(archived=archived, databases=servers)
    step = SimpleNamespace(detail={"clone": True, "pairs": [{"segment": 3, "source": 1}]})
    return splits.check(SimpleNamespace(engine=engine, context=context), step)  # type: ignore[arg-type]


@pytest.mark.parametrize("held", [[], [(1, "7123")], [(1, "7123"), (3, "7124")]])
def test_a_segment_whose_log_has_names_of_its_own_in_the_backups_may_begin_as_a_copy(
    held: Sequence[tuple[int, str]],
) -> None:
    assert check_of(held) == "segments can be split"


def test_a_copy_whose_log_would_have_the_names_of_an_earlier_segments_is_refused_with_the_way_out() -> None:
    """Both would begin the same timeline: the backups would refuse the second for ever, or mix up the two."""
    with pytest.raises(PgherdError) as told:
        check_of([(1, "7123"), (3, "7123")])
    assert str(told.value) == (
        "segment-3 can't begin as a copy of segment-1: the backups hold the log of an earlier segment-3 that was one,"
        " too, and files of both would have the same names: set spec.expansion.mode to online, or wait until retention"
        " has let go of the backups that have it"
    )


@pytest.mark.parametrize("error", [FileNotFoundError("/repo/wal"), PgherdError("the repository is away")])
def test_nothing_is_copied_while_nobody_knows_what_the_backups_hold(error: Exception) -> None:
    with pytest.raises(
        NotNowError, match=r"what the backups hold of earlier segments can't be read: .*(/repo|away)"
    ):
        check_of(error)


class Committing:
    """A split whose commit comes between one question and the next."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def clones(self) -> dict[int, Clone]:
        return {} if self._is_over() else {3: Clone(1, "parting")}

    def segments(self) -> list[int]:
        return [1, 2, 3] if self._is_over() else [1, 2]

    def _is_over(self) -> bool:
        over = self._asked.is_set()
        self._asked.set()
        return over

    def endpoints(self) -> dict[int, list[Endpoint]]:
        return {}

    def clone_parameters(self) -> dict[int, dict[str, str]]:
        return {}


def test_one_look_knows_a_group_that_becomes_a_segment_meanwhile() -> None:
    seen = observe._catalogue(Committing(), Server({}))  # type: ignore[arg-type]
    assert 3 in {*seen.segments, *seen.clones}


@pytest.mark.parametrize(("waits", "called_off"), [(True, 0), (False, 1)])
def test_a_move_that_has_committed_and_waits_for_the_standby_is_not_called_off(
    waits: bool, called_off: int
) -> None:
    calls: list[float] = []
    looks = iter([False, True])

    def cancel(timeout: float) -> None:
        calls.append(timeout)

    mover = object.__new__(move._Mover)
    mover.error = None
    mover._databases = databases({0: Server({"'SyncRep'": [(waits,)]})}, 0)
    mover._connection = SimpleNamespace(  # type: ignore[assignment]
        info=SimpleNamespace(backend_pid=7), cancel_safe=cancel
    )
    mover._thread = threading.Thread()
    mover.is_done = lambda seconds: next(looks)  # type: ignore[method-assign]
    assert mover.call_off()
    assert len(calls) == called_off


# numbers that sequences give

FIRST, LAST = numbering.range_of(3)


def noted(before: int | None, given: int | None) -> int:
    desk = Server({"SELECT used_up_to": [] if before is None else [(before,)]})
    numbering.note_used(desk, 3, given)  # type: ignore[arg-type]
    [(_, values)] = [each for each in desk.heard if each[0].startswith("INSERT")]
    assert values[0] == 3
    return int(values[1])


def test_what_a_segment_gave_counts_with_what_its_clients_may_take_before_its_end() -> None:
    assert noted(None, FIRST + 19) == FIRST + 19 + numbering.MARGIN
    assert noted(FIRST + 50 * numbering.MARGIN, FIRST + 19) == FIRST + 50 * numbering.MARGIN, "never less"
    assert noted(None, LAST - 1) == LAST, "no sequence takes more"


def test_a_segment_that_does_not_say_what_it_gave_counts_as_having_given_much() -> None:
    assert noted(None, None) == FIRST - 1 + numbering.UNKNOWN
    assert noted(FIRST + 7, None) == FIRST + 7 + numbering.UNKNOWN


def test_a_segment_that_is_away_does_not_say_what_it_gave() -> None:
    assert numbering.given(databases({}, 3), 3) is None
    assert numbering.given(databases({3: Server({"max(last_value)": [(None,)]})}, 3), 3) == FIRST - 1


# restore points, and a cluster made of a backup


@pytest.mark.parametrize("looks", [([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2])])
def test_a_point_names_each_segment_that_may_hold_shards_at_it(
    looks: tuple[list[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(looks)
    monkeypatch.setattr(nodes, "segments", lambda databases: next(answers))
    servers = {group: Server({"insert_lsn": [(f"0/{group}",)]}) for group in range(4)}
    made = restore_point.create_restore_point(databases(servers, 0, 1, 2, 3), "p")
    assert made == {0: "0/0", 1: "0/1", 2: "0/2", 3: "0/3"}


class Nodes:
    """``pg_dist_node``, in which no two rows have one address."""

    def __init__(self, rows: dict[int, tuple[str, int]]) -> None:
        self.rows = rows

    def execute(self, query: str, values: Sequence[Any] = ()) -> None:
        if "nodename = ''" in query:
            self.rows = {group: ("", 100 + group) for group in self.rows}
        elif query.startswith("UPDATE"):
            host, port, group = values
            self.rows[group] = (host, port)
        assert len(set(self.rows.values())) == len(self.rows), f"two nodes at one address: {self.rows}"


def test_restored_nodes_may_get_one_anothers_old_addresses() -> None:
    nodes = Nodes({0: ("127.0.0.1", 7000), 1: ("127.0.0.1", 7001), 2: ("127.0.0.1", 7002)})
    now = {
        0: [Endpoint("127.0.0.1", 7000)],
        1: [Endpoint("127.0.0.1", 7002)],
        2: [Endpoint("127.0.0.1", 7001)],
    }
    restored._nodes(nodes, now)  # type: ignore[arg-type]
    assert nodes.rows == {group: (members[0].host, members[0].port) for group, members in now.items()}
