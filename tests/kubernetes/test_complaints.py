"""What only the operator can know is said within 30 s: as a condition that names the cause, and as an Event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.kubernetes.kube import Cluster, Namespace, kubectl, wait_for

pytestmark = pytest.mark.kubernetes

SECONDS = 30.0


@pytest.fixture
def broken(namespace: Namespace) -> Iterator[Cluster]:
    cluster = Cluster(namespace, "broken")
    yield cluster
    cluster.purge()


@pytest.mark.parametrize(
    ("group", "spec", "says"),
    [
        ({"storage": {"size": "1Gi", "storageClassName": "nowhere"}}, {}, "nowhere"),
        ({"nodeSelector": {"disk": "imaginary"}}, {}, "node"),
        ({}, {"postgres": {"image": "localhost/no-such-image:1"}}, "no-such-image"),
        ({"resources": {"cpu": "500", "memory": "256Mi"}}, {}, "Insufficient cpu"),
        ({"standbys": 3}, {}, "anti-affinity"),
    ],
    ids=["class", "node", "image", "cores", "anti-affinity"],
)
def test_what_keeps_a_cluster_from_running_is_said(
    broken: Cluster, group: Mapping[str, Any], spec: Mapping[str, Any], says: str
) -> None:
    broken.apply(segments=1, standbys=0, group=group, **spec)
    wait_for(
        lambda: says in broken.condition("Degraded").get("message", "") and says in told(broken),
        f"condition and event say {says}",
        SECONDS,
    )


def told(cluster: Cluster) -> str:
    """Its events."""
    about = ("get", "events", "-o", "wide", "--field-selector", f"involvedObject.name={cluster.name}")
    return cluster.namespace.kubectl(*about)


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
        wait_for(
            lambda: "quota" in broken.condition("Degraded").get("message", "") and "quota" in told(broken),
            "condition and event say so",
            SECONDS,
        )
    finally:
        namespace.kubectl("delete", "quota", "tight")


def test_a_parameter_that_can_not_be_is_said_before_anything_is_made(broken: Cluster) -> None:
    broken.apply(segments=1, standbys=0, postgres={"parameters": {"fsync": "off"}})
    wait_for(lambda: broken.status.get("phase") == "Failed", "it is refused", SECONDS)
    assert "spec.postgres.parameters.fsync" in broken.condition("SpecRefused")["message"]
    assert "spec.postgres.parameters.fsync" in told(broken)
    assert not broken.pods()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shared_bufers": "1GB"}, 'shared_bufers: unrecognized configuration parameter "shared_bufers"'),
        ({"work_mem": "nonsense"}, 'work_mem: invalid value for parameter "work_mem": "nonsense"'),
        ({"shared_preload_libraries": "nope"}, "shared_preload_libraries: there is no library nope here"),
    ],
    ids=["name", "value", "library"],
)
def test_what_postgresql_refuses_of_a_new_cluster_is_said_and_can_be_mended(
    broken: Cluster, wrong: dict[str, str], says: str
) -> None:
    broken.apply(segments=1, standbys=1, postgres={"parameters": {"geqo_effort": 4, **wrong}})
    says = f"spec.postgres.parameters.{says}"
    wait_for(broken.pods, "there are pods")
    wait_for(
        lambda: says in broken.condition("Degraded").get("message", "") and says in told(broken),
        "condition and event say so",
        SECONDS,
    )
    volumes = {each["metadata"]["uid"] for each in broken.namespace.list("pvc", selector(broken))}
    broken.patch({"postgres": {"parameters": dict.fromkeys(wrong)}})
    broken.wait_phase("Running")
    assert {each["metadata"]["uid"] for each in broken.namespace.list("pvc", selector(broken))} == volumes
    assert broken.psql(broken.member("segment-1", "primary"), "SHOW geqo_effort") == "4"
    before = {pod["metadata"]["uid"] for pod in broken.pods()}
    broken.patch({"postgres": {"parameters": {"geqo_effort": 6}}})
    member = broken.member("segment-1", "standby")
    wait_for(lambda: broken.psql(member, "SHOW geqo_effort") == "6", "what changes later needs no new pod")
    assert {pod["metadata"]["uid"] for pod in broken.pods()} == before


def test_an_access_rule_that_postgresql_can_not_read_is_said_of_a_new_cluster_and_can_be_mended(
    broken: Cluster,
) -> None:
    lines = "# ours\nhost all app all scram-sha-256\nhost all {} all scram-sha-256\n"
    broken.apply(segments=1, standbys=1, postgres={"hostBasedAuthentication": lines.format("/^(")})
    says = "spec.postgres.hostBasedAuthentication: line 3 (host all /^( all scram-sha-256) can't be read: invalid"
    wait_for(broken.pods, "there are pods")
    wait_for(
        lambda: says in broken.condition("Degraded").get("message", "") and says in told(broken),
        "condition and event say so",
        SECONDS,
    )
    assert "declare something else" in broken.condition("Degraded")["message"]
    volumes = {each["metadata"]["uid"] for each in broken.namespace.list("pvc", selector(broken))}
    broken.patch({"postgres": {"hostBasedAuthentication": lines.format("/^app")}})
    broken.wait_phase("Running")
    assert {each["metadata"]["uid"] for each in broken.namespace.list("pvc", selector(broken))} == volumes
    read = "SELECT count(*) FROM pg_hba_file_rules WHERE user_name = '{/^app}' AND error IS NULL"
    assert broken.psql(broken.member("segment-1", "primary"), read) == "1"


def selector(cluster: Cluster) -> str:
    return f"pgherd.io/cluster={cluster.name}"


def test_an_engine_that_is_not_there_is_said(broken: Cluster) -> None:
    broken.apply(segments=1, standbys=0, engine="citus")
    advice = "name one that has it with spec.postgres.image"
    wait_for(
        lambda: advice in broken.condition("Degraded").get("message", "") and advice in told(broken),
        "condition and event say so",
        SECONDS,
    )
    assert "spec.engine: citus is not in this image" in broken.condition("Degraded")["message"]


def test_a_class_whose_volumes_can_not_grow_is_named_and_the_cluster_goes_on(broken: Cluster) -> None:
    """Nothing else waits for it: a member that dies meanwhile is brought back."""
    name = f"rigid-{broken.namespace.name}"
    [usual] = [each for each in kubectl_items("storageclass") if is_default(each)]
    rigid = {**usual, "metadata": {"name": name}, "allowVolumeExpansion": False}
    kubectl("apply", "-f", "-", stdin=json.dumps(rigid))
    try:
        storage = {"size": "1Gi", "storageClassName": name}
        broken.apply(segments=1, standbys=0, group={"storage": storage})
        broken.wait_phase("Running")
        broken.patch({"segments": {"storage": {"size": "2Gi"}}})
        wait_for(
            lambda: (
                "allowVolumeExpansion" in broken.condition("Degraded").get("message", "")
                and "resize" in told(broken)
            ),
            "condition and event say so",
            SECONDS,
        )
        assert broken.condition("Ready")["status"] == "True"
        [pod] = broken.pods("segment-1")
        broken.namespace.kubectl("delete", "pod", pod["metadata"]["name"])
        before = pod["metadata"]["uid"]
        wait_for(
            lambda: [p for p in broken.pods("segment-1", "primary") if p["metadata"]["uid"] != before],
            "it leads again",
            60,
        )
    finally:
        kubectl("delete", "storageclass", name)


def kubectl_items(kind: str) -> list[dict[str, Any]]:
    """All objects of a kind that belongs to no namespace."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-o", "json"))["items"]
    return found


def is_default(storage_class: Mapping[str, Any]) -> bool:
    annotations = storage_class["metadata"].get("annotations") or {}
    return annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
