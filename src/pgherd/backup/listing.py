"""Backups and restore points as commands and statuses show them."""

from __future__ import annotations

from typing import Any

from pgherd.backup import finding
from pgherd.backup.base import BackupMethod
from pgherd.backup.records import Backup, Point
from pgherd.backup.view import is_behind_a_gap


def described(backup: Backup) -> dict[str, Any]:
    """A backup as commands show it."""
    return {
        "id": backup.id,
        "type": backup.type,
        "phase": backup.phase,
        "requestedAt": backup.requested_at,
        "finishedAt": backup.finished_at,
        "restorePoint": backup.point,
        "error": backup.error,
        "bytes": sum(made.bytes for made in backup.groups.values()),
        "groups": {
            str(group): {
                "type": made.type,
                "bytes": made.bytes,
                "seconds": made.seconds,
                "startLsn": made.start,
                "stopLsn": made.stop,
                "timeline": made.timeline,
                "parent": made.parent,
                "note": made.note,
            }
            for group, made in sorted(backup.groups.items())
        },
    }


def restore_points(method: BackupMethod) -> list[dict[str, Any]]:
    """Every restore point, oldest first, and whether it can be restored."""
    offered = {point.name for point in finding.restorable(method)}

    def state(point: Point) -> str:
        if point.name in offered:
            return "restorable"
        if not point.archived:
            return "not archived yet"
        return "a gap before it" if is_behind_a_gap(method, point) else "no backup before it"

    return [
        {
            "name": point.name,
            "time": point.time,
            "began": point.began,
            "state": state(point),
            "archived": point.archived,
            "restorable": point.name in offered,
            "groups": len(point.groups),
            "placement": point.placement,
            "engine": point.engine,
            "heldMs": point.held_ms,
            "backup": point.backup,
            "lsns": {
                str(group): {"lsn": at.lsn, "timeline": at.timeline} for group, at in point.groups.items()
            },
        }
        for point in method.repository.points()
    ]
