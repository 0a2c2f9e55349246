"""Changed parameters on Kubernetes: what members' own PostgreSQL says of them before Patroni hears of them."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgherd.errors import PgherdError, Unavailable
from pgherd.model.spec import PostgresCluster, to_mapping
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names, opinions, patroni_files, platform, programs
from pgherd.platform.kubernetes.machines import PodMachine
from pgherd.platform.kubernetes.opinions import Opinion, Opinions, Parameters, Refusals, Witnesses, ask
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.local import binaries
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_objects import cluster
from tests.unit.test_kubernetes_programs import Kubelet

IMAGE, OTHER = "pg:17.5", "pg:17.6"
STARTING: dict[str, Any] = {"waiting": {}}
ENDED = {"terminated": {"exitCode": 137, "finishedAt": "2026-01-01T10:00:00Z"}}


def declared(parameters: dict[str, Any] | None = None, **spec: Any) -> PostgresCluster:
    return cluster(postgres={"image": IMAGE, "parameters": parameters or {}}, **spec)


def running(
    name: str = "shop-segment-1-0",
    image: str = IMAGE,
    state: dict[str, Any] | None = None,
    ready: bool = True,
) -> dict[str, Any]:
    """A member's pod."""
    return {
        "metadata": {
            "name": name,
            "uid": f"uid of {name}",
            "labels": names.labels("shop", 1),
            "annotations": {names.TEMPLATE_ANNOTATION: f"of {image}"},
        },
        "spec": {"containers": [{"name": names.CONTAINER, "image": image}]},
        "status": {
            "containerStatuses": [{"name": names.CONTAINER, "state": state or {"running": {}}}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def placeless(name: str) -> dict[str, Any]:
    """A pod for which the scheduler knows no node."""
    found = running(name)
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {**found, "status": {"conditions": [why]}}


def template(image: str) -> dict[str, Any]:
    return {
        "metadata": {"annotations": {names.TEMPLATE_ANNOTATION: f"of {image}"}},
        "spec": {"containers": [{"name": names.CONTAINER, "image": image}]},
    }


class Members:
    """What they say, and who was asked."""

    def __init__(self, said: Refusals | None = None) -> None:
        self.said: Refusals = said or {}
        self.others: dict[str, Refusals] = {}
        self.dumb: set[str] = set()
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.opinions = Opinions(self.ask)

    def ask(self, pod: str, major: int, parameters: Parameters) -> Refusals:
        self.asked.append(pod)
        self.go_on.wait(20)
        if pod in self.dumb:
            raise Unavailable(f"{pod} does not answer")
        said = self.others.get(pod, self.said)
        return {name: told for name, told in said.items() if name in parameters}

    def of(
        self,
        before: PostgresCluster,
        now: PostgresCluster,
        *pods: dict[str, Any],
        image: str = IMAGE,
        templates: dict[str, Any] | None = None,
        volume: str = "Bound",
    ) -> Opinion:
        claims = [{"metadata": {"name": "data-shop-segment-1-0"}, "status": {"phase": volume}}]
        witnesses = Witnesses(pods or (running(),), claims, templates or {}, image)
        return self.opinions.of(before, now, witnesses, 17)


# what is taken up


def test_what_a_member_takes_is_taken_and_asked_once() -> None:
    members, before, now = Members(), declared(), declared({"work_mem": "64MB"})
    for _ in range(3):
        assert members.of(before, now) == Opinion(now)
    assert members.asked == ["shop-segment-1-0"]


def test_what_a_member_refuses_leaves_all_as_it_was() -> None:
    members = Members({"wrok_mem": ["unrecognized"], "timezone": ["invalid"]})
    before, now = declared(), declared({"wrok_mem": "4MB", "timezone": "Mars", "jit": False})
    found = members.of(before, now)
    assert found.cluster == before
    assert found.problems == [
        "spec.postgres.parameters.wrok_mem: unrecognized",
        "spec.postgres.parameters.timezone: invalid",
    ]


def test_nobody_is_asked_about_what_was_accepted_before() -> None:
    members = Members({"wrok_mem": ["unrecognized"]})
    before = declared({"wrok_mem": "4MB", "jit": "off"})
    for now in (
        declared({"WROK_MEM": "4MB"}),
        declared({"wrok_mem": "4MB", "jit": "off"}, durability="quorum"),
    ):
        assert members.of(before, now) == Opinion(now)
    assert members.asked == []


# who is asked


def test_a_member_that_can_not_be_asked_is_passed_over() -> None:
    members, now = Members(), declared({"jit": False})
    members.dumb.add("shop-segment-1-1")
    pods = running(ready=False), running("shop-segment-1-1"), running("shop-segment-1-0-trial")
    assert members.of(declared(), now, *pods) == Opinion(now)
    assert members.asked == ["shop-segment-1-1", "shop-segment-1-0"]


def test_where_nobody_answers_parameters_stay_as_they_were_and_everything_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members, before = Members(), declared({"Work_Mem": "4MB", "jit": False})
    now = declared({"work_mem": "8MB", "timezone": "UTC", "jit": False}, durability="quorum")
    members.dumb.add("shop-segment-1-0")
    for _ in range(3):
        found = members.of(before, now)
        assert found.cluster == declared({"Work_Mem": "4MB", "jit": False}, durability="quorum")
        assert found.problems == ()
        assert found.waits.startswith(
            "spec.postgres.parameters.work_mem, spec.postgres.parameters.timezone: "
        )
        assert "shop-segment-1-0 does not answer" in found.waits
    assert len(members.asked) == 1
    monkeypatch.setattr(opinions, "AGAIN_SECONDS", 0.0)
    members.dumb.clear()
    assert members.of(before, now) == Opinion(now)


def test_an_answer_that_takes_long_is_not_waited_for_but_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinions, "PATIENCE_SECONDS", 0.2)
    members, before, now = Members(), declared(), declared({"jit": False})
    members.go_on.clear()
    begin = time.monotonic()
    for _ in range(5):
        assert members.of(before, now).cluster == before
    assert time.monotonic() - begin < 1.0
    members.go_on.set()
    deadline = time.monotonic() + 20
    while members.of(before, now).waits:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(members.asked) == 1


@pytest.mark.parametrize(
    ("pods", "volume", "is_taken"),
    [
        ([running(state=STARTING)], "Bound", False),
        ([running(state=STARTING)], "Pending", True),  # nobody has any data yet
        ([running(state=ENDED)], "Bound", True),  # nothing runs that could be harmed, this may be the way out
        ([running(state=ENDED), running("shop-segment-1-1")], "Bound", False),
    ],
)
def test_where_members_failed_or_never_were_a_change_is_the_way_out(
    pods: list[dict[str, Any]], volume: str, is_taken: bool
) -> None:
    members, now = Members(), declared({"jit": False})
    members.dumb = {"shop-segment-1-0", "shop-segment-1-1"}
    assert bool(members.of(declared(), now, *pods, volume=volume).waits) is not is_taken


def test_where_the_rest_needs_the_parameters_it_waits_with_them() -> None:
    members = Members()
    members.dumb.add("shop-segment-1-0")
    before = declared({"shared_buffers": "8GB"}, segments={"resources": {"memory": "16Gi"}})
    now = declared({"shared_buffers": "1GB"}, segments={"resources": {"memory": "4Gi"}})
    found = members.of(before, now)
    assert found.cluster == before
    assert found.waits.endswith("all else that is declared needs it, and stays as before too")


def test_where_nobody_finds_a_place_what_needs_less_is_taken() -> None:
    members = Members()

    def of_size(buffers: str, memory: str) -> PostgresCluster:
        sized = {"resources": {"memory": memory}}
        return declared({"shared_buffers": buffers}, segments=sized, coordinator=sized)

    before, now = of_size("4GB", "8Gi"), of_size("512MB", "2Gi")
    assert members.of(before, now, placeless("shop-segment-1-0")) == Opinion(now)
    # Who has a place may start, and say what it thinks.
    for other in (running(state=STARTING), placeless("shop-segment-1-0-trial")):
        assert members.of(before, now, other).cluster == before
    dumb = running("shop-segment-2-0")
    members.dumb.add("shop-segment-2-0")
    assert members.of(before, now, placeless("shop-segment-1-0"), dumb).cluster == before
    found = members.of(before, of_size("512MB", "6Gi"), placeless("shop-segment-1-0"))
    assert found.waits
    assert found.cluster == of_size("4GB", "6Gi")


# libraries that are looked for elsewhere

ELSEWHERE = {"dynamic_library_path": "/opt/lib:$libdir"}
PRELOADED = {"shared_preload_libraries": "timescaledb"}


@pytest.mark.parametrize("path", [{}, {"dynamic_library_path": "/opt/other"}])
def test_libraries_that_are_looked_for_elsewhere_are_judged_anew(path: dict[str, Any]) -> None:
    members = Members({"shared_preload_libraries": ["there is no library timescaledb here"]})
    before, now = declared({**ELSEWHERE, **PRELOADED}), declared({**path, **PRELOADED})
    found = members.of(before, now)
    assert (found.cluster, len(found.problems)) == (before, 1)
    assert members.of(declared(ELSEWHERE), declared(path)) == Opinion(declared(path))


def test_libraries_that_wait_are_still_looked_for_where_they_are() -> None:
    members = Members({"shared_preload_libraries": ["there is no library timescaledb here"]})
    before = declared({**ELSEWHERE, **PRELOADED, "jit": True})
    now = cluster(postgres={"image": OTHER, "parameters": {**PRELOADED, "jit": False}})
    found = members.of(before, now, image=OTHER)
    kept = {**ELSEWHERE, **PRELOADED, "jit": False}
    assert found.cluster == cluster(postgres={"image": OTHER, "parameters": kept})
    assert found.waits.startswith(
        "spec.postgres.parameters.shared_preload_libraries, spec.postgres.parameters.dynamic_library_path: "
    )


# another image


def test_what_only_another_image_refuses_waits_until_nobody_runs_that_any_more() -> None:
    """Members of it start again before they are replaced: a primary hands over."""
    members, wanted = Members({"new_one": ["unrecognized"]}), {"new_one": "on", "jit": False}
    members.others["shop-segment-1-1"] = {}
    now = cluster(postgres={"image": OTHER, "parameters": wanted})
    without = cluster(postgres={"image": OTHER, "parameters": {"jit": False}})
    says = "members of another image still run, which say: spec.postgres.parameters.new_one: unrecognized"
    before, new = declared(), running("shop-segment-1-1", OTHER)
    for pods in ([running()], [running(), new], [new, running("shop-coordinator-0")]):
        for _ in range(3):
            found = members.of(before, now, *pods, image=OTHER)
            assert (found.cluster, found.problems) == (without, ())
            assert found.waits == f"spec.postgres.parameters.new_one: stays as before: {says}"
        before = found.cluster
    assert members.of(before, now, new, image=OTHER) == Opinion(now)


def test_members_of_each_image_are_asked_once() -> None:
    members, now = Members(), declared({"jit": False})
    pods = [
        running(f"shop-segment-1-{ordinal}", image) for ordinal, image in enumerate([IMAGE, OTHER, "pg:17.7"])
    ]
    for _ in range(3):
        assert members.of(declared(), now, *pods, image=OTHER) == Opinion(now)
    assert members.asked == ["shop-segment-1-1", "shop-segment-1-0", "shop-segment-1-2"]
    members.opinions.forget("shop")
    assert members.of(declared(), now, *pods, image=OTHER) == Opinion(now)
    assert len(members.asked) == 6


def test_a_parameter_waits_while_members_of_another_image_can_not_be_asked() -> None:
    members = Members()
    members.dumb.add("shop-segment-1-0")
    both = running(), running("shop-segment-1-1", OTHER)
    found = members.of(declared(), declared({"jit": False}), *both, image=OTHER)
    assert found.cluster == declared()
    assert "shop-segment-1-0 does not answer" in found.waits


def test_a_member_of_the_new_image_refuses_whatever_others_would_say() -> None:
    members = Members({"jit": ["no"]})
    both = running(), running("shop-segment-1-1", OTHER, ready=False)
    found = members.of(declared(), declared({"jit": False}), *both, image=OTHER)
    assert found.problems
    assert members.asked == ["shop-segment-1-1"]


def test_a_webhook_that_names_images_otherwise_does_not_make_members_old() -> None:
    members, mirrored = Members({"jit": ["no"]}), running(image="mirror/pg:17.5")
    mirrored["metadata"]["annotations"] = template(IMAGE)["metadata"]["annotations"]
    found = members.of(
        declared(), declared({"jit": False}), mirrored, templates={"shop-segment-1": template(IMAGE)}
    )
    assert found.problems


# the question itself


@pytest.fixture
def kubelet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubelet]:
    """Members have the PostgreSQL that is here."""
    made, here = Kubelet(), binaries.find().directory
    folder = subprocess.run([here / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=True)
    monkeypatch.setattr(programs, "opened", made.opened)
    monkeypatch.setattr(PodMachine, "program", lambda self, name: str(here / name))
    monkeypatch.setattr(patroni_files, "library_folder", lambda major: folder.stdout.strip())
    yield made
    for child in made.children:
        child.kill()
        child.wait()


def asked(parameters: Parameters) -> Refusals:
    return ask(None, "shop-segment-1-0", 17, parameters)  # type: ignore[arg-type]


def test_a_members_own_postgresql_is_asked_about_all_at_once(kubelet: Kubelet) -> None:
    found = asked(
        {
            "work_mem": "64MB",
            "wrok_mem": "4MB",
            "timezone": "Mars/Olympus",
            "jit": False,
            "shared_preload_libraries": "auto_explain, nope",
            "session_preload_libraries": "$(nope)",
            "my.own": 'it\'s -- "so"',
        }
    )
    assert found == {
        "wrok_mem": ['unrecognized configuration parameter "wrok_mem"'],
        "timezone": ['invalid value for parameter "TimeZone": "Mars/Olympus"'],
        "shared_preload_libraries": ["there is no library nope here"],
        "session_preload_libraries": ["there is no library $(nope) here"],
    }
    assert len(kubelet.children) == 1


def test_libraries_that_may_be_elsewhere_are_left_to_postgresql(kubelet: Kubelet) -> None:
    libraries = {"shared_preload_libraries": "nope"}
    assert asked({**libraries, "dynamic_library_path": "/opt/lib:$libdir"}) == {}
    assert asked(libraries)


def test_a_postgresql_that_is_not_there_refuses_nothing(
    kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    for program in (tmp_path / "none", killed):
        monkeypatch.setattr(PodMachine, "program", lambda self, name, program=program: str(program))
        with pytest.raises(PgherdError):
            asked({"work_mem": "64MB"})


# the platform

RESOURCE = "/apis/pgherd.io/v1alpha1/namespaces/prod/postgresclusters/shop"
CORE = "/api/v1/namespaces/prod"


class Town:
    """A cluster of one member that runs."""

    def __init__(self, kube: Kube, platform: KubernetesPlatform) -> None:
        self.kube, self.platform, self.members = kube, platform, Members()
        self.declare(1, declared())
        platform.start_member(declared(), Member("shop", 1, 0), {})
        platform.align(declared(), {1: {}})
        size = {"resources": {"requests": {"storage": "1Ti"}}}
        claim = {"metadata": {"labels": names.labels("shop", 1)}, "spec": size}
        kube.put(f"{CORE}/persistentvolumeclaims/data-shop-segment-1-0", claim)
        kube.put(f"{CORE}/pods/shop-segment-1-0", {"kind": "Pod", **running()})

    def declare(self, generation: int, now: PostgresCluster, **metadata: Any) -> None:
        metadata = {"uid": "1", "generation": generation, "labels": {"team": "sales"}, **metadata}
        self.kube.put(RESOURCE, {**to_mapping(now), "metadata": metadata})


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    made: Town
    monkeypatch.setattr(platform, "ask", lambda reach, *asked: made.members.ask(*asked))
    with kube_api() as (kube, api):
        made = Town(kube, KubernetesPlatform(api, "prod", defaults=Defaults()))
        yield made


def test_what_postgresql_refuses_stays_out_of_what_is_in_force(town: Town) -> None:
    members = town.members = Members({"wrok_mem": ["unrecognized"]})
    town.declare(2, declared({"wrok_mem": "4MB"}, durability="quorum"))
    for _ in range(3):
        found = town.platform.declaration("shop")
        assert found.cluster.spec == declared().spec
        assert found.problems == ["spec.postgres.parameters.wrok_mem: unrecognized"]
    assert len(members.asked) == 1
    town.declare(3, declared({"work_mem": "4MB"}, durability="quorum"))
    assert town.platform.declaration("shop").cluster.spec.postgres.parameters == {"work_mem": "4MB"}
    assert not town.platform.declaration("shop").problems


def test_what_waits_is_said_until_somebody_can_be_asked(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinions, "AGAIN_SECONDS", 0.0)
    town.members.dumb.add("shop-segment-1-0")
    town.declare(2, declared({"work_mem": "4MB"}))
    found = town.platform.declaration("shop")
    assert (found.cluster.spec, found.problems) == (declared().spec, ())
    assert town.platform.align(found.cluster, {1: {}}), "everything else is done first"
    with pytest.raises(PgherdError, match=r"parameters\.work_mem: stays as before: .*does not answer"):
        town.platform.align(found.cluster, {1: {}})
    town.members.dumb.clear()
    found = town.platform.declaration("shop")
    assert found.cluster.spec == declared({"work_mem": "4MB"}).spec
    assert town.platform.align(found.cluster, {1: {}}), "it is written down"
    assert not town.platform.align(found.cluster, {1: {}})


def test_who_is_to_go_is_not_asked(town: Town) -> None:
    members = town.members = Members({"wrok_mem": ["unrecognized"]})
    town.declare(2, declared({"wrok_mem": "4MB"}), deletionTimestamp="2026-01-01T10:00:00Z")
    assert town.platform.declaration("shop").deleting
    assert members.asked == []


def test_what_is_declared_while_a_cluster_is_stopped_is_judged_when_it_runs(town: Town) -> None:
    members = town.members = Members({"wrok_mem": ["unrecognized"]})
    pod = town.kube.objects[f"{CORE}/pods/shop-segment-1-0"]
    town.kube.remove(f"{CORE}/pods/shop-segment-1-0")
    town.declare(2, declared({"wrok_mem": "4MB"}), annotations={names.STOPPED_ANNOTATION: "true"})
    assert town.platform.declaration("shop").cluster.spec == declared().spec
    town.declare(2, declared({"wrok_mem": "4MB"}))
    assert town.platform.declaration("shop").cluster.spec == declared().spec
    assert members.asked == []
    town.kube.put(f"{CORE}/pods/shop-segment-1-0", pod)
    assert town.platform.declaration("shop").problems


def test_a_first_declaration_has_nobody_to_be_asked_of_it(town: Town) -> None:
    members = town.members = Members({"wrok_mem": ["unrecognized"]})
    town.kube.remove(f"{CORE}/configmaps/{names.accepted('shop')}")
    town.declare(1, declared({"wrok_mem": "4MB"}))
    assert not town.platform.declaration("shop").problems
    assert members.asked == []


def test_who_founds_is_told_to_ask_until_somebody_takes_part(town: Town) -> None:
    def asks() -> bool:
        return bool(town.kube.objects[f"{CORE}/configmaps/shop-segment-1"]["data"][patroni_files.FIRST_FILE])

    new = declared({"work_mem": "4MB"})
    town.declare(2, new)
    town.platform.align(new, {1: {}})
    assert asks()
    town.kube.put(RESOURCE, {**town.kube.objects[RESOURCE], "status": {"phase": "Running", "admitted": [1]}})
    assert town.platform.align(new, {1: {}})
    assert not asks()
