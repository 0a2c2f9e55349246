"""A Kubernetes, an operator in it, a namespace to work in.

``KUBECONFIG`` names the cluster; without it the lab is started (and stays). In the lab, images are built from this tree
and loaded; elsewhere they must be where nodes find them: ``PGHERD_OPERATOR_IMAGE``, ``PGHERD_POSTGRES_IMAGE``.
``PGHERD_E2E_NAMESPACE`` names a namespace that an operator watches already, and nothing is installed.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.kubernetes.kube import LAB_STATE, ROOT, Cluster, Namespace, kubectl

OPERATOR_IMAGE = os.environ.get("PGHERD_OPERATOR_IMAGE", "localhost/pgherd-operator:e2e")
POSTGRES_IMAGE = os.environ.get("PGHERD_POSTGRES_IMAGE", "localhost/pgherd-postgres:17")


def _make(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def in_lab() -> bool:
    """Whether nodes may be broken: the cluster is the lab."""
    lab = LAB_STATE / "kubeconfig"
    if not os.environ.get("KUBECONFIG"):
        if not lab.exists():
            _make(sys.executable, "-m", "lab", "up")
        os.environ["KUBECONFIG"] = str(lab)
    return os.environ["KUBECONFIG"] == str(lab)


@pytest.fixture(scope="session")
def images(in_lab: bool) -> None:
    """Both images are where nodes find them."""
    if not in_lab or os.environ.get("PGHERD_E2E_NAMESPACE"):
        return
    build = (sys.executable, "-m", "lab", "build-image", "--load")
    _make(
        *build, "--target", "postgres", "--tag", POSTGRES_IMAGE,
        "--file", "deploy/image/Dockerfile", "--output", "build/images/postgres.tar", "deploy/image",
    )  # fmt: skip
    _make(
        *build, "--target", "operator", "--tag", OPERATOR_IMAGE,
        "--file", "deploy/image/operator.Dockerfile", "--output", "build/images/operator.tar", ".",
    )  # fmt: skip


@pytest.fixture(scope="session")
def namespace(images: None) -> Iterator[Namespace]:
    """A namespace with pod security enforced, watched by an operator of its own."""
    given = os.environ.get("PGHERD_E2E_NAMESPACE")
    if given:
        yield Namespace(given)
        return
    name = f"pgherd-e2e-{secrets.token_hex(3)}"
    pod_security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    labelled = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": pod_security},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(labelled))
    pgherd = (sys.executable, "-m", "pgherd.cli.main", "--platform", "kubernetes", "-n", f"{name}-system")
    _make(
        *pgherd, "install", "--watch-namespace", name,
        "--image", OPERATOR_IMAGE, "--postgres-image", POSTGRES_IMAGE,
    )  # fmt: skip
    try:
        yield Namespace(name)
    finally:
        kubectl("-n", name, "delete", "pgc", "--all", "--timeout=120s", timeout=130, check=False)
        kubectl("delete", "namespace", name, f"{name}-system", "--wait=false", check=False)


@pytest.fixture(scope="session")
def operator(namespace: Namespace) -> Namespace:
    """The namespace of the operator's pod."""
    return Namespace(os.environ.get("PGHERD_E2E_OPERATOR_NAMESPACE", f"{namespace.name}-system"))


@pytest.fixture(scope="module")
def shop(namespace: Namespace) -> Iterator[Cluster]:
    """A cluster of two segments, each group with a standby, for all tests of a file."""
    cluster = Cluster(namespace, "shop")
    cluster.apply()
    cluster.wait_phase("Running")
    yield cluster
    cluster.patch({"deletionPolicy": "Delete"})
    cluster.delete()
