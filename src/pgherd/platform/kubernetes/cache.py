"""What the API server holds of our clusters, at hand: asked directly, or watched.

The operator watches: one stream per kind keeps a copy of every object of ours, so that looking costs nothing however
many clusters there are. A copy may be a moment old; nothing that can harm data is decided on it alone. Commands ask
directly.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

import httpx2
from lightkube import ApiError, operators

from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import (
    CLUSTER,
    CONFIG_MAP,
    MANAGED,
    POD,
    STATEFUL_SET,
    VOLUME_CLAIM,
    Api,
    Kind,
    Object,
    complete,
    resource,
)

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
WATCH_SECONDS = 60
"""how long one stream lasts at most"""
FIRST_SECONDS = 30.0
"""how long the first look may take"""

WATCHED = (CLUSTER, POD, VOLUME_CLAIM, *MANAGED)


class Reader(Protocol):
    """Where objects are looked up."""

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or None."""

    def of_cluster(self, kind: Kind, namespace: str, cluster: str) -> list[Object]:
        """The objects of one cluster, by its label."""

    def put(self, kind: Kind, obj: Object) -> None:
        """An answer of the API server to a change of ours: at least this new is what comes next."""

    def revision(self, namespace: str, cluster: str) -> object:
        """Differs whenever something of the cluster changed that matters."""


class Direct:
    """Asks the API server each time."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        return self._api.get(kind, namespace, name)

    def of_cluster(self, kind: Kind, namespace: str, cluster: str) -> list[Object]:
        """The objects of one cluster, by its label."""
        return self._api.list(kind, namespace, selector(kind, {names.CLUSTER_LABEL: cluster}))

    def put(self, kind: Kind, obj: Object) -> None:
        """Nothing to keep."""

    def revision(self, namespace: str, cluster: str) -> object:
        """The cluster's own version."""
        found = self._api.get(CLUSTER, namespace, cluster)
        return found["metadata"]["resourceVersion"] if found else None


def selector(kind: Kind, labels: dict[str, str]) -> dict[str, Any]:
    """Labels that leave out Patroni's own config maps, which change every second."""
    return {**labels, names.SCOPE_LABEL: operators.not_exists()} if kind == CONFIG_MAP else labels


class Watched:
    """Copies of everything of ours, kept up to date by one stream per kind.

    :param namespace: ``*`` for all
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._guard = threading.Lock()
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = {kind: {} for kind in WATCHED}
        self._of_cluster: dict[Kind, dict[tuple[str, str], dict[str, Object]]] = {
            kind: {} for kind in WATCHED
        }
        self._revisions: dict[tuple[str, str], int] = {}
        self._filled = {kind: threading.Event() for kind in WATCHED}

    def start(self) -> None:
        """Begin to watch; returns when the first look is complete.

        :raises TimeoutError: the API server does not answer
        """
        for kind in WATCHED:
            threading.Thread(
                target=self._watch, args=(kind,), name=f"watch-{kind.plural}", daemon=True
            ).start()
        deadline = time.monotonic() + FIRST_SECONDS
        for kind, filled in self._filled.items():
            if not filled.wait(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{kind.plural} can't be read from the Kubernetes API server")

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        with self._guard:
            return self._objects[kind].get((namespace, name))

    def of_cluster(self, kind: Kind, namespace: str, cluster: str) -> list[Object]:
        """The objects of one cluster, by its label."""
        with self._guard:
            return list(self._of_cluster[kind].get((namespace, cluster), {}).values())

    def put(self, kind: Kind, obj: Object) -> None:
        """An answer of the API server to a change of ours: at least this new is what comes next."""
        with self._guard:
            self._put(kind, obj)

    def revision(self, namespace: str, cluster: str) -> object:
        """Counts the changes of the cluster's objects, without those that say nothing."""
        return self._revisions.get((namespace, cluster), 0)

    def _changed(self, kind: Kind, obj: Object) -> None:
        cluster = obj["metadata"]["name"] if kind == CLUSTER else _cluster(obj)
        if cluster:
            key = (obj["metadata"]["namespace"], cluster)
            self._revisions[key] = self._revisions.get(key, 0) + 1

    def _put(self, kind: Kind, obj: Object) -> None:
        key = _key(obj)
        known = self._objects[kind].get(key)
        if known is not None and _version(known) > _version(obj):
            return
        obj["metadata"].pop("managedFields", None)
        if known is None or _matter(kind, known) != _matter(kind, obj):
            self._changed(kind, obj)
        self._objects[kind][key] = obj
        if cluster := _cluster(obj):
            self._of_cluster[kind].setdefault((key[0], cluster), {})[key[1]] = obj

    def _drop(self, kind: Kind, key: tuple[str, str]) -> None:
        known = self._objects[kind].pop(key, None)
        if known is not None:
            self._changed(kind, known)
        if known is not None and (cluster := _cluster(known)):
            ours = self._of_cluster[kind].get((key[0], cluster), {})
            ours.pop(key[1], None)
            if not ours:
                self._of_cluster[kind].pop((key[0], cluster), None)

    def _watch(self, kind: Kind) -> None:
        while True:
            try:
                self._follow(kind)
            except (ApiError, httpx2.HTTPError, OSError) as error:
                logger.info("watching %s: %s", kind.plural, str(error) or type(error).__name__)
                time.sleep(RETRY_SECONDS)
            except Exception:  # a stream must never end for good
                logger.exception("watching %s", kind.plural)
                time.sleep(RETRY_SECONDS)

    def _follow(self, kind: Kind) -> None:
        labels = None if kind == CLUSTER else selector(kind, {names.MANAGED_BY: "pgherd"})
        found = self._api.client.list(resource(kind), namespace=self._namespace, labels=labels)
        self._fill(kind, [complete(kind, each) for each in found])
        self._filled[kind].set()
        stream = self._api.client.watch(
            resource(kind),
            namespace=self._namespace,
            labels=labels,
            server_timeout=WATCH_SECONDS,
            resource_version=found.resourceVersion,
        )
        for event, obj in stream:
            with self._guard:
                if event == "DELETED":
                    self._drop(kind, _key(obj))
                elif event in ("ADDED", "MODIFIED"):
                    self._put(kind, dict(obj))

    def _fill(self, kind: Kind, objects: Iterable[Object]) -> None:
        with self._guard:
            gone = set(self._objects[kind])
            for obj in objects:
                gone.discard(_key(obj))
                self._put(kind, obj)
            for key in gone:
                self._drop(kind, key)


def _matter(kind: Kind, obj: Object) -> object:
    """What of an object is a reason to look: not our own status, nor the positions that Patroni notes on its pod."""
    metadata = obj["metadata"]
    if kind == CLUSTER:
        annotations = {**(metadata.get("annotations") or {})}
        return (
            metadata["generation"],
            annotations.get(names.STOPPED_ANNOTATION),
            "deletionTimestamp" in metadata,
        )
    if kind == POD:
        status = obj.get("status") or {}
        return (
            metadata.get("labels"),
            metadata.get("deletionTimestamp"),
            {
                **status,
                "conditions": [
                    (each.get("type"), each.get("status")) for each in status.get("conditions") or []
                ],
            },
        )
    if kind == STATEFUL_SET:
        return metadata["generation"]
    return metadata["resourceVersion"]


def _key(obj: Any) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _cluster(obj: Object) -> str | None:
    found = (obj["metadata"].get("labels") or {}).get(names.CLUSTER_LABEL)
    return str(found) if found else None


def _version(obj: Object) -> int:
    # Documented as opaque once, as comparable numbers since Kubernetes 1.35, and numbers always.
    version = obj["metadata"]["resourceVersion"]
    return int(version) if version.isdecimal() else 0
