"""The declaration's part about repositories: a directory, a volume, or a bucket of an object store."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pgherd.model.spec_base import Model

_PATH = re.compile(r"/[A-Za-z0-9_./@+=:,~-]*")
_PREFIX = re.compile(r"[A-Za-z0-9_.@+=,~-]+(/[A-Za-z0-9_.@+=,~-]+)*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]")
_ENDPOINT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
MAX_PATH = 400
MAX_CLAIM = 253
KINDS = ("path", "volume", "s3", "gcs", "azure")


def check_path(value: str) -> str:
    """An absolute path that no shell misunderstands.

    :raises ValueError: it is not one
    """
    # PostgreSQL runs the archiving of this path by a shell.
    if len(value) > MAX_PATH or not _PATH.fullmatch(value) or "/../" in f"{value}/":
        raise ValueError(
            f"must be an absolute path of at most {MAX_PATH} letters, digits and any of _./@+=:,~- without '..'"
        )
    return value


def _matching(pattern: re.Pattern[str], wanted: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value) or ".." in value:
            raise ValueError(f"must be {wanted}")
        return value

    return AfterValidator(check)


Bucket = Annotated[str, _matching(_BUCKET, "a bucket's name: letters, digits and any of ._-")]
Prefix = Annotated[str, _matching(_PREFIX, "a path within the bucket without a leading or trailing slash")]
Endpoint = Annotated[
    str, _matching(_ENDPOINT, "a host name, and a port if need be, such as s3.example.com:9000")
]
Region = Annotated[str, _matching(_REGION, "a region's name such as eu-central-1")]


class _Remote(Model):
    """What all object stores have in common."""

    prefix: Prefix | None = Field(
        default=None, description="Where in the bucket: everything of pgherd's begins with it."
    )
    verify_tls: bool = Field(default=True, description="Whether the store's certificate must be a good one.")
    ca_file: Annotated[str, AfterValidator(check_path)] | None = Field(
        default=None,
        description="A file with the certificate of the authority that the store's certificate is from, where it is "
        "none that this machine knows. On Kubernetes the key ca.crt of the Secret takes its place.",
    )


class S3Spec(_Remote):
    """A bucket of S3, or of a server that speaks like it."""

    bucket: Bucket = Field(description="The bucket. It must be there.")
    region: Region = Field(default="us-east-1", description="The bucket's region.")
    endpoint: Endpoint | None = Field(
        default=None,
        description="The server, always asked by https; left out: Amazon's of the region.",
    )
    uri_style: Literal["host", "path"] = Field(
        default="host",
        description="host: the bucket is part of the host's name. path: of the path, as most servers other than "
        "Amazon's want it.",
    )


class GcsSpec(_Remote):
    """A bucket of Google Cloud Storage."""

    bucket: Bucket = Field(description="The bucket. It must be there.")


class AzureSpec(_Remote):
    """A container of Azure Blob Storage."""

    account: Annotated[str, _matching(_ACCOUNT, "a storage account's name")] = Field(
        description="The storage account."
    )
    container: Bucket = Field(description="The container. It must be there.")


class VolumeSpec(Model):
    """A volume that all members mount."""

    claim_name: Annotated[
        str, _matching(_CLAIM, "the name of a PersistentVolumeClaim: lower case letters, digits, - and .")
    ] = Field(
        max_length=MAX_CLAIM,
        description="The PersistentVolumeClaim, in the cluster's namespace. It must be there, with access mode "
        "ReadWriteMany (NFS and the like), and the members' user, 999, must be able to write to it.",
    )
    prefix: Prefix | None = Field(
        default=None, description="Where in the volume: everything of pgherd's begins with it."
    )


class RepositorySpec(Model):
    """Where backups are kept: exactly one of these."""

    path: Annotated[str, AfterValidator(check_path)] | None = Field(
        default=None,
        description="On one machine only: an absolute path, of a directory best on another disk or machine (a mount). "
        "Each cluster gets a folder of its own in it, named like the cluster.",
    )
    volume: VolumeSpec | None = Field(
        default=None,
        description="On Kubernetes only: a volume that all members mount. Each cluster gets a folder of its own in it, "
        "named like the cluster.",
    )
    s3: S3Spec | None = Field(default=None, description="A bucket of S3, or of a server that speaks like it.")
    gcs: GcsSpec | None = Field(default=None, description="A bucket of Google Cloud Storage.")
    azure: AzureSpec | None = Field(default=None, description="A container of Azure Blob Storage.")

    @model_validator(mode="after")
    def _one_kind(self) -> RepositorySpec:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            told = f"got {' and '.join(named)}" if named else "got none"
            raise ValueError(f"must name exactly one of {', '.join(KINDS)}: {told}")
        return self

    @property
    def kind(self) -> str:
        """Which one it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def method_problem(
    method: str, repository: RepositorySpec, secret: str | None, *, compress: str | None, encrypt: bool
) -> str | None:
    """What does not go together in a declaration of backups; None: it does."""
    if method == "native":
        if repository.kind != "path":
            return f"method: must be pgbackrest for repository.{repository.kind}: native writes to a path"
        for name, given in (("compress", compress), ("encrypt", encrypt), ("secretRef", secret)):
            if given:
                return f"{name}: needs method pgbackrest"
    if encrypt and secret is None:
        return "encrypt: needs secretRef: the key passphrase in it"
    return None
