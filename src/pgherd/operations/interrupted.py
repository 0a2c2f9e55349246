"""What an operation that was broken off leaves to its successor.

A segment that was being filled, or emptied, when the wish changed is neither old nor empty. The next operation treats
it as new, so that it ends with its fair share.
"""

from __future__ import annotations

from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Databases


def left_by_the_last(databases: Databases, operation: int) -> set[int]:
    """The segments that the operation before ``operation`` was filling or emptying when it was broken off."""
    with databases.connect(COORDINATOR) as connection:
        rows = connection.execute(
            "SELECT jsonb_array_elements_text(s.detail->'segments')::int FROM pgherd.operation_steps s"
            " WHERE s.kind = 'plan' AND s.detail ? 'segments' AND s.operation_id = ("
            "   SELECT id FROM pgherd.operations WHERE id < %s AND kind IN ('expand', 'shrink')"
            "   AND phase IN ('cancelled', 'superseded', 'failed') AND id = ("
            "     SELECT max(id) FROM pgherd.operations WHERE id < %s))",
            [operation, operation],
        ).fetchall()
    return {row[0] for row in rows}
