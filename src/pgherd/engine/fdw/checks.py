"""Catalogue against world: what should be on each segment, and what is.

The coordinator's catalogue is the truth. Each check compares one aspect and yields findings; none changes anything.
Rows are read as the owner role, never as superuser, because a table's own code may run when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from pgherd.engine.base import Finding
from pgherd.engine.fdw.install import superuser
from pgherd.errors import Unavailable
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

Shape = dict[str, Any]

MOVE_AGAIN = "run the clean-up again (it is part of every operation), then check again"


@dataclass(frozen=True)
class Table:
    """A distributed or reference table as the coordinator knows it."""

    oid: int
    name: str
    """schema-qualified and quoted"""
    kind: str
    shape: Shape

    @property
    def literal(self) -> str:
        """The name as an SQL string."""
        return sql.Literal(self.name).as_string()


@dataclass(frozen=True)
class Leaf:
    """A shard as the coordinator knows it."""

    name: str
    table: Table
    modulus: int
    remainder: int
    group: int


@dataclass
class Expected:
    """All that the coordinator's catalogue says."""

    tables: dict[int, Table]
    leaves: dict[str, Leaf]
    segments: Sequence[int]
    cleanup: set[tuple[int, str, str]] = field(default_factory=set)
    """group, kind and name of everything that has a clean-up record"""

    def leaves_of(self, group: int) -> dict[str, Leaf]:
        return {name: leaf for name, leaf in self.leaves.items() if leaf.group == group}


def check(databases: Databases) -> Sequence[Finding]:
    """Every finding of every check; see :meth:`pgherd.engine.base.Engine.check`.

    :raises Unavailable: the coordinator does not answer (a segment that does not is a finding)
    """
    with superuser(databases, COORDINATOR) as desk:
        expected = _expected(desk)
        findings = list(_foreign_tables(desk, expected))
    for group in expected.segments:
        findings += _segment_findings(databases, group, expected)
    for table in expected.tables.values():
        if table.kind == "reference":
            findings += _copies(databases, table, expected.segments)
    return findings


def _expected(desk: Connection) -> Expected:
    tables = {
        oid: Table(oid, name, kind, shape)
        for oid, name, kind, shape in desk.execute(
            "SELECT relation::oid::int8, format('%I.%I', shape->>'schema', shape->>'name'), kind, shape"
            "  FROM pgherd.distributed_table ORDER BY relation"
        ).fetchall()
    }
    leaves = {
        name: Leaf(name, tables[oid], modulus, remainder, group)
        for name, oid, modulus, remainder, group in desk.execute(
            "SELECT s.name::text, s.relation::oid::int8, c.shard_count, s.index, g.group_id"
            "  FROM pgherd.shard s JOIN pgherd.distributed_table d ON d.relation = s.relation"
            "  JOIN pgherd.colocation c ON c.id = d.colocation_id"
            "  JOIN pgherd.shard_group g ON g.colocation_id = d.colocation_id AND g.index = s.index"
            " ORDER BY s.shard_id"
        ).fetchall()
    }
    segments = [row[0] for row in desk.execute("SELECT group_id FROM pgherd.segment ORDER BY 1").fetchall()]
    cleanup = set(desk.execute("SELECT group_id, kind, name FROM pgherd.cleanup").fetchall())
    return Expected(tables, leaves, segments, cleanup)


def _foreign_tables(desk: Connection, expected: Expected) -> Iterator[Finding]:
    """Each shard's foreign table is a partition and points at the server that the placement names."""
    present = {
        row[0]: (row[1], row[2])
        for row in desk.execute(
            "SELECT c.relname::text, f.srvname::text, i.inhparent::oid::int8 FROM pg_foreign_table t"
            "  JOIN pg_class c ON c.oid = t.ftrelid JOIN pg_foreign_server f ON f.oid = t.ftserver"
            "  LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND NOT i.inhdetachpending"
            " WHERE c.relnamespace = 'pgherd_shards'::regnamespace"
        ).fetchall()
    }
    for name, leaf in expected.leaves.items():
        server, parent = present.get(name, (None, None))
        if parent != leaf.table.oid:
            yield Finding(
                COORDINATOR,
                "partitions",
                f"shard {name} is not a partition of {leaf.table.name}",
                "restore the coordinator's catalogue from a backup, or undistribute the table",
            )
        elif server != f"segment_{leaf.group}":
            yield Finding(
                COORDINATOR,
                "placement",
                f"shard {name} is read from {server}, but its place is segment-{leaf.group}",
                "compare the rows on both segments before changing pgherd.shard_group",
            )


def _segment_findings(databases: Databases, group: int, expected: Expected) -> list[Finding]:
    found: list[Finding] = []
    try:
        with superuser(databases, group) as server, databases.connect(group, user=databases.owner) as owner:
            for step in _SEGMENT_CHECKS:
                found += step(server, group, expected)
            found += _strays(owner, group, expected)
    except (Unavailable, psycopg.OperationalError) as error:
        found.append(Finding(group, "reachable", f"segment-{group} does not answer: {error}", "start it"))
    return found


def _definitions(server: Connection, group: int, expected: Expected) -> Iterator[Finding]:
    for table in expected.tables.values():
        row = server.execute("SELECT pgherd.shape_of(to_regclass(%s))", [table.name]).fetchone()
        if row is None or row[0] is None:
            yield Finding(
                group,
                "definitions",
                f"table {table.name} is missing",
                f"SELECT pgherd.repair_table({table.literal})",
            )
            continue
        for difference in differences(table.shape, row[0]):
            yield Finding(
                group,
                "definitions",
                f"table {table.name}: {difference}",
                f"SELECT pgherd.repair_table({table.literal})",
            )


def differences(wanted: Shape, present: Shape) -> Iterator[str]:
    """What is different between the shape that a table should have on a segment and the one it has, one phrase each."""
    for what, parts in (
        ("column", ("columns", ("type", "collation", "not_null", "generated"))),
        ("constraint", ("checks", ("def",))),
        ("index", ("indexes", ("def", "unique"))),
        ("constraint", ("constraints", ("def",))),
    ):
        section, fields = parts
        ours, theirs = _by_name(wanted, section), _by_name(present, section)
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs:
                yield f"{what} {name} is missing"
            elif name not in ours:
                yield f"{what} {name} is too many"
            else:
                for key in fields:
                    if ours[name].get(key) != theirs[name].get(key):
                        yield f"{what} {name} has {key} {theirs[name].get(key)} instead of {ours[name].get(key)}"
    yield from _enum_differences(wanted, present)


def _by_name(shape: Shape, section: str) -> dict[str, Shape]:
    """Entries by their name; a unique index is an index wherever the shape keeps it."""
    entries = list(shape[section].values())
    if section == "indexes":
        entries += [{**entry, "unique": True} for entry in shape["constraints"].values() if "index" in entry]
    elif section == "constraints":
        entries = [entry for entry in entries if "index" not in entry]
    return {entry["name"]: entry for entry in entries}


def _enum_differences(wanted: Shape, present: Shape) -> Iterator[str]:
    theirs = {(entry["schema"], entry["name"]): entry["labels"] for entry in present["types"].values()}
    for entry in wanted["types"].values():
        labels = theirs.get((entry["schema"], entry["name"]))
        if labels is not None and labels != entry["labels"]:
            yield f"type {entry['name']} has labels {labels} instead of {entry['labels']}"


def _leaves(server: Connection, group: int, expected: Expected) -> Iterator[Finding]:
    """The shards that the placement gives this segment are there, attached and guarded; no others are."""
    present = {
        row[0]: (row[1], row[2])
        for row in server.execute("SELECT name::text, twin, checked FROM pgherd.leaves").fetchall()
    }
    mine = expected.leaves_of(group)
    for name, leaf in mine.items():
        if name not in present:
            yield Finding(
                group,
                "shards",
                f"shard {name} of {leaf.table.name} is missing",
                "restore this segment from a backup",
            )
        elif present[name][0] is None:
            yield Finding(group, "shards", f"shard {name} of {leaf.table.name} is not attached", MOVE_AGAIN)
        elif not present[name][1]:
            yield Finding(
                group,
                "shards",
                f"shard {name} of {leaf.table.name} has lost its CHECK pgherd_placement",
                "move the shard group to another segment: the copy has it",
            )
    gone = {name for where, kind, name in expected.cleanup if (where, kind) == (group, "table")}
    for name in sorted(present.keys() - mine.keys()):
        twin = present[name][0] or ""
        if (group, "shard", name) not in expected.cleanup and twin.partition(".")[0] not in gone:
            yield Finding(
                group,
                "shards",
                f"shard {name} is on segment-{group}, which is not its place, and no clean-up record names it",
                f"look at pgherd_shards.{name} there, then drop it",
            )


def _leftovers(server: Connection, group: int, expected: Expected) -> Iterator[Finding]:
    """Slots, publications and subscriptions of moves that nobody will clean up."""
    for kind, query in (
        ("slot", "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name LIKE 'pgherd\\_move\\_%'"),
        ("publication", "SELECT pubname::text FROM pg_publication WHERE pubname LIKE 'pgherd\\_move\\_%'"),
        ("subscription", "SELECT subname::text FROM pg_subscription WHERE subname LIKE 'pgherd\\_move\\_%'"),
    ):
        for (name,) in server.execute(query.encode()).fetchall():
            if (group, kind, name) not in expected.cleanup:
                yield Finding(
                    group, "leftovers", f"{kind} {name} belongs to no move", f"drop it on segment-{group}"
                )


_SEGMENT_CHECKS: Sequence[Callable[[Connection, int, Expected], Iterator[Finding]]] = (
    _definitions,
    _leaves,
    _leftovers,
)


def _strays(owner: Connection, group: int, expected: Expected) -> Iterator[Finding]:
    """Rows that hash to another shard: a query by key would not find them."""
    attached: dict[str, str] = dict(
        owner.execute("SELECT name::text, twin FROM pgherd.leaves WHERE twin IS NOT NULL").fetchall()
    )
    for name, leaf in expected.leaves_of(group).items():
        if name not in attached:
            continue
        row = owner.execute(
            "SELECT pgherd.strays(%s, %s::text::regclass, %s, %s)",
            [name, attached[name], leaf.modulus, leaf.remainder],
        ).fetchone()
        if row and row[0]:
            yield Finding(
                group,
                "strays",
                f"{row[0]} rows of {leaf.table.name} are in shard {name} and belong elsewhere",
                f"copy them out of pgherd_shards.{name}, delete them there, insert them through the coordinator",
            )


def _copies(databases: Databases, table: Table, segments: Sequence[int]) -> list[Finding]:
    """Each segment's copy of a reference table has the coordinator's rows. Writers wait while it is looked at."""
    columns = sql.SQL(", ").join(
        sql.Identifier(column["name"])
        for _, column in sorted(table.shape["columns"].items(), key=lambda c: int(c[0]))
    )
    query = (
        sql.SQL(
            "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(ROW({})::text, 0)::numeric), 0) FROM {}"
        )
        .format(columns, sql.SQL(table.name))
        .as_string()
    )
    with databases.connect(COORDINATOR, user=databases.owner, autocommit=False) as desk:
        # the same text of the same value everywhere: postgres_fdw gives its sessions these settings
        desk.execute(
            "SET LOCAL datestyle TO ISO; SET LOCAL intervalstyle TO postgres; SET LOCAL timezone TO GMT;"
            "SET LOCAL extra_float_digits TO 3; SET LOCAL bytea_output TO hex"
        )
        desk.execute(
            "SELECT FROM pgherd.distributed_table WHERE relation = %s::oid FOR NO KEY UPDATE", [table.oid]
        )
        row = desk.execute(query.encode()).fetchone()
        ours = str(row[0]) if row else None
        return [finding for group in segments for finding in _copy_differs(desk, group, table, query, ours)]


def _copy_differs(
    desk: Connection, group: int, table: Table, query: str, ours: str | None
) -> Iterator[Finding]:
    try:
        with desk.transaction():
            row = desk.execute("SELECT pgherd.on_segment(%s, %s, 'value')", [group, query]).fetchone()
    except psycopg.Error as error:
        yield Finding(
            group, "copies", f"reference table {table.name} can't be read: {error}", "see the segment's log"
        )
        return
    if row is None or row[0] != ours:
        yield Finding(
            group,
            "copies",
            f"the copy of reference table {table.name} differs from the coordinator's rows",
            f"SELECT pgherd.repair_table({table.literal})",
        )
