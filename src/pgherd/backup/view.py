"""``status.backups``: what a look at the repository and at the groups' archiving shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

import psycopg

from pgherd.backup import choice, schedule
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import check_owner
from pgherd.backup.gaps import Gap, Logs, cut_off, file_name
from pgherd.backup.records import Backup, Point, unanswered
from pgherd.backup.wal import SEGMENT_BYTES
from pgherd.errors import PgherdError
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec import BackupSpec, PostgresCluster, parse_bytes
from pgherd.model.topology import COORDINATOR, SUPERUSER, Endpoint, group_name
from pgherd.postgres.connections import Databases

_ARCHIVING = """
SELECT (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
       last_failed_time > coalesce(last_archived_time, '-infinity'), last_failed_wal,
       (SELECT system_identifier::text FROM pg_control_system()), current_setting('archive_mode'),
       pg_read_file('pg_wal/pgherd-let-go.json', 0, 8192, true)
  FROM pg_stat_archiver
"""


def view(
    method: BackupMethod,
    databases: Databases,
    cluster: PostgresCluster,
    groups: Sequence[int],
    schedules: Sequence[tuple[PostgresBackupSchedule, Mapping[str, Any] | None]] = (),
) -> dict[str, Any]:
    """What there is, and what is wrong with it.

    :param groups: those whose primary can be asked
    :param schedules: by which backups are made, and how each stands as it was written down last
    """
    declared = cluster.spec.backup
    assert declared is not None, "asked only where backups are declared"
    archiving = _archiving(databases, groups)
    found: dict[str, Any] = {"method": method.name, "repository": method.location}
    asked = [(group_name(group), state) for group, state in sorted(archiving.items())]
    waiting = {who: state["waiting"] * SEGMENT_BYTES for who, state in asked}
    members = [*asked, *_standbys_archiving(databases, sorted(archiving))]
    problems = [problem for who, state in members for problem in _archiving_problems(who, state, declared)]
    try:
        coordinator = archiving.get(COORDINATOR)
        if coordinator is not None:
            known = method.repository.refuse_anothers()
            check_owner(method.location, known, coordinator["system"], method.name)
        elif not method.repository.is_own():
            method.repository.require_own()
        points, damaged = method.repository.points_and_damage(days=2)
        held, drills = method.repository.held(), method.repository.drills()
        if any(state["failing"] and state["waiting"] for _, state in members):
            problems = [*_fullness(method), *problems]
    except (PgherdError, OSError) as error:
        problems += [text for who, state in asked if (text := _waits(who, state))]
        return {**found, "waitingBytes": waiting, "problems": [str(error), *problems]}
    backups = held.backups
    offered = [point for point in points if point.archived]
    done = [backup for backup in backups if backup.phase == "done"]
    running = next((backup for backup in backups if backup.is_open), None)
    problems += held.complaints().values()
    problems += [
        f"{method.location}/{each} is damaged, its points are not offered: put it back from a copy or remove it"
        for each in damaged
    ]
    if failed := unanswered(backups):
        onward = ": another one is made by itself" if failed[-1].again else ""
        problems.append(f"backup {failed[-1].id} failed: {failed[-1].error}{onward}")
    systems = {group: state["system"] for group, state in archiving.items()}
    logs = Logs(method.log_names, method.histories)
    gaps = [_gap(group, gap, logs, systems[group]) for group, gap in cut_off(systems, done, logs).items()]
    problems += [
        f"the log of {gap['group']} from {gap['first']} to {gap['last']} is not in the repository: points after it can "
        "be restored once there is a new base copy, which is made by itself"
        for gap in gaps
    ]
    last = _newest_restorable(offered, done, method, logs)
    if offered and done and last is None:
        problems.append(
            f"none of the last {len(offered)} restore points can be restored, though they are archived: 'pgherd "
            f"restore-points {cluster.metadata.name}' shows why"
        )
    if drills and not drills[-1].get("passed"):
        problems.append(f"the last drill failed: {'; '.join(drills[-1].get('problems', ()))}")
    planned = _schedules(schedules, drills[-1] if drills else None)
    problems += [f"schedule {each['name']}: {each['problem']}" for each in planned if each["problem"]]
    return {
        **found,
        "schedules": planned,
        "lastDrill": drills[-1] if drills else None,
        "lastRestorePoint": _point(last) if last is not None else None,
        "lastBackup": _backup(done[-1]) if done else None,
        "running": _backup(running) if running else None,
        "waitingBytes": waiting,
        "gaps": gaps,
        "problems": problems,
    }


def _archiving(databases: Databases, groups: Sequence[int]) -> dict[int, dict[str, Any]]:
    def ask(group: int) -> tuple[int, dict[str, Any]] | None:
        try:
            with databases.connect(group, database=SUPERUSER) as connection:
                row = connection.execute(_ARCHIVING).fetchone()
        except (PgherdError, psycopg.Error):
            return None
        return None if row is None else (group, _state(row))

    if not groups:
        return {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(each for each in pool.map(ask, groups) if each is not None)


def _standbys_archiving(databases: Databases, groups: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
    """Who they are and how they stand: every member archives. Those that do not answer are passed over."""
    addresses = databases.addresses()
    known = {group: addresses.get(group, ()) for group in groups}
    members = [(group, each) for group, those in known.items() if len(those) > 1 for each in those]

    def ask(group: int, member: Endpoint) -> tuple[str, dict[str, Any]] | None:
        parameters = {
            **databases.parameters(group, database=SUPERUSER),
            **{"host": member.host, "port": str(member.port)},
            **{"target_session_attrs": "standby", "connect_timeout": "2"},
        }
        try:
            with psycopg.connect(autocommit=True, **parameters) as connection:  # type: ignore[arg-type]
                row = connection.execute(_ARCHIVING).fetchone()
        except psycopg.Error:
            return None
        who = f"a standby of {group_name(group)} ({member.host}:{member.port})"
        return None if row is None else (who, _state(row))

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [each for each in pool.map(lambda member: ask(*member), members) if each is not None]


def _state(row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("waiting", "failing", "failed", "system", "mode", "let_go"), row, strict=True))


def _archiving_problems(who: str, state: dict[str, Any], declared: BackupSpec) -> list[str]:
    waiting = state["waiting"] * SEGMENT_BYTES
    problems = []
    if state["let_go"]:
        problems.append(f"{who} {_let_go(state['let_go'])}")
    # Where nothing waits any more, what failed is gone: a member that was rewound has the files of another one.
    if state["failing"] and waiting:
        problems.append(
            f"{who} can't archive {state['failed']}: {waiting >> 20} MiB of its log wait (see its log)"
        )
    # Where it is let go, at most that much waits, and one file.
    if waiting > parse_bytes(declared.wal_limit) + (SEGMENT_BYTES if declared.when_full == "drop" else 0):
        problems.append(
            f"{who} keeps {waiting >> 20} MiB of its log for the repository, more than walLimit "
            f"({declared.wal_limit}): its disk fills up"
        )
    return problems


def _fullness(method: BackupMethod) -> list[str]:
    """Why a repository that answers takes no file."""
    room = method.repository.store.room()
    if room is None or room >= SEGMENT_BYTES:
        return []
    return [
        f"{method.location} is full, {room >> 20} MiB are left: make room there, and what waits comes by itself"
    ]


def _waits(who: str, state: dict[str, Any]) -> str:
    """What waits for a repository that is away, where nothing else tells it: a program that gets no answer has not
    failed yet."""
    waiting = state["waiting"] * SEGMENT_BYTES
    return f"{waiting >> 20} MiB of the log of {who} wait for it" if waiting and not state["failing"] else ""


def _schedules(
    known: Sequence[tuple[PostgresBackupSchedule, Mapping[str, Any] | None]], drill: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    last = schedule.last_end([drill] if drill else [])
    now = datetime.now(UTC)
    return [schedule.described(declared, schedule.standing_from(raw), last, now) for declared, raw in known]


def _let_go(note: str) -> str:
    known: dict[str, Any] = {}
    with suppress(ValueError):
        known = dict(json.loads(note))
    since = datetime.fromtimestamp(float(known.get("since", 0)), UTC).isoformat(timespec="seconds")
    return (
        f"lets its log go unarchived, as whenFull says: {known.get('count')} files since {known.get('first')} "
        f"({since}; {known.get('reason')}): points after that can be restored once the repository takes files again"
    )


def _gap(group: int, gap: Gap, logs: Logs, system: str) -> dict[str, Any]:
    timeline = logs.newest_timeline(group, system) or 1
    return {
        "group": group_name(group),
        "first": file_name(timeline, gap.first),
        "last": file_name(timeline, gap.last),
    }


def _newest_restorable(
    points: Sequence[Point], backups: Sequence[Backup], method: BackupMethod, logs: Logs
) -> Point | None:
    """The last point that can be restored; as a rule it is the last that is archived."""
    histories = cache(method.histories)
    return next(
        (each for each in reversed(points) if choice.bases(each, backups, histories, logs) is not None), None
    )


def is_behind_a_gap(method: BackupMethod, point: Point) -> bool:
    """Whether a point can't be restored because of a hole in the archived log, and not for want of a copy."""
    histories = method.histories
    done = [backup for backup in method.repository.backups() if backup.phase == "done"]
    return choice.bases(point, done, histories) is not None


def _point(point: Point) -> dict[str, Any]:
    return {"name": point.name, "time": point.time, "heldMs": point.held_ms}


def _backup(backup: Backup) -> dict[str, Any]:
    return {
        "id": backup.id,
        "type": backup.type,
        "phase": backup.phase,
        "finishedAt": backup.finished_at,
        "bytesDone": backup.bytes_done,
        "bytesTotal": backup.bytes_total,
    }
