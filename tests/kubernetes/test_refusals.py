"""What the API server itself refuses: the schema's rules, each by a resource that breaks it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.kubernetes.kube import Cluster, KubectlError, Namespace

pytestmark = pytest.mark.kubernetes


def merged(into: Any, changes: Mapping[str, Any]) -> Any:
    for key, value in changes.items():
        into[key] = merged(into.get(key, {}), value) if isinstance(value, Mapping) else value
    return into


def recovered(**recovery: Any) -> dict[str, Any]:
    return {"spec": {"bootstrap": {"recovery": recovery}}}


GO_TOGETHER = "spec.bootstrap.*method, secretRef and encrypt go with repository"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"spec": {"segments": {"count": 0}}}, "spec.segments.count"),
    ({"spec": {"segments": {"count": 9}}}, "spec.segments.count: Invalid value"),
    ({"spec": {"shardCount": 0}}, "spec.shardCount"),
    ({"spec": {"engine": "oracle"}}, "spec.engine"),
    ({"spec": {"durability": "hope"}}, "spec.durability"),
    ({"spec": {"coordinator": {"antiAffinity": "maybe"}}}, "spec.coordinator.antiAffinity"),
    ({"spec": {"postgres": {"version": 9}}}, "spec.postgres.version"),
    ({"metadata": {"name": "a-segment-1"}}, "metadata.name must not end in"),
    ({"metadata": {"name": "a-coordinator"}}, "metadata.name must not end in"),
    ({"metadata": {"name": "a-ro"}}, "metadata.name must not end in"),
    ({"metadata": {"name": "a-ca"}}, "metadata.name must not end in"),
    ({"metadata": {"name": "a-0-leader"}}, "metadata.name must not end in"),
    ({"metadata": {"name": "a" * 41}}, "metadata.name"),
    ({"metadata": {"name": "1a"}}, "metadata.name"),
    ({"spec": {"colour": "red"}}, "spec.colour"),
    ({"spec": {"backup": {"repository": {"path": "/mnt"}}}}, "a path is for the local platform"),
    (
        {"spec": {"bootstrap": {"recovery": {"cluster": "shop", "repository": {"path": "/mnt"}}}}},
        "spec.bootstrap.*a path is for the local platform",
    ),
    (
        {"spec": {"backup": {"repository": {"volume": {"claimName": "backups"}}}}},
        "spec.backup.method.*a volume needs method: pgbackrest",
    ),
    (
        {
            "spec": {
                "bootstrap": {
                    "recovery": {"cluster": "shop", "repository": {"volume": {"claimName": "backups"}}}
                }
            }
        },
        "spec.bootstrap.*a volume needs method: pgbackrest",
    ),
    (
        {"spec": {"backup": {"method": "pgbackrest", "repository": {"volume": {"prefix": "a"}}}}},
        "spec.backup.repository.volume.claimName: Required value",
    ),
    ({"spec": {"bootstrap": {"clone": {"cluster": "wrong"}}}}, "clone.cluster is the cluster itself"),
    (recovered(cluster="shop", method="pgbackrest"), GO_TOGETHER),
    (recovered(cluster="shop", secretRef="keys"), GO_TOGETHER),
    (recovered(cluster="shop", encrypt=True), GO_TOGETHER),
    (recovered(cluster="wrong"), "spec.bootstrap.*recovery.cluster is the cluster itself"),
    (
        {"spec": {"engine": "fdw", "expansion": {"mode": "clone"}}},
        "spec.expansion.mode.*clone needs spec.engine citus",
    ),
]
FIXED: list[tuple[dict[str, Any], str]] = [
    ({"engine": "citus"}, "spec.engine"),
    ({"database": "other"}, "spec.database"),
    ({"shardCount": 16}, "spec.shardCount"),
    ({"postgres": {"version": 16}}, "spec.postgres.version"),
    (
        {"coordinator": {"storage": {"storageClassName": "b"}}},
        "spec.coordinator.storage.storageClassName",
    ),
    ({"segments": {"storage": {"storageClassName": "b"}}}, "spec.segments.storage.storageClassName"),
    ({"coordinator": {"storage": {"size": "512Mi"}}}, "spec.coordinator.storage.size"),
    ({"segments": {"storage": {"size": "512Mi"}}}, "spec.segments.storage.size"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_a_wrong_resource_is_refused_with_its_path(
    namespace: Namespace, change: dict[str, Any], says: str
) -> None:
    manifest = merged(copy.deepcopy(Cluster(namespace, "wrong").declaration()), change)
    with pytest.raises(KubectlError, match=says):
        namespace.apply(manifest)


S3 = {"s3": {"bucket": "safe", "region": "eu-central-1"}}


@pytest.mark.parametrize(
    "change",
    [
        recovered(cluster="shop"),
        recovered(cluster="shop", restorePoint="p1", inclusive=False),
        recovered(cluster="right", method="pgbackrest", repository=S3, secretRef="keys", encrypt=True),
    ],
)
def test_what_a_cluster_is_made_of_may_be_said_in_short_and_in_full(
    namespace: Namespace, change: dict[str, Any]
) -> None:
    cluster = Cluster(namespace, "right")
    manifest = merged(copy.deepcopy(cluster.declaration()), change)
    # Never reconciled: a cluster that is stopped from the beginning needs no members.
    manifest["metadata"]["annotations"] = {"pgherd.io/stopped": "true"}
    namespace.apply(manifest)
    cluster.delete()


@pytest.mark.parametrize(("change", "path"), FIXED)
def test_what_may_not_change_is_refused(namespace: Namespace, change: dict[str, Any], path: str) -> None:
    cluster = Cluster(namespace, "fixed")
    storage = {"storage": {"size": "1Gi", "storageClassName": "a"}}
    manifest = cluster.declaration(group=storage, postgres={"version": 17})
    # Never reconciled: a cluster that is stopped from the beginning needs no members.
    manifest["metadata"]["annotations"] = {"pgherd.io/stopped": "true"}
    namespace.apply(manifest)
    try:
        with pytest.raises(KubectlError, match=f"{path}.*(can't be changed|may not shrink)"):
            cluster.patch(change)
    finally:
        cluster.delete()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"engine": "fdw"}, "spec.engine"),
        ({"postgres": {"version": 16}}, "spec.postgres.version"),
        ({"segments": {"storage": {"storageClassName": "b"}}}, "spec.segments.storage.storageClassName"),
    ],
)
def test_what_was_left_out_may_not_be_set_later(
    namespace: Namespace, change: dict[str, Any], path: str
) -> None:
    cluster = Cluster(namespace, "bare")
    manifest = cluster.declaration()
    del manifest["spec"]["engine"]
    manifest["metadata"]["annotations"] = {"pgherd.io/stopped": "true"}
    namespace.apply(manifest)
    try:
        with pytest.raises(KubectlError, match=f"{path}.*can't be changed"):
            cluster.patch(change)
        cluster.patch({"engine": "citus"})  # what was left out says just that
    finally:
        cluster.delete()


@pytest.mark.parametrize(
    ("kind", "change", "path"),
    [
        ("PostgresBackup", {"cluster": "other"}, "spec.cluster"),
        ("PostgresBackup", {"type": "incremental"}, "spec.type"),
        ("PostgresBackupSchedule", {"cluster": "other"}, "spec.cluster"),
    ],
)
def test_what_may_not_change_of_a_backup_is_refused(
    namespace: Namespace, kind: str, change: dict[str, Any], path: str
) -> None:
    spec = {"cluster": "nobody", "type": "full"}
    if kind == "PostgresBackupSchedule":
        spec["cron"] = "0 3 * * *"
    metadata = {"name": "fixed"}
    namespace.apply({"apiVersion": "pgherd.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
    try:
        with pytest.raises(KubectlError, match=f"{path}.*can't be changed"):
            namespace.kubectl(
                "patch", kind.lower(), "fixed", "--type", "merge", "-p", json.dumps({"spec": change})
            )
    finally:
        namespace.kubectl("delete", kind.lower(), "fixed")
