"""The operator is killed wherever it is about to do something or has just done it; what was asked for is done all the
same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from pgherd.operations.runner import crash_points
from tests.kubernetes.kube import ENGINE, Cluster, KubectlError, Namespace, scale_operator, wait_for
from tests.kubernetes.writer import writers
from tests.support.citus import SEEN_BY_CHANCE

pytestmark = pytest.mark.kubernetes

LOG = "/tmp/crashes"
#: What kills the operator must not end its container: Kubernetes would wait longer after each time.
RESTART = f"""\
trap 'kill $!; wait $!; exit' TERM
touch {LOG}
while true; do python3 -m pgherd.operator & wait $!; done
"""


def around(*steps: str) -> list[str]:
    """The places just before and just after these steps of the control loop."""
    return [f"step:{step}:{moment}" for step in steps for moment in ("started", "done")]


FOUNDING = around("StartMember", "Initialise", "AdmitFirst", "RecordMembers")
ROLLING = around("TryMember", "ReplaceMember", "Switchover")
RESTARTING = around("ApplyConfig", "RestartMember")
GROWING = ["statefulset:orphaned"]
ASKED = around("RequestOperation", "RemoveMember")
DELETING = around("StopMember", "Forget")
#: A move of fdw cleans up as far as that is possible at once; what is left is done from its records. Of a move of Citus
#: the phases are seen by chance.
BY_CHANCE = SEEN_BY_CHANCE if ENGINE == "citus" else {"cleaned"}
OPERATIONS = [
    point
    for kind in ("expand", "shrink")
    for point in crash_points(kind)
    if not (":move:" in point and point.rpartition(":")[2] in BY_CHANCE)
]


@pytest.fixture(scope="module")
def crashing(operator: Namespace) -> Iterator[Namespace]:
    """The operator's namespace; it dies by SIGKILL once at each place."""
    everywhere = ",".join([*FOUNDING, *ROLLING, *RESTARTING, *GROWING, *DELETING, *OPERATIONS, *ASKED])
    container = {
        "name": "operator",
        "command": ["sh", "-c", RESTART],
        "env": [
            {"name": "PGHERD_CRASH_AT", "value": everywhere},
            {"name": "PGHERD_CRASH_LOG", "value": LOG},
        ],
    }
    with patched(operator, container):
        yield operator


def kill_operator(operator: Namespace) -> list[str]:
    """Kill the operator's pod without warning; its name."""
    pods = [
        pod["metadata"]["name"] for pod in operator.list("pods", "app.kubernetes.io/name=pgherd-operator")
    ]
    for name in pods:
        operator.kubectl("delete", "pod", name, "--grace-period=0", "--force", check=False)
    return pods


@contextmanager
def patched(operator: Namespace, container: Mapping[str, object]) -> Iterator[None]:
    """The operator runs so as long as the block lasts, and alone: whose journal is read is the one that works."""
    change = {"spec": {"template": {"spec": {"containers": [container]}}}}
    operator.kubectl("patch", "deployment", "pgherd-operator", "--patch", json.dumps(change))
    rolled_out = ("rollout", "status", "deployment/pgherd-operator", "--timeout=120s")
    scale_operator(operator, 1)
    try:
        operator.kubectl(*rolled_out)
        yield
    finally:
        operator.kubectl("rollout", "undo", "deployment/pgherd-operator")
        scale_operator(operator)
        operator.kubectl(*rolled_out)


def survived(operator: Namespace, *points: str) -> None:
    """It has been killed at all these places."""
    seen = set[str]()

    def are_there() -> bool:
        try:
            text = operator.kubectl("exec", "deployment/pgherd-operator", "--", "cat", LOG)
        except KubectlError:
            return False
        seen.update(text.split())
        return set(points) <= seen

    try:
        wait_for(are_there, "the operator was killed everywhere", 30)
    except AssertionError as error:
        raise AssertionError(f"{error}; not at {sorted(set(points) - seen)}") from None


@pytest.fixture(scope="module")
def shop(crashing: Namespace, namespace: Namespace) -> Iterator[Cluster]:
    """Two segments with standbys, made by an operator that dies all the time."""
    cluster = Cluster(namespace, "shop")
    cluster.apply()
    cluster.wait_phase("Running", timeout=300)
    survived(crashing, *FOUNDING)
    yield cluster
    cluster.purge()
    assert not namespace.list("pods", "pgherd.io/cluster=shop")
    wait_for(lambda: not namespace.list("pvc", "pgherd.io/cluster=shop"), "the volumes are gone")
    survived(crashing, *DELETING)


def test_killed_at_every_step_of_growing_and_shrinking(shop: Cluster, crashing: Namespace) -> None:
    with writers(shop) as at_work:
        for count in (3, 2):
            shop.namespace.kubectl("scale", f"pgc/{shop.name}", f"--replicas={count}")
            status = shop.wait_phase("Running", timeout=400)
            assert sum(1 for group in status["groups"] if group["shards"]) == count
            at_work.go_on()
        final = at_work.finish()
    print(final)
    assert not final["errors"]
    survived(crashing, *OPERATIONS, *ASKED)


def test_killed_at_every_step_of_a_rolling_change(shop: Cluster, crashing: Namespace) -> None:
    before = {pod["metadata"]["uid"] for pod in shop.pods()}
    with writers(shop) as at_work:
        small = {"resources": {"cpu": "50m", "memory": "288Mi"}}
        shop.patch({"coordinator": small, "segments": small})
        wait_for(
            lambda: not before & {pod["metadata"]["uid"] for pod in shop.pods()}, "all pods are new", 300
        )
        shop.wait_phase("Running", timeout=120)
        at_work.go_on()
        final = at_work.finish()
    print(final)
    survived(crashing, *ROLLING)


def test_killed_at_every_step_of_a_change_that_needs_a_restart(shop: Cluster, crashing: Namespace) -> None:
    with writers(shop) as at_work:
        shop.patch({"postgres": {"parameters": {"max_connections": 123}}})

        def is_everywhere() -> bool:
            return all(
                shop.psql(pod["metadata"]["name"], "SHOW max_connections") == "123" for pod in shop.pods()
            )

        wait_for(is_everywhere, "all servers have the new limit", 240, every=2)
        shop.wait_phase("Running", timeout=120)
        at_work.go_on()
        final = at_work.finish()
    print(final)
    survived(crashing, *RESTARTING)


def test_killed_between_taking_a_statefulset_away_and_making_it_anew(
    shop: Cluster, crashing: Namespace
) -> None:
    before = {pod["metadata"]["uid"] for pod in shop.pods()}
    shop.patch({"segments": {"storage": {"size": "2Gi"}}})

    def grown() -> bool:
        claims = shop.namespace.list("pvc", f"pgherd.io/cluster={shop.name}")
        segments = [claim for claim in claims if "-segment-" in claim["metadata"]["name"]]
        return {each["status"].get("capacity", {}).get("storage") for each in segments} == {"2Gi"}

    wait_for(grown, "the segments' volumes have grown", 120)
    survived(crashing, *GROWING)
    # Its members serve all the while, so that the phase may say Running before the operator is back.
    wait_for(
        lambda: len(shop.namespace.list("sts", f"pgherd.io/cluster={shop.name}")) == 3,
        "every group has its StatefulSet again",
        120,
    )
    shop.wait_phase("Running", timeout=120)
    assert before == {pod["metadata"]["uid"] for pod in shop.pods()}, "members went on"
