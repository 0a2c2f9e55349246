"""A restored cluster becomes one of its own: what Citus remembers of nodes, passwords and open commits is put right.

The servers run without Citus's library, so that nothing of it acts: its maintenance would resolve transactions at the
addresses of the cluster that the backup is of. Its catalogue is then tables like any others, and triggers are off.

A transaction over several nodes is prepared on each; the node where it began commits with a row of
``pg_dist_transaction`` for each prepared part. That row is the decision: with it the part is committed, without it the
part is undone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from psycopg import sql
from psycopg.types.json import Jsonb

from pgherd.engine.citus import numbering
from pgherd.model.topology import COORDINATOR, Endpoints, group_name
from pgherd.postgres.connections import Connection, Databases

_GID = re.compile(r"citus_(\d+)_\d+_\d+_\d+")
"""the group where the transaction began, and what tells its parts apart"""


def settle(databases: Databases, endpoints: Mapping[int, Endpoints]) -> Sequence[str]:
    """See :meth:`pgherd.engine.base.Engine.settle_restored`."""
    done = [
        sentence for group in sorted(endpoints) for sentence in _resolve(databases, group, set(endpoints))
    ]
    for group in sorted(endpoints):
        with databases.connect(group, autocommit=False) as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            _nodes(connection, endpoints)
            _forget_passwords(connection)
            if group == COORDINATOR:
                _remember(connection, endpoints)
    return [*done, f"Citus knows {len(endpoints)} nodes by their new addresses"]


def settle_rebuilt(databases: Databases, group: int, rebuilt: Databases, *, lossy: bool) -> Sequence[str]:
    """See :meth:`pgherd.engine.base.Engine.settle_rebuilt`.

    Citus removes a record when the part that it speaks of has ended. So where the end of the log is lost a part without
    a record is either one that was never decided or one that was committed long ago: it is undone, and told.
    """
    done = []
    with rebuilt.connect(group) as connection:
        for gid, origin in _parts(connection):
            # What began in the group itself was decided in its own log.
            committed = _is_committed(rebuilt if origin == group else databases, origin, gid)
            _end_part(connection, gid, committed=committed)
            if committed:
                done.append(f"{gid} was committed, as {group_name(origin)} says")
            elif lossy:
                done.append(
                    f"{gid} was undone, {group_name(origin)} has no record of it: if it was committed, its rows on "
                    f"{group_name(group)} are lost and those on other groups are not"
                )
            else:
                done.append(f"{gid} was undone, {group_name(origin)} never committed it")
        if lossy and group != COORDINATOR:
            numbering.skip_lost(connection, group)
    return done


def origin_of(gid: str) -> int | None:
    """The group where a prepared transaction began; None: it is none of Citus's."""
    found = _GID.fullmatch(gid)
    return int(found[1]) if found else None


def _parts(connection: Connection) -> list[tuple[str, int]]:
    """The prepared parts of distributed transactions on a node, and the group where each began."""
    rows = connection.execute(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared"
    ).fetchall()
    # Others are an application's own: its owner ends them.
    return [(gid, origin) for (gid,) in rows if (origin := origin_of(gid)) is not None]


def _end_part(connection: Connection, gid: str, *, committed: bool) -> None:
    connection.execute(
        sql.SQL("{} PREPARED {}").format(sql.SQL("COMMIT" if committed else "ROLLBACK"), sql.Literal(gid))
    )


def _resolve(databases: Databases, group: int, groups: set[int]) -> list[str]:
    """End the prepared parts of distributed transactions on one node."""
    done = []
    with databases.connect(group) as connection:
        for gid, origin in _parts(connection):
            if origin not in groups:
                continue
            committed = _is_committed(databases, origin, gid)
            _end_part(connection, gid, committed=committed)
            fate = "committed" if committed else "undone"
            done.append(f"{gid} on {group_name(group)} was {fate}, as {group_name(origin)} says")
    return done


def _is_committed(databases: Databases, origin: int, gid: str) -> bool:
    with databases.connect(origin) as connection:
        found = connection.execute("SELECT 1 FROM pg_catalog.pg_dist_transaction WHERE gid = %s", [gid])
        return found.fetchone() is not None


def _nodes(connection: Connection, endpoints: Mapping[int, Endpoints]) -> None:
    # Patroni registers standbys, and groups that come later, by itself.
    connection.execute(
        "DELETE FROM pg_catalog.pg_dist_node WHERE noderole <> 'primary' OR groupid <> ALL (%s)",
        [list(endpoints)],
    )
    # No two nodes may have one address, also for a moment: on one machine a port may have been another group's.
    connection.execute("UPDATE pg_catalog.pg_dist_node SET nodename = '', nodeport = nodeid")
    for group, members in endpoints.items():
        connection.execute(
            "UPDATE pg_catalog.pg_dist_node SET nodename = %s, nodeport = %s WHERE groupid = %s",
            [members[0].host, members[0].port, group],
        )


def _forget_passwords(connection: Connection) -> None:
    """Those of the other cluster must not be used. Ours come when the library is there to check them, with the first
    look at the running cluster (``install``)."""
    connection.execute("DELETE FROM pg_catalog.pg_dist_authinfo")


def _remember(connection: Connection, endpoints: Mapping[int, Endpoints]) -> None:
    for group, members in endpoints.items():
        listed = Jsonb([[each.host, each.port] for each in members])
        connection.execute(
            "UPDATE pgherd.segment SET endpoints = %s WHERE group_id = %s AND group_id <> %s",
            [listed, group, COORDINATOR],
        )
