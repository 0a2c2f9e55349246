"""The stream of changes from the source's leaves to the target's, from a snapshot on: publication, slot, subscription.

Whether everything has arrived is asked by a marker: a row written on the source and seen on the target. The slot's
own positions only advance with the next feedback message, which may be a second away.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import psycopg
from psycopg import sql

from pgherd.engine.fdw.move_catalog import Parcel, Shard
from pgherd.engine.fdw.move_copy import leaf
from pgherd.engine.fdw.move_session import BlockedError, Watch, connect_replication, patiently
from pgherd.errors import PgherdError
from pgherd.postgres.connections import Connection, Databases

POLL = 0.0015
"""seconds between two looks for a marker"""

LOCK_FULL_IDENTITY_MS = 30
"""how long readers and writers of a leaf may wait for its replica identity to be changed"""


def without_identity(source: Connection, shards: Iterable[Shard]) -> list[Shard]:
    """The shards whose updates and deletes could not be replicated as they are."""
    return [shard for shard in shards if not _has_identity(source, shard)]


def _has_identity(source: Connection, shard: Shard) -> bool:
    row = source.execute(
        "SELECT c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND"
        " CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident END)"
        " FROM pg_class c WHERE c.oid = to_regclass(%s)",
        [leaf(shard).as_string(source)],
    ).fetchone()
    if row is None:
        raise PgherdError(f"shard {shard.name} of {shard.table} is not on its segment: run 'pgherd check'")
    return bool(row[0])


def set_full_identity(owner: Connection, shard: Shard, watch: Watch) -> None:
    """Let whole old rows identify what is updated or deleted.

    The lock it needs excludes readers, so it is only waited for a moment at a time.
    """
    started, pause = time.monotonic(), 0.05
    while True:
        try:
            with owner.transaction():
                owner.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_FULL_IDENTITY_MS))
                )
                owner.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(leaf(shard)))
            return
        except psycopg.errors.LockNotAvailable:
            watch(time.monotonic() - started)
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)


def create_publication(source: Connection, parcel: Parcel) -> None:
    """Publish the leaves and this move's markers."""
    tables = [sql.SQL("TABLE ONLY {}").format(leaf(shard)) for shard in parcel.shards]
    marker = sql.SQL("TABLE pgherd.move_marker WHERE (move_id = {})").format(sql.Literal(parcel.move_id))
    source.execute(
        sql.SQL("CREATE PUBLICATION {} FOR {}").format(
            sql.Identifier(parcel.thing), sql.SQL(", ").join([*tables, marker])
        )
    )


class Slot:
    """The replication slot, and the snapshot from which on it has every change.

    The snapshot can be taken over until :meth:`close`.
    """

    def __init__(self, databases: Databases, parcel: Parcel, watch: Watch) -> None:
        """Waits for all transactions that are writing on the source, whatever they write."""
        self._connection = connect_replication(databases, parcel.source)
        try:
            results = patiently(
                self._connection,
                f"CREATE_REPLICATION_SLOT {parcel.thing} LOGICAL pgoutput (SNAPSHOT 'export')",
                watch,
            )
        except BaseException:
            self.close()
            raise
        snapshot = results[0].get_value(0, 2)
        assert snapshot is not None
        self.snapshot = snapshot.decode()

    def close(self) -> None:
        self._connection.close()


def read_snapshot(source: Connection, slot: Slot) -> None:
    """Begin a transaction that sees what was there when the slot was made."""
    source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    source.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(slot.snapshot)))


def create_subscription(databases: Databases, target: Connection, parcel: Parcel) -> None:
    """Start to apply the changes since the snapshot, as the leaves' owner."""
    target.execute(
        sql.SQL(
            "CREATE SUBSCRIPTION {name} CONNECTION {source} PUBLICATION {name} WITH (create_slot = false,"
            " copy_data = false, slot_name = {slot}, disable_on_error = true, streaming = off)"
        ).format(
            name=sql.Identifier(parcel.thing),
            source=sql.Literal(databases.conninfo(parcel.source)),
            slot=sql.Literal(parcel.thing),
        )
    )


def check_subscription(target: Connection, parcel: Parcel) -> None:
    """See whether changes can still be applied.

    :raises PgherdError: the target refused a change; its log says which
    """
    row = target.execute(
        "SELECT subenabled FROM pg_subscription WHERE subname = %s", [parcel.thing]
    ).fetchone()
    if row is None or not row[0]:
        raise PgherdError(
            f"segment {parcel.target} could not apply the changes of shard group {parcel.group}: see its log"
        )


def lag_bytes(source: Connection, parcel: Parcel) -> int:
    """How much of the source's log the target has not confirmed."""
    row = source.execute(
        "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s",
        [parcel.thing],
    ).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


class Markers:
    """Rows that travel the same way as the changes, behind them."""

    def __init__(self, source: Connection, target: Connection, parcel: Parcel) -> None:
        self._source = source
        self._target = target
        self._parcel = parcel
        self._last = 0
        source.execute("SET synchronous_commit = local")

    def send(self) -> None:
        """Everything that is committed on the source now is ahead of this marker."""
        self._last += 1
        self._source.execute(
            "INSERT INTO pgherd.move_marker VALUES (%s, %s)", [self._parcel.move_id, self._last]
        )

    def wait(self, watch: Watch) -> float:
        """Wait until the last marker has arrived; returns the seconds it took. ``watch`` is called at each look."""
        started = time.monotonic()
        while not self._arrived():
            watch(time.monotonic() - started)
            time.sleep(POLL)
        return time.monotonic() - started

    def _arrived(self) -> bool:
        return (
            self._target.execute(
                "SELECT FROM pgherd.move_marker WHERE move_id = %s AND n = %s",
                [self._parcel.move_id, self._last],
            ).fetchone()
            is not None
        )


def probe_commit(target: Connection, parcel: Parcel, seconds: float) -> None:
    """See that a commit on the target gets through (to its standby) in time.

    :raises BlockedError: it takes longer
    """
    started = time.monotonic()
    with target.transaction():
        target.execute("SET LOCAL synchronous_commit TO DEFAULT")
        target.execute(
            "INSERT INTO pgherd.move_marker VALUES (%s, 0) ON CONFLICT (move_id, n) DO UPDATE SET n = 0",
            [parcel.move_id],
        )
    if time.monotonic() - started > seconds:
        raise BlockedError(f"commits on segment {parcel.target} are slow")
