"""What others have under a name of ours stays theirs; what somebody made of ours that can't be changed is made anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import Api
from pgherd.platform.kubernetes.cache import Direct
from pgherd.platform.kubernetes.certificates import Authority
from pgherd.platform.kubernetes.cluster_objects import cluster_objects
from pgherd.platform.kubernetes.ensure import Applier, owned
from tests.support.kube_api import Kube, Object, kube_api
from tests.unit.test_kubernetes_objects import PASSWORDS, cluster, objects

CORE = "/api/v1/namespaces/prod"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/prod"
SETS = "/apis/apps/v1/namespaces/prod/statefulsets"
OWNER = {
    "apiVersion": "pgherd.io/v1alpha1",
    "kind": "PostgresCluster",
    "metadata": {"name": "shop", "uid": "one"},
}
PATHS = {
    "Service": f"{CORE}/services/shop",
    "ServiceAccount": f"{CORE}/serviceaccounts/shop",
    "ConfigMap": f"{CORE}/configmaps/shop",
    "Role": f"{ROLES}/roles/shop",
    "RoleBinding": f"{ROLES}/rolebindings/shop",
}


@pytest.fixture
def server() -> Iterator[tuple[Kube, Api]]:
    with kube_api() as made:
        yield made


def wanted(kind: str) -> dict[str, Any]:
    """What the cluster ``shop`` has of this kind under its own name."""
    made = cluster_objects(cluster(), "prod", PASSWORDS, Authority("certificate", "key"))
    [found] = [each for each in made if (each["kind"], each["metadata"]["name"]) == (kind, "shop")]
    return owned(found, OWNER)


def somebodys(kind: str, **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"labels": {"app": "shop"}, **metadata},
        "spec": {"selector": {"app": "shop"}},
        "roleRef": {"name": "shop"},
    }


@pytest.mark.parametrize("kind", PATHS)
def test_what_an_application_has_under_the_clusters_name_is_not_taken_from_it(
    server: tuple[Kube, Api], kind: str
) -> None:
    kube, api = server
    theirs = kube.put(PATHS[kind], somebodys(kind))
    applier = Applier(api, Direct(api))
    for _ in range(2):
        with pytest.raises(
            PgherdError, match=f"{kind} shop of namespace prod is not pgherd's: remove it, or"
        ):
            applier.ensure("prod", [wanted(kind)])
    assert kube.objects[PATHS[kind]] == theirs
    kube.remove(PATHS[kind])
    assert applier.ensure("prod", [wanted(kind)]) == [f"{kind} shop"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {names.CLUSTER_LABEL: "shop"}},
        {"ownerReferences": [{"kind": "PostgresCluster", "name": "shop", "uid": "another"}]},
        {"managedFields": [{"manager": "kubectl"}, {"manager": "pgherd", "operation": "Apply"}]},
    ],
)
def test_what_is_ours_is_known_by_what_is_left_of_its_marks(
    server: tuple[Kube, Api], metadata: dict[str, Any]
) -> None:
    kube, api = server
    kube.put(PATHS["Service"], somebodys("Service", **metadata))
    Applier(api, Direct(api)).ensure("prod", [wanted("Service")])
    assert kube.objects[PATHS["Service"]]["metadata"]["labels"][names.CLUSTER_LABEL] == "shop"


def test_whose_an_object_is_is_asked_once(server: tuple[Kube, Api]) -> None:
    kube, api = server

    class Blind(Direct):
        """Sees what has our labels only, and later."""

        def get(self, *_: Any) -> None:
            return None

    applier = Applier(api, Blind(api))
    applier.ensure("prod", [wanted("Service")])
    applier.ensure("prod", [wanted("Service")])
    assert kube.asked.count(("GET", PATHS["Service"])) == 1


def anew(server: tuple[Kube, Api], path: str, obj: dict[str, Any], **change: Any) -> bool:
    """Whether an object of ours is removed, and made anew, because somebody made it so."""
    kube, api = server
    applier = Applier(api, Direct(api))
    applier.ensure("prod", [obj])
    made = kube.objects[path]
    spec = {**made.get("spec", {}), **change.pop("spec", {})}
    uid = kube.put(path, {**made, **({"spec": spec} if spec else {}), **change})["metadata"]["uid"]
    applier.ensure("prod", [obj])
    assert kube.writes("DELETE") in ([], [path])
    applier.ensure("prod", [obj])
    for key in ("roleRef", "data"):
        assert obj.get(key) is None or kube.objects[path][key] == obj[key]
    return bool(kube.objects[path]["metadata"]["uid"] != uid)


def test_what_somebody_made_of_ours_that_can_not_be_changed_is_made_anew(server: tuple[Kube, Api]) -> None:
    group = {kind: owned(obj, OWNER) for kind, obj in objects().items()}
    headless = f"{CORE}/services/shop-segment-1"
    assert anew(server, headless, group["Service"], spec={"clusterIP": "10.0.0.7"})


@pytest.mark.parametrize(
    ("kind", "change", "is_made_anew"),
    [
        ("RoleBinding", {"roleRef": {"kind": "ClusterRole", "name": "view"}}, True),
        ("ConfigMap", {"immutable": True, "data": {"cluster.yaml": "old"}}, True),
        ("ConfigMap", {"immutable": True}, False),
        ("ConfigMap", {"data": {"cluster.yaml": "old"}}, False),
        ("Service", {"spec": {"clusterIP": "10.0.0.7"}}, False),
    ],
)
def test_nothing_is_made_anew_that_can_be_changed(
    server: tuple[Kube, Api], kind: str, change: dict[str, Any], is_made_anew: bool
) -> None:
    assert anew(server, PATHS[kind], wanted(kind), **change) == is_made_anew


@pytest.mark.parametrize(
    ("change", "is_made_anew"),
    [
        ({"serviceName": "other"}, True),
        ({"podManagementPolicy": "OrderedReady"}, True),
        ({"selector": {"matchLabels": {"app": "shop"}}}, True),
        ({"replicas": 1}, False),
        ({"revisionHistoryLimit": 3}, False),
    ],
)
def test_a_stateful_set_that_somebody_made_otherwise_is_made_anew_around_its_pods(
    server: tuple[Kube, Api], change: dict[str, Any], is_made_anew: bool
) -> None:
    wanted_set = owned(objects()["StatefulSet"], OWNER)
    # The fake server counts no generations: whoever changes the specification counts.
    changed = anew(
        server,
        f"{SETS}/shop-segment-1",
        wanted_set,
        spec=change,
        metadata={**wanted_set["metadata"], "generation": 2},
    )
    assert changed == is_made_anew
