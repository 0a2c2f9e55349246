"""Segments come, change and go: rows of ``pg_dist_node``, and which of them take part.

Patroni keeps ``pg_dist_node`` right: it registers a group once it has a primary, and follows every change of leader. We
decide which of the registered nodes take part (``pgherd.segment``). A node that Patroni has just registered may hold
shards, by Citus's default; it is *fenced* (no new shards) until it is admitted, and the planner is told nothing while a
node is not fenced, so a group whose members may be removed never holds the only copy of anything.

A node that is retired is disabled, not removed: its row has to stay while its members run, or Patroni would register it
again. It goes with the clean-up record, once the group has no members.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from psycopg.types.json import Jsonb

from pgherd.engine.citus import numbering
from pgherd.engine.citus.session import superuser, value
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import COORDINATOR, Endpoint, Endpoints, group_name
from pgherd.postgres.connections import Connection, Databases

NODE = "node"
"""kind of the clean-up record of a retired segment"""
PATIENCE = "interval '20 seconds'"
"""how long Patroni itself gives a switchover, for which it keeps ``pg_dist_node`` locked"""
SYNC_SECONDS = 20.0
POLL_SECONDS = 0.2

DECIDED_SECONDS = 20.0
"""for so long a segment that leaves is waited for: Citus itself ends what is prepared every five seconds"""

_ONLY_COPIES = (
    "SELECT p.groupid AS group_id, p.shardid AS shard_id, s.logicalrelid AS relation"
    " FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid)"
    " WHERE NOT EXISTS (SELECT FROM pg_dist_placement o WHERE o.shardid = p.shardid AND o.groupid <> p.groupid)"
)
"""shards that are on one node only, of whatever kind of table"""
_STUCK = (
    f"SELECT DISTINCT relation::regclass::text FROM ({_ONLY_COPIES}) c WHERE group_id = %s"
    " AND NOT EXISTS (SELECT FROM pgherd.shard_map m WHERE m.shard_id = c.shard_id) ORDER BY 1"
)
_OUT_OF_SYNC = (
    "SELECT string_agg(nodename || ':' || nodeport, ', ') FROM pg_dist_node"
    " WHERE noderole = 'primary' AND isactive AND hasmetadata AND NOT metadatasynced"
)


@dataclass(frozen=True)
class Node:
    """A primary's row in ``pg_dist_node``."""

    id: int
    group: int
    host: str
    port: int
    active: bool
    open: bool
    """new shards may be made there"""


def nodes(connection: Connection) -> dict[int, Node]:
    """The registered primaries by group, the coordinator too."""
    rows = connection.execute(
        "SELECT nodeid, groupid, nodename, nodeport, isactive, shouldhaveshards FROM pg_dist_node"
        " WHERE noderole = 'primary' ORDER BY groupid"
    ).fetchall()
    return {row[1]: Node(*row) for row in rows}


# fencing


def unfenced(connection: Connection) -> list[Node]:
    """Nodes that may be given shards although they don't take part."""
    known = _admitted(connection)
    return [
        node
        for node in nodes(connection).values()
        if node.group not in known and node.group != COORDINATOR and node.open
    ]


def fence(databases: Databases) -> None:
    """See to it that only segments that take part are given shards. One that has some takes part from
    now on."""
    with superuser(databases) as connection:
        for node in unfenced(connection):
            _open(connection, node, False)
            if _holds(connection, node.group):
                connection.execute("INSERT INTO pgherd.segment (group_id) VALUES (%s)", [node.group])
                _open(connection, node, True)


def _admitted(connection: Connection) -> set[int]:
    return {row[0] for row in connection.execute("SELECT group_id FROM pgherd.segment").fetchall()}


def _open(connection: Connection, node: Node, whether: bool) -> None:
    # Waits for whoever is making a table right now, and makes those who come later wait: Citus locks pg_dist_node.
    if node.open != whether or not whether:
        connection.execute(
            "SELECT citus_set_node_property(%s, %s, 'shouldhaveshards', %s)", [node.host, node.port, whether]
        )


def _holds(connection: Connection, group: int) -> int:
    """How many shards are there that nobody may remove: of distributed tables, or without another copy."""
    return int(
        value(
            connection,
            "SELECT count(*) FROM (SELECT shard_id FROM pgherd.shard_map WHERE group_id = %(group)s"
            f" UNION SELECT shard_id FROM ({_ONLY_COPIES}) c WHERE group_id = %(group)s) t",
            {"group": group},
        )
    )


def stuck(connection: Connection, group: int) -> list[str]:
    """A sentence for each table with shards on a segment that nothing moves: distributed by range, or by appending."""
    return [
        f"table {table} is distributed in a way that can't be moved, and {group_name(group)} has the only copy of some"
        f" of its shards: SELECT undistribute_table('{table}'), and distribute it anew"
        for (table,) in connection.execute(_STUCK.encode(), [group]).fetchall()
    ]


def steer(databases: Databases, retiring: Collection[int]) -> None:
    """New shards go to all segments that take part but the ``retiring`` ones."""
    with superuser(databases) as connection:
        known = _admitted(connection)
        for node in nodes(connection).values():
            wanted = node.group not in retiring
            if node.group in known and node.open != wanted:
                _open(connection, node, wanted)


# coming and going


def admit(databases: Databases, group: int, endpoints: Endpoints) -> None:
    """Let a segment take part; see :meth:`pgherd.engine.base.Engine.admit`."""
    with superuser(databases) as connection:
        node = nodes(connection).get(group) or _register(databases, connection, group)
        if not node.active:
            connection.execute("SELECT citus_activate_node(%s, %s)", [node.host, node.port])
        _copy_reference_tables(connection)
        _await_metadata(connection)
        numbering.skip_used(databases, connection, group)
        connection.execute("DELETE FROM pgherd.cleanup WHERE kind = %s AND group_id = %s", [NODE, group])
        _remember(connection, group, endpoints)
        connection.execute(
            "SELECT citus_set_node_property(%s, %s, 'shouldhaveshards', true)", [node.host, node.port]
        )


def _register(databases: Databases, connection: Connection, group: int) -> Node:
    """Patroni does it a moment later by itself, except for a group that was there before under the same address: that
    one it takes for registered still. Adding a node twice is no harm."""
    with databases.connect(group) as primary:
        host, port = primary.info.host, primary.info.port
    connection.execute("SELECT citus_add_node(%s, %s, %s, 'primary', 'default')", [host, port, group])
    node = nodes(connection).get(group)
    if node is None:
        raise PgherdError(f"{group_name(group)} was registered, but Citus does not know it")
    return node


def _await_metadata(connection: Connection) -> None:
    """Until tables can be made: a node that was just registered, or has a new primary, Citus brings up to date a moment
    later, and nobody can make one before.

    :raises Unavailable: it takes too long
    """
    deadline = time.monotonic() + SYNC_SECONDS
    while behind := value(connection, _OUT_OF_SYNC):
        if time.monotonic() > deadline:
            raise Unavailable(f"Citus has not brought its metadata to {behind} yet")
        time.sleep(POLL_SECONDS)


def _copy_reference_tables(connection: Connection) -> None:
    without_key = value(
        connection,
        "SELECT count(*) FROM pg_dist_partition t JOIN pg_class c ON c.oid = t.logicalrelid"
        " WHERE t.partmethod = 'n' AND t.repmodel = 't' AND (c.relreplident = 'n' OR c.relreplident = 'd'"
        " AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))",
    )
    mode = "block_writes" if without_key else "auto"
    connection.execute("SELECT replicate_reference_tables(%s)", [mode])


def _remember(connection: Connection, group: int, endpoints: Endpoints) -> None:
    connection.execute(
        "INSERT INTO pgherd.segment VALUES (%s, %s)"
        " ON CONFLICT (group_id) DO UPDATE SET endpoints = excluded.endpoints",
        [group, _listed(endpoints)],
    )


def _listed(endpoints: Endpoints) -> Jsonb:
    return Jsonb([[endpoint.host, endpoint.port] for endpoint in endpoints])


def update_endpoints(databases: Databases, group: int, endpoints: Endpoints) -> None:
    """What we were told last; Patroni tells Citus by itself. A segment that was retired meanwhile stays so."""
    with superuser(databases) as connection:
        connection.execute(
            "UPDATE pgherd.segment SET endpoints = %s WHERE group_id = %s", [_listed(endpoints), group]
        )


def retire(databases: Databases, group: int) -> None:
    """The opposite of :func:`admit`; see :meth:`pgherd.engine.base.Engine.retire`."""
    with superuser(databases) as connection:
        node = nodes(connection).get(group)
        if node is not None:
            _open(connection, node, False)
        if problems := stuck(connection, group):
            raise PgherdError("; ".join(problems))
        if held := _holds(connection, group):
            raise PgherdError(f"{group_name(group)} still holds {held} shards: move them away first")
        others = [COORDINATOR, *sorted(_admitted(connection) - {group})]
        # While it still counts: once it does not, its members go, even if nobody waits here any more.
        _await_decisions(databases, group, others)
        given = numbering.given(databases, group)
        with connection.transaction():
            connection.execute(
                "INSERT INTO pgherd.cleanup (group_id, kind, name) SELECT %(group)s, %(kind)s, %(name)s"
                " WHERE NOT EXISTS (SELECT FROM pgherd.cleanup WHERE kind = %(kind)s AND group_id = %(group)s)",
                {"group": group, "kind": NODE, "name": group_name(group)},
            )
            left = connection.execute("DELETE FROM pgherd.segment WHERE group_id = %s", [group])
            if left.rowcount:
                numbering.note_used(connection, group, given)
        if node is not None and node.active:
            connection.execute("SELECT citus_disable_node(%s, %s, true)", [node.host, node.port])
    _await_decisions(databases, group, others)


def _await_decisions(databases: Databases, group: int, others: Sequence[int]) -> None:
    """Until nothing is prepared any more of what is now, and began on a segment: only it knows what was committed.

    :raises Unavailable: it takes too long
    """
    deadline = time.monotonic() + DECIDED_SECONDS
    waiting = {each: _prepared(databases, each, group) for each in others}
    while waiting := {each: gids for each, gids in waiting.items() if gids}:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{', '.join(map(group_name, waiting))} has prepared transactions that began on {group_name(group)},"
                " which has to end them before it goes"
            )
        time.sleep(POLL_SECONDS)
        # What its clients begin meanwhile ends by itself: a busy segment is never without.
        waiting = {each: gids & _prepared(databases, each, group) for each, gids in waiting.items()}


def _prepared(databases: Databases, group: int, origin: int) -> set[str]:
    """What is prepared on a group and began on another one."""
    with superuser(databases, group) as connection:
        query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid ~ %s"
        return {row[0] for row in connection.execute(query.encode(), [f"^citus_{origin}_"]).fetchall()}


def remove_retired(databases: Databases) -> int:
    """Forget the nodes of retired segments whose members are gone.

    :return: how many clean-up records remain
    """
    with superuser(databases) as connection:
        records = connection.execute(
            "SELECT id, group_id FROM pgherd.cleanup WHERE kind = %s ORDER BY group_id", [NODE]
        ).fetchall()
        remaining = 0
        for record, group in records:
            if group not in _admitted(connection) and databases.addresses().get(group):
                remaining += 1
                continue
            if group not in _admitted(connection):
                end_last_switchover(connection)
                _remove(connection, group)
            connection.execute("DELETE FROM pgherd.cleanup WHERE id = %s", [record])
        return remaining


def end_last_switchover(connection: Connection) -> None:
    """A primary that is shut down announces a switchover. If its group is gone, nobody comes to end that: Patroni would
    keep its transaction open until the next change elsewhere."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'Patroni citus'"
        f" AND state = 'idle in transaction' AND xact_start < clock_timestamp() - {PATIENCE}".encode()
    )


def _remove(connection: Connection, group: int) -> None:
    rows = connection.execute(
        "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid = %s ORDER BY noderole = 'primary'",
        [group],
    ).fetchall()
    for host, port in rows:
        connection.execute("SELECT citus_remove_node(%s, %s)", [host, port])
    # What was to be dropped there went with the group. Citus would keep the record for ever, and move no shard of that
    # name any more.
    connection.execute("DELETE FROM pg_dist_cleanup WHERE node_group_id = %s", [group])


# looking


def segments(databases: Databases) -> Sequence[int]:
    """The segments that take part, and any other that holds a shard."""
    with superuser(databases) as connection:
        rows = connection.execute(
            "SELECT group_id FROM pgherd.segment UNION SELECT group_id FROM pgherd.shard_map WHERE group_id <> %(desk)s"
            f" UNION SELECT group_id FROM ({_ONLY_COPIES}) c WHERE group_id <> %(desk)s ORDER BY 1",
            {"desk": COORDINATOR},
        ).fetchall()
    return tuple(row[0] for row in rows)


def endpoints(databases: Databases) -> Mapping[int, Endpoints]:
    """Where the segments' members listen, as we were told last."""
    with superuser(databases) as connection:
        rows = connection.execute(
            "SELECT group_id, endpoints FROM pgherd.segment ORDER BY group_id"
        ).fetchall()
    return {group: [Endpoint(host, port) for host, port in listed] for group, listed in rows}
