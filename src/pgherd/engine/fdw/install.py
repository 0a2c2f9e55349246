"""Makes a server ready for the engine: roles, the database, and the objects in ``sql/``, in an order that rests.

Everything is idempotent and safe to run at each start. The SQL files are templates of two role names, the owner's and
the agent's (``@owner@`` as an identifier, ``@owner_literal@`` as a string; likewise ``@agent@``). They run only when
they differ from what is installed: a digest of their text is kept in the database itself.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from psycopg import sql

from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

COORDINATOR_FILES = (
    "../../catalog.sql",
    "catalog.sql",
    "remote.sql",
    "shape.sql",
    "rules.sql",
    "follow.sql",
    "reference.sql",
    "distribute.sql",
    "admission.sql",
    "coordinator_placement.sql",
    "interface.sql",
    "helpers.sql",
    "repair.sql",
    "events.sql",
)
SEGMENT_FILES = ("segment.sql", "segment_shards.sql", "shape.sql", "segment_checks.sql")

AGENT = "pgherd_agent"
"""the role that owns the functions which act for others: it may do what the owner may, cannot log in, and the owner
cannot change what belongs to it"""

_LOCK = 0x70676865
"""advisory lock: one installer at a time"""


def install(databases: Databases, group: int) -> bool:
    """Bring one group's primary up to date: owner role, database, extension, SQL objects.

    :return: whether anything was out of date
    :raises Unavailable: the group's primary does not answer
    """
    with databases.connect(group, database="postgres") as connection:
        _owner_and_database(connection, databases)
    with databases.connect(group, autocommit=False) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        # No event triggers: these files may be upgrading the very functions behind them. And nothing by chance from a
        # schema that others can write to.
        connection.execute(
            "SET LOCAL session_replication_role = replica; SET LOCAL client_min_messages = warning;"
            "SET LOCAL search_path TO pg_catalog, pg_temp"
        )
        text = script(COORDINATOR_FILES if group == COORDINATOR else SEGMENT_FILES, databases.owner)
        if _digest_installed(connection) == _digest(text):
            return False
        if group == COORDINATOR:
            connection.execute("CREATE SCHEMA IF NOT EXISTS pgherd")
            connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA pgherd")
        connection.execute(text.encode())
        _remember(connection, _digest(text))
    return True


def is_installed(databases: Databases, group: int) -> bool:
    """Whether this group has the owner, the database and this version's SQL objects.

    :raises Unavailable: the group's primary does not answer
    """
    with databases.connect(group, database="postgres") as connection:
        if (
            connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [databases.database]
            ).fetchone()
            is None
        ):
            return False
    with databases.connect(group) as connection:
        files = COORDINATOR_FILES if group == COORDINATOR else SEGMENT_FILES
        return _digest_installed(connection) == _digest(script(files, databases.owner))


def superuser(databases: Databases, group: int, *, autocommit: bool = True) -> Connection:
    """A superuser's connection that finds PostgreSQL's own functions and operators only, unless told a schema: in a
    database that belongs to somebody else, that somebody may have made better-fitting ones.

    :raises Unavailable: the group's primary does not answer
    """
    connection = databases.connect(group, autocommit=autocommit)
    connection.execute("SET search_path TO pg_catalog, pg_temp")
    if not autocommit:
        connection.commit()
    return connection


def script(files: tuple[str, ...], owner: str) -> str:
    """The SQL files as one script, with the owner's name filled in."""
    folder = resources.files(__package__).joinpath("sql")
    text = "\n".join(folder.joinpath(name).read_text("utf-8") for name in files)
    identifier, literal = sql.Identifier(owner).as_string(), sql.Literal(owner).as_string()
    quoted = sql.Literal(identifier).as_string()
    agent = sql.Identifier(AGENT).as_string()
    text = text.replace("@agent_literal@", sql.Literal(AGENT).as_string()).replace("@agent@", agent)
    return (
        text.replace("@owner_literal@", literal).replace("'@owner@'", quoted).replace("@owner@", identifier)
    )


def _owner_and_database(connection: Connection, databases: Databases) -> None:
    owner, name = sql.Identifier(databases.owner), sql.Identifier(databases.database)
    connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [databases.owner]).fetchone() is None:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                owner, sql.Literal(databases.credentials.owner)
            )
        )
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [AGENT]).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(AGENT)))
    connection.execute(sql.SQL("GRANT {} TO {}").format(owner, sql.Identifier(AGENT)))
    if (
        connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [databases.database]).fetchone()
        is None
    ):
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_installed(connection: Connection) -> str | None:
    row = connection.execute("SELECT obj_description(to_regnamespace('pgherd'), 'pg_namespace')").fetchone()
    comment = row[0] if row else None
    return comment.rpartition(" ")[2] if comment else None


def _remember(connection: Connection, digest: str) -> None:
    comment = sql.Literal(f"pgherd's own; installed from {digest}")
    connection.execute(sql.SQL("COMMENT ON SCHEMA pgherd IS {}").format(comment))
