"""Moves under load: writers that know what every row has to be, and what a move must not leave behind.

Each writer owns its keys, so it knows after every acknowledged statement exactly what the rows are. After an
unacknowledged one (the connection broke) it knows the two things they may be. `Load.verify` holds the tables to that.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw.move import move_shard_group
from pgherd.engine.fdw.move_session import BlockedError
from pgherd.errors import Cancelled
from pgherd.postgres.connections import Connection
from tests.support.servers import Herd

GROUP = ShardGroupId(1, 0)
"""the shard group that most tests move"""
ATTEMPTS = 5
"""of a move, as operations make them"""

MOMENTS = (
    "recorded", "created", "slot", "copied", "subscribed", "caught-up", "attached", "switched", "detached", "cleaned",
)  # fmt: skip
BEFORE_SWITCH = MOMENTS[: MOMENTS.index("switched")]


def make_tables(herd: Herd, rows: int = 2000) -> None:
    """Two colocated tables with rows: ``kept`` has a primary key, ``loose`` has none."""
    with herd.connect() as connection:
        connection.execute("CREATE TABLE kept (id bigint PRIMARY KEY, v bigint NOT NULL, s text)")
        connection.execute("CREATE TABLE loose (id bigint NOT NULL, v bigint, s text)")
        connection.execute("SELECT create_distributed_table('kept', 'id')")
        connection.execute("SELECT create_distributed_table('loose', 'id', colocate_with => 'kept')")
        for table in ("kept", "loose"):
            connection.execute(
                f"INSERT INTO {table} SELECT -g, g, repeat(md5(g::text), 3) FROM generate_series(1, {rows}) g".encode()
            )


class Control:
    """A move's control that remembers what it was told, and does something at a checkpoint, once.

    :param at: checkpoints and what to do there
    """

    def __init__(self, **at: Callable[[], object]) -> None:
        self.at = {name.replace("_", "-"): act for name, act in at.items()}
        self.messages: list[str] = []
        self.names: list[str] = []

    def report(self, message: str, bytes_done: int | None = None) -> None:
        self.messages.append(message)

    def checkpoint(self, name: str) -> None:
        self.names.append(name)
        if act := self.at.pop(name, None):
            act()


def raising(error: BaseException) -> Callable[[], None]:
    """Something to do at a checkpoint: fail."""

    def act() -> None:
        raise error

    return act


def cancel() -> None:
    """Something to do at a checkpoint: the operation was cancelled."""
    raise Cancelled("the test cancels")


def place_of(herd: Herd, group: ShardGroupId = GROUP) -> int:
    """The segment where a shard group lives, by the coordinator's catalogue."""
    with herd.superuser() as connection:
        row = connection.execute(
            "SELECT group_id FROM pgherd.shard_group WHERE colocation_id = %s AND index = %s",
            [group.colocation, group.index],
        ).fetchone()
    assert row is not None
    return int(row[0])


def other_place(herd: Herd, group: ShardGroupId = GROUP) -> int:
    """A segment where it does not live."""
    return next(g for g in sorted(herd.servers) if g not in (0, place_of(herd, group)))


def move(
    herd: Herd,
    control: Control | None = None,
    *,
    group: ShardGroupId = GROUP,
    target: int | None = None,
    blocking: bool = False,
) -> Control:
    """Move a shard group to the other segment; returns the control.

    One of which nobody looks into the middle is made again, as operations do, where commits are slow for a moment.
    """
    target = target or other_place(herd, group)
    for left in reversed(range(ATTEMPTS if control is None else 1)):
        mine = control or Control()
        try:
            move_shard_group(herd.databases, 1, group, target, mine, blocking=blocking)
            break
        except BlockedError as error:
            if not left or "are slow" not in str(error):
                raise
            time.sleep(1.0)
    assert place_of(herd, group) == target
    return mine


def settle(herd: Herd, seconds: float = 30) -> None:
    """Clean up until nothing remains."""
    deadline = time.monotonic() + seconds
    while left := herd.engine.clean_up():
        assert time.monotonic() < deadline, f"{left} records remain after {seconds} s: {leftovers(herd)}"
        time.sleep(0.05)


def leftovers(herd: Herd) -> dict[str, Any]:
    """Everything that a move made and that is not part of the placement; empty when all is well."""
    found: dict[str, Any] = {}
    with herd.superuser() as connection:
        found["records"] = connection.execute("SELECT group_id, kind, name FROM pgherd.cleanup").fetchall()
        wanted = {
            row[0]: row[1]
            for row in connection.execute(
                "SELECT s.name::text, g.group_id FROM pgherd.shard s"
                " JOIN pgherd.distributed_table d ON d.relation = s.relation"
                " JOIN pgherd.shard_group g ON g.colocation_id = d.colocation_id AND g.index = s.index"
            )
        }
    for segment in sorted(set(herd.servers) - {0}):
        with herd.superuser(segment) as connection:
            for what, query in _LEFTOVERS.items():
                found[f"{what} on {segment}"] = [row[0] for row in connection.execute(query)]
            leaves: dict[str, bool] = dict(connection.execute(_LEAVES).fetchall())
        mine = {name for name, place in wanted.items() if place == segment}
        found[f"leaves on {segment}"] = sorted(set(leaves) ^ mine)
        found[f"not attached on {segment}"] = sorted(
            name for name, attached in leaves.items() if not attached
        )
    return {what: things for what, things in found.items() if things}


_LEAVES = (
    "SELECT c.relname::text, coalesce(NOT i.inhdetachpending, false) FROM pg_class c"
    " LEFT JOIN pg_inherits i ON i.inhrelid = c.oid"
    " WHERE c.relkind = 'r' AND c.relnamespace = 'pgherd_shards'::regnamespace"
)
_LEFTOVERS = {
    "slots": "SELECT slot_name::text FROM pg_replication_slots",
    "publications": "SELECT pubname::text FROM pg_publication",
    "subscriptions": "SELECT subname::text FROM pg_subscription",
    "origins": "SELECT roname FROM pg_replication_origin",
    "markers": "SELECT move_id FROM pgherd.move_marker",
    "policies": "SELECT polrelid::regclass::text FROM pg_policy",
    "fences": "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'pgherd_moved_away'",
    "identities": "SELECT oid::regclass::text FROM pg_class WHERE relreplident = 'f' AND relkind = 'r'",
    "options": "SELECT oid::regclass::text FROM pg_class WHERE reloptions IS NOT NULL"
    " AND relnamespace IN ('pgherd_shards'::regnamespace, 'pg_toast'::regnamespace)",
}

LAST_KEY = 999_999
"""keys from 1 on are the writers'"""

Row = tuple[int, str | None]
State = tuple[Row, ...]
"""what one key's rows in one table are: (v, s), in order"""


class Load:
    """Writers and readers on ``kept`` and ``loose``.

    :param herd: where
    :param faults: whether broken connections are to be expected; if not, every error is a failure
    """

    def __init__(self, herd: Herd, *, faults: bool = False) -> None:
        self.herd = herd
        self.faults = faults
        self.errors: list[str] = []
        self.stalls: list[float] = []
        self.reads: list[float] = []
        self.acknowledged = 0
        self.stopping = threading.Event()
        self._may_be: dict[int, dict[str, set[State]]] = defaultdict(lambda: {"kept": {()}, "loose": {()}})
        self._threads: list[threading.Thread] = []

    def start(self, writers: int = 4, readers: int = 1) -> None:
        work = [(self._write, n) for n in range(writers)] + [(self._read, n) for n in range(readers)]
        self._threads = [threading.Thread(target=act, args=(n,), daemon=True) for act, n in work]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer or reader hangs"

    # writers

    def _write(self, number: int) -> None:
        pick = random.Random(number)
        connection: Connection | None = None
        keys: list[int] = []
        while not self.stopping.is_set():
            try:
                connection = connection or self.herd.connect(autocommit=False)
                key = self._choose_key(pick, keys, number)
                change = pick.choice((self._insert, self._update, self._update, self._delete, self._reread))
                began = time.monotonic()
                self._run(connection, key, change)
                self.stalls.append(time.monotonic() - began)
                self.acknowledged += 1
            except (psycopg.Error, AssertionError) as error:
                if connection is not None:
                    connection.close()
                connection = None
                if not self._is_explained(error):
                    self.errors.append(f"{type(error).__name__}: {error}")
                    return
                time.sleep(0.05)
            except Exception as error:
                if not self.faults:
                    self.errors.append(repr(error))
                time.sleep(0.05)
        if connection is not None:
            connection.close()

    def _choose_key(self, pick: random.Random, keys: list[int], number: int) -> int:
        if not keys or pick.random() < 0.3:
            keys.append(number + 100 * (len(keys) + 1))
        return pick.choice(keys[-40:])

    def _is_explained(self, error: Exception) -> bool:
        return self.faults and isinstance(error, psycopg.OperationalError)

    Change = Callable[[str, State], tuple[str, dict[str, Any], State]]

    def _run(self, connection: Connection, key: int, change: Change) -> None:
        """One transaction that changes the key's rows in both tables."""
        allowed = self._may_be[key]
        if any(len(states) > 1 for states in allowed.values()):
            self._learn(connection, key)
        after: dict[str, State] = {}
        for table in ("kept", "loose"):
            (before,) = allowed[table]
            statement, values, after[table] = change(table, before)
            cursor = connection.execute(statement.encode(), {"id": key, **values}, prepare=True)
            if statement.startswith("SELECT"):
                assert tuple(sorted(cursor.fetchall())) == before, f"{table} {key}: {before} was expected"
        for table, state in after.items():
            allowed[table] = allowed[table] | {state}
        connection.commit()
        for table, state in after.items():
            allowed[table] = {state}

    def _learn(self, connection: Connection, key: int) -> None:
        """After a broken connection: which of the two it is."""
        for table, states in self._may_be[key].items():
            rows = connection.execute(f"SELECT v, s FROM {table} WHERE id = %s".encode(), [key]).fetchall()
            found = tuple(sorted(rows))
            assert found in states, f"{table} {key} is {found}, none of {states}"
            self._may_be[key][table] = {found}
        connection.commit()

    def _insert(self, table: str, before: State) -> tuple[str, dict[str, Any], State]:
        if before and table == "kept":
            return self._update(table, before)
        row = (len(before), "n" * 20)
        return (
            f"INSERT INTO {table} VALUES (%(id)s, %(v)s, %(s)s)",
            {"v": row[0], "s": row[1]},
            _sorted(*before, row),
        )

    def _update(self, table: str, before: State) -> tuple[str, dict[str, Any], State]:
        after = _sorted(*((v + 1, s) for v, s in before))
        return f"UPDATE {table} SET v = v + 1 WHERE id = %(id)s", {}, after

    def _delete(self, table: str, before: State) -> tuple[str, dict[str, Any], State]:
        return f"DELETE FROM {table} WHERE id = %(id)s", {}, ()

    def _reread(self, table: str, before: State) -> tuple[str, dict[str, Any], State]:
        return f"SELECT v, s FROM {table} WHERE id = %(id)s", {}, before

    # readers

    def _read(self, number: int) -> None:
        """The rows that were there from the start are always there, all of them, once."""
        connection: Connection | None = None
        while not self.stopping.is_set():
            try:
                connection = connection or self.herd.connect()
                began = time.monotonic()
                row = connection.execute("SELECT count(*), sum(v) FROM kept WHERE id < 0").fetchone()
                self.reads.append(time.monotonic() - began)
                self._expected = getattr(self, "_expected", row)
                assert row == self._expected, f"a reader saw {row} instead of {self._expected}"
            except (psycopg.Error, AssertionError) as error:
                if connection is not None:
                    connection.close()
                connection = None
                if not self._is_explained(error):
                    self.errors.append(f"reader: {type(error).__name__}: {error}")
                    return
                time.sleep(0.05)
            except Exception as error:
                if not self.faults:
                    self.errors.append(repr(error))
                time.sleep(0.05)
            time.sleep(0.005)
        if connection is not None:
            connection.close()

    # the audit

    def verify(self) -> None:
        """No error, and every row is what its writer was told, no more and no less."""
        assert not self.errors, self.errors[:5]
        with self.herd.connect() as connection:
            for table in ("kept", "loose"):
                found: dict[int, list[Row]] = defaultdict(list)
                for key, v, s in connection.execute(
                    f"SELECT id, v, s FROM {table} WHERE id BETWEEN 1 AND {LAST_KEY}".encode()
                ):
                    found[key].append((v, s))
                for key, allowed in self._may_be.items():
                    state = _sorted(*found.pop(key, []))
                    assert state in allowed[table], f"{table} {key} is {state}, none of {allowed[table]}"
                assert not found, f"{table} has rows that nobody wrote: {dict(found)}"


def _sorted(*rows: Row) -> State:
    return tuple(sorted(rows, key=repr))


@contextmanager
def load(herd: Herd, *, writers: int = 4, readers: int = 1, faults: bool = False) -> Iterator[Load]:
    """Writers and readers for the length of a ``with`` block, and the audit after it."""
    with herd.connect() as connection:
        for table in ("kept", "loose"):
            connection.execute(f"DELETE FROM {table} WHERE id BETWEEN 1 AND {LAST_KEY}".encode())
    running = Load(herd, faults=faults)
    running.start(writers, readers)
    try:
        while running.acknowledged < 20 and not running.errors:
            time.sleep(0.01)
        yield running
    finally:
        running.stop()
    running.verify()


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
