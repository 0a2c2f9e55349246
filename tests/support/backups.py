"""Factories of what a repository may hold, for tests of what is chosen and what may go."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgherd.backup.catalogue import Catalogue, Unread
from pgherd.backup.records import Backup, BackupType, GroupBackup, GroupPoint, Point

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
SYSTEM = "7000000000000000001"


def at(hours: float) -> str:
    """So many hours after the beginning."""
    return (BEGIN + timedelta(hours=hours)).isoformat(timespec="milliseconds")


def lsn(hours: float) -> str:
    """Every group's log grows by 256 MiB an hour."""
    position = int(hours * (1 << 28))
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def point(
    hours: float,
    groups: int = 3,
    *,
    timeline: int = 1,
    backup: str | None = None,
    systems: Mapping[int, str] | None = None,
) -> Point:
    """An archived restore point, named after its time."""
    where = {
        group: GroupPoint((systems or {}).get(group, SYSTEM), timeline, lsn(hours)) for group in range(groups)
    }
    return Point(f"p{hours:g}", at(hours), where, "fdw", "app", 0, 1.0, True, backup)


def copy(
    hours: float,
    kind: BackupType = "full",
    parent: str | None = None,
    *,
    timeline: int = 1,
    system: str = SYSTEM,
) -> GroupBackup:
    """A base copy that took a tenth of an hour."""
    return GroupBackup(
        system, timeline, lsn(hours), lsn(hours + 0.1), at(hours + 0.1), kind, parent, 1000, 1.0
    )


def backup(
    hours: float,
    kind: BackupType = "full",
    parent: str | None = None,
    groups: int = 3,
    *,
    phase: str = "done",
    timeline: int = 1,
) -> Backup:
    """A backup of all groups, named after its type and time."""
    copies = {group: copy(hours, kind, parent, timeline=timeline) for group in range(groups)}
    return Backup(f"{kind[0]}{hours:g}", kind, phase, at(hours), copies, tuple(copies), f"p{hours + 0.1:g}")


def rust(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """A disk that can't read the files any more that are put into this set."""
    bad: set[Path] = set()
    read = Path.read_bytes

    def tried(path: Path) -> bytes:
        if path in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", tried)
    return bad


def unread(catalogue: Catalogue, why: Unread) -> list[str]:
    """Folders of backups that say nothing for this reason."""
    return [name for name, each in catalogue.held().unread.items() if each is why]
