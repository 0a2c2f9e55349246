"""Metadata against world: are all nodes one, and is there what the metadata says.

Each check compares one aspect and yields findings; none changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg

from pgherd.engine.base import Finding
from pgherd.engine.citus import copies, nodes, versions
from pgherd.engine.citus.restored import origin_of
from pgherd.engine.citus.session import superuser, value
from pgherd.errors import Unavailable, one_line
from pgherd.model.topology import COORDINATOR, Endpoint, group_name
from pgherd.postgres.connections import Connection, Databases

_CLEAN_UP = "run CALL citus_cleanup_orphaned_resources() as superuser, then check again"
OLD = "interval '1 minute'"
"""older than this, a prepared transaction is one that nobody resolves"""

_METADATA = {
    "pg_dist_node": "SELECT (nodeid, groupid, nodename, nodeport, noderole, isactive, shouldhaveshards)::text"
    " FROM pg_dist_node",
    "pg_dist_partition": "SELECT (logicalrelid::regclass, partmethod, colocationid, repmodel,"
    " column_to_column_name(logicalrelid, partkey::text))::text FROM pg_dist_partition"
    " WHERE partmethod IN ('h', 'n') AND NOT (partmethod = 'n' AND repmodel = 's' AND colocationid = 0)",
    "pg_dist_shard": "SELECT (logicalrelid::regclass, shardid, shardminvalue, shardmaxvalue)::text FROM pg_dist_shard"
    " JOIN pg_dist_partition USING (logicalrelid) WHERE partmethod IN ('h', 'n')",
    "pg_dist_placement": "SELECT (shardid, groupid, p.shardstate)::text FROM pg_dist_placement p"
    " JOIN pg_dist_shard USING (shardid) JOIN pg_dist_partition USING (logicalrelid) WHERE partmethod IN ('h', 'n')",
    "pg_dist_colocation": "SELECT (colocationid, shardcount, replicationfactor)::text FROM pg_dist_colocation",
    "pg_dist_schema": "SELECT (schemaid::regnamespace, colocationid)::text FROM pg_dist_schema",
    "pg_dist_object": "SELECT (pg_identify_object_as_address(classid, objid, objsubid), distribution_argument_index,"
    " colocationid)::text FROM pg_catalog.pg_dist_object WHERE NOT (classid = 'pg_class'::regclass"
    " AND EXISTS (SELECT FROM pg_class c WHERE c.oid = objid AND c.relkind = 'S'))",
}
"""What Citus keeps equal on all nodes: nothing of tables distributed by appending or by range, and the marks of
sequences only until their table is local again."""
_EXPECTED = """
SELECT s.shardid, n.nspname, shard_name(s.logicalrelid, s.shardid)
  FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid) JOIN pg_class c ON c.oid = s.logicalrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.groupid = %s
"""
_NAMELESS = """
SELECT n.nspname || '.' || c.relname
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class t ON t.relnamespace = c.relnamespace AND starts_with(c.relname, t.relname || '_')
       AND substr(c.relname, length(t.relname) + 2) ~ '^\\d+$'
  JOIN pg_dist_partition d ON d.logicalrelid = t.oid
 WHERE c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_dist_partition o WHERE o.logicalrelid = c.oid)
   AND NOT EXISTS (SELECT FROM pg_dist_shard s WHERE s.shardid::text = substr(c.relname, length(t.relname) + 2))
 ORDER BY 1
"""
"""on a segment, where nobody makes tables by hand: what is called like a shard, and there is no such shard"""
_PRESENT = """
SELECT substring(c.relname from '_(\\d+)$')::bigint, n.nspname, c.relname::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relname ~ '_\\d{6,18}$' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""


@dataclass(frozen=True)
class _Node:
    """A group's primary under examination, and the coordinator to compare it with."""

    group: int
    here: Connection
    desk: Connection

    def finding(self, check: str, message: str, fix: str) -> Finding:
        return Finding(self.group, check, f"{group_name(self.group)} {message}", fix)


def check(databases: Databases) -> list[Finding]:
    """All findings, group by group.

    :raises Unavailable: the coordinator can't be asked
    """
    with superuser(databases) as desk:
        segments, coordinator = nodes.segments(databases), versions.of(desk)
        found = list(_nodes(desk, segments))
        for group in [COORDINATOR, *segments]:
            try:
                with superuser(databases, group) as here:
                    if told := _unfit(group, versions.of(here), coordinator):
                        # Citus itself refuses to work there: nothing else can be asked of it.
                        message, _, way_out = told.rpartition(": ")
                        found.append(Finding(group, "version", message, way_out))
                        continue
                    found.extend(_examined(_Node(group, here, desk)))
            except (Unavailable, psycopg.OperationalError) as error:
                message = f"{group_name(group)} can't be asked: {one_line(error)}"
                found.append(Finding(group, "reachable", message, "see pgherd status"))
    return found


def _examined(node: _Node) -> list[Finding]:
    """All that is found on a node. A table that is dropped meanwhile makes Citus's own functions fail: once more."""
    try:
        return [finding for each in CHECKS for finding in each(node)]
    except (psycopg.errors.InternalError_, psycopg.errors.InvalidParameterValue):
        return [finding for each in CHECKS for finding in each(node)]


def _nodes(desk: Connection, segments: Sequence[int]) -> Iterator[Finding]:
    known, members = nodes.nodes(desk), _members(desk)
    for group in [COORDINATOR, *segments]:
        node, name = known.get(group), group_name(group)
        if node is None:
            fix = "Patroni registers it: see the log of the coordinator's primary"
            yield Finding(group, "registered", f"{name} is not registered as a node", fix)
        elif Endpoint(node.host, node.port) not in members.get(group, {Endpoint(node.host, node.port)}):
            message = f"{name} is registered as {node.host}:{node.port}, where no member of it is"
            yield Finding(group, "registered", message, "see the log of the coordinator's primary")
        elif not node.active:
            fix = f"SELECT citus_activate_node('{node.host}', {node.port})"
            yield Finding(group, "registered", f"{name} is registered, but not active", fix)
        elif node.open != (group != COORDINATOR):
            message = f"{name} is {'open' if node.open else 'closed'} to new shards"
            fix = f"SELECT citus_set_node_property('{node.host}', {node.port}, 'shouldhaveshards', {not node.open})"
            yield Finding(group, "registered", message, fix)


def _members(desk: Connection) -> dict[int, set[Endpoint]]:
    """Where members are for one another, which need not be where we reach them."""
    found: dict[int, set[Endpoint]] = {}
    for group, host, port in desk.execute("SELECT group_id, host, port FROM pgherd.segment_configuration"):
        found.setdefault(group, set()).add(Endpoint(host, port))
    return found


def _unfit(group: int, here: versions.Versions, coordinator: versions.Versions) -> str | None:
    return versions.lost(group) if here.in_database is None else versions.problem(group, here, coordinator)


def _version(node: _Node) -> Iterator[Finding]:
    query = "SELECT citus_version()"
    here, there = value(node.here, query), value(node.desk, query)
    if here != there:
        yield node.finding(
            "version", f"runs {here}, the coordinator {there}", "install one version everywhere"
        )


def _metadata(node: _Node) -> Iterator[Finding]:
    if node.group == COORDINATOR:
        return
    for table, query in _METADATA.items():
        digest = f"SELECT coalesce(md5(string_agg(line, ',' ORDER BY line)), '-') FROM ({query}) t (line)"
        if value(node.here, digest) != value(node.desk, digest):
            fix = "SELECT start_metadata_sync_to_all_nodes() on the coordinator"
            yield node.finding("metadata", f"has another {table} than the coordinator", fix)


def _placements(node: _Node) -> Iterator[Finding]:
    expected = {row[0]: row[1:] for row in node.desk.execute(_EXPECTED.encode(), [node.group]).fetchall()}
    present = {row[0]: row[1:] for row in node.here.execute(_PRESENT.encode()).fetchall()}
    for shard in sorted(expected.keys() - present.keys()):
        yield node.finding(
            "placements", f"lacks shard {shard} ({expected[shard][1]})", "restore it from a backup"
        )
    shards = {row[0] for row in node.desk.execute("SELECT shardid FROM pg_dist_shard").fetchall()}
    for shard in sorted((present.keys() - expected.keys()) & shards):
        yield node.finding(
            "placements", f"has the orphan {'.'.join(present[shard])} of shard {shard}", _CLEAN_UP
        )


def _nameless(node: _Node) -> Iterator[Finding]:
    """What was begun and never became a shard, or belonged to a table that is gone from the metadata."""
    if node.group == COORDINATOR:
        return
    for (table,) in node.here.execute(_NAMELESS.encode()).fetchall():
        yield node.finding("placements", f"has the orphan {table}, which is no shard of any table", _CLEAN_UP)


def _states(node: _Node) -> Iterator[Finding]:
    query = "SELECT shardid FROM pg_dist_placement WHERE groupid = %s AND shardstate <> 1 ORDER BY 1"
    for (shard,) in node.desk.execute(query.encode(), [node.group]).fetchall():
        yield node.finding("placements", f"has an invalid placement of shard {shard}", _CLEAN_UP)


def _prepared(node: _Node) -> Iterator[Finding]:
    known = nodes.nodes(node.desk)
    rows = node.here.execute(
        f"SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'citus_%' AND prepared < now() - {OLD} ORDER BY 1".encode()
    ).fetchall()
    for (gid,) in rows:
        # A node ends what began there, and nothing else.
        origin = origin_of(gid) or COORDINATOR
        fix = f"SELECT recover_prepared_transactions() on {group_name(origin)}"
        if origin not in known:
            fix = f"{group_name(origin)}, where it began, is gone: end it as its other parts were ended"
        yield node.finding("prepared", f"has the prepared transaction {gid} for more than a minute", fix)


def _records(node: _Node) -> Iterator[Finding]:
    """What Citus means to drop on a node that is gone keeps it from moving what has the same name."""
    if node.group != COORDINATOR:
        return
    for (group,) in node.desk.execute(
        "SELECT DISTINCT node_group_id FROM pg_dist_cleanup WHERE node_group_id NOT IN"
        " (SELECT groupid FROM pg_dist_node) ORDER BY 1"
    ).fetchall():
        fix = f"DELETE FROM pg_dist_cleanup WHERE node_group_id = {group}, as superuser"
        yield node.finding(
            "leftovers", f"has records of things to drop on {group_name(group)}, which is gone", fix
        )


def _leftovers(node: _Node) -> Iterator[Finding]:
    if value(node.desk, "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pgherd move %' LIMIT 1"):
        return
    for kind, query in (
        (
            "replication slot",
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'citus\\_shard\\_%'",
        ),
        ("subscription", "SELECT subname FROM pg_subscription WHERE subname LIKE 'citus\\_shard\\_%'"),
        ("publication", "SELECT pubname FROM pg_publication WHERE pubname LIKE 'citus\\_shard\\_%'"),
    ):
        for (name,) in node.here.execute(query.encode()).fetchall():
            yield node.finding("leftovers", f"has the {kind} {name} of a move that is over", _CLEAN_UP)


def _reference_tables(node: _Node) -> Iterator[Finding]:
    rows = node.desk.execute(
        "SELECT s.logicalrelid::regclass::text FROM pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid)"
        " WHERE t.partmethod = 'n' AND t.repmodel = 't' AND NOT EXISTS"
        " (SELECT FROM pg_dist_placement p WHERE p.shardid = s.shardid AND p.groupid = %s) ORDER BY 1",
        [node.group],
    ).fetchall()
    for (table,) in rows:
        yield node.finding(
            "reference tables", f"has no copy of {table}", "SELECT replicate_reference_tables()"
        )


def _copies(node: _Node) -> Iterator[Finding]:
    if node.group == COORDINATOR:
        return
    for table, copy in copies.tables(node.desk, node.group):
        if message := copies.difference(node.desk, node.here, table, copy):
            name = table.replace("'", "''")
            fix = (
                f"SELECT undistribute_table('{name}'), then create_reference_table('{name}'): the coordinator's rows"
                " stay; drop foreign keys from and to it before, and make them anew after that"
            )
            yield node.finding("copies", message, fix)


CHECKS: Sequence[Callable[[_Node], Iterator[Finding]]] = (
    _version,
    _metadata,
    _placements,
    _nameless,
    _states,
    _prepared,
    _leftovers,
    _records,
    _reference_tables,
    _copies,
)
