"""The name under which a copy knows itself: its source's, until the split's commit has reached its own server.

A node begins two-phase commits under its group's number, and Citus's maintenance daemon ends by it what a node left
prepared elsewhere: what the node has no record of, and is not at work on, is rolled back. A copy knows nothing of what
its living source is at work on. As soon as it takes writes, its daemon would roll back transactions that the source is
about to commit and to acknowledge. So a copy's daemon does not recover, and that is in force before it can be promoted;
it is given back when the node itself has its own number.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgherd.engine.citus.session import only, superuser, value
from pgherd.errors import Unavailable
from pgherd.model.topology import Endpoint, group_name
from pgherd.postgres.connections import Databases

RECOVERY = "citus.recover_2pc_interval"
OFF = "-1"
SEQUENCES = "sequences"
"""kind of the record that a segment's number and sequences are still those of the one that is the record's name"""


def parameters(databases: Databases) -> Mapping[int, Mapping[str, str]]:
    """See :meth:`pgherd.engine.base.Engine.clone_parameters`."""
    # One query: the commit that makes a copy a segment takes it from the one table to the other.
    query = "SELECT group_id FROM pgherd.clone UNION SELECT group_id FROM pgherd.cleanup WHERE kind = %s"
    with superuser(databases) as desk:
        return {group: {RECOVERY: OFF} for (group,) in desk.execute(query, [SEQUENCES]).fetchall()}


def require_quiet(databases: Databases, group: int) -> None:
    """Ask each member: whoever of them is promoted, now or by a failover, must not speak for the source.

    :raises Unavailable: one would, or does not answer
    """
    for endpoint in databases.addresses().get(group, ()):
        interval = _interval(databases, group, endpoint)
        if interval != OFF:
            raise Unavailable(
                f"{group_name(group)} at {endpoint.host}:{endpoint.port} has {RECOVERY} {interval}, not {OFF}, and"
                " would roll back transactions of the segment that it is a copy of: waiting for its configuration;"
                " if ALTER SYSTEM has set it, RESET it at the source, cancel and expand again"
            )


def _interval(databases: Databases, group: int, endpoint: Endpoint) -> str:
    with only(databases, group, endpoint).connect(group, read_only=True) as member:
        return str(value(member, f"SHOW {RECOVERY}"))


def require_own(databases: Databases, group: int) -> None:
    """:raises Unavailable: the node does not know yet that it is a segment of its own"""
    with superuser(databases, group) as node:
        number = value(node, "SELECT groupid FROM pg_dist_local_group")
    if number != group:
        raise Unavailable(
            f"{group_name(group)} takes itself for group {number} until the split's commit reaches it"
        )
