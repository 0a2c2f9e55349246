"""Splitting a segment: its physical copy, a standby until then, becomes a segment of its own with half of the shards.

``citus_promote_clone_and_rebalance`` promotes the copy and changes the metadata in one transaction, whose commit is
the decision: until then the source has everything, and a copy that was promoted too early is thrown away and made anew;
from then on each of the two has its part. Our own rows (who takes part) are written in the same transaction.

What that function leaves open is done here, before it or after it:

* It keeps writers of the coordinator out, but not those of other nodes: the shards are locked on all of them, until the
  commit has reached each (``holding``).
* Making and changing tables meanwhile would reach one of the two only: ``pg_dist_node`` is locked, these wait for it.
* What a crash left prepared on the source would be on the copy too, where nobody knows how it ended: that is resolved.
* It looks at the first standby that comes from the copy's address, whichever that is (``clone_place``).
* It numbers the new group by a sequence, we by our own counting.
* The copy's sequences would give the values that the source's give: they get their own range.
* The promoted copy would end two-phase commits that its source has begun: it is kept from that (``clone_name``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import psycopg
from psycopg import sql

from pgherd.engine.base import Clone, MoveControl
from pgherd.engine.citus import cleanup, clone_name, clone_place, nodes, numbering
from pgherd.engine.citus.clone_name import SEQUENCES
from pgherd.engine.citus.holding import HOLD_SECONDS, Hold
from pgherd.engine.citus.move import end_predecessor
from pgherd.engine.citus.session import only, superuser, value
from pgherd.engine.citus.versions import numbers
from pgherd.errors import Cancelled, PgherdError, Unavailable, one_line
from pgherd.model.topology import Endpoint, group_name
from pgherd.postgres.connections import Connection, Databases

SINCE = (13, 2)
"""the first Citus that can"""
CLONE = "clone"
"""kind of the clean-up record of a copy"""
COPYING, PARTING, UNDONE = "copying", "parting", "undone"
SMALL_LAG = 1 << 20
"""bytes that a copy may be behind when writers are made to wait for it"""
HOPELESS_AFTER = 5
"""attempts to split a segment after which it is given up"""
PATIENCE = "3s"
"""how long writers are held up while we wait for one that does not end; then all go on, and we try again"""
ATTEMPTS = 5
"""to reach a copy, until it counts as not there"""
LAST_BYTE_SECONDS = 5.0
"""how long writers wait for a copy to have the last of what they wrote"""
RETURN_SECONDS = 10.0
"""after which a copy that is about to part and does not follow its source is given up"""
_BEHIND = """\
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn) FROM pg_stat_replication r
JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = %s AND r.state = 'streaming'"""
_GIVE_WAY = "SET LOCAL deadlock_timeout TO '20ms'"
"""whoever waits for us while we wait for him goes on: it is we who try again"""


def problems(databases: Databases) -> list[str]:
    """What keeps segments from being split, one sentence each."""
    with superuser(databases) as desk:
        version = str(value(desk, "SELECT extversion FROM pg_extension WHERE extname = 'citus'"))
    return [refusal] if (refusal := too_old(version)) else []


def too_old(version: str) -> str | None:
    """Why this version of the extension can't split segments; None if it can."""
    if numbers(version) >= SINCE:
        return None
    return (
        f"spec.expansion.mode: clone needs Citus {SINCE[0]}.{SINCE[1]} or later, here is {version}: use online or"
        " blocking"
    )


# what is written down


def clones(databases: Databases) -> Mapping[int, Clone]:
    """See :meth:`pgherd.engine.base.Engine.clones`."""
    with superuser(databases) as desk:
        rows = desk.execute("SELECT group_id, source_id, state FROM pgherd.clone ORDER BY 1").fetchall()
    return {group: Clone(source, state) for group, source, state in rows}


def begin(databases: Databases, operation: int, group: int, source: int) -> bool:
    """See :meth:`pgherd.engine.base.Engine.begin_clone`."""
    with superuser(databases) as desk, desk.transaction():
        row = desk.execute(
            "SELECT source_id, operation_id, state FROM pgherd.clone WHERE group_id = %s FOR UPDATE", [group]
        ).fetchone()
        # Whoever was killed may commit just now: the row was waited for, and is gone with that commit.
        if _takes_part(desk, group):
            return True
        if row is None:
            state = UNDONE if databases.addresses().get(group) else COPYING
            if state == COPYING:
                _forget_node(desk, group)
            _write_down(desk, operation, group, source, state)
            return state == COPYING
        if row[:2] == (source, operation) and row[2] != UNDONE:
            return True
        if databases.addresses().get(group):
            _set(desk, group, UNDONE)
            return False
        _forget_node(desk, group)
        desk.execute(
            "UPDATE pgherd.clone SET source_id = %s, operation_id = %s, state = %s WHERE group_id = %s",
            [source, operation, COPYING, group],
        )
    return True


def _write_down(desk: Connection, operation: int, group: int, source: int, state: str) -> None:
    desk.execute(
        "INSERT INTO pgherd.cleanup (operation_id, group_id, kind, name) VALUES (%s, %s, %s, %s)",
        [operation, group, CLONE, group_name(group)],
    )
    desk.execute(
        "INSERT INTO pgherd.clone (group_id, source_id, operation_id, state) VALUES (%s, %s, %s, %s)",
        [group, source, operation, state],
    )


def _takes_part(desk: Connection, group: int) -> bool:
    return bool(value(desk, "SELECT count(*) FROM pgherd.segment WHERE group_id = %s", [group]))


def hold(databases: Databases, group: int) -> None:
    """See :meth:`pgherd.engine.base.Engine.hold_clone`."""
    with superuser(databases) as desk:
        _set(desk, group, PARTING)


def _set(desk: Connection, group: int, state: str) -> None:
    desk.execute(
        "UPDATE pgherd.clone SET state = %s WHERE group_id = %s AND state <> %s", [state, group, UNDONE]
    )


def remove_undone(databases: Databases) -> int:
    """Give up the copies that no operation is about, and forget those whose members are gone.

    :return: how many clean-up records remain
    """
    with superuser(databases) as desk:
        desk.execute(
            "UPDATE pgherd.clone c SET state = %s WHERE NOT EXISTS ("
            "SELECT FROM pgherd.operations o WHERE o.id = c.operation_id AND o.finished_at IS NULL)",
            [UNDONE],
        )
        for (group,) in desk.execute(
            "SELECT group_id FROM pgherd.clone WHERE state = %s", [UNDONE]
        ).fetchall():
            if not databases.addresses().get(group):
                with desk.transaction():
                    _forget_undone(desk, group)
        remaining = int(value(desk, "SELECT count(*) FROM pgherd.cleanup WHERE kind = %s", [CLONE]))
    # The last: a segment that is down must not keep copies alive that nobody wants.
    own_sequences(databases)
    return remaining


def _forget_node(desk: Connection, group: int) -> None:
    """Whoever had this number and is gone: a copy that was given up, also where Patroni took it for a segment for a
    moment, or a segment that left just now."""
    rows = desk.execute(
        "SELECT nodename, nodeport, nodeisclone FROM pg_dist_node WHERE groupid = %s", [group]
    ).fetchall()
    if rows:
        nodes.end_last_switchover(desk)
    for host, port, is_clone in rows:
        function = "citus_remove_clone_node" if is_clone else "citus_remove_node"
        desk.execute(f"SELECT {function}(%s, %s)".encode(), [host, port])
    _forget_leftovers(desk, group)


def _forget_leftovers(desk: Connection, group: int) -> None:
    """What was to be dropped on an earlier node of this number went with it. Citus goes by the number and the name: it
    would drop a shard of the same name that is in use."""
    desk.execute("DELETE FROM pg_dist_cleanup WHERE node_group_id = %s", [group])


def _forget_undone(desk: Connection, group: int) -> None:
    """No-op if an operation has begun it anew meanwhile."""
    query = "SELECT FROM pgherd.clone WHERE group_id = %s AND state = %s FOR UPDATE"
    if desk.execute(query, [group, UNDONE]).fetchone() is None:
        return
    _forget_node(desk, group)
    desk.execute("DELETE FROM pgherd.clone WHERE group_id = %s", [group])
    desk.execute("DELETE FROM pgherd.cleanup WHERE kind = %s AND group_id = %s", [CLONE, group])


# the copy as a standby


def what_is_missing(databases: Databases, group: int) -> str | None:
    """See :meth:`pgherd.engine.base.Engine.is_copied`."""
    clone = clones(databases).get(group)
    if clone is None:
        return None
    name = f"{group_name(group)}, a copy of {group_name(clone.source)},"
    follows = _follows(databases, group)
    lag = _lag(databases, group, clone) if follows else None
    if follows is False or (lag is None and clone.state == PARTING):
        with superuser(databases) as desk:
            if not _was_decided(databases, desk, group):
                _set(desk, group, UNDONE)
        return f"{name} was interrupted: it is made anew"
    if follows is None:
        return f"{name} is being made"
    if lag is None:
        return f"{name} is catching up"
    return None if lag < SMALL_LAG else f"{name} is {lag >> 20} MiB behind"


def _lag(databases: Databases, group: int, clone: Clone) -> int | None:
    """How many bytes the copy is behind its source's primary; None: it does not follow that.

    About to part, it is waited for: in the pause nobody starts it again, lets another of its members lead, or tells it
    of another primary, so what does not come back by itself never will.
    """
    deadline = time.monotonic() + (RETURN_SECONDS if clone.state == PARTING else 0.0)
    while True:
        with superuser(databases, clone.source) as source:
            lag = value(source, _BEHIND, [clone_place.slot(group)])
        if lag is not None or time.monotonic() >= deadline:
            return None if lag is None else int(lag)
        time.sleep(0.2)


def _follows(databases: Databases, group: int) -> bool | None:
    """Whether the copy is a standby, each of its members that answers; None: none does."""
    for _ in range(ATTEMPTS):
        endpoints = databases.addresses().get(group, ())
        said = [_is_standby(only(databases, group, endpoint), group) for endpoint in endpoints]
        if known := [answer for answer in said if answer is not None]:
            return all(known)
        time.sleep(0.2)
    return None


def _is_standby(alone: Databases, group: int) -> bool | None:
    with suppress(Unavailable, psycopg.OperationalError), alone.connect(group, read_only=True) as member:
        return bool(value(member, "SELECT pg_is_in_recovery()"))
    return None


# the decision


def split(databases: Databases, operation: int, group: int, source: int, control: MoveControl) -> None:
    """See :meth:`pgherd.engine.base.Engine.split`."""
    with superuser(databases) as desk:
        if _was_decided(databases, desk, group):
            _finish_prepared(desk)
            return
        _require_standby(databases, desk, group)
        cleanup.clean_up(databases, operation)
        desk.execute("SELECT recover_prepared_transactions()")
        try:
            copy = clone_place.leader(databases, group)
            with clone_place.in_front(databases, group, source, copy.host):
                number = _registered(desk, group, source, copy)
                control.checkpoint("registered")
                _part(databases, operation, group, source, number, only(databases, group, copy))
        except Cancelled:
            raise
        except (psycopg.Error, PgherdError) as error:
            raise _failure(databases, desk, group, error) from error
    control.checkpoint("switched")


def _session(group: int) -> str:
    return f"pgherd split {group}"


def _was_decided(databases: Databases, desk: Connection, group: int) -> bool:
    """Whether somebody who was killed had split it off. If not, whoever waits for his decision waits no more."""
    end_predecessor(desk, _session(group))
    if _takes_part(desk, group):
        return True
    for segment in nodes.segments(databases):
        with superuser(databases, segment) as node:
            end_predecessor(node, _session(group))
    return False


def _require_standby(databases: Databases, desk: Connection, group: int) -> None:
    """:raises Unavailable: whoever came before us has promoted it and was killed: it has to be made anew"""
    if _follows(databases, group):
        return
    _set(desk, group, UNDONE)
    raise Unavailable(f"{group_name(group)} was promoted, but not taken in: it is made anew")


def _registered(desk: Connection, group: int, source: int, where: Endpoint) -> int:
    """The copy's number as a node of Citus, under the number of our group."""
    primary = nodes.nodes(desk).get(source)
    if primary is None:
        raise Unavailable(f"{group_name(source)} is not a node of Citus")
    with desk.transaction():
        desk.execute("LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE")
        if not value(desk, "SELECT count(*) FROM pg_dist_node WHERE groupid = %s", [group]):
            desk.execute("SELECT setval('pg_catalog.pg_dist_groupid_seq', %s, false)", [group])
        node = value(
            desk, "SELECT citus_add_clone_node_with_nodeid(%s, %s, %s)", [where.host, where.port, primary.id]
        )
        given = value(desk, "SELECT groupid FROM pg_dist_node WHERE nodeid = %s", [node])
        if given != group:
            raise Unavailable(f"Citus numbered {group_name(group)} {given}: registering it again")
    return int(node)


def _part(databases: Databases, operation: int, group: int, source: int, node: int, alone: Databases) -> None:
    """:param alone: the copy's member that follows the source"""
    clone_name.require_quiet(databases, group)
    segments = nodes.segments(databases)
    # All sessions are there before the first writer has to wait.
    with (
        superuser(databases) as desk,
        ExitStack() as closed,
        alone.connect(group, read_only=True) as copy,
        superuser(databases, source) as original,
        superuser(
            databases, autocommit=False, application_name=_session(group), lock_timeout=PATIENCE
        ) as connection,
    ):
        others = [
            closed.enter_context(_to_be_closed(databases, segment, _session(group))) for segment in segments
        ]
        connection.execute("SET LOCAL client_min_messages TO error; SET LOCAL statement_timeout TO 0")
        connection.execute(_GIVE_WAY)
        connection.execute("LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE")
        query = "SELECT shardid FROM pg_dist_placement WHERE groupid = %s ORDER BY 1"
        shards = [row[0] for row in connection.execute(query, [source]).fetchall()]
        for each in (connection, *others):
            if shards:
                each.execute("SELECT lock_shard_metadata(7, %s::bigint[])", [shards])  # ExclusiveLock
        _require_settled(connection, original, source)
        _forget_leftovers(connection, group)
        _await_last_byte(original, copy, group)
        connection.execute("SELECT citus_promote_clone_and_rebalance(%s)", [node])
        _take_in(connection, operation, group, source)
        has_shards = sql.SQL("EXISTS (SELECT FROM pg_catalog.pg_dist_placement WHERE groupid = {})").format(
            group
        )
        if not value(connection, f"SELECT {has_shards.as_string(connection)}"):
            connection.commit()
            return
        held = Hold(others, has_shards)
        _decide(connection, held)
        held.wait(lambda: _finish_prepared(desk))
        _await_shown(databases, segments, has_shards, desk)


def _decide(connection: Connection, held: Hold) -> None:
    """Commit, with the writers of other nodes held."""
    sent = False
    try:
        held.start()
        sent = True
        connection.commit()
    except Exception:
        # Who does not hear how it ended leaves it to the nodes: they see it.
        if not (sent and connection.closed):
            held.release()
        raise


def _await_shown(
    databases: Databases, segments: Collection[int], shown: sql.Composed, desk: Connection
) -> None:
    """A node whose server was started anew meanwhile holds nobody any more, and has the decision prepared at most.

    :raises Unavailable: one does not come back
    """
    deadline = time.monotonic() + HOLD_SECONDS
    for segment in segments:
        while not _shows(databases, segment, shown):
            if time.monotonic() > deadline:
                raise Unavailable(f"{group_name(segment)} does not show the new placement yet")
            _finish_prepared(desk)
            time.sleep(0.1)


def _shows(databases: Databases, segment: int, shown: sql.Composed) -> bool:
    with suppress(Unavailable, psycopg.OperationalError), superuser(databases, segment) as node:
        return bool(value(node, f"SELECT {shown.as_string(node)}"))
    return False


def _finish_prepared(desk: Connection) -> None:
    """Bring what was decided to the nodes that were away when it was."""
    with suppress(psycopg.Error):
        desk.execute("SELECT recover_prepared_transactions()")


@contextmanager
def _to_be_closed(databases: Databases, group: int, session: str) -> Iterator[Connection]:
    """A session in which writers through this node can be kept out; it changes nothing."""
    with superuser(
        databases, group, autocommit=False, application_name=session, lock_timeout=PATIENCE
    ) as connection:
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # it has to see what others commit
        connection.execute(_GIVE_WAY)
        yield connection
        if not connection.closed:  # its server may be gone, and with it whoever was kept out
            connection.rollback()


def _require_settled(desk: Connection, original: Connection, source: int) -> None:
    """:raises Unavailable: the source has transactions that are neither committed nor rolled back, or what a move left:
    the copy would have it for ever"""
    if left := value(desk, "SELECT count(*) FROM pg_dist_cleanup WHERE node_group_id = %s", [source]):
        raise Unavailable(f"{left} leftovers of moves are to be removed from {group_name(source)} first")
    if left := value(original, "SELECT count(*) FROM pg_prepared_xacts"):
        raise Unavailable(f"{group_name(source)} has {left} prepared transactions: waiting for their end")


def _await_last_byte(original: Connection, copy: Connection, group: int) -> None:
    """Citus looks once, and then again after five seconds. It compares numbers only: a copy that has more of a primary
    that failed than its successor has of it passes there, and has not what the successor wrote since."""
    deadline = time.monotonic() + LAST_BYTE_SECONDS
    while time.monotonic() < deadline:
        end = value(original, "SELECT pg_current_wal_lsn()::text")
        has_it = value(copy, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [end])
        if has_it and value(original, _BEHIND, [clone_place.slot(group)]) is not None:
            return
        time.sleep(0.01)
    raise Unavailable(f"{group_name(group)} does not get what its source has: trying again")


def _take_in(connection: Connection, operation: int, group: int, source: int) -> None:
    """The group is a segment from this transaction's commit on.

    :raises Unavailable: somebody has given the copy up, and its members may go at any moment
    """
    taken = connection.execute(
        "DELETE FROM pgherd.clone WHERE group_id = %s AND state = %s", [group, PARTING]
    )
    if taken.rowcount != 1:
        raise Unavailable(f"{group_name(group)} was given up meanwhile")
    connection.execute("INSERT INTO pgherd.segment (group_id) VALUES (%s)", [group])
    connection.execute("DELETE FROM pgherd.cleanup WHERE kind = %s AND group_id = %s", [CLONE, group])
    for place, kind, name in ((source, cleanup.MOVE, f"split {group}"), (group, SEQUENCES, str(source))):
        connection.execute(
            "INSERT INTO pgherd.cleanup (operation_id, group_id, kind, name) VALUES (%s, %s, %s, %s)",
            [operation, place, kind, name],
        )


def _failure(databases: Databases, desk: Connection, group: int, error: Exception) -> PgherdError:
    """What a failed attempt means. The copy, if it still is one, stays as it is for the next."""
    reason = f"{group_name(group)} could not be split off: {one_line(error)}"
    if isinstance(error, Unavailable | psycopg.OperationalError):
        return Unavailable(reason)
    failures = value(
        desk,
        "UPDATE pgherd.clone SET failures = failures + 1 WHERE group_id = %s RETURNING failures",
        [group],
    )
    return Unavailable(reason) if (failures or 0) < HOPELESS_AFTER else PgherdError(reason)


def own_sequences(databases: Databases, only: int | None = None) -> None:
    """Sequences give a node's own values; those of a source are its copy's, too, until this is done.

    With the record goes what keeps the segment from recovering: it has to know its own number before.

    :param only: of this segment; None: of all
    :raises Unavailable: a segment can't be reached, or the split's commit has not reached it
    """
    with superuser(databases) as desk:
        query = (
            "SELECT id, group_id, name::int FROM pgherd.cleanup WHERE kind = %(kind)s"
            " AND (group_id = %(only)s OR %(only)s::int IS NULL) ORDER BY id"
        )
        for record, group, source in desk.execute(query, {"kind": SEQUENCES, "only": only}).fetchall():
            if _takes_part(desk, group):
                clone_name.require_own(databases, group)
                numbering.begin_anew(databases, desk, group, source)
            desk.execute("DELETE FROM pgherd.cleanup WHERE id = %s", [record])
