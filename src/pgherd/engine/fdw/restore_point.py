"""A point at which all groups agree.

postgres_fdw commits a transaction on the segments one by one and then on the coordinator, so a point taken at random
would catch some transactions half committed. While it is taken nobody may be committing: every table is locked in
SHARE mode, which a writer's lock (kept until its last commit is done) excludes, and the DDL barrier excludes the rest.
The lock is asked for briefly and again and again, so that writers never queue behind it for long.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

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


def create_restore_point(
    databases: Databases, name: str, measured: Callable[[float], None] = lambda seconds: None
) -> Mapping[int, str]:
    """Write a restore point of this name into every group's WAL while no distributed transaction is half committed.

    :param measured: told for how many seconds writers were kept out
    :return: each group's LSN
    :raises BadInput: a name that PostgreSQL does not take
    :raises PgherdError: writers could not be paused within a minute
    """
    if not name or len(name.encode()) > MAX_NAME:
        raise BadInput(f"a restore point's name must have 1 to {MAX_NAME} bytes, got {name!r}")
    with ExitStack() as stack:
        connection = stack.enter_context(superuser(databases, COORDINATOR, autocommit=False))
        connection.execute("LOCK TABLE pgherd.ddl_barrier IN SHARE MODE")
        connection.execute("SAVEPOINT unlocked")
        segments = [row[0] for row in connection.execute("SELECT group_id FROM pgherd.segment").fetchall()]
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=8))
        # Connected before the lock: nothing but the marks themselves is done while writers wait.
        groups = [COORDINATOR, *sorted(segments)]
        sessions = [
            stack.enter_context(session)
            for session in pool.map(lambda group: superuser(databases, group), groups)
        ]
        _pause_writers(connection)
        begun = time.monotonic()
        points = dict(zip(groups, pool.map(lambda session: _mark(session, name), sessions), strict=True))
        connection.commit()
        measured(time.monotonic() - begun)
        return points


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


def _mark(session: Connection, name: str) -> str:
    row = session.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()
    assert row is not None
    return str(row[0])
