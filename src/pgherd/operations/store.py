"""The rows of operations: the only memory a long change has.

Everything is in the coordinator database, so whoever finds an unfinished row (this process, its successor, after a
failover of everything) can carry it on. Nothing is cached here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from pgherd.errors import BadInput
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Databases

ENDED = ("done", "failed", "cancelled", "superseded")


@dataclass(frozen=True)
class OperationRow:
    """One row of ``pgherd.operations``."""

    id: int
    kind: str
    phase: str
    from_segments: int | None
    to_segments: int | None
    parameters: Mapping[str, Any]
    message: str
    error: str | None
    cancel_requested: bool
    finished: bool


_OPERATION = (
    "SELECT id, kind, phase, from_segments, to_segments, parameters, message, error, cancel_requested,"
    " finished_at IS NOT NULL AS finished FROM pgherd.operations"
)


def request(
    databases: Databases,
    kind: str,
    *,
    from_segments: int | None = None,
    to_segments: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> int:
    """Write down a new operation; returns its id.

    :raises BadInput: another one is unfinished (there is one at a time)
    """
    with databases.connect(COORDINATOR) as connection:
        try:
            row = connection.execute(
                "INSERT INTO pgherd.operations (kind, from_segments, to_segments, parameters)"
                " VALUES (%s, %s, %s, %s) RETURNING id",
                [kind, from_segments, to_segments, Jsonb(dict(parameters or {}))],
            ).fetchone()
        except psycopg.errors.UniqueViolation as error:
            raise BadInput(
                f"another operation is running: wait for it, or cancel it, before a {kind}"
            ) from error
    assert row is not None
    return int(row[0])


def get(databases: Databases, operation: int) -> OperationRow | None:
    """One operation, or None if there is none of this id."""
    return _one(databases, f"{_OPERATION} WHERE id = %s", [operation])


def current(databases: Databases) -> OperationRow | None:
    """The unfinished operation, if there is one."""
    return _one(databases, f"{_OPERATION} WHERE finished_at IS NULL", [])


def _one(databases: Databases, sql: str, values: Sequence[Any]) -> OperationRow | None:
    with (
        databases.connect(COORDINATOR) as connection,
        connection.cursor(row_factory=class_row(OperationRow)) as cursor,
    ):
        return cursor.execute(sql, values).fetchone()


def request_cancel(databases: Databases, operation: int) -> None:
    """Ask the operation to stop at its next safe place."""
    with databases.connect(COORDINATOR) as connection:
        connection.execute(
            "UPDATE pgherd.operations SET cancel_requested = true WHERE id = %s AND finished_at IS NULL",
            [operation],
        )


def statuses(databases: Databases) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """``status.operation`` and ``status.lastOperation`` (DESIGN section 3)."""
    with (
        databases.connect(COORDINATOR) as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        rows = cursor.execute(
            "SELECT o.id, o.kind, o.phase, o.from_segments, o.to_segments, o.message, o.error, o.parameters,"
            " p.moves_total, p.moves_done, p.bytes_total, p.bytes_done, p.bytes_per_second, p.eta_seconds,"
            " o.started_at, o.finished_at"
            " FROM pgherd.operations o JOIN pgherd.operation_progress p ON p.operation_id = o.id"
            " ORDER BY o.finished_at IS NULL DESC, o.id DESC LIMIT 2"
        ).fetchall()
    rendered = [(row["finished_at"] is None, _status(row)) for row in rows]
    return (
        next((status for running, status in rendered if running), None),
        next((status for running, status in rendered if not running), None),
    )


def _status(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "kind": row["kind"],
        "phase": row["phase"],
        "fromSegments": row["from_segments"],
        "toSegments": row["to_segments"],
        "generation": row["parameters"].get("generation"),
        "movesTotal": row["moves_total"],
        "movesDone": row["moves_done"],
        "bytesTotal": row["bytes_total"],
        "bytesDone": row["bytes_done"],
        "bytesPerSecond": row["bytes_per_second"],
        "etaSeconds": row["eta_seconds"],
        "message": row["message"],
        "error": row["error"],
        "startedAt": row["started_at"].isoformat() if row["started_at"] else None,
        "finishedAt": row["finished_at"].isoformat() if row["finished_at"] else None,
    }
