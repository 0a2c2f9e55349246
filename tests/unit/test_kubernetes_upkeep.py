"""What is done about members on what the operator has at hand, which may be old."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgherd.model.spec import to_mapping
from pgherd.model.topology import Member
from pgherd.operator.main import Operator
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import POD, Api
from pgherd.platform.kubernetes.cache import Direct, Reader, Watched
from pgherd.platform.kubernetes.epochs import Own
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.trust import Trust
from pgherd.platform.kubernetes.upkeep import FOUNDING_SECONDS, Upkeep
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


def upkeep(api: Api, reader: Reader, told: list[str]) -> Upkeep:
    """Where every node reports."""
    return Upkeep(
        api,
        "prod",
        reader,
        lambda name, what: told.append(what),
        silent_for=lambda node: 0.0,
        rebuild=lambda member: None,
    )


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
    upkeep(api, Direct(api), told).group(cluster(), 1, 2, Own(0))
    assert [text.split()[0] for text in told] == (["release"] if released else [])
    assert holder(kube) == (None if released else "shop-segment-1-0")


def test_a_primary_that_lives_keeps_its_lock_whatever_is_at_hand(server: tuple[Kube, Api]) -> None:
    kube, api = server
    reader = Watched(api, "prod")
    for path, pod in ((PRIMARY, a_pod(state=ENDED)), (f"{CORE}/pods/shop-segment-1-1", a_pod("replica"))):
        reader.put(POD, dict(kube.put(path, pod)))
    kube.put(PRIMARY, a_pod())
    kube.put(LOCK, a_lock("2026-01-01T09:00:00+00:00"))
    upkeep(api, reader, []).group(cluster(), 1, 2, Own(0))
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


CONFIG = f"{CORE}/configmaps/shop-segment-1-config"


def a_founder() -> Object:
    """A pod whose Patroni noted that it is founding the group; what is noted stays when its node dies."""
    pod = a_pod(annotations={"status": '{"state": "initializing new cluster"}'})
    del pod["metadata"]["labels"][names.ROLE_LABEL]
    return pod


def an_unfounded(kube: Kube, initialize: str = "") -> None:
    annotations = {"initialize": initialize}
    kube.put(CONFIG, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"annotations": annotations}})
    kube.put(PRIMARY, a_founder())
    kube.put(CLAIM, a_claim())


def is_begun(kube: Kube) -> bool:
    return "initialize" in kube.objects[CONFIG]["metadata"]["annotations"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, as upkeep sees it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_group_that_is_being_copied_is_not_founded_anew_beside_that(
    server: tuple[Kube, Api], platform: KubernetesPlatform, clock: list[float]
) -> None:
    kube, _ = server
    an_unfounded(kube)
    kube.objects[PRIMARY]["metadata"]["annotations"]["status"] = '{"state": "creating replica"}'
    for _ in range(3):
        platform.align(cluster(), {1: {}})
        clock[0] += FOUNDING_SECONDS + 1
    assert is_begun(kube)
    kube.objects[PRIMARY]["metadata"]["annotations"]["status"] = '{"state": "stopped"}'
    for _ in range(2):
        platform.align(cluster(), {1: {}})
        clock[0] += FOUNDING_SECONDS + 1
    assert not is_begun(kube), "it was killed"


def test_what_a_group_would_begin_as_stays_while_nobody_knows_it(
    server: tuple[Kube, Api], platform: KubernetesPlatform
) -> None:
    kube, _ = server
    path = "/api/v1/namespaces/prod/configmaps/shop-segment-1"
    copied = {"standby_cluster": {"host": "shop-segment-2-0.shop-segment-2"}}
    platform.align(cluster(), {1: copied})
    assert "shop-segment-2-0.shop-segment-2" in kube.objects[path]["data"]["patroni.yml"]
    platform.align(cluster(), {1: None})
    assert "shop-segment-2-0.shop-segment-2" in kube.objects[path]["data"]["patroni.yml"]
    platform.align(cluster(), {1: {}})
    assert "standby_cluster" not in kube.objects[path]["data"]["patroni.yml"]


def test_a_founding_on_a_dead_node_is_begun_anew_when_the_founder_has_lost_its_rights_and_its_volume(
    server: tuple[Kube, Api], platform: KubernetesPlatform, clock: list[float]
) -> None:
    kube, _ = server
    an_unfounded(kube)
    kube.put("/api/v1/nodes/n1", a_node("Unknown"))
    platform.align(cluster(), {1: {}})
    assert (PRIMARY in kube.objects, CLAIM in kube.objects) == (False, False)
    assert any("was founding shop-segment-1, and its node n1 is silent" in text for text in told(kube))
    clock[0] += FOUNDING_SECONDS + 1
    platform.align(cluster(), {1: {}})
    assert is_begun(kube), "its token may be believed for some time yet"
    clock[0] += FOUNDING_SECONDS + 1
    platform.align(cluster(), {1: {}})
    assert not is_begun(kube)


@pytest.mark.parametrize(
    ("silent", "limit", "initialize"),
    [
        (0.0, 300, ""),  # it is at work
        (299.0, 300, ""),
        (59.0, 20, ""),  # it may be on its way back
        (9999.0, 0, ""),  # never on a new volume
        (9999.0, 300, "7000000000000000001"),  # the group is there
    ],
)
def test_a_founder_that_may_come_back_keeps_its_volume_and_nobody_begins_beside_it(
    server: tuple[Kube, Api], clock: list[float], silent: float, limit: int, initialize: str
) -> None:
    kube, api = server
    an_unfounded(kube, initialize)
    declared = cluster()
    spec = declared.spec.model_copy(update={"replace_lost_after": limit})
    lost: list[Member] = []
    looked = Upkeep(
        api,
        "prod",
        Direct(api),
        lambda name, what: None,
        silent_for=lambda node: silent,
        rebuild=lost.append,
    )
    for _ in range(3):
        looked.group(declared.model_copy(update={"spec": spec}), 1, 1, Own(0))
        clock[0] += FOUNDING_SECONDS + 1
    assert not lost
    assert is_begun(kube)


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
