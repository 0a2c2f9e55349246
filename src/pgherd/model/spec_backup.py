"""The declaration's part about backups, and about a new cluster made from one."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pgherd.model.spec_base import Model
from pgherd.model.spec_quantity import parse_bytes, parse_duration

_PATH = re.compile(r"/[A-Za-z0-9_./@+=:,~-]*")
MAX_PATH = 400


def _duration_between(low: str, high: str) -> AfterValidator:
    def check(value: str) -> str:
        if not parse_duration(low) <= parse_duration(value) <= parse_duration(high):
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


def _check_path(value: str) -> str:
    # PostgreSQL runs the archiving of this path by a shell.
    if len(value) > MAX_PATH or not _PATH.fullmatch(value) or "/../" in f"{value}/":
        raise ValueError(
            f"must be an absolute path of at most {MAX_PATH} letters, digits and any of _./@+=:,~- without '..'"
        )
    return value


def _check_bytes(value: str) -> str:
    if not parse_bytes("64Mi") <= parse_bytes(value) <= parse_bytes("64Ti"):
        raise ValueError("must be between 64Mi and 64Ti")
    return value


def check_moment(value: str) -> str:
    """A point in time with its zone.

    :raises ValueError: it is not one
    """
    try:
        zone = datetime.fromisoformat(value).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise ValueError("must be a time with its zone such as 2026-11-21T09:15:00Z")
    return value


class RepositorySpec(Model):
    """Where backups are kept."""

    path: Annotated[str, AfterValidator(_check_path)] = Field(
        description="An absolute path: a directory, best on another disk or machine (a mount). Each cluster gets a "
        "folder of its own in it, named like the cluster."
    )


class RetentionSpec(Model):
    """How long backups are kept. What a kept restore point needs is never removed."""

    full: int = Field(default=7, ge=1, le=1000, description="The last so many full backups are kept.")
    days: int = Field(
        default=30, ge=0, le=3650, description="Every point of the last so many days can be restored."
    )


class BackupSpec(Model):
    """Backups of the whole cluster."""

    method: Literal["native"] = Field(
        default="native",
        description="native: PostgreSQL's own tools write into a directory. Differential and incremental backups need "
        "PostgreSQL 17 or later.",
    )
    repository: RepositorySpec = Field(description="Where backups are kept.")
    retention: RetentionSpec = Field(default_factory=RetentionSpec, description="How long backups are kept.")
    restore_point_every: Annotated[str, _duration_between("1s", "1d")] = Field(
        default="1m",
        description="How often a point is made at which all groups agree, such as 30s or 5m, from 1s to 1d. The "
        "cluster can be restored to any of them. While nothing changes none is made.",
    )
    wal_limit: Annotated[str, AfterValidator(_check_bytes)] = Field(
        default="4Gi",
        description="How much of one group's log may wait for a repository that is away or full before the status "
        "calls for help, such as 4Gi, from 64Mi to 64Ti. Writes go on; whenFull says for how long.",
    )
    when_full: Literal["keep", "drop"] = Field(
        default="keep",
        description="What happens at walLimit. keep: the log goes on waiting, until the members' disks are full. drop: "
        "the oldest of it is let go unarchived, so that disks never fill up; points after such a gap can be restored "
        "again once a new base copy is made, which happens by itself.",
    )


class RecoverySpec(Model):
    """From which backups, and up to where."""

    cluster: str = Field(description="The name of the cluster whose backups these are.")
    repository: RepositorySpec = Field(description="Where these backups are.")
    restore_point: str | None = Field(default=None, description="Up to this restore point.")
    time: Annotated[str, AfterValidator(check_moment)] | None = Field(
        default=None,
        description="Up to the newest restore point at or before this time, such as 2026-11-21T09:15:00Z.",
    )
    backup: str | None = Field(default=None, description="Up to the end of this backup.")
    inclusive: bool = Field(
        default=True,
        description="true: up to and with the restore point that is meant. false: up to the newest one that was made "
        "before it; with a time, before that time.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> RecoverySpec:
        named = [each for each in (self.restore_point, self.time, self.backup) if each is not None]
        if len(named) > 1:
            raise ValueError(
                "only one of restorePoint, time and backup may be given; none means the newest point"
            )
        if not self.inclusive and not named:
            raise ValueError("inclusive: false needs restorePoint, time or backup: what shall be left out?")
        return self


class CloneSpec(Model):
    """Which running cluster is copied."""

    cluster: str = Field(description="The name of the cluster; it needs no backups, and goes on meanwhile.")


class BootstrapSpec(Model):
    """Where a new cluster gets its data from."""

    recovery: RecoverySpec | None = Field(default=None, description="From the backups of another cluster.")
    clone: CloneSpec | None = Field(
        default=None, description="From another cluster as it is when it is copied."
    )

    @model_validator(mode="after")
    def _one_source(self) -> BootstrapSpec:
        if self.recovery is not None and self.clone is not None:
            raise ValueError("only one of recovery and clone may be given")
        return self

    @property
    def is_needed(self) -> bool:
        """Whether anything is to be brought in."""
        return self.recovery is not None or self.clone is not None
