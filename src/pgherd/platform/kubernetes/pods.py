"""The pod of one member, and the StatefulSet of a group. Pure.

Pods meet the ``restricted`` pod security standard: not root, no capabilities, a read-only root file system. The
probes ask Patroni: alive is a Patroni whose loop runs, whatever its PostgreSQL is doing (a long crash recovery must not
be killed over and over); ready is a PostgreSQL that serves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pgherd.model.spec import GroupSpec, PostgresCluster
from pgherd.model.topology import COORDINATOR
from pgherd.platform.kubernetes import names, patroni_files

POSTGRES_UID = 999
STOP_SECONDS = 120
"""how long a pod may take for its last checkpoint"""
UNREACHABLE_SECONDS = 30
"""how long a member waits for a node that fell silent before it is given up there"""


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
) -> dict[str, Any]:
    """The StatefulSet of a group.

    :param replicas: how many members there should be
    :param files: what pods take up only when they start, besides what their template says
    """
    name = cluster.metadata.name
    template = pod_template(cluster, group, image, namespace)
    template["metadata"]["annotations"] = {names.TEMPLATE_ANNOTATION: fingerprint(template, files)}
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
            "volumeClaimTemplates": [_claim(cluster, group)],
        },
    }


def fingerprint(template: dict[str, Any], files: Mapping[str, str]) -> str:
    """By which a pod shows of which template and files it was made."""
    return hashlib.sha256(json.dumps([template, dict(files)], sort_keys=True).encode()).hexdigest()[:16]


def _labels(cluster: PostgresCluster, group: int) -> dict[str, str]:
    return {**cluster.metadata.labels, **names.labels(cluster.metadata.name, group)}


def _claim(cluster: PostgresCluster, group: int) -> dict[str, Any]:
    storage = group_spec(cluster, group).storage
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        claim["storageClassName"] = storage.storage_class_name
    labels = names.labels(cluster.metadata.name, group)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": names.VOLUME, "labels": labels},
        "spec": claim,
    }


def pod_template(cluster: PostgresCluster, group: int, image: str, namespace: str) -> dict[str, Any]:
    """The template of a group's pods, without annotations."""
    name = cluster.metadata.name
    spec = group_spec(cluster, group)
    return {
        "metadata": {
            "labels": {
                **_labels(cluster, group),
                **names.pod_labels(cluster, group),
            },
        },
        "spec": {
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "enableServiceLinks": False,
            # A name server may be on the node that died: ask another one soon.
            "dnsConfig": {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "3"}]},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": POSTGRES_UID,
                "runAsGroup": POSTGRES_UID,
                "fsGroup": POSTGRES_UID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(cluster, group, namespace, image)],
            "volumes": _volumes(name, group),
            **_placement(cluster, spec, group),
        },
    }


def _container(cluster: PostgresCluster, group: int, namespace: str, image: str) -> dict[str, Any]:
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
        "resources": _resources(group_spec(cluster, group)),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # A loop that hangs for a minute and a half is dead; one that waits for a recovery or the API server is not.
        "livenessProbe": _probe("/liveness", initial=30, period=15, failures=6),
        # Not Patroni's /readiness, which wants a standby to stream: the next primary must not leave its Service just
        # because the one before died.
        "readinessProbe": _probe("/health", initial=1, period=2, failures=2),
        "volumeMounts": [
            {"name": names.VOLUME, "mountPath": patroni_files.VOLUME_PATH},
            {"name": "config", "mountPath": patroni_files.DIRECTORY, "readOnly": True},
            {"name": "tls", "mountPath": patroni_files.TLS_DIRECTORY, "readOnly": True},
            {"name": "run", "mountPath": patroni_files.SOCKET_PATH},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _probe(path: str, *, initial: int, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "patroni", "scheme": "HTTPS"},
        "initialDelaySeconds": initial,
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(spec: GroupSpec) -> dict[str, Any]:
    # No limit on cores: a throttled primary misses heartbeats. Memory is a promise that must hold.
    requests = {"cpu": spec.resources.cpu, "memory": spec.resources.memory}
    found: dict[str, Any] = {"requests": {key: value for key, value in requests.items() if value}}
    if spec.resources.memory:
        found["limits"] = {"memory": spec.resources.memory}
    return found


def _volumes(cluster: str, group: int) -> list[dict[str, Any]]:
    return [
        {"name": "config", "configMap": {"name": names.group_object(cluster, group)}},
        # PostgreSQL takes a key that its group may read if root owns it.
        {
            "name": "tls",
            "secret": {"secretName": names.tls_secret(cluster, group), "defaultMode": 0o440},
        },
        {"name": "run", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def _placement(cluster: PostgresCluster, spec: GroupSpec, group: int) -> dict[str, Any]:
    placement: dict[str, Any] = {"tolerations": _tolerations(spec)}
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


def _tolerations(spec: GroupSpec) -> list[dict[str, Any]]:
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
