"""The operator is killed again and again while it works; what was asked for is done all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kubernetes.kube import Cluster, Namespace, wait_for
from tests.kubernetes.writer import writers

pytestmark = pytest.mark.kubernetes


@contextmanager
def killed_every(operator: Namespace, seconds: float) -> Iterator[list[str]]:
    """Kill the operator's pod without warning, over and over, until the block ends; gives the names of the dead."""
    stop, dead = threading.Event(), list[str]()

    def kill() -> None:
        while not stop.wait(seconds):
            for pod in operator.list("pods", "app.kubernetes.io/name=pgherd-operator"):
                name = pod["metadata"]["name"]
                operator.kubectl("delete", "pod", name, "--grace-period=0", "--force", check=False)
                dead.append(name)

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
    with killed_every(operator, 4.0):
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
