"""What the benchmarks of the engine citus share. They need a PostgreSQL that has Citus, named by ``PGHERD_BIN_DIR``."""

from __future__ import annotations

import json

import psycopg

from bench.support import Connection, Pgherd
from pgherd.errors import PgherdError
from pgherd.model.spec import PostgresCluster, from_mapping
from pgherd.platform.local import binaries
from pgherd.platform.local.parameters import engine_problems


def why_not() -> str | None:
    """Why they can't run here; None if they can."""
    try:
        problems = engine_problems(binaries.find(), _any_cluster())
    except PgherdError as error:
        return str(error)
    return problems[0] if problems else None


def _any_cluster() -> PostgresCluster:
    return from_mapping(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresCluster",
            "metadata": {"name": "any"},
            "spec": {"engine": "citus"},
        },
        platform="local",
    )


def superuser(pgherd: Pgherd, name: str) -> Connection:
    """A superuser's session at the coordinator: Citus's own rebalancer asks for one."""
    password = json.loads((pgherd.home / name / "credentials.json").read_text())["superuser"]
    parameters = psycopg.conninfo.conninfo_to_dict(pgherd.dsn(name))
    return psycopg.connect(**{**parameters, "user": "postgres", "password": password}, autocommit=True)
