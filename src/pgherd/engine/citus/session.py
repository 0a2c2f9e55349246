"""Sessions of ours on the nodes of a Citus cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pgherd.model.topology import COORDINATOR, Endpoint
from pgherd.postgres.connections import Connection, Databases

LOCK_TIMEOUT = "10s"
_ENDLESS = (
    "SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ('statement_timeout',"
    " 'transaction_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout')"
)
"""what users declare against their own long statements would end ours, at each attempt anew"""


def superuser(
    databases: Databases,
    group: int = COORDINATOR,
    *,
    autocommit: bool = True,
    application_name: str = "pgherd",
    lock_timeout: str = LOCK_TIMEOUT,
) -> Connection:
    """A superuser's connection that finds PostgreSQL's and Citus's own functions only, unless told a schema, and sees
    shards as the tables they are.

    :param lock_timeout: while Patroni switches a segment over, ``pg_dist_node`` is locked; whoever waits is in a loop
        that has other things to do
    :raises Unavailable: the group's primary does not answer
    """
    connection = databases.connect(group, autocommit=autocommit, application_name=application_name)
    connection.execute(
        "SET search_path TO pg_catalog, pg_temp; SET citus.override_table_visibility TO off;"
        f"SET lock_timeout TO '{lock_timeout}'; {_ENDLESS}".encode()
    )
    if not autocommit:
        connection.commit()
    return connection


def only(databases: Databases, group: int, endpoint: Endpoint) -> Databases:
    """The same, with one member of the group alone."""
    return replace(databases, addresses=lambda: {group: [endpoint]})


def value(connection: Connection, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
    """The first column of the first row, or None."""
    row = connection.execute(query.encode(), values or None).fetchone()
    return None if row is None else row[0]
