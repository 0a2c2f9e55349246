"""Declarations beside the cluster's: one backup of it, and when backups and drills are made by themselves."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from pgherd.model.cron import check_cron
from pgherd.model.spec_backup import duration_between
from pgherd.model.spec_base import Model
from pgherd.model.spec_models import MAX_NAME, Metadata

BACKUP: Final = "PostgresBackup"
SCHEDULE: Final = "PostgresBackupSchedule"
MAX_TABLES = 256

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def _check_name(value: str) -> str:
    if len(value) > MAX_NAME or not _NAME.fullmatch(value):
        raise ValueError(
            f"must be at most {MAX_NAME} lower-case letters, digits and hyphens, starting with a letter and not "
            "ending with a hyphen"
        )
    return value


def _check_table(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("must be the name of a table such as account or sales.account")
    return value


Tables = Annotated[
    tuple[Annotated[str, AfterValidator(_check_table)], ...], Field(strict=False, max_length=MAX_TABLES)
]
Type = Literal["full", "differential", "incremental"]
TYPE = (
    "full: everything. differential: what changed since the last full one. incremental: what changed since the last "
    "one. With method native the latter two need PostgreSQL 17 or later."
)


class ObjectMetadata(Metadata):
    """What it is called."""

    name: Annotated[str, AfterValidator(_check_name)] = Field(
        description="Its name: lower-case letters, digits and hyphens, starting with a letter, "
        f"at most {MAX_NAME} characters."
    )


class OneBackupSpec(Model):
    """Which backup."""

    cluster: str = Field(description="The cluster. Can't be changed.")
    type: Type = Field(default="full", description=f"{TYPE} Can't be changed.")


class PostgresBackup(Model):
    """One backup of a cluster, made once. Its name is the backup's id."""

    api_version: Literal["pgherd.io/v1alpha1"] = Field(
        default="pgherd.io/v1alpha1", description="The schema's version."
    )
    kind: Literal["PostgresBackup"] = Field(default=BACKUP, description="The kind of thing declared.")
    metadata: ObjectMetadata = Field(description="What the backup is called.")
    spec: OneBackupSpec = Field(description="Which backup.")


class DrillSpec(Model):
    """Drills: the newest restore point is restored into a scratch cluster, examined, and removed again."""

    every: Annotated[str, duration_between("1m", "365d")] = Field(
        default="7d",
        description="How often, such as 7d or 12h, from 1m to 365d, counted from the end of the last one. The first "
        "is made as soon as there is something to restore. One that is later than that by more than a day (or by this "
        "time again, if that is shorter) is overdue, which the status says.",
    )
    timeout: Annotated[str, duration_between("1m", "365d")] = Field(
        default="1d",
        description="How long one may take, from its beginning to its verdict, such as 12h or 2d, from 1m to 365d. One "
        "that takes longer is ended, and has failed.",
    )
    keep: bool = Field(
        default=False, description="Leave the scratch cluster NAME-drill there until the next drill."
    )
    tables: Tables = Field(
        default=(),
        description="Tables whose rows are counted and hashed, shard by shard, at the point that is restored, and "
        "compared with what comes back.",
    )


class ScheduleSpec(Model):
    """What is made, and when."""

    cluster: str = Field(description="The cluster. Can't be changed.")
    cron: Annotated[str, AfterValidator(check_cron)] = Field(
        description="When, in UTC: minute, hour, day of month, month and day of week, such as 0 2 * * * (each night at "
        "two). A time that was missed is made up for once."
    )
    type: Type = Field(default="full", description=TYPE)
    suspend: bool = Field(default=False, description="Begin no more backups and drills for the time being.")
    drill: DrillSpec | None = Field(
        default=None,
        description="Prove on a schedule that the backups can be restored. Left out: no drills.",
    )


class PostgresBackupSchedule(Model):
    """Backups, and drills, that are made by themselves."""

    api_version: Literal["pgherd.io/v1alpha1"] = Field(
        default="pgherd.io/v1alpha1", description="The schema's version."
    )
    kind: Literal["PostgresBackupSchedule"] = Field(
        default=SCHEDULE, description="The kind of thing declared."
    )
    metadata: ObjectMetadata = Field(description="What the schedule is called.")
    spec: ScheduleSpec = Field(description="What is made, and when.")
