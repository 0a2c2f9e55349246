"""Backups on Kubernetes as far as no Kubernetes is needed: what is refused, what pods get, what the desk answers."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import listing, maker, registry
from pgherd.backup.catalogue import Catalogue, NotOurs
from pgherd.backup.records import Backup
from pgherd.backup.store import DirectoryStore
from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.topology import Member
from pgherd.operator import backups as desk_module
from pgherd.operator.backups import QUIET_LOOKS, Desk, listed_points, newest
from pgherd.operator.strays import Strays
from pgherd.platform.base import Owner
from pgherd.platform.kubernetes import keeping, names, restore_pods, volumes
from pgherd.platform.kubernetes.api import BACKUP, SCHEDULE
from pgherd.platform.kubernetes.cache import Watched
from pgherd.platform.kubernetes.crd import crd, schedule_crd
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.reconcile import loop
from tests.support.backups import at, backup, point
from tests.support.home import wait_for
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_objects import cluster, pod

S3 = {"bucket": "safe", "endpoint": "s3.example.com", "uriStyle": "path"}
DECLARED = {"method": "pgbackrest", "repository": {"s3": S3}, "secretRef": "keys"}
GROUP = "/apis/pgherd.io/v1alpha1/namespaces/prod"
CORE = "/api/v1/namespaces/prod"


# what is refused


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            {"backup": {"repository": {"path": "/mnt"}}},
            "spec.backup.repository.path: is for the local platform",
        ),
        (
            {"backup": {"method": "pgbackrest", "repository": {"path": "/mnt"}}},
            "spec.backup.repository.path: is for the local platform",
        ),
        (
            {"backup": {**DECLARED, "repository": {"s3": {**S3, "caFile": "/ca.crt"}}}},
            "spec.backup.repository.s3.caFile: is for the local platform",
        ),
        (
            {"bootstrap": {"recovery": {"cluster": "shop", "repository": {"path": "/mnt"}}}},
            "spec.bootstrap.recovery.repository.path: is for the local platform",
        ),
        (
            {"bootstrap": {"clone": {"cluster": "shop"}}},
            "spec.bootstrap.clone.cluster: is the cluster itself: name the one that is to be copied",
        ),
    ],
)
def test_what_is_for_one_machine_only_is_refused_in_one_line(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as refused:
        cluster(**spec)
    assert len(refused.value.problems) == 1
    assert told in refused.value.problems[0]


# pods


def test_members_get_what_archiving_needs_as_files_and_start_without_it() -> None:
    made = pod(cluster(backup=DECLARED))
    [volume] = [each for each in made["volumes"] if each["name"] == "backup"]
    assert volume["secret"] == {"secretName": "shop.backup", "defaultMode": 0o440, "optional": True}
    mounts = {each["name"]: each for each in made["containers"][0]["volumeMounts"]}
    assert mounts["backup"]["readOnly"] is True
    assert "secret" not in json.dumps(made["containers"][0]["env"]).replace("shop-credentials", "").replace(
        "secretKeyRef", ""
    ), "keys are no variables"


def test_pods_of_clusters_without_backups_stay_as_they_are() -> None:
    assert "backup" not in {each["name"] for each in pod()["volumes"]}


def test_a_restore_pod_has_the_members_volume_and_nobody_is_led_to_it() -> None:
    member = Member("shop", 1, 0)
    made = restore_pods.restore_pod(cluster(), member, "pg:17", 0)
    spec, labels = made["spec"], made["metadata"]["labels"]
    assert {
        each["persistentVolumeClaim"]["claimName"] for each in spec["volumes"] if each["name"] == "data"
    } == {"data-shop-segment-1-0"}
    assert names.GROUP_LABEL not in labels, "neither Services nor disruption budgets choose it"
    assert names.ROLE_LABEL not in labels
    assert names.member_of("shop", made["metadata"]["name"]) is None, "it is no member"
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"] == pod()["containers"][0]["securityContext"]
    claim = restore_pods.member_claim(cluster(), member, 0)
    assert claim["metadata"]["labels"][names.GROUP_LABEL] == "segment-1"


def test_no_cluster_can_be_called_like_what_backups_need() -> None:
    for name in (
        names.backup_secret("a"),
        names.recovery_state("a"),
        names.backups_list("a"),
        names.repository_owner("a"),
    ):
        with pytest.raises(BadInput):
            cluster_named(name)


def cluster_named(name: str) -> object:
    from pgherd.model.spec import from_mapping

    raw = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": name},
        "spec": {},
    }
    return from_mapping(raw, platform="kubernetes")


# keys


@pytest.fixture
def kube() -> Iterator[tuple[Kube, KubernetesPlatform]]:
    with kube_api() as (kube, api):
        yield kube, KubernetesPlatform(api, "prod")


def test_keys_come_from_a_secret_of_the_namespace(kube: tuple[Kube, KubernetesPlatform]) -> None:
    api, platform = kube
    with pytest.raises(BadInput, match="there is no Secret keys of namespace prod"):
        platform.secret("keys")
    assert platform.secret_stamp("keys") == "missing"
    encoded = base64.b64encode(b"AKIA").decode()
    api.put(f"{CORE}/secrets/keys", {"kind": "Secret", "data": {"access-key-id": encoded}})
    fresh = KubernetesPlatform(platform.api, "prod")
    assert fresh.secret("keys") == {"access-key-id": "AKIA"}
    assert fresh.secret_stamp("keys") not in ("missing", "")


def test_a_secret_that_says_the_same_again_is_not_taken_for_new_keys(
    kube: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, platform = kube
    monkeypatch.setattr(keeping, "SECRET_SECONDS", 0.0)
    path, old, new = f"{CORE}/secrets/keys", {"passphrase": "b2xk"}, {"passphrase": "bmV3"}
    stamps = []
    for labels, data in (({}, old), ({"refreshed": "now"}, old), ({}, new)):
        api.put(path, {"kind": "Secret", "metadata": {"labels": labels}, "data": data})
        stamps.append(platform.secret_stamp("keys"))
    assert stamps[0] == stamps[1] != stamps[2]
    assert "b2xk" not in stamps[0]


# the desk


class Records:
    """A method that only remembers."""

    location = "s3://safe/shop"

    def __init__(self, folder: Path, platform: KubernetesPlatform) -> None:
        self.folder = folder
        self.repository = Catalogue(DirectoryStore(folder), "pgbackrest", lambda: platform.owner("shop"))

    def check(self) -> None:
        return


class Office:
    """A desk, its cluster's resource and the repository."""

    def __init__(self, kube: Kube, platform: KubernetesPlatform, method: Records) -> None:
        self.kube, self.platform, self.method = kube, platform, method
        self.desk = Desk(platform, "shop", threading.Event())
        raw = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster", "metadata": {}}
        kube.put(f"{GROUP}/postgresclusters/shop", {**raw, "spec": {"engine": "fdw", "backup": DECLARED}})

    def keep_on(self, repository: dict[str, Any], *, stopped: bool) -> None:
        """Declare where backups are."""
        path = f"{GROUP}/postgresclusters/shop"
        found = self.kube.objects[path]
        metadata = {
            **found["metadata"],
            "generation": found["metadata"]["generation"] + 1,
            "annotations": {names.STOPPED_ANNOTATION: "true"} if stopped else {},
        }
        backup = {"method": "pgbackrest", "repository": repository}
        self.kube.put(path, {**found, "metadata": metadata, "spec": {**found["spec"], "backup": backup}})

    def declare(self, name: str, kind: str = "full") -> None:
        self.kube.put(
            f"{GROUP}/postgresbackups/{name}",
            {
                "apiVersion": BACKUP.api_version,
                "kind": BACKUP.name,
                "metadata": {},
                "spec": {"cluster": "shop", "type": kind},
            },
        )

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.objects[f"{GROUP}/postgresbackups/{name}"].get("status") or {}
        return found

    def ids(self) -> list[str]:
        return [each.id for each in self.method.repository.backups()]

    def end(self, name: str, phase: str = "done") -> None:
        made = backup(1)
        known = self.method.repository.backup(name)
        self.method.repository.remember_backup(
            Backup(name, known.type, phase, at(1), made.groups, (0, 1, 2), point="p1", finished_at=at(2))
        )

    def list(self) -> dict[str, str]:
        data: dict[str, str] = self.kube.objects[f"{CORE}/configmaps/shop.backups"]["data"]
        return data


@pytest.fixture
def office(kube: tuple[Kube, KubernetesPlatform], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    method = Records(tmp_path / "repository", kube[1])
    monkeypatch.setattr(registry, "make_method", lambda platform, cluster: method)
    monkeypatch.setattr(listing, "restore_points", lambda method: [])
    return Office(*kube, method)


def test_a_repository_is_begun_once_and_one_that_vanished_is_not_begun_anew(office: Office) -> None:
    office.desk.look()
    assert office.method.repository.identity().cluster == "shop"
    assert office.list()["repository"] == "s3://safe/shop"
    office.method.repository.store.remove("repository.json")
    with pytest.raises(Exception, match="there is no repository"):
        office.desk.look()


@pytest.fixture
def stopped(office: Office, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When somebody looked into the repository of a stopped cluster, which is on a volume."""
    looks: list[float] = []
    now = [1000.0]

    def made(platform: object, cluster: object) -> Records:
        looks.append(now[0])
        return office.method

    class Clock:
        @staticmethod
        def monotonic() -> float:
            now[0] += desk_module.LOOK_SECONDS
            return now[0]

    monkeypatch.setattr(registry, "make_method", made)
    monkeypatch.setattr(desk_module, "time", Clock)
    office.keep_on({"volume": {"claimName": "backups"}}, stopped=True)
    return looks


def test_a_stopped_clusters_volume_is_looked_at_so_rarely_that_nobody_has_to_hold_it(
    office: Office, stopped: list[float]
) -> None:
    assert volumes.IDLE_SECONDS < desk_module.REST_SECONDS
    while len(stopped) < 2 * QUIET_LOOKS:
        office.desk.look()
    assert office.list()["repository"] == "s3://safe/shop", "all was looked at"
    waited = stopped[QUIET_LOOKS] - stopped[QUIET_LOOKS - 1]
    assert waited >= desk_module.REST_SECONDS
    assert stopped[QUIET_LOOKS - 1] - stopped[0] < volumes.IDLE_SECONDS


def test_whoever_asks_something_of_a_stopped_clusters_volume_is_answered(
    office: Office, stopped: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(times: int = QUIET_LOOKS) -> int:
        before = len(stopped)
        for _ in range(times):
            office.desk.look()
        return len(stopped) - before

    looks()
    assert looks() == 0
    office.declare("b1")
    office.desk.look()
    assert office.status("b1") == {"phase": "Waiting", "message": "shop is stopped"}
    looks()
    assert looks() == 0, "it has its answer"
    monkeypatch.setattr(office.desk._drills, "is_going_on", lambda: True)
    assert looks() == QUIET_LOOKS


def test_a_stopped_cluster_that_is_started_or_has_its_backups_elsewhere_is_looked_at_at_once(
    office: Office, stopped: list[float]
) -> None:
    for _ in range(QUIET_LOOKS + 1):
        office.desk.look()
    assert len(stopped) == QUIET_LOOKS
    office.keep_on({"volume": {"claimName": "others"}}, stopped=True)
    office.desk.look()
    assert len(stopped) == QUIET_LOOKS + 1
    for _ in range(QUIET_LOOKS):
        office.desk.look()
    before = len(stopped)
    office.keep_on({"volume": {"claimName": "others"}}, stopped=False)
    for _ in range(10):
        office.desk.look()
    assert len(stopped) == before + 10


def test_a_desk_waits_for_its_cluster_to_be_seen(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "LOOK_SECONDS", 0.01)
    path = f"{GROUP}/postgresclusters/shop"
    resource = office.kube.objects.pop(path)
    stop = threading.Event()
    desk = Desk(office.platform, "shop", stop)
    desk.start()
    try:
        wait_for(
            lambda: len([each for each in office.kube.asked if each[1] == path]) >= 2, "it has looked", 10
        )
        assert desk.is_alive()
        office.kube.put(path, resource)
        wait_for(office.method.repository.is_there, "the repository is begun", 10)
    finally:
        stop.set()
        desk.join()


def test_whoever_asks_for_a_backup_is_told_why_none_comes(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = f"{GROUP}/postgresbackupschedules/nightly"
    declared = {"cluster": "shop", "cron": "0 2 * * *"}
    raw = {"apiVersion": SCHEDULE.api_version, "kind": SCHEDULE.name, "metadata": {}, "spec": declared}
    office.kube.put(schedule, raw)
    office.declare("running")
    office.desk._look_and_tell()
    assert office.status("running")["phase"] == "Requested"
    repository = office.method.repository
    monkeypatch.setattr(repository, "is_there", _silent)
    office.declare("later")
    office.desk._look_and_tell()
    assert office.status("later") == {"phase": "Waiting", "message": "s3://safe does not answer"}
    # A silence of a moment is no news to one who was told something better.
    assert office.status("running")["phase"] == "Requested"
    monkeypatch.setattr(desk_module, "LASTING_SECONDS", 0.0)
    office.desk._look_and_tell()
    told = office.status("running")
    assert (told["phase"], told["message"]) == ("Waiting", "s3://safe does not answer")
    assert office.kube.objects[schedule]["status"]["problem"] == "s3://safe does not answer"
    monkeypatch.undo()


def _silent() -> bool:
    raise PgherdError("s3://safe does not answer")


def test_what_was_asked_of_a_cluster_that_has_no_backups_any_more_says_so(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "LASTING_SECONDS", 0.0)
    for name in ("ended", "running"):
        office.declare(name)
        office.desk.look()
        if name == "ended":
            office.end(name)
            office.desk.look()
    path = f"{GROUP}/postgresclusters/shop"
    made = office.kube.objects[path]
    metadata = {"uid": made["metadata"]["uid"], "generation": 2}
    office.kube.put(path, {**made, "spec": {"engine": "fdw"}, "metadata": metadata})
    office.desk._look_and_tell()
    assert office.status("ended")["phase"] == "Done"
    told = office.status("running")
    assert (told["phase"], told["message"].partition(":")[0]) == ("Waiting", "shop has no backups")


def test_a_backup_of_a_cluster_that_is_not_there_says_so(kube: tuple[Kube, KubernetesPlatform]) -> None:
    api, platform = kube
    watched = Watched(platform.api, "prod")
    path = f"{GROUP}/postgresbackups/typo"
    spec = {"cluster": "shoop", "type": "full"}
    api.put(path, {"apiVersion": BACKUP.api_version, "kind": BACKUP.name, "metadata": {}, "spec": spec})
    strays = Strays(platform.api, watched)
    watched.put(BACKUP, dict(api.objects[path]))
    strays.look()
    told = {"phase": "Waiting", "message": "there is no cluster shoop in namespace prod"}
    assert api.objects[path]["status"] == told
    watched.put(BACKUP, dict(api.objects[path]))
    strays.look()
    assert len(api.writes("PATCH")) == 1
    # One that was declared a moment ago may not be seen yet, and has its own who answers.
    api.put(path, {**api.objects[path], "status": {"phase": "Requested"}})
    api.put(f"{GROUP}/postgresclusters/shoop", {"kind": "PostgresCluster", "metadata": {}, "spec": {}})
    watched.put(BACKUP, dict(api.objects[path]))
    strays.look()
    assert api.objects[path]["status"] == {"phase": "Requested"}


def whose(office: Office, owner: str, **systems: str) -> Catalogue:
    """The place is another cluster's, or was."""
    known = Catalogue(DirectoryStore(office.method.folder), "pgbackrest", lambda: Owner(owner))
    known.create("shop")
    if systems:
        known.claim({0: systems["coordinator"]}, {})
    return known


def test_another_clusters_repository_is_neither_shown_nor_asked_for_a_backup(office: Office) -> None:
    prod = whose(office, "elsewhere/shop/1", coordinator="7")
    prod.remember_backup(backup(1))
    office.declare("before-release")
    archiving = {"kind": "Secret", "metadata": {"labels": names.labels("shop")}}
    office.kube.put(f"{CORE}/secrets/shop.backup", archiving)
    office.kube.put(f"{CORE}/configmaps/shop.backups", {"kind": "ConfigMap", "data": {"backups": "[{}]"}})
    with pytest.raises(NotOurs, match="holds the backups of another cluster, elsewhere/shop/1: name another"):
        office.desk.look()
    assert office.ids() == [backup(1).id]
    assert office.list()["backups"] == "[]"
    assert f"{CORE}/secrets/shop.backup" not in office.kube.objects, "its members do not archive there"
    assert not office.method.repository.is_own()
    with pytest.raises(NotOurs):
        office.method.repository.claim({0: "7"}, {})  # it was restored from there: its system is the same


def test_a_cluster_whose_id_was_lost_is_itself_again_when_it_is_put_back(office: Office) -> None:
    office.desk.look()
    path = f"{CORE}/configmaps/shop.owner"
    kept = office.kube.objects[path]
    office.kube.remove(path)
    office.platform.forget_owner("shop")  # another operator has begun
    with pytest.raises(NotOurs):
        office.desk.look()
    office.kube.put(path, kept)
    office.desk.look()


@pytest.mark.parametrize("own", [False, True])
def test_members_archive_only_where_it_is_known_that_it_is_their_own_place(
    office: Office, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    equipped: list[bool] = []
    method = SimpleNamespace(
        is_own=lambda: own, equip=lambda: equipped.append(True), repository=office.method.repository
    )
    monkeypatch.setattr(loop, "make_method", lambda platform, cluster: method)
    monkeypatch.setattr(loop, "OWN_SECONDS", 0.2)
    made = loop.ClusterLoop(office.platform, "shop", threading.Event())
    seen: Any = SimpleNamespace(recovery=None, declaration=office.platform.declaration("shop"))
    for _ in range(2):
        made._equip(seen)
    assert equipped == [True, True] * own
    seen.recovery = {"phase": "copying"}
    made._equip(seen)
    assert equipped == [True, True] * own


def test_a_repository_from_before_owners_were_written_down_is_used_once_it_is_claimed(office: Office) -> None:
    whose(office, "", coordinator="7").remember_backup(backup(1))
    with pytest.raises(Unavailable, match="is known once the databases answer"):
        office.desk.look()
    assert f"{CORE}/configmaps/shop.backups" not in office.kube.objects
    with pytest.raises(BadInput, match="another cluster that was called shop"):
        office.method.repository.claim({0: "8"}, {})
    office.method.repository.claim({0: "7"}, {})
    office.desk.look()
    assert json.loads(office.list()["backups"])[0]["id"] == backup(1).id
    assert office.method.repository.identity().owner == office.platform.owner("shop").id


def test_a_cluster_made_again_over_its_volumes_is_the_same_and_a_purged_one_is_not(office: Office) -> None:
    path = f"{GROUP}/postgresclusters/shop"
    office.desk.look()
    claim = f"{CORE}/persistentvolumeclaims/data-shop-coordinator-0"
    for lost, purge, is_same in ((False, False, True), (True, False, False), (False, True, False)):
        office.kube.put(
            claim, {"kind": "PersistentVolumeClaim", "metadata": {"labels": names.labels("shop")}}
        )
        first = office.platform.owner("shop").id
        resource = office.kube.objects[path]
        office.platform.forget("shop", purge=purge)
        if lost:  # somebody removed them
            office.kube.remove(claim)
        office.kube.remove(path)
        office.kube.put(path, {**resource, "metadata": {}})
        assert (office.platform.owner("shop").id == first) is is_same
    with pytest.raises(NotOurs):
        office.desk.look()


def test_a_restored_cluster_goes_on_with_the_repository_of_one_that_is_gone_if_it_is_told_so(
    office: Office,
) -> None:
    whose(office, "elsewhere/shop/1", coordinator="7")
    path = f"{GROUP}/postgresclusters/shop"
    made = office.kube.objects[path]
    told = {names.TAKES_OVER_ANNOTATION: "elsewhere/shop/1"}
    source = {key: DECLARED[key] for key in ("method", "repository", "secretRef")}

    def declare(generation: int, recovery: dict[str, Any], annotations: dict[str, str]) -> None:
        spec = {**made["spec"], "bootstrap": {"recovery": recovery}}
        metadata = {"uid": made["metadata"]["uid"], "generation": generation, "annotations": annotations}
        office.kube.put(path, {**made, "spec": spec, "metadata": metadata})

    repository = office.method.repository
    # What it was restored from lies elsewhere: it knows nothing of the timelines that are here.
    declare(2, {"cluster": "origin", **source}, told)
    with pytest.raises(NotOurs):
        repository.claim({0: "7"}, {})
    declare(3, {"cluster": "shop", **source}, {})
    with pytest.raises(
        NotOurs, match=r"annotate --overwrite pgc shop pgherd\.io/takes-over=elsewhere/shop/1"
    ):
        repository.claim({0: "7"}, {})
    declare(3, {"cluster": "shop", **source}, told)
    with pytest.raises(Unavailable):
        repository.require_own()
    repository.claim({0: "7"}, {})
    repository.require_own()
    assert repository.identity().owner == office.platform.owner("shop").id
    # The other one, should it live after all, is refused from now on.
    with pytest.raises(NotOurs):
        whose(office, "elsewhere/shop/1", coordinator="7")


def test_a_declared_backup_is_asked_for_once_whatever_is_killed(office: Office) -> None:
    office.declare("before-release")
    office.desk.look()
    assert office.ids() == ["before-release"]
    assert office.status("before-release")["phase"] == "Requested"
    # The next operator finds the request in the repository, also if nobody wrote it into the resource.
    office.declare("before-release")
    office.desk.look()
    assert office.ids() == ["before-release"]
    office.end("before-release")
    office.desk.look()
    done = office.status("before-release")
    assert (done["phase"], done["restorePoint"]) == ("Done", "p1")
    assert set(done["groups"]) == {"0", "1", "2"}


def test_one_backup_waits_for_the_other(office: Office) -> None:
    office.declare("a-first")
    office.declare("b-second")
    office.desk.look()
    office.desk.look()
    assert office.ids() == ["a-first"]
    assert office.status("b-second") == {"phase": "Waiting", "message": "waits for backup a-first"}
    office.end("a-first")
    office.desk.look()
    assert set(office.ids()) == {"a-first", "b-second"}


def test_a_name_that_is_taken_by_another_type_is_told(office: Office) -> None:
    office.desk.look()
    maker.request(office.method.repository, "full", name="weekly")
    office.declare("weekly", "incremental")
    office.desk.look()
    assert office.status("weekly")["phase"] == "Failed"
    assert "is there already, and full" in office.status("weekly")["error"]


def test_a_backup_that_retention_removed_is_shown_as_expired_and_not_made_again(office: Office) -> None:
    office.declare("old")
    office.desk.look()
    office.end("old")
    office.desk.look()
    office.method.repository.remove_backup("old")
    office.desk.look()
    office.desk.look()
    assert office.status("old")["phase"] == "Expired"
    assert office.ids() == []


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_backup_whose_record_can_not_be_read_says_which_file_and_comes_back_when_that_is_mended(
    office: Office, damage: str
) -> None:
    office.declare("old")
    office.desk.look()
    office.end("old")
    office.desk.look()
    record = office.method.folder / "backups" / "old" / "backup.json"
    whole = record.read_bytes()
    if damage == "torn":
        record.write_bytes(whole[:40])
    else:
        record.unlink()
    for _ in range(2):
        office.desk.look()
        told = office.status("old")
        assert told["phase"] == "Unreadable", told
        assert "backup.json" in told["message"], told
        assert str(record.parent) in told["message"], told
        assert told["restorePoint"] == "p1", "what was known of it stays"
    record.write_bytes(whole)
    office.desk.look()
    assert (office.status("old")["phase"], office.status("old")["message"]) == ("Done", "")
    record.write_bytes(whole[:40])
    office.desk.look()
    shutil.rmtree(record.parent)
    office.desk.look()
    assert (office.status("old")["phase"], office.status("old")["message"]) == ("Expired", "")
    assert office.ids() == []


def test_a_backup_is_there_again_when_the_repository_is_again_the_one_in_which_it_was_made(
    office: Office,
) -> None:
    office.declare("old")
    office.desk.look()
    office.end("old")
    office.desk.look()
    folder, elsewhere = office.method.folder, office.method.folder.with_name("elsewhere")
    folder.rename(elsewhere)
    office.method.repository.create("shop")
    office.desk.look()
    assert office.status("old")["phase"] == "Expired"
    shutil.rmtree(folder)
    elsewhere.rename(folder)
    office.desk.look()
    assert (office.status("old")["phase"], office.status("old")["restorePoint"]) == ("Done", "p1")


def test_of_a_long_list_the_newest_are_shown() -> None:
    rows = [point(hour).as_json() for hour in range(100)]
    shown = json.loads(newest(rows, 5000))
    assert shown == rows[-len(shown) :]
    assert 3 < len(shown) < 100


def test_of_a_long_list_of_points_those_that_close_backups_stay() -> None:
    rows = [point(hour, backup=f"b{hour}" if hour % 24 == 0 else None).as_json() for hour in range(200)]
    everything = sum(len(json.dumps(row)) for row in rows)
    text, since = listed_points(rows, everything // 3)
    shown = json.loads(text)
    assert len(text) <= everything // 3
    assert [row["time"] for row in shown] == sorted(row["time"] for row in shown)
    assert {row["backup"] for row in shown if row["backup"]} == {f"b{hour}" for hour in range(0, 200, 24)}
    newer = [row for row in rows if row["time"] >= since]
    assert newer
    assert shown[-len(newer) :] == newer
    left_out = [row for row in rows if row not in shown]
    assert left_out
    assert all(row["time"] < since for row in left_out)
    assert listed_points(rows, everything)[1] == ""
    assert listed_points([], 100) == ("[]", "")


def test_the_lists_fit_into_their_config_map_however_many_groups_there_are(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.desk.look()
    for number in range(200):
        made = replace(backup(1, groups=17), id=f"b{number:03}", requested_at=at(number))
        office.method.repository.remember_backup(made)
    for number in range(150):
        office.method.repository.remember_point(point(number, groups=17))
    monkeypatch.setattr(desk_module, "LIST_EVERY", 2)
    office.desk._looks = 2
    office.desk.look()
    assert 500_000 < sum(map(len, office.list().values())) < 1_000_000
    listed = [each["id"] for each in json.loads(office.list()["backups"])]
    assert len(listed) > 50
    assert listed[-1] == "b199"


def test_a_list_that_can_not_be_written_is_told_and_holds_up_no_backup(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(data: object) -> None:
        raise PgherdError("the API server refuses it")

    office.desk.look()
    monkeypatch.setattr(office.desk, "_publish", refused)
    monkeypatch.setattr(desk_module, "LIST_EVERY", 2)
    office.desk._looks = 2
    office.declare("before-release")
    office.desk._look_and_tell()
    assert office.status("before-release")["phase"] == "Requested"
    assert office.desk.trouble().endswith("is not up to date: the API server refuses it")
    monkeypatch.undo()


def test_a_schedule_asks_for_its_backup_when_it_is_due(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        moment = datetime(2026, 11, 20, 1, 59, tzinfo=UTC)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.moment

    monkeypatch.setattr(desk_module, "datetime", Clock)
    path = f"{GROUP}/postgresbackupschedules/nightly"
    declared = {"cluster": "shop", "cron": "0 2 * * *", "type": "full"}
    office.kube.put(
        path,
        {"apiVersion": SCHEDULE.api_version, "kind": SCHEDULE.name, "metadata": {}, "spec": declared},
    )
    office.desk.look()
    assert office.kube.objects[path]["status"]["nextAt"] == "2026-11-20T02:00+00:00"
    assert office.ids() == []
    Clock.moment = datetime(2026, 11, 20, 2, 0, 5, tzinfo=UTC)
    office.desk.look()
    office.desk.look()
    assert office.ids() == ["nightly-20261120-0200"]
    assert office.kube.objects[path]["status"]["lastBackup"] == "nightly-20261120-0200"
    assert office.kube.objects[path]["status"]["nextAt"] == "2026-11-21T02:00+00:00"


def test_a_schedule_that_never_comes_is_told(office: Office) -> None:
    path = f"{GROUP}/postgresbackupschedules/never"
    declared = {"cluster": "shop", "cron": "0 0 30 2 *"}
    office.kube.put(
        path,
        {"apiVersion": SCHEDULE.api_version, "kind": SCHEDULE.name, "metadata": {}, "spec": declared},
    )
    office.desk.look()
    assert "spec.cron" in office.kube.objects[path]["status"]["problem"]


def test_what_was_wrong_with_a_schedule_is_told_until_it_is_right_and_no_longer(office: Office) -> None:
    path = f"{GROUP}/postgresbackupschedules/nightly"

    def declare(cron: str) -> dict[str, Any]:
        before = office.kube.objects.get(path, {})
        raw = {"apiVersion": SCHEDULE.api_version, "kind": SCHEDULE.name, "metadata": {}, **before}
        office.kube.put(path, {**raw, "spec": {"cluster": "shop", "cron": cron}})
        office.desk.look()
        status: dict[str, Any] = office.kube.objects[path]["status"]
        return status

    declare("0 2 * * *")
    assert "spec.cron" in declare("0 0 30 2 *")["problem"]
    assert declare("0 2 * * *").get("problem") is None
    written = len(office.kube.writes("PATCH"))
    office.desk.look()
    office.desk.look()
    assert len(office.kube.writes("PATCH")) == written, "what says nothing new is not written"


def test_the_definitions_fill_in_nothing_that_was_not_asked_for() -> None:
    schedule = schedule_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert "default" not in schedule["properties"]["drill"]
    declaration = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"][
        "properties"
    ]
    assert "default" not in declaration["backup"]
    assert "default" not in declaration["bootstrap"]
    assert declaration["expansion"]["default"] == {}
