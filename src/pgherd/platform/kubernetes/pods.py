"""The pod of one member, and the StatefulSet of a group. Pure.

Pods meet the ``restricted`` pod security standard: not root, no capabilities, a read-only root file system. The
probes ask Patroni: alive is a Patroni whose loop runs, whatever its PostgreSQL is doing (a long crash recovery must not
be killed over and over); ready is a PostgreSQL that serves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pgherd.model.spec import GroupSpec, PostgresCluster
from pgherd.model.topology import COORDINATOR
from pgherd.platform.kubernetes import names, patroni_files
from pgherd.platform.machine import VOLUMES

POSTGRES_UID = 999
REPOSITORY = "repository"
"""what pods call a volume that a repository is on"""
STOP_SECONDS = 120
"""how long a pod may take for its last checkpoint"""
UNREACHABLE_SECONDS = 30
"""how long a member waits for a node that fell silent before it is given up there"""
POD_SECURITY: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": POSTGRES_UID,
    "runAsGroup": POSTGRES_UID,
    "fsGroup": POSTGRES_UID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def group_spec(cluster: PostgresCluster, group: int) -> GroupSpec:
    """What the declaration says of a group."""
    return cluster.spec.coordinator if group == COORDINATOR else cluster.spec.segments


def stateful_set(
    cluster: PostgresCluster,
    group: int,
    *,
    namespace: str,
    replicas: int,
    image: str,
    files: Mapping[str, str],
    epoch: int,
    volumes: int,
    marks: Mapping[str, str],
    repository: str | None = None,
) -> dict[str, Any]:
    """The StatefulSet of a group.

    :param epoch: whose place in Patroni's store it has
    :param volumes: of which epoch its members' volumes are
    :param replicas: how many members there should be
    :param files: what pods take up only when they start, besides what their template says
    :param marks: annotations of pods for which none is replaced that runs
    :param repository: the claim of a volume that they have their repository on
    """
    name = cluster.metadata.name
    template = pod_template(cluster, group, image, namespace, epoch, volumes)
    if repository is not None:
        mount_claims(template["spec"], [repository])
    template["metadata"]["annotations"] = {names.TEMPLATE_ANNOTATION: fingerprint(template, files), **marks}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": names.group_object(name, group), "labels": _labels(cluster, group)},
        "spec": {
            "serviceName": names.group_object(name, group),
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            # pgherd decides which member is replaced when: standbys first, the primary after a switchover.
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": names.selector(name, group)},
            "template": template,
            "volumeClaimTemplates": [claim(cluster, group, names.volume(volumes))],
        },
    }


def fingerprint(template: dict[str, Any], files: Mapping[str, str]) -> str:
    """By which a pod shows of which template and files it was made."""
    return hashlib.sha256(json.dumps([template, dict(files)], sort_keys=True).encode()).hexdigest()[:16]


def _labels(cluster: PostgresCluster, group: int) -> dict[str, str]:
    return {**cluster.metadata.labels, **names.labels(cluster.metadata.name, group)}


def claim(cluster: PostgresCluster, group: int, name: str) -> dict[str, Any]:
    """The claim of a member's volume, as its StatefulSet makes it."""
    storage = group_spec(cluster, group).storage
    wanted: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        wanted["storageClassName"] = storage.storage_class_name
    labels = names.labels(cluster.metadata.name, group)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": labels},
        "spec": wanted,
    }


def pod_template(
    cluster: PostgresCluster, group: int, image: str, namespace: str, epoch: int, volumes: int
) -> dict[str, Any]:
    """The template of a group's pods, without annotations."""
    name = cluster.metadata.name
    spec = group_spec(cluster, group)
    return {
        "metadata": {
            "labels": {
                **_labels(cluster, group),
                **names.pod_labels(cluster, group, epoch),
            },
        },
        "spec": {
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "enableServiceLinks": False,
            # A name server may be on the node that died: ask another one soon.
            "dnsConfig": {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "3"}]},
            "securityContext": dict(POD_SECURITY),
            "containers": [_container(cluster, group, namespace, image, volumes)],
            "volumes": _volumes(cluster, group),
            **_placement(cluster, spec, group),
        },
    }


def _container(
    cluster: PostgresCluster, group: int, namespace: str, image: str, volumes: int
) -> dict[str, Any]:
    return {
        "name": names.CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", f"{patroni_files.DIRECTORY}/start.sh"],
        "env": patroni_files.environment(cluster, group, namespace),
        "ports": [
            {"name": "postgres", "containerPort": names.POSTGRES_PORT},
            {"name": "patroni", "containerPort": names.REST_PORT},
        ],
        "resources": resources(group_spec(cluster, group)),
        "securityContext": dict(CONTAINER_SECURITY),
        # A loop that hangs for a minute and a half is dead; one that waits for a recovery or the API server is not.
        "livenessProbe": _probe("/liveness", initial=30, period=15, failures=6),
        # Not Patroni's /readiness, which wants a standby to stream: the next primary must not leave its Service just
        # because the one before died.
        "readinessProbe": _probe("/health", initial=1, period=2, failures=2),
        "volumeMounts": _mounts(cluster, volumes),
    }


def _probe(path: str, *, initial: int, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "patroni", "scheme": "HTTPS"},
        "initialDelaySeconds": initial,
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def resources(spec: GroupSpec) -> dict[str, Any]:
    """What a member asks of its node."""
    # No limit on cores: a throttled primary misses heartbeats. Memory is a promise that must hold.
    requests = {"cpu": spec.resources.cpu, "memory": spec.resources.memory}
    found: dict[str, Any] = {"requests": {key: value for key, value in requests.items() if value}}
    if spec.resources.memory:
        found["limits"] = {"memory": spec.resources.memory}
    return found


def _volumes(cluster: PostgresCluster, group: int) -> list[dict[str, Any]]:
    name = cluster.metadata.name
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": names.group_object(name, group)}},
        # PostgreSQL takes a key that its group may read if root owns it.
        {
            "name": "tls",
            "secret": {"secretName": names.tls_secret(name, group), "defaultMode": 0o440},
        },
        {"name": "run", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    if cluster.spec.backup is not None:
        volumes.append(secret_volume("backup", names.backup_secret(name)))
    return volumes


def secret_volume(name: str, secret: str) -> dict[str, Any]:
    """Files of a Secret; a pod starts without them, for a server must not wait for its backups."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440, "optional": True}}


def mount_claims(spec: dict[str, Any], claims: Sequence[str]) -> None:
    """Add claims of volumes that repositories are on to what a pod is made of."""
    container = next(each for each in spec["containers"] if each["name"] == names.CONTAINER)
    for number, claim in enumerate(claims):
        name = f"{REPOSITORY}{number or ''}"
        spec["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        container["volumeMounts"].append({"name": name, "mountPath": str(VOLUMES / claim)})


def _mounts(cluster: PostgresCluster, epoch: int) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": names.volume(epoch), "mountPath": patroni_files.VOLUME_PATH},
        {"name": "config", "mountPath": patroni_files.DIRECTORY, "readOnly": True},
        {"name": "tls", "mountPath": patroni_files.TLS_DIRECTORY, "readOnly": True},
        {"name": "run", "mountPath": patroni_files.SOCKET_PATH},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if cluster.spec.backup is not None:
        mounts.append({"name": "backup", "mountPath": patroni_files.BACKUP_DIRECTORY, "readOnly": True})
    return mounts


def _placement(cluster: PostgresCluster, spec: GroupSpec, group: int) -> dict[str, Any]:
    placement: dict[str, Any] = {"tolerations": tolerations(spec)}
    if spec.node_selector:
        placement["nodeSelector"] = dict(spec.node_selector)
    selector = {"matchLabels": names.selector(cluster.metadata.name, group)}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    if spec.anti_affinity == "required":
        placement["affinity"] = {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
        }
    elif spec.anti_affinity == "preferred":
        weighted = {"weight": 100, "podAffinityTerm": term}
        placement["affinity"] = {
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}
        }
    # Members of a group in different zones where there are zones.
    placement["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
        }
    ]
    return placement


def tolerations(spec: GroupSpec) -> list[dict[str, Any]]:
    """What a member puts up with."""
    own = [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": UNREACHABLE_SECONDS,
        }
        for taint in ("not-ready", "unreachable")
    ]
    declared = [
        toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
        for toleration in spec.tolerations
    ]
    return declared + own
