"""What would keep shard groups from moving, found before anything is started.

Only tables without a primary key can be unfit: their updates and deletes are replicated by comparing whole rows,
which not every type allows. Servers can lack what logical replication needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw.move_catalog import Shard
from pgherd.engine.fdw.move_copy import leaf
from pgherd.engine.fdw.move_session import connect
from pgherd.engine.fdw.move_stream import without_identity
from pgherd.errors import Unavailable
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.postgres.connections import Connection, Databases

_OR_BLOCKING = "or set spec.expansion.mode to blocking"


def preflight(databases: Databases, groups: Sequence[ShardGroupId], *, blocking: bool = False) -> list[str]:
    """One sentence for each thing that keeps ``groups`` from being moved, with the way out.

    :raises Unavailable: the coordinator can't be reached
    """
    with connect(databases, COORDINATOR) as desk:
        segments = [
            row[0] for row in desk.execute("SELECT group_id FROM pgherd.segment ORDER BY 1").fetchall()
        ]
        shards = _shards(desk, groups)
    problems: dict[str, None] = {}
    for segment in segments:
        try:
            with connect(databases, segment) as connection:
                if blocking:
                    continue
                found = [*_lacking(connection, segment), *_unfit_tables(connection, shards.get(segment, []))]
                problems |= dict.fromkeys(found)
        except (Unavailable, psycopg.OperationalError) as error:
            problems[f"{group_name(segment)} can't be reached ({error}): wait until it is back"] = None
    return list(problems)


def unfit_reason(source: Connection, shard: Shard) -> str | None:
    """Why a table without a primary key can't be moved while it is written to; None if it can."""
    row = source.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attgenerated <> ''"
        " AND NOT attisdropped LIMIT 1",
        [leaf(shard).as_string(source)],
    ).fetchone()
    if row:
        return f"has no primary key and the generated column {row[0]}"
    for column, type_name in _column_types(source, shard):
        try:
            source.execute(f"SELECT DISTINCT NULL::{type_name}".encode())
        except psycopg.errors.UndefinedFunction:
            return f"has no primary key and the column {column} of type {type_name}, whose values can't be compared"
    return None


def _column_types(source: Connection, shard: Shard) -> list[tuple[str, str]]:
    return source.execute(
        "SELECT a.attname::text, format_type(a.atttypid, NULL) FROM pg_attribute a"
        " WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        [leaf(shard).as_string(source)],
    ).fetchall()


def _shards(desk: Connection, groups: Sequence[ShardGroupId]) -> dict[int, list[Shard]]:
    """The groups' shards by the segment where they are."""
    rows = desk.execute(
        "SELECT g.group_id, s.name::text, format('%%I.%%I', n.nspname, c.relname)"
        " FROM unnest(%s::int[], %s::int[]) AS wanted (colocation_id, index)"
        " JOIN pgherd.shard_group g USING (colocation_id, index)"
        " JOIN pgherd.distributed_table d USING (colocation_id)"
        " JOIN pgherd.shard s ON s.relation = d.relation AND s.index = g.index"
        " JOIN pg_class c ON c.oid = d.relation JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY s.shard_id",
        [[group.colocation for group in groups], [group.index for group in groups]],
    ).fetchall()
    found: dict[int, list[Shard]] = defaultdict(list)
    for segment, name, table in rows:
        found[segment].append(Shard(name, table))
    return found


def _unfit_tables(source: Connection, shards: Sequence[Shard]) -> Iterator[str]:
    one_of_each = {shard.table: shard for shard in shards}
    for shard in without_identity(source, one_of_each.values()):
        if reason := unfit_reason(source, shard):
            yield f"table {shard.table} {reason}: add a primary key, {_OR_BLOCKING}"


def _lacking(connection: Connection, segment: int) -> Iterator[str]:
    """What logical replication needs and this server does not have (left)."""
    name = group_name(segment)
    if _value(connection, "SELECT current_setting('wal_level')") != "logical":
        yield f"{name} has wal_level {_value(connection, 'SHOW wal_level')}: moves need logical, {_OR_BLOCKING}"
        return
    for setting, used in _LIMITS.items():
        limit = _value(connection, f"SELECT current_setting('{setting}', true)")
        if limit is not None and int(str(limit)) <= int(str(_value(connection, used))):
            yield f"{name} has no free {setting.removeprefix('max_')} ({limit}): raise {setting}, {_OR_BLOCKING}"
    gid = _value(connection, "SELECT gid FROM pg_prepared_xacts ORDER BY prepared LIMIT 1")
    if gid is not None:
        yield f"{name} has the prepared transaction {gid}, which moves would wait for: commit it or roll it back"


_LIMITS = {
    "max_replication_slots": "SELECT count(*) FROM pg_replication_slots",
    "max_wal_senders": "SELECT count(*) FROM pg_stat_replication",
    "max_logical_replication_workers": "SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL",
    "max_worker_processes": "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^(logical|parallel)'",
    "max_active_replication_origins": "SELECT count(*) FROM pg_replication_origin",
}
"""limits, and what of each is in use"""


def _value(connection: Connection, query: str) -> object:
    row = connection.execute(sql.SQL(query)).fetchone()
    return None if row is None else row[0]
