"""One database connection at a time, to the primary of a group.

Connections name every member of a group and ask for the one that takes writes (``target_session_attrs``), so the
same call is right before and after a failover. Addresses are asked for at each call, never remembered: ports and
members may have changed since the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import conninfo

from pgherd.errors import Unavailable
from pgherd.model.topology import REPLICATION_USER, SUPERUSER, Credentials, Endpoints

Connection = psycopg.Connection[tuple[Any, ...]]
_PASSING = ("08", "57P", "40", "55P03")
"""SQLSTATEs: no connection, a server that ends or begins, and another transaction that was in the way"""


def is_passing(error: Exception) -> bool:
    """Whether an error only says that a server can't be asked now: worth another try, nothing is known to be wrong.

    To psycopg missing files, full disks and lack of memory are operational errors, too.
    """
    if isinstance(error, psycopg.OperationalError):
        return error.sqlstate is None or error.sqlstate.startswith(_PASSING)
    return isinstance(error, Unavailable)


@dataclass(frozen=True)
class Databases:
    """How to reach every group of one cluster.

    :param database: the distributed database (its owner role has the same name)
    :param credentials: the cluster's passwords
    :param addresses: gives, at each call, the members' endpoints by group id
    :param options: libpq options of every connection, besides addresses and passwords
    :param members_options: those with which members reach one another; None: the same
    """

    database: str
    credentials: Credentials
    addresses: Callable[[], Mapping[int, Endpoints]]
    connect_timeout: int = 3
    options: Mapping[str, str] = field(default_factory=dict)
    members_options: Mapping[str, str] | None = None

    @property
    def between(self) -> Mapping[str, str]:
        """The options with which members reach one another."""
        return self.options if self.members_options is None else self.members_options

    @property
    def owner(self) -> str:
        """The role that owns the distributed database."""
        return self.database

    def parameters(
        self, group: int, *, user: str = SUPERUSER, database: str | None = None, read_only: bool = False
    ) -> dict[str, str]:
        """libpq parameters for the members of ``group``, password included.

        :param read_only: prefer a standby
        :raises Unavailable: the group has no members
        """
        endpoints = self.addresses().get(group)
        if not endpoints:
            raise Unavailable(f"group {group} has no members")
        passwords = {
            SUPERUSER: self.credentials.superuser,
            REPLICATION_USER: self.credentials.replication,
            self.owner: self.credentials.owner,
        }
        return {
            "host": ",".join(endpoint.host for endpoint in endpoints),
            "port": ",".join(str(endpoint.port) for endpoint in endpoints),
            "user": user,
            "password": passwords[user],
            "dbname": database or self.database,
            "target_session_attrs": "prefer-standby" if read_only else "read-write",
            "connect_timeout": str(self.connect_timeout),
            "keepalives_idle": "5",
            "keepalives_interval": "2",
            "keepalives_count": "3",
            **self.options,
        }

    def conninfo(self, group: int, **which: Any) -> str:
        """The same as one libpq string."""
        return conninfo.make_conninfo("", **self.parameters(group, **which))

    def connect(
        self,
        group: int,
        *,
        user: str = SUPERUSER,
        database: str | None = None,
        autocommit: bool = True,
        read_only: bool = False,
        application_name: str = "pgherd",
    ) -> Connection:
        """A new connection to the primary of ``group``; use it as a context manager, it closes at the end.

        :raises Unavailable: no member takes writes right now
        """
        parameters = self.parameters(group, user=user, database=database, read_only=read_only)
        try:
            return psycopg.connect(
                autocommit=autocommit,
                application_name=application_name,
                **parameters,  # type: ignore[arg-type]
            )
        except psycopg.OperationalError as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no answer"
            raise Unavailable(f"group {group} can't be reached: {reason}") from error


def system_of(connection: Connection) -> str:
    """The identifier of the database system that a connection leads to; a physical copy has its source's."""
    row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    assert row is not None, "it is no set of rows that could be empty"
    return str(row[0])
