"""The demo's own instruments: if they could not see a loss, the demo would prove nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from bench.demo.questions import QUESTIONS, ask, difference
from bench.flights import create_tables, load
from bench.support import Connection, PlainPostgres, await_true, percentile
from bench.workload import Journal, Workload, Write, audit, is_explained, stalls

pytestmark = pytest.mark.local

STAND_IN = """
    CREATE FUNCTION create_distributed_table(text, text, colocate_with text DEFAULT '') RETURNS void
    BEGIN ATOMIC END"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainPostgres]:
    plain = PlainPostgres(tmp_path_factory.mktemp("plain")).start()
    with closing(plain.connect()) as connection:
        connection.execute(STAND_IN)
    yield plain
    plain.stop()


@pytest.fixture
def connection(server: PlainPostgres) -> Iterator[Connection]:
    with closing(server.connect()) as found:
        yield found


def wait_for_writes(workload: Workload, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(workload.journal.writes) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failover_lasts_until_the_longest_silence_ends() -> None:
    journal = Journal()
    for key, ended in ((1, 9.9), (1, 10.02), (2, 10.5), (1, 11.4), (1, 11.5), (1, 14.5)):
        journal.writes.append(Write(key, len(journal.writes), ended - 0.01, ended, 1, 0.0))
    assert journal.served_again_after(10.0, {1}) == pytest.approx(1.4), "not what a dying session said"


def test_writers_survive_a_crash_and_the_audit_finds_every_row_and_every_loss(server: PlainPostgres) -> None:
    with closing(server.connect()) as connection:
        dsn = connection.info.dsn
        workload = Workload(dsn, writers=4, pause_seconds=0.001)
        workload.prepare(connection)
    workload.start()
    wait_for_writes(workload, 50)
    os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    killed = time.monotonic()
    await_true(server.restart, 20, "the crashed server's last process to be gone")
    assert workload.journal.first_write_since(killed, workload.keys, within=20) > 0
    wait_for_writes(workload, len(workload.journal.writes) + 50)
    workload.stop()
    writes = workload.journal.writes
    assert workload.journal.unexplained() == []
    assert workload.journal.refusals
    with closing(server.connect()) as connection:
        assert audit(connection, writes).is_clean
        victim = writes[7]
        connection.execute("DELETE FROM entry WHERE key = %s AND id = %s", (victim.key, victim.id))
        found = audit(connection, writes)
        assert (found.lost, found.wrong_counters, found.duplicated) == (1, 1, 0)
        connection.execute("ALTER TABLE entry DROP CONSTRAINT entry_pkey")
        connection.execute("INSERT INTO entry SELECT * FROM entry WHERE key = %s", (writes[0].key,))
        assert audit(connection, writes).duplicated >= 1


def test_errors_are_explained_only_by_what_a_reconnect_cures(connection: Connection) -> None:
    with pytest.raises(psycopg.Error) as wrong:
        connection.execute("SELECT * FROM no_such_table")
    assert not is_explained(wrong.value)
    with pytest.raises(psycopg.Error) as shut_down:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert is_explained(shut_down.value)


def test_every_question_has_an_answer_and_a_wrong_row_is_seen(connection: Connection) -> None:
    create_tables(connection, distributed=False)
    assert load(connection) == 336_776 + 3_322 + 26_115 + 16 + 1_458
    assert connection.execute("SELECT count(*) FROM flights WHERE tailnum = ''").fetchone() == (2512,)
    for question in QUESTIONS:
        answer = ask(connection, question)
        assert answer, question.title
        assert difference(answer[::-1], answer) == ""
        assert difference(answer[:-1], answer).startswith("1 rows missing, 0 too many")
        assert difference([*answer, answer[0]], answer).startswith("0 rows missing, 1 too many")


def test_percentiles_and_stalls() -> None:
    assert percentile([], 50) == 0
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(range(1, 101), 99) == 99
    assert stalls([], []).max == 0
