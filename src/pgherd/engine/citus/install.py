"""Makes a server ready for Citus: role, database, extension, passwords, and on the coordinator pgherd's own tables.

Patroni does some of this when it founds a group (it makes the database and the extension, and registers nodes); what it
does once is made sure of here at each look, because a founding can be cut short. Nothing here is sent to other nodes by
Citus: each is prepared by itself, before it takes part.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from psycopg import conninfo, sql

from pgherd.engine.citus import versions
from pgherd.engine.citus.session import superuser, value
from pgherd.errors import PgherdError
from pgherd.model.topology import COORDINATOR, SUPERUSER, group_name
from pgherd.postgres.connections import Connection, Databases

_FILES = ("../../catalog.sql", "catalog.sql")
_LOCK = 0x70676865
"""advisory lock: one installer at a time"""
_EVERY_NODE = 0
"""in ``pg_dist_authinfo``: whichever node is connected to"""


def install(databases: Databases, group: int) -> None:
    """Bring one group's primary up to date.

    :raises Unavailable: it does not answer
    :raises PgherdError: its Citus is not usable
    """
    with databases.connect(group, database=SUPERUSER) as connection:
        _owner_and_database(connection, databases)
    _require_kept(databases, group)
    with superuser(databases, group, autocommit=False) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        connection.execute(
            "SET LOCAL citus.enable_ddl_propagation TO off; SET LOCAL client_min_messages TO warning"
        )
        connection.execute("CREATE EXTENSION IF NOT EXISTS citus")
        _require_whole_upgrade(connection, group)
        _passwords(connection, databases)
        if group == COORDINATOR and _digest_installed(connection) != _digest():
            connection.execute(_script().encode())
            comment = sql.Literal(f"pgherd's own; installed from {_digest()}")
            connection.execute(sql.SQL("COMMENT ON SCHEMA pgherd IS {}").format(comment))


def is_installed(databases: Databases, group: int) -> bool:
    """Whether this group has all that :func:`install` makes.

    :raises Unavailable: its primary does not answer
    """
    with databases.connect(group, database=SUPERUSER) as connection:
        query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
        if value(connection, query, [databases.database]) != databases.owner:
            return False
    with superuser(databases, group) as connection:
        return (
            value(connection, "SELECT 1 FROM pg_extension WHERE extname = 'citus'") == 1
            and _known_passwords(connection) >= _wanted_passwords(databases).items()
            and (group != COORDINATOR or _digest_installed(connection) == _digest())
        )


def _require_kept(databases: Databases, group: int) -> None:
    """:raises PgherdError: the extension is gone from a database that had it: made anew, it would know nothing"""
    with superuser(databases, group) as connection:
        if versions.of(connection).in_database is not None:
            return
    with superuser(databases) as desk:
        if versions.took_part(desk, group):
            raise PgherdError(versions.lost(group))


def _require_whole_upgrade(connection: Connection, group: int) -> None:
    if difference := versions.half_upgraded(versions.of(connection)):
        raise PgherdError(f"{group_name(group)} has {difference}")


def _owner_and_database(connection: Connection, databases: Databases) -> None:
    owner, name = sql.Identifier(databases.owner), sql.Identifier(databases.database)
    connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    if value(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", [databases.owner]) is None:
        password = sql.Literal(databases.credentials.owner)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(owner, password))
    if value(connection, "SELECT 1 FROM pg_database WHERE datname = %s", [databases.database]) is None:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner))


# passwords between nodes


def _wanted_passwords(databases: Databases) -> dict[str, str]:
    return {SUPERUSER: databases.credentials.superuser, databases.owner: databases.credentials.owner}


def _known_passwords(connection: Connection) -> set[tuple[str, str]]:
    rows = connection.execute(
        "SELECT rolename::text, authinfo FROM pg_dist_authinfo WHERE nodeid = %s", [_EVERY_NODE]
    ).fetchall()
    return {(role, str(conninfo.conninfo_to_dict(info).get("password", ""))) for role, info in rows}


def _passwords(connection: Connection, databases: Databases) -> None:
    known = _known_passwords(connection)
    for role, password in _wanted_passwords(databases).items():
        if (role, password) not in known:
            connection.execute(
                "DELETE FROM pg_dist_authinfo WHERE nodeid = %s AND rolename = %s", [_EVERY_NODE, role]
            )
            connection.execute(
                "INSERT INTO pg_dist_authinfo (nodeid, rolename, authinfo) VALUES (%s, %s, %s)",
                [_EVERY_NODE, role, conninfo.make_conninfo("", password=password)],
            )


# pgherd's own tables


def _script() -> str:
    folder = resources.files(__package__).joinpath("sql")
    return "\n".join(folder.joinpath(name).read_text("utf-8") for name in _FILES)


def _digest() -> str:
    return hashlib.sha256(_script().encode()).hexdigest()


def _digest_installed(connection: Connection) -> str | None:
    comment = value(connection, "SELECT obj_description(to_regnamespace('pgherd'), 'pg_namespace')")
    return comment.rpartition(" ")[2] if comment else None
