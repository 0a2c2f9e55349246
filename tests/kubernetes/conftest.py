"""A Kubernetes, an operator in it, a namespace to work in.

``KUBECONFIG`` names the cluster; without it the lab is started (and stays). In the lab, images are built from this tree
and loaded; elsewhere they must be where nodes find them: ``PGHERD_OPERATOR_IMAGE``, ``PGHERD_POSTGRES_IMAGE``.
``PGHERD_E2E_IMAGES=loaded`` says that they are in the lab's nodes already. ``PGHERD_E2E_NAMESPACE`` names a namespace
that an operator watches already, and nothing is installed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from tests.kubernetes.kube import LAB_STATE, POSTGRES_IMAGE, ROOT, Cluster, Namespace, kubectl

LONGEST = (
    "test_backups.py",
    "test_drills.py",
    "test_life.py",
    "test_operator.py",
    "test_restore_in_place.py",
    "test_backup_points.py",
    "test_cli.py",
    "test_repair.py",
    "test_hands.py",
    "test_wrong_changes.py",
    "test_clone.py",
    "test_failures.py",
    "test_backup_limits.py",
    "test_volume_repository.py",
    "test_members.py",
    "test_complaints.py",
)
"""files that take minutes, the longest first, so that short ones fill the end of a run of several files side by side;
those that restore most are apart, so that they don't all run at once"""
OPERATOR_IMAGE = os.environ.get("PGHERD_OPERATOR_IMAGE", "localhost/pgherd-operator:e2e")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files side by side by how long they take: so they are handed out where ``--no-loadscope-reorder`` lets it."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)  # in a file everything stays in its order


def _place(item: pytest.Item) -> tuple[int, str]:
    if item.path.parent != HERE:
        return -1, ""
    name = item.path.name
    return (LONGEST.index(name), name) if name in LONGEST else (len(LONGEST), name)


def _make(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"


@contextmanager
def _one_process() -> Iterator[TextIO]:
    """What processes of one run must not do at the same time; the file tells for which run images were loaded last."""
    mark = ROOT / "build" / "images" / "loaded-for"
    mark.parent.mkdir(parents=True, exist_ok=True)
    with mark.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def use_lab() -> bool:
    """See to it that KUBECONFIG names a cluster; whether it is the lab."""
    kubeconfig = LAB_STATE / "kubeconfig"
    if not os.environ.get("KUBECONFIG"):
        with _one_process():
            _make(sys.executable, "-m", "lab", "up")
        os.environ["KUBECONFIG"] = str(kubeconfig)
    return os.environ["KUBECONFIG"] == str(kubeconfig)


def load_images() -> None:
    """Build both images and bring them into the lab's nodes; once for all processes of one run."""
    if os.environ.get("PGHERD_E2E_IMAGES") == "loaded":
        return
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    with _one_process() as file:
        if not run or file.read() != run:
            _build_images()
            file.truncate(0)
            file.write(run)


def _build_images() -> None:
    build = (sys.executable, "-m", "lab", "build-image", "--load")
    _make(
        *build, "--target", "postgres", "--tag", POSTGRES_IMAGE,
        "--file", "deploy/image/Dockerfile", "--output", "build/images/postgres.tar", "deploy/image",
    )  # fmt: skip
    _make(
        *build, "--target", "operator", "--tag", OPERATOR_IMAGE,
        "--file", "deploy/image/operator.Dockerfile", "--output", "build/images/operator.tar", ".",
    )  # fmt: skip


@contextmanager
def installed() -> Iterator[Namespace]:
    """A namespace with pod security enforced, watched by an operator of its own, as long as the block lasts."""
    name = f"pgherd-e2e-{secrets.token_hex(3)}"
    pod_security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    labelled = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": pod_security},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(labelled))
    pgherd = (sys.executable, "-m", "pgherd.cli.main", "--platform", "kubernetes", "-n", f"{name}-system")
    try:
        _make(
            *pgherd, "install", "--watch-namespace", name, "--fencing",
            "--image", OPERATOR_IMAGE, "--postgres-image", POSTGRES_IMAGE,
        )  # fmt: skip
        yield Namespace(name)
    finally:
        kubectl("-n", name, "delete", "pgc", "--all", "--timeout=120s", timeout=130, check=False)
        _make(*pgherd, "uninstall", "--yes", "--keep-clusters")
        kubectl("delete", "namespace", name, f"{name}-system", "--wait=false", check=False)


@pytest.fixture(scope="session")
def in_lab() -> bool:
    """Whether nodes may be broken: the cluster is the lab."""
    return use_lab()


@pytest.fixture(scope="session")
def images(in_lab: bool) -> None:
    """Both images are where nodes find them."""
    if in_lab and not os.environ.get("PGHERD_E2E_NAMESPACE"):
        load_images()


@pytest.fixture(scope="session")
def namespace(images: None) -> Iterator[Namespace]:
    """A namespace that an operator watches."""
    if given := os.environ.get("PGHERD_E2E_NAMESPACE"):
        yield Namespace(given)
        return
    with installed() as made:
        yield made


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
    cluster.purge()
