"""A point at which all nodes agree: Citus writes it while no distributed transaction can commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pgherd.engine.citus import nodes
from pgherd.engine.citus.session import superuser, value
from pgherd.errors import BadInput
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Databases

MAX_NAME = 63


def create_restore_point(
    databases: Databases, name: str, measured: Callable[[float], None] = lambda seconds: None
) -> Mapping[int, str]:
    """Write a restore point of this name into every node's log.

    Before Citus 14.0 only transactions that were begun at the coordinator are held off meanwhile: with these versions
    nobody may write through other nodes while it is taken.

    :param measured: told how many seconds that took, with all of Citus's own preparations
    :return: for each group an LSN that the point is at or before; recovery finds the point itself by its name
    :raises BadInput: a name that PostgreSQL does not take
    """
    if not name or len(name.encode()) > MAX_NAME:
        raise BadInput(f"a restore point's name must have 1 to {MAX_NAME} bytes, got {name!r}")
    before = nodes.segments(databases)
    with superuser(databases) as connection:
        begun = time.monotonic()
        connection.execute("SELECT citus_create_restore_point(%s)", [name])
        measured(time.monotonic() - begun)
        # One that came or left meanwhile may hold shards at that point: rather it is missed than left out.
        groups = sorted({COORDINATOR, *before, *nodes.segments(databases)})
        return {group: _position(databases, group) for group in groups}


def _position(databases: Databases, group: int) -> str:
    with superuser(databases, group) as connection:
        return str(value(connection, "SELECT pg_current_wal_insert_lsn()::text"))
