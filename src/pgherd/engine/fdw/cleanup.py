"""Taking away what moves have made, from the records they wrote down first.

Every record can be carried out any number of times, at any moment, whatever of the thing exists: a record is only
deleted once the thing is gone. A record of a server that is away, or of a copy that an old reader may still need,
stays for the next time. Records of a shard group that is being moved right now are left alone.

The same code ends every move, undoes a failed one and tidies up after a killed process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import psycopg
from psycopg import sql

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw import move_catalog as catalog
from pgherd.engine.fdw.move_catalog import Record
from pgherd.engine.fdw.move_session import connect, held_here, try_lock, unavailable_if_lost, unlock
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

SHORT_LOCK = "20ms"
"""how long readers of a shard may be kept waiting by a lock that excludes them"""

WRITERS_LOCK = "2s"
"""how long to wait for a lock that readers don't feel; long enough for autovacuum to make way (it does after 1 s)"""

DROP_SLOT_WITHIN = 5.0
"""seconds until a slot's walsender has to be gone"""


class StillNeededError(PgherdError):
    """The thing can't go yet; the record stays."""


class Segments:
    """Sessions on the segments, opened when first asked for."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self._open: dict[tuple[int, bool], Connection | Unavailable] = {}

    def adopt(self, group: int, connection: Connection, *, owner: bool) -> None:
        """Use a session that is open already, from now on as its only user."""
        _prepare(connection)
        self._open[group, owner] = connection

    def superuser(self, group: int) -> Connection:
        """:raises Unavailable: the segment can't be reached"""
        return self._get(group, owner=False)

    def owner(self, group: int) -> Connection:
        """:raises Unavailable: the segment can't be reached"""
        return self._get(group, owner=True)

    def members(self, group: int) -> Iterator[Connection | None]:
        """A session on each member of the segment, standbys too; None for one that does not answer."""
        for endpoint in self._databases.addresses().get(group, ()):
            only = replace(
                self._databases,
                addresses=partial(dict, [(group, [endpoint])]),
                options={**self._databases.options, "target_session_attrs": "any"},
            )
            try:
                with connect(only, group) as connection:
                    yield connection
            except Unavailable:
                yield None

    def _get(self, group: int, *, owner: bool) -> Connection:
        found = self._open.get((group, owner))
        if found is None:
            try:
                found = connect(self._databases, group, owner=owner)
                _prepare(found)
            except Unavailable as error:
                found = error
            self._open[group, owner] = found
        if isinstance(found, Unavailable):
            raise found
        return found

    def close(self) -> None:
        for connection in self._open.values():
            if not isinstance(connection, Unavailable):
                connection.close()


def _prepare(connection: Connection) -> None:
    # What is gone must be gone on the standby too before its record is deleted.
    connection.execute("SET statement_timeout = '20s'; RESET synchronous_commit")


@contextmanager
def segment_sessions(databases: Databases) -> Iterator[Segments]:
    """Sessions that are closed at the end."""
    segments = Segments(databases)
    try:
        yield segments
    finally:
        segments.close()


def clean_up(databases: Databases, operation: int | None = None) -> int:
    """Carry out all records that are due (of one operation, or all) and put the twins' membership right.

    :return: how many records remain
    :raises Unavailable: the coordinator can't be reached
    """
    with (
        unavailable_if_lost("cleaning up"),
        connect(databases, COORDINATOR) as desk,
        segment_sessions(databases) as segments,
    ):
        pending = {record.shard_group for record in catalog.read_records(desk, operation)}
        for group in sorted(pending):
            with _holding(databases, desk, group) as free:
                if free:
                    clean_up_group(desk, segments, group)
        put_membership_right(databases, desk, segments)
        return len(catalog.read_records(desk, operation))


@contextmanager
def _holding(databases: Databases, desk: Connection, group: ShardGroupId) -> Iterator[bool]:
    with held_here(databases, group) as here:
        free = here and try_lock(desk, group)
        try:
            yield free
        finally:
            if free:
                with contextlib.suppress(psycopg.Error):
                    unlock(desk, group)


def clean_up_group(desk: Connection, segments: Segments, group: ShardGroupId) -> int:
    """Carry out the records of one shard group, which the caller holds.

    :return: how many remain
    """
    return len(carry_out(desk, segments, catalog.read_records(desk, group=group)))


def carry_out(desk: Connection, segments: Segments, records: Sequence[Record]) -> list[Record]:
    """Carry out records of shard groups that the caller holds; returns those that remain."""
    left: list[Record] = []
    for record in records:
        published = (catalog.PUBLICATION, record.move_id) in {(each.kind, each.move_id) for each in left}
        if record.kind == catalog.REPLICA_IDENTITY and published:
            left.append(record)  # published without an identity, the table would refuse updates
            continue
        try:
            _HANDLERS[record.kind](desk, segments, record)
        except Unavailable:
            if _takes_part(desk, record.group_id):
                left.append(record)
                continue
        except (StillNeededError, psycopg.Error):
            if desk.broken:
                raise
            left.append(record)
            continue
        catalog.forget(desk, record)
    return left


def _takes_part(desk: Connection, group: int) -> bool:
    """Whether a segment is admitted. One that was retired and does not answer is gone, with all that was on it."""
    return desk.execute("SELECT 1 FROM pgherd.segment WHERE group_id = %s", [group]).fetchone() is not None


# One function for each kind of record


def _drop_subscription(desk: Connection, segments: Segments, record: Record) -> None:
    target = segments.superuser(record.group_id)
    row = target.execute(
        "SELECT 1 FROM pg_subscription WHERE subname = %s"
        " AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
        [record.name],
    ).fetchone()
    if row is None:
        return
    name = sql.Identifier(record.name)
    # Without its slot a subscription can be dropped while the source is away; the slot has its own record.
    target.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(name))
    target.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(name))
    target.execute(sql.SQL("DROP SUBSCRIPTION {}").format(name))


def _drop_slot(desk: Connection, segments: Segments, record: Record) -> None:
    """A slot is on one server only. After a failover that may be a standby, where it would hold back the log."""
    if _drop_slot_on(segments.superuser(record.group_id), record.name):
        return
    silent = 0
    for member in segments.members(record.group_id):
        if member is None:
            silent += 1
        elif _drop_slot_on(member, record.name):
            return
    if silent:
        raise StillNeededError(f"slot {record.name} may be on a member that does not answer")


def _drop_slot_on(server: Connection, name: str) -> bool:
    """Drop a slot if it is on this server; whether it was."""
    deadline = time.monotonic() + DROP_SLOT_WITHIN
    while True:
        row = server.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [name]
        ).fetchone()
        if row is None:
            return False
        if row[0] is not None:
            server.execute("SELECT pg_terminate_backend(%s)", [row[0]])
        try:
            server.execute("SELECT pg_drop_replication_slot(%s)", [name])
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return True


def _drop_publication(desk: Connection, segments: Segments, record: Record) -> None:
    segments.superuser(record.group_id).execute(
        sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(record.name))
    )


def _reset_identity(desk: Connection, segments: Segments, record: Record) -> None:
    owner = segments.owner(record.group_id)
    row = owner.execute(
        "SELECT relreplident FROM pg_class WHERE oid = to_regclass(%s)", [_leaf(record).as_string(owner)]
    ).fetchone()
    if row is None or row[0] != "f":
        return
    _briefly(owner, sql.SQL("ALTER TABLE {} REPLICA IDENTITY DEFAULT").format(_leaf(record)))


def _delete_markers(desk: Connection, segments: Segments, record: Record) -> None:
    segments.superuser(record.group_id).execute(
        "DELETE FROM pgherd.move_marker WHERE move_id = %s", [record.move_id]
    )


def _settle_arrival(desk: Connection, segments: Segments, record: Record) -> None:
    """Take the guard off a shard that has arrived, once no snapshot is left that does not see it."""
    owner = segments.owner(record.group_id)
    row = (
        segments.superuser(record.group_id)
        .execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
            " AND datname = current_database() AND backend_type = 'client backend'"
            " AND age(backend_xmin) >= age(%s::xid8::xid) LIMIT 1",
            [record.detail["arrival"]],
        )
        .fetchone()
    )
    if row is not None:
        raise StillNeededError(
            f"process {row[0]} of segment {record.group_id} began before shard {record.name} came"
        )
    if _exists(owner, record):
        _briefly(
            owner,
            sql.SQL("SELECT pgherd.unguard_shard({})").format(sql.Literal(record.name)),
            sql.SQL("ALTER TABLE {} RESET (autovacuum_enabled, toast.autovacuum_enabled)").format(
                _leaf(record)
            ),
        )


def _drop_shard(desk: Connection, segments: Segments, record: Record) -> None:
    """Remove a copy that the placement does not mean; at once out of sight, later from disk."""
    if catalog.placement(desk, record.shard_group) == record.group_id:
        return  # this is the living copy
    owner = segments.owner(record.group_id)
    if not _exists(owner, record):
        return
    retract(owner, record.name)
    if not record.is_due:
        raise StillNeededError(f"shard {record.name} left segment {record.group_id} a moment ago")
    if "readers_before" in record.detail and (reader := catalog.old_readers(desk, record)):
        raise StillNeededError(f"shard {record.name} is kept on segment {record.group_id} for {reader}")
    _briefly(owner, sql.SQL("DROP TABLE {}").format(_leaf(record)))


_HANDLERS: Mapping[str, Callable[[Connection, Segments, Record], None]] = {
    catalog.SUBSCRIPTION: _drop_subscription,
    catalog.SLOT: _drop_slot,
    catalog.PUBLICATION: _drop_publication,
    catalog.REPLICA_IDENTITY: _reset_identity,
    catalog.MARKER: _delete_markers,
    catalog.ARRIVAL: _settle_arrival,
    catalog.SHARD: _drop_shard,
}


def _leaf(record: Record) -> sql.Identifier:
    return sql.Identifier("pgherd_shards", record.name)


def _exists(owner: Connection, record: Record) -> bool:
    row = owner.execute("SELECT to_regclass(%s)", [_leaf(record).as_string(owner)]).fetchone()
    return row is not None and row[0] is not None


def _briefly(owner: Connection, *statements: sql.Composed, attempts: int = 10) -> None:
    """Run statements whose lock excludes readers, never keeping them waiting for long.

    :raises psycopg.errors.LockNotAvailable: it was not to be had now
    """
    for attempt in range(1, attempts + 1):
        try:
            with owner.transaction():
                owner.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(SHORT_LOCK)))
                for statement in statements:
                    owner.execute(statement)
            return
        except psycopg.errors.LockNotAvailable:
            if attempt == attempts:
                raise
            time.sleep(0.02 * attempt)


def retract(owner: Connection, shard: str) -> None:
    """Let nobody write to a leaf, and take it out of its twin, without keeping any reader waiting.

    :raises psycopg.errors.LockNotAvailable: readers of the twin are still at it; already invisible to new ones
    """
    with owner.transaction():
        owner.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(WRITERS_LOCK)))
        owner.execute("SELECT pgherd.fence_shard(%s)", [shard])
    row = owner.execute(
        "SELECT parent::text, detach_pending FROM pgherd.shard_parent(%s)", [shard]
    ).fetchone()
    if row is None or row[0] is None:
        return
    leaf = sql.Identifier("pgherd_shards", shard).as_string(owner)
    owner.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(SHORT_LOCK)))
    try:
        how = "FINALIZE" if row[1] else "CONCURRENTLY"
        owner.execute(f"ALTER TABLE {row[0]} DETACH PARTITION {leaf} {how}".encode())
    finally:
        if not owner.broken:
            owner.execute("RESET lock_timeout")


# Membership: a leaf is attached to its twin exactly where the placement says that its shard lives


def put_membership_right(databases: Databases, desk: Connection, segments: Segments) -> None:
    """Attach and detach what a crash left otherwise. Shards that the coordinator does not know are not touched."""
    wanted = _placed_shards(desk)
    for segment in sorted({row[0] for row in desk.execute("SELECT group_id FROM pgherd.segment").fetchall()}):
        with contextlib.suppress(Unavailable, psycopg.Error):
            for name, attached in _leaves(segments.superuser(segment)).items():
                if name in wanted and attached != (wanted[name][1] == segment):
                    _put_right(databases, desk, segments, segment, name, wanted[name][0])
        if desk.broken:
            raise Unavailable("the coordinator went away")


def _placed_shards(desk: Connection) -> dict[str, tuple[ShardGroupId, int]]:
    rows = desk.execute(
        "SELECT s.name::text, g.colocation_id, g.index, g.group_id"
        " FROM pgherd.shard s JOIN pgherd.distributed_table d ON d.relation = s.relation"
        " JOIN pgherd.shard_group g ON g.colocation_id = d.colocation_id AND g.index = s.index"
    ).fetchall()
    return {row[0]: (ShardGroupId(row[1], row[2]), row[3]) for row in rows}


def _leaves(segment: Connection) -> dict[str, bool]:
    """Every leaf of a segment, and whether it can be seen through its twin."""
    rows = segment.execute(
        "SELECT c.relname::text, i.inhrelid IS NOT NULL AND NOT i.inhdetachpending"
        " FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid"
        " WHERE c.relkind = 'r' AND c.relnamespace = 'pgherd_shards'::regnamespace"
    ).fetchall()
    return dict(rows)


def _put_right(
    databases: Databases, desk: Connection, segments: Segments, segment: int, name: str, group: ShardGroupId
) -> None:
    with _holding(databases, desk, group) as free:
        if not free:
            return  # a move is at it
        home = catalog.placement(desk, group)
        owner = segments.owner(segment)
        if home == segment:
            parcel = catalog.load_parcel(desk, group, segment)
            table = next((shard.table for shard in parcel.shards if shard.name == name), None)
            if table is not None:
                _briefly(
                    owner,
                    sql.SQL("SELECT pgherd.attach_shard({}, {}, {}, {})").format(
                        table, name, parcel.modulus, group.index
                    ),
                )
        elif home is not None:
            retract(owner, name)
