"""The declaration's part about backups, and about a new cluster made from one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pgherd.model.spec_base import Model
from pgherd.model.spec_quantity import parse_bytes, parse_duration
from pgherd.model.spec_repository import KINDS, RepositorySpec, method_problem


def duration_between(low: str, high: str) -> AfterValidator:
    """A check of a duration's bounds."""

    def check(value: str) -> str:
        if not parse_duration(low) <= parse_duration(value) <= parse_duration(high):
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


def _check_bytes(value: str) -> str:
    if not parse_bytes("64Mi") <= parse_bytes(value) <= parse_bytes("64Ti"):
        raise ValueError("must be between 64Mi and 64Ti")
    return value


def check_moment(value: str) -> str:
    """A point in time with its zone.

    :raises ValueError: it is not one
    """
    try:
        read = datetime.fromisoformat(value)
        is_moment = read.tzinfo is not None
        read.astimezone(UTC)
    except (ValueError, OverflowError):  # of which there is none in UTC, neither
        is_moment = False
    if not is_moment:
        raise ValueError("must be a time with its zone such as 2026-11-21T09:15:00Z")
    return value


Method = Literal["native", "pgbackrest"]
_METHOD = (
    "native: PostgreSQL's own tools write into a directory; differential and incremental backups need PostgreSQL 17 "
    "or later. pgbackrest: pgBackRest, into a directory, a volume or an object store, compressed, encrypted if wanted; "
    "on one machine it must be installed there."
)
_SECRET = (
    "Where keys and passphrases are. On one machine the absolute path of a YAML file that only its owner may read, "
    "on Kubernetes the name of a Secret. Keys: access-key-id and secret-access-key (s3), session-token (s3, if need "
    "be), service-account (gcs), account-key or sas-token (azure), passphrase (encrypt), on Kubernetes ca.crt (the "
    "authority of the store's certificate)."
)


class RetentionSpec(Model):
    """How long backups are kept. What a kept restore point needs is never removed."""

    full: int = Field(default=7, ge=1, le=1000, description="The last so many full backups are kept.")
    days: int = Field(
        default=30, ge=0, le=3650, description="Every point of the last so many days can be restored."
    )


class BackupSpec(Model):
    """Backups of the whole cluster."""

    method: Method = Field(default="native", description=_METHOD)
    repository: RepositorySpec = Field(
        description=f"Where backups are kept: exactly one of {', '.join(KINDS)}."
    )
    retention: RetentionSpec = Field(default_factory=RetentionSpec, description="How long backups are kept.")
    restore_point_every: Annotated[str, duration_between("1s", "1d")] = Field(
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
        "log is let go unarchived, so that disks never fill up: with native the oldest file, again and again, with "
        "pgbackrest all that waits, at once. Points after such a gap can be restored again once a new base copy is "
        "made, which happens by itself.",
    )
    secret_ref: str | None = Field(default=None, min_length=1, max_length=400, description=_SECRET)
    compress: Literal["zst", "lz4", "gz", "none"] | None = Field(
        default=None, description="How pgbackrest compresses what it stores; left out: zst."
    )
    encrypt: bool = Field(
        default=False,
        description="Whether everything in the repository is encrypted, with the passphrase of secretRef. It can't be "
        "changed, and without the passphrase nothing can be restored.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> BackupSpec:
        problem = method_problem(
            self.method, self.repository, self.secret_ref, compress=self.compress, encrypt=self.encrypt
        )
        if problem:
            raise ValueError(problem)
        return self


class DeclaredRecoverySpec(Model):
    """From which backups, and up to where."""

    cluster: str = Field(description="The name of the cluster whose backups these are.")
    method: Method = Field(default="native", description="What they were made with.")
    repository: RepositorySpec | None = Field(
        default=None,
        description="Where these backups are. Left out: where spec.backup of that cluster says, with the same method, "
        "secretRef and encrypt, as it is when this one begins to be made; on one machine a cluster of the same home, "
        "on Kubernetes of the same namespace.",
    )
    secret_ref: str | None = Field(default=None, min_length=1, max_length=400, description=_SECRET)
    encrypt: bool = Field(default=False, description="Whether they are encrypted.")
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
    def _one_target(self) -> DeclaredRecoverySpec:
        if problem := self._place_problem():
            raise ValueError(problem)
        named = [each for each in (self.restore_point, self.time, self.backup) if each is not None]
        if len(named) > 1:
            raise ValueError(
                "only one of restorePoint, time and backup may be given; none means the newest point"
            )
        if not self.inclusive and not named:
            raise ValueError("inclusive: false needs restorePoint, time or backup: what shall be left out?")
        return self

    def _place_problem(self) -> str | None:
        if self.repository is not None:
            return method_problem(
                self.method, self.repository, self.secret_ref, compress=None, encrypt=self.encrypt
            )
        told = (
            ("method", self.method != "native"),
            ("secretRef", self.secret_ref),
            ("encrypt", self.encrypt),
        )
        if given := [name for name, is_given in told if is_given]:
            return (
                f"{given[0]}: goes with repository: name that, too, or leave out both, and what spec.backup of "
                f"{self.cluster} says is taken"
            )
        if "/" in self.cluster:
            return (
                "repository: may be left out only for a cluster of the same home, or namespace: name where the "
                f"backups of {self.cluster} are"
            )
        return None


class RecoverySpec(DeclaredRecoverySpec):
    """The same, by whoever knows where these backups are."""

    repository: RepositorySpec = Field(description="Where these backups are.")


class CloneSpec(Model):
    """Which running cluster is copied."""

    cluster: str = Field(
        description="The name of the cluster, on Kubernetes in the same namespace; it needs no backups, and goes on "
        "meanwhile."
    )


class BootstrapSpec(Model):
    """Where a new cluster gets its data from."""

    recovery: DeclaredRecoverySpec | None = Field(
        default=None, description="From the backups of another cluster."
    )
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
