"""What is done about members on what the operator has at hand, which may be old."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import POD, Api
from pgherd.platform.kubernetes.cache import Direct, Watched
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.upkeep import Upkeep
from tests.support.kube_api import Kube, Object, kube_api
from tests.unit.test_kubernetes_objects import cluster

CORE = "/api/v1/namespaces/prod"
LOCK = f"{CORE}/configmaps/shop-segment-1-leader"
PRIMARY = f"{CORE}/pods/shop-segment-1-0"
CLAIM = f"{CORE}/persistentvolumeclaims/data-shop-segment-1-0"
ENDED = {"terminated": {"finishedAt": "2026-01-01T10:00:00Z"}}


@pytest.fixture
def server() -> Iterator[tuple[Kube, Api]]:
    with kube_api() as made:
        yield made


def a_pod(role: str = "primary", state: dict[str, Any] | None = None, **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {**names.labels("shop", 1), names.ROLE_LABEL: role}, **metadata},
        "spec": {"nodeName": "n1"},
        "status": {
            "containerStatuses": [{"name": "postgres", "state": state or {"running": {}}}],
            "conditions": [{"type": "Ready", "status": "False"}],
        },
    }


def a_lock(renewed: str) -> Object:
    annotations = {"leader": "shop-segment-1-0", "renewTime": renewed}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"annotations": annotations}}


def holder(kube: Kube) -> str | None:
    found: str | None = kube.objects[LOCK]["metadata"]["annotations"].get("leader")
    return found


@pytest.mark.parametrize(
    ("renewed", "released"),
    [
        ("2026-01-01T09:59:58.5+00:00", True),
        ("2026-01-01T10:00:00.9+00:00", True),  # in the second in which it ended
        ("2026-01-01T10:00:01.5+00:00", False),
        ("2026-01-01T10:00:00", False),
        ("", False),
    ],
)
def test_a_lock_is_released_only_if_nobody_renewed_it_since(
    server: tuple[Kube, Api], renewed: str, released: bool
) -> None:
    kube, api = server
    kube.put(PRIMARY, a_pod(state=ENDED))
    kube.put(f"{CORE}/pods/shop-segment-1-1", a_pod("replica"))
    kube.put(LOCK, a_lock(renewed))
    Upkeep(api, "prod", Direct(api)).group(cluster(), 1)
    assert holder(kube) == (None if released else "shop-segment-1-0")


def test_a_primary_that_lives_keeps_its_lock_whatever_is_at_hand(server: tuple[Kube, Api]) -> None:
    kube, api = server
    reader = Watched(api, "prod")
    for path, pod in ((PRIMARY, a_pod(state=ENDED)), (f"{CORE}/pods/shop-segment-1-1", a_pod("replica"))):
        reader.put(POD, dict(kube.put(path, pod)))
    kube.put(PRIMARY, a_pod())
    kube.put(LOCK, a_lock("2026-01-01T09:00:00+00:00"))
    Upkeep(api, "prod", reader).group(cluster(), 1)
    assert holder(kube) == "shop-segment-1-0"


def a_node(ready: str) -> Object:
    condition = {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T10:00:00Z"}
    return {"apiVersion": "v1", "kind": "Node", "status": {"conditions": [condition]}}


def rebuilt(api: Api, reader: Watched) -> None:
    KubernetesPlatform(api, "prod", reader, Defaults()).rebuild_member(Member("shop", 1, 0))


@pytest.mark.parametrize("node", ["Unknown", "True"])
def test_a_lost_member_goes_with_its_volume_unless_its_node_is_back(
    server: tuple[Kube, Api], node: str
) -> None:
    kube, api = server
    reader = Watched(api, "prod")
    kube.put("/api/v1/nodes/n1", a_node(node))
    reader.put(POD, dict(kube.put(PRIMARY, a_pod())))
    kube.put(CLAIM, {"apiVersion": "v1", "kind": "PersistentVolumeClaim"})
    rebuilt(api, reader)
    gone = node == "Unknown"
    assert (PRIMARY not in kube.objects, CLAIM not in kube.objects) == (gone, gone)


def test_what_took_a_lost_members_place_stays(server: tuple[Kube, Api]) -> None:
    kube, api = server
    reader = Watched(api, "prod")
    kube.put("/api/v1/nodes/n1", a_node("Unknown"))
    reader.put(POD, dict(kube.put(PRIMARY, a_pod())))
    kube.remove(PRIMARY)
    kube.put(PRIMARY, a_pod())
    kube.put(CLAIM, {"apiVersion": "v1", "kind": "PersistentVolumeClaim"})
    for _ in range(3):
        rebuilt(api, reader)
    assert PRIMARY in kube.objects
    assert CLAIM in kube.objects
