"""What is installed: complete, without a privilege too many, and the same on every road."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import Node

from pgherd import __version__
from pgherd.cli.main import run
from pgherd.deploy import apply, manifests, rbac
from pgherd.deploy.manifests import Settings
from pgherd.errors import BadInput
from pgherd.model.spec import crd_schema
from pgherd.platform.kubernetes.api import BACKUP, CLUSTER, EVENT, MANAGED, POD, SCHEDULE, VOLUME_CLAIM
from pgherd.platform.kubernetes.cluster_objects import role
from pgherd.platform.kubernetes.platform import DEFAULT_IMAGE


def of_kind(kind: str, settings: Settings | None = None) -> list[dict[str, Any]]:
    return [each for each in manifests.manifests(settings or Settings()) if each["kind"] == kind]


def test_the_order_is_the_one_in_which_things_can_be_made() -> None:
    kinds = [each["kind"] for each in manifests.manifests(Settings())]
    assert kinds[:4] == ["Namespace", *["CustomResourceDefinition"] * 3]
    assert kinds[-1] == "Deployment"


def test_the_definition_has_the_declaration_as_its_schema() -> None:
    definition = of_kind("CustomResourceDefinition")[0]
    assert definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == crd_schema()


def test_everything_says_what_it_belongs_to() -> None:
    for each in manifests.manifests(Settings()):
        found = each["metadata"]["labels"]
        assert found["app.kubernetes.io/name"] == "pgherd-operator"
        assert found["app.kubernetes.io/version"] == __version__


def test_the_operators_pod_meets_the_restricted_standard() -> None:
    [deployment] = of_kind("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}, "never two at once"


def test_the_operator_has_no_right_over_everything() -> None:
    for rule in (*rbac.operator_rules(), *rbac.cluster_rules()):
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
    for rule in rbac.cluster_rules():
        assert set(rule["verbs"]) <= {"get", "list", "watch"}, (
            "what belongs to no namespace is only looked at"
        )


def test_the_operator_may_only_do_what_it_does() -> None:
    def resources(rules: list[rbac.Rule]) -> set[tuple[str, str]]:
        return {(group, each) for rule in rules for group in rule["apiGroups"] for each in rule["resources"]}

    kinds = (*MANAGED, CLUSTER, BACKUP, SCHEDULE, POD, EVENT, VOLUME_CLAIM)
    used = {(kind.group, kind.plural) for kind in kinds}
    parts = {(CLUSTER.group, f"{CLUSTER.plural}/{part}") for part in ("status", "finalizers")}
    parts |= {(kind.group, f"{kind.plural}/status") for kind in (BACKUP, SCHEDULE)}
    parts |= {("", "pods/exec"), ("", "pods/portforward")}
    assert resources(rbac.operator_rules()) == used | parts
    looked_at = {("", each) for each in ("namespaces", "nodes", "persistentvolumes")}
    looked_at |= {("apiextensions.k8s.io", "customresourcedefinitions")}
    assert resources(rbac.cluster_rules()) == looked_at
    # It hands out no more than it has.
    handed_out = role("shop", {})["rules"]
    for group, each in resources(handed_out):
        verbs = [set(rule["verbs"]) for rule in rbac.operator_rules() if each in rule["resources"]]
        wanted = [set(rule["verbs"]) for rule in handed_out if each in rule["resources"]]
        assert wanted[0] <= verbs[0], (group, each)


def test_one_namespace_is_enough_if_asked_for() -> None:
    settings = Settings(namespace="tools", watch_namespace="shop")
    role, lease = of_kind("Role", settings)
    binding, lease_binding = of_kind("RoleBinding", settings)
    assert lease["metadata"]["namespace"] == lease_binding["metadata"]["namespace"] == "tools"
    assert lease["rules"] == rbac.lease_rules()
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "shop"
    assert binding["subjects"][0]["namespace"] == "tools"
    own = next(
        each
        for each in of_kind("ClusterRole", settings)
        if each["metadata"]["name"] == binding["roleRef"]["name"]
    )
    assert own["rules"] == rbac.cluster_rules()
    [deployment] = of_kind("Deployment", settings)
    environment = {
        each["name"]: each.get("value")
        for each in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["PGHERD_WATCH_NAMESPACE"] == "shop"


def test_two_installations_share_no_name_outside_their_namespaces() -> None:
    def global_names(namespace: str) -> set[str]:
        settings = Settings(namespace=namespace, watch_namespace=namespace)
        kinds = ("ClusterRole", "ClusterRoleBinding")
        return {each["metadata"]["name"] for kind in kinds for each in of_kind(kind, settings)}

    assert global_names("a") & global_names("b") == {"pgherd-view", "pgherd-edit"}


class Applied(Exception):
    """It came to applying."""


@pytest.mark.parametrize(
    ("there", "wanted", "told"),
    [
        ("", "", "all namespaces"),
        ("", "shop", "all namespaces"),
        ("shop", "", "namespace shop"),
        ("shop", "shop", "namespace shop"),
        ("shop", "bank", None),
    ],
)
def test_a_second_operator_for_the_same_clusters_is_refused(
    there: str, wanted: str, told: str | None
) -> None:
    """Each installation has a lease of its own: it keeps nobody else from working at the same time."""
    settings = [
        Settings(namespace="a", watch_namespace=there),
        Settings(namespace="b", watch_namespace=wanted),
    ]

    def applied(*_: Any, **__: Any) -> None:
        raise Applied

    def others(*_: Any, **__: Any) -> list[Any]:
        return [Deployment.from_dict(each) for made in settings for each in of_kind("Deployment", made)]

    client = SimpleNamespace(list=others, patch=applied, delete=applied)
    api = cast("Any", SimpleNamespace(asking=nullcontext, client=client))
    if told is None:
        with pytest.raises(Applied):
            apply.install(api, settings[1])
        return
    with pytest.raises(BadInput, match=f"the operator in namespace a looks after {told}, and two would work"):
        apply.install(api, settings[1])


def test_a_node_that_stays_fenced_when_the_operator_goes_is_named() -> None:
    nodes = [Node.from_dict({"metadata": {"name": "n2"}})]
    client = SimpleNamespace(
        list=lambda kind, **_: nodes if kind is Node else [], delete=lambda *_, **__: None
    )
    told: list[str] = []
    api = cast("Any", SimpleNamespace(asking=nullcontext, client=client))
    apply.uninstall(api, Settings(), even_with_clusters=False, progress=told.append)
    assert told == [
        "node n2 stays fenced: once it is back, 'kubectl taint node n2 node.kubernetes.io/out-of-service-' and "
        "'kubectl label node n2 pgherd.io/fenced-' let it work again"
    ]


def test_members_run_the_image_that_the_operator_would_choose() -> None:
    assert manifests.POSTGRES_IMAGE == DEFAULT_IMAGE


def test_wrong_settings_are_refused_all_at_once() -> None:
    with pytest.raises(BadInput) as refused:
        manifests.check(Settings(namespace="Tools", watch_namespace="a b", image="", postgres_image="x y"))
    assert len(refused.value.problems) == 4


def test_a_dry_run_prints_what_kubectl_can_apply(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert run(["install", "--dry-run", "-n", "tools", "--image", "registry.example/operator:2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    settings = Settings(namespace="tools", image="registry.example/operator:2")
    assert list(yaml.safe_load_all(printed.out)) == manifests.manifests(settings)
