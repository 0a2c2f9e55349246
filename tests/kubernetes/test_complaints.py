"""What only the operator can know is said within 30 s: as a condition that names the cause, and as an Event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.kubernetes.kube import Cluster, Namespace, wait_for

pytestmark = pytest.mark.kubernetes

SECONDS = 30.0


@pytest.fixture
def broken(namespace: Namespace) -> Iterator[Cluster]:
    cluster = Cluster(namespace, "broken")
    yield cluster
    cluster.patch({"deletionPolicy": "Delete"})
    cluster.delete()


@pytest.mark.parametrize(
    ("group", "spec", "says"),
    [
        ({"storage": {"size": "1Gi", "storageClassName": "nowhere"}}, {}, "nowhere"),
        ({"nodeSelector": {"disk": "imaginary"}}, {}, "node"),
        ({}, {"postgres": {"image": "localhost/no-such-image:1"}}, "no-such-image"),
        ({"resources": {"cpu": "500", "memory": "256Mi"}}, {}, "Insufficient cpu"),
    ],
)
def test_what_keeps_a_cluster_from_running_is_said(
    broken: Cluster, group: Mapping[str, Any], spec: Mapping[str, Any], says: str
) -> None:
    broken.apply(segments=1, standbys=0, group=group, **spec)
    wait_for(lambda: says in broken.condition("Degraded").get("message", ""), f"it says {says}", SECONDS)
    assert broken.condition("Ready")["status"] == "False"


def test_a_quota_is_named(namespace: Namespace, broken: Cluster) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "tight"},
        "spec": {"hard": {"requests.memory": "1Mi"}},
    }
    namespace.apply(quota)
    try:
        broken.apply(segments=1, standbys=0)
        wait_for(lambda: "quota" in broken.condition("Degraded").get("message", ""), "it says so", SECONDS)
    finally:
        namespace.kubectl("delete", "quota", "tight")


def test_a_parameter_that_can_not_be_is_said_before_anything_is_made(broken: Cluster) -> None:
    broken.apply(segments=1, standbys=0, postgres={"parameters": {"fsync": "off"}})
    wait_for(lambda: broken.status.get("phase") == "Failed", "it is refused", SECONDS)
    assert "spec.postgres.parameters.fsync" in broken.condition("SpecRefused")["message"]
    events = broken.namespace.kubectl("get", "events", "--field-selector", "involvedObject.name=broken")
    assert "spec.postgres.parameters.fsync" in events
    assert not broken.pods()


def test_an_engine_that_is_not_there_is_said(broken: Cluster) -> None:
    broken.apply(segments=1, standbys=0, engine="citus")
    wait_for(lambda: broken.status.get("phase") == "Failed", "it is refused", SECONDS)
    assert "spec.engine" in broken.condition("Ready")["message"]
