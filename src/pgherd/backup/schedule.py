"""What a schedule of backups has to do now. Pure: the clock and what is written down come from outside.

A *standing* is written down for each schedule. It says up to when the schedule's times are dealt with, so that a
supervisor that was away makes up for what it missed once, however much that was; and which backup it means to ask for,
written before the asking, so that one that is killed in between asks for the same again and not for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pgherd.backup.records import Backup, moment
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.cron import last_time, next_time
from pgherd.model.spec_quantity import parse_duration

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Standing:
    """How a schedule stands. Plain data, to and from JSON."""

    cron: str
    since: str
    """its times up to here are dealt with"""
    drills_since: str
    """the first drill was due then; empty: none are asked for"""
    suspended: bool = False
    planned: str | None = None
    """the backup that is to be asked for"""
    backup: str | None = None
    """the last backup that was"""
    skipped: str = ""
    """the last time at which none was made, and why"""
    problem: str = ""
    """why what is due is not done"""

    def as_json(self) -> dict[str, Any]:
        """For :func:`standing_from`."""
        return asdict(self)


def standing_from(raw: Mapping[str, Any] | None) -> Standing | None:
    """The inverse of ``Standing.as_json``; None if it is none (any more)."""
    try:
        found = Standing(**(raw or {}))
        moment(found.since)
    except (TypeError, ValueError):
        return None
    return found


def adjusted(standing: Standing | None, schedule: PostgresBackupSchedule, now: datetime) -> Standing:
    """The standing of a schedule as it is declared now: a new, a changed, or a resumed one begins here."""
    spec, text = schedule.spec, now.isoformat()
    drills = "" if spec.drill is None or spec.suspend else text
    if standing is None:
        return Standing(spec.cron, text, drills, suspended=spec.suspend)
    if standing.cron != spec.cron or (standing.suspended and not spec.suspend):
        standing = replace(standing, cron=spec.cron, since=text)
    if bool(standing.drills_since) != bool(drills):
        standing = replace(standing, drills_since=drills)
    return replace(standing, suspended=spec.suspend)


def due(standing: Standing, schedule: PostgresBackupSchedule, now: datetime) -> datetime | None:
    """The latest time that is not dealt with; None: there is none. All earlier ones are made up for by it."""
    if schedule.spec.suspend or standing.planned is not None:
        return None
    return last_time(standing.cron, moment(standing.since), now)


def next_due(standing: Standing, schedule: PostgresBackupSchedule) -> datetime | None:
    """When the next backup is due, or was; None: it is suspended."""
    return None if schedule.spec.suspend else next_time(standing.cron, moment(standing.since))


def answer(standing: Standing, name: str, at: datetime, backups: Sequence[Backup]) -> Standing | None:
    """What becomes of a time that has come.

    :param at: from :func:`due`
    :return: with a backup planned, or without because the last one is not done yet; None: it waits for another backup
    """
    running = next((backup for backup in backups if backup.is_open), None)
    dealt = replace(standing, since=at.isoformat(), problem="")
    if running is None:
        return replace(dealt, planned=f"{name}-{at:%Y%m%d-%H%M}")
    if running.id == standing.backup:
        return replace(dealt, skipped=f"{at:%Y-%m-%d %H:%M}: {running.id} was not done yet")
    return None


def asked(standing: Standing) -> Standing:
    """What was planned is written down in the repository."""
    return replace(standing, backup=standing.planned, planned=None, problem="")


# drills


def last_end(drills: Sequence[Mapping[str, Any]]) -> datetime | None:
    """When the last drill ended; None: there was none.

    :param drills: oldest first, as they are remembered
    """
    for each in reversed(drills):
        with suppress(LookupError, TypeError, ValueError):
            return moment(each["finishedAt"])
    return None


def drill_due(standing: Standing, schedule: PostgresBackupSchedule, last: datetime | None) -> datetime | None:
    """When a drill is due, or was; None: never.

    :param last: when the last one ended, whoever made it
    """
    declared = schedule.spec.drill
    if declared is None or not standing.drills_since:
        return None
    first = moment(standing.drills_since)
    if last is None:
        return first
    return max(last + timedelta(seconds=parse_duration(declared.every)), first)


def is_overdue(schedule: PostgresBackupSchedule, at: datetime | None, now: datetime) -> bool:
    """Whether a drill that was due then is late enough to worry.

    :param at: from :func:`drill_due`
    """
    late = overdue_at(schedule, at)
    return late is not None and now > late


def overdue_at(schedule: PostgresBackupSchedule, at: datetime | None) -> datetime | None:
    """From when on a drill that was due then is late enough to worry."""
    declared = schedule.spec.drill
    if declared is None or at is None:
        return None
    return at + min(timedelta(seconds=parse_duration(declared.every)), DAY)


def described(
    schedule: PostgresBackupSchedule, standing: Standing | None, last: datetime | None, now: datetime
) -> dict[str, Any]:
    """A schedule as commands and statuses show it.

    :param last: when the last drill of the cluster ended
    """
    spec, known = schedule.spec, adjusted(standing, schedule, now)
    following, drill_at = next_due(known, schedule), drill_due(known, schedule, last)
    late = overdue_at(schedule, drill_at)
    return {
        "name": schedule.metadata.name,
        "cluster": spec.cluster,
        "cron": spec.cron,
        "type": spec.type,
        "suspend": spec.suspend,
        "nextAt": following and following.isoformat(timespec="minutes"),
        "lastBackup": known.planned or known.backup,
        "skipped": known.skipped or None,
        "problem": known.problem or None,
        "drill": spec.drill
        and {
            "every": spec.drill.every,
            "timeout": spec.drill.timeout,
            "keep": spec.drill.keep,
            "tables": list(spec.drill.tables),
            "dueAt": drill_at and drill_at.isoformat(timespec="seconds"),
            "overdueAt": late and late.isoformat(timespec="seconds"),
            "overdue": is_overdue(schedule, drill_at, now),
        },
    }
