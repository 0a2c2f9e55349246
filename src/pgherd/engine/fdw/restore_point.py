"""A point at which all groups agree.

postgres_fdw commits a transaction on the segments one by one and then on the coordinator, so a point taken at random
would catch some transactions half committed. While it is taken nobody may be committing: every table is locked in
SHARE mode, which a writer's lock (kept until its last commit is done) excludes, and the DDL barrier excludes the rest.
The lock is asked for briefly and again and again, so that writers never queue behind it for long.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import psycopg

from pgherd.engine.fdw.install import superuser
from pgherd.errors import BadInput, PgherdError
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

LOCK_MS = 200
"""how long writers may queue behind one attempt"""

GIVE_UP_SECONDS = 60.0
"""how long to try before saying who is in the way"""

MAX_NAME = 63


def create_restore_point(databases: Databases, name: str) -> Mapping[int, str]:
    """Write a restore point of this name into every group's WAL while no distributed transaction is half committed.

    :return: each group's LSN
    :raises BadInput: a name that PostgreSQL does not take
    :raises PgherdError: writers could not be paused within a minute
    """
    if not name or len(name.encode()) > MAX_NAME:
        raise BadInput(f"a restore point's name must have 1 to {MAX_NAME} bytes, got {name!r}")
    with superuser(databases, COORDINATOR, autocommit=False) as connection:
        connection.execute("LOCK TABLE pgherd.ddl_barrier IN SHARE MODE")
        connection.execute("SAVEPOINT unlocked")
        segments = [row[0] for row in connection.execute("SELECT group_id FROM pgherd.segment").fetchall()]
        _pause_writers(connection)
        with ThreadPoolExecutor(max_workers=8) as pool:
            points = dict(pool.map(lambda group: (group, _mark(databases, group, name)), segments))
        return {COORDINATOR: _mark(databases, COORDINATOR, name), **dict(sorted(points.items()))}


def _pause_writers(connection: Connection) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    tables = [
        row[0]
        for row in connection.execute(
            "SELECT relation::regclass::text FROM pgherd.distributed_table ORDER BY relation"
        ).fetchall()
    ]
    while tables:
        try:
            connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
            connection.execute(f"LOCK TABLE ONLY {', ONLY '.join(tables)} IN SHARE MODE".encode())
            return
        except psycopg.errors.LockNotAvailable as error:
            connection.execute("ROLLBACK TO SAVEPOINT unlocked")
            if time.monotonic() > deadline:
                raise PgherdError(
                    f"no restore point: writers were never at rest within {GIVE_UP_SECONDS:.0f} s; "
                    "end transactions that stay open for long"
                ) from error
        time.sleep(random.uniform(0.02, 0.2))


def _mark(databases: Databases, group: int, name: str) -> str:
    with superuser(databases, group) as connection:
        row = connection.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()
    assert row is not None
    return str(row[0])
