"""Backups on Kubernetes as far as no Kubernetes is needed: what is refused, what pods get, what the desk answers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import listing, maker, registry
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.records import Backup
from pgherd.backup.store import DirectoryStore
from pgherd.errors import BadInput
from pgherd.model.topology import Member
from pgherd.operator import backups as desk_module
from pgherd.operator.backups import Desk, newest
from pgherd.platform.kubernetes import names, restore_pods
from pgherd.platform.kubernetes.api import BACKUP, SCHEDULE
from pgherd.platform.kubernetes.crd import crd, schedule_crd
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from tests.support.backups import at, backup, point
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
            "spec.bootstrap.clone: is not available on kubernetes",
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
    for name in (names.backup_secret("a"), names.recovery_state("a"), names.backups_list("a")):
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


# the desk


class Records:
    """A method that only remembers."""

    location = "s3://safe/shop"

    def __init__(self, folder: Path) -> None:
        self.repository = Catalogue(DirectoryStore(folder), "pgbackrest")

    def check(self) -> None:
        return


class Office:
    """A desk, its cluster's resource and the repository."""

    def __init__(self, kube: Kube, platform: KubernetesPlatform, method: Records) -> None:
        self.kube, self.method = kube, method
        self.desk = Desk(platform, "shop", threading.Event())
        raw = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster", "metadata": {}}
        kube.put(f"{GROUP}/postgresclusters/shop", {**raw, "spec": {"engine": "fdw", "backup": DECLARED}})

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
    method = Records(tmp_path / "repository")
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


def test_of_a_long_list_the_newest_are_shown() -> None:
    rows = [point(hour).as_json() for hour in range(100)]
    shown = json.loads(newest(rows, 5000))
    assert shown == rows[-len(shown) :]
    assert 3 < len(shown) < 100


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


def test_the_definitions_fill_in_nothing_that_was_not_asked_for() -> None:
    schedule = schedule_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert "default" not in schedule["properties"]["drill"]
    declaration = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"][
        "properties"
    ]
    assert "default" not in declaration["backup"]
    assert "default" not in declaration["bootstrap"]
    assert declaration["expansion"]["default"] == {}
