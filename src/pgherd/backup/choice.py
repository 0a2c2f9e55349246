"""Which base copies a restore point needs, what can be restored, and what may go. Pure.

A base copy can be brought to a point if it was finished before the point was made, in the same database system, on a
timeline that the point's own goes through, and so were the copies that it builds on: in a chain each one holds only
what changed since the one before, so that what a branch changed which nobody goes on with would stay in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from pgherd.backup.gaps import Logs
from pgherd.backup.records import Backup, GroupBackup, GroupPoint, Point, moment
from pgherd.backup.wal import History, is_past, parse_lsn
from pgherd.errors import BadInput
from pgherd.model.topology import COORDINATOR

Histories = Callable[[int, str], Sequence[History]]
"""of a group's database system"""
Present = Mapping[int, tuple[str, int]]
"""each group's database system and timeline"""


def base_for(
    group: int, at: GroupPoint, time: str, backups: Sequence[Backup], histories: Histories
) -> str | None:
    """The newest backup from whose copy of the group the point can be reached; None: there is none."""
    fitting = [
        (parse_lsn(made.stop), backup.id)
        for backup in backups
        if (made := backup.groups.get(group)) is not None
        and made.system == at.system
        and moment(made.stopped_at) <= moment(time)
        and parse_lsn(made.stop) <= parse_lsn(at.lsn)
    ]
    by_id = {backup.id: backup for backup in backups}
    for _, backup in sorted(fitting, reverse=True):
        copies = chain(backup, group, by_id)
        if copies and all(
            is_on_path(by_id[each].groups[group], group, at.timeline, histories) for each in copies
        ):
            return backup
    return None


def is_on_path(
    made: GroupBackup, group: int, timeline: int, histories: Histories, *, unknown: bool = False
) -> bool:
    """Whether a copy is of a timeline's past.

    :param unknown: see :func:`~pgherd.backup.wal.is_past`
    """
    if made.timeline == timeline:
        return True
    known = histories(group, made.system)
    return is_past(made.timeline, parse_lsn(made.stop), timeline, known, unknown=unknown)


def chain(backup: str, group: int, backups: Mapping[str, Backup]) -> list[str]:
    """The backups whose copies of a group are needed for that of ``backup``, from the whole one on; empty if one of
    them is not there."""
    found: list[str] = []
    wanted: str | None = backup
    while wanted is not None:
        made = backups[wanted].groups.get(group) if wanted in backups else None
        if made is None or wanted in found:
            return []
        found.insert(0, wanted)
        wanted = made.parent
    return found


def bases(
    point: Point, backups: Sequence[Backup], histories: Histories, logs: Logs | None = None
) -> dict[int, list[str]] | None:
    """For each group the copies from which the point is reached; None: some group has none.

    :param logs: which of the groups' logs are archived: it must be whole from the copy to the point
    """
    by_id = {backup.id: backup for backup in backups}
    found: dict[int, list[str]] = {}
    for group, at in point.groups.items():
        base = base_for(group, at, point.time, backups, histories)
        copies = chain(base, group, by_id) if base else []
        if not copies or base is None:
            return None
        # No older copy could do better: the log from there has the same hole.
        if logs is not None and not logs.is_whole(group, by_id[base].groups[group], at):
            return None
        found[group] = copies
    return found


def resolve(
    points: Sequence[Point],
    *,
    now: datetime,
    restore_point: str | None = None,
    time: str | None = None,
    backup: str | None = None,
    inclusive: bool = True,
) -> Point:
    """The one point that is meant, out of those that can be restored (oldest first).

    :param inclusive: False: the newest point before the one that is named, or before the time
    :raises BadInput: there is none, with the range that there is
    """
    if not points:
        raise BadInput(
            "there is no restore point to restore yet: the first comes with the first complete backup"
        )
    first, last = points[0], points[-1]
    span = f"there are {len(points)}, from {first.name} ({first.time}) to {last.name} ({last.time})"
    if restore_point is not None:
        found = _last([point for point in points if point.name == restore_point])
        missing = f"no restore point {restore_point!r} can be restored: {span}"
    elif backup is not None:
        found = _last([point for point in points if point.backup == backup])
        missing = f"no backup {backup!r} can be restored: 'pgherd backups' shows what there is"
    elif time is None:
        return last
    else:
        return _at(points, time, now, span, inclusive=inclusive)
    if found is None:
        raise BadInput(missing)
    if inclusive:
        return found
    before = _last([point for point in points if point.time < found.time])
    if before is None:
        raise BadInput(f"nothing can be restored from before {found.name}: {span}")
    return before


def _at(points: Sequence[Point], time: str, now: datetime, span: str, *, inclusive: bool) -> Point:
    wanted = moment(time)
    if wanted > now:
        raise BadInput(f"{time} is in the future: {span}")
    found = _last(
        [each for each in points if (at := moment(each.time)) < wanted or (inclusive and at == wanted)]
    )
    if found is None:
        raise BadInput(f"{time} is before the first restore point: {span}")
    return found


def _last(points: Sequence[Point]) -> Point | None:
    return points[-1] if points else None


def after(points: Sequence[Point], point: Point) -> Point | None:
    """The next point."""
    return next((each for each in points if each.time > point.time), None)


@dataclass(frozen=True)
class Waste:
    """What nothing kept needs any more."""

    points: frozenset[str]
    backups: tuple[str, ...]
    """youngest first, so that no copy goes before those that build on it"""
    logs: Mapping[tuple[int, str], tuple[int, int] | None]
    """group and system -> the timeline and position from which on the log is kept; None: all of it goes"""


def waste(
    points: Sequence[Point],
    backups: Sequence[Backup],
    histories: Histories,
    systems: Iterable[tuple[int, str]],
    *,
    full: int,
    days: int,
    now: datetime,
    present: Present | None = None,
    unread: Collection[str] = (),
    read: Collection[str] = (),
) -> Waste:
    """What retention lets go.

    Kept are the last ``full`` full backups and what was made since the oldest of them, and whatever the points of the
    last ``days`` days need. A backup that has not ended is kept, and nothing is let go while there is no full one, nor
    while there is anything of which nobody can tell what it needs: it may be readable again.

    After a restore in place the youngest copies are of a branch that nobody goes on with. They are kept as others of
    their age, for they can still be restored; but of the full ones only those count that lead to where the groups are
    now, and the newest copies that do are kept, however old they are. While the histories are not archived that tell
    which these are, nothing is let go: there is hardly anything younger than the restore then.

    :param systems: group and system of every archived log
    :param present: where the groups are
    :param unread: records and points that can't be read
    :param read: backups that somebody is reading: they stay, and what they need
    """
    if unread:
        return Waste(frozenset(), (), {})
    # Those without the coordinator are of single segments that were new.
    whole = [
        each
        for each in backups
        if each.phase == "done" and each.type == "full" and COORDINATOR in each.groups
    ]
    histories = cache(histories)
    present = present or {}
    if not whole or not all(_is_told(group, *at, histories) for group, at in present.items()):
        return Waste(frozenset(), (), {})
    count = [each for each in whole if _leads_on(each, present, histories)] or whole
    limit = min(moment(count[-full:][0].requested_at), now - timedelta(days=days))
    kept = _kept(points, backups, histories, limit, present, read)
    by_id = {backup.id: backup for backup in backups}
    gone = tuple(backup.id for backup in reversed(backups) if backup.id not in kept and not backup.is_open)
    left = [by_id[each] for each in kept]
    lost = frozenset(
        point.name for point in points if moment(point.time) < limit and bases(point, left, histories) is None
    )
    needed = {
        (group, at.system) for point in points if point.name not in lost for group, at in point.groups.items()
    }
    logs: dict[tuple[int, str], tuple[int, int] | None] = {}
    for group, system in systems:
        begins = _beginning(group, system, left)
        if begins is not None or (group, system) not in needed:
            logs[group, system] = begins
    return Waste(lost, gone, logs)


def _is_told(group: int, system: str, timeline: int, histories: Histories) -> bool:
    """Whether it is archived what a group's present timeline came from."""
    return timeline == 1 or any(each.timeline == timeline for each in histories(group, system))


def _leads_on(backup: Backup, present: Present, histories: Histories) -> bool:
    """Whether nothing in its copies was left behind by what the groups are now."""
    return all(
        is_on_path(made, group, present[group][1], histories)
        for group, made in backup.groups.items()
        if group in present and made.system == present[group][0]
    )


def _kept(
    points: Sequence[Point],
    backups: Sequence[Backup],
    histories: Histories,
    limit: datetime,
    present: Present,
    read: Collection[str],
) -> set[str]:
    by_id = {backup.id: backup for backup in backups}
    kept = {
        each.id for each in backups if each.is_open or each.id in read or moment(each.requested_at) >= limit
    }
    for point in points:
        if moment(point.time) >= limit:
            kept.update(
                each for copies in (bases(point, backups, histories) or {}).values() for each in copies
            )
    done = [each for each in backups if each.phase == "done"]
    for group, (system, timeline) in present.items():
        newest = next(
            (each.id for each in reversed(done) if _serves(each, group, system, timeline, by_id, histories)),
            None,
        )
        if newest is not None:
            kept.add(newest)
    for backup in tuple(kept):
        kept.update(each for group in by_id[backup].groups for each in chain(backup, group, by_id))
    return kept


def _beginning(group: int, system: str, backups: Iterable[Backup]) -> tuple[int, int] | None:
    """Where the log of the oldest copy begins: it has to be whole from there on."""
    starts = [
        (parse_lsn(made.start), made.timeline)
        for backup in backups
        if (made := backup.groups.get(group)) is not None and made.system == system
    ]
    return (min(starts)[1], min(starts)[0]) if starts else None


def _serves(
    backup: Backup,
    group: int,
    system: str,
    timeline: int,
    backups: Mapping[str, Backup],
    histories: Histories,
    *,
    unknown: bool = False,
) -> bool:
    """Whether a backup's copy of a group leads to where that is now.

    :param unknown: see :func:`~pgherd.backup.wal.is_past`
    """
    made = backup.groups.get(group)
    if made is None or made.system != system:
        return False
    copies = [backups[each].groups[group] for each in chain(backup.id, group, backups)]
    return bool(copies) and all(
        is_on_path(each, group, timeline, histories, unknown=unknown) for each in copies
    )


def missing_base(present: Present, backups: Sequence[Backup], histories: Histories) -> list[int]:
    """Groups which no base copy leads to as they are now.

    A history that is not archived yet makes none of them: right after a failover it will be.

    :param present: each group's database system and timeline
    """
    by_id = {backup.id: backup for backup in backups}
    return [
        group
        for group, (system, timeline) in sorted(present.items())
        if not any(
            _serves(backup, group, system, timeline, by_id, histories, unknown=True)
            for backup in reversed(backups)
        )
    ]


def parent_for(
    kind: str, group: int, present: tuple[str, int], backups: Sequence[Backup], histories: Histories
) -> str | None:
    """The backup on whose copy of a group a differential or incremental one builds; None: a whole one is due.

    :param present: the group's database system and timeline
    """
    if kind == "full":
        return None
    system, timeline = present
    by_id = {backup.id: backup for backup in backups}
    for backup in reversed(backups):
        made, copies = backup.groups.get(group), chain(backup.id, group, by_id)
        if made is None or made.system != system or not copies:
            continue
        if kind == "incremental" or made.parent is None:
            # Not an older one instead: pgBackRest builds on the newest that there is.
            those = (by_id[each].groups[group] for each in copies)
            is_sound = all(is_on_path(each, group, timeline, histories) for each in those)
            return backup.id if is_sound else None
    return None
