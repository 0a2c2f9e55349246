"""Asking for the backups of a schedule, step by step written down; what is due, ``schedule`` says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from pgherd.backup import schedule as rules
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.schedule import Standing
from pgherd.faults import crash_point
from pgherd.model.backup_kinds import PostgresBackupSchedule

logger = logging.getLogger(__name__)


def see_to_backup(
    schedule: PostgresBackupSchedule,
    standing: Standing,
    now: datetime,
    *,
    repository: Callable[[], Catalogue],
    request: Callable[[str], object],
    write: Callable[[Standing], None],
) -> Standing:
    """Ask for a backup if one is due; returns how the schedule stands now.

    :param repository: asked for only if something is due
    :param request: asks for a backup of this name, unless it is there
    :param write: writes down how the schedule stands
    :raises PgherdError: it could not be asked for; the next look tries again
    """
    due = rules.due(standing, schedule, now)
    if due is not None:
        kept = repository()
        kept.require()
        answer = rules.answer(standing, schedule.metadata.name, due, kept.backups())
        if answer is None:
            return standing
        standing = answer
        write(standing)
        crash_point("schedule:planned")
    if standing.planned is not None and not schedule.spec.suspend:
        request(standing.planned)
        crash_point("schedule:asked")
        logger.info("schedule %s: asked for backup %s", schedule.metadata.name, standing.planned)
        standing = rules.asked(standing)
        write(standing)
    return standing
