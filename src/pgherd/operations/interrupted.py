"""What operations that were broken off leave to their successor.

A segment that was being filled, or emptied, when the wish changed is neither old nor empty. The next operation treats
it as new, so that it ends with its fair share.
"""

from __future__ import annotations

from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Databases


def left_unfinished(databases: Databases, operation: int) -> set[int]:
    """The segments that operations were filling or emptying when they were broken off, since the last one that was
    brought to its end before ``operation``."""
    with databases.connect(COORDINATOR) as connection:
        rows = connection.execute(
            "SELECT jsonb_array_elements_text(s.detail->'segments')::int"
            " FROM pgherd.operation_steps s JOIN pgherd.operations o ON o.id = s.operation_id"
            " WHERE s.kind = 'plan' AND s.detail ? 'segments' AND o.id < %(id)s"
            " AND o.phase IN ('cancelled', 'superseded', 'failed') AND o.id > coalesce(("
            "   SELECT max(id) FROM pgherd.operations WHERE id < %(id)s AND phase = 'done'"
            "   AND kind IN ('expand', 'shrink', 'rebalance')), 0)",
            {"id": operation},
        ).fetchall()
    return {row[0] for row in rows}
