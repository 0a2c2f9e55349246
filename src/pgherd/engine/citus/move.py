"""One move: ``citus_move_shard_placement`` in a session of its own, watched from another.

The metadata change at its end is one transaction over all nodes, so a move is done or it is not. What an interrupted
one leaves is in Citus's own clean-up records, written before each thing was made; nobody else may touch it while the
session lives, so a successor ends that session first.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psycopg

from pgherd.engine.base import MoveControl, ShardGroupId
from pgherd.engine.citus import cleanup, nodes
from pgherd.engine.citus.blockers import SlotWait
from pgherd.engine.citus.session import superuser, value
from pgherd.engine.citus.versions import numbers
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable, one_line
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.postgres.connections import Connection, Databases

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
END_SECONDS = 20.0
"""how long a session that was told to end may take to undo what it has made"""

_PARALLEL_SINCE = (13, 2)
_BUSY = "could not acquire the lock required to"
"""Citus does not wait for others at work on a colocation, and has no SQLSTATE for it"""
_END = """\
SELECT count(CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' THEN pg_terminate_backend(pid) ELSE true END)
  FROM pg_stat_activity WHERE application_name = %s"""
"""ended while it waits for its standby, a session would tell the other nodes to commit what only this disk has"""

_SETTING_UP = "Setting Up"
MOMENTS: Mapping[str, str] = {
    _SETTING_UP: "created",
    "Copying Data": "slot",
    "Catching Up": "copied",
    "Creating Constraints": "subscribed",
    "Final Catchup": "caught-up",
    "Creating Foreign Keys": "attached",
    "Completing": "attached",
    "Completed": "switched",
}
"""Citus's words for the phases of a move, as the moments that operations know"""


@dataclass(frozen=True)
class Route:
    """What moves from where to where."""

    shard: int
    """one shard of the group; Citus takes those of colocated tables along"""
    source: nodes.Node
    target: nodes.Node
    session: str
    """the moving session's application_name"""


def move(
    databases: Databases,
    operation: int,
    group: ShardGroupId,
    target: int,
    control: MoveControl,
    *,
    blocking: bool = False,
) -> None:
    """Bring one shard group to ``target``; see :meth:`pgherd.engine.base.Engine.move`."""
    with superuser(databases) as desk:
        session = f"pgherd move {group}"
        end_predecessor(desk, session)
        known = nodes.nodes(desk)
        route = _route(desk, known, group, target, session)
        if route is None:
            return
        _record(desk, operation, group, route)
        control.checkpoint("recorded")
        slots = SlotWait(databases, route.source, known)
        mover = _Mover(databases, route, "block_writes" if blocking else "auto")
        try:
            _watch(desk, mover, control, route, slots)
        except Cancelled:
            if not mover.call_off():
                cleanup.clean_up(databases, operation)
                raise
        _judge(databases, mover, route)
    control.checkpoint("switched")


def alone(databases: Databases) -> Callable[[ShardGroupId], object]:
    """See :meth:`pgherd.engine.base.Engine.alone`: before 13.2 one shard group of a colocation moves at a time."""
    with superuser(databases) as desk:
        version = value(desk, "SELECT extversion FROM pg_extension WHERE extname = 'citus'")
    return alone_in(str(version))


def alone_in(version: str) -> Callable[[ShardGroupId], object]:
    """The same, for one version of the extension such as ``13.0-1``."""
    if numbers(version) >= _PARALLEL_SINCE:
        return lambda group: group
    # Tables of one shard are one family for us, for Citus each is a colocation.
    return lambda group: group.colocation or group


def _route(
    desk: Connection, known: Mapping[int, nodes.Node], group: ShardGroupId, target: int, session: str
) -> Route | None:
    """None: it is there already."""
    row = desk.execute(
        "SELECT min(shard_id), min(group_id) FROM pgherd.shard_map WHERE colocation_id = %s AND index = %s",
        [group.colocation, group.index],
    ).fetchone()
    if row is None or row[0] is None:
        raise BadInput(f"there is no shard group {group}")
    if row[1] == target:
        return None
    for each in (row[1], target):
        if each not in known or not known[each].active:
            raise Unavailable(f"{group_name(each)} is not an active node of Citus")
    return Route(row[0], known[row[1]], known[target], session)


def _record(desk: Connection, operation: int, group: ShardGroupId, route: Route) -> None:
    desk.execute(
        "INSERT INTO pgherd.cleanup (operation_id, group_id, kind, name)"
        " SELECT %(operation)s, %(group)s, %(kind)s, %(name)s"
        " WHERE NOT EXISTS (SELECT FROM pgherd.cleanup WHERE kind = %(kind)s AND name = %(name)s"
        " AND operation_id = %(operation)s)",
        {"operation": operation, "group": route.source.group, "kind": cleanup.MOVE, "name": str(group)},
    )


def end_predecessor(desk: Connection, session: str) -> None:
    """The session of whoever began this and was killed: Citus would refuse a second one.

    One that has committed and waits for its standby is waited for, too.

    :raises Unavailable: it does not end
    """
    deadline = time.monotonic() + END_SECONDS
    while value(desk, _END, [session]):
        if time.monotonic() > deadline:
            raise Unavailable(f"an earlier session of '{session}' does not end")
        time.sleep(POLL_SECONDS)


class _Mover:
    """The moving session, in a thread of its own."""

    def __init__(self, databases: Databases, route: Route, mode: str) -> None:
        self.error: Exception | None = None
        self._databases = databases
        self._connection = superuser(databases, COORDINATOR, application_name=route.session, lock_timeout="0")
        self._route, self._mode = route, mode
        self._thread = threading.Thread(target=self._run, name=route.session, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._connection as connection:
                connection.execute("SET client_min_messages TO error; SET statement_timeout TO 0")
                connection.execute(
                    "SELECT citus_move_shard_placement(%s, %s::int, %s::int, %s::citus.shard_transfer_mode)",
                    [self._route.shard, self._route.source.id, self._route.target.id, self._mode],
                )
        except (psycopg.Error, OSError) as error:
            self.error = error

    def is_done(self, seconds: float) -> bool:
        """Wait so long for the end."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def call_off(self) -> bool:
        """Have it undone, unless it is too late; returns whether the shards have moved."""
        deadline = time.monotonic() + END_SECONDS
        while not self.is_done(POLL_SECONDS):
            with contextlib.suppress(psycopg.Error, OSError, Unavailable):
                if time.monotonic() > deadline:
                    self._connection.close()
                    break
                if not self._waits_for_standby():
                    self._connection.cancel_safe(timeout=5.0)
        return self.error is None and not self._thread.is_alive()

    def _waits_for_standby(self) -> bool:
        """It has committed then: called off, it would have the other nodes follow before any other disk has that."""
        query = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
        with superuser(self._databases) as desk:
            return bool(value(desk, query, [self._connection.info.backend_pid]))


def _watch(desk: Connection, mover: _Mover, control: MoveControl, route: Route, slots: SlotWait) -> None:
    """Until it ends; tells how far it is, and hears what is wished.

    :raises Cancelled: from ``control``
    """
    moment = "created"
    while not mover.is_done(POLL_SECONDS):
        with contextlib.suppress(psycopg.Error):
            moment = _report(desk, control, route, slots) or moment
        control.checkpoint(moment)


def _report(desk: Connection, control: MoveControl, route: Route, slots: SlotWait) -> str | None:
    row = desk.execute(
        "SELECT max(status), sum(target_shard_size)::bigint FROM get_rebalance_progress()"
        " WHERE targetport = %s AND targetname = %s AND shardid IN (SELECT m.shard_id FROM pgherd.shard_map m"
        " JOIN pgherd.shard_map one USING (colocation_id, index) WHERE one.shard_id = %s)",
        [route.target.port, route.target.host, route.shard],
    ).fetchone()
    if row is None or row[0] is None:
        return None
    ends = f"from {group_name(route.source.group)} to {group_name(route.target.group)}"
    why = slots.told() if row[0] == _SETTING_UP else ""
    control.report(f"shard {route.shard} {ends}: {str(row[0]).lower()}{why}", row[1])
    return MOMENTS.get(str(row[0]))


def _judge(databases: Databases, mover: _Mover, route: Route) -> None:
    """What the end of the moving session means.

    :raises Unavailable: a server went away, or somebody is making a table of the same colocation
    :raises PgherdError: it was refused although every server answers
    """
    if mover.error is None:
        return
    reason = one_line(mover.error)
    if isinstance(mover.error, psycopg.OperationalError) or _BUSY in reason:
        raise Unavailable(reason) from mover.error
    for group in (COORDINATOR, route.source.group, route.target.group):
        with superuser(databases, group):
            pass
    raise PgherdError(reason) from mover.error
