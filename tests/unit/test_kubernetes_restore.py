"""Restores on Kubernetes, where the API server has something to say: what an earlier cluster of the name left, what is
refused, what nodes do not end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import restoring, wish
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable
from pgherd.model.topology import Member
from pgherd.platform.base import Lost
from pgherd.platform.kubernetes import keeping, names, nodes, restore_pods, stands, volumes
from pgherd.platform.kubernetes.api import CONFIG_MAP, VOLUME_CLAIM
from pgherd.platform.kubernetes.cache import Direct
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.platform.kubernetes.workshop import PodWorkshop
from pgherd.reconcile.loop import ClusterLoop
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_backups import CORE, DECLARED, GROUP

CLUSTER_PATH = f"{GROUP}/postgresclusters/shop"
STATE_PATH = f"{CORE}/configmaps/shop.recovery"
FIRST = Member("shop", 1, 0)
POD_PATH = f"{CORE}/pods/shop-segment-1-0-restore"
CLAIM_PATH = f"{CORE}/persistentvolumeclaims/data-shop-segment-1-0"
RECOVERY = {"cluster": "old", **DECLARED, "restorePoint": "p1"}
NOW = datetime.now(UTC)


class Town:
    """An API server with a cluster's resource, and the platform that looks after it."""

    def __init__(self, kube: Kube, platform: KubernetesPlatform) -> None:
        self.kube, self.platform = kube, platform
        self.declare()

    def declare(self, point: str = "p1", uid: str = "first", **metadata: Any) -> None:
        raw = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster"}
        spec = {
            "engine": "fdw",
            "segments": {"count": 1},
            "bootstrap": {"recovery": {**RECOVERY, "restorePoint": point}},
            "deletionPolicy": "Delete",
        }
        self.kube.put(CLUSTER_PATH, {**raw, "metadata": {"uid": uid, **metadata}, "spec": spec})

    def claim(self, **metadata: Any) -> None:
        made = {"labels": names.labels("shop", 1), **metadata}
        self.kube.put(CLAIM_PATH, {"kind": "PersistentVolumeClaim", "metadata": made, "spec": {}})

    def pod(self, owner: str = "first", node: str = "n1", **metadata: Any) -> None:
        labels = {**names.labels("shop"), restore_pods.RESTORE_LABEL: FIRST.name}
        made = {"labels": labels, "ownerReferences": [{"uid": owner}], **metadata}
        running = {"containerStatuses": [{"name": names.CONTAINER, "state": {"running": {}}}]}
        self.kube.put(
            POD_PATH, {"kind": "Pod", "metadata": made, "spec": {"nodeName": node}, "status": running}
        )

    def run_pod(self) -> None:
        """That which was made."""
        found = self.kube.objects[POD_PATH]
        running = {"containerStatuses": [{"name": names.CONTAINER, "state": {"running": {}}}]}
        self.kube.put(POD_PATH, {**found, "spec": {**found["spec"], "nodeName": "n1"}, "status": running})

    def declare_volume(self, claim: str) -> None:
        """The same backups are on a volume by now."""
        found = self.kube.objects[CLUSTER_PATH]
        repository = {"volume": {"claimName": claim}}
        recovery = {"cluster": "old", "method": "pgbackrest", "repository": repository, "restorePoint": "p1"}
        metadata = {**found["metadata"], "generation": found["metadata"]["generation"] + 1}
        spec = {**found["spec"], "bootstrap": {"recovery": recovery}}
        self.kube.put(CLUSTER_PATH, {**found, "metadata": metadata, "spec": spec})

    def volume(self, name: str, phase: str = "Bound", **metadata: Any) -> None:
        made = {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": phase}, "metadata": metadata}
        self.kube.put(
            f"{CORE}/persistentvolumeclaims/{name}", {"kind": VOLUME_CLAIM.name, "apiVersion": "v1", **made}
        )

    def node(self, silent_for: float) -> None:
        condition = {
            "type": "Ready",
            "status": "Unknown",
            "lastTransitionTime": (datetime.now(UTC) - timedelta(seconds=silent_for)).isoformat(),
        }
        self.kube.put("/api/v1/nodes/n1", {"kind": "Node", "status": {"conditions": [condition]}})

    def know(self, **state: Any) -> None:
        cluster = self.platform.declaration("shop").cluster
        self.workshop.write_state({wish.KEY: wish.told(cluster), **state})

    @property
    def workshop(self) -> PodWorkshop:
        return self.platform.workshop("shop")

    @property
    def state(self) -> Any:
        return restoring.state(self.platform, self.platform.declaration("shop").cluster)

    def has(self, path: str) -> bool:
        return path in self.kube.objects


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    monkeypatch.setattr(keeping, "CLAIM_SECONDS", 0.5)
    monkeypatch.setattr(stands, "START_SECONDS", 1.5)
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.0)
    with kube_api() as (kube, api):
        yield Town(kube, KubernetesPlatform(api, "prod"))


# what an earlier cluster left


def test_volumes_that_are_still_going_are_waited_for_and_neither_data_nor_nothing(town: Town) -> None:
    assert town.state == {}, "it is to be restored"
    town.claim(deletionTimestamp=NOW.isoformat())
    with pytest.raises(Unavailable, match="data-shop-segment-1-0 is still in use"):
        _ = town.state
    town.kube.remove(CLAIM_PATH)
    assert town.state == {}
    town.claim()
    assert town.state is None, "volumes that a deletion kept are adopted"


def test_a_cluster_that_is_to_go_waits_for_nothing(town: Town) -> None:
    town.claim(deletionTimestamp=NOW.isoformat())
    town.declare(deletionTimestamp=NOW.isoformat())
    assert town.state is None
    town.declare(annotations={names.STOPPED_ANNOTATION: "true"})
    assert town.state is None


def test_a_cluster_that_served_is_held_up_by_no_volume_of_one_member(town: Town) -> None:
    town.claim(deletionTimestamp=NOW.isoformat())
    town.know(phase="done")
    town.platform.write_status("shop", {"phase": "Degraded", "admitted": [1], "groups": []})
    assert town.state is None


class Stale(Direct):
    """What is watched, some moments late."""

    def __init__(self, api: Any) -> None:
        super().__init__(api)
        self.lagging = False
        self._old: dict[Any, Any] = {}

    def get(self, kind: Any, namespace: str, name: str) -> Any:
        key = (kind, name)
        if not (self.lagging and kind in (CONFIG_MAP, VOLUME_CLAIM)):
            self._old[key] = super().get(kind, namespace, name)
        return self._old.get(key)

    def of_cluster(self, kind: Any, namespace: str, cluster: str) -> Any:
        if not (self.lagging and kind in (CONFIG_MAP, VOLUME_CLAIM)):
            self._old[kind] = super().of_cluster(kind, namespace, cluster)
        return self._old.get(kind) or []

    def put(self, kind: Any, obj: Any) -> None:
        self._old[kind, obj["metadata"]["name"]] = obj


def test_what_is_watched_alone_founds_no_empty_cluster(town: Town) -> None:
    reader = Stale(town.platform.api)
    town.platform = KubernetesPlatform(town.platform.api, "prod", reader)
    town.claim()
    town.know(phase="done")
    assert town.state is None
    reader.lagging = True
    town.kube.remove(CLAIM_PATH)
    assert town.state == {}, "its data are gone, whatever was seen last"
    town.kube.remove(STATE_PATH)
    with pytest.raises(Unavailable, match=r"ConfigMap shop\.recovery is gone"):
        _ = town.state
    reader.lagging = False
    assert town.state == {}


def test_a_purge_ends_when_the_volumes_are_gone_and_not_before(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.claim()
    town.pod()
    town.know(phase="failed", error="no such point")
    removed = town.kube.remove

    def protected(path: str) -> None:
        """As Kubernetes does with a volume that somebody uses."""
        if path == CLAIM_PATH:
            town.claim(deletionTimestamp=NOW.isoformat())
        else:
            removed(path)

    with monkeypatch.context() as patched:
        patched.setattr(town.kube, "remove", protected)
        with pytest.raises(Unavailable, match="data-shop-segment-1-0 is still in use by a pod"):
            town.platform.forget("shop", purge=True)
    assert not town.has(POD_PATH), "nothing of ours uses it"
    assert town.has(STATE_PATH), "nothing is forgotten of volumes that are there"
    town.kube.remove(CLAIM_PATH)
    town.platform.forget("shop", purge=True)
    assert not any(town.has(path) for path in (CLAIM_PATH, STATE_PATH))


def test_a_failure_is_not_handed_on_to_the_next_cluster_of_the_name(town: Town) -> None:
    town.claim()
    town.know(phase="failed", error="no such point", steps=["copied"])
    town.platform.forget("shop", purge=False)
    town.declare(uid="second")
    assert town.state == {"phase": "requested"}, "volumes without data are no data"
    town.know(phase="failed", error="no such point", steps=["copied", "settled"])
    town.platform.forget("shop", purge=False)
    assert town.state["error"] == "no such point", "data may be in some of them"


def test_nothing_is_remembered_where_no_volume_was_made(town: Town) -> None:
    town.know(phase="failed", error="there is no Secret keys")
    town.platform.forget("shop", purge=False)
    assert not town.has(STATE_PATH)


def test_a_cluster_whose_declaration_makes_no_sense_can_be_deleted_in_the_middle_of_its_restore(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.claim()
    town.pod()
    town.know(phase="copying")
    town.declare(deletionTimestamp=NOW.isoformat())

    def broken(name: str) -> Any:
        raise BadInput("spec.segments.count: must be >= 1, got 0")

    monkeypatch.setattr(town.platform, "declaration", broken)
    loop = ClusterLoop(town.platform, "shop", threading.Event())
    assert not loop._is_done_with(BadInput("spec.segments.count: must be >= 1, got 0"))
    assert not town.has(POD_PATH)
    assert loop._is_done_with(BadInput("spec.segments.count: must be >= 1, got 0"))
    assert not town.has(CLAIM_PATH)


# pods


def test_a_cluster_that_is_stopped_or_deleted_in_its_restore_runs_until_its_restore_pods_have_ended(
    town: Town,
) -> None:
    town.claim()
    town.pod()
    assert not town.platform.members("shop")[FIRST.name].running, (
        "while it is restored nobody is in their way"
    )
    town.platform.stop_member(FIRST)
    assert town.has(POD_PATH)
    town.declare(annotations={names.STOPPED_ANNOTATION: "true"})
    assert town.platform.members("shop")[FIRST.name].running
    town.platform.stop_member(FIRST)
    assert not town.has(POD_PATH)
    assert not town.platform.members("shop")[FIRST.name].running


def test_what_is_refused_is_waited_for(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    town.know(phase="copying")

    def refuse(namespace: str, obj: Any) -> None:
        raise PgherdError("could not create Pod: exceeded quota: small, used: cpu=2, limited: cpu=2")

    monkeypatch.setattr(town.platform.api, "create", refuse)
    with pytest.raises(Unavailable, match="exceeded quota"):
        town.workshop.machine(FIRST)


def test_restore_pods_are_of_the_members_account(town: Town) -> None:
    town.know(phase="copying")
    with pytest.raises(Unavailable, match="shop-segment-1-0-restore does not run yet"):
        town.workshop.machine(FIRST)
    assert town.kube.objects[POD_PATH]["spec"]["serviceAccountName"] == "shop"
    account = town.kube.objects[f"{CORE}/serviceaccounts/shop"]
    assert account["metadata"]["ownerReferences"][0]["uid"] == "first"


def test_a_pod_of_a_cluster_that_had_this_name_is_not_used(town: Town) -> None:
    town.know(phase="copying")
    town.pod(owner="gone before")
    assert town.workshop.standing(FIRST) is None
    with pytest.raises(Unavailable):
        town.workshop.machine(FIRST)
    assert town.kube.objects[POD_PATH]["metadata"]["ownerReferences"][0]["uid"] == "first"


@pytest.mark.parametrize(("silent_for", "given_up"), [(5.0, False), (600.0, True)])
def test_a_pod_that_a_dead_node_does_not_end_is_given_up(
    town: Town, silent_for: float, given_up: bool
) -> None:
    town.know(phase="copying")
    town.pod(deletionTimestamp=NOW.isoformat())
    town.node(silent_for)
    with pytest.raises(Unavailable):
        town.workshop.machine(FIRST)
    assert ("deletionTimestamp" not in town.kube.objects[POD_PATH]["metadata"]) == given_up


# what must be read there


def test_a_volume_that_must_be_read_is_waited_for_and_not_left_out(town: Town) -> None:
    """Without it its backups look lost, and the restore would have failed for good."""
    town.declare_volume("backups")
    town.know(phase="copying")
    with pytest.raises(Unavailable, match="there is no PersistentVolumeClaim backups"):
        town.workshop.machine(FIRST)
    town.volume("backups", "Pending")
    with pytest.raises(Unavailable, match="PersistentVolumeClaim backups is not bound yet"):
        town.workshop.machine(FIRST)
    assert not town.has(POD_PATH)
    assert not town.has(CLAIM_PATH)
    town.volume("backups")
    with pytest.raises(Unavailable, match="does not run yet"):
        town.workshop.machine(FIRST)
    assert volumes.mounted(town.kube.objects[POD_PATH]["spec"]) == ["backups"], "no look of before counts"


def test_a_pod_without_the_volume_that_must_be_read_is_made_anew(town: Town) -> None:
    town.declare_volume("backups")
    town.volume("backups")
    town.know(phase="copying")
    town.claim()
    town.pod()
    with pytest.raises(Unavailable, match="does not run yet"):
        town.workshop.machine(FIRST)
    assert volumes.mounted(town.kube.objects[POD_PATH]["spec"]) == ["backups"]


def test_a_pod_that_has_the_volume_is_used_whatever_becomes_of_the_claim(town: Town) -> None:
    town.declare_volume("backups")
    town.volume("backups")
    town.know(phase="copying")
    with pytest.raises(Unavailable):
        town.workshop.machine(FIRST)
    town.run_pod()
    town.volume("backups", deletionTimestamp=NOW.isoformat())
    assert town.workshop.machine(FIRST)


def test_a_pod_that_was_made_to_read_other_backups_is_made_anew(town: Town) -> None:
    """It has the keys and the settings of those for a while."""
    town.know(phase="copying")
    with pytest.raises(Unavailable):
        town.workshop.machine(FIRST)
    first = town.kube.objects[POD_PATH]["metadata"]["uid"]
    town.run_pod()
    assert town.workshop.machine(FIRST)
    assert town.kube.objects[POD_PATH]["metadata"]["uid"] == first
    town.declare_volume("backups")
    town.volume("backups")
    town.know(phase="copying")
    with pytest.raises(Unavailable):
        town.workshop.machine(FIRST)
    assert town.kube.objects[POD_PATH]["metadata"]["uid"] != first


def test_what_is_read_already_needs_no_volume(town: Town) -> None:
    town.declare_volume("backups")
    town.know(phase="copying", steps=["copied", "reached", "opened", "settled"])
    town.claim()
    town.pod()
    assert town.workshop.machine(FIRST)
    assert not [path for path in town.kube.writes("DELETE") if path == POD_PATH]


# a node that died


NODE = "/api/v1/nodes/n1"


def lost(town: Town, silent_for: float) -> None:
    """A pod ran on a node, which died; the one that was made again finds no place."""
    town.know(phase="copying")
    town.claim()
    town.pod()
    reports = {"conditions": [{"type": "Ready", "status": "True"}]}
    town.kube.put(NODE, {"kind": "Node", "status": reports})
    town.workshop.machine(FIRST)
    town.node(silent_for)
    assert town.workshop.standing(FIRST) is None, "whatever its node said last"
    with pytest.raises(Unavailable, match="does not run yet"):
        town.workshop.machine(FIRST)
    made = town.kube.objects[POD_PATH]
    assert "nodeName" not in made["spec"], "another one, on the same volume"
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    town.kube.put(POD_PATH, {**made, "status": {"conditions": [refused]}})


@pytest.mark.parametrize("silent_for", [100.0, 600.0])
def test_a_volume_that_is_bound_to_a_dead_node_is_given_up_in_time(town: Town, silent_for: float) -> None:
    lost(town, silent_for)
    if silent_for < 300:
        with pytest.raises(Unavailable, match="Unschedulable: 0/3 nodes") as waits:
            town.workshop.machine(FIRST)
        assert not isinstance(waits.value, Lost)
        return
    with pytest.raises(Lost, match="data-shop-segment-1-0 was used on node n1, which is silent") as gone:
        town.workshop.machine(FIRST)
    assert gone.value.group == 1
    assert town.has(CLAIM_PATH), "nothing goes before it is written down"
    town.workshop.discard(FIRST)
    assert not any(town.has(path) for path in (CLAIM_PATH, POD_PATH))
    with pytest.raises(Unavailable, match="does not run yet"):
        town.workshop.machine(FIRST)
    claim = town.kube.objects[CLAIM_PATH]["metadata"]
    assert not claim.get("annotations"), "a new one, which no node had"
    assert town.has(POD_PATH)


def test_a_volume_whose_node_reports_or_that_is_never_to_be_replaced_is_kept(town: Town) -> None:
    lost(town, 600)
    town.kube.put(NODE, {"kind": "Node", "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    with pytest.raises(Unavailable) as waits:
        town.workshop.machine(FIRST)
    assert not isinstance(waits.value, Lost)
    town.node(600)
    raw = town.kube.objects[CLUSTER_PATH]
    metadata = {**raw["metadata"], "generation": 2}
    never = {**raw["spec"], "replaceLostAfter": 0}
    town.kube.put(CLUSTER_PATH, {**raw, "metadata": metadata, "spec": never})
    with pytest.raises(Unavailable) as waits:
        town.workshop.machine(FIRST)
    assert not isinstance(waits.value, Lost)
    assert town.has(CLAIM_PATH)


def test_nothing_uses_a_volume_that_is_going(town: Town) -> None:
    """Whoever was killed between claim and pod has left a pod that would keep the volume there for ever."""
    lost(town, 600)
    town.claim(deletionTimestamp=NOW.isoformat())
    with pytest.raises(Unavailable, match="does not run yet"):
        town.workshop.machine(FIRST)
    assert not town.has(POD_PATH)


@pytest.mark.parametrize(
    "state",
    [
        {"phase": "done"},
        {"phase": "failed"},
        {"phase": "reverted", "inPlace": True, "epoch": 1, "kept": 0},
        {"phase": "done", "inPlace": True, "epoch": 0, "kept": None},
    ],
)
def test_no_volume_goes_that_may_be_a_clusters_own(town: Town, state: dict[str, Any]) -> None:
    town.claim()
    town.know(**state)
    with pytest.raises(PgherdError, match="its volumes stay"):
        town.workshop.discard(FIRST)
    assert town.has(CLAIM_PATH)


def test_whoever_is_to_end_waits_for_no_pod(town: Town) -> None:
    town.know(phase="copying")
    made = town.workshop
    made.heed(lambda: True)
    with pytest.raises(Cancelled):
        made.machine(FIRST)


def test_what_failed_is_cleared_away_without_making_anything(town: Town) -> None:
    town.know(phase="copying")
    town.kube.put(f"{CORE}/secrets/shop.recovery", {"kind": "Secret", "data": {}})
    assert town.workshop.standing(FIRST) is None
    town.pod()
    town.workshop.close()
    assert not town.has(POD_PATH)
    assert not town.has(f"{CORE}/secrets/shop.recovery"), "keys do not outlive what they were for"
    made = {path for verb, path in town.kube.asked if verb == "POST"}
    assert made <= {STATE_PATH}, "how far it is is all that was written"


def test_keys_go_even_if_a_pod_does_not(town: Town) -> None:
    town.know(phase="copying")
    town.kube.put(f"{CORE}/secrets/shop.recovery", {"kind": "Secret", "data": {}})
    town.pod(deletionTimestamp=NOW.isoformat())
    with pytest.raises(Unavailable, match="shop-segment-1-0-restore has not ended yet"):
        town.workshop.close()
    assert not town.has(f"{CORE}/secrets/shop.recovery")


# threads that linger


def test_one_that_worked_for_a_cluster_that_is_gone_leaves_the_next_one_of_its_name_alone(town: Town) -> None:
    town.know(phase="copying", message="the first one's")
    lingering = town.workshop
    town.declare("p2", uid="second")
    town.know(phase="copying", message="the second one's")
    town.pod(owner="second")
    acts: list[Callable[[], object]] = [
        lambda: lingering.write_state({"phase": "done"}),
        lambda: lingering.machine(FIRST),
        lambda: lingering.standing(FIRST),
        lambda: lingering.end_processes(FIRST, Path("/data")),
        lingering.close,
    ]
    for act in acts:
        with pytest.raises(Cancelled, match="shop is another cluster by now"):
            act()
    assert town.has(POD_PATH)
    assert (town.workshop.read_state() or {})["message"] == "the second one's"


# the backups of another cluster, wherever these are


def test_what_another_cluster_of_the_namespace_says_of_its_backups_is_waited_for_and_reaches_the_pods(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(town.platform, "announce", lambda name, what, failed: told.append((what, failed)))
    found = town.kube.objects[CLUSTER_PATH]
    spec = {**found["spec"], "bootstrap": {"recovery": {"cluster": "old", "restorePoint": "p1"}}}
    town.kube.put(CLUSTER_PATH, {**found, "spec": spec})

    def begin() -> object:
        cluster = town.platform.declaration("shop").cluster
        nothing: Any = None
        return restoring.begin(town.platform, cluster, nothing, threading.Event(), nothing)

    assert begin() is None
    assert begin() is None
    missing = (
        "spec.bootstrap.recovery.cluster: there is no cluster old here: declare it, or name with repository"
    )
    [(event, is_bad)] = told
    assert is_bad
    assert missing in event
    assert missing in restoring.operation_status(town.state)["message"]
    backup = {"method": "pgbackrest", "repository": {"volume": {"claimName": "olds"}}}
    raw = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster", "metadata": {"uid": "other"}}
    old = f"{GROUP}/postgresclusters/old"
    town.kube.put(old, {**raw, "spec": {"engine": "fdw", "segments": {"count": 1}, "backup": backup}})
    town.volume("olds")
    assert begin() is not None
    town.kube.remove(old)
    with pytest.raises(Unavailable):
        town.workshop.machine(FIRST)
    assert volumes.mounted(town.kube.objects[POD_PATH]["spec"]) == ["olds"]


def test_another_secret_that_the_other_cluster_names_by_now_moves_no_pod_and_is_the_one_that_is_read(
    town: Town,
) -> None:
    found = town.kube.objects[CLUSTER_PATH]
    spec = {**found["spec"], "bootstrap": {"recovery": {"cluster": "old", "restorePoint": "p1"}}}
    town.kube.put(CLUSTER_PATH, {**found, "spec": spec})
    raw = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster"}

    def declare(secret: str, generation: int) -> None:
        spec = {"engine": "fdw", "segments": {"count": 1}, "backup": {**DECLARED, "secretRef": secret}}
        metadata = {"uid": "other", "generation": generation}
        town.kube.put(f"{GROUP}/postgresclusters/old", {**raw, "metadata": metadata, "spec": spec})

    def begun() -> Any:
        nothing: Any = None
        cluster = town.platform.declaration("shop").cluster
        return restoring.begin(town.platform, cluster, nothing, threading.Event(), nothing)

    declare("keys", 1)
    assert begun()._site.wanted.secret_ref == "keys"
    town.workshop.write_state({**town.state, "phase": "copying", "point": {}, "steps": ["copied:0"]})
    before = town.workshop._source()
    assert before is not None
    declare("renewed", 2)
    assert begun()._site.wanted.secret_ref == "renewed"
    assert town.state["steps"] == ["copied:0"]
    after = town.workshop._source()
    assert after is not None
    assert after.mark == before.mark, "no pod is made anew"
