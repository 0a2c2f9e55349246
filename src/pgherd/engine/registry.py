"""Engines, and how to get the one a declaration names."""

from __future__ import annotations

from pgherd.engine.base import Engine
from pgherd.engine.fdw.engine import FdwEngine
from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster
from pgherd.postgres.connections import Databases


def make_engine(cluster: PostgresCluster, databases: Databases) -> Engine:
    """The engine of a cluster.

    :raises BadInput: this pgherd doesn't have it
    """
    check_available(cluster)

    return FdwEngine(databases)


def check_available(cluster: PostgresCluster) -> None:
    """Refuse what this pgherd can't run, before anything is started.

    :raises BadInput: this pgherd doesn't have the engine
    """
    if cluster.spec.engine not in (None, "fdw"):
        raise BadInput(f"spec.engine: {cluster.spec.engine!r} is not available here yet: use 'fdw'")
