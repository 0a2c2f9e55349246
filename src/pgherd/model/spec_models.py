"""The declaration's shape: every field with its default, its bounds and its description.

One source: from these models come the reading and checking of files, ``pgherd explain``, the reference
page and the schema of the Kubernetes resource. They are frozen; in files their fields are written in
camelCase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import time
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pgherd.model.spec_backup import BackupSpec, BootstrapSpec
from pgherd.model.spec_base import Model
from pgherd.model.spec_hba import hba_problems
from pgherd.model.spec_parameters import ParameterValue, parameter_problem, same_but_for_case
from pgherd.model.spec_quantity import parse_bytes, parse_cpu, parse_time

API_VERSION = "pgherd.io/v1alpha1"
KIND = "PostgresCluster"

DEFAULT_ENGINE = {"local": "fdw", "kubernetes": "citus"}
"""by platform: what is taken where none is declared"""
IMAGE_MAJOR = 17
"""PostgreSQL's major version on Kubernetes where none is declared"""

MAX_NAME = 40
"""A group's StatefulSet is NAME-segment-256: Kubernetes adds 11 characters to that and allows 63. Members are
``NAME-segment-256-8``, shorter still."""
MAX_SEGMENTS = 256
MAX_STANDBYS = 8
MAX_SHARDS = 1024

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
OWN_ENDING = (
    r"-(coordinator|segment-[0-9]+|ro|ca|(coordinator|segment-[0-9]+|[0-9]+)-(leader|config|sync|failover))$"
)
"""how pgherd's and Patroni's names of a cluster's parts end: a cluster called so could be taken for one"""
OWN_ENDING_MESSAGE = (
    "must not end in -coordinator, -segment-N, -ro or -ca, nor such a part's name in -leader, -config, -sync or"
    " -failover: pgherd names its own parts so"
)
_OWN_ENDING = re.compile(OWN_ENDING)
_DATABASE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_RESERVED_DATABASES = {"postgres", "template0", "template1", "pgherd", "replicator", "public", "none"}

KEPT = "kept"
"""in the context of a validation: whether the declaration is one that was accepted before"""

Problem = tuple[tuple[str | int, ...], str, Any]
"""path below the model at hand, what is wrong, the value"""


def _raise(title: str, problems: list[Problem]) -> None:
    """Hand several problems, each with a path of its own, to pydantic."""
    if problems:
        details = [
            InitErrorDetails(
                type=PydanticCustomError("rule", "{text}", {"text": text}), loc=path, input=value
            )
            for path, text, value in problems
        ]
        raise ValidationError.from_exception_data(title, details)


def _number_as_text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise ValueError(f"must be quoted: write '{value}'")
    return value


def _bytes_between(low: str, high: str) -> AfterValidator:
    def check(value: str) -> str:
        if not parse_bytes(low) <= parse_bytes(value) <= parse_bytes(high):
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


def _check_cpu(value: str) -> str:
    if not 50 <= parse_cpu(value) <= 512_000:
        raise ValueError("must be between 50m and 512")
    return value


def _check_time(value: str) -> str:
    parse_time(value)
    return value


def _check_database(value: str) -> str:
    if not _DATABASE.fullmatch(value):
        raise ValueError(
            "must be 1 to 63 lower-case letters, digits and underscores, not starting with a digit"
        )
    if value in _RESERVED_DATABASES or value.startswith("pg_"):
        raise ValueError("is reserved: choose another name")
    return value


def _check_name(value: str) -> str:
    if len(value) > MAX_NAME:
        raise ValueError(f"must be at most {MAX_NAME} characters, has {len(value)}")
    if not _NAME.fullmatch(value):
        raise ValueError("must be lower-case letters, digits and hyphens, starting with a letter")
    if _OWN_ENDING.search(value):
        raise ValueError(OWN_ENDING_MESSAGE)
    return value


def _check_image(value: str) -> str:
    if not value or any(character.isspace() for character in value):
        raise ValueError("must be the name of a container image")
    return value


def _check_hba(text: str, info: ValidationInfo) -> str:
    if (info.context or {}).get(KEPT):
        return text
    problems = hba_problems(text, info.data.get("version"), info.data.get("parameters"))
    _raise("hostBasedAuthentication", [((), problem, text) for problem in problems])
    return text


def _check_parameters(value: object) -> object:
    if isinstance(value, dict):
        _raise("parameters", list(_parameters_problems(value)))
    return value


def _parameters_problems(parameters: dict[str, Any]) -> Iterator[Problem]:
    for name, value in parameters.items():
        if not isinstance(value, str | int | float | bool):
            yield (name,), "must be text, a number or on/off", value
        elif problem := parameter_problem(name, value):
            yield (name,), problem, value
    for name, first in same_but_for_case(parameters):
        yield (name,), f"is the same parameter as {first}", parameters[name]


def _check_labels(value: dict[str, str]) -> dict[str, str]:
    _raise(
        "labels",
        [((key,), problem, text) for key, text in value.items() if (problem := _label_problem(key, text))],
    )
    return value


def _label_problem(key: str, text: str) -> str | None:
    if not _LABEL_KEY.fullmatch(key):
        return "is not a label's name"
    return None if _LABEL_VALUE.fullmatch(text) else "must be at most 63 letters, digits, '-', '_' and '.'"


Cpu = Annotated[
    str, BeforeValidator(_number_as_text, json_schema_input_type=int | str), AfterValidator(_check_cpu)
]
Memory = Annotated[
    str, BeforeValidator(_number_as_text, json_schema_input_type=int | str), _bytes_between("128Mi", "24Ti")
]
StorageSize = Annotated[
    str, BeforeValidator(_number_as_text, json_schema_input_type=int | str), _bytes_between("256Mi", "1Pi")
]
TimeOfDay = Annotated[str, AfterValidator(_check_time)]
Labels = Annotated[dict[str, str], AfterValidator(_check_labels)]
AntiAffinity = Literal["required", "preferred", "none"]


class Metadata(Model):
    """What the cluster is called."""

    name: Annotated[str, AfterValidator(_check_name)] = Field(
        description="The cluster's name: lower-case letters, digits and hyphens, starting with a letter, "
        f"at most {MAX_NAME} characters (member names are made of it), and no ending of pgherd's own: -coordinator, "
        "-segment-N, -ro, -ca."
    )
    namespace: str | None = Field(
        default=None, description="Kubernetes only: the namespace. Left out: the context's own."
    )
    labels: Labels = Field(
        default_factory=dict, description="Labels, passed on to what the platform creates."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Notes of your own; pgherd keeps them."
    )


class PostgresSpec(Model):
    """The PostgreSQL that every member runs."""

    version: int | None = Field(
        default=None,
        ge=15,
        le=18,
        description="Major version. Left out: the platform's own (the installed server, or the image's). "
        "One that is not there is refused. Can't be changed.",
    )
    image: Annotated[str, AfterValidator(_check_image)] | None = Field(
        default=None,
        description="Kubernetes only: the container image of the members. Left out: the operator's.",
    )
    parameters: Annotated[dict[str, ParameterValue], BeforeValidator(_check_parameters)] = Field(
        default_factory=dict,
        description="PostgreSQL parameters for every member, over pgherd's own choice. A change is applied "
        "by a reload, or where PostgreSQL needs it by a restart, standbys first. Parameters that carry a "
        "promise of pgherd (port, data_directory, synchronous_standby_names, ...) are refused; "
        "shared_preload_libraries is added to what the engine needs.",
    )
    host_based_authentication: Annotated[str, AfterValidator(_check_hba)] = Field(
        default="",
        description="Lines of pg_hba.conf that say who may connect, from where and how; they come before the "
        "defaults (a SCRAM password for everyone). A line that PostgreSQL would not read is refused. On Kubernetes "
        "connections without TLS are refused whatever is said here.",
    )


class Resources(Model):
    """What one member may use."""

    cpu: Cpu | None = Field(
        default=None,
        description='Cores, such as "2" or 500m, from 50m to 512. Left out: 1 on Kubernetes, no limit on '
        "local.",
    )
    memory: Memory | None = Field(
        default=None,
        description="Memory, such as 4Gi, from 128Mi to 24Ti; PostgreSQL's buffers are sized from it. Left "
        "out: 2Gi on Kubernetes, 512Mi on local. On local, where members share one machine, buffers are "
        "never sized from more than 512Mi: use postgres.parameters.shared_buffers to give them more.",
    )


class Storage(Model):
    """Where one member keeps its data."""

    size: StorageSize = Field(
        default="10Gi",
        description="Kubernetes only: the size of each member's volume, such as 50Gi, from 256Mi to 1Pi. "
        "May grow, never shrink.",
    )
    storage_class_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Kubernetes only: the storage class. Left out: the cluster's default class. Can't be "
        "changed.",
    )


class Toleration(Model):
    """A taint of Kubernetes nodes that members put up with."""

    key: str | None = Field(
        default=None, description="The taint's key. Left out, with operator Exists: every taint."
    )
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How the value is compared.")
    value: str | None = Field(default=None, description="The taint's value, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect. Left out: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None,
        ge=0,
        description="Seconds for which a NoExecute taint is put up with. Left out: for ever.",
    )


class GroupSpec(Model):
    """One primary and its standbys."""

    standbys: int = Field(
        default=1,
        ge=0,
        le=MAX_STANDBYS,
        description="Standbys of each primary. 0: no failover, a crashed primary is restarted in place.",
    )
    resources: Resources = Field(default_factory=Resources, description="What each member may use.")
    storage: Storage = Field(default_factory=Storage, description="Where each member keeps its data.")
    anti_affinity: AntiAffinity = Field(
        default="required",
        description="Kubernetes only: whether the members of a group must (required), should (preferred) "
        "or need not (none) run on different nodes.",
    )
    node_selector: Labels = Field(
        default_factory=dict, description="Kubernetes only: labels of the nodes on which members may run."
    )
    tolerations: Annotated[tuple[Toleration, ...], Field(strict=False, max_length=64)] = Field(
        default=(), description="Kubernetes only: taints of nodes that members put up with."
    )


class SegmentsSpec(GroupSpec):
    """The groups that hold the data."""

    count: int = Field(
        default=2,
        ge=1,
        le=MAX_SEGMENTS,
        description="Number of segments, at most spec.shardCount. Raise it: shards move to the new "
        "segments. Lower it: shards move off the last segments first, then these go.",
    )


class Window(Model):
    """The hours in which shards may move; it may span midnight."""

    start: TimeOfDay = Field(
        description="Time of day HH:MM from which moves may begin, in the time zone of the process that "
        "runs them (your machine's on local, UTC in a Kubernetes pod)."
    )
    end: TimeOfDay = Field(
        description="Time of day HH:MM from which no further move begins; a running one ends."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.start == self.end:
            raise ValueError("start and end must differ; leave the window out to allow moves at any time")
        return self

    def is_open(self, now: time) -> bool:
        """Whether a move may begin at this time of day."""
        start, end = parse_time(self.start), parse_time(self.end)
        moment = now.replace(tzinfo=None)
        return start <= moment < end if start < end else moment >= start or moment < end


class ExpansionSpec(Model):
    """How shards move when segments come or go."""

    mode: Literal["online", "blocking", "clone"] = Field(
        default="online",
        description="online: shards are copied while the cluster is written to; writers wait for the last "
        "moment of each move only. blocking: writers of a shard wait while it moves; faster and simpler. "
        "clone (engine citus from 13.2): a new segment begins as a standby of a present one, and "
        "takes half of its shards; writers of these wait while the two part. Segments that go are emptied online.",
    )
    parallel_moves: int = Field(default=2, ge=1, le=16, description="Moves that run at the same time.")
    window: Window | None = Field(
        default=None, description="The hours in which moves may begin. Left out: at any time."
    )
    paused: bool = Field(default=False, description="Begin no further move until this is false again.")


class ClusterSpec(Model):
    """What the cluster should be."""

    engine: Literal["citus", "fdw"] | None = Field(
        default=None,
        description="What makes one database of many: citus (the extension) or fdw (core PostgreSQL only). "
        "Left out: citus on Kubernetes, fdw on local. Can't be changed.",
    )
    database: Annotated[str, AfterValidator(_check_database)] = Field(
        default="app",
        description="The distributed database, and the role of the same name that owns it: up to 63 "
        "lower-case letters, digits and underscores. Can't be changed.",
    )
    shard_count: int = Field(
        default=32,
        ge=1,
        le=MAX_SHARDS,
        description="Shards of each distributed table, and so the most segments there can ever be. Can't "
        "be changed: rows are never hashed anew.",
    )
    durability: Literal["synchronous", "quorum", "asynchronous"] = Field(
        default="synchronous",
        description="When a commit is acknowledged. synchronous: it is on the primary and a standby. "
        "quorum: on the primary and any one of the standbys, whichever is first. asynchronous: on the "
        "primary; a failover may lose the last commits.",
    )
    postgres: PostgresSpec = Field(
        default_factory=PostgresSpec, description="The PostgreSQL that every member runs."
    )
    coordinator: GroupSpec = Field(
        default_factory=GroupSpec,
        description="Group 0, where clients connect: it plans queries and holds no shards.",
    )
    segments: SegmentsSpec = Field(
        default_factory=SegmentsSpec, description="Groups 1 to count, which hold the shards."
    )
    expansion: ExpansionSpec = Field(
        default_factory=ExpansionSpec, description="How shards move when segments come or go."
    )
    backup: BackupSpec | None = Field(
        default=None,
        description="Backups and restore points of the whole cluster. On Kubernetes with method pgbackrest, into an "
        "object store or a volume. Left out: there are none.",
    )
    bootstrap: BootstrapSpec | None = Field(
        default=None,
        description="Where a new cluster gets its data from: from backups (on Kubernetes in an object store or on a "
        "volume), or from a running cluster. Left out: it begins empty. Of no effect once the cluster has data.",
    )
    replace_lost_after: int = Field(
        default=300,
        ge=0,
        le=86_400,
        description="Kubernetes only: seconds after which a member whose node does not report any more is built "
        "anew elsewhere, on a new volume. Only while another member of its group is the primary, while the cluster or "
        "the group is made from a backup, which has all of it, or while its group was never there: nothing is on that "
        "volume. 0: never.",
    )
    fencing: Literal["none", "out-of-service"] = Field(
        default="none",
        description="Kubernetes only: how members leave a node that is off. none: they are built anew elsewhere, see "
        "replaceLostAfter. out-of-service, for volumes on network storage: once Kubernetes gave the node up and the "
        "cloud's controller or an annotation pgherd.io/powered-off=TIME on the node says that it is off, the node gets "
        "Kubernetes' taint out-of-service, and all its pods go elsewhere with their volumes. The operator must be "
        "installed with --fencing.",
    )
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="Kubernetes only: whether the volumes stay (Retain) or go (Delete) with the cluster.",
    )


class PostgresCluster(Model):
    """One distributed PostgreSQL: a coordinator, segments, and standbys for each of them."""

    api_version: Literal["pgherd.io/v1alpha1"] = Field(
        default="pgherd.io/v1alpha1", description="The schema's version."
    )
    kind: Literal["PostgresCluster"] = Field(
        default="PostgresCluster", description="The kind of thing declared."
    )
    metadata: Metadata = Field(description="What the cluster is called.")
    spec: ClusterSpec = Field(default_factory=ClusterSpec, description="What the cluster should be.")
