"""What the API server holds of our clusters, at hand: asked directly, or watched.

The operator watches: one stream per kind keeps a copy of every object of ours, so that looking costs nothing however
many clusters there are. A copy may be a moment old; nothing that can harm data is decided on it alone. Commands ask
directly.

A stream can fall silent without an end (a connection of which only one side is left), or miss something. So a silent
one is given up, and all objects of a kind are asked for anew every few minutes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

import httpx2
from lightkube import ApiError, operators

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import (
    BACKUP,
    CLUSTER,
    CONFIG_MAP,
    MANAGED,
    POD,
    SCHEDULE,
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
RELIST_SECONDS = 240.0
"""how long streams alone are trusted"""
TOMB_SECONDS = 120.0
"""how long after a deletion an answer from before it may still come"""
FIRST_SECONDS = 30.0
"""how long the first look may take"""

PEOPLES = (CLUSTER, BACKUP, SCHEDULE)
"""kinds that people make, without labels of ours"""
WATCHED = (*PEOPLES, POD, VOLUME_CLAIM, *MANAGED)


class Reader(Protocol):
    """Where objects are looked up."""

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or None."""

    def of_cluster(self, kind: Kind, namespace: str, cluster: str) -> list[Object]:
        """The objects of one cluster, by its label."""

    def put(self, kind: Kind, obj: Object) -> None:
        """An answer of the API server to a change of ours: at least this new is what comes next."""

    def last_of(self, namespace: str, cluster: str) -> list[Object]:
        """What a cluster's pods were when they went, of those that were seen to go and not to come back."""

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
        if kind in PEOPLES:
            return [each for each in self._api.list(kind, namespace) if _cluster(each) == cluster]
        return self._api.list(kind, namespace, selector(kind, {names.CLUSTER_LABEL: cluster}))

    def put(self, kind: Kind, obj: Object) -> None:
        """Nothing to keep."""

    def last_of(self, namespace: str, cluster: str) -> list[Object]:
        """Nobody looked."""
        return []

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
        self._closed = threading.Event()
        self._begun = False
        self._tombs: dict[tuple[Kind, tuple[str, str]], tuple[int, float]] = {}
        self._last: dict[tuple[str, str], Object] = {}

    def start(self) -> None:
        """Begin to watch; returns when the first look is complete. Called again it only waits for that.

        :raises TimeoutError: the API server does not answer
        """
        begun, self._begun = self._begun, True
        for kind in () if begun else WATCHED:
            threading.Thread(
                target=self._watch, args=(kind,), name=f"watch-{kind.plural}", daemon=True
            ).start()
        deadline = time.monotonic() + FIRST_SECONDS
        for kind, filled in self._filled.items():
            if not filled.wait(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{kind.plural} can't be read from the Kubernetes API server")

    def close(self) -> None:
        """Watch no longer than what is open now lasts."""
        self._closed.set()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        with self._guard:
            return self._objects[kind].get((namespace, name))

    def of_cluster(self, kind: Kind, namespace: str, cluster: str) -> list[Object]:
        """The objects of one cluster, by its label."""
        with self._guard:
            return list(self._of_cluster[kind].get((namespace, cluster), {}).values())

    def all(self, kind: Kind) -> list[Object]:
        """The objects of every cluster, and of none."""
        with self._guard:
            return list(self._objects[kind].values())

    def put(self, kind: Kind, obj: Object) -> None:
        """An answer of the API server to a change of ours: at least this new is what comes next."""
        with self._guard:
            self._put(kind, obj)

    def last_of(self, namespace: str, cluster: str) -> list[Object]:
        """What a cluster's pods were when they went, of those that were seen to go and not to come back."""
        with self._guard:
            return [
                obj for key, obj in self._last.items() if key[0] == namespace and _cluster(obj) == cluster
            ]

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
        # The answer to a change of ours may come after the news that the object is gone.
        buried, _ = self._tombs.get((kind, key), (0, 0.0))
        if buried and buried >= _version(obj):
            return
        if kind == CLUSTER and known is not None and _uid(known) != _uid(obj):
            self._forget_last(key)
        obj["metadata"].pop("managedFields", None)
        if known is None or _matter(kind, known) != _matter(kind, obj):
            self._changed(kind, obj)
        if known is not None and _cluster(known) != _cluster(obj):
            self._changed(kind, known)
            self._unlist(kind, known)
        self._objects[kind][key] = obj
        if cluster := _cluster(obj):
            self._of_cluster[kind].setdefault((key[0], cluster), {})[key[1]] = obj

    def _drop(self, kind: Kind, key: tuple[str, str], version: int) -> None:
        if kind == CLUSTER:
            self._forget_last(key)
        known = self._objects[kind].get(key)
        if known is not None and _version(known) > version > 0:
            return  # a list was ahead of the stream: this is the end of the one before
        self._tombs[kind, key] = (version, time.monotonic())
        if known is not None:
            del self._objects[kind][key]
            self._changed(kind, known)
            self._unlist(kind, known)

    def _forget_last(self, cluster: tuple[str, str]) -> None:
        """What a cluster's pods were is nothing that a later one of its name may go by."""
        for key in [key for key, obj in self._last.items() if (key[0], _cluster(obj)) == cluster]:
            del self._last[key]

    def _is_gone(self, cluster: tuple[str, str]) -> bool:
        return (CLUSTER, cluster) in self._tombs and cluster not in self._objects[CLUSTER]

    def _unlist(self, kind: Kind, known: Object) -> None:
        namespace, name = _key(known)
        listed = (namespace, _cluster(known) or "")
        ours = self._of_cluster[kind].get(listed, {})
        ours.pop(name, None)
        if not ours:
            self._of_cluster[kind].pop(listed, None)

    def _watch(self, kind: Kind) -> None:
        while not self._closed.is_set():
            try:
                self._follow(kind)
            except (ApiError, PgherdError, httpx2.HTTPError, OSError) as error:
                logger.info("watching %s: %s", kind.plural, str(error) or type(error).__name__)
                time.sleep(RETRY_SECONDS)
            except Exception:  # a stream must never end for good
                logger.exception("watching %s", kind.plural)
                time.sleep(RETRY_SECONDS)

    def _follow(self, kind: Kind) -> None:
        """Follow the changes, and ask for everything now and then."""
        labels = None if kind in PEOPLES else selector(kind, {names.MANAGED_BY: "pgherd"})
        version = ""
        while not self._closed.is_set():
            found = self._api.client.list(resource(kind), namespace=self._namespace, labels=labels)
            objects = [complete(kind, each) for each in found]
            listed = str(found.resourceVersion)
            self._fill(kind, objects, int(listed) if listed.isdecimal() else 0, first=not version)
            self._filled[kind].set()
            # A stream goes on where the last one ended, not at the list: what came and went between would not be seen.
            version = version or listed
            # Not all kinds at the same moment.
            until = time.monotonic() + RELIST_SECONDS * random.uniform(0.75, 1.0)
            while time.monotonic() < until and not self._closed.is_set():
                began = time.monotonic()
                for event, obj in self._api.watch(kind, self._namespace, labels, version, WATCH_SECONDS):
                    version = obj["metadata"]["resourceVersion"]
                    self._take(kind, event, obj)
                if time.monotonic() - began < RETRY_SECONDS:
                    time.sleep(RETRY_SECONDS)

    def _take(self, kind: Kind, event: str, obj: Object) -> None:
        with self._guard:
            if event == "DELETED":
                self._drop(kind, _key(obj), _version(obj))
                self._bury(kind, obj)
            elif event in ("ADDED", "MODIFIED"):
                self._put(kind, obj)
                if kind == POD:
                    self._last.pop(_key(obj), None)

    def _bury(self, kind: Kind, obj: Object) -> None:
        """Keep what a pod was when it went, unless the news that its cluster is gone came first."""
        namespace, _ = key = _key(obj)
        is_told = kind == POD and "deletionTimestamp" in obj["metadata"]
        if is_told and not self._is_gone((namespace, _cluster(obj) or "")):
            self._last[key] = obj

    def _fill(self, kind: Kind, objects: Iterable[Object], version: int, *, first: bool) -> None:
        """Take a complete list.

        :param version: at which the list was true; what is newer was put here meanwhile, and stays
        :param first: no stream reaches back to the list before
        """
        with self._guard:
            if kind == POD and first:
                self._last.clear()  # nobody knows what came and went meanwhile
            for old in [
                tomb for tomb, (_, at) in self._tombs.items() if time.monotonic() - at > TOMB_SECONDS
            ]:
                del self._tombs[old]
            gone = set(self._objects[kind])
            for obj in objects:
                gone.discard(_key(obj))
                self._put(kind, obj)
            if kind == CLUSTER:
                known = {key for each in self._of_cluster.values() for key in each} | set(
                    self._objects[CLUSTER]
                )
                self._revisions = {key: self._revisions[key] for key in self._revisions if key in known}
            for key in gone:
                if not version or _version(self._objects[kind][key]) <= version:
                    self._drop(kind, key, version)


def _matter(kind: Kind, obj: Object) -> object:
    """What of an object is a reason to look: not our own status, nor the positions that Patroni notes on its pod."""
    metadata = obj["metadata"]
    if kind == CLUSTER:
        annotations = {**(metadata.get("annotations") or {})}
        return (
            metadata["generation"],
            annotations.get(names.STOPPED_ANNOTATION),
            annotations.get(names.RESTORE_ANNOTATION),
            {key: text for key, text in annotations.items() if key.startswith(names.REPAIR_ANNOTATION)},
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
    if kind in PEOPLES:
        return metadata["generation"], "deletionTimestamp" in metadata
    if kind == STATEFUL_SET:
        return metadata["generation"], metadata.get("labels"), metadata.get("ownerReferences")
    return metadata["resourceVersion"]


def _key(obj: Any) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _cluster(obj: Object) -> str | None:
    if obj.get("kind") in (BACKUP.name, SCHEDULE.name):
        found = (obj.get("spec") or {}).get("cluster")
    else:
        found = (obj["metadata"].get("labels") or {}).get(names.CLUSTER_LABEL)
    return str(found) if found else None


def _uid(obj: Object) -> object:
    return obj["metadata"].get("uid")


def _version(obj: Object) -> int:
    # Documented as opaque once, as comparable numbers since Kubernetes 1.35, and numbers always.
    version = obj["metadata"]["resourceVersion"]
    return int(version) if version.isdecimal() else 0
