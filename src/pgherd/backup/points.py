"""Making restore points, and knowing when they can be offered.

The engine writes the point's name into all logs while no distributed transaction is half committed. A point counts only
if no group changed its primary meanwhile: a name that a primary wrote in its last moment may be in nobody's history.
Then every group closes its log file, so that also an idle one's reaches the repository; a point is *archived* once the
files up to it are there, for all groups.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pgherd.backup import records, wal
from pgherd.backup.base import BackupMethod
from pgherd.backup.records import GroupPoint, Point
from pgherd.engine.base import Engine
from pgherd.errors import PgherdError
from pgherd.faults import crash_point
from pgherd.model.topology import COORDINATOR, SUPERUSER, group_name
from pgherd.postgres.connections import Databases

RECOVERY_NEEDS = (
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
)
"""parameters that a standby, or a recovering server that answers questions, must not have lower than its primary had"""

LOST_SECONDS = 30.0
"""how long another member has for bringing a file that the log has gone past"""

_LOOK = """
SELECT s.system_identifier::text, pg_postmaster_start_time()::text,
       ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       (SELECT jsonb_object_agg(name, setting) FROM pg_settings WHERE name = ANY (%s))
  FROM pg_control_system() s
"""


@dataclass(frozen=True)
class Standing:
    """Which server of a group takes writes, and which transactions it has seen."""

    system: str
    started: str
    timeline: int
    oldest: int
    """the oldest transaction that is open; equal to ``next`` if none is"""
    next: int
    """the number of the next transaction that changes anything"""
    settings: Mapping[str, str]

    def is_same_server(self, other: Standing) -> bool:
        """No other member took over in between, nor was it restarted."""
        mine, others = (
            (self.system, self.started, self.timeline),
            (other.system, other.started, other.timeline),
        )
        return mine == others


def look(databases: Databases, groups: Sequence[int]) -> dict[int, Standing]:
    """How all these groups stand.

    :raises Unavailable: one has no primary that answers
    """

    def ask(group: int) -> Standing:
        with databases.connect(group, database=SUPERUSER) as connection:
            row = connection.execute(_LOOK, [list(RECOVERY_NEEDS)]).fetchone()
        assert row is not None
        return Standing(*row)

    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(groups, pool.map(ask, groups), strict=True))


def new_name(prefix: str = "p") -> str:
    """A name that no other point has: PostgreSQL looks for a point by its name."""
    return f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def make(
    engine: Engine,
    databases: Databases,
    method: BackupMethod,
    name: str,
    *,
    backup: str | None = None,
    recorded: bool = True,
    around: AbstractContextManager[object] | None = None,
) -> Point:
    """Make a point and remember it, in the repository and in the coordinator's database.

    :param backup: the backup that it closes
    :param recorded: False: not in the database, the repository is no lasting one
    :param around: entered right before the point is in the logs, left right after
    :raises PgherdError: there is none: writers were never at rest, or a group changed its primary meanwhile
    """
    groups = [COORDINATOR, *engine.segments()]
    began = records.now()
    before = look(databases, groups)
    held: list[float] = []
    with around or nullcontext():
        lsns = engine.create_restore_point(name, held.append)
    made_at = records.now()
    crash_point("point:made")
    after = look(databases, groups)
    moved = [group for group in groups if not before[group].is_same_server(after[group])]
    if moved or set(lsns) != set(groups):
        raise PgherdError(
            f"the restore point {name} is void: {group_name((moved or groups)[0])} changed meanwhile; "
            "another one is made"
        )
    point = Point(
        name=name,
        time=made_at,
        groups={
            group: GroupPoint(
                after[group].system, after[group].timeline, lsns[group], dict(after[group].settings)
            )
            for group in groups
        },
        engine=engine.name,
        database=databases.database,
        placement=_placement(databases),
        held_ms=round(held[0] * 1000, 3) if held else None,
        backup=backup,
        began=began,
    )
    method.repository.remember_point(point)
    crash_point("point:remembered")
    if recorded:
        record(databases, point)
    close_logs(databases, groups)
    return point


def _placement(databases: Databases) -> int:
    with databases.connect(COORDINATOR) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pgherd.operation_steps WHERE kind IN ('move', 'split') AND state = 'done'"
        ).fetchone()
    return int(row[0]) if row else 0


def close_logs(databases: Databases, groups: Sequence[int]) -> None:
    """Have every group begin a new log file, so that what it wrote is archived now."""

    def close(group: int) -> None:
        with databases.connect(group, database=SUPERUSER) as connection:
            connection.execute("SELECT pg_switch_wal()")

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(close, groups))


def record(databases: Databases, point: Point) -> None:
    """Make ``pgherd.restore_points`` say what is known of a point."""
    values: list[list[Any]] = [
        [
            point.name,
            group,
            at.lsn,
            point.time,
            at.timeline,
            point.engine,
            point.placement,
            point.held_ms,
            point.archived,
        ]
        for group, at in point.groups.items()
    ]
    with databases.connect(COORDINATOR, autocommit=False) as connection:
        connection.cursor().executemany(
            "INSERT INTO pgherd.restore_points"
            " (name, group_id, lsn, created_at, timeline, engine, placement, held_ms, archived)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (name, group_id)"
            " DO UPDATE SET archived = excluded.archived, timeline = excluded.timeline",
            values,
        )


def forget(databases: Databases, names: Sequence[str]) -> None:
    """The opposite of :func:`record`."""
    with databases.connect(COORDINATOR) as connection:
        connection.execute("DELETE FROM pgherd.restore_points WHERE name = ANY (%s)", [list(names)])


def archived(method: BackupMethod, point: Point) -> Point | None:
    """The point as it can be offered, once every group's log up to it is in the repository; None: not yet."""
    groups = {}
    for group, at in point.groups.items():
        timeline = method.readable_timeline(group, at)
        if timeline is None:
            return None
        groups[group] = replace(at, timeline=timeline)
    return replace(point, groups=groups, archived=True)


class Lost:
    """Which points will hardly be archived any more: the log goes on in the repository after a file of theirs that is
    not there, or it went another way before them.

    A standby may still bring it, so that has to be so for a while. It may come later, too: nothing is for ever.
    """

    def __init__(self, method: BackupMethod) -> None:
        self._method = method
        self._since: dict[str, float] = {}

    def is_certain(self, point: Point) -> bool:
        """Whether nobody needs to wait for a point any more, which is not archived."""
        if not any(self._is_passed(group, at) for group, at in point.groups.items()):
            self._since.pop(point.name, None)
            return False
        return time.monotonic() - self._since.setdefault(point.name, time.monotonic()) > LOST_SECONDS

    def forget(self, name: str) -> None:
        """There is nothing more to ask of a point."""
        self._since.pop(name, None)

    def _is_passed(self, group: int, at: GroupPoint) -> bool:
        lsn = wal.parse_lsn(at.lsn)
        beyond = [
            name
            for name in self._method.log_names(group, at.system) or ()
            if wal.may_be_beyond(name, at.timeline, lsn)
        ]
        # As a rule there is nothing, and histories are not asked for.
        if not beyond or self._method.readable_timeline(group, at) is not None:
            return False
        return wal.is_passed(at.timeline, lsn, self._method.histories(group, at.system), beyond)
