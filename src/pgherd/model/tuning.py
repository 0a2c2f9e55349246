"""Memory parameters of one member from the memory it may use."""

from __future__ import annotations

import re

from pgherd.errors import BadInput
from pgherd.model.spec_models import PostgresCluster, Resources
from pgherd.model.spec_quantity import parse_bytes

_MIB = 1024 * 1024
_LOCAL_MEMORY = 512 * _MIB
"""On one machine several members share memory, so none plans with more than this unless parameters say so."""
_DEFAULT_MEMORY = 2048 * _MIB


def memory_parameters(resources: Resources, *, local: bool) -> dict[str, str]:
    """PostgreSQL parameters below the user's own: a quarter of the memory as shared buffers, and what
    follows from it.

    :param local: members share one machine; small buffers whatever was declared
    """
    declared = parse_bytes(resources.memory) if resources.memory else None
    memory = min(declared or _LOCAL_MEMORY, _LOCAL_MEMORY) if local else declared or _DEFAULT_MEMORY
    return {
        "shared_buffers": _megabytes(memory // 4, low=32),
        "effective_cache_size": _megabytes(memory * 3 // 4, low=96),
        "maintenance_work_mem": _megabytes(memory // 16, low=16, high=2048),
        # 100 connections sorting at once, each with a few nodes, stay within half of the memory.
        "work_mem": _megabytes(memory // 400, low=4, high=256),
    }


BUFFERS = "spec.postgres.parameters.shared_buffers"
_UNITS = {"": 8192, "b": 1, "kb": 1024, "mb": _MIB, "gb": 1024 * _MIB, "tb": 1024 * 1024 * _MIB}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)


def declared_buffers(cluster: PostgresCluster) -> int | None:
    """Bytes of ``shared_buffers`` as declared; None where that says nothing, or what only PostgreSQL can judge."""
    declared = {name.lower(): value for name, value in cluster.spec.postgres.parameters.items()}
    match = _SIZE.fullmatch(str(declared.get("shared_buffers", "")).strip())
    if match is None or match[2].lower() not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2].lower()])


def check_fit(cluster: PostgresCluster) -> None:
    """Refuse shared buffers that no member could have: each may use its own ``resources.memory`` and no more.

    :raises BadInput: with each kind of group that has too little
    """
    wanted = declared_buffers(cluster)
    groups = {"coordinator": cluster.spec.coordinator, "segments": cluster.spec.segments}
    problems = [
        f"{BUFFERS}: {wanted // _MIB} MiB do not fit into spec.{name}.resources.memory ({memory}): lower the one, or"
        " raise the other"
        for name, group in groups.items()
        if wanted is not None and (memory := group.resources.memory) and wanted >= parse_bytes(memory)
    ]
    if problems:
        raise BadInput(*problems)


def _megabytes(size: int, *, low: int, high: int | None = None) -> str:
    value = max(size // _MIB, low)
    return f"{value if high is None else min(value, high)}MB"
