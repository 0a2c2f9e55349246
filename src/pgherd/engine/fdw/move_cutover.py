"""The moment of a move: writers wait, the last changes arrive, the placement switches.

One transaction on the coordinator holds the group's tables in EXCLUSIVE mode (readers don't notice), sends a marker
behind the last change, makes the copies visible on the target in a transaction of the target's, and commits. That
commit is the decision. Every wait in between is bounded; when one is not kept, all is as before and it is tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import pq, sql

from pgherd.engine.base import MoveControl
from pgherd.engine.fdw.move_catalog import Parcel, swap_records
from pgherd.engine.fdw.move_session import BlockedError, deadline_watch, patiently
from pgherd.engine.fdw.move_stream import Markers
from pgherd.postgres.connections import Connection

LOCK_MS = 100
"""how long writers may queue behind our wish to lock"""

MARKER_SECONDS = 0.3
"""how long writers may wait for the last changes to arrive"""

COMMIT_SECONDS = 0.5
"""how long the target's commit may take (with its standby)"""


_turn = threading.Lock()
"""One switch at a time in this process: while one waits for a lock behind another, writers wait behind both."""


@contextmanager
def _own_turn() -> Iterator[None]:
    if not _turn.acquire(timeout=1):
        raise BlockedError("another move is switching")
    try:
        yield
    finally:
        _turn.release()


@dataclass(frozen=True)
class Cutover:
    """How one move switches."""

    operation: int
    parcel: Parcel
    barrier: Connection
    """holds DDL off; if this session was lost, definitions may have changed"""
    desk: Connection
    """on the coordinator; commits the decision"""
    target: Connection
    """on the target, as the owner"""
    control: MoveControl

    def attempt(self, markers: Markers) -> float:
        """Switch, or leave everything as it was; returns the seconds for which writers were locked out.

        :raises BlockedError: others were in the way; worth another try
        """
        with _own_turn(), self.desk.transaction():
            self._lock_tables_briefly()
            locked = time.monotonic()
            markers.send()
            watch = deadline_watch(MARKER_SECONDS, "the arrival of the last changes")
            self.switch(lambda: markers.wait(watch))
        return time.monotonic() - locked

    def switch(self, arrive: Callable[[], object]) -> None:
        """Everything between the locks and the commit. What it did on the target is undone if it fails.

        :param arrive: returns once the last change is on the target
        """
        self.barrier.execute("SELECT 1")
        try:
            self.target.execute("BEGIN")
            row = self.target.execute("SELECT pg_current_xact_id()::text").fetchone()
            assert row is not None
            with self.desk.pipeline():
                self._place(arrival=str(row[0]))
            arrive()
            self._attach()
            self.control.checkpoint("attached")
        except BaseException:
            self._take_back()
            raise

    def lock_statement(self) -> sql.Composed:
        """Locks out writers of all the group's tables, in an order that everybody keeps."""
        tables = sql.SQL(", ").join(sql.SQL("ONLY " + shard.table) for shard in self.parcel.shards)
        return sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(tables)

    def _lock_tables_briefly(self) -> None:
        self.desk.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_MS)))
        try:
            self.desk.execute(self.lock_statement())
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            raise BlockedError("writers hold the tables") from error

    def _place(self, arrival: str) -> None:
        group = self.parcel.group
        self.desk.execute(
            "SELECT pgherd.place_shard_group(%s, %s, %s)", [group.colocation, group.index, self.parcel.target]
        )
        swap_records(self.desk, self.operation, self.parcel, arrival)

    def _attach(self) -> None:
        """Make the copies visible on the target; its commit makes all that was applied before durable."""
        self.target.execute(
            sql.SQL("SET LOCAL lock_timeout = {}; SET LOCAL synchronous_commit TO DEFAULT").format(LOCK_MS)
        )
        try:
            for shard in self.parcel.shards:
                self.target.execute(
                    "SELECT pgherd.attach_shard(%s::regclass, %s, %s, %s), pgherd.guard_shard(%s)",
                    [shard.table, shard.name, self.parcel.modulus, self.parcel.group.index, shard.name],
                )
        except psycopg.errors.LockNotAvailable as error:
            raise BlockedError(f"the tables are locked on segment {self.parcel.target}") from error
        patiently(self.target, "COMMIT", deadline_watch(COMMIT_SECONDS, "the target's commit"), 0.05)

    def _take_back(self) -> None:
        """Nothing was decided: out of sight with the copies, before writers go on."""
        if self.target.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            self.target.execute("ROLLBACK")
        with self.target.transaction():
            self.target.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_MS)))
            for shard in self.parcel.shards:
                self.target.execute(
                    "SELECT pgherd.detach_shard(%s::regclass, %s), pgherd.unguard_shard(%s)",
                    [shard.table, shard.name, shard.name],
                )
