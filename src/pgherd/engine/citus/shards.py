"""Which shard group is where, and how big it is."""

from __future__ import annotations

from collections.abc import Sequence

from pgherd.engine.base import ShardGroup, ShardGroupId
from pgherd.engine.citus.session import superuser
from pgherd.postgres.connections import Databases

SIZES_TIMEOUT = "10s"
"""measuring a shard takes a lock on its node, where only this ends the wait for a user who holds another"""


def shard_groups(databases: Databases) -> Sequence[ShardGroup]:
    """Every shard group with its place and size; Citus asks each node once.

    :raises Unavailable: a segment does not answer
    """
    with superuser(databases) as connection:
        connection.execute(f"SET statement_timeout TO '{SIZES_TIMEOUT}'".encode())
        rows = connection.execute(
            "SELECT m.colocation_id, m.index, m.group_id, coalesce(sum(z.size), 0)::bigint,"
            "       array_agg(m.relation::regclass::text ORDER BY m.shard_id)"
            "  FROM pgherd.shard_map m LEFT JOIN citus_shard_sizes() z USING (shard_id)"
            " GROUP BY 1, 2, 3 ORDER BY 1, 2"
        ).fetchall()
    return [
        ShardGroup(ShardGroupId(colocation, index), group, size, tuple(tables))
        for colocation, index, group, size, tables in rows
    ]
