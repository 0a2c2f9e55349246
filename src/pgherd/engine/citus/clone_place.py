"""A copy's place among its source's standbys, as Citus sees it.

Before it takes a copy, Citus looks for the copy's connection among the source's standbys and refuses one on which
commits wait. It goes by the address, and looks at the first that has it: where all members share one machine this is
mostly the source's own synchronous standby. So an idle connection of ours takes a place before it for that moment: what
Citus asks (is the copy synchronous?) is asked here of the copy itself, by its slot.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psycopg
from psycopg import sql

from pgherd.engine.citus.session import only, superuser, value
from pgherd.errors import Unavailable
from pgherd.model.topology import Endpoint, group_name
from pgherd.postgres.connections import Connection, Databases

SECONDS = 20.0
"""how long it may take to get in front"""
SYNCHRONOUS = ("sync", "quorum")

_SEEN = "SELECT sync_state, state FROM pg_stat_replication WHERE {}"
"""as Citus asks it: which row comes first depends on the query"""


def slot(group: int) -> str:
    """The replication slot on the source that keeps what the copy still needs."""
    return f"pgherd_clone_{group}"


def leader(databases: Databases, group: int) -> Endpoint:
    """Which of the copy's members follows the source; the others follow that one.

    :raises Unavailable: none does
    """
    for endpoint in databases.addresses().get(group, ()):
        with (
            suppress(Unavailable, psycopg.OperationalError),
            only(databases, group, endpoint).connect(group, read_only=True) as member,
        ):
            if value(member, "SELECT slot_name FROM pg_stat_wal_receiver") == slot(group):
                return endpoint
    raise Unavailable(f"no member of {group_name(group)} follows its source: trying again")


@contextmanager
def in_front(databases: Databases, group: int, source: int, host: str) -> Iterator[None]:
    """While this lasts, Citus sees that the copy is not synchronous.

    :param host: of the member that follows the source
    :raises Unavailable: it is, or does not stream, or no place in front is to be had
    """
    with ExitStack() as places, superuser(databases, source) as connection:
        _require_asynchronous(connection, group)
        deadline = time.monotonic() + SECONDS
        while _first_is_synchronous(connection, host):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{group_name(group)} can't be told from a synchronous standby: trying again"
                )
            _let_go(connection)
            places.enter_context(_place(databases, source))
        yield


def _require_asynchronous(connection: Connection, group: int) -> None:
    state = value(
        connection,
        "SELECT r.sync_state FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
        " WHERE s.slot_name = %s",
        [slot(group)],
    )
    if state is None or state in SYNCHRONOUS:
        problem = "does not follow its source" if state is None else "is a synchronous standby of its source"
        raise Unavailable(f"{group_name(group)} {problem}: trying again")


def _first_is_synchronous(connection: Connection, host: str) -> bool:
    known = {"application_name": host, "client_hostname": host, "client_addr": _address(host)}
    which = sql.SQL(" OR ").join(
        sql.SQL("{} = {}").format(sql.Identifier(column), sql.Literal(text)) for column, text in known.items()
    )
    row = connection.execute(sql.SQL(_SEEN).format(which)).fetchone()
    return row is not None and row[0] in SYNCHRONOUS


def _address(host: str) -> str:
    with suppress(OSError):
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    return "0.0.0.0"  # nobody comes from there


def _let_go(connection: Connection) -> None:
    """The synchronous standbys connect anew, which takes them a moment."""
    rows = connection.execute(
        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_replication WHERE sync_state = ANY(%s)",
        [list(SYNCHRONOUS)],
    ).fetchall()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline and value(
        connection, "SELECT count(*) FROM pg_stat_replication WHERE pid = ANY(%s)", [[row[0] for row in rows]]
    ):
        time.sleep(0.001)


@contextmanager
def _place(databases: Databases, source: int) -> Iterator[None]:
    """A connection that counts as a standby's and asks for nothing."""
    parameters = databases.parameters(source)
    with psycopg.connect(
        autocommit=True,
        application_name="pgherd place",
        replication="database",
        **parameters,  # type: ignore[arg-type]
    ):
        yield
