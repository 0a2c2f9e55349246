"""What a repository remembers: restore points and backups. Plain data, to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pgherd.model.topology import COORDINATOR

BackupType = Literal["full", "differential", "incremental"]
TYPES: tuple[BackupType, ...] = ("full", "differential", "incremental")
OPEN_PHASES = ("requested", "running")
PHASES = (*OPEN_PHASES, "done", "failed")
COPYING = "copying"
"""the message of a backup while its groups are copied"""


def now() -> str:
    """This moment, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def moment(text: str) -> datetime:
    """The inverse of :func:`now`; a time without a zone is not one."""
    return datetime.fromisoformat(text).astimezone(UTC)


def seconds_since(text: str) -> float:
    """How long that is ago, by the clock."""
    return (datetime.now(UTC) - moment(text)).total_seconds()


def pace(since: str | None, done: int, total: int) -> tuple[int | None, int | None]:
    """Bytes per second since then, and the seconds that are left; None where nobody can tell yet."""
    if since is None or done <= 0:
        return None, None
    seconds = seconds_since(since)
    if seconds <= 0:
        return None, None  # a clock was put back
    rate = int(done / seconds)
    return rate, int(max(total - done, 0) / rate) if rate else None


@dataclass(frozen=True)
class GroupPoint:
    """Where a restore point is in one group's log."""

    system: str
    """the database system's identifier"""
    timeline: int
    lsn: str
    """the point is at or before it; recovery finds the point itself by its name"""
    settings: Mapping[str, str] = field(default_factory=dict)
    """parameters that a recovering server must not have lower than this"""


@dataclass(frozen=True)
class Point:
    """A moment at which all groups agree."""

    name: str
    time: str
    """nothing that was begun after it is in the point"""
    groups: Mapping[int, GroupPoint]
    engine: str
    database: str
    placement: int
    """how many moves of shards, and splits of segments, were done: which placement this point holds"""
    held_ms: float | None = None
    """how long writers were kept out"""
    archived: bool = False
    """every group's log up to it is in the repository"""
    backup: str | None = None
    """the backup that it closes"""
    began: str = ""
    """everything that was acknowledged before it is in the point; empty: not known"""

    def as_json(self) -> dict[str, Any]:
        """For :func:`point_from`."""
        return {**asdict(self), "groups": {str(group): asdict(at) for group, at in self.groups.items()}}


def point_from(raw: Mapping[str, Any]) -> Point:
    """The inverse of ``Point.as_json``.

    :raises ValueError, TypeError, LookupError, AttributeError: it is no point, or one of another version
    """
    groups = {int(group): GroupPoint(**at) for group, at in raw["groups"].items()}
    moment(raw["time"])
    return Point(**{**raw, "groups": groups})


@dataclass(frozen=True)
class GroupBackup:
    """One group's base copy."""

    system: str
    timeline: int
    start: str
    stop: str
    stopped_at: str
    type: BackupType
    parent: str | None
    """the backup on whose copy this one builds; None: it is whole"""
    bytes: int
    seconds: float
    note: str = ""
    """why it is another type than was asked for"""
    label: str = ""
    """what the method calls it"""


@dataclass(frozen=True)
class Backup:
    """Base copies of all groups, made together, and the restore point that closes them."""

    id: str
    type: BackupType
    phase: str
    """requested, running, then done or failed"""
    requested_at: str
    groups: Mapping[int, GroupBackup] = field(default_factory=dict)
    wanted: tuple[int, ...] = ()
    """the groups that take part"""
    point: str | None = None
    started_at: str | None = None
    """when whoever carries it on now began to copy; the bytes are counted from then on"""
    finished_at: str | None = None
    error: str | None = None
    bytes_total: int = 0
    bytes_done: int = 0
    message: str = ""
    again: bool = False
    """it failed of what may pass by itself, a repository that was full: another one is made instead"""

    @property
    def is_open(self) -> bool:
        """It has not ended."""
        return self.phase in OPEN_PHASES

    @property
    def is_of_all(self) -> bool:
        """It was to hold all groups; others are of single segments that had no copy."""
        return not self.wanted or COORDINATOR in self.wanted

    @property
    def pace(self) -> tuple[int | None, int | None]:
        """Bytes per second, and the seconds that are left, while it is copied; None where nobody can tell."""
        if not self.is_open or self.message != COPYING:
            return None, None
        return pace(self.started_at, self.bytes_done, self.bytes_total)

    def with_group(self, group: int, made: GroupBackup) -> Backup:
        """One group more is done."""
        return replace(self, groups={**self.groups, group: made})

    def as_json(self) -> dict[str, Any]:
        """For :func:`backup_from`; what versions before do not know is left out where it says nothing."""
        known = asdict(self)
        if not self.again:
            del known["again"]
        return {
            **known,
            "groups": {str(group): asdict(made) for group, made in self.groups.items()},
            "wanted": list(self.wanted),
        }


def backup_from(raw: Mapping[str, Any]) -> Backup:
    """The inverse of ``Backup.as_json``.

    :raises ValueError, TypeError, LookupError, AttributeError: it is no backup, or one of another version
    """
    groups = {int(group): GroupBackup(**made) for group, made in raw["groups"].items()}
    found = Backup(**{**raw, "groups": groups, "wanted": tuple(raw["wanted"])})
    moment(found.requested_at)
    # Of what is neither open nor done nor failed nobody here can tell whether it is needed.
    if found.phase not in PHASES or {found.type, *(made.type for made in groups.values())} - {*TYPES}:
        raise ValueError(f"a {found.type} backup that is {found.phase}")
    return found


def unanswered(backups: Sequence[Backup]) -> list[Backup]:
    """The last backup that failed and that no later one makes up for, behind those that failed like it before; empty:
    there is none. What failed for all groups, copies of some do not make up for.

    :param backups: oldest first
    """
    found: list[Backup] = []
    for backup in backups:
        if backup.phase == "failed":
            found.append(backup)
        elif backup.phase == "done":
            found = [each for each in found if each.is_of_all and COORDINATOR not in backup.groups]
    return [each for each in found if each.is_of_all == found[-1].is_of_all]
