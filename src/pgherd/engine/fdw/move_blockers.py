"""Who is in the way of a move: for messages, and to see a deadlock that no server can see."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from pgherd.engine.fdw.move_catalog import Parcel, Shard
from pgherd.engine.fdw.move_copy import leaf
from pgherd.engine.wording import transaction_of
from pgherd.postgres.connections import Connection

LONG_SECONDS = 0.1
"""age from which a writing transaction is not expected to end within our lock timeout"""

_EXCLUDING = [
    "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock",
    "ExclusiveLock", "AccessExclusiveLock",
]  # fmt: skip
"""lock modes that exclude EXCLUSIVE: whoever holds one writes, or means to"""

_HOLDERS = (
    "SELECT a.pid, a.xact_start FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.locktype = 'relation' AND l.granted AND l.mode = ANY(%s) AND l.pid <> pg_backend_pid()"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND l.relation = ANY(%s::text[]::regclass[]) {more} ORDER BY a.xact_start LIMIT 1"
)


def has_long_holder(desk: Connection, parcel: Parcel) -> bool:
    """Whether a transaction that is not about to end holds one of the tables against us."""
    more = sql.SQL("AND a.xact_start < clock_timestamp() - make_interval(secs => {})").format(LONG_SECONDS)
    return (
        desk.execute(sql.SQL(_HOLDERS).format(more=more), [_EXCLUDING, _tables(parcel)]).fetchone()
        is not None
    )


def who_locks(desk: Connection, parcel: Parcel) -> str:
    """Who holds one of the tables against us, since when."""
    row = desk.execute(sql.SQL(_HOLDERS).format(more=sql.SQL("")), [_EXCLUDING, _tables(parcel)]).fetchone()
    return _described(row, "the coordinator")


def who_writes(source: Connection, segment: int) -> str:
    """The oldest writing transaction on a segment: a replication slot has to wait for all of them."""
    row = source.execute(
        "SELECT pid, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
        " ORDER BY xact_start LIMIT 1"
    ).fetchone()
    if row is None:
        row = source.execute(
            "SELECT gid, prepared FROM pg_prepared_xacts ORDER BY prepared LIMIT 1"
        ).fetchone()
    return "waiting for " + _described(row, f"segment {segment}")


def who_uses(source: Connection, segment: int, shard: Shard) -> str:
    """Who has read a leaf in a transaction that is still open."""
    row = source.execute(
        "SELECT a.pid, a.xact_start FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'relation' AND l.granted AND l.relation = to_regclass(%s) AND l.pid <> pg_backend_pid()"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " ORDER BY a.xact_start LIMIT 1",
        [leaf(shard).as_string(source)],
    ).fetchone()
    return f"waiting for a moment without readers of {shard.table}: " + _described(row, f"segment {segment}")


def who_holds_barrier(desk: Connection) -> str:
    """Who is changing definitions."""
    row = desk.execute(
        "SELECT a.pid, a.xact_start FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'relation' AND l.relation = 'pgherd.ddl_barrier'::regclass"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.mode = 'RowExclusiveLock' ORDER BY l.granted DESC, a.xact_start LIMIT 1"
    ).fetchone()
    return "waiting for a change of definitions: " + _described(row, "the coordinator")


def who_waits_for_barrier(session: Connection) -> str | None:
    """Somebody who has written to distributed tables and now waits until the moves under way let DDL through."""
    row = session.execute(
        "SELECT a.pid, a.xact_start FROM pg_locks w JOIN pg_stat_activity a ON a.pid = w.pid"
        " WHERE w.locktype = 'relation' AND w.relation = 'pgherd.ddl_barrier'::regclass AND NOT w.granted"
        " AND w.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND w.mode = 'RowExclusiveLock' AND EXISTS (SELECT FROM pg_locks h WHERE h.pid = w.pid AND h.granted"
        "   AND h.locktype = 'relation' AND h.database = w.database AND h.mode = ANY(%s)"
        "   AND h.relation IN (SELECT relation FROM pgherd.distributed_table))"
        " ORDER BY a.xact_start LIMIT 1",
        [_EXCLUDING],
    ).fetchone()
    return None if row is None else _described(row, "the coordinator")


def _tables(parcel: Parcel) -> list[str]:
    return [shard.table for shard in parcel.shards]


def _described(row: tuple[Any, ...] | None, where: str) -> str:
    if row is None:
        return f"others on {where}"
    return transaction_of(row[0], where, row[1])
