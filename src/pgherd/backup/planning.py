"""From what somebody wants restored to the declaration of the cluster that is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pgherd.backup.records import Point
from pgherd.errors import BadInput
from pgherd.model import spec as declaration
from pgherd.model import spec_yaml
from pgherd.model.spec import BackupSpec, PostgresCluster, RecoverySpec
from pgherd.model.spec_problems import problems_of
from pgherd.platform.local import files

_HBA = "spec.postgres.hostBasedAuthentication: "


def wanted(raw: dict[str, Any]) -> RecoverySpec:
    """What is to be restored.

    :raises BadInput: it makes no sense
    """
    try:
        return RecoverySpec.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        text = reason(error)
        raise BadInput(f"--time: {text}" if "time" in raw and "zone" in text else text) from None


def repository(named: str) -> BackupSpec:
    """Where the backups of a cluster are that is gone.

    :param named: a path, as it was declared, or a file that says what ``spec.backup`` said
    :raises BadInput: it makes no sense
    """
    if named.endswith((".yaml", ".yml")) and Path(named).is_file():
        return _described(named)
    raw = {"repository": {"path": str(Path(named).absolute())}}
    try:
        return BackupSpec.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        raise BadInput(f"--repository {named}: {reason(error)}") from None


def _described(file: str) -> BackupSpec:
    """What a file says of a repository.

    :raises BadInput: with everything that is wrong with it, each with its path
    """
    with files.explained(f"read {file}"):
        raw = spec_yaml.read(Path(file).read_text(), file).value
    if isinstance(raw, dict) and "kind" in raw:
        raise BadInput(
            f"--repository {file}: is a whole {raw['kind']}: it is to hold only what spec.backup says, such as "
            "{method: pgbackrest, repository: {...}}"
        )
    try:
        return BackupSpec.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        found = problems_of(error, BackupSpec)
        told = (": ".join(filter(None, [declaration.dotted(path), what])) for path, what in found)
        raise BadInput(*(f"--repository {file}: {each}" for each in told)) from None


def declared(
    shape: dict[str, Any],
    target: str,
    point: Point | None,
    recovery: dict[str, Any],
    *,
    own_segments: bool,
    platform: str = "local",
    kept: bool = False,
) -> PostgresCluster:
    """The declaration of a cluster that is restored.

    :param shape: what it is like: its own declaration, or that of the cluster that was backed up
    :param point: None: whoever makes the cluster finds out which it is
    :param own_segments: the number of segments is its own, to be checked; else it is that of the point
    :param kept: it is restored in place, with what is in force
    :raises BadInput: nobody knows what it is like, or no new cluster may be like that any more
    """
    if not shape:
        raise BadInput(
            "the repository does not say what the cluster was like: describe the new one with --file"
        )
    spec = {**shape["spec"], "bootstrap": {"recovery": recovery}}
    if not own_segments:
        if point is not None:
            spec["segments"] = {**spec["segments"], "count": max(point.groups)}
        spec["expansion"] = {**spec.get("expansion", {}), "paused": False}
    raw = {**shape, "metadata": {**shape["metadata"], "name": target}, "spec": spec}
    if kept:
        return declaration.from_mapping(raw, source=target, platform=platform, kept=True)
    return like(raw, target, platform)


def like(raw: dict[str, Any], target: str, platform: str = "local") -> PostgresCluster:
    """The declaration of a new cluster made of that of another, which may have been accepted long ago.

    :raises BadInput: a new cluster may not be like that, as it would not start
    """
    try:
        return declaration.from_mapping(raw, source=target, platform=platform)
    except BadInput as error:
        way_out = f"; what {target} is made of was declared before that was refused: correct it there with 'pgherd up'"
        raise BadInput(
            *(f"{each}{way_out if each.startswith(_HBA) else ''}" for each in error.problems)
        ) from None


def check_fits(cluster: PostgresCluster, point: Point) -> None:
    """Refuse a declaration that does not fit what is restored.

    :raises BadInput: with every difference
    """
    check_shape(cluster, point.engine, point.database, max(point.groups))


def check_shape(cluster: PostgresCluster, engine: str, database: str, segments: int) -> None:
    """The same, by what has to fit.

    :raises BadInput: with every difference
    """
    spec = cluster.spec
    pairs = (
        ("spec.engine", spec.engine, engine),
        ("spec.database", spec.database, database),
        ("spec.segments.count", spec.segments.count, segments),
    )
    problems = [
        f"{path}: must be {there} as in the backup, got {here}"
        for path, here, there in pairs
        if here != there
    ]
    if problems:
        raise BadInput(*problems)


def reason(error: ValidationError) -> str:
    """What is wrong, in one line."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")
