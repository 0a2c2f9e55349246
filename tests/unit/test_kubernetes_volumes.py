"""Repositories on volumes, on Kubernetes: which claims will do, who mounts them, who holds one for the operator."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import looking, registry
from pgherd.backup.pgbackrest_config import archive_command, render
from pgherd.backup.volume_store import VolumeStore
from pgherd.errors import BadInput, NoSuchCluster, Refused, Unavailable, Withheld
from pgherd.model.spec import RepositorySpec, VolumeSpec, from_mapping
from pgherd.model.topology import Member
from pgherd.platform.base import MemberView
from pgherd.platform.kubernetes import holders, names, pods, restore_pods, trials, views, volumes
from pgherd.platform.kubernetes.events import Hints
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_objects import cluster, objects

CORE = "/api/v1/namespaces/prod"
GROUP = "/apis/pgherd.io/v1alpha1/namespaces/prod"
VOLUME = {"claimName": "backups", "prefix": "herd"}
DECLARED = {"method": "pgbackrest", "repository": {"volume": VOLUME}}
HOLDER = volumes.holder_name("shop", "backups")


def claim(**changed: Any) -> dict[str, Any]:
    """One that will do, but for this."""
    spec = {"accessModes": changed.pop("modes", ["ReadWriteMany"]), **changed.pop("spec", {})}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": changed.pop("metadata", {}),
        "spec": spec,
        "status": {"phase": changed.pop("phase", "Bound")},
    }


def raw_cluster(**spec: Any) -> dict[str, Any]:
    kind = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster"}
    return {**kind, "metadata": {"name": "shop"}, "spec": {"engine": "fdw", **spec}}


# what is declared


@pytest.mark.parametrize(
    ("platform", "backup", "says"),
    [
        ("local", DECLARED, "spec.backup.repository.volume: is for kubernetes: on one machine name a path"),
        ("kubernetes", {**DECLARED, "method": "native"}, "method: must be pgbackrest for repository.volume"),
        ("kubernetes", {**DECLARED, "repository": {"volume": {"claimName": "A"}}}, "PersistentVolumeClaim"),
        ("kubernetes", {**DECLARED, "repository": {"volume": {"claimName": "a", "prefix": "../b"}}}, "path"),
        ("kubernetes", {**DECLARED, "encrypt": True}, "encrypt: needs secretRef"),
    ],
)
def test_a_volume_that_makes_no_sense_is_refused_in_one_line(
    platform: str, backup: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        from_mapping(raw_cluster(backup=backup), platform=platform)
    assert len(refused.value.problems) == 1


def test_what_is_recovered_from_a_volume_is_for_kubernetes_only() -> None:
    recovery = {"cluster": "shop", **DECLARED}
    raw = raw_cluster(bootstrap={"recovery": recovery})
    made = from_mapping(raw, platform="kubernetes")
    assert volumes.claims_to_restore(made) == ["backups"]
    with pytest.raises(BadInput, match=r"spec.bootstrap.recovery.repository.volume: is for kubernetes"):
        from_mapping(raw, platform="local")


# which claims will do


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "there is no PersistentVolumeClaim backups in namespace prod: make it, with ReadWriteMany"),
        (claim(modes=["ReadWriteOnce"]), "has ReadWriteOnce, but members on several nodes share it"),
        (claim(spec={"volumeMode": "Block"}), "has volumeMode Block"),
        (claim(phase="Lost", spec={"volumeName": "pv-1"}), "bring PersistentVolume pv-1 back"),
        (claim(metadata={"deletionTimestamp": "now"}), "is being deleted"),
    ],
)
def test_a_claim_that_will_not_do_is_told_with_the_way_out(found: dict[str, Any] | None, says: str) -> None:
    assert says in (volumes.problem("backups", "prod", found) or "")
    assert not volumes.is_usable(found)


def test_a_claim_that_is_bound_when_its_first_pod_comes_is_no_problem_and_members_wait_for_it() -> None:
    pending = claim(phase="Pending")
    assert volumes.problem("backups", "prod", pending) is None
    assert not volumes.is_usable(pending)
    assert volumes.is_usable(claim())


# who mounts it


def test_members_mount_the_volume_beside_their_own_and_stay_as_they_are_without() -> None:
    declared = cluster(backup=DECLARED)
    without = objects(declared)["StatefulSet"]
    made = pods.stateful_set(
        declared,
        1,
        namespace="prod",
        replicas=2,
        image="pg:17",
        files={},
        epoch=0,
        volumes=0,
        marks={},
        repository="backups",
    )
    spec = made["spec"]["template"]["spec"]
    mounts = {each["name"]: each for each in spec["containers"][0]["volumeMounts"]}
    assert mounts["repository"] == {"name": "repository", "mountPath": "/repository/backups"}
    assert volumes.mounted(spec) == ["backups"]
    assert spec["securityContext"]["fsGroup"] == pods.POSTGRES_UID
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert volumes.mounted(without["spec"]["template"]["spec"]) == []
    templates = [each["spec"]["template"]["metadata"]["annotations"] for each in (made, without)]
    assert templates[0] != templates[1], "members are replaced, one at a time"


def test_who_puts_data_together_mounts_what_they_may_come_from() -> None:
    source = {"cluster": "old", "method": "pgbackrest", "repository": {"volume": {"claimName": "olds"}}}
    declared = cluster(backup=DECLARED, bootstrap={"recovery": source})
    asked = RepositorySpec(volume=VolumeSpec(claim_name="elsewhere"))
    claims = volumes.claims_to_restore(declared, asked)
    assert claims == ["backups", "elsewhere", "olds"]
    spec = restore_pods.restore_pod(declared, Member("shop", 1, 0), "pg:17", 0, claims)["spec"]
    assert volumes.mounted(spec) == claims
    paths = [each["mountPath"] for each in spec["containers"][0]["volumeMounts"][-3:]]
    assert paths == ["/repository/backups", "/repository/elsewhere", "/repository/olds"]
    assert len({each["name"] for each in spec["volumes"]}) == len(spec["volumes"])


MEMBER = Member("shop", 1, 0)


def template(*claims: str) -> dict[str, Any]:
    made = pods.pod_template(cluster(backup=DECLARED), 1, "pg:17", "prod", 0, 0)
    pods.mount_claims(made["spec"], claims)
    made["metadata"]["annotations"] = {names.TEMPLATE_ANNOTATION: f"with {claims}"}
    return made


def test_a_trial_finds_out_whether_the_members_node_can_have_the_volume() -> None:
    old, new = template(), template("backups")
    pod: dict[str, Any] = {
        "metadata": {**old["metadata"], "name": MEMBER.name},
        "spec": {**old["spec"], "nodeName": "n1"},
        "status": {"containerStatuses": [{"name": "postgres", "state": {"running": {}}}]},
    }
    now = trials.case(MEMBER, [pod], new)
    trial = trials.trial_pod(cluster(), now, trials.Where.HERE, 17)
    assert volumes.mounted(trial["spec"]) == ["backups"]
    assert trial["spec"]["containers"][0]["volumeMounts"] == [
        {"name": "repository", "mountPath": "/repository/backups"}
    ]
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    trial["spec"]["nodeName"], trial["metadata"]["uid"] = "n1", "u"
    trial["status"] = {"containerStatuses": [{"name": "postgres", "state": waiting}]}
    view = MemberView(MEMBER, True, True, *(None, None), "", None, True)  # type: ignore[arg-type]
    said = "FailedMount: mount.nfs: access denied by server"
    seen = trials.with_verdict(view, [pod, trial], {MEMBER.scope: new}, lambda name, uid: said)
    assert (seen.tried, seen.obstacle) == (None, said)
    quiet = trials.with_verdict(view, [pod, trial], {MEMBER.scope: new})
    assert (quiet.tried, quiet.obstacle) == (None, ""), "most take a moment only"


# what is done with it


def test_what_is_remembered_and_what_pgbackrest_keeps_lie_in_one_folder_on_it() -> None:
    with kube_api() as (kube, api):
        platform = KubernetesPlatform(api, "prod", defaults=Defaults())
        kube.put(f"{GROUP}/postgresclusters/shop", raw_cluster(backup=DECLARED))
        method: Any = registry.make_method(platform, platform.declaration("shop").cluster)
        assert method.location == "volume://backups/herd/shop"
        assert isinstance(method.repository.store, VolumeStore)
        assert method.repository.store._root == Path("/repository/backups/herd/shop")
        text = render(method._place.settings())
        assert "repo1-path=/repository/backups/herd/shop/pgbackrest\n" in text
        assert "repo1-type" not in text, "a directory, to pgBackRest"
        push = text.partition("[global:archive-push]")[2]
        assert "archive-async=n\n" in push, "what holds the lock is what writes"
        command = method.parameters(1)["archive_command"]
        lock = "/repository/backups/herd/shop/.archive-segment-1"
        assert f"|| flock -w 30 {lock} pgbackrest --config=" in command
        assert "--spool-path" not in command, "pgBackRest refuses it of who has none"


def test_members_archive_one_after_the_other_where_they_share_a_folder(tmp_path: Path) -> None:
    """pgBackRest writes each file aside under a name that is the same in all of them."""
    program = tmp_path / "pgbackrest"
    program.write_text(
        f"#!/bin/sh\n[ ! -e {tmp_path}/busy ] || echo met >> {tmp_path}/said\n"
        f"touch {tmp_path}/busy\nsleep 0.3\nrm {tmp_path}/busy\necho done >> {tmp_path}/said\n"
    )
    program.chmod(0o755)
    data = tmp_path / "data"
    for folder in ("pg_wal", "global"):
        (data / folder).mkdir(parents=True)
    (data / "global" / "pg_control").write_bytes(bytes(8))
    command = archive_command([str(program)], ["false"], 1, str(tmp_path / "repository"))
    command = command.replace("%p", "pg_wal/1").replace("%f", "1")
    assert subprocess.run(["/bin/sh", "-c", command], cwd=data, check=False).returncode != 0
    assert not (tmp_path / "said").exists(), "a repository that is not there is not made"
    (tmp_path / "repository").mkdir()
    members = [subprocess.Popen(["/bin/sh", "-c", command], cwd=data) for _ in range(3)]
    assert [member.wait(30) for member in members] == [0, 0, 0]
    assert (tmp_path / "said").read_text().split() == ["done"] * 3


def test_a_volume_is_seen_also_where_no_program_can_be_run() -> None:
    class Volumes:
        def holder(self, volume: VolumeSpec) -> str:
            return volume.claim_name

    found: Any = looking.Nowhere(Volumes()).holder(VolumeSpec(claim_name="backups"))  # type: ignore[arg-type]
    assert found == "backups"


# who holds it


class Town:
    """A cluster and what is around it."""

    def __init__(self, kube: Kube, platform: KubernetesPlatform) -> None:
        self.kube, self.platform = kube, platform
        kube.put(f"{GROUP}/postgresclusters/shop", raw_cluster(backup=DECLARED))

    def see(self, found: dict[str, Any] | None) -> None:
        """What is there of the claim, and is looked at anew."""
        if found is not None:
            self.kube.put(f"{CORE}/persistentvolumeclaims/backups", found)
        self.platform.holders._claims.clear()

    @property
    def declared(self) -> Any:
        return self.platform.declaration("shop").cluster

    @property
    def holder(self) -> dict[str, Any]:
        return self.kube.objects[f"{CORE}/pods/{HOLDER}"]

    def run(self, pod: dict[str, Any], **status: Any) -> None:
        running = [{"name": "postgres", "state": {"running": {}}}]
        ready = [{"type": "Ready", "status": "True"}]
        said = {"phase": "Running", "containerStatuses": running, "conditions": ready, **status}
        self.kube.put(f"{CORE}/pods/{pod['metadata']['name']}", {**pod, "status": said})

    def member(self, name: str, *claims: str) -> None:
        spec = {**template(*claims)["spec"], "nodeName": "n1"}
        labels = names.labels("shop", 1)
        self.run({"kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    monkeypatch.setattr(holders, "START_SECONDS", 0.5)
    with kube_api() as (kube, api):
        yield Town(kube, KubernetesPlatform(api, "prod", defaults=Defaults()))


def test_members_name_no_claim_with_which_they_could_not_start(town: Town) -> None:
    for found in (None, claim(phase="Pending"), claim(modes=["ReadWriteOnce"])):
        town.see(found)
        assert town.platform.holders.claim_to_mount(town.declared, 1) is None
    town.see(claim())
    assert town.platform.holders.claim_to_mount(town.declared, 1) == "backups"


def test_a_claim_that_is_being_deleted_stays_with_those_that_have_it(town: Town) -> None:
    going = claim(metadata={"deletionTimestamp": "2026-11-22T10:00:00Z"})
    town.see(going)
    assert town.platform.holders.claim_to_mount(town.declared, 1) is None, "nobody begins with it"
    path = f"/apis/apps/v1/namespaces/prod/statefulsets/{names.group_object('shop', 1)}"
    made = {"kind": "StatefulSet", "metadata": {"labels": names.labels("shop", 1)}}
    town.kube.put(path, {**made, "spec": {"template": template("backups")}})
    assert town.platform.holders.claim_to_mount(town.declared, 1) == "backups", "backups are not lost with it"


def test_a_claim_that_is_being_deleted_stays_also_while_the_statefulset_is_made_anew(town: Town) -> None:
    """Else members are replaced without it, and the last one that lets go takes all backups along."""
    town.see(claim(metadata={"deletionTimestamp": "2026-11-22T10:00:00Z"}))
    town.member("shop-segment-1-0", "backups")
    assert town.platform.holders.claim_to_mount(town.declared, 1) == "backups"
    assert town.platform.holders.claim_to_mount(town.declared, 2) is None, "that group does not have it"


def test_a_stopped_cluster_does_not_name_a_claim_with_which_it_could_not_start(town: Town) -> None:
    town.see(claim(metadata={"deletionTimestamp": "2026-11-22T10:00:00Z"}))
    town.run(volumes.holder_pod(town.declared, "backups", "pg:17"))
    assert town.platform.holders.claim_to_mount(town.declared, 1) is None


def test_the_operator_holds_a_volume_by_a_small_pod_that_goes_with_its_cluster(town: Town) -> None:
    town.see(claim())
    with pytest.raises(Withheld, match=f"repository.volume: {HOLDER} does not run yet: it is being made"):
        town.platform.holders.machine("shop", "backups")
    made = town.holder
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["name"], owner["controller"]) == ("shop", True)
    assert names.GROUP_LABEL not in made["metadata"]["labels"], "nobody is led to it"
    assert names.member_of("shop", HOLDER) is None
    assert volumes.mounted(made["spec"]) == ["backups"]
    for key in ("runAsNonRoot", "fsGroup", "seccompProfile"):
        assert made["spec"]["securityContext"][key] == pods.POD_SECURITY[key]
    assert made["spec"]["containers"][0]["securityContext"] == dict(pods.CONTAINER_SECURITY)
    assert made["spec"]["automountServiceAccountToken"] is False
    town.run(made)
    assert town.platform.holders.machine("shop", "backups")._pod == HOLDER


def test_a_holder_that_has_ended_is_made_again_and_goes_when_nobody_asks(town: Town) -> None:
    town.see(claim())
    with pytest.raises(Withheld):
        town.platform.holders.machine("shop", "backups")
    first = town.holder
    town.run(first, phase="Succeeded", containerStatuses=[])
    town.platform.holders.tidy("shop")
    assert f"{CORE}/pods/{HOLDER}" not in town.kube.objects
    town.run(first, phase="Failed", containerStatuses=[])
    for _ in ("it is let go", "another one is made"):
        with pytest.raises(Withheld):
            town.platform.holders.machine("shop", "backups")
    assert town.holder["metadata"]["uid"] != first["metadata"]["uid"]


def test_why_no_volume_is_to_be_had_is_told(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="there is no PersistentVolumeClaim backups in namespace prod"):
        town.platform.holders.machine("shop", "backups")
    assert not town.kube.writes("POST"), "nothing is made for it"
    town.see(claim(phase="Pending"))
    with pytest.raises(Withheld, match="PersistentVolumeClaim backups is not bound yet; shop-repository"):
        town.platform.holders.machine("shop", "backups")
    town.see(claim())
    said = "FailedMount: mount.nfs: no route to host"
    monkeypatch.setattr(Hints, "of", lambda self, name, uid: said)
    with pytest.raises(Withheld, match=f"does not run yet: {said}"):
        town.platform.holders.machine("shop", "backups")


def test_nothing_is_made_for_a_cluster_that_is_being_deleted(town: Town) -> None:
    going = {"deletionTimestamp": "2026-11-22T10:00:00Z"}
    town.kube.put(f"{GROUP}/postgresclusters/shop", {**raw_cluster(backup=DECLARED), "metadata": going})
    town.see(claim())
    with pytest.raises(NoSuchCluster):
        town.platform.holders.machine("shop", "backups")
    assert not [path for path in town.kube.writes("POST") if "/pods/" in path]


def test_programs_run_only_in_members_that_have_the_volume(town: Town) -> None:
    town.see(claim())
    old, new = names_of_members = ("shop-segment-1-0", "shop-segment-1-1")
    town.member(old)
    machines: Any = town.platform.machines("shop")
    with pytest.raises(Unavailable, match="no member of shop with volume backups runs"):
        machines.of(1)
    with pytest.raises(Unavailable, match=f"{old} has no volume backups until it is replaced"):
        machines.at(f"{old}.shop-segment-1.prod.svc")
    town.member(new, "backups")
    assert machines.of(1)._pod == machines.of(None)._pod == machines.at(f"{new}.x")._pod == new
    assert names_of_members == tuple(machines._running(1)), "strays are ended in all of them"
    town.see(claim(modes=["ReadWriteOnce"]))
    with pytest.raises(Refused, match="has ReadWriteOnce"):
        machines.of(1)


def test_who_holds_a_volume_ends_when_nobody_has_asked_for_a_while(tmp_path: Path) -> None:
    used = tmp_path / "used"
    script = volumes.HOLD.replace("/tmp/used", str(used)).replace("sleep 15", "sleep 0.1")
    script = script.replace(f"-lt {volumes.IDLE_SECONDS}", "-lt 1")
    done = subprocess.run(["/bin/bash", "-c", script], timeout=30, check=False)
    assert done.returncode == 0
    assert used.exists()


def test_a_holder_is_no_member(town: Town) -> None:
    town.see(claim())
    town.run(volumes.holder_pod(town.declared, "backups", "pg:17"))
    assert town.platform.members("shop") == {}
    assert views.is_running(town.holder)
