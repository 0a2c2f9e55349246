"""Where a member's data are put together when a node dies: on the volume that it has, or on a new one.

A volume may be bound to its node (local storage) or may come along to another one; only the scheduler knows. So a pod
on a dead node is forgotten and made again on its volume. If it finds no place then, and the node on which that volume
was used last stays silent, the volume is given up as those of lost members are: after ``replaceLostAfter``. Nobody
needs what is on it, for it is not in force: whoever makes it decides what is made anew, and writes that down first.

There never are two pods on one volume that both do something: programs of the forgotten one have ended, because they
heard nothing from the operator for longer than they wait (``programs``), and a new volume is used by the new pod alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgherd.faults import crash_point
from pgherd.model.topology import Member
from pgherd.platform.base import Lost
from pgherd.platform.kubernetes import names, restore_pods, views
from pgherd.platform.kubernetes.api import POD, VOLUME_CLAIM, Object

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

DEAD_SECONDS = 60.0
"""for how long a node has to be silent until a pod on it is forgotten; longer than guards of programs wait"""
LAST_NODE = f"{names.DOMAIN}/last-node"
"""on a volume claim: where a pod used it last, as far as we saw"""
_CHOSEN_NODE = "volume.kubernetes.io/selected-node"
"""the scheduler's: for which node a volume was made"""


class Places:
    """Those of one cluster's members, while they or a group of them are made from a backup."""

    def __init__(self, platform: KeepsBackups, cluster: str) -> None:
        self._platform, self._cluster = platform, cluster

    def claim(self, member: Member, epoch: int) -> Object | None:
        """That of a member's volume; asked."""
        name = names.volume_claim(member, epoch)
        return self._platform.api.get(VOLUME_CLAIM, self._platform.namespace, name)

    def is_dead(self, pod: Object) -> bool:
        """Whether nobody can be reached in a pod any more, whatever its node said of it last."""
        return self._platform.silent_for(views.doubtful_node(pod)) > DEAD_SECONDS and not self._is_late(pod)

    def _is_late(self, pod: Object) -> bool:
        """Whether a pod came to its node when that was silent already.

        The scheduler does so where every taint is tolerated and a volume allows no other node: the next one would come
        there, too.
        """
        silent = self._platform.silent_for(views.doubtful_node(pod))
        made = pod["metadata"].get("creationTimestamp")
        if not silent or made is None:
            return False
        return (datetime.now(UTC) - datetime.fromisoformat(made)).total_seconds() < silent

    def note(self, claim: Object, pod: Object) -> None:
        """Write down where a pod uses a volume."""
        node = str(pod["spec"].get("nodeName") or "")
        if node and _last_node(claim) != node:
            patch = {"metadata": {"annotations": {LAST_NODE: node}}}
            name = claim["metadata"]["name"]
            self._platform.api.merge(VOLUME_CLAIM, self._platform.namespace, name, patch)

    def require(self, member: Member, claim: Object, pod: Object) -> None:
        """Give up a volume that can't be used where its pod could run.

        :raises Lost: what is made on it is to be made anew
        """
        limit = self._platform.declaration(self._cluster).cluster.spec.replace_lost_after
        if not limit or not (views.finds_no_place(pod) or self._is_late(pod)):
            return
        node = _last_node(claim)
        if self._platform.silent_for(node) >= limit:
            raise Lost(
                f"{claim['metadata']['name']} was used on node {node}, which is silent, and can't be used elsewhere: "
                f"what was made on it for {member.name} is lost",
                member.group,
            )

    def discard(self, member: Member, epoch: int) -> None:
        """Remove a volume that is in nobody's place, and its pod. Returns at once."""
        platform = self._platform
        # The claim first: it goes when the pod has gone, and whoever is killed in between finds it going.
        if (found := self.claim(member, epoch)) is not None and "deletionTimestamp" not in found["metadata"]:
            platform.api.delete_this(VOLUME_CLAIM, platform.namespace, found)
        crash_point(f"restore:discarded:{member.group}")
        pod = platform.api.get(POD, platform.namespace, restore_pods.restore_pod_name(member, epoch))
        if pod is not None:
            platform.end_pod(pod)


def _last_node(claim: Object) -> str | None:
    known = claim["metadata"].get("annotations") or {}
    return known.get(LAST_NODE) or known.get(_CHOSEN_NODE)
