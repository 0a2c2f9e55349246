"""Repositories on volumes: which claims will do, who mounts them, and the pod that holds one for the operator. Pure.

All members mount the claim, for each archives its log there. The operator itself mounts nothing: what is remembered in
the repository it reads and writes by programs in a small pod of the cluster's, which is there whether any member runs
or not, and ends by itself when nobody has asked it for anything for a while.

A server must not wait for its backups. A pod can't start without a claim that it names, so members name only one that
is bound and that several nodes can have; what keeps another one from use the condition of backups tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pgherd.model.spec import PostgresCluster, RepositorySpec
from pgherd.model.topology import COORDINATOR
from pgherd.platform.kubernetes import names, pods

Object = Mapping[str, Any]

HOLDER_LABEL = f"{names.DOMAIN}/repository"
"""on the pod that holds a volume for the operator"""
MANY = "ReadWriteMany"
WHERE = "repository.volume"
IDLE_SECONDS = 600
"""how long a pod that nobody asks for anything holds a volume"""

HOLD = f"""\
trap 'exit 0' TERM INT
touch /tmp/used
while [ $(($(date +%s) - $(stat -c %Y /tmp/used))) -lt {IDLE_SECONDS} ]; do
    sleep 15 &
    wait
done
"""
"""``/tmp/used`` is touched by each use (``backup.volume_files``)"""


def claim_of(repository: RepositorySpec | None) -> str | None:
    """The claim that a repository is on; None: it is on none."""
    volume = repository.volume if repository is not None else None
    return volume.claim_name if volume is not None else None


def claims_to_restore(cluster: PostgresCluster, asked: RepositorySpec | None = None) -> list[str]:
    """Those that who puts a cluster's data together may have to read.

    :param asked: where a restore in place was asked to read, or one that names no repository was found to
    """
    spec = cluster.spec
    source = spec.bootstrap.recovery if spec.bootstrap is not None else None
    declared = [each.repository for each in (spec.backup, source) if each is not None]
    found = (claim_of(each) for each in (*declared, asked))
    return sorted({claim for claim in found if claim is not None})


def problem(claim: str, namespace: str, found: Object | None) -> str | None:
    """What keeps a claim from being used for a repository, and what to do; None: nothing, or it may yet be bound."""
    what = f"{WHERE}: PersistentVolumeClaim {claim} of namespace {namespace}"
    if found is None:
        return f"{WHERE}: there is no PersistentVolumeClaim {claim} in namespace {namespace}: make it, with {MANY}"
    spec = found.get("spec") or {}
    modes = spec.get("accessModes") or []
    if is_going(found):
        return (
            f"{what} is being deleted, and is there only until the last pod that has it ends, which could not start "
            "again: name another one, or leave spec.backup out"
        )
    if MANY not in modes:
        return (
            f"{what} has {', '.join(modes) or 'no access mode'}, but members on several nodes share it: make one with "
            f"{MANY}, of a StorageClass that has that (NFS and the like)"
        )
    if spec.get("volumeMode", "Filesystem") != "Filesystem":
        return f"{what} has volumeMode {spec['volumeMode']}: make one with Filesystem"
    if _phase(found) == "Lost":
        return f"{what} has lost its volume: bring PersistentVolume {spec.get('volumeName')} back, or make another one"
    return None


def is_usable(found: Object | None) -> bool:
    """Whether members may name a claim: a pod that does starts."""
    return found is not None and problem("", "", found) is None and _phase(found) == "Bound"


def is_going(found: Object | None) -> bool:
    """Whether a claim is being deleted. For as long as a pod has it, it stays, and what is on it."""
    return found is not None and "deletionTimestamp" in found["metadata"]


def _phase(claim: Object) -> str:
    return str((claim.get("status") or {}).get("phase", "Pending"))


def mounted(spec: Object) -> list[str]:
    """The claims of repositories that a pod's spec has."""
    return [
        str(each["persistentVolumeClaim"]["claimName"])
        for each in spec.get("volumes") or ()
        if each["name"].startswith(pods.REPOSITORY) and "persistentVolumeClaim" in each
    ]


def holder_name(cluster: str, claim: str) -> str:
    """Name of the pod that holds a claim for the operator."""
    return f"{cluster}-repository-{hashlib.sha256(claim.encode()).hexdigest()[:8]}"


def holder_pod(cluster: PostgresCluster, claim: str, image: str) -> dict[str, Any]:
    """The pod: where the coordinator's members may be, so that it is where the volume can be had."""
    name, group = cluster.metadata.name, pods.group_spec(cluster, COORDINATOR)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # The members' own: who lets it pull images from a closed registry has let this pod, too.
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(pods.POD_SECURITY),
        "tolerations": pods.tolerations(group),
        "containers": [
            {
                "name": names.CONTAINER,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/bash", "-c", HOLD],
                "resources": {
                    "requests": {"cpu": "10m", "memory": "64Mi"},
                    "limits": {"memory": "256Mi"},
                },
                "securityContext": dict(pods.CONTAINER_SECURITY),
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    pods.mount_claims(spec, [claim])
    if group.node_selector:
        spec["nodeSelector"] = dict(group.node_selector)
    metadata = {
        "name": holder_name(name, claim),
        "labels": {**names.labels(name), HOLDER_LABEL: "true"},
        "annotations": {names.TEMPLATE_ANNOTATION: pods.fingerprint(spec, {})},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def has_ended(pod: Object) -> bool:
    """Whether a pod is of no use any more."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
