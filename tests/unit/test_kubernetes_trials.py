"""Trials: what is tried before a member is replaced, and what the answer means."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pgherd.model.spec import PostgresCluster, from_mapping
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names, pods, trials

MEMBER = Member("shop", 1, 0)


def declared(**segments: Any) -> PostgresCluster:
    return from_mapping(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresCluster",
            "metadata": {"name": "shop"},
            "spec": {"engine": "fdw", "segments": segments},
        },
        platform="kubernetes",
    )


def template(image: str = "members:1", **segments: Any) -> dict[str, Any]:
    made = pods.pod_template(declared(**segments), 1, image, "default", 0, 0)
    made["metadata"]["annotations"] = {names.TEMPLATE_ANNOTATION: f"{image} {segments}"}
    return made


def running(made_of: dict[str, Any], state: dict[str, Any] | None = None) -> dict[str, Any]:
    """The member's pod on node n1, made of this template."""
    return {
        "metadata": {**made_of["metadata"], "name": MEMBER.name},
        "spec": {**made_of["spec"], "nodeName": "n1"},
        "status": {"containerStatuses": [{"name": "postgres", "state": state or {"running": {}}}]},
    }


def trial(pod: dict[str, Any], wanted: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {**trials.trial_pod(declared(), MEMBER, pod, wanted, 17), "status": status}


OLD, NEW = template(), template("members:2")
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


def ended(code: int) -> dict[str, Any]:
    """A sidecar that somebody's webhook has put beside it goes on."""
    state = {"terminated": {"exitCode": code, "reason": "Error", "message": "it has no postgres"}}
    beside = {"name": "proxy", "state": {"running": {}}}
    return {"phase": "Running", "containerStatuses": [beside, {"name": "postgres", "state": state}]}


@pytest.mark.parametrize(
    ("status", "tried", "says"),
    [
        (ended(0), True, ""),
        ({"phase": "Pending"}, None, ""),
        (ended(2), False, "it has no postgres"),
        ({"phase": "Failed", "reason": "OutOfmemory"}, None, ""),
        (
            {
                "containerStatuses": [
                    {"name": "postgres", "state": {"waiting": {"reason": "ContainerCreating"}}}
                ]
            },
            None,
            "",
        ),
        (
            {"containerStatuses": [{"name": "postgres", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            None,
            "postgres.image",
        ),
        (
            {"conditions": [{**UNSCHEDULABLE, "message": "1 Insufficient cpu, 3 node(s) did not match"}]},
            None,
            "Insufficient cpu on its node n1: declare smaller resources, or standbys",
        ),
        (
            {"conditions": [{**UNSCHEDULABLE, "message": "4 node(s) did not match"}]},
            None,
            "its node n1 takes no such pod, nodeSelector or tolerations",
        ),
    ],
)
def test_what_became_of_a_trial_is_the_verdict(status: dict[str, Any], tried: bool | None, says: str) -> None:
    pod = running(OLD)
    found, why = trials.verdict(pod, NEW, trial(pod, NEW, **status), alone=True)
    assert found is tried
    assert says in why
    assert bool(why) == bool(says)


def test_nobody_knows_before_the_trial_of_just_this() -> None:
    pod = running(OLD)
    assert trials.verdict(pod, NEW, None, alone=True) == (None, "")
    other = trial(pod, template("members:3"), **ended(0))
    assert trials.verdict(pod, NEW, other, alone=True) == (None, "")
    moved = {**pod, "spec": {**pod["spec"], "nodeName": "n2"}}
    assert trials.verdict(moved, NEW, trial(pod, NEW, **ended(0)), alone=True) == (None, "")


def test_who_never_ran_needs_none() -> None:
    hanging = running(OLD, {"waiting": {"reason": "ImagePullBackOff"}})
    assert trials.verdict(hanging, NEW, None, alone=True) == (True, "")
    crashed = running(OLD, {"terminated": {"exitCode": 137}})
    assert trials.verdict(crashed, NEW, None, alone=True) == (None, "")


def test_a_standby_that_is_to_move_is_its_own_trial_a_lone_member_is_not() -> None:
    elsewhere = template(nodeSelector={"disk": "fast"})
    assert trials.verdict(running(OLD), elsewhere, None, alone=False) == (True, "")
    assert trials.verdict(running(OLD), elsewhere, None, alone=True) == (None, "")


def test_it_asks_the_same_node_for_what_is_more() -> None:
    wanted = template("members:2", resources={"cpu": "1500m", "memory": "3Gi"}, nodeSelector={"disk": "fast"})
    made = trials.trial_pod(declared(), MEMBER, running(OLD), wanted, 17)
    spec = made["spec"]
    [container] = spec["containers"]
    assert container["image"] == "members:2"
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": str(1 << 30)}
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert "n1" in str(spec["affinity"])
    assert "volumes" not in spec
    assert (
        "pgherd.io/group" not in made["metadata"]["labels"]
    )  # no Service, no StatefulSet takes it for a member
    less = trials.trial_pod(declared(), MEMBER, running(wanted), OLD, 17)
    assert less["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1m", "memory": "1"}


def test_it_goes_when_its_answer_is_of_no_use() -> None:
    pod, of_group = running(OLD), {"shop-segment-1": NEW}
    made = trial(pod, NEW)
    assert not trials.is_over([pod, made], made, of_group)
    assert trials.is_over([pod, made], made, {"shop-segment-1": OLD})
    assert trials.is_over([pod, made], made, {"shop-segment-1": template("members:3")})
    assert trials.is_over([made], made, of_group)
    turned_away = trial(pod, NEW, phase="Failed", reason="OutOfmemory")
    assert trials.is_over([pod, turned_away], turned_away, of_group)
    said_no = trial(pod, NEW, **ended(2))
    assert not trials.is_over([pod, said_no], said_no, of_group)


def test_the_script_finds_out_what_an_image_lacks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = trials.script(declared(), 99).replace("/dev/termination-log", str(log))
    done = subprocess.run(["/bin/sh", "-c", text], check=False)
    assert done.returncode == 2
    assert "it has no /usr/lib/postgresql/99/bin/postgres" in log.read_text()
