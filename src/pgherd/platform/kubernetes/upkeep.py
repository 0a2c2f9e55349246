"""Small things that members can't do for themselves, looked after at each round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pgherd.model.spec import PostgresCluster, parse_bytes
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names, pods, views
from pgherd.platform.kubernetes.api import CONFIG_MAP, POD, VOLUME_CLAIM, Api, Kind, Object, complete
from pgherd.platform.kubernetes.cache import Reader
from pgherd.platform.kubernetes.epochs import Own
from pgherd.platform.kubernetes.places import DEAD_SECONDS

Announce = Callable[[str, str], None]
"""tells whoever follows a cluster (by name) what was done"""

FOUNDING_SECONDS = 15.0
"""how long nobody may be at work on a founding before it is given up; longer than the 10 s for which an API server goes
on to believe the token of a pod that was forgotten"""
_FOUNDING = (
    "initializing",
    "running custom bootstrap",
    "starting after custom bootstrap",
    "creating replica",
)
"""begin the states of a Patroni that is at work on it; the last: its group begins as a copy of another one"""


class Upkeep:
    """What one namespace's groups need now and then.

    :param silent_for: for how many seconds a node has been silent; 0: it reports
    :param rebuild: gives a member another volume and place, and ends the rights that its pod had
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        reader: Reader,
        announce: Announce,
        *,
        silent_for: Callable[[str | None], float],
        rebuild: Callable[[Member], None],
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._reader = reader
        self._announce = announce
        self._silent_for = silent_for
        self._rebuild = rebuild
        self._unfounded: dict[str, float] = {}

    def forget(self, cluster: str) -> None:
        """Nothing is remembered of a cluster that is gone: the founding of a later one begins then."""
        for scope in [each for each in list(self._unfounded) if names.group_of(cluster, each) is not None]:
            self._unfounded.pop(scope, None)

    def group(self, cluster: PostgresCluster, group: int, replicas: int, own: Own) -> None:
        """Look after one group.

        :param replicas: how many members it has, by what it is made of
        :param own: whose volumes and place in Patroni's store it has
        :raises PgherdError: the API server refused something
        """
        epoch = own.epoch
        self._label(cluster, group, replicas, own)
        found = self._pods(cluster.metadata.name, group)
        self._give_up_founding(cluster, group, epoch, found)
        self._release_lock(cluster, group, epoch, found)
        self._relabel(cluster, group, epoch, found)
        self._grow_volumes(cluster, group, own)

    def _pods(self, cluster: str, group: int) -> list[Object]:
        found = self._reader.of_cluster(POD, self._namespace, cluster)
        members = [names.member_of(cluster, each["metadata"]["name"]) for each in found]
        return [each for each, member in zip(found, members, strict=True) if member and member.group == group]

    def _claims(self, cluster: str, group: int, own: Own) -> list[Object]:
        found = self._reader.of_cluster(VOLUME_CLAIM, self._namespace, cluster)
        claims = views.claims_by_member(cluster, found, own.of)
        return [claim for member, claim in claims.items() if member.group == group]

    def _label(self, cluster: PostgresCluster, group: int, replicas: int, own: Own) -> None:
        """Put our labels back on pods and claims: nobody else does, and who is not found is taken for absent."""
        for ordinal in range(replicas):
            member = Member(cluster.metadata.name, group, ordinal)
            pod, claim = self._both(member, own.of(group))
            self._put_labels(member, POD, pod, names.pod_labels(cluster, group, own.epoch))
            self._put_labels(member, VOLUME_CLAIM, claim, names.labels(member.cluster, group))

    def _both(self, member: Member, epoch: int) -> tuple[Object | None, Object | None]:
        pod = self._reader.get(POD, self._namespace, member.name)
        name = names.volume_claim(member, epoch)
        claim = self._reader.get(VOLUME_CLAIM, self._namespace, name)
        # One without the other: it may be out of sight for want of a label.
        if pod is None and claim is not None:
            pod = self._api.get(POD, self._namespace, member.name)
        elif claim is None and pod is not None:
            claim = self._api.get(VOLUME_CLAIM, self._namespace, name)
        return pod, claim

    def _put_labels(self, member: Member, kind: Kind, obj: Object | None, wanted: Mapping[str, str]) -> None:
        if obj is None or wanted.items() <= (obj["metadata"].get("labels") or {}).items():
            return
        changed = self._api.merge(
            kind, self._namespace, obj["metadata"]["name"], {"metadata": {"labels": dict(wanted)}}
        )
        if changed is not None:
            self._reader.put(kind, complete(kind, changed))
            self._announce(
                member.cluster,
                f"restore labels of {kind.name} {obj['metadata']['name']}: somebody changed them",
            )

    def _give_up_founding(
        self, cluster: PostgresCluster, group: int, epoch: int, found: list[Object]
    ) -> None:
        """A founder that was killed has left word that it is at work; all others, itself too, would wait for ever.

        As long as no system identifier is written down, nothing was founded: what the founder had made, it removes
        when it starts again (see ``start.sh``).
        """
        scope = names.group_object(cluster.metadata.name, group)
        if any(pod["metadata"]["labels"].get(names.ROLE_LABEL) for pod in found):
            self._unfounded.pop(scope, None)
            return
        store = names.store_object(cluster, group, "config", epoch)
        config = self._api.get(CONFIG_MAP, self._namespace, store)
        at_work = [pod for pod in found if views.patroni_state(pod).startswith(_FOUNDING)]
        is_unfounded = _annotations(config).get("initialize") == ""
        if config is None or not is_unfounded or at_work:
            self._unfounded.pop(scope, None)
            for pod in at_work if is_unfounded else ():
                self._forget_founder(cluster, pod)
            return
        since = self._unfounded.setdefault(scope, time.monotonic())
        if time.monotonic() - since > FOUNDING_SECONDS:
            self._announce(cluster.metadata.name, f"refound {scope}: its founding was cut short")
            self._withdraw(config, "initialize")
            self._unfounded.pop(scope, None)

    def _forget_founder(self, cluster: PostgresCluster, pod: Object) -> None:
        """A founder on a dead node never takes its word back, nor do others begin before it has.

        It may be alive and only cut off. Then it would end its founding after another one's: Patroni writes its own
        system identifier over whatever is there and takes the lock, whoever has it. So it loses its rights with its
        pod before anybody else may begin. Its volume, on which nothing was founded, is nobody's from then on.
        """
        limit, node = cluster.spec.replace_lost_after, views.doubtful_node(pod)
        member = names.member_of(cluster.metadata.name, pod["metadata"]["name"])
        if member is None or not limit or self._silent_for(node) < max(limit, DEAD_SECONDS):
            return
        self._announce(
            cluster.metadata.name,
            f"rebuild {member.name}: it was founding {member.scope}, and its node {node} is silent",
        )
        self._rebuild(member)

    def _withdraw(self, config: Object, annotation: str) -> None:
        """Take back what a Patroni wrote down, unless it wrote anew since this was read."""
        version = config["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version, "annotations": {annotation: None}}}
        self._api.merge(CONFIG_MAP, self._namespace, config["metadata"]["name"], patch)

    def _leader(self, cluster: PostgresCluster, group: int, epoch: int) -> tuple[str | None, Object | None]:
        name = names.store_object(cluster, group, "leader", epoch)
        lock = self._api.get(CONFIG_MAP, self._namespace, name)
        return _annotations(lock).get("leader"), lock

    def _release_lock(self, cluster: PostgresCluster, group: int, epoch: int, found: list[Object]) -> None:
        """A primary whose container ended, as its own node reports, leads no more: others need not wait for its time.

        Nobody is promoted here; whether and whom is Patroni's decision as ever.
        """
        ended = [pod["metadata"]["name"] for pod in _primaries(found) if views.ended_at(pod)]
        if not ended or len(found) < 2:
            return
        leader, lock = self._leader(cluster, group, epoch)
        if leader is None or leader not in ended or lock is None:
            return
        # What is at hand may be old: the pod itself is asked. A lock that was renewed since is somebody's who lives.
        pod = self._api.get(POD, self._namespace, leader)
        if pod is None or not _is_left_over(lock, views.ended_at(pod)):
            return
        self._announce(cluster.metadata.name, f"release leader lock of {leader}: its container ended")
        # A Patroni that came back meanwhile and renewed its lock keeps it.
        self._withdraw(lock, "leader")

    def _relabel(self, cluster: PostgresCluster, group: int, epoch: int, found: list[Object]) -> None:
        """A node that fell silent can't take the primary's label off its pod: clients would still be sent there."""
        labelled = [pod["metadata"]["name"] for pod in _primaries(found)]
        if len(labelled) < 2:
            return
        leader, _ = self._leader(cluster, group, epoch)
        for name in labelled:
            if leader in labelled and name != leader:
                self._announce(cluster.metadata.name, f"unlabel {name}: {leader} is the primary")
                patch: dict[str, Any] = {"metadata": {"labels": {names.ROLE_LABEL: None}}}
                self._api.merge(POD, self._namespace, name, patch)

    def _grow_volumes(self, cluster: PostgresCluster, group: int, own: Own) -> None:
        size = pods.group_spec(cluster, group).storage.size
        for claim in self._claims(cluster.metadata.name, group, own):
            if parse_bytes(claim["spec"]["resources"]["requests"]["storage"]) < parse_bytes(size):
                patch = {"spec": {"resources": {"requests": {"storage": size}}}}
                changed = self._api.merge(VOLUME_CLAIM, self._namespace, claim["metadata"]["name"], patch)
                if changed is not None:
                    self._reader.put(VOLUME_CLAIM, changed)
                    self._announce(
                        cluster.metadata.name, f"grow volume {claim['metadata']['name']} to {size}"
                    )


def _annotations(found: Object | None) -> Mapping[str, str]:
    return (found or {}).get("metadata", {}).get("annotations") or {}


def _is_left_over(lock: Object, ended_at: datetime | None) -> bool:
    """Whether a lock was renewed last before its holder's container ended; both times are of one clock."""
    try:
        renewed = datetime.fromisoformat(_annotations(lock).get("renewTime", ""))
        return ended_at is not None and renewed < ended_at + timedelta(seconds=1)
    except (ValueError, TypeError):  # no time, or one without a zone
        return False


def _primaries(found: list[Object]) -> list[Object]:
    """Pods that bear the primary's label."""
    return [pod for pod in found if pod["metadata"]["labels"].get(names.ROLE_LABEL) == "primary"]
