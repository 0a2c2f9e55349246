"""What to do about what Kubernetes complains of. Pure."""

from __future__ import annotations

import re

_ADVICE = (
    (
        r"storageclass\S* \S+ not found",
        "create the class, or delete the cluster and declare one that there is",
    ),
    (r"exceeded quota", "raise the quota, or declare less"),
    (r"anti-affinity", "add nodes, or declare antiAffinity: preferred"),
    (r"node affinity/selector", "label a node so, or declare another nodeSelector"),
    (r"Insufficient (cpu|memory)", "add nodes, or declare smaller resources"),
    (r"untolerated taint", "free a node of its taint, or declare tolerations"),
    (
        r"(ErrImage|ImagePull|InvalidImageName)",
        "put the image where nodes find it, or declare another postgres.image",
    ),
    (r"violates PodSecurity", "let the namespace admit pods of the 'restricted' kind"),
    (r"must support resize", "let the class do so (allowVolumeExpansion: true)"),
    (r"cannot patch resource \"nodes\"", "give the operator this right: pgherd install --fencing"),
    (r"cannot get resource \"persistentvolumes\"", "give the operator this right: pgherd install"),
    (
        r"^spec\.postgres\.(parameters\.|hostBasedAuthentication:)",
        "declare something else; no server was started yet, volumes may stay",
    ),
    (r"OOMKilled", "declare more resources.memory"),
)


def advised(complaint: str) -> str:
    """The complaint, and the way out where one is known.

    More than one may fit (each node has a reason of its own): all are said.
    """
    ways = [way for pattern, way in _ADVICE if re.search(pattern, complaint)]
    return f"{complaint.rstrip('. ')}: {', or '.join(ways)}" if ways else complaint
