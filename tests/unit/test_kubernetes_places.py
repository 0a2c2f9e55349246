"""Repairs on Kubernetes when the node dies on which one works: on which volume it goes on, and that only what is in
nobody's place is given up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgherd.backup import repair
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import Member
from pgherd.platform.base import Lost
from pgherd.platform.kubernetes import nodes, rebuilt, stands
from pgherd.platform.kubernetes.machines import PodMachine
from pgherd.platform.kubernetes.places import LAST_NODE
from pgherd.platform.kubernetes.rebuilt import Record
from tests.support.kube_api import kube_api
from tests.unit.test_kubernetes_epochs import CORE, RUNNING, STATE
from tests.unit.test_kubernetes_rebuilt import Lab, begun, state

NODE = "/api/v1/nodes/n1"
OWN, MADE, NEXT = "data-shop-segment-1-0", "data1-shop-segment-1-0", "data2-shop-segment-1-0"
POD = f"{CORE}/pods/shop-segment-1-0-restore1"
BEGUN = {"startedAt": "2026-11-22T08:00:00+00:00", "steps": []}
REPORTS = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(stands, "START_SECONDS", 1.5)
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(PodMachine, "shell", lambda *arguments: b"")
    with kube_api() as (kube, api):
        yield Lab(kube, api)


def silent(town: Lab, seconds: float) -> None:
    since = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    condition = {"type": "Ready", "status": "Unknown", "lastTransitionTime": since}
    town.kube.put(NODE, {"kind": "Node", "status": {"conditions": [condition]}})


def lost(town: Lab, *steps: str, phase: str = "copying", seconds: float = 600.0) -> None:
    """A repair worked on a node, which died; the pod that was made again finds no place."""
    town.begin()
    town.bench.write("state", {**state(phase=phase), **BEGUN, "steps": list(steps)})
    town.kube.put(NODE, {"kind": "Node", "status": REPORTS})
    with pytest.raises(Unavailable, match="does not run yet"):
        town.bench.machine()
    pod = town.kube.objects[POD]
    town.kube.put(POD, {**pod, **RUNNING, "spec": {**pod["spec"], "nodeName": "n1"}})
    town.bench.machine()
    claim = town.kube.objects[f"{CORE}/persistentvolumeclaims/{MADE}"]
    assert claim["metadata"]["annotations"][LAST_NODE] == "n1"
    silent(town, seconds)
    with pytest.raises(Unavailable, match="does not run yet"):
        town.bench.machine()
    pod = town.kube.objects[POD]
    assert "nodeName" not in pod["spec"], "another one, on the same volume"
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    town.kube.put(POD, {**pod, "status": {"conditions": [refused]}})


def go_on(town: Lab) -> None:
    """A try of a repair, on a bench of its own as whoever comes next has."""

    class Copying(repair.Repair):
        def _carry_on(self) -> None:
            self._site.bench.machine()

    site: Any = type(
        "Site", (), {"name": "shop", "title": "segment-1", "bench": town.bench, "stopping": bool}
    )
    Copying(site).run()


def test_what_is_lost_is_made_anew_in_an_epoch_of_its_own() -> None:
    record = begun().told(state(), accept=True)
    again = record.renewed(2, state(steps=[]))
    assert (again.own, again.made, again.kept, again.id, again.accept) == (None, 2, None, "a", True)
    assert again.to_go(0) == [1]
    assert rebuilt.own({0: {1: again}}, 0).of(1) == 0
    second = (
        Record(own=1, spent=(0,), past=(2,)).begun(rebuilt.Wish("b"), 3, state("b")).renewed(4, state("b"))
    )
    assert (second.own, second.to_go(0)) == (1, [0, 3])


def test_a_repair_whose_volume_is_bound_to_a_dead_node_begins_anew_on_another_one(town: Lab) -> None:
    lost(town, "copied", "replayed")
    with pytest.raises(Lost, match=f"{MADE} was used on node n1, which is silent"):
        town.bench.machine()
    assert MADE in town.claims(), "nothing goes before it is written down"
    with pytest.raises(Lost):
        go_on(town)
    record = town.record()
    assert (record.own, record.made, record.spent, record.id) == (None, 2, (1,), "a")
    told = record.state or {}
    assert (told["steps"], told["phase"], told["startedAt"]) == ([], "copying", BEGUN["startedAt"])
    assert "was used on node n1" in told["waits"]
    assert town.claims() == ["data-shop-coordinator-0", OWN, MADE]
    # Killed here: whoever comes next has it all before him.
    town.align()
    assert town.claims() == ["data-shop-coordinator-0", OWN]
    assert town.pods() == ["shop-segment-1-0"]
    with pytest.raises(Unavailable, match="shop-segment-1-0-restore2 does not run yet"):
        go_on(town)
    assert town.claims() == ["data-shop-coordinator-0", OWN, NEXT]
    assert town.record().made == 2


def test_a_place_is_given_up_once(town: Lab) -> None:
    lost(town)
    late = town.bench
    before = late._record()
    with pytest.raises(Lost):
        go_on(town)
    late._record = lambda *, asked=False: town.record() if asked else before  # type: ignore[method-assign]
    late.renew(state(steps=[]))
    assert (town.record().made, town.record().spent) == (2, (1,))
    town.bench.drop()
    late.renew(state(steps=[]))
    assert town.record().made is None, "what was given up does not come back"


@pytest.mark.parametrize("seconds", [100.0, 600.0])
def test_until_then_the_node_is_waited_for(town: Lab, seconds: float) -> None:
    lost(town, seconds=seconds)
    if seconds > 300:
        town.kube.put(NODE, {"kind": "Node", "status": REPORTS})
    with pytest.raises(Unavailable, match="Unschedulable: 0/3 nodes") as waits:
        go_on(town)
    assert not isinstance(waits.value, Lost)
    assert (town.record().made, town.record().spent) == (1, ())


def test_members_that_wait_for_what_was_made_go_on_waiting_and_that_can_be_called_off(town: Lab) -> None:
    lost(town, "copied", "replayed", "judged", "settled", phase="placing")
    with pytest.raises(Lost):
        go_on(town)
    record = town.record()
    assert (record.made, record.spent) == (1, ())
    told = record.state or {}
    assert (told["phase"], told["steps"][-1]) == ("placing", "settled")
    assert "call the repair off and ask for another one" in told["waits"]
    town.annotate({})
    go_on(town)
    town.align()
    assert town.claims() == ["data-shop-coordinator-0", OWN]


def test_a_restore_gives_up_no_volume_that_a_repair_has_made(town: Lab) -> None:
    """Whatever is written down of a restore: numbers of repairs are nobody else's."""
    town.begin()
    town.make()
    town.place()
    data = town.kube.objects[STATE]["data"]
    for epoch in (0, 1):
        restore = json.dumps({"phase": "copying", "inPlace": True, "id": "r", "epoch": epoch, "kept": 7})
        town.kube.put(STATE, {**town.kube.objects[STATE], "data": {**data, "state.json": restore}})
        with pytest.raises(PgherdError, match="its volumes stay"):
            town.platform.workshop("shop").discard(Member("shop", 1, 0))
    assert town.claims() == ["data-shop-coordinator-0", OWN, MADE]


def place_on_a_dead_node(town: Lab, *, seconds: float, made: float) -> None:
    """A repair's pod was bound to a node that has been silent for so long, that long ago; nobody has looked since."""
    town.begin()
    with pytest.raises(Unavailable, match="does not run yet"):
        town.bench.machine()
    pod = town.kube.objects[POD]
    born = (datetime.now(UTC) - timedelta(seconds=made)).isoformat()
    metadata = {**pod["metadata"], "creationTimestamp": born}
    town.kube.put(POD, {**pod, "metadata": metadata, "spec": {**pod["spec"], "nodeName": "n1"}})
    silent(town, seconds)


def test_where_a_pod_was_is_known_though_nobody_looked_while_its_node_lived(town: Lab) -> None:
    place_on_a_dead_node(town, seconds=100.0, made=200.0)
    with pytest.raises(Unavailable, match="does not run yet"):
        town.bench.machine()
    claim = town.kube.objects[f"{CORE}/persistentvolumeclaims/{MADE}"]
    assert claim["metadata"]["annotations"][LAST_NODE] == "n1"
    assert "nodeName" not in town.kube.objects[POD]["spec"], "it was made again"


@pytest.mark.parametrize(("seconds", "is_lost"), [(100.0, False), (600.0, True)])
def test_a_pod_that_is_sent_to_the_dead_node_again_is_not_made_again_and_again(
    town: Lab, seconds: float, is_lost: bool
) -> None:
    """As it is where every taint is tolerated and the volume can't leave its node."""
    place_on_a_dead_node(town, seconds=seconds, made=seconds / 2)
    before = town.kube.objects[POD]["metadata"]["uid"]
    with pytest.raises(Unavailable, match="was used on node n1" if is_lost else "n1 does not report") as told:
        town.bench.machine()
    assert isinstance(told.value, Lost) == is_lost
    assert town.kube.objects[POD]["metadata"]["uid"] == before


def test_what_is_left_of_a_repair_goes_though_its_annotation_can_not_be_withdrawn(
    town: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.begin()
    town.make()
    town.bench.write("state", state(phase="failed"))
    town.bench.drop()

    def refuse(*arguments: object) -> None:
        raise PgherdError("admission webhook denied the request")

    monkeypatch.setattr(town.platform, "withdraw_repair", refuse)
    with pytest.raises(PgherdError, match="denied the request"):
        town.bench.tidy()
    assert MADE not in town.claims()
