"""What is done about members on what the operator has at hand, which may be old."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgherd.model.spec import to_mapping
from pgherd.model.topology import Member
from pgherd.operator.main import Operator
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import POD, Api
from pgherd.platform.kubernetes.cache import Direct, Watched
from pgherd.platform.kubernetes.epochs import Own
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.trust import Trust
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
        "metadata": {"labels": {**names.pod_labels(cluster(), 1, 0), names.ROLE_LABEL: role}, **metadata},
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
    told: list[str] = []
    Upkeep(api, "prod", Direct(api), lambda name, what: told.append(what)).group(cluster(), 1, 2, Own(0))
    assert [text.split()[0] for text in told] == (["release"] if released else [])
    assert holder(kube) == (None if released else "shop-segment-1-0")


def test_a_primary_that_lives_keeps_its_lock_whatever_is_at_hand(server: tuple[Kube, Api]) -> None:
    kube, api = server
    reader = Watched(api, "prod")
    for path, pod in ((PRIMARY, a_pod(state=ENDED)), (f"{CORE}/pods/shop-segment-1-1", a_pod("replica"))):
        reader.put(POD, dict(kube.put(path, pod)))
    kube.put(PRIMARY, a_pod())
    kube.put(LOCK, a_lock("2026-01-01T09:00:00+00:00"))
    Upkeep(api, "prod", reader, lambda name, what: None).group(cluster(), 1, 2, Own(0))
    assert holder(kube) == "shop-segment-1-0"


def a_claim(size: str = "100Gi") -> Object:
    spec = {"resources": {"requests": {"storage": size}}}
    labels = names.labels("shop", 1)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"labels": labels},
        "spec": spec,
    }


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
    kube.put(CLAIM, a_claim())
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
    kube.put(CLAIM, a_claim())
    for _ in range(3):
        rebuilt(api, reader)
    assert PRIMARY in kube.objects
    assert CLAIM in kube.objects


def test_only_the_pod_that_was_seen_to_be_outdated_is_replaced(server: tuple[Kube, Api]) -> None:
    kube, api = server
    reader = Watched(api, "prod")
    reader.put(POD, dict(kube.put(PRIMARY, a_pod())))
    platform = KubernetesPlatform(api, "prod", reader, Defaults())
    platform.replace_member(Member("shop", 1, 0))
    assert PRIMARY not in kube.objects
    kube.put(PRIMARY, a_pod())
    platform.replace_member(Member("shop", 1, 0))
    assert PRIMARY in kube.objects


APPS = "/apis/apps/v1/namespaces/prod"
SHOP = "/apis/pgherd.io/v1alpha1/namespaces/prod/postgresclusters/shop"


@pytest.fixture
def platform(server: tuple[Kube, Api]) -> KubernetesPlatform:
    """A cluster with one group that has all its objects."""
    kube, api = server
    kube.put(SHOP, {**to_mapping(cluster()), "metadata": {"labels": {}}})
    made = KubernetesPlatform(api, "prod", defaults=Defaults())
    made.start_member(cluster(), Member("shop", 1, 0), {})
    made.align(cluster(), {1: {}})
    return made


def told(kube: Kube) -> list[str]:
    """The events' reasons and messages."""
    found = (obj for path, obj in list(kube.objects.items()) if "/events/" in path)
    return sorted(f"{event['reason']} {event['message']}" for event in found)


@pytest.mark.parametrize("label", [names.GROUP_LABEL, names.CLUSTER_LABEL, names.MANAGED_BY])
@pytest.mark.parametrize(
    "path",
    [
        f"{APPS}/statefulsets/shop-segment-1",
        f"{CORE}/services/shop-segment-1",
        "/apis/policy/v1/namespaces/prod/poddisruptionbudgets/shop-segment-1",
    ],
)
def test_a_label_taken_off_by_hand_is_put_back(
    server: tuple[Kube, Api], platform: KubernetesPlatform, path: str, label: str
) -> None:
    kube, _ = server
    found = kube.objects[path]
    labels = {key: value for key, value in found["metadata"]["labels"].items() if key != label}
    kube.put(path, {**found, "metadata": {**found["metadata"], "labels": labels}})
    assert platform.members("shop") is not None
    assert platform.align(cluster(), {1: {}})
    assert kube.objects[path]["metadata"]["labels"] == found["metadata"]["labels"]
    assert told(kube) == [f"Restore restore {found['kind']} shop-segment-1: somebody changed it"]
    assert not platform.align(cluster(), {1: {}})


def test_owners_taken_away_by_hand_and_objects_deleted_are_put_back(
    server: tuple[Kube, Api], platform: KubernetesPlatform
) -> None:
    kube, _ = server
    path = f"{APPS}/statefulsets/shop-segment-1"
    found = kube.objects[path]
    kube.put(path, {**found, "metadata": {**found["metadata"], "ownerReferences": []}})
    kube.remove(f"{CORE}/services/shop")
    platform.align(cluster(), {1: {}})
    assert kube.objects[path]["metadata"]["ownerReferences"] == found["metadata"]["ownerReferences"]
    assert told(kube) == [
        "Restore restore Service shop: somebody removed it",
        "Restore restore StatefulSet shop-segment-1: somebody changed it",
    ]


def test_what_others_add_is_theirs_and_no_news(
    server: tuple[Kube, Api], platform: KubernetesPlatform
) -> None:
    kube, _ = server
    for path in (f"{APPS}/statefulsets/shop-segment-1", f"{CORE}/services/shop"):
        found = kube.objects[path]
        labels = {**found["metadata"]["labels"], "watcher": "ops"}
        kube.put(path, {**found, "metadata": {**found["metadata"], "labels": labels}})
    platform.align(cluster(), {1: {}})
    assert kube.objects[f"{CORE}/services/shop"]["metadata"]["labels"]["watcher"] == "ops"
    assert told(kube) == []


def test_members_keep_their_labels(server: tuple[Kube, Api], platform: KubernetesPlatform) -> None:
    kube, _ = server
    kube.put(PRIMARY, {**a_pod(), "metadata": {"labels": {"team": "ops"}}})
    kube.put(CLAIM, {**a_claim(), "metadata": {"labels": names.labels("shop")}})
    platform.align(cluster(), {1: {}})
    assert kube.objects[PRIMARY]["metadata"]["labels"] == {"team": "ops", **names.pod_labels(cluster(), 1, 0)}
    assert kube.objects[CLAIM]["metadata"]["labels"] == names.labels("shop", 1)
    assert [text.split()[0] for text in told(kube)] == ["Restore", "Restore"]


def test_a_volume_that_grows_is_told(server: tuple[Kube, Api], platform: KubernetesPlatform) -> None:
    kube, _ = server
    kube.put(CLAIM, a_claim("1Gi"))
    platform.align(cluster(), {1: {}})
    assert (
        kube.objects[CLAIM]["spec"]["resources"]["requests"]["storage"]
        == cluster().spec.segments.storage.size
    )
    assert told(kube) == [f"Grow grow volume data-shop-segment-1-0 to {cluster().spec.segments.storage.size}"]


def test_a_store_is_kept_for_a_volume_without_labels(
    server: tuple[Kube, Api], platform: KubernetesPlatform
) -> None:
    """Who holds the data is known by name: a label that somebody took off must not cost a group its history."""
    kube, _ = server
    kube.put(LOCK, a_lock(""))
    kube.put(CLAIM, {**a_claim(), "metadata": {"labels": {}}})
    platform.start_member(cluster(), Member("shop", 1, 0), {})
    assert LOCK in kube.objects
    kube.remove(CLAIM)
    platform.start_member(cluster(), Member("shop", 1, 0), {})
    assert LOCK not in kube.objects


def test_a_certificate_is_renewed_and_told(server: tuple[Kube, Api], platform: KubernetesPlatform) -> None:
    kube, api = server
    assert told(kube) == []
    later = Trust(
        api,
        "prod",
        Direct(api),
        now=lambda: datetime.now(UTC) + timedelta(days=80),
        announce=platform.announce,
    )
    later.ensure_certificate("shop", 1)
    later.ensure_certificate("shop", 1)
    assert told(kube) == ["Renew renew certificate of shop-segment-1"]


def test_nothing_is_remembered_of_a_cluster_that_is_gone(
    server: tuple[Kube, Api], platform: KubernetesPlatform
) -> None:
    platform.declaration("shop")
    platform.write_status("shop", {"phase": "Running"})
    platform.leave("shop")
    memories = (platform._locks, platform._parsed, platform._written, platform._applier._done)
    assert [len(memory) for memory in (*memories, platform._trust._known, platform._trust._checked)] == [
        0
    ] * 6


def test_the_operator_forgets_who_looked_after_clusters_that_are_gone(server: tuple[Kube, Api]) -> None:
    _, api = server
    operator = Operator(api, "prod", Defaults())
    gone = operator.keeper("prod", "gone")
    assert operator.keeper("prod", "gone") is gone
    gone.wind_down(0.1)  # there is nothing: its loop ends
    operator.keeper("prod", "other")
    assert operator.keeper("prod", "gone") is not gone
