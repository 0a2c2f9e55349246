"""Whether the copies of reference tables have the same rows on all nodes: Citus changes them together, and never looks
again."""

from __future__ import annotations

import psycopg
from psycopg import sql

from pgherd.engine.citus.layout import SHARD
from pgherd.engine.citus.session import LOCK_TIMEOUT
from pgherd.errors import one_line
from pgherd.postgres.connections import Connection

_TABLES = f"""
SELECT format('%%I.%%I', n.nspname, c.relname), {SHARD}
  FROM pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid) JOIN pg_class c ON c.oid = s.logicalrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace, shard_name(s.logicalrelid, s.shardid) f (name)
 WHERE t.partmethod = 'n' AND t.repmodel = 't' AND 2 = (SELECT count(DISTINCT p.groupid) FROM pg_dist_placement p
                                                         WHERE p.shardid = s.shardid AND p.groupid IN (0, %s))
 ORDER BY 1
"""
"""those of which both the coordinator and the node have a copy"""
_SAFE = "SET LOCAL search_path TO pg_catalog, pg_temp"
"""no function of a user's is called"""
_TEXTS = (
    f"{_SAFE}; SET LOCAL datestyle TO ISO; SET LOCAL intervalstyle TO postgres; SET LOCAL timezone TO GMT;"
    "SET LOCAL extra_float_digits TO 3; SET LOCAL bytea_output TO hex"
)
"""the same text of the same value everywhere"""
_OPEN = """\
SELECT FROM pg_prepared_xacts x JOIN pg_locks t ON t.transactionid = x.transaction AND t.pid IS NULL
  JOIN pg_locks l ON l.virtualtransaction = t.virtualtransaction AND l.pid IS NULL
 WHERE x.gid LIKE 'citus\\_%%' AND x.database = current_database() AND l.relation = to_regclass(%s)
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1"""
"""Of this copy only: where many write to other tables something is prepared at any moment. Which locks are whose their
own lock on their number tells: what else pg_locks says of it is not the same before and after a restart."""

_BUSY = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
)
"""writers do not pause; what waits on another node knows nothing of the coordinator's ``lock_timeout``"""


def tables(desk: Connection, group: int) -> list[tuple[str, str]]:
    """The reference tables that a group has a copy of, and what the copies are called."""
    with desk.transaction():
        desk.execute(_SAFE.encode())
        return [(table, copy) for table, copy in desk.execute(_TABLES.encode(), [group]).fetchall()]


def difference(desk: Connection, here: Connection, table: str, copy: str) -> str | None:
    """What is to be said of a node's copy of a reference table; None: it has the coordinator's rows.

    Who writes is held up only where they seem to differ, which they do for a moment while somebody writes.
    """
    try:
        if _rows(desk, copy) == _rows(here, copy):
            return None
        with desk.transaction():
            desk.execute(f"{_SAFE}; SET LOCAL statement_timeout TO '{LOCK_TIMEOUT}'".encode())
            # Citus takes it on all nodes: wherever they write, they have ended everywhere.
            desk.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
            desk.execute(b"SET LOCAL statement_timeout TO 0")
            # First: nothing new is prepared while they are locked, but what was may end at any moment.
            if _is_open(desk, copy) or _is_open(here, copy) or _rows(desk, copy) == _rows(here, copy):
                return None
    except _BUSY as error:
        return f"can't be compared with the coordinator in reference table {table}: {one_line(error)}"
    except psycopg.errors.UndefinedTable:
        return None  # it was dropped meanwhile
    return f"has other rows of reference table {table} than the coordinator"


def _rows(connection: Connection, copy: str) -> tuple[int, str]:
    """How many there are, and a hash of them."""
    with connection.transaction():
        connection.execute(_TEXTS.encode())
        query = (
            "SELECT count(*), coalesce(sum(hashtextextended(ROW(t.*)::text, 0)::numeric), 0)::text FROM {} t"
        )
        found = connection.execute(sql.SQL(query).format(sql.SQL(copy))).fetchone()
    assert found is not None
    return int(found[0]), str(found[1])


def _is_open(connection: Connection, copy: str) -> bool:
    """What is prepared is decided, and on its way here: whoever wrote it is done with it."""
    return connection.execute(_OPEN.encode(), [copy]).fetchone() is not None
