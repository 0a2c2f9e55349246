"""The connections of a move, and waiting on them without going deaf.

The model. Whoever moves or cleans up a shard group holds it: in this process by an entry in a set, between processes
by an advisory lock of the session on the coordinator that later commits the decision (its *desk*). The server lets
that lock go only when the session has ended, so whoever gets it after a kill knows that no commit of the dead one is
still on its way.

Statements that may have to wait for other people's transactions run through :func:`patiently`: it asks the
operation again and again whether to go on, and can say who is in the way.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import pq, sql

from pgherd.engine.base import MoveControl, ShardGroupId
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import SUPERUSER, Credentials
from pgherd.postgres.connections import Connection, Databases

APPLICATION = "pgherd move"

_TIMEOUTS = (
    "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
    "transaction_timeout",
)  # fmt: skip


class BlockedError(PgherdError):
    """A deadline passed while others held what was needed."""


def connect(databases: Databases, group: int, *, owner: bool = False) -> Connection:
    """A session of a move: no timeouts but its own, and a server that soon notices if we are gone.

    :param owner: as the owner role. Whatever may run the user's own code (CHECKs, generated columns, index
        expressions) must not run as the superuser
    """
    user = databases.owner if owner else SUPERUSER
    connection = databases.connect(group, user=user, application_name=APPLICATION)
    connection.execute(
        "SELECT set_config(name, '0', false) FROM unnest(%s::text[]) AS name"
        " WHERE current_setting(name, true) IS NOT NULL",
        [list(_TIMEOUTS)],
    )
    connection.execute(
        "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3"
    )
    return connection


def connect_replication(databases: Databases, group: int) -> Connection:
    """A session that can make a replication slot with an exported snapshot.

    :raises Unavailable: no member takes writes right now
    """
    try:
        return psycopg.connect(
            autocommit=True,
            replication="database",
            application_name=APPLICATION,
            **databases.parameters(group),  # type: ignore[arg-type]
        )
    except psycopg.OperationalError as error:
        raise Unavailable(f"group {group} can't be reached for replication: {error}") from error


# Holding a shard group

_held: set[tuple[Credentials, ShardGroupId]] = set()
_held_lock = threading.Lock()


@contextmanager
def held_here(databases: Databases, group: ShardGroupId) -> Iterator[bool]:
    """Whether this thread is now the only one of this process that works on ``group``."""
    key = (databases.credentials, group)
    with _held_lock:
        free = key not in _held
        if free:
            _held.add(key)
    try:
        yield free
    finally:
        if free:
            with _held_lock:
                _held.discard(key)


def try_lock(desk: Connection, group: ShardGroupId) -> bool:
    """Hold ``group`` between processes, until the session ends or :func:`unlock`."""
    row = desk.execute(
        "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [f"pgherd move {group}"]
    ).fetchone()
    return row is not None and bool(row[0])


def unlock(desk: Connection, group: ShardGroupId) -> None:
    """The opposite of :func:`try_lock`."""
    desk.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [f"pgherd move {group}"])


def lock_with_deadline(desk: Connection, group: ShardGroupId, seconds: float) -> None:
    """Hold ``group``, waiting for a session that is about to end.

    :raises Unavailable: somebody else keeps holding it
    """
    deadline = time.monotonic() + seconds
    while not try_lock(desk, group):
        if time.monotonic() > deadline:
            raise Unavailable(f"shard group {group} is being moved or cleaned up by another process")
        time.sleep(0.02)


# Waiting

Watch = Callable[[float], None]
"""called every ``interval`` seconds of waiting, with the seconds waited; may raise to give up"""


def patiently(
    connection: Connection, statement: sql.Composable | str, watch: Watch, interval: float = 0.1
) -> list[pq.abc.PGresult]:
    """Run ``statement``, which may take long, calling ``watch`` meanwhile. If that raises, the statement is cancelled.

    :raises psycopg.Error: as ``connection.execute`` would
    """
    query = statement.as_bytes(connection) if isinstance(statement, sql.Composable) else statement.encode()
    pgconn = connection.pgconn
    pgconn.send_query(query)
    started = time.monotonic()
    try:
        while not _answered(pgconn, interval):
            watch(time.monotonic() - started)
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            connection.cancel_safe(timeout=3)
            _results(pgconn)
        raise
    results = _results(pgconn)
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
    return results


def _answered(pgconn: pq.abc.PGconn, seconds: float) -> bool:
    """Whether the whole answer is there, waiting for it that long."""
    deadline = time.monotonic() + seconds
    while pgconn.flush() or pgconn.is_busy():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        select.select([pgconn.socket], [], [], left)
        try:
            pgconn.consume_input()
        except psycopg.Error:
            return True  # get_result tells what happened
    return True


def _results(pgconn: pq.abc.PGconn) -> list[pq.abc.PGresult]:
    results = []
    while (result := pgconn.get_result()) is not None:
        results.append(result)
    if pgconn.status == pq.ConnStatus.BAD:
        raise psycopg.OperationalError("the server closed the connection")
    return results


def deadline_watch(seconds: float, what: str) -> Watch:
    """Gives up after ``seconds``.

    :raises BlockedError: then
    """

    def watch(waited: float) -> None:
        if waited > seconds:
            raise BlockedError(f"{what} took longer than {seconds * 1000:.0f} ms")

    return watch


def polite_watch(control: MoveControl, describe: Callable[[], str], then: Watch | None = None) -> Watch:
    """Asks the operation whether to go on; from the first second on says every second what is waited for."""
    said = 0.0

    def watch(waited: float) -> None:
        nonlocal said
        control.checkpoint("waiting")
        if waited - said >= 1:
            said = waited
            control.report(describe())
            if then:
                then(waited)

    return watch


@contextmanager
def unavailable_if_lost(what: str) -> Iterator[None]:
    """Turn a lost connection, a full disk and the like into :class:`Unavailable`."""
    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise Unavailable(f"{what}: no disk space left ({_first_line(error)})") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise Unavailable(f"{what}: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise PgherdError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
