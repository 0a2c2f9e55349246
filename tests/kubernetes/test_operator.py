"""The operator is killed again and again while it works; what was asked for is done all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kubernetes.kube import Cluster, Namespace, wait_for
from tests.kubernetes.writer import writers

pytestmark = pytest.mark.kubernetes


def kill_operator(operator: Namespace) -> list[str]:
    """Kill the operator's pod without warning; its name."""
    pods = [
        pod["metadata"]["name"] for pod in operator.list("pods", "app.kubernetes.io/name=pgherd-operator")
    ]
    for name in pods:
        operator.kubectl("delete", "pod", name, "--grace-period=0", "--force", check=False)
    return pods


@contextmanager
def killed_every(operator: Namespace, seconds: float) -> Iterator[list[str]]:
    """Kill the operator's pod without warning, over and over, until the block ends; gives the names of the dead."""
    stop, dead = threading.Event(), list[str]()

    def kill() -> None:
        while not stop.wait(seconds):
            dead.extend(kill_operator(operator))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield dead
    finally:
        stop.set()
        thread.join(30)


def test_killed_while_it_creates(namespace: Namespace, operator: Namespace) -> None:
    cluster = Cluster(namespace, "fresh")
    with killed_every(operator, 4.0) as dead:
        cluster.apply(segments=1)
        wait_for(lambda: len(dead) >= 5, "the operator was killed five times", 90)
    cluster.wait_phase("Running", timeout=120)
    cluster.patch({"deletionPolicy": "Delete"})
    with killed_every(operator, 10.0):
        cluster.delete()
    assert not namespace.list("pods", "pgherd.io/cluster=fresh")
    wait_for(lambda: not namespace.list("pvc", "pgherd.io/cluster=fresh"), "the volumes are gone")


def test_killed_while_it_grows_shrinks_and_rolls(shop: Cluster, operator: Namespace) -> None:
    with writers(shop) as at_work:
        for count in (3, 2):
            with killed_every(operator, 7.0) as dead:
                shop.namespace.kubectl("scale", f"pgc/{shop.name}", f"--replicas={count}")
                wait_for(lambda dead=dead: len(dead) >= 4, "the operator was killed four times", 90)  # type: ignore[misc]
            status = shop.wait_phase("Running", timeout=240)
            assert sum(1 for group in status["groups"] if group["shards"]) == count
            at_work.go_on()
        before = {pod["metadata"]["uid"] for pod in shop.pods()}
        with killed_every(operator, 7.0) as dead:
            small = {"resources": {"cpu": "50m", "memory": "288Mi"}}
            shop.patch({"coordinator": small, "segments": small})
            wait_for(lambda: len(dead) >= 4, "the operator was killed four times", 90)
        wait_for(
            lambda: not before & {pod["metadata"]["uid"] for pod in shop.pods()}, "all pods are new", 240
        )
        shop.wait_phase("Running", timeout=120)
        at_work.go_on()
        final = at_work.finish()
    print(final)


def test_two_operators_never_work_at_once(shop: Cluster, operator: Namespace) -> None:
    """A second one waits, and takes over when the first is gone."""

    def holder() -> str:
        [lease] = operator.list("leases")
        return str(lease["spec"].get("holderIdentity") or "")

    first = holder()
    assert first in [pod["metadata"]["name"] for pod in operator.list("pods")]
    operator.kubectl("scale", "deployment/pgherd-operator", "--replicas=2")
    try:
        others = wait_for(
            lambda: [
                pod["metadata"]["name"]
                for pod in operator.list("pods")
                if pod["metadata"]["name"] != first and pod["status"]["phase"] == "Running"
            ],
            "there are two",
        )
        said = f"{first} has it"
        wait_for(lambda: said in operator.kubectl("logs", others[0]), "the second one says that it waits")
        assert holder() == first
        operator.kubectl("delete", "pod", first, "--grace-period=0", "--force")
        wait_for(lambda: holder() not in ("", first), "another one has taken over", 45)
    finally:
        operator.kubectl("scale", "deployment/pgherd-operator", "--replicas=1")
    wait_for(lambda: len(operator.list("pods")) == 1, "one is left")
    shop.patch({"postgres": {"parameters": {"work_mem": "7MB"}}})
    member = shop.member("segment-1", "primary")
    wait_for(lambda: shop.psql(member, "SHOW work_mem") == "7MB", "the wish is fulfilled", 90)
