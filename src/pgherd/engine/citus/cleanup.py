"""What moves leave behind: dropped by Citus from its own records, and told when nothing is left.

Citus writes a record (``pg_dist_cleanup``) before it makes a thing, and drops what belongs to no running move. Our
record says only that somebody has to see to it.
"""

from __future__ import annotations

from pgherd.engine.citus.session import superuser, value
from pgherd.postgres.connections import Databases

MOVE = "move"
"""kind of the clean-up record of a move"""


def clean_up(databases: Databases, operation: int | None = None) -> int:
    """Drop what can be dropped now.

    :param operation: only its records are settled; None: all
    :return: how many of our records remain
    """
    with superuser(databases) as connection:
        connection.execute("SET client_min_messages TO error; SET lock_timeout TO '2s'")
        connection.execute("CALL citus_cleanup_orphaned_resources()")
        connection.execute(
            "DELETE FROM pgherd.cleanup WHERE kind = %(kind)s"
            " AND (operation_id = %(operation)s OR %(operation)s::bigint IS NULL)"
            " AND NOT EXISTS (SELECT FROM pg_dist_cleanup)"
            " AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'pgherd move %%')",
            {"kind": MOVE, "operation": operation},
        )
        return int(
            value(
                connection,
                "SELECT count(*) FROM pgherd.cleanup WHERE kind = %s AND (operation_id = %s OR %s::bigint IS NULL)",
                [MOVE, operation, operation],
            )
        )
