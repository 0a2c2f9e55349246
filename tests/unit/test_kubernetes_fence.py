"""When a node is fenced: only one that is silent, and of which somebody said since then that it is off."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.operator.main import Operator
from pgherd.platform.kubernetes.fence import (
    FENCED,
    OUT_OF_SERVICE,
    POWERED_OFF,
    SHUT_DOWN,
    Fence,
    fenced,
    unfenced,
    who_says_off,
)
from pgherd.platform.kubernetes.platform import Defaults
from tests.support.kube_api import kube_api

SINCE = "2026-01-01T10:00:00Z"
OTHER = {"key": "other", "value": "x", "effect": "NoSchedule"}


def node(
    *, ready: str = "Unknown", off: str | None = None, taints: tuple[dict[str, Any], ...] = (OTHER,)
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "n1",
            "resourceVersion": "7",
            "annotations": {POWERED_OFF: off} if off else {},
        },
        "spec": {"taints": list(taints)},
        "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": SINCE}]},
    }


@pytest.mark.parametrize("off", [None, "2026-01-01T09:59:59Z", "yes", "2026-01-01T10:05:00", ""])
def test_a_silent_node_is_not_off_by_itself_nor_by_what_was_said_before(off: str | None) -> None:
    assert who_says_off(node(off=off)) == ""


@pytest.mark.parametrize(
    "off", ["2026-01-01T10:00:00Z", "2026-01-01T10:05:00+00:00", "2026-01-01T12:05:00+02:00"]
)
def test_a_silent_node_is_off_once_somebody_said_so(off: str) -> None:
    assert off in who_says_off(node(off=off))


def test_the_clouds_word_counts() -> None:
    assert "cloud" in who_says_off(node(taints=({"key": SHUT_DOWN, "effect": "NoSchedule"},)))


@pytest.mark.parametrize("ready", ["True", "False"])
def test_a_node_that_reports_is_not_off_whatever_is_said(ready: str) -> None:
    assert who_says_off(node(ready=ready, off="2026-01-01T10:05:00Z")) == ""


def test_a_fence_goes_up_and_comes_down_and_leaves_other_taints() -> None:
    up = fenced(node())
    assert up["spec"]["taints"] == [OTHER, OUT_OF_SERVICE]
    assert up["metadata"] == {"labels": {FENCED: "true"}, "resourceVersion": "7"}
    theirs = {**OUT_OF_SERVICE, "value": "nodeshutdown"}
    down = unfenced(node(taints=(OTHER, OUT_OF_SERVICE, theirs)))
    assert down["spec"]["taints"] == [OTHER, theirs]
    assert down["metadata"]["annotations"] == {POWERED_OFF: None}


class Nodes:
    """The part of the API that a fence uses."""

    def __init__(self, found: dict[str, Any], marked: bool = False) -> None:
        self.found, self.marked = found, marked
        self.patches: list[dict[str, Any]] = []

    def node(self, name: str) -> dict[str, Any]:
        return self.found

    def nodes(self, labels: dict[str, str]) -> list[dict[str, Any]]:
        return [self.found] if self.marked else []

    def merge_node(self, name: str, patch: dict[str, Any]) -> None:
        self.patches.append(patch)


POD = {"metadata": {"name": "shop-segment-1-0"}, "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"}}


def looked(api: Nodes, *, alive: bool = False) -> list[str]:
    told: list[str] = []
    Fence(api, lambda address: alive).look("shop", [POD], told.append)  # type: ignore[arg-type]
    return told


def test_a_node_that_nobody_called_off_is_waited_for_and_told_how() -> None:
    api = Nodes(node())
    [told] = looked(api)
    assert "kubectl annotate node n1" in told
    assert not api.patches


def test_a_node_on_which_a_member_answers_is_not_fenced() -> None:
    api = Nodes(node(off="2026-01-01T10:05:00Z"))
    [told] = looked(api, alive=True)
    assert told.startswith("refuse to fence node n1")
    assert not api.patches


@pytest.mark.parametrize(("ready", "down"), [("True", True), ("Unknown", False)])
def test_a_fence_comes_down_though_no_cluster_wants_it_any_more(ready: str, down: bool) -> None:
    with kube_api() as (kube, api):
        fenced_one = node(ready=ready, taints=(OTHER, OUT_OF_SERVICE))
        fenced_one["metadata"] = {"labels": {FENCED: "true"}}
        kube.put("/api/v1/nodes/n1", fenced_one)
        kube.put("/api/v1/nodes/n2", node(ready="True", taints=(OUT_OF_SERVICE,)))  # somebody else's
        Operator(api, "prod", Defaults()).lower_fences()
        assert (kube.objects["/api/v1/nodes/n1"]["spec"]["taints"] == [OTHER]) is down
        assert kube.objects["/api/v1/nodes/n2"]["spec"]["taints"] == [OUT_OF_SERVICE]


def test_a_node_that_is_off_is_fenced_once_and_freed_when_it_reports() -> None:
    off = node(off="2026-01-01T10:05:00Z")
    api = Nodes(off)
    assert looked(api)[0].startswith("fence node n1")
    assert api.patches == [fenced(off)]
    again = Nodes(node(off="2026-01-01T10:05:00Z", taints=(OUT_OF_SERVICE,)), marked=True)
    assert looked(again) == []
    back = Nodes(node(ready="True", taints=(OUT_OF_SERVICE,)), marked=True)
    assert looked(back) == ["unfence node n1: it reports again"]
    assert back.patches[0]["spec"]["taints"] == []
