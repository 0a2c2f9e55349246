"""Trials: what is tried before a member is replaced, and what the answer means."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pgherd.errors import PgherdError
from pgherd.model.spec import PostgresCluster, from_mapping, to_mapping
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names, pods, trials
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.trials import Where
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_objects import cluster

MEMBER, FELLOW = Member("shop", 1, 0), Member("shop", 1, 1)
CORE = "/api/v1/namespaces/prod"


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


def running(
    made_of: dict[str, Any], state: dict[str, Any] | None = None, member: Member = MEMBER, node: str = "n1"
) -> dict[str, Any]:
    """A member's pod on a node, made of this template."""
    claim = {"persistentVolumeClaim": {"claimName": names.volume_claim(member, 0)}}
    volumes = [*made_of["spec"]["volumes"], {"name": names.VOLUME, **claim}]
    return {
        "metadata": {**made_of["metadata"], "name": member.name},
        "spec": {**made_of["spec"], "nodeName": node, "volumes": volumes},
        "status": {"containerStatuses": [{"name": "postgres", "state": state or {"running": {}}}]},
    }


def among(pod: dict[str, Any], wanted: dict[str, Any], *others: dict[str, Any]) -> trials.Case:
    return trials.case(MEMBER, [pod, *others], wanted)


def trial(pod: dict[str, Any], wanted: dict[str, Any], **status: Any) -> dict[str, Any]:
    """On the member's own node."""
    return {**trials.trial_pod(declared(), among(pod, wanted), Where.HERE, 17), "status": status}


def elsewhere(
    pod: dict[str, Any], wanted: dict[str, Any], other: dict[str, Any], *reach: dict[str, Any], **status: Any
) -> dict[str, Any]:
    """Where it could go to."""
    made = trials.trial_pod(declared(), among(pod, wanted, other), Where.ELSEWHERE, 17, reach)
    return {**made, "status": status}


OLD, NEW = template(), template("members:2")
NEAR = template("members:2", antiAffinity="preferred")
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
BESIDE = running(OLD, member=FELLOW, node="n2")
"""another member's pod of the group"""


def refused(message: str) -> dict[str, Any]:
    """What the scheduler says of a pod."""
    return {"conditions": [{**UNSCHEDULABLE, "message": message}]}


ASKED = trials.script(declared(), 17)
NO_LABEL = refused("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.")


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
    found, why = trials.verdict(among(pod, NEW, trial(pod, NEW, **status)))
    assert found is tried
    assert says in why
    assert bool(why) == bool(says)


def test_nobody_knows_before_the_trial_of_just_this() -> None:
    pod = running(OLD)
    assert trials.verdict(among(pod, NEW)) == (None, "")
    other = trial(pod, template("members:3"), **ended(0))
    assert trials.verdict(among(pod, NEW, other)) == (None, "")
    moved = {**pod, "spec": {**pod["spec"], "nodeName": "n2"}}
    assert trials.verdict(among(moved, NEW, trial(pod, NEW, **ended(0)))) == (None, "")


def test_who_never_ran_needs_none() -> None:
    hanging = running(OLD, {"waiting": {"reason": "ImagePullBackOff"}})
    assert trials.verdict(among(hanging, NEW)) == (True, "")
    crashed = running(OLD, {"terminated": {"exitCode": 137}})
    assert trials.verdict(among(crashed, NEW)) == (None, "")


def test_it_may_what_the_members_may() -> None:
    """Pull secrets are their account's; policies look at accounts, labels and users."""
    labelled = declared().model_copy(
        update={"metadata": declared().metadata.model_copy(update={"labels": {"team": "sales"}})}
    )
    for where in Where:
        made = trials.trial_pod(labelled, among(running(OLD), NEW, BESIDE), where, 17)
        for key in ("serviceAccountName", "securityContext", "tolerations"):
            assert made["spec"][key] == NEW["spec"][key]
        assert made["spec"]["serviceAccountName"] == "shop"
        assert made["spec"]["automountServiceAccountToken"] is False
        assert made["metadata"]["labels"].items() >= {"team": "sales", **names.labels("shop")}.items()
        assert names.GROUP_LABEL not in made["metadata"]["labels"]


MOVING = {
    "nodeSelector": template(nodeSelector={"disk": "imaginary"}),
    "antiAffinity": template(antiAffinity="required"),
    "tolerations": template(tolerations=[{"key": "disk", "operator": "Exists"}]),
    "nodeSelector and image": template("members:2", nodeSelector={"disk": "imaginary"}),
}


@pytest.mark.parametrize("wanted", MOVING.values(), ids=MOVING)
def test_a_standby_is_tried_before_it_moves(wanted: dict[str, Any]) -> None:
    pod = running(template(antiAffinity="preferred"))
    assert trials.verdict(among(pod, wanted, BESIDE)) == (None, "")
    assert trials.due(among(pod, wanted, BESIDE)) is Where.HERE
    here = trial(pod, wanted, **NO_LABEL)
    assert trials.verdict(among(pod, wanted, BESIDE, here)) == (None, "")
    assert trials.due(among(pod, wanted, BESIDE, here)) is Where.ELSEWHERE
    nowhere = elsewhere(pod, wanted, BESIDE, **NO_LABEL)
    found, why = trials.verdict(among(pod, wanted, BESIDE, here, nowhere))
    assert found is None
    assert why.startswith("no node takes it, 0/3 nodes are available: 3 node(s) didn't match")
    assert "nodeSelector" in why
    assert trials.due(among(pod, wanted, BESIDE, here, nowhere)) is None
    somewhere = elsewhere(pod, wanted, BESIDE, **ended(0))
    assert trials.verdict(among(pod, wanted, BESIDE, here, somewhere)) == (True, "")


def test_an_image_is_tried_where_the_standby_would_go() -> None:
    pod, wanted = running(OLD), MOVING["nodeSelector and image"]
    here, there = trial(pod, wanted, **NO_LABEL), elsewhere(pod, wanted, BESIDE, **ended(2))
    assert trials.verdict(among(pod, wanted, BESIDE, here, there)) == (False, "Error: it has no postgres")


def test_a_lone_member_is_not_sent_elsewhere() -> None:
    pod, wanted = running(OLD), MOVING["nodeSelector"]
    here = trial(pod, wanted, **NO_LABEL)
    assert trials.due(among(pod, wanted, here)) is None
    found, why = trials.verdict(among(pod, wanted, here))
    assert found is None
    assert "its node n1 takes no such pod, nodeSelector" in why


def test_a_standby_that_may_stay_is_not_tried_elsewhere() -> None:
    """What it has on its node comes free when it goes; all of it a second time may be nowhere."""
    pod, wanted = running(OLD), MOVING["tolerations"]
    here = trial(pod, wanted, **ended(0))
    assert trials.due(among(pod, wanted, BESIDE, here)) is None
    assert trials.verdict(among(pod, wanted, BESIDE, here)) == (True, "")


def distance(pod: dict[str, Any]) -> list[dict[str, Any]]:
    affinity = pod["spec"]["affinity"].get("podAntiAffinity", {})
    found: list[dict[str, Any]] = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
    assert {term["topologyKey"] for term in found} <= {"kubernetes.io/hostname"}
    return [term["labelSelector"] for term in found]


def test_distance_is_kept_from_others_not_from_itself() -> None:
    pod, wanted = running(NEAR), MOVING["antiAffinity"]
    not_itself = {"key": trials.POD_NAME, "operator": "NotIn", "values": [MEMBER.name]}
    group = {"matchLabels": names.selector("shop", 1), "matchExpressions": [not_itself]}
    assert distance(trial(pod, wanted)) == [group]
    assert distance(elsewhere(pod, wanted, BESIDE)) == [group]
    beside = running(NEAR, member=FELLOW, node="n1")
    assert distance(elsewhere(pod, wanted, beside)) == [group]
    assert distance(trial(pod, NEAR)) == distance(elsewhere(pod, NEAR, beside)) == []


def test_distance_is_kept_from_who_still_demands_it() -> None:
    """The scheduler holds every newcomer to what a pod that is there was made with."""
    pod, strict = running(OLD), running(MOVING["antiAffinity"], member=FELLOW, node="n2")
    made = elsewhere(pod, NEAR, strict)
    only = {"key": trials.POD_NAME, "operator": "In", "values": [FELLOW.name]}
    assert distance(made) == [{"matchExpressions": [only]}]
    assert not trials.is_over([pod, strict, made], made, {"shop-segment-1": NEAR}, ASKED)
    replaced = running(NEAR, member=FELLOW, node="n2")
    assert trials.is_over([pod, replaced, made], made, {"shop-segment-1": NEAR}, ASKED), (
        "it demands it no more"
    )


def test_elsewhere_it_asks_for_everything_where_the_volume_can_follow() -> None:
    wanted = template(
        "members:2",
        resources={"cpu": "1500m", "memory": "3Gi"},
        nodeSelector={"disk": "fast"},
        tolerations=[{"key": "disk", "operator": "Exists"}],
        antiAffinity="none",
    )
    beside = running(NEAR, member=FELLOW, node="n2")
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    spec = elsewhere(running(OLD), wanted, beside, zone)["spec"]
    [container] = spec["containers"]
    assert container["resources"] == wanted["spec"]["containers"][0]["resources"]
    for key in ("nodeSelector", "tolerations", "topologySpreadConstraints"):
        assert spec[key] == wanted["spec"][key]
    [terms] = spec["affinity"]["nodeAffinity"].values()
    assert terms == {"nodeSelectorTerms": [zone]}
    assert "volumes" not in spec
    assert spec["affinity"] == {"nodeAffinity": spec["affinity"]["nodeAffinity"]}
    assert elsewhere(running(OLD), wanted, beside)["spec"]["affinity"] == {}


def test_a_volume_that_stays_is_named_with_its_way_out() -> None:
    pod, wanted = running(OLD), MOVING["nodeSelector"]
    here = trial(pod, wanted, **NO_LABEL)
    bound = elsewhere(pod, wanted, BESIDE, {"matchExpressions": []}, **NO_LABEL)
    _, why = trials.verdict(among(pod, wanted, BESIDE, here, bound))
    assert "its volume is bound to where it is" in why
    assert "delete this one's volume claim and pod" in why
    free = elsewhere(pod, wanted, BESIDE, **NO_LABEL)
    assert "volume" not in trials.verdict(among(pod, wanted, BESIDE, here, free))[1]


def test_it_asks_the_same_node_for_what_is_more() -> None:
    wanted = template("members:2", resources={"cpu": "1500m", "memory": "3Gi"}, nodeSelector={"disk": "fast"})
    made = trial(running(OLD), wanted)
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
    less = trial(running(wanted), OLD)
    assert less["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1m", "memory": "1"}


def test_it_goes_when_its_answer_is_of_no_use() -> None:
    pod, of_group = running(OLD), {"shop-segment-1": NEW}
    made = trial(pod, NEW)
    assert not trials.is_over([pod, made], made, of_group, ASKED)
    assert trials.is_over([pod, made], made, {"shop-segment-1": OLD}, ASKED)
    assert trials.is_over([pod, made], made, {"shop-segment-1": template("members:3")}, ASKED)
    assert trials.is_over([made], made, of_group, ASKED)
    turned_away = trial(pod, NEW, phase="Failed", reason="OutOfmemory")
    assert trials.is_over([pod, turned_away], turned_away, of_group, ASKED)
    said_no = trial(pod, NEW, **ended(2))
    assert not trials.is_over([pod, said_no], said_no, of_group, ASKED)


def test_it_goes_when_other_libraries_are_declared() -> None:
    """What the image lacks may not be needed any more."""
    pod, of_group = running(OLD), {"shop-segment-1": NEW}
    said_no = trial(pod, NEW, **ended(2))
    asked = trials.script(preloading("pg_stat_statements"), 17)
    assert trials.is_over([pod, said_no], said_no, of_group, asked)


def preloading(libraries: str) -> PostgresCluster:
    return cluster(postgres={"parameters": {"shared_preload_libraries": libraries}})


def test_one_elsewhere_gives_way_to_members() -> None:
    pod, of_group = running(OLD), {"shop-segment-1": NEW}
    here, made = trial(pod, NEW, **NO_LABEL), elsewhere(pod, NEW, BESIDE)
    waits = {"waiting": {"reason": "ImagePullBackOff"}}
    stuck = {**made, "status": {"containerStatuses": [{"name": "postgres", "state": waits}]}}
    stuck["spec"] = {**made["spec"], "nodeName": "n3"}
    assert not trials.is_over([pod, BESIDE, here, stuck], stuck, of_group, ASKED)
    homeless = {**running(OLD, member=Member("shop", 0, 0), node=""), "status": NO_LABEL}
    assert trials.is_over([pod, BESIDE, here, stuck, homeless], stuck, of_group, ASKED), (
        "it takes a member's room"
    )
    assert trials.due(among(pod, NEW, BESIDE, here, homeless)) is None
    queued = {**made, "status": NO_LABEL}
    assert not trials.is_over([pod, BESIDE, here, queued, homeless], queued, of_group, ASKED), (
        "it takes nothing"
    )


def test_one_elsewhere_goes_when_the_own_node_will_do() -> None:
    pod, of_group = running(OLD), {"shop-segment-1": NEW}
    made = elsewhere(pod, NEW, BESIDE, **NO_LABEL)
    assert trials.is_over([pod, BESIDE, trial(pod, NEW, **ended(0)), made], made, of_group, ASKED)


def test_one_that_its_node_does_not_let_go_is_forgotten() -> None:
    pod, made = running(OLD), elsewhere(running(OLD), NEW, BESIDE)
    made["metadata"]["deletionTimestamp"] = "2026-11-22T08:00:00Z"
    assert trials.is_over([pod, BESIDE, made], made, {"shop-segment-1": NEW}, ASKED)


class Town:
    """A cluster whose group 1 has two members, on volumes of this reach, and is declared to move."""

    def __init__(self, kube: Kube, api: Any, volume: dict[str, Any]) -> None:
        self.kube = kube
        self.cluster = declared(standbys=1, nodeSelector={"disk": "fast"})
        path = "/apis/pgherd.io/v1alpha1/namespaces/prod/postgresclusters/shop"
        kube.put(path, {**to_mapping(self.cluster), "metadata": {"uid": "u-1"}})
        self.platform = KubernetesPlatform(api, "prod", defaults=Defaults())
        for member, node in ((MEMBER, "n1"), (FELLOW, "n2")):
            self.platform.start_member(self.cluster, member, {})
            pod, claim = running(OLD, member=member, node=node), names.volume_claim(member, 0)
            kube.put(f"{CORE}/pods/{member.name}", {**pod, "kind": "Pod"})
            metadata = {"labels": names.labels("shop", 1)}
            kube.put(
                f"{CORE}/persistentvolumeclaims/{claim}",
                {"metadata": metadata, "spec": {"volumeName": f"pv-{member.name}"}},
            )
            kube.put(f"/api/v1/persistentvolumes/pv-{member.name}", {"spec": volume})

    def trial(self, where: Where) -> dict[str, Any] | None:
        return self.kube.objects.get(f"{CORE}/pods/{trials.trial_name(MEMBER, where)}")

    def try_it(self, where: Where) -> dict[str, Any]:
        """Until there is a trial there; the scheduler finds nothing for it."""
        assert self.trial(where) is None
        self.platform.try_member(self.cluster, MEMBER)
        made = self.trial(where)
        assert made is not None
        return self.kube.put(f"{CORE}/pods/{made['metadata']['name']}", {**made, "status": NO_LABEL})


BOUND = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}


@pytest.mark.parametrize("terms", [[BOUND], []], ids=["bound", "free"])
def test_a_standby_that_finds_no_place_stays_and_says_so(terms: list[dict[str, Any]]) -> None:
    volume = {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}} if terms else {}
    with kube_api() as (kube, api):
        town = Town(kube, api, volume)
        assert town.platform.members("shop")[MEMBER.name].tried is None
        assert "n1" in str(town.try_it(Where.HERE)["spec"]["affinity"])
        made = town.try_it(Where.ELSEWHERE)
        assert str(BOUND) in str(made["spec"]) if terms else "nodeAffinity" not in made["spec"]["affinity"]
        town.platform.try_member(town.cluster, MEMBER)
        view = town.platform.members("shop")[MEMBER.name]
        assert view.running
        assert view.tried is None
        assert "declare another nodeSelector" in view.obstacle
        town.platform.stop_member(MEMBER)
        assert town.trial(Where.HERE) is town.trial(Where.ELSEWHERE) is None


def test_nobody_is_sent_anywhere_when_nobody_knows_where_the_volume_is() -> None:
    with kube_api() as (kube, api):
        town = Town(kube, api, {})
        town.try_it(Where.HERE)
        kube.remove(f"/api/v1/persistentvolumes/pv-{MEMBER.name}")
        with pytest.raises(PgherdError, match=f"claim data-{MEMBER.name} is not there"):
            town.try_it(Where.ELSEWHERE)
        assert town.platform.members("shop")[MEMBER.name].tried is None


def test_the_script_finds_out_what_an_image_lacks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = trials.script(declared(), 99).replace("/dev/termination-log", str(log))
    done = subprocess.run(["/bin/sh", "-c", text], check=False)
    assert done.returncode == 2
    assert "it has no /usr/lib/postgresql/99/bin/postgres" in log.read_text()


@pytest.mark.parametrize("lacking", ["pg_cron", "$(touch here)"])
def test_an_image_without_a_declared_library_is_found_out(lacking: str, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "postgresql" / "99"
    for file in ("bin/postgres", "lib/auto_explain.so"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
    text = trials.script(preloading(f"auto_explain, {lacking}.so"), 99)
    text = text.replace("/dev/termination-log", str(log)).replace("/usr/lib", str(tmp_path))
    done = subprocess.run(["/bin/sh", "-c", text], check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert log.read_text().strip() == f"this image can not run a member: it has no {folder}/lib/{lacking}.so"
    assert not (tmp_path / "here").exists()
