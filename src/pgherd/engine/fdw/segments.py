"""Segments come, change their addresses and go: foreign servers and what hangs on them.

A segment is admitted in one transaction of the coordinator, which reaches into the segment through the foreign server
that it creates: either all of it is there (server, definitions, copies of reference tables, the row in
``pgherd.segment``) or nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby

import psycopg
from psycopg import sql

from pgherd.engine.base import ShardGroup, ShardGroupId
from pgherd.engine.fdw.install import superuser
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import COORDINATOR, Endpoint, Endpoints
from pgherd.postgres.connections import Connection, Databases

SERVER_OPTIONS: Mapping[str, str] = {
    "target_session_attrs": "read-write",
    # From 16 on PostgreSQL does not heed it where a server is the client (libpq-be-fe-helpers.h): how long a session
    # asks the host of a dead member, before it asks the next one, is bounded by tcp_user_timeout.
    "connect_timeout": "2",
    # Two probes, unanswered both, within tcp_user_timeout: it is what counts, keepalives_count does not beside it.
    "keepalives_idle": "1",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "2100",
    "batch_size": "500",
    "fetch_size": "2000",
    # Nearer the truth than the defaults: a question costs a round trip, and a row that comes over costs what many rows
    # cost that stay. With these, joins of colocated tables are left to the segments.
    "fdw_startup_cost": "200",
    "fdw_tuple_cost": "1",
    "async_capable": "true",
    # whose work it is, for whoever looks at a segment: the coordinator session's process id
    "application_name": "pgherd/%p",
    "parallel_commit": "true",
    # a deadlock between segments is seen by none of them
    "options": "-c lock_timeout=30s",
}
SINCE_16: Mapping[str, str] = {"parallel_abort": "true"}
"""what PostgreSQL 15 has no word for, and refuses"""


def server_name(group: int) -> str:
    """The foreign server of a segment."""
    return f"segment_{group}"


def admit(databases: Databases, group: int, endpoints: Endpoints) -> None:
    """Let a segment take part; see :meth:`pgherd.engine.base.Engine.admit`."""
    with superuser(databases, COORDINATOR, autocommit=False) as connection:
        connection.execute("SELECT pgherd.change_segments()")
        if connection.execute("SELECT 1 FROM pgherd.segment WHERE group_id = %s", [group]).fetchone():
            _set_addresses(connection, group, endpoints)
            return
        _drop_doors(connection, group)
        _create_server(connection, databases, group, endpoints)
        _open_doors(connection, group)
        connection.execute("SELECT pgherd.furnish_segment(%s)", [group])
        connection.execute(
            "INSERT INTO pgherd.segment (group_id, server_name) VALUES (%s, %s)", [group, server_name(group)]
        )


def reopen(databases: Databases) -> None:
    """After an upgrade: give the segments that are admitted already what this version expects of the coordinator."""
    with superuser(databases, COORDINATOR, autocommit=False) as connection:
        connection.execute("SET LOCAL pgherd.propagate = off; SET LOCAL client_min_messages = warning")
        rows = connection.execute(
            "SELECT s.group_id, f.srvoptions"
            "  FROM pgherd.segment s JOIN pg_foreign_server f ON f.srvname = s.server_name"
        ).fetchall()
        for group, present in rows:
            _open_doors(connection, group)
            _set_options(connection, databases, group, present)


def _set_options(connection: Connection, databases: Databases, group: int, present: Sequence[str]) -> None:
    """Have the coordinator reach a segment as this version, and this cluster, do.

    :param present: the options that are there
    """
    names = {option.partition("=")[0] for option in present}
    for name, value in {**_behaviour(connection), **databases.between}.items():
        if f"{name}={value}" not in present:
            connection.execute(
                sql.SQL("ALTER SERVER {} OPTIONS ({})").format(
                    sql.Identifier(server_name(group)),
                    _options({name: value}, verb="SET" if name in names else "ADD"),
                )
            )


def update_endpoints(databases: Databases, group: int, endpoints: Endpoints) -> None:
    """The members of an admitted segment changed: sessions use the new list from their next transaction on."""
    with superuser(databases, COORDINATOR, autocommit=False) as connection:
        _set_addresses(connection, group, endpoints)


def retire(databases: Databases, group: int) -> None:
    """Forget a segment; see :meth:`pgherd.engine.base.Engine.retire`. Its server's own contents stay as they are."""
    with superuser(databases, COORDINATOR, autocommit=False) as connection:
        connection.execute("SELECT pgherd.change_segments()")
        held = connection.execute(
            "SELECT count(*) FROM pgherd.shard_group WHERE group_id = %s", [group]
        ).fetchone()
        if held and held[0]:
            raise PgherdError(f"segment-{group} still holds {held[0]} shard groups: move them away first")
        connection.execute("DELETE FROM pgherd.segment WHERE group_id = %s", [group])
        connection.execute("DELETE FROM pgherd.cleanup WHERE group_id = %s AND kind = 'table'", [group])
        _drop_doors(connection, group)


def drop_gone_tables(databases: Databases) -> int:
    """Drop what dropped tables had on the segments: the coordinator has committed that they are gone.

    :return: how many of their clean-up records remain, because a segment is away or busy
    """
    with superuser(databases, COORDINATOR) as desk:
        records = desk.execute(
            "SELECT id, group_id, name FROM pgherd.cleanup WHERE kind = 'table' ORDER BY group_id, id"
        ).fetchall()
        remaining = 0
        for group, due in groupby(records, key=lambda record: int(record[1])):
            names = {int(record[0]): str(record[2]) for record in due}
            done = _drop_schemas(databases, group, names)
            desk.execute("DELETE FROM pgherd.cleanup WHERE id = ANY(%s)", [done])
            remaining += len(names) - len(done)
        return remaining


def _drop_schemas(databases: Databases, group: int, names: Mapping[int, str]) -> list[int]:
    """Drop schemas on a segment as the owner; returns the keys of those that are gone."""
    done: list[int] = []
    with (
        suppress(Unavailable, psycopg.OperationalError),
        databases.connect(group, user=databases.owner) as owner,
    ):
        owner.execute("SET lock_timeout = '2s'; SET client_min_messages = warning")
        for record, name in names.items():
            with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege):
                owner.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
                done.append(record)
    return done


def endpoints(databases: Databases) -> Mapping[int, Endpoints]:
    """The addresses in the foreign servers' options, by group id in order."""
    with superuser(databases, COORDINATOR) as connection:
        rows = connection.execute(
            "SELECT s.group_id, o.option_name, o.option_value"
            "  FROM pgherd.segment s JOIN pg_foreign_server f ON f.srvname = s.server_name,"
            "       pg_options_to_table(f.srvoptions) o"
            " WHERE o.option_name IN ('host', 'port') ORDER BY s.group_id"
        ).fetchall()
    options: dict[int, dict[str, str]] = {}
    for group, name, value in rows:
        options.setdefault(group, {})[name] = value
    return {group: _endpoints(each["host"], each["port"]) for group, each in options.items()}


def _endpoints(hosts: str, ports: str) -> list[Endpoint]:
    return [Endpoint(host, int(port)) for host, port in zip(hosts.split(","), ports.split(","), strict=True)]


def shard_groups(databases: Databases) -> Sequence[ShardGroup]:
    """Where every shard group is and how big, with one question to each segment.

    :raises Unavailable: a segment does not answer
    """
    with superuser(databases, COORDINATOR) as connection:
        rows = connection.execute(
            "SELECT g.colocation_id, g.index, g.group_id, array_remove(array_agg(s.name::text), NULL),"
            "       array_remove(array_agg(s.relation::regclass::text ORDER BY s.shard_id), NULL)"
            "  FROM pgherd.shard_group g"
            "  LEFT JOIN pgherd.distributed_table d ON d.colocation_id = g.colocation_id"
            "  LEFT JOIN pgherd.shard s ON s.relation = d.relation AND s.index = g.index"
            " GROUP BY 1, 2, 3 ORDER BY 1, 2"
        ).fetchall()
    sizes = {group: _shard_sizes(databases, group) for group in {row[2] for row in rows}}
    return [
        ShardGroup(ShardGroupId(colocation, index), group, _total(sizes[group], names), tuple(tables))
        for colocation, index, group, names, tables in rows
    ]


_SIZE_LOCK_TIMEOUT = "500ms"
_REMEMBERED = "relpages::bigint * current_setting('block_size')::bigint"
_LOCKED = "SELECT relation FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation IS NOT NULL"
_MEASURED = f"CASE WHEN oid IN ({_LOCKED}) THEN {_REMEMBERED} ELSE pg_total_relation_size(oid) END"
_SIZES = sql.SQL(
    "SELECT relname::text, {} FROM pg_class WHERE relnamespace = 'pgherd_shards'::regnamespace AND relkind = 'r'"
)


def _total(sizes: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(sizes.get(name, 0) for name in names)


def _shard_sizes(databases: Databases, group: int) -> dict[str, int]:
    """Each shard's size. Measuring one takes a lock, so a shard that somebody locked counts as VACUUM last saw it:
    whoever looks after a cluster must not wait for its users.
    """
    with superuser(databases, group) as connection:
        connection.execute(f"SET lock_timeout TO '{_SIZE_LOCK_TIMEOUT}'".encode())
        try:
            return dict(connection.execute(_SIZES.format(sql.SQL(_MEASURED))).fetchall())
        except psycopg.errors.LockNotAvailable:
            return dict(connection.execute(_SIZES.format(sql.SQL(_REMEMBERED))).fetchall())


def _address_options(endpoints: Endpoints) -> dict[str, str]:
    return {
        "host": ",".join(endpoint.host for endpoint in endpoints),
        "port": ",".join(str(endpoint.port) for endpoint in endpoints),
    }


def _behaviour(connection: Connection) -> Mapping[str, str]:
    """How a server of this version reaches a segment, wherever the segment is."""
    return {**SERVER_OPTIONS, **(SINCE_16 if connection.info.server_version >= 160000 else {})}


def _options(options: Mapping[str, str], verb: str = "") -> sql.Composable:
    return sql.SQL(", ").join(
        sql.SQL(verb + " {} {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in options.items()
    )


def _set_addresses(connection: Connection, group: int, endpoints: Endpoints) -> None:
    wanted = _address_options(endpoints)
    row = connection.execute(
        "SELECT f.srvoptions FROM pgherd.segment s JOIN pg_foreign_server f ON f.srvname = s.server_name"
        " WHERE s.group_id = %s",
        [group],
    ).fetchone()
    if row is None:
        raise PgherdError(f"segment-{group} is not admitted")
    if not {f"{name}={value}" for name, value in wanted.items()} <= set(row[0]):
        connection.execute(
            sql.SQL("ALTER SERVER {} OPTIONS ({})").format(
                sql.Identifier(server_name(group)), _options(wanted, verb="SET")
            )
        )


def _create_server(connection: Connection, databases: Databases, group: int, endpoints: Endpoints) -> None:
    options = {
        **_address_options(endpoints),
        "dbname": databases.database,
        **_behaviour(connection),
        **databases.between,
    }
    server = sql.Identifier(server_name(group))
    connection.execute(
        sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
            server, _options(options)
        )
    )
    connection.execute(
        sql.SQL("CREATE USER MAPPING FOR PUBLIC SERVER {} OPTIONS ({})").format(
            server,
            _options(
                {
                    "user": databases.owner,
                    "password": databases.credentials.owner,
                    "password_required": "false",
                }
            ),
        )
    )


def _open_doors(connection: Connection, group: int) -> None:
    """The ways into a segment: tables to execute, to ask for sizes and for a query's rows; the schema of per-segment
    relations."""
    names = {
        "exec": sql.Identifier("pgherd", f"exec_{group}"),
        "size": sql.Identifier("pgherd", f"relation_size_{group}"),
        "query": sql.Identifier("pgherd", f"query_{group}"),
        "schema": sql.Identifier(f"pgherd_segment_{group}"),
        "server": sql.Identifier(server_name(group)),
    }
    connection.execute(
        sql.SQL(
            "CREATE FOREIGN TABLE IF NOT EXISTS {exec} (sql text, search_path text, wants text, result text)"
            " SERVER {server} OPTIONS (schema_name 'pgherd', table_name 'exec', batch_size '1');"
            "CREATE FOREIGN TABLE IF NOT EXISTS {size} (schema_name name, name name, bytes bigint) SERVER {server}"
            " OPTIONS (schema_name 'pgherd', table_name 'relation_size');"
            'CREATE FOREIGN TABLE IF NOT EXISTS {query} ("row" jsonb) SERVER {server}'
            " OPTIONS (schema_name 'pgherd', table_name 'query');"
            "CREATE SCHEMA IF NOT EXISTS {schema};"
            "SELECT pgherd.grant_rights()"
        ).format(**names)
    )


def settle_restored(databases: Databases, endpoints: Mapping[int, Endpoints]) -> Sequence[str]:
    """See :meth:`pgherd.engine.base.Engine.settle_restored`. No transaction spans servers here: postgres_fdw knows no
    two-phase commit, and restore points are made while nobody commits."""
    with superuser(databases, COORDINATOR, autocommit=False) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        rows = connection.execute(
            "SELECT s.group_id, f.srvoptions"
            "  FROM pgherd.segment s JOIN pg_foreign_server f ON f.srvname = s.server_name ORDER BY 1"
        ).fetchall()
        for group, present in rows:
            _set_addresses(connection, group, endpoints[group])
            _set_options(connection, databases, group, present)
            connection.execute(
                sql.SQL("ALTER USER MAPPING FOR PUBLIC SERVER {} OPTIONS (SET password {})").format(
                    sql.Identifier(server_name(group)), sql.Literal(databases.credentials.owner)
                )
            )
    return [f"the coordinator reaches {len(rows)} segments at their new addresses"]


def _drop_doors(connection: Connection, group: int) -> None:
    connection.execute("SET LOCAL pgherd.propagate = off; SET LOCAL client_min_messages = warning")
    connection.execute(
        sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE; DROP SERVER IF EXISTS {} CASCADE").format(
            sql.Identifier(f"pgherd_segment_{group}"), sql.Identifier(server_name(group))
        )
    )
