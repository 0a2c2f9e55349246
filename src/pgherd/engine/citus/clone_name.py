"""What a copy must not do in its source's name, under which it knows itself until the split's commit has reached it.

A node begins two-phase commits under its group's number, and Citus's maintenance daemon ends by it what a node left
prepared elsewhere: what the node has no record of, and is not at work on, is rolled back. A copy knows nothing of what
its living source is at work on. As soon as it takes writes, its daemon would roll back transactions that the source is
about to commit and to acknowledge. So a copy's daemon does not recover, and that is in force before it can be promoted;
it is given back when the node itself has its own number.

Nor does it archive. What it writes once it is promoted begins a timeline; if it is thrown away then, its successor,
which has the same database system, begins one of the same number with other content, and the repository would refuse
that for ever. So what a promoted copy writes waits in it until it is known to be a segment. What it gets before, as a
standby, is its source's, which archives it: that goes, or it would fill the disk.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgherd.engine.citus.session import only, superuser, value
from pgherd.errors import Unavailable
from pgherd.model.topology import Endpoint, group_name
from pgherd.postgres.connections import Databases

RECOVERY = "citus.recover_2pc_interval"
OFF = "-1"
ARCHIVING = "archive_command"
KEEPING = "test -f standby.signal"
"""archives nothing. A standby has this file (PostgreSQL takes a file of the log to be archived then, and lets it go); a
promotion removes it before there is anything of the new timeline, all of which stays"""
_QUIET = {RECOVERY: OFF, ARCHIVING: KEEPING}
_DISABLED = "(disabled)"
"""how a server that archives nothing at all shows its command"""
SEQUENCES = "sequences"
"""kind of the record that a segment's number and sequences are still those of the one that is the record's name"""


def parameters(databases: Databases) -> Mapping[int, Mapping[str, str]]:
    """See :meth:`pgherd.engine.base.Engine.clone_parameters`."""
    # One query: the commit that makes a copy a segment takes it from the one table to the other.
    query = "SELECT group_id FROM pgherd.clone UNION SELECT group_id FROM pgherd.cleanup WHERE kind = %s"
    with superuser(databases) as desk:
        return {group: dict(_QUIET) for (group,) in desk.execute(query, [SEQUENCES]).fetchall()}


def require_quiet(databases: Databases, group: int) -> None:
    """Ask each member: whoever of them is promoted, now or by a failover, must not speak for the source, nor archive.

    :raises Unavailable: one would, or does not answer
    """
    for endpoint in databases.addresses().get(group, ()):
        interval, command = _settings(databases, group, endpoint)
        where = f"{group_name(group)} at {endpoint.host}:{endpoint.port}"
        if interval != OFF:
            raise Unavailable(
                f"{where} has {RECOVERY} {interval}, not {OFF}, and"
                f" would roll back transactions of the segment that it is a copy of: {_WAY_OUT}"
            )
        if command not in (KEEPING, _DISABLED):
            raise Unavailable(
                f"{where} would archive what it writes before it is known to be a segment ({ARCHIVING}): {_WAY_OUT}"
            )


_WAY_OUT = "waiting for its configuration; if ALTER SYSTEM has set it, RESET it at the source, cancel and expand again"


def _settings(databases: Databases, group: int, endpoint: Endpoint) -> tuple[str, str]:
    with only(databases, group, endpoint).connect(group, read_only=True) as member:
        query = "SELECT current_setting(%s), current_setting(%s)"
        row = member.execute(query, [RECOVERY, ARCHIVING]).fetchone()
        assert row is not None, "it is no set of rows that could be empty"
        return str(row[0]), str(row[1])


def require_own(databases: Databases, group: int) -> None:
    """:raises Unavailable: the node does not know yet that it is a segment of its own"""
    with superuser(databases, group) as node:
        number = value(node, "SELECT groupid FROM pg_dist_local_group")
    if number != group:
        raise Unavailable(
            f"{group_name(group)} takes itself for group {number} until the split's commit reaches it"
        )
