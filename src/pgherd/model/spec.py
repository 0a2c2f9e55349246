"""The declaration: one file that says what a cluster should be.

The shape is in :mod:`~pgherd.model.spec_models`; here are reading and writing it, filling in what the
platform decides, and saying which changes can't be. A file with anything wrong in it is refused as a
whole, with every problem and its path, before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pgherd.errors import BadInput
from pgherd.model import spec_yaml
from pgherd.model.spec_backup import (
    BackupSpec,
    BootstrapSpec,
    DeclaredRecoverySpec,
    RecoverySpec,
    RetentionSpec,
)
from pgherd.model.spec_hba import hba_problems, plain_text_problems
from pgherd.model.spec_models import (
    API_VERSION,
    DEFAULT_ENGINE,
    IMAGE_MAJOR,
    KEPT,
    KIND,
    ClusterSpec,
    ExpansionSpec,
    GroupSpec,
    Metadata,
    PostgresCluster,
    PostgresSpec,
    Resources,
    SegmentsSpec,
    Storage,
    Toleration,
    Window,
)
from pgherd.model.spec_parameters import ParameterValue
from pgherd.model.spec_problems import (
    NO_CLONES,
    Found,
    field_names,
    model_at,
    nearest,
    problems_of,
    relations,
    shown,
)
from pgherd.model.spec_quantity import parse_bytes, parse_cpu, parse_duration, parse_time
from pgherd.model.spec_repository import RepositorySpec, VolumeSpec
from pgherd.model.spec_schema import IMMUTABLE, crd_schema

__all__ = [
    "API_VERSION",
    "IMAGE_MAJOR",
    "KIND",
    "BackupSpec",
    "BootstrapSpec",
    "ClusterSpec",
    "DeclaredRecoverySpec",
    "ExpansionSpec",
    "GroupSpec",
    "Metadata",
    "ParameterValue",
    "PostgresCluster",
    "PostgresSpec",
    "RecoverySpec",
    "RepositorySpec",
    "Resources",
    "RetentionSpec",
    "SegmentsSpec",
    "Storage",
    "Toleration",
    "VolumeSpec",
    "Window",
    "crd_schema",
    "dotted",
    "dump",
    "from_mapping",
    "load",
    "parse_bytes",
    "parse_cpu",
    "parse_duration",
    "parse_time",
    "to_mapping",
    "validate_change",
    "with_paused",
    "with_platform_defaults",
    "with_segment_count",
]

M = TypeVar("M", bound=BaseModel)

_VERSION = ("spec", "postgres", "version")
_KUBERNETES_RESOURCES = {"cpu": "1", "memory": "2Gi"}


def load(text: str, *, source: str, platform: str = "local", kept: bool = False) -> PostgresCluster:
    """Read a declaration (YAML or JSON) and fill in the platform's defaults.

    :param source: what to call the text in messages, for example its file name
    :param platform: ``local`` or ``kubernetes``
    :param kept: it was accepted once and is in force: its pg_hba lines are not judged anew, or a cluster that runs
        would be nobody's any more where a later version knows better
    :raises BadInput: with every problem, each with its path and line
    """
    document = spec_yaml.read(text, source)
    cluster, problems = validate(document.value, PostgresCluster, kept=kept)
    if cluster is None:
        raise BadInput(*described(problems, document, source))
    return with_platform_defaults(cluster, platform, kept=kept)


def described(problems: list[Found], document: spec_yaml.Document, source: str) -> list[str]:
    """Problems of a document, a line each with its path and line, in the order of their lines."""

    def told(found: Found) -> str:
        path, what = found
        line = document.line(path)
        return f"{dotted(path) or source}: {what}" + (f" ({source}:{line})" if path and line else "")

    return [told(each) for each in sorted(problems, key=lambda found: document.line(found[0]) or 0)]


def from_mapping(
    value: object, *, source: str = "", platform: str = "local", kept: bool = False
) -> PostgresCluster:
    """The same for plain data, for example an object of the Kubernetes API.

    :raises BadInput: with every problem, each with its path
    """
    cluster, problems = validate(value, PostgresCluster, kept=kept)
    if cluster is None:
        raise BadInput(*(f"{dotted(path) or source or 'the declaration'}: {what}" for path, what in problems))
    return with_platform_defaults(cluster, platform, kept=kept)


def validate(value: object, model: type[M], *, kept: bool = False) -> tuple[M | None, list[Found]]:
    """A declaration of one kind from plain data, or everything that is wrong with it."""
    if not isinstance(value, Mapping):
        return None, [((), f"must be a mapping with apiVersion, kind, metadata and spec, got {shown(value)}")]
    raw = _without_nulls(value, (), model)
    # These decide what all other fields mean: with a wrong one the rest would be noise.
    header = [
        found
        for key, wanted in (("apiVersion", API_VERSION), ("kind", model.model_fields["kind"].default))
        for found in _wrong(raw, key, wanted, model)
    ]
    if header:
        return None, header
    problems = relations(raw) if model is PostgresCluster else []
    try:
        declared = model.model_validate(raw, by_alias=True, by_name=False, context={KEPT: kept})
    except ValidationError as error:
        return None, problems_of(error, model) + problems
    return (None if problems else declared), problems


def _wrong(raw: Mapping[str, Any], key: str, wanted: str, model: type[BaseModel]) -> list[Found]:
    if key not in raw:
        near = nearest(key, [name for name in map(str, raw) if name not in field_names(model)])
        return [
            ((key,), f"is required and must be {wanted}" + (f"; is {near} meant to be it?" if near else ""))
        ]
    return [] if raw[key] == wanted else [((key,), f"must be {wanted}, got {shown(raw[key])}")]


def _without_nulls(value: Any, path: tuple[str | int, ...], root: type[BaseModel]) -> Any:
    """A field without a value is left out, as in Kubernetes; free mappings keep theirs (to be refused)."""
    if isinstance(value, list):
        return [_without_nulls(item, (*path, index), root) for index, item in enumerate(value)]
    if not isinstance(value, Mapping) or model_at(path, root) is None:
        return value
    return {key: _without_nulls(item, (*path, key), root) for key, item in value.items() if item is not None}


def dotted(path: tuple[str | int, ...]) -> str:
    """``spec.coordinator.tolerations[0].key``"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def dump(cluster: PostgresCluster) -> str:
    """The declaration as YAML that :func:`load` reads back to an equal one.

    Every field is written, not only those that were set: a later version's other default must not change
    a cluster that exists.
    """
    return spec_yaml.write(to_mapping(cluster))


def to_mapping(cluster: PostgresCluster) -> dict[str, Any]:
    """The same as plain data, in camelCase."""
    return cluster.model_dump(mode="json", by_alias=True, exclude_none=True)


def with_platform_defaults(cluster: PostgresCluster, platform: str, *, kept: bool = False) -> PostgresCluster:
    """Fill in what the platform decides and the declaration left out (idempotent).

    :param platform: ``local`` or ``kubernetes``
    :param kept: see :func:`load`
    :raises BadInput: what is filled in does not go with what was declared
    """
    spec = cluster.spec
    if problem := _self_problem(cluster):
        raise BadInput(problem)
    update: dict[str, Any] = {"engine": spec.engine or DEFAULT_ENGINE[platform]}
    if spec.expansion.mode == "clone" and update["engine"] == "fdw":
        raise BadInput(f"spec.expansion.mode: {NO_CLONES}")
    if platform == "local" and (problems := local_problems(spec)):
        raise BadInput(*problems)
    if platform == "kubernetes":
        problems = [] if kept else _kubernetes_hba_problems(spec.postgres)
        if problems := [*problems, *kubernetes_problems(spec)]:
            raise BadInput(*problems)
        update["coordinator"] = _with_resources(spec.coordinator)
        update["segments"] = _with_resources(spec.segments)
    return _changed(cluster, spec=_changed(spec, **update))


def _kubernetes_hba_problems(postgres: PostgresSpec) -> list[str]:
    """What of the lines the members' servers would refuse, whose version is known there, or whose TLS would."""
    text = postgres.host_based_authentication
    found = [
        *hba_problems(text, postgres.version or IMAGE_MAJOR, postgres.parameters),
        *plain_text_problems(text),
    ]
    return [f"spec.postgres.hostBasedAuthentication: {problem}" for problem in found]


def local_problems(spec: ClusterSpec) -> list[str]:
    """What of backups is for Kubernetes only."""
    return [
        f"{path}.repository.volume: is for kubernetes: on one machine name a path (a share that is mounted), s3, gcs "
        "or azure"
        for path, repository in _repositories(spec)
        if repository.volume is not None
    ]


def _self_problem(cluster: PostgresCluster) -> str | None:
    """That a cluster is to be made of itself."""
    bootstrap, name = cluster.spec.bootstrap, cluster.metadata.name
    clone, recovery = (bootstrap.clone, bootstrap.recovery) if bootstrap is not None else (None, None)
    if clone is not None and clone.cluster == name:
        return "spec.bootstrap.clone.cluster: is the cluster itself: name the one that is to be copied"
    if recovery is not None and recovery.repository is None and recovery.cluster == name:
        return (
            "spec.bootstrap.recovery.cluster: is the cluster itself: name another one, or with repository where the "
            "backups are of the one that had its name"
        )
    return None


def _repositories(spec: ClusterSpec) -> list[tuple[str, RepositorySpec]]:
    """What names a repository, by path."""
    recovery = spec.bootstrap.recovery if spec.bootstrap is not None else None
    found = (("spec.backup", spec.backup), ("spec.bootstrap.recovery", recovery))
    return [
        (path, declared.repository)
        for path, declared in found
        if declared is not None and declared.repository is not None
    ]


def kubernetes_problems(spec: ClusterSpec) -> list[str]:
    """What of backups is for one machine only."""
    problems = []
    for path, repository in _repositories(spec):
        remote = repository.s3 or repository.gcs or repository.azure
        if repository.path is not None:
            problems.append(
                f"{path}.repository.path: is for the local platform: on kubernetes name volume, s3, gcs or azure, and "
                "method: pgbackrest"
            )
        elif remote is not None and remote.ca_file is not None:
            problems.append(
                f"{path}.repository.{repository.kind}.caFile: is for the local platform: on kubernetes put "
                "the certificate into the Secret of secretRef as ca.crt"
            )
    return problems


def _with_resources(group: GroupSpec) -> GroupSpec:
    declared = group.resources.model_dump(exclude_none=True)
    return _changed(group, resources=Resources(**{**_KUBERNETES_RESOURCES, **declared}))


def with_segment_count(cluster: PostgresCluster, count: int) -> PostgresCluster:
    """The same cluster with another number of segments, as ``pgherd scale`` declares it.

    :raises BadInput: out of bounds
    """
    raw = to_mapping(cluster)
    raw["spec"]["segments"]["count"] = count
    # Its other fields are in force already: a wish for segments is no wish for them.
    changed, problems = validate(raw, PostgresCluster, kept=True)
    if changed is None:
        raise BadInput(*(f"{dotted(path)}: {what}" for path, what in problems))
    return changed


def with_paused(cluster: PostgresCluster, paused: bool) -> PostgresCluster:
    """The same cluster with its moves halted, or going on."""
    expansion = _changed(cluster.spec.expansion, paused=paused)
    return _changed(cluster, spec=_changed(cluster.spec, expansion=expansion))


def _changed(model: M, **update: Any) -> M:
    return model.model_copy(update=update)


def validate_change(old: PostgresCluster, new: PostgresCluster, *, version_is_there: bool = False) -> None:
    """Refuse what can't be changed in a cluster that exists. Both with their platform's defaults.

    :param version_is_there: the new one's ``postgres.version``, if it names one, is the one that runs
    :raises BadInput: with every such field, its path and both values
    """
    was, now = to_mapping(old), to_mapping(new)
    problems = []
    for path in (("metadata", "name"), *(("spec", *below) for below in IMMUTABLE)):
        before, after = _at(was, path), _at(now, path)
        if version_is_there and path == _VERSION and before is None:
            continue
        if before != after:
            problems.append(f"{dotted(path)}: can't be changed: is {shown(before)}, got {shown(after)}")
    for group in ("coordinator", "segments"):
        before, after = (_at(value, ("spec", group, "storage", "size")) for value in (was, now))
        if parse_bytes(after) < parse_bytes(before):
            problems.append(f"spec.{group}.storage.size: may not shrink: is {before}, got {after}")
    if problems:
        raise BadInput(*problems)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value
