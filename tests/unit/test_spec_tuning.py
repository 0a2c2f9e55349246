"""Memory parameters from a member's memory."""

from __future__ import annotations

import pytest

from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster, Resources, from_mapping
from pgherd.model.tuning import check_fit, memory_parameters


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


@pytest.mark.parametrize("value", ["900GB", "2GB", "262144", 262144, "0.002TB"])
def test_buffers_that_no_member_could_have_are_refused(value: str | int) -> None:
    with pytest.raises(
        BadInput, match=r"shared_buffers: .* do not fit into spec\.segments\.resources\.memory"
    ):
        check_fit(with_buffers(value))


@pytest.mark.parametrize("value", ["1.5GB", "128MB", 16384, "65536kB", "a quarter"])
def test_buffers_that_fit_or_that_only_postgresql_can_judge_pass(value: str | int) -> None:
    check_fit(with_buffers(value))


def with_buffers(value: str | int) -> PostgresCluster:
    declared = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": "shop"},
        "spec": {"postgres": {"parameters": {"Shared_Buffers": value}}},
    }
    return from_mapping(declared, platform="kubernetes")
