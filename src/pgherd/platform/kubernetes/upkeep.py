"""Small things that members can't do for themselves, looked after at each round."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pgherd.model.spec import PostgresCluster, parse_bytes
from pgherd.model.topology import group_name
from pgherd.platform.kubernetes import names, pods, views
from pgherd.platform.kubernetes.api import CONFIG_MAP, POD, VOLUME_CLAIM, Api, Object
from pgherd.platform.kubernetes.cache import Reader

logger = logging.getLogger(__name__)

FOUNDING_SECONDS = 15.0
"""how long nobody may be at work on a founding before it is given up"""
_FOUNDING = ("initializing", "running custom bootstrap", "starting after custom bootstrap")


class Upkeep:
    """What one namespace's groups need now and then."""

    def __init__(self, api: Api, namespace: str, reader: Reader) -> None:
        self._api = api
        self._namespace = namespace
        self._reader = reader
        self._unfounded: dict[str, float] = {}

    def group(self, cluster: PostgresCluster, group: int) -> None:
        """Look after one group.

        :raises PgherdError: the API server refused something
        """
        found = [
            pod
            for pod in self._reader.of_cluster(POD, self._namespace, cluster.metadata.name)
            if pod["metadata"]["labels"].get(names.GROUP_LABEL) == group_name(group)
        ]
        self._give_up_founding(cluster, group, found)
        self._release_lock(cluster, group, found)
        self._relabel(cluster, group, found)
        self._grow_volumes(cluster, group)

    def _give_up_founding(self, cluster: PostgresCluster, group: int, found: list[Object]) -> None:
        """A founder that was killed has left word that it is at work; all others, itself too, would wait for ever.

        As long as no system identifier is written down, nothing was founded: what the founder had made, it removes
        when it starts again (see ``start.sh``).
        """
        scope = names.group_object(cluster.metadata.name, group)
        if any(pod["metadata"]["labels"].get(names.ROLE_LABEL) for pod in found):
            self._unfounded.pop(scope, None)
            return
        config = self._api.get(CONFIG_MAP, self._namespace, names.store_object(cluster, group, "config"))
        at_work = any(views.patroni_state(pod).startswith(_FOUNDING) for pod in found)
        if config is None or _annotations(config).get("initialize") != "" or at_work:
            self._unfounded.pop(scope, None)
            return
        since = self._unfounded.setdefault(scope, time.monotonic())
        if time.monotonic() - since > FOUNDING_SECONDS:
            logger.info("%s: its founding was cut short: starting over", scope)
            self._withdraw(config, "initialize")
            self._unfounded.pop(scope, None)

    def _withdraw(self, config: Object, annotation: str) -> None:
        """Take back what a Patroni wrote down, unless it wrote anew since this was read."""
        version = config["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version, "annotations": {annotation: None}}}
        self._api.merge(CONFIG_MAP, self._namespace, config["metadata"]["name"], patch)

    def _leader(self, cluster: PostgresCluster, group: int) -> tuple[str | None, Object | None]:
        name = names.store_object(cluster, group, "leader")
        lock = self._api.get(CONFIG_MAP, self._namespace, name)
        return _annotations(lock).get("leader"), lock

    def _release_lock(self, cluster: PostgresCluster, group: int, found: list[Object]) -> None:
        """A primary whose container ended, as its own node reports, leads no more: others need not wait for its time.

        Nobody is promoted here; whether and whom is Patroni's decision as ever.
        """
        ended = [pod["metadata"]["name"] for pod in _primaries(found) if views.ended_at(pod)]
        if not ended or len(found) < 2:
            return
        leader, lock = self._leader(cluster, group)
        if leader is None or leader not in ended or lock is None:
            return
        # What is at hand may be old: the pod itself is asked. A lock that was renewed since is somebody's who lives.
        pod = self._api.get(POD, self._namespace, leader)
        if pod is None or not _is_left_over(lock, views.ended_at(pod)):
            return
        logger.info("%s: the container of %s ended: releasing its leader lock", cluster.metadata.name, leader)
        # A Patroni that came back meanwhile and renewed its lock keeps it.
        self._withdraw(lock, "leader")

    def _relabel(self, cluster: PostgresCluster, group: int, found: list[Object]) -> None:
        """A node that fell silent can't take the primary's label off its pod: clients would still be sent there."""
        labelled = [pod["metadata"]["name"] for pod in _primaries(found)]
        if len(labelled) < 2:
            return
        leader, _ = self._leader(cluster, group)
        for name in labelled:
            if leader in labelled and name != leader:
                logger.info(
                    "%s: %s leads, taking the primary's label off %s", cluster.metadata.name, leader, name
                )
                patch: dict[str, Any] = {"metadata": {"labels": {names.ROLE_LABEL: None}}}
                self._api.merge(POD, self._namespace, name, patch)

    def _grow_volumes(self, cluster: PostgresCluster, group: int) -> None:
        size = pods.group_spec(cluster, group).storage.size
        for claim in self._reader.of_cluster(VOLUME_CLAIM, self._namespace, cluster.metadata.name):
            if claim["metadata"]["labels"].get(names.GROUP_LABEL) != group_name(group):
                continue
            if parse_bytes(claim["spec"]["resources"]["requests"]["storage"]) < parse_bytes(size):
                patch = {"spec": {"resources": {"requests": {"storage": size}}}}
                changed = self._api.merge(VOLUME_CLAIM, self._namespace, claim["metadata"]["name"], patch)
                if changed is not None:
                    self._reader.put(VOLUME_CLAIM, changed)


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
