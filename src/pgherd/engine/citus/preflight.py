"""What would keep shards from moving, found before anything is started."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import psycopg

from pgherd.engine.base import ShardGroupId
from pgherd.engine.citus import nodes
from pgherd.engine.citus.session import superuser, value
from pgherd.errors import Unavailable
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.postgres.connections import Connection, Databases

_OR_BLOCKING = "or set spec.expansion.mode to blocking"

_TABLES = """
SELECT DISTINCT m.relation::regclass::text, a.amname = 'columnar',
       c.relreplident = 'n' OR c.relreplident = 'd'
       AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
  FROM pgherd.shard_map m JOIN pg_class c ON c.oid = m.relation LEFT JOIN pg_am a ON a.oid = c.relam
 WHERE (m.colocation_id, m.index) IN (SELECT * FROM unnest(%s::int[], %s::int[])) ORDER BY 1
"""
_COPIES = """
SELECT relation::regclass::text FROM pgherd.shard_map GROUP BY relation, shard_id HAVING count(*) > 1 LIMIT 1
"""
_LIMITS = {
    "max_replication_slots": "SELECT count(*) FROM pg_replication_slots",
    "max_wal_senders": "SELECT count(*) FROM pg_stat_replication",
}
"""limits, and what of each is in use"""


def preflight(
    databases: Databases,
    groups: Sequence[ShardGroupId],
    *,
    blocking: bool = False,
    retiring: Collection[int] = (),
) -> list[str]:
    """One sentence for each thing that keeps ``groups`` from being moved, with the way out.

    :param retiring: segments that are to hold nothing afterwards
    :raises Unavailable: the coordinator can't be reached
    """
    found = list(_asleep(databases))
    with superuser(databases) as connection:
        if table := value(connection, _COPIES):
            found.append(
                f"table {table} has several copies of a shard: undistribute it, and distribute it anew"
            )
        if not blocking:
            found.extend(_unfit_tables(connection, groups))
        for group in sorted(retiring):
            found.extend(nodes.stuck(connection, group))
    for group in [COORDINATOR, *nodes.segments(databases)]:
        found.extend(_unfit_node(databases, group, blocking=blocking))
    return found


def _asleep(databases: Databases) -> Iterator[str]:
    with superuser(databases) as connection:
        known = nodes.nodes(connection)
    for group in nodes.segments(databases):
        if group not in known or not known[group].active:
            yield f"{group_name(group)} is not an active node of Citus: wait until Patroni has registered it"


def _unfit_tables(connection: Connection, groups: Sequence[ShardGroupId]) -> Iterator[str]:
    wanted = [[group.colocation for group in groups], [group.index for group in groups]]
    for table, columnar, without_key in connection.execute(_TABLES.encode(), wanted).fetchall():
        if columnar:
            yield (
                f"table {table} is columnar, which can't be moved while it is written to:"
                " set spec.expansion.mode to blocking"
            )
        elif without_key:
            yield f"table {table} has no primary key: add one, or a replica identity (FULL will do), {_OR_BLOCKING}"


def _unfit_node(databases: Databases, group: int, *, blocking: bool) -> Iterator[str]:
    name = group_name(group)
    try:
        with superuser(databases, group) as connection:
            if not blocking:
                yield from _lacking(connection, name)
    except (Unavailable, psycopg.OperationalError) as error:
        yield f"{name} can't be reached ({error}): wait until it is back"


def _lacking(connection: Connection, name: str) -> Iterator[str]:
    level = value(connection, "SELECT current_setting('wal_level')")
    if level != "logical":
        yield f"{name} has wal_level {level}: moves need logical, {_OR_BLOCKING}"
    for setting, used in _LIMITS.items():
        limit = int(value(connection, f"SELECT current_setting('{setting}')"))
        if limit <= int(value(connection, used)):
            yield f"{name} has no free {setting.removeprefix('max_')} ({limit}): raise {setting}, {_OR_BLOCKING}"
