"""Memory parameters from a member's memory."""

from __future__ import annotations

import pytest

from pgherd.model.spec import Resources
from pgherd.model.tuning import memory_parameters


@pytest.mark.parametrize(
    ("memory", "local", "shared_buffers", "work_mem"),
    [
        (None, True, "128MB", "4MB"),
        ("64Gi", True, "128MB", "4MB"),
        ("128Mi", True, "32MB", "4MB"),
        (None, False, "512MB", "5MB"),
        ("4Gi", False, "1024MB", "10MB"),
        ("256Gi", False, "65536MB", "256MB"),
    ],
)
def test_buffers_follow_the_memory(
    memory: str | None, local: bool, shared_buffers: str, work_mem: str
) -> None:
    parameters = memory_parameters(Resources(memory=memory), local=local)
    assert parameters["shared_buffers"] == shared_buffers
    assert parameters["work_mem"] == work_mem
