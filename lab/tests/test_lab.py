"""The lab does what it says: a cluster that works, nodes that can be broken and mended, and nothing left behind.

Needs root, and a machine without a lab; every test runs against one real cluster. `make lab-test` runs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import cgroups, cluster, components, debian
from lab.errors import LabError
from lab.settings import Settings
from lab.shell import run, wait_until
from lab.tests.footprint import footprint, leftovers

pytestmark = pytest.mark.kubernetes

ROOT = Path(__file__).parents[2]
WORKLOAD = Path(__file__).parent / "workload.yaml"
UP_SECONDS = 60.0
PODS = ["herd-0", "herd-1", "herd-2"]


def lab(*words: str) -> str:
    """The command line, as a person would use it."""
    return run([sys.executable, "-m", "lab", *words], cwd=ROOT, timeout=3600)


@pytest.fixture(scope="module")
def settings() -> Settings:
    found = Settings.from_environment()
    if cgroups.exists() or found.state.exists():
        pytest.fail("a lab is up: `make lab-down` first, these tests need it from its beginning to its end")
    return found


@pytest.fixture(scope="module")
def before(settings: Settings) -> dict[str, set[str]]:
    """What the machine has without a lab; taken when all components are built and all packages installed."""
    debian.install()
    components.build(settings)
    return footprint(settings)


@pytest.fixture(scope="module")
def up(settings: Settings, before: dict[str, set[str]]) -> Iterator[float]:
    """A lab with the workload running; how many seconds `lab up` took."""
    begin = time.monotonic()
    try:
        lab("up")
        seconds = time.monotonic() - begin
        cluster.kubectl(settings, "apply", "--filename", str(WORKLOAD))
        eventually(lambda: ready_pods(settings) == PODS, "the workload to be ready", 60)
        yield seconds
    finally:
        lab("down")


def eventually(condition: Callable[[], bool], what: str, deadline: float = 90) -> float:
    """Wait for a condition; how many seconds it took. A question that fails is asked again."""

    def holds() -> bool:
        try:
            return condition()
        except LabError:
            return False

    begin = time.monotonic()
    wait_until(holds, what, deadline=deadline, pause=0.3)
    return time.monotonic() - begin


def get(settings: Settings, *words: str) -> Any:
    return json.loads(cluster.kubectl(settings, "get", *words, "--namespace=lab-test", "--output=json"))


def pods(settings: Settings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(settings, "pods", "--selector=app=herd")["items"]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def is_pod_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def ready_pods(settings: Settings) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods(settings) if is_pod_ready(pod)]


def tool(settings: Settings, pod: str, *words: str) -> str:
    """The lab's tool in a pod: `kubectl exec`."""
    return cluster.kubectl(settings, "exec", "--namespace=lab-test", pod, "--", "/tool", *words)


def node_of(settings: Settings, pod: str) -> int:
    """The number of the node a pod runs on."""
    return int(get(settings, "pod", pod)["spec"]["nodeName"].removeprefix("node"))


def pod_on(settings: Settings, number: int) -> str:
    """The workload's pod on a node."""
    return next(name for name in PODS if node_of(settings, name) == number)


def answers_of_service(settings: Settings, pod: str) -> set[str]:
    """Who answers when a pod asks the workload's service again and again."""
    return {tool(settings, pod, "get", "http://front/").strip() for _ in range(20)}


def say(text: str) -> None:
    print(f"\n  measured: {text}", flush=True)


def test_it_is_ready_within_a_minute(up: float) -> None:
    say(f"ready {up:.1f} s after `lab up`")
    assert up <= UP_SECONDS


def test_three_nodes_are_ready_and_say_their_version(settings: Settings, up: float) -> None:
    nodes = get(settings, "nodes")["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["node1", "node2", "node3"]
    assert all(cluster.is_ready(settings, node) for node in settings.nodes)
    assert all(node["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.34.") for node in nodes)


def test_pods_that_avoid_each_other_run_on_different_nodes(settings: Settings, up: float) -> None:
    assert {node_of(settings, name) for name in PODS} == {1, 2, 3}


def test_a_name_of_a_service_resolves_in_a_pod(settings: Settings, up: float) -> None:
    address = get(settings, "service", "front")["spec"]["clusterIP"]
    assert tool(settings, "herd-0", "resolve", "front").split() == [address]
    own = get(settings, "pod", "herd-2")["status"]["podIP"]
    assert tool(settings, "herd-0", "resolve", "herd-2.herd.lab-test.svc.cluster.local").split() == [own]


def test_every_pod_reaches_every_pod(settings: Settings, up: float) -> None:
    for asking in PODS:
        for asked in PODS:
            assert tool(settings, asking, "get", f"http://{asked}.herd:8080/").strip() == asked


def test_a_service_spreads_over_the_pods_of_all_nodes(settings: Settings, up: float) -> None:
    assert answers_of_service(settings, "herd-0") == set(PODS)


def test_logs_are_there(settings: Settings, up: float) -> None:
    for name in PODS:
        assert "serves on :8080" in cluster.kubectl(settings, "logs", "--namespace=lab-test", name)


def test_the_host_reaches_pods_only_when_told_to(settings: Settings, up: float) -> None:
    address = get(settings, "pod", "herd-1")["status"]["podIP"]
    assert lab("run", str(settings.bin / "tool"), "get", f"http://{address}:8080/").strip() == "herd-1"


def test_a_volume_outlives_its_pod_and_follows_it(settings: Settings, up: float) -> None:
    tool(settings, "herd-0", "write", "/data/kept", "every acknowledged row")
    first = get(settings, "pod", "herd-0")["metadata"]["uid"]
    cluster.kubectl(settings, "delete", "pod", "herd-0", "--namespace=lab-test")
    eventually(
        lambda: get(settings, "pod", "herd-0")["metadata"]["uid"] != first and ready_pods(settings) == PODS,
        "another herd-0",
    )
    assert tool(settings, "herd-0", "read", "/data/kept") == "every acknowledged row"


def test_a_volume_grows(settings: Settings, up: float) -> None:
    wish = '{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}'
    cluster.kubectl(settings, "patch", "pvc", "data-herd-1", "--namespace=lab-test", "--patch", wish)
    eventually(
        lambda: get(settings, "pvc", "data-herd-1")["status"]["capacity"]["storage"] == "2Gi", "2Gi", 30
    )


def test_a_volume_goes_when_its_claim_goes(settings: Settings, up: float) -> None:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "short", "namespace": "lab-test"}
    wish = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
    cluster.kubectl(settings, "apply", "--filename=-", stdin=json.dumps(wish))
    eventually(
        lambda: get(settings, "pvc", "short")["status"]["phase"] == "Bound", "the claim to be bound", 30
    )
    folder = settings.volumes / get(settings, "pvc", "short")["spec"]["volumeName"]
    assert folder.is_dir()
    cluster.kubectl(settings, "delete", "pvc", "short", "--namespace=lab-test")
    eventually(lambda: not folder.exists(), "its directory to go", 30)


def test_privileged_pods_are_refused_where_the_namespace_says_so(settings: Settings, up: float) -> None:
    with pytest.raises(LabError, match="violates PodSecurity"):
        cluster.kubectl(settings, "run", "bad", "--image=localhost/lab-tool:1", "--namespace=lab-test")


def test_an_image_archive_is_brought_into_all_nodes(settings: Settings, up: float) -> None:
    assert "localhost/lab-tool:1" in lab("load-image", str(settings.images / "tool.tar"))
    lab("tag-image", "localhost/lab-tool:1", "localhost/lab-tool:2")


def test_a_file_that_is_no_image_is_refused_by_name(up: float) -> None:
    with pytest.raises(LabError, match="can't be brought into node"):
        lab("load-image", str(ROOT / "lab" / "README.md"))


def test_a_cut_node_lives_on_alone_and_comes_back_when_mended(settings: Settings, up: float) -> None:
    node = settings.node(2)
    cut, other = pod_on(settings, 2), pod_on(settings, 1)
    address = get(settings, "pod", cut)["status"]["podIP"]
    started = get(settings, "pod", cut)["status"]["containerStatuses"][0]["containerID"]
    lab("cut", "2")
    with pytest.raises(LabError):
        tool(settings, other, "get", f"http://{address}:8080/")
    say(
        f"NotReady {eventually(lambda: not cluster.is_ready(settings, node), 'node2 NotReady'):.1f} s after the cut"
    )
    lab("mend", "2")
    say(
        f"Ready {eventually(lambda: cluster.is_ready(settings, node), 'node2 Ready'):.1f} s after mending the link"
    )
    eventually(lambda: ready_pods(settings) == PODS, "all pods ready")
    assert tool(settings, other, "get", f"http://{address}:8080/").strip() == cut
    assert get(settings, "pod", cut)["status"]["containerStatuses"][0]["containerID"] == started


def test_a_stopped_kubelet_leaves_its_pods_running(settings: Settings, up: float) -> None:
    node = settings.node(1)
    silent, asking = pod_on(settings, 1), pod_on(settings, 3)
    address = get(settings, "pod", silent)["status"]["podIP"]
    lab("stop-kubelet", "1")
    assert next(row.stopped for row in cluster.status(settings) if row.machine == node) == ["kubelet"]
    eventually(lambda: not cluster.is_ready(settings, node), "node1 NotReady")
    assert tool(settings, asking, "get", f"http://{address}:8080/").strip() == silent
    lab("start-kubelet", "1")
    eventually(lambda: ready_pods(settings) == PODS, "all pods ready")


def test_a_killed_node_is_noticed_and_runs_its_pods_again_when_mended(settings: Settings, up: float) -> None:
    node = settings.node(3)
    dead, asking = pod_on(settings, 3), pod_on(settings, 1)
    tool(settings, dead, "write", "/data/kept", "through a power failure")
    lab("kill-node", "3")
    assert not cgroups.processes(node.cgroup)
    say(
        f"NotReady {eventually(lambda: not cluster.is_ready(settings, node), 'node3 NotReady'):.1f} s after the kill"
    )
    eventually(lambda: dead not in ready_pods(settings), "its pod not ready")
    survivors = set(PODS) - {dead}
    eventually(lambda: answers_of_service(settings, asking) == survivors, "the service to be rid of it", 30)
    lab("mend", "3")
    say(
        f"Ready {eventually(lambda: cluster.is_ready(settings, node), 'node3 Ready'):.1f} s after switching it on"
    )
    say(f"its pod {eventually(lambda: ready_pods(settings) == PODS, 'all pods ready'):.1f} s later")
    assert tool(settings, dead, "read", "/data/kept") == "through a power failure"


def test_the_api_server_can_be_away(settings: Settings, up: float) -> None:
    lab("stop-api")
    with pytest.raises(LabError):
        eventually(lambda: bool(get(settings, "nodes")), "an answer", 3)
    lab("start-api")
    eventually(lambda: ready_pods(settings) == PODS, "all pods ready")


def test_coming_up_again_changes_nothing(settings: Settings, up: float) -> None:
    assert "up already" in lab("up")
    assert ready_pods(settings) == PODS


@pytest.mark.parametrize("words", [("cut", "4"), ("kill-node", "0"), ("load-image", "/does/not/exist")])
def test_a_wish_that_cannot_be_is_refused_in_one_line(up: float, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_going_down_leaves_nothing(settings: Settings, before: dict[str, set[str]], up: float) -> None:
    begin = time.monotonic()
    lab("down")
    say(f"down in {time.monotonic() - begin:.1f} s")
    assert leftovers(before, footprint(settings)) == {}


@pytest.mark.parametrize(
    "moment",
    ["pki/ca.crt", "machines/control-plane/booted", "machines/node2/booted", "machines/node3/equipped"],
)
def test_going_down_after_a_killed_up_leaves_nothing(
    settings: Settings, before: dict[str, set[str]], moment: str
) -> None:
    with subprocess.Popen([sys.executable, "-m", "lab", "up"], cwd=ROOT, stdout=subprocess.DEVNULL) as coming:
        wait_until((settings.state / moment).exists, moment, deadline=120, pause=0.01)
        os.kill(coming.pid, signal.SIGKILL)
    lab("down")
    assert leftovers(before, footprint(settings)) == {}
