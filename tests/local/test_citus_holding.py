"""Writers that are kept out until a decision has reached their node, whatever becomes of who decided.

Plain PostgreSQL: a lock of ours stands for those on shards, a row for the decision.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psycopg
import pytest
from psycopg import sql

from pgherd.engine.citus import move
from pgherd.engine.citus.holding import Hold
from pgherd.engine.citus.session import superuser
from pgherd.errors import Unavailable
from pgherd.postgres.connections import Connection
from tests.support.home import wait_for
from tests.support.servers import Herd, running_herd

pytestmark = pytest.mark.local

SHOWN = sql.SQL("EXISTS (SELECT FROM public.decided)")
LOCK = "SELECT pg_advisory_xact_lock(1)"
CHILD = """
import sys, time, psycopg
from psycopg import sql
from pgherd.engine.citus.holding import Hold
from pgherd.engine.citus.session import superuser
session = psycopg.connect(sys.argv[1])
session.execute("SELECT pg_advisory_xact_lock(1)")
Hold([session], sql.SQL("EXISTS (SELECT FROM public.decided)")).start()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("herd"), segments=1) as herd:
        yield herd


@pytest.fixture
def desk(server: Herd) -> Iterator[Connection]:
    with server.superuser(1) as connection:
        connection.execute("DROP TABLE IF EXISTS public.decided; CREATE TABLE public.decided ()")
        yield connection


def is_waiting(desk: Connection) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return desk.execute(query).fetchone() == (1,)


@contextmanager
def session_with_lock(server: Herd) -> Iterator[Connection]:
    with server.superuser(1) as session:
        session.autocommit = False
        session.execute(LOCK)
        yield session


def holds(desk: Connection) -> int:
    row = desk.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchone()
    assert row is not None
    return int(row[0])


def test_a_writer_waits_though_who_decides_is_killed(server: Herd, desk: Connection) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.superuser(1).info.dsn + " password=super-secret"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with ThreadPoolExecutor(max_workers=1) as pool, server.superuser(1) as other:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        written = pool.submit(other.execute, LOCK.encode())
        wait_for(lambda: is_waiting(desk), "the writer waits", 30)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        # A session that does nothing ends at once; this is a hundred times as long.
        with suppress(TimeoutError):
            written.result(2)
        assert is_waiting(desk)
        desk.execute("INSERT INTO public.decided DEFAULT VALUES")
        written.result(30)
    child.stdout.close()
    wait_for(lambda: holds(desk) == 0, "nobody holds it any more", 30)


def test_waiting_ends_when_the_decision_is_to_be_seen_at_every_node(server: Herd, desk: Connection) -> None:
    with session_with_lock(server) as session:
        held = Hold([session], SHOWN)
        held.start()

        def nudge() -> None:
            desk.execute("INSERT INTO public.decided DEFAULT VALUES")

        held.wait(nudge)
        assert holds(desk) == 0


def test_a_node_that_goes_meanwhile_is_not_waited_for(server: Herd, desk: Connection) -> None:
    with session_with_lock(server) as session:
        held = Hold([session], SHOWN)
        held.start()
        desk.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
        held.wait(lambda: None)
        assert session.closed


def test_a_session_that_can_not_wait_is_told_of_before_anything_is_decided(
    server: Herd, desk: Connection
) -> None:
    with session_with_lock(server) as session:
        held = Hold([session], sql.SQL("no such thing"))
        with pytest.raises(Unavailable):
            held.start()
        held.release()
        assert holds(desk) == 0


def test_where_nothing_was_decided_writers_go_on_at_once(server: Herd, desk: Connection) -> None:
    with session_with_lock(server) as session:
        held = Hold([session], SHOWN)
        held.start()
        held.release()
        assert holds(desk) == 0


def test_a_session_outlives_every_limit_on_statements(server: Herd, desk: Connection) -> None:
    with session_with_lock(server) as session:
        session.execute(
            "SET LOCAL statement_timeout TO '50ms'; SET LOCAL client_connection_check_interval TO '10ms'"
        )
        held = Hold([session], SHOWN)
        held.start()
        with suppress(psycopg.errors.LockNotAvailable):
            desk.execute("SET lock_timeout TO '300ms'; SELECT pg_advisory_lock(1)")
        assert holds(desk) == 1
        desk.execute("INSERT INTO public.decided DEFAULT VALUES")
        held.wait(lambda: None)


def standbys(desk: Connection, names: str) -> None:
    desk.execute(f"ALTER SYSTEM SET synchronous_standby_names TO '{names}'".encode())
    desk.execute("SELECT pg_reload_conf()")


def test_a_predecessor_that_has_committed_and_waits_for_its_standby_is_waited_for(
    server: Herd, desk: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended there it would go on to the second phase, with what no other disk has."""
    monkeypatch.setattr(move, "END_SECONDS", 1.0)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    standbys(desk, "nobody")
    try:
        with (
            server.databases.connect(1, application_name="pgherd split 9") as predecessor,
            ThreadPoolExecutor() as pool,
        ):
            told: list[str] = []
            predecessor.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
            over = threading.Event()

            def commit() -> None:
                while not over.is_set():  # the server takes a moment to know that it has a standby
                    predecessor.execute("INSERT INTO public.decided DEFAULT VALUES")

            committed = pool.submit(commit)
            try:
                wait_for(lambda: desk.execute(waits).fetchone() == (1,), "it waits for its standby", 10)
                with pytest.raises(Unavailable, match="an earlier session of 'pgherd split 9' does not end"):
                    move.end_predecessor(desk, "pgherd split 9")
            finally:
                over.set()
                standbys(desk, "")
            committed.result(10)
            assert told == []
        move.end_predecessor(desk, "pgherd split 9")
    finally:
        standbys(desk, "")


def test_what_users_declare_against_long_statements_does_not_end_ours(server: Herd, desk: Connection) -> None:
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
    try:
        for name in names:
            desk.execute(f"ALTER SYSTEM SET {name} TO '200ms'".encode())
        desk.execute("SELECT pg_reload_conf()")
        wait_for(lambda: desk.execute("SHOW statement_timeout").fetchone() == ("200ms",), "it is known", 10)
        with superuser(server.databases, 1, autocommit=False) as ours:
            assert ours.execute("SELECT count(*) FROM pg_sleep(0.5)").fetchone() == (1,)
            assert [ours.execute(f"SHOW {name}".encode()).fetchone() for name in names] == [("0",)] * 3
    finally:
        with superuser(server.databases, 1) as ours:
            for name in names:
                ours.execute(f"ALTER SYSTEM RESET {name}".encode())
            ours.execute("SELECT pg_reload_conf()")
