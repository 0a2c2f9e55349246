"""What a move moves, and what it writes down before it makes anything.

All of it is read and written on the coordinator. The clean-up records of a move name every thing it is going to
make; they are committed before the first of them is made and go away with it. The transaction that switches the
placement also swaps the records: the new copy is no longer something to be removed, the old one is. So at any moment
the records say exactly what has to go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from psycopg.rows import class_row

from pgherd.engine.base import ShardGroupId
from pgherd.errors import BadInput
from pgherd.postgres.connections import Connection

SUBSCRIPTION = "subscription"
SLOT = "slot"
PUBLICATION = "publication"
REPLICA_IDENTITY = "replica-identity"
MARKER = "marker"
ARRIVAL = "arrival"
SHARD = "shard"

KINDS = (SUBSCRIPTION, SLOT, PUBLICATION, REPLICA_IDENTITY, MARKER, ARRIVAL, SHARD)
"""the kinds of record that a move writes, in the order in which they are carried out"""

GRACE = "2 seconds"
"""how long the old copy stays at least: readers on the coordinator's standby may hear of the switch a little later"""


@dataclass(frozen=True)
class Shard:
    """One table's part of a shard group."""

    name: str
    """of the leaf, in schema ``pgherd_shards``"""
    table: str
    """the table, schema-qualified and quoted; its twin on a segment is called the same"""


@dataclass(frozen=True)
class Parcel:
    """A shard group on its way."""

    group: ShardGroupId
    source: int
    target: int
    modulus: int
    shards: tuple[Shard, ...]
    move_id: int = 0

    @property
    def thing(self) -> str:
        """Name of the publication, the slot and the subscription: never used by another attempt."""
        return f"pgherd_move_{self.move_id}"


@dataclass(frozen=True)
class Record:
    """One row of ``pgherd.cleanup``."""

    id: int
    group_id: int
    kind: str
    name: str
    detail: dict[str, Any]
    is_due: bool

    @property
    def move_id(self) -> int:
        return int(self.detail["move"])

    @property
    def shard_group(self) -> ShardGroupId:
        return ShardGroupId(int(self.detail["colocation"]), int(self.detail["index"]))


def placement(desk: Connection, group: ShardGroupId) -> int | None:
    """The segment where a shard group lives, or None if there is no such group (any more)."""
    row = desk.execute(
        "SELECT group_id FROM pgherd.shard_group WHERE colocation_id = %s AND index = %s",
        [group.colocation, group.index],
    ).fetchone()
    return None if row is None else int(row[0])


def load_parcel(desk: Connection, group: ShardGroupId, target: int) -> Parcel:
    """What is to be moved, as the coordinator knows it now. Hold the DDL barrier, or it may change.

    :raises BadInput: there is no such shard group or segment
    """
    if desk.execute("SELECT 1 FROM pgherd.segment WHERE group_id = %s", [target]).fetchone() is None:
        raise BadInput(f"segment {target} is not admitted: shards can't be moved there")
    row = desk.execute(
        "SELECT g.group_id, c.shard_count FROM pgherd.shard_group g JOIN pgherd.colocation c ON c.id = g.colocation_id"
        " WHERE g.colocation_id = %s AND g.index = %s",
        [group.colocation, group.index],
    ).fetchone()
    if row is None:
        raise BadInput(f"there is no shard group {group}")
    return Parcel(group, int(row[0]), target, int(row[1]), tuple(shards_of(desk, group)))


def shards_of(desk: Connection, group: ShardGroupId) -> Sequence[Shard]:
    """The shards of one group, in the order in which everybody locks their tables."""
    with desk.cursor(row_factory=class_row(Shard)) as cursor:
        return cursor.execute(
            "SELECT s.name::text, format('%%I.%%I', n.nspname, c.relname) AS table"
            " FROM pgherd.shard s JOIN pgherd.distributed_table d ON d.relation = s.relation"
            " JOIN pg_class c ON c.oid = d.relation JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE d.colocation_id = %s AND s.index = %s ORDER BY d.relation::oid",
            [group.colocation, group.index],
        ).fetchall()


def next_move_id(desk: Connection) -> int:
    """A number no other move has had or will have."""
    row = desk.execute("SELECT nextval(pg_get_serial_sequence('pgherd.cleanup', 'id'))").fetchone()
    return int(cast("tuple[int]", row)[0])


def write_records(
    desk: Connection, operation: int, parcel: Parcel, *, online: bool, full: Iterable[Shard]
) -> None:
    """Write down what a move is about to make. Commits.

    :param full: the shards that need a temporary replica identity
    """
    rows: list[tuple[int, str, str, dict[str, Any]]] = []
    if online:
        rows += [
            (parcel.target, SUBSCRIPTION, parcel.thing, {}),
            (parcel.source, SLOT, parcel.thing, {}),
            (parcel.source, PUBLICATION, parcel.thing, {}),
            (parcel.source, MARKER, str(parcel.move_id), {}),
            (parcel.target, MARKER, str(parcel.move_id), {}),
        ]
        rows += [(parcel.source, REPLICA_IDENTITY, shard.name, {}) for shard in full]
    rows += [(parcel.target, SHARD, shard.name, {"table": shard.table}) for shard in parcel.shards]
    with desk.cursor() as cursor, desk.transaction():
        for group_id, kind, name, detail in rows:
            _insert(cursor, operation, parcel, group_id, kind, name, detail)


def swap_records(desk: Connection, operation: int, parcel: Parcel, arrival: str) -> None:
    """Part of the switching transaction: the target's copy stays, the source's has to go.

    :param arrival: id of the transaction on the target that made the shards visible there
    """
    desk.execute(
        "DELETE FROM pgherd.cleanup WHERE (detail->>'move')::bigint = %s AND kind = ANY(%s)",
        [parcel.move_id, [SHARD, REPLICA_IDENTITY]],
    )
    with desk.cursor() as cursor:
        for shard in parcel.shards:
            _insert(cursor, operation, parcel, parcel.target, ARRIVAL, shard.name, {"arrival": arrival})
            _insert(cursor, operation, parcel, parcel.source, SHARD, shard.name, {"table": shard.table})
    # Readers that began before this transaction's commit may read the old copy until they end.
    desk.execute(
        "UPDATE pgherd.cleanup SET not_before = clock_timestamp() + %s::interval,"
        " detail = detail || jsonb_build_object("
        "'readers_before', pg_current_xact_id()::text, 'since', clock_timestamp())"
        " WHERE (detail->>'move')::bigint = %s AND kind = %s",
        [GRACE, parcel.move_id, SHARD],
    )


def _insert(
    cursor: Any, operation: int, parcel: Parcel, group_id: int, kind: str, name: str, detail: dict[str, Any]
) -> None:
    whose = {"move": parcel.move_id, "colocation": parcel.group.colocation, "index": parcel.group.index}
    cursor.execute(
        "INSERT INTO pgherd.cleanup (operation_id, group_id, kind, name, detail) VALUES (%s, %s, %s, %s, %s)",
        [operation, group_id, kind, name, json.dumps(whose | detail)],
    )


def read_records(
    desk: Connection, operation: int | None = None, group: ShardGroupId | None = None
) -> list[Record]:
    """The records of moves that are still there, in the order in which to carry them out."""
    with desk.cursor(row_factory=class_row(Record)) as cursor:
        return cursor.execute(
            "SELECT id, group_id, kind, name, detail, coalesce(not_before <= clock_timestamp(), true) AS is_due"
            " FROM pgherd.cleanup WHERE kind = ANY(%(kinds)s) AND detail ? 'move'"
            " AND (%(operation)s::bigint IS NULL OR operation_id = %(operation)s)"
            " AND (%(colocation)s::int IS NULL"
            "      OR (detail->>'colocation')::int = %(colocation)s AND (detail->>'index')::int = %(index)s)"
            " ORDER BY (detail->>'move')::bigint, array_position(%(kinds)s, kind), id",
            {
                "kinds": list(KINDS),
                "operation": operation,
                "colocation": group.colocation if group else None,
                "index": group.index if group else None,
            },
        ).fetchall()


def forget(desk: Connection, record: Record) -> None:
    """The thing is gone."""
    desk.execute("DELETE FROM pgherd.cleanup WHERE id = %s", [record.id])


def old_readers(desk: Connection, record: Record) -> str | None:
    """Who on the coordinator may still read the source's copy; None if nobody.

    Only a statement (or cursor) that was running when the placement switched can: every later one looks the
    placement up again. It holds a snapshot that is as old as the switch. (So does everybody while a transaction with
    an older id runs, hence the bound: who began a minute later certainly looked at the new placement.)
    """
    row = desk.execute(
        "SELECT pid, xact_start FROM pg_stat_activity"
        " WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()"
        " AND xact_start < %s::timestamptz + interval '1 minute'"
        " AND age(backend_xmin) >= age(%s::xid8::xid) ORDER BY xact_start LIMIT 1",
        [record.detail["since"], record.detail["readers_before"]],
    ).fetchone()
    return (
        None
        if row is None
        else f"process {row[0]} of the coordinator, in a transaction since {row[1]:%H:%M:%S}"
    )
