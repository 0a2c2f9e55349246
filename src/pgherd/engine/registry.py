"""Engines, and how to get the one a declaration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgherd.engine.base import Engine
from pgherd.engine.citus import installation
from pgherd.engine.citus.engine import CitusEngine
from pgherd.engine.fdw.engine import FdwEngine
from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster
from pgherd.postgres.connections import Databases

ENGINES: Mapping[str, type[CitusEngine] | type[FdwEngine]] = {"citus": CitusEngine, "fdw": FdwEngine}


def make_engine(cluster: PostgresCluster, databases: Databases) -> Engine:
    """The engine of a cluster.

    :raises BadInput: this pgherd doesn't have it
    """
    check_available(cluster)
    return ENGINES[_name(cluster)](databases)


def check_available(cluster: PostgresCluster) -> None:
    """Refuse what this pgherd can't run, before anything is started.

    :raises BadInput: this pgherd doesn't have the engine
    """
    if _name(cluster) not in ENGINES:
        raise BadInput(
            f"spec.engine: {cluster.spec.engine!r} is not available here: use {' or '.join(ENGINES)}"
        )


def patroni_section(cluster: PostgresCluster, group: int) -> Mapping[str, Any]:
    """What this cluster's engine has Patroni know of the other groups; empty: nothing."""
    return ENGINES[_name(cluster)].patroni_section(cluster.spec.database, group)


def required_files(cluster: PostgresCluster) -> Sequence[tuple[str, str]]:
    """Files without which PostgreSQL can't run this cluster's engine: the folder's name in ``pg_config``, and the path
    in it."""
    return installation.FILES if _name(cluster) == CitusEngine.name else ()


def installation_problems(
    cluster: PostgresCluster, postgres_major: int, folder: Callable[[str], Path | None]
) -> list[str]:
    """What an installation of PostgreSQL lacks to run this cluster's engine, one line each; empty: nothing.

    :param folder: a folder by its name in ``pg_config`` (``pkglibdir``, ``sharedir``), None where it can't be known
    """
    if _name(cluster) != CitusEngine.name:
        return []
    return installation.problems(postgres_major, folder)


def _name(cluster: PostgresCluster) -> str:
    return cluster.spec.engine or FdwEngine.name
