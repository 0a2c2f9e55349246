"""The steps of one operation, as rows: what is to be done, what was done, how far the present step is.

Essential writes (a step begins, ends, is planned) fail loudly: the runner waits and goes on from the rows. Progress
is only told, at most a few times a second, and never stops anything. One session, opened again when it is lost, so
that a failover of the coordinator costs one retry.

Plans and ends are durable when their call returns. That a step began or ended need not be: a failover may forget it,
and then the step finds its work done.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgherd.errors import Unavailable
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

OPEN = ("pending", "running")
"""states of a step that is still to be done"""

TELL_EVERY = 0.25
"""seconds between two writes of progress"""

FIRST_MOVE = 1000
"""number of the first move; the steps before it come from the course, those after from :data:`TAIL` on"""

TAIL = 1_000_000
"""number of the first step after the moves"""


@dataclass(frozen=True)
class NewStep:
    """A step to be written down."""

    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    bytes_total: int = 0


@dataclass(frozen=True)
class Step:
    """One row of ``pgherd.operation_steps``."""

    step: int
    kind: str
    detail: Mapping[str, Any]
    state: str
    message: str
    bytes_total: int


class Journal:
    """The steps of one operation. May be used by several threads."""

    def __init__(self, databases: Databases, operation: int) -> None:
        self.operation = operation
        self._databases = databases
        self._connection: Connection | None = None
        self._lock = threading.RLock()
        self._told = 0.0

    def close(self) -> None:
        """End the session."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """The session, for the length of a ``with`` block.

        :raises Unavailable: it was lost, or could not be opened
        """
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._databases.connect(
                        COORDINATOR, application_name="pgherd operation"
                    )
                yield self._connection
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                self.close()
                raise Unavailable(f"the coordinator went away: {str(error).strip()}") from error

    @contextmanager
    def durable(self) -> Iterator[Connection]:
        """A transaction that is on the standby too when the block has ended."""
        with self.session() as session, session.transaction():
            session.execute("SET LOCAL synchronous_commit TO DEFAULT")
            yield session

    # the operation's own row

    def begin(self, head: Sequence[NewStep], tail: Sequence[NewStep]) -> None:
        """Write down the first steps, unless that has been done."""
        with self.durable() as session:
            session.execute("SELECT FROM pgherd.operations WHERE id = %s FOR UPDATE", [self.operation])
            if not self._exists(session):
                self._insert(session, 1, head)
                self._insert(session, TAIL, tail)
            session.execute(
                "UPDATE pgherd.operations SET started_at = coalesce(started_at, clock_timestamp()),"
                " phase = CASE phase WHEN 'requested' THEN 'preparing' ELSE phase END WHERE id = %s",
                [self.operation],
            )

    def is_cancel_requested(self) -> bool:
        """Whether somebody called the operation off (or its row is gone)."""
        with self.session() as session:
            row = session.execute(
                "SELECT cancel_requested FROM pgherd.operations WHERE id = %s", [self.operation]
            ).fetchone()
        return row is None or bool(row[0])

    def set_phase(self, phase: str, message: str | None = None) -> None:
        """Change the phase (and the message); no write if they are so already."""
        with self.session() as session:
            session.execute(
                "UPDATE pgherd.operations SET phase = %(phase)s, message = coalesce(%(message)s, message)"
                " WHERE id = %(id)s AND finished_at IS NULL AND (phase, message) IS DISTINCT FROM"
                " (%(phase)s, coalesce(%(message)s, message))",
                {"phase": phase, "message": message, "id": self.operation},
            )

    def end(self, phase: str, message: str, error: str | None = None) -> None:
        """The operation is over. Steps that were not done any more are marked so."""
        with self.durable() as session:
            session.execute(
                "UPDATE pgherd.operation_steps SET state = CASE state WHEN 'running' THEN 'undone' ELSE 'skipped' END,"
                " finished_at = clock_timestamp() WHERE operation_id = %s AND state = ANY(%s)",
                [self.operation, list(OPEN)],
            )
            session.execute(
                "UPDATE pgherd.operations SET phase = %s, message = %s, error = %s, finished_at = clock_timestamp()"
                " WHERE id = %s AND finished_at IS NULL",
                [phase, message, error, self.operation],
            )

    def tell(self, message: str) -> None:
        """Say what is going on, if there has been silence for a moment."""
        with contextlib.suppress(Unavailable, psycopg.Error):
            with self._lock:
                if time.monotonic() - self._told < TELL_EVERY:
                    return
                self._told = time.monotonic()
            with self.session() as session:
                session.execute(
                    "UPDATE pgherd.operations SET message = %s WHERE id = %s AND finished_at IS NULL",
                    [message, self.operation],
                )

    # steps

    def open_steps(self) -> list[Step]:
        """What is still to be done, in order."""
        return self._read("AND state = ANY(%(open)s)")

    def steps(self, kind: str) -> list[Step]:
        """All steps of a kind, in order."""
        return self._read("AND kind = %(kind)s", kind)

    def _read(self, condition: str, kind: str = "") -> list[Step]:
        with self.session() as session, session.cursor(row_factory=class_row(Step)) as cursor:
            return cursor.execute(
                "SELECT step, kind, detail, state, message, bytes_total FROM pgherd.operation_steps"
                f" WHERE operation_id = %(id)s {condition} ORDER BY step".encode(),
                {"id": self.operation, "open": list(OPEN), "kind": kind},
            ).fetchall()

    def start(self, step: Step, message: str) -> None:
        """The step is being done."""
        self._write(
            "state = 'running', message = %(message)s, bytes_done = 0,"
            " started_at = coalesce(started_at, clock_timestamp())",
            step,
            message,
        )

    def finish(self, step: Step, message: str, state: str = "done") -> None:
        """The step is done; ``message`` says what it did."""
        self._write(
            "state = %(state)s, message = %(message)s, finished_at = clock_timestamp(),"
            " bytes_done = CASE %(state)s WHEN 'done' THEN bytes_total ELSE 0 END",
            step,
            message,
            state,
        )

    def postpone(self, step: Step, message: str) -> None:
        """The step was undone and will be done again."""
        self._write("state = 'pending', message = %(message)s, bytes_done = 0", step, message)

    def progress(self, step: Step, message: str, bytes_done: int | None) -> None:
        """How far the step is. Best effort."""
        with contextlib.suppress(Unavailable, psycopg.Error):
            self._write(
                "message = %(message)s, bytes_done = least(bytes_total, coalesce(%(bytes)s, bytes_done))",
                step,
                message,
                bytes_done=bytes_done,
            )

    def finish_plan(
        self, step: Step, message: str, moves: Sequence[NewStep], again: Sequence[str] = ()
    ) -> None:
        """The step is done and gave these moves; one transaction.

        :param again: kinds of steps that have to be done (again) after them
        """
        with self.durable() as session:
            row = session.execute(
                "SELECT coalesce(max(step) + 1, %s) FROM pgherd.operation_steps"
                " WHERE operation_id = %s AND kind = 'move'",
                [FIRST_MOVE, self.operation],
            ).fetchone()
            assert row is not None
            self._insert(session, int(row[0]), moves)
            self.finish(step, message)
            session.execute(
                "UPDATE pgherd.operation_steps SET state = 'pending' WHERE operation_id = %s AND kind = ANY(%s)",
                [self.operation, list(again)],
            )

    def _write(
        self, change: str, step: Step, message: str, state: str | None = None, bytes_done: int | None = None
    ) -> None:
        with self.session() as session:
            session.execute(
                f"UPDATE pgherd.operation_steps SET {change} WHERE operation_id = %(id)s AND step = %(step)s".encode(),
                {
                    "id": self.operation,
                    "step": step.step,
                    "message": message,
                    "state": state,
                    "bytes": bytes_done,
                },
            )

    def _exists(self, session: Connection) -> bool:
        return (
            session.execute(
                "SELECT FROM pgherd.operation_steps WHERE operation_id = %s LIMIT 1", [self.operation]
            ).fetchone()
            is not None
        )

    def _insert(self, session: Connection, first: int, steps: Sequence[NewStep]) -> None:
        with session.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO pgherd.operation_steps (operation_id, step, kind, detail, bytes_total)"
                " VALUES (%s, %s, %s, %s, %s)",
                [
                    (self.operation, first + n, step.kind, Jsonb(dict(step.detail)), step.bytes_total)
                    for n, step in enumerate(steps)
                ],
            )
