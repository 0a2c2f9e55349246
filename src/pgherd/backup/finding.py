"""Which points of a repository can be restored now, and which of them is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache

from pgherd.backup import choice, gaps
from pgherd.backup.base import BackupMethod
from pgherd.backup.records import Point
from pgherd.model.spec import DeclaredRecoverySpec


def restorable(method: BackupMethod) -> list[Point]:
    """The points of a repository that can be restored, oldest first.

    :raises PgherdError: it is not there
    """
    repository = method.repository
    repository.require()
    backups = [backup for backup in repository.backups() if backup.phase == "done"]
    histories, logs = cache(method.histories), gaps.Logs(method.log_names, method.histories)
    return [
        point
        for point in repository.points()
        if point.archived and choice.bases(point, backups, histories, logs) is not None
    ]


def find_point(method: BackupMethod, wanted: DeclaredRecoverySpec) -> Point:
    """The point that is meant.

    :raises BadInput: there is none, with the range that there is
    """
    return find(method, wanted)[0]


def find(method: BackupMethod, wanted: DeclaredRecoverySpec) -> tuple[Point, Point | None]:
    """The point that is meant, and the next one that can be restored; None: it is the newest.

    :raises BadInput: there is none, with the range that there is
    """
    points = restorable(method)
    found = choice.resolve(
        points,
        now=datetime.now(UTC),
        restore_point=wanted.restore_point,
        time=wanted.time,
        backup=wanted.backup,
        inclusive=wanted.inclusive,
    )
    return found, choice.after(points, found)


def bases(method: BackupMethod, point: Point) -> Mapping[int, Sequence[str]] | None:
    """Which backups a point is restored from, by group; None: one is gone."""
    backups = [backup for backup in method.repository.backups() if backup.phase == "done"]
    return choice.bases(point, backups, cache(method.histories))
