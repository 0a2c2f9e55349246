"""Where a new cluster's first members are put together: a pod for each, on the member's own volume. Pure.

It does nothing by itself, and nobody is led to it: it has the member's image, its volume and its place, but neither its
name nor its labels. When the data are in their place it goes, and the member's own pod takes the volume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgherd.model.spec import PostgresCluster, RepositorySpec
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names, patroni_files, pods, volumes

RESTORE_LABEL = f"{names.DOMAIN}/restore"
"""on such a pod: the member whose data it holds"""
SOURCE_ANNOTATION = f"{names.DOMAIN}/source"
"""the same: what it was made to read, as a fingerprint"""


@dataclass(frozen=True)
class Source:
    """What must be read where data are put together.

    :ivar cluster: whose backups
    """

    cluster: str
    repository: RepositorySpec

    @property
    def claim(self) -> str | None:
        """The claim that they are on; None: they are on none."""
        return volumes.claim_of(self.repository)

    @property
    def mark(self) -> str:
        """Differs where other backups are read, or the same ones elsewhere."""
        told = self.repository.model_dump_json(by_alias=True, exclude_defaults=True)
        return hashlib.sha256(f"{self.cluster} {told}".encode()).hexdigest()[:16]

    def is_read_in(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod can read it: it has the claim, and was not made to read something else."""
        known = (pod["metadata"].get("annotations") or {}).get(SOURCE_ANNOTATION, self.mark)
        return known == self.mark and self.claim in (None, *volumes.mounted(pod["spec"]))


IDLE = f"""\
trap 'exit 0' TERM INT
exec 9<> {patroni_files.LOCK_PATH}
flock 9
while :; do
    sleep 3600 &
    wait
done
"""
"""holds the volume's lock, as every container does that uses it"""


def restore_pod_name(member: Member, epoch: int) -> str:
    """Name of the pod in which a member's data are made: another one for each volume."""
    return f"{member.name}-restore{epoch or ''}"


def restore_pod(
    cluster: PostgresCluster,
    member: Member,
    image: str,
    epoch: int,
    repositories: Sequence[str] = (),
    source: Source | None = None,
) -> dict[str, Any]:
    """The pod.

    :param repositories: claims of volumes that are read there
    :param source: what must be read
    """
    group = pods.group_spec(cluster, member.group)
    mounts = [
        (names.VOLUME, patroni_files.VOLUME_PATH),
        ("recovery", patroni_files.RECOVERY_DIRECTORY),
        ("run", patroni_files.SOCKET_PATH),
        ("tmp", "/tmp"),
        ("shm", "/dev/shm"),
    ]
    spec: dict[str, Any] = {
        "restartPolicy": "Always",
        # The members' own: who lets it pull images from a closed registry has let these pods, too.
        "serviceAccountName": cluster.metadata.name,
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
                "command": ["/bin/bash", "-c", IDLE],
                "resources": pods.resources(group),
                "securityContext": dict(pods.CONTAINER_SECURITY),
                "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts],
            }
        ],
        "volumes": [
            {
                "name": names.VOLUME,
                "persistentVolumeClaim": {"claimName": names.volume_claim(member, epoch)},
            },
            pods.secret_volume("recovery", names.recovery_secret(cluster.metadata.name)),
            {"name": "run", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    pods.mount_claims(spec, repositories)
    if group.node_selector:
        spec["nodeSelector"] = dict(group.node_selector)
    labels = {**names.labels(cluster.metadata.name), RESTORE_LABEL: member.name}
    metadata: dict[str, Any] = {"name": restore_pod_name(member, epoch), "labels": labels}
    if source is not None:
        metadata["annotations"] = {SOURCE_ANNOTATION: source.mark}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def pods_of(cluster: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Member]:
    """The restore pods among these, by name, with the members whose data they hold."""
    by_name = {}
    for pod in found:
        member = names.member_of(cluster, (pod["metadata"].get("labels") or {}).get(RESTORE_LABEL, ""))
        if member is not None:
            by_name[pod["metadata"]["name"]] = member
    return by_name


def members_of(cluster: str, found: Sequence[Mapping[str, Any]]) -> list[Member]:
    """Members whose data such a pod holds."""
    return sorted(pods_of(cluster, found).values())


def member_claim(cluster: PostgresCluster, member: Member, epoch: int) -> dict[str, Any]:
    """The claim of the member's volume, which its StatefulSet will find."""
    return pods.claim(cluster, member.group, names.volume_claim(member, epoch))
