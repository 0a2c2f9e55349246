"""Bringing one shard group to another segment while everybody goes on reading and writing.

The course of a move (`Move` does one attempt, :func:`move_shard_group` repeats it when it has to give way):

1. *hold* the group, so that nobody else moves it or cleans up after it, and tidy what a former attempt left;
2. *barrier*: hold DDL off for as long as the move takes, in an idle transaction of its own;
3. *recorded*: write down everything that is about to be made;
4. *created*: leaves on the target, which nobody sees yet;
5. *slot*, *copied*: a snapshot of the source and all later changes; copy what the snapshot has;
6. *subscribed*, *caught-up*: apply the changes until the target is only milliseconds behind;
7. *attached*, *switched*: the cutover (see move_cutover.py); its commit on the coordinator decides;
8. *detached*, *cleaned*: the source's copy is out of sight, the stream is taken down.

Killed before the commit, everything made is taken away by its records and the move is done again from the start.
Killed after it, the rest is done from the records too. If it is not known whether the commit happened, the placement
is read again, once the session that asked for the commit is certainly gone.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg
from psycopg import sql

from pgherd.engine.base import MoveControl, ShardGroupId
from pgherd.engine.fdw import move_blockers as blockers
from pgherd.engine.fdw.cleanup import carry_out, clean_up_group, retract, segment_sessions
from pgherd.engine.fdw.move_catalog import (
    MARKER,
    SLOT,
    Parcel,
    Shard,
    load_parcel,
    next_move_id,
    placement,
    read_records,
    write_records,
)
from pgherd.engine.fdw.move_copy import copy_leaf, leaf, throttled
from pgherd.engine.fdw.move_cutover import Cutover
from pgherd.engine.fdw.move_preflight import preflight, unfit_reason
from pgherd.engine.fdw.move_session import (
    BlockedError,
    connect,
    held_here,
    lock_with_deadline,
    patiently,
    polite_watch,
    unavailable_if_lost,
)
from pgherd.engine.fdw.move_stream import (
    Markers,
    Slot,
    check_subscription,
    create_publication,
    create_subscription,
    lag_bytes,
    probe_commit,
    read_snapshot,
    set_full_identity,
    without_identity,
)
from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

__all__ = ["move_shard_group", "preflight"]

HOLD_SECONDS = 30.0
"""how long to wait for a dying session that still holds the group"""

GIVE_WAY_AFTER = 3.0
"""seconds of being blocked until we look whether those who block us wait for us"""

SMALL_LAG = 0.1
"""seconds a marker may take before the cutover is tried"""

SLOW_COMMIT = 0.2
"""seconds a commit on the target may take before the cutover is tried"""

_TRANSIENT = (Unavailable, BlockedError, psycopg.OperationalError, psycopg.InterfaceError)


class GiveWayError(PgherdError):
    """A transaction that blocks this move waits for it: one has to let the other go first, and that is us."""


def move_shard_group(
    databases: Databases,
    operation: int,
    group: ShardGroupId,
    target: int,
    control: MoveControl,
    *,
    blocking: bool = False,
) -> None:
    """Bring ``group`` to ``target``; returns at once if it is there.

    :param operation: id in ``pgherd.operations``, for the clean-up records
    :param blocking: keep writers out for the whole copy instead of replicating changes
    :raises BadInput: there is no such group or segment
    :raises Cancelled: from ``control``; the move is undone
    :raises Unavailable: a server went away; undone as far as it could be, clean-up does the rest
    """
    with held_here(databases, group) as free:
        if not free:
            raise Unavailable(f"shard group {group} is being moved or cleaned up already")
        while True:
            try:
                with unavailable_if_lost(f"moving shard group {group} to segment {target}"):
                    _attempt(databases, operation, group, target, control, blocking)
                return
            except GiveWayError as reason:
                control.report(str(reason))


def _attempt(
    databases: Databases,
    operation: int,
    group: ShardGroupId,
    target: int,
    control: MoveControl,
    blocking: bool,
) -> None:
    move = Move(databases, operation, group, target, control)
    try:
        try:
            move.run(blocking)
        finally:
            move.close()
    except BaseException as error:
        # Undo; or, if the decision had fallen after all, finish.
        if not _settle(databases, group, target) or not isinstance(error, _TRANSIENT):
            raise


def _settle(databases: Databases, group: ShardGroupId, target: int) -> bool:
    """Carry out what the records say, as far as possible; returns whether the group lives on ``target``."""
    with contextlib.suppress(Unavailable, psycopg.Error), connect(databases, COORDINATOR) as desk:
        # Waits for the session of the attempt: once that has ended, the placement can't change any more.
        lock_with_deadline(desk, group, HOLD_SECONDS)
        with segment_sessions(databases) as segments:
            clean_up_group(desk, segments, group)
        return placement(desk, group) == target
    return False


class Move:
    """One attempt. Holds the sessions; use once, then :meth:`close`."""

    def __init__(
        self, databases: Databases, operation: int, group: ShardGroupId, target: int, control: MoveControl
    ) -> None:
        self._databases = databases
        self._operation = operation
        self._group = group
        self._target_id = target
        self._control = control
        self._stack = ExitStack()
        self._blocked_since = 0.0

    def close(self) -> None:
        """Ends all sessions, and with them every open transaction."""
        self._stack.close()

    def run(self, blocking: bool) -> None:
        """The whole course; returns when the placement is as wanted."""
        self._desk = self._session(COORDINATOR)
        lock_with_deadline(self._desk, self._group, HOLD_SECONDS)
        self._tidy_former_attempts()
        self._hold_barrier()
        self._parcel = load_parcel(self._desk, self._group, self._target_id)
        if self._parcel.source == self._target_id:
            return
        if blocking:
            self._move_blocking()
        else:
            self._move_online()
        self._finish()

    def _session(self, group: int, *, owner: bool = False) -> Connection:
        return self._stack.enter_context(contextlib.closing(connect(self._databases, group, owner=owner)))

    def _worker(self, group: int, *, owner: bool = False) -> Connection:
        """A session whose work may be lost with its server, because then the move is over anyway. What the decision
        rests on is made durable by the commit of the cutover on the target, which comes after all of it."""
        session = self._session(group, owner=owner)
        session.execute("SET synchronous_commit = off")
        return session

    # before anything is made

    def _tidy_former_attempts(self) -> None:
        """Nothing of this group may be left that would be in our way. (A slot on a lost member is not.)"""
        while True:
            with segment_sessions(self._databases) as segments:
                left = carry_out(self._desk, segments, read_records(self._desk, group=self._group))
            if all(record.kind in (SLOT, MARKER) for record in left):
                return
            self._control.checkpoint("waiting")
            self._control.report(f"waiting until what a former move of {self._group} left can be removed")
            time.sleep(0.2)

    def _hold_barrier(self) -> None:
        barrier = self._barrier = self._session(COORDINATOR)
        barrier.execute("BEGIN")
        patiently(
            barrier,
            "LOCK TABLE pgherd.ddl_barrier IN SHARE MODE",
            polite_watch(self._control, lambda: blockers.who_holds_barrier(self._desk)),
        )

    def _record(self, *, online: bool) -> None:
        parcel = self._parcel = _numbered(self._parcel, next_move_id(self._desk))
        self._source = self._worker(parcel.source)
        self._source_owner = self._worker(parcel.source, owner=True)
        self._target = self._worker(parcel.target)
        self._target_owner = self._worker(parcel.target, owner=True)
        self._full = without_identity(self._source, parcel.shards) if online else []
        for shard in self._full:
            if reason := unfit_reason(self._source, shard):
                raise PgherdError(f"table {shard.table} {reason}")
        write_records(self._desk, self._operation, parcel, online=online, full=self._full)
        self._control.checkpoint("recorded")

    def _create_leaves(self) -> None:
        """Without autovacuum: its lock on a leaf could hold up the cutover, when writers wait."""
        with self._target_owner.transaction():
            for shard in self._parcel.shards:
                self._target_owner.execute(
                    "SELECT pgherd.create_leaf(%s::regclass, %s, %s, %s, false)",
                    [shard.table, shard.name, self._parcel.modulus, self._group.index],
                )
                self._target_owner.execute(
                    sql.SQL(
                        "ALTER TABLE {} SET (autovacuum_enabled = false, toast.autovacuum_enabled = false)"
                    ).format(leaf(shard))
                )
        self._control.checkpoint("created")

    # the two ways

    def _move_online(self) -> None:
        self._record(online=True)
        self._create_leaves()
        slot = self._open_stream()
        read_snapshot(self._source_owner, slot)
        slot.close()
        self._copy()
        self._source_owner.execute("COMMIT")
        self._control.checkpoint("copied")
        self._index()
        create_subscription(self._databases, self._target, self._parcel)
        self._control.checkpoint("subscribed")
        self._cut_over()

    def _move_blocking(self) -> None:
        self._record(online=False)
        self._create_leaves()
        cutover = self._cutover()
        with self._desk.transaction():
            self._wait_for(
                self._desk, cutover.lock_statement(), lambda: blockers.who_locks(self._desk, self._parcel)
            )
            self._copy()
            self._control.checkpoint("copied")
            self._index()
            cutover.switch(lambda: None)
        self._after_switch("switched")

    # copy and stream

    def _open_stream(self) -> Slot:
        for shard in self._full:
            self._set_full_identity(shard)
        create_publication(self._source, self._parcel)
        slot = self._stack.enter_context(
            contextlib.closing(
                Slot(
                    self._databases,
                    self._parcel,
                    self._watch(lambda: blockers.who_writes(self._source, self._parcel.source)),
                )
            )
        )
        self._control.checkpoint("slot")
        return slot

    def _set_full_identity(self, shard: Shard) -> None:
        users = self._watch(lambda: blockers.who_uses(self._source, self._parcel.source, shard))
        set_full_identity(self._source_owner, shard, users)

    def _copy(self) -> None:
        before = 0
        for shard in self._parcel.shards:
            message = f"copying {shard.table} (shard group {self._group})"
            self._control.report(message, before)
            before += copy_leaf(
                self._source_owner, self._target_owner, shard, self._progress(message, before)
            )
        self._control.report(f"copied shard group {self._group}", before)

    def _progress(self, message: str, before: int) -> Callable[[int], None]:
        return throttled(
            lambda done: self._control.report(message, before + done),
            lambda: self._control.checkpoint("copying"),
        )

    def _index(self) -> None:
        """Build the indexes, now that the rows are there, and look at the rows, so that queries are planned well."""
        watch = polite_watch(self._control, lambda: f"building the indexes of shard group {self._group}")
        for shard in self._parcel.shards:
            build = sql.SQL("SELECT pgherd.index_shard({}::regclass, {})").format(shard.table, shard.name)
            patiently(self._target_owner, build, watch)
            patiently(self._target_owner, sql.SQL("ANALYZE {}").format(leaf(shard)), watch)

    # catching up and switching

    def _cut_over(self) -> None:
        markers = Markers(self._source, self._target, self._parcel)
        cutover = self._cutover()
        self._catch_up(markers)
        self._control.checkpoint("caught-up")
        self._blocked_since = time.monotonic()
        pause = 0.02
        while True:
            try:
                self._wait_until_clear()
                self._catch_up(markers)
                seconds = cutover.attempt(markers)
                break
            except BlockedError as blocked:
                self._control.checkpoint("waiting")
                self._control.report(f"{blocked}: {blockers.who_locks(self._desk, self._parcel)}")
                self._give_way_if_waited_for(time.monotonic() - self._blocked_since)
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(1.0, pause * 1.7)
        self._control.report(f"switched shard group {self._group}; writers waited {seconds * 1000:.0f} ms")
        self._after_switch("switched")

    def _cutover(self) -> Cutover:
        return Cutover(
            self._operation, self._parcel, self._barrier, self._desk, self._target_owner, self._control
        )

    def _catch_up(self, markers: Markers) -> None:
        """Until a marker gets through quickly."""
        checked = 0.0

        def watch(waited: float) -> None:
            nonlocal checked
            if waited - checked > 0.3:
                checked = waited
                check_subscription(self._target, self._parcel)
                self._control.checkpoint("catching-up")
                behind = lag_bytes(self._source, self._parcel)
                self._control.report(f"catching up: shard group {self._group} is {behind:,} bytes behind")

        while True:
            checked = 0.0
            markers.send()
            if markers.wait(watch) < SMALL_LAG:
                break
        probe_commit(self._target, self._parcel, SLOW_COMMIT)

    def _wait_until_clear(self) -> None:
        """While a long transaction holds a table, asking for the lock would only make others wait behind us."""
        waited = self._watch(lambda: f"waiting for {blockers.who_locks(self._desk, self._parcel)}")
        started = time.monotonic()
        while blockers.has_long_holder(self._desk, self._parcel):
            time.sleep(0.01)
            waited(time.monotonic() - started)

    def _after_switch(self, name: str) -> None:
        """The decision has fallen: a wish to cancel comes too late for this move."""
        with contextlib.suppress(Cancelled):
            self._control.checkpoint(name)

    def _finish(self) -> None:
        """Best effort: what can't be done now is done from its record later."""
        with contextlib.suppress(Unavailable, psycopg.Error):
            for shard in self._parcel.shards:
                retract(self._source_owner, shard.name)
            self._after_switch("detached")
            with segment_sessions(self._databases) as segments:
                segments.adopt(self._parcel.source, self._source, owner=False)
                segments.adopt(self._parcel.source, self._source_owner, owner=True)
                segments.adopt(self._parcel.target, self._target, owner=False)
                segments.adopt(self._parcel.target, self._target_owner, owner=True)
                clean_up_group(self._desk, segments, self._group)
            self._after_switch("cleaned")

    # being blocked

    def _watch(self, describe: Callable[[], str]) -> Callable[[float], None]:
        return polite_watch(self._control, describe, self._give_way_if_waited_for)

    def _wait_for(self, session: Connection, statement: sql.Composable, describe: Callable[[], str]) -> None:
        patiently(session, statement, self._watch(describe))

    def _give_way_if_waited_for(self, waited: float) -> None:
        """:raises GiveWayError: somebody who may be what we wait for waits for our barrier"""
        if waited >= GIVE_WAY_AFTER and (who := blockers.who_waits_for_barrier(self._barrier)):
            raise GiveWayError(f"giving way to {who}; shard group {self._group} will be moved again after it")


def _numbered(parcel: Parcel, move_id: int) -> Parcel:
    return Parcel(parcel.group, parcel.source, parcel.target, parcel.modulus, parcel.shards, move_id)
