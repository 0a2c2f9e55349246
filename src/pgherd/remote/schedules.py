"""What the commands about schedules of backups are told where clusters run in Kubernetes: not yet."""

from __future__ import annotations

from typing import Any, NoReturn

from pgherd.errors import BadInput
from pgherd.model.backup_kinds import PostgresBackup, PostgresBackupSchedule


class WithoutSchedules:
    """Refuses every command about schedules, and their declarations, in one line."""

    def declare_backup(self, backup: PostgresBackup) -> NoReturn:
        raise _refusal(f"{backup.kind} {backup.metadata.name}: ")

    def declare_schedule(self, schedule: PostgresBackupSchedule) -> NoReturn:
        raise _refusal(f"{schedule.kind} {schedule.metadata.name}: ")

    def schedules(self, cluster: str | None = None) -> list[dict[str, Any]]:
        raise _refusal()

    def suspend_schedule(self, name: str, suspend: bool) -> NoReturn:
        raise _refusal()

    def delete_schedule(self, name: str) -> NoReturn:
        raise _refusal()

    def drills(self, name: str) -> list[dict[str, Any]]:
        raise _refusal()


def _refusal(what: str = "") -> BadInput:
    return BadInput(
        f"{what}schedules of backups are not available on kubernetes in this version: they are on --platform local"
    )
