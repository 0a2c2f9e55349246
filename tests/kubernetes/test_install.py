"""Installing: what every road leads to, who may do what afterwards, and what is said when it does not work."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.kubernetes.kube import LAB_BIN, OPERATORS, ROOT, Cluster, KubectlError, Namespace, kubectl
from tests.kubernetes.pgherd import pgherd

pytestmark = pytest.mark.kubernetes

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.yaml"))


@pytest.fixture
def empty(namespace: Namespace) -> Iterator[Namespace]:
    """A namespace that no operator looks after."""
    made = Namespace(f"pgherd-e2e-{secrets.token_hex(3)}")
    kubectl("create", "namespace", made.name)
    try:
        yield made
    finally:
        kubectl("delete", "namespace", made.name, "--wait=false")


def test_the_operator_runs_and_installing_again_changes_nothing(operator: Namespace) -> None:
    before = operator.get("deployment", "pgherd-operator")
    assert before["status"]["availableReplicas"] == OPERATORS
    container = before["spec"]["template"]["spec"]["containers"][0]
    environment = {each["name"]: each.get("value") or "" for each in container["env"]}
    done = pgherd(
        "install", "-n", operator.name, "--fencing",
        "--watch-namespace", environment["PGHERD_WATCH_NAMESPACE"],
        "--image", container["image"],
        "--postgres-image", environment["PGHERD_POSTGRES_IMAGE"],
    )  # fmt: skip
    assert done.out.startswith(
        f"the operator is running in namespace {operator.name}; 'kubectl pgherd up -f FILE'"
    )
    assert (
        operator.get("deployment", "pgherd-operator")["metadata"]["generation"]
        == before["metadata"]["generation"]
    )


def test_a_dry_run_is_what_kubectl_applies(empty: Namespace) -> None:
    printed = pgherd("install", "--dry-run", "-n", empty.name, "--watch-namespace", empty.name).out
    applied = kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-", stdin=printed
    )
    assert len(applied.splitlines()) == printed.count("---\n")
    assert "deployment.apps/pgherd-operator serverside-applied" in applied


def test_the_chart_is_taken_by_the_api_server(empty: Namespace) -> None:
    helm = shutil.which("helm", path=f"{os.environ['PATH']}{os.pathsep}{LAB_BIN}")
    if helm is None:
        pytest.skip("helm is not here: 'make helm' builds it")
    command = [helm, "template", "pgherd", str(ROOT / "deploy" / "helm"), "--namespace", empty.name]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kubectl("apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-", stdin=printed)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_taken_by_the_api_server(empty: Namespace, name: str) -> None:
    empty.kubectl("apply", "--dry-run=server", "-f", str(ROOT / "examples" / name))


def test_the_example_for_small_machines_becomes_a_cluster(namespace: Namespace) -> None:
    """The others ask for more than three nodes of a small machine have."""
    namespace.kubectl("apply", "-f", str(ROOT / "examples" / "development.yaml"))
    cluster = Cluster(namespace, "dev")
    try:
        assert cluster.wait_phase("Running", timeout=180)["segments"] == 2
    finally:
        cluster.delete()


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("spec", "What the cluster should be."),
        ("spec.segments.count", "Number of segments"),
        ("spec.expansion.window.start", "Time of day HH:MM"),
        ("spec.coordinator.storage.size", "May grow, never shrink."),
    ],
)
def test_kubectl_explains_fields(namespace: Namespace, field: str, says: str) -> None:
    assert says in " ".join(kubectl("explain", f"pgc.{field}").split())


def test_who_may_edit_a_namespace_may_have_clusters_there(empty: Namespace) -> None:
    for role in ("edit", "view"):
        empty.kubectl("create", "serviceaccount", role)
        empty.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--serviceaccount={empty.name}:{role}"
        )

    def may(role: str, verb: str, part: str = "") -> bool:
        account = f"--as=system:serviceaccount:{empty.name}:{role}"
        asked = ("auth", "can-i", verb, "postgresclusters.pgherd.io", f"--subresource={part}", account)
        return empty.kubectl(*asked, check=False).startswith("yes")

    assert all(may("edit", verb) for verb in ("get", "list", "create", "patch", "delete"))
    assert may("edit", "patch", "scale")
    assert not may("edit", "patch", "status"), "the operator alone says what is"
    assert may("view", "get")
    assert not may("view", "patch")


def test_the_operator_may_nothing_outside_its_namespace(operator: Namespace, empty: Namespace) -> None:
    account = f"--as=system:serviceaccount:{operator.name}:pgherd-operator"
    [container] = operator.get("deployment", "pgherd-operator")["spec"]["template"]["spec"]["containers"]
    if any(each["name"] == "PGHERD_WATCH_NAMESPACE" and each.get("value") for each in container["env"]):
        assert "no" in empty.kubectl("auth", "can-i", "get", "secrets", account, check=False).split()
    assert "no" in empty.kubectl("auth", "can-i", "delete", "nodes", account, check=False).split()


def test_an_operator_that_does_not_start_is_told_with_the_reason(empty: Namespace) -> None:
    done = pgherd(
        "install", "-n", empty.name, "--watch-namespace", empty.name,
        "--image", "localhost/not-there:1", "--timeout", "20", check=False,
    )  # fmt: skip
    assert done.code == 1
    [line] = [line for line in done.err.splitlines() if line.startswith("pgherd: ")]
    assert re.match(
        r"pgherd: the operator is not available after 20 s: (ErrImagePull|ImagePullBackOff): ", line
    )
    removed = pgherd("uninstall", "-n", empty.name, "--yes", "--keep-clusters")
    assert "removed Deployment pgherd-operator" in removed.err
    assert f"removed Role pgherd-operator-{empty.name} in {empty.name}" in removed.err
    with pytest.raises(KubectlError):
        empty.get("deployment", "pgherd-operator")
    assert kubectl("get", "crd", "postgresclusters.pgherd.io"), "others need it"


def test_uninstalling_is_refused_while_there_are_clusters(empty: Namespace) -> None:
    empty.apply(Cluster(empty, "left").declaration())
    done = pgherd("uninstall", "-n", empty.name, "--yes", check=False)
    assert done.code == 2
    assert done.err.startswith("pgherd: there are clusters: ")
    assert f"{empty.name}/left" in done.err
    without = pgherd("uninstall", "-n", empty.name, check=False)
    assert (without.code, without.err) == (
        2,
        f"pgherd: the operator in namespace {empty.name} was not removed: add --yes to remove it\n",
    )


def test_a_cluster_that_nobody_looks_after_says_so(empty: Namespace) -> None:
    declared = json.dumps(Cluster(empty, "alone").declaration())
    done = pgherd("-n", empty.name, "up", "-f", "-", "--timeout", "2", stdin=declared, check=False)
    assert done.code == 1
    assert "nothing is heard of the operator" in done.err
    status = pgherd("-n", empty.name, "status", "alone", "-o", "json").json()
    assert status["phase"] == "Pending"
