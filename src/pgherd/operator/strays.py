"""Backups and schedules of clusters that are not there: nobody else would tell whoever declared them."""

from __future__ import annotations

import logging

from pgherd.errors import PgherdError
from pgherd.operator.backups import held
from pgherd.platform.kubernetes.api import BACKUP, CLUSTER, SCHEDULE, Api, Kind, Object
from pgherd.platform.kubernetes.cache import Watched

logger = logging.getLogger(__name__)


class Strays:
    """Answers for them; one look at a time."""

    def __init__(self, api: Api, objects: Watched) -> None:
        self._api, self._objects = api, objects

    def look(self) -> None:
        """One look; never raises."""
        for kind in (BACKUP, SCHEDULE):
            for resource in self._objects.all(kind):
                try:
                    self._see_to(kind, resource)
                except PgherdError as error:
                    logger.warning("%s %s: %s", kind.name, resource["metadata"]["name"], error)
                except Exception:  # one must not keep the others from being answered
                    logger.exception("%s %s", kind.name, resource["metadata"]["name"])

    def _see_to(self, kind: Kind, resource: Object) -> None:
        namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
        cluster = str((resource.get("spec") or {}).get("cluster"))
        if self._objects.get(CLUSTER, namespace, cluster) is not None:
            return
        said = held(kind, resource, f"there is no cluster {cluster} in namespace {namespace}")
        if said is None or said == resource.get("status"):
            return
        # What is watched may lag: a cluster that was declared a moment ago has its own who answers.
        if self._api.get(CLUSTER, namespace, cluster) is None:
            self._api.write_status(namespace, name, said, kind)
