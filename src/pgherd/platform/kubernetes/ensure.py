"""Apply what was rendered, when it is not so already.

An object is applied anew when what we say of it changed, or when somebody else changed it: its ``generation`` with its
labels and owners (where Kubernetes counts changes of the specification) or its ``resourceVersion`` is not what our last
application left. What somebody else has under one of our names is never touched.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pgherd.errors import PgherdError
from pgherd.faults import crash_point
from pgherd.model.spec import parse_bytes
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import CLUSTER, STATEFUL_SET, Api, Kind, Object, kind_of
from pgherd.platform.kubernetes.cache import Reader

_COUNTED = frozenset({"StatefulSet", "PodDisruptionBudget", "NetworkPolicy"})
"""kinds whose ``generation`` grows with each change of the specification, and only then"""
_FIXED = ("serviceName", "podManagementPolicy", "selector")
"""what can't be changed in a StatefulSet, besides its volumes"""


class Applier:
    """Remembers what was applied and what that left; safe to share between threads.

    :param restored: is told when something that was as it should be had to be put back: the object, and why
    """

    def __init__(
        self,
        api: Api,
        reader: Reader,
        restored: Callable[[Mapping[str, Any], str], None] = lambda obj, why: None,
    ) -> None:
        self._api = api
        self._reader = reader
        self._restored = restored
        self._done: dict[tuple[str, Kind, str], tuple[str, str]] = {}
        self._guard = threading.Lock()

    def ensure(self, namespace: str, objects: Sequence[Mapping[str, Any]]) -> list[str]:
        """Make the world say what these objects say; returns what was applied, as ``Kind name``.

        :raises PgherdError: refused, or somebody else has an object of this name
        """
        return [f"{obj['kind']} {obj['metadata']['name']}" for obj in objects if self._ensure(namespace, obj)]

    def _ensure(self, namespace: str, obj: Mapping[str, Any]) -> bool:
        kind, name = kind_of(obj), obj["metadata"]["name"]
        key = (namespace, kind, name)
        said = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()
        live = self._reader.get(kind, namespace, name)
        with self._guard:
            if live is not None and self._done.get(key) == (said, _mark(live)):
                return False
            is_known = key in self._done
        if not is_known:
            self._require_ours(namespace, live, obj)
        if live is not None and _is_fixed_otherwise(live, obj):
            # What is fixed in it differs: it is made anew, a StatefulSet around the pods, which go on.
            self._api.delete(kind, namespace, name, orphan=kind == STATEFUL_SET)
            if kind == STATEFUL_SET:
                crash_point("statefulset:orphaned")
            return True
        applied = self._api.apply(namespace, obj)
        self._reader.put(kind, applied)
        with self._guard:
            before, _ = self._done.get(key, ("", ""))
            self._done[key] = (said, _mark(applied))
        if before == said and (live is None or _version(live) != _version(applied)):
            self._restored(obj, "somebody removed it" if live is None else "somebody changed it")
        return True

    def _require_ours(self, namespace: str, live: Object | None, obj: Mapping[str, Any]) -> None:
        """An application may have its own Service, or account, of the cluster's name.

        :param live: as it is at hand: what has no label of ours is not, nor is who made it
        :raises PgherdError: somebody else has an object of this name
        """
        kind, name = kind_of(obj), obj["metadata"]["name"]
        if live is not None and _is_ours(live, obj):
            return
        found = self._api.get(kind, namespace, name)
        if found is not None and not _is_ours(found, obj):
            raise PgherdError(
                f"{kind.name} {name} of namespace {namespace} is not pgherd's: remove it, or give the cluster another "
                "name"
            )

    def removed(self, namespace: str, kind: Kind, name: str) -> None:
        """An object was taken away by us."""
        with self._guard:
            self._done.pop((namespace, kind, name), None)

    def forget(self, namespace: str, cluster: str) -> None:
        """Nothing is remembered of a cluster that is gone."""
        with self._guard:
            for key in [key for key in self._done if key[0] == namespace and _belongs(key[2], cluster)]:
                del self._done[key]


def _belongs(name: str, cluster: str) -> bool:
    return name == cluster or name.startswith((f"{cluster}-", f"{cluster}."))


def _mark(obj: Object) -> str:
    metadata = obj["metadata"]
    if obj.get("kind") not in _COUNTED:
        return _version(obj)
    ours = (metadata["generation"], metadata.get("labels"), metadata.get("ownerReferences"))
    return json.dumps(ours, sort_keys=True)


def _version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


def _is_ours(found: Object, wanted: Mapping[str, Any]) -> bool:
    """By the cluster's label, by its owner, or by who made it: of these somebody may have removed some."""
    metadata = found["metadata"]
    cluster = (wanted["metadata"].get("labels") or {}).get(names.CLUSTER_LABEL)
    owners = ((each.get("kind"), each.get("name")) for each in metadata.get("ownerReferences") or [])
    makers = (each.get("manager") for each in metadata.get("managedFields") or [])
    return (
        (metadata.get("labels") or {}).get(names.CLUSTER_LABEL) == cluster
        or (CLUSTER.name, cluster) in owners
        or names.FIELD_MANAGER in makers
    )


def _is_fixed_otherwise(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether what can't be changed in an object is not as wanted: volumes were declared otherwise, or somebody has
    made it himself."""
    match wanted["kind"]:
        case "StatefulSet":
            now, told = live["spec"], wanted["spec"]
            others = any(now.get(field, told[field]) != told[field] for field in _FIXED)
            return others or _are_volumes_otherwise(live, wanted)
        case "RoleBinding":
            return bool(live["roleRef"] != wanted["roleRef"])
        case "Service":
            headless = wanted["spec"].get("clusterIP")
            return headless is not None and live["spec"].get("clusterIP") != headless
        case "ConfigMap" | "Secret":
            data = live.get("data") or {}
            return live.get("immutable") is True and not wanted["data"].items() <= data.items()
    return False


def _are_volumes_otherwise(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    def volume(obj: Mapping[str, Any]) -> tuple[str, int, str | None]:
        claim = obj["spec"]["volumeClaimTemplates"][0]
        size = parse_bytes(claim["spec"]["resources"]["requests"]["storage"])
        return claim["metadata"]["name"], size, claim["spec"].get("storageClassName")

    *told, storage_class = volume(wanted)
    *now, class_now = volume(live)
    return told != now or (storage_class is not None and storage_class != class_now)


def owned(obj: Mapping[str, Any], owner: Mapping[str, Any]) -> dict[str, Any]:
    """The object, owned by a cluster's resource: it goes with it, whatever happens to us."""
    metadata = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {**obj, "metadata": {**obj["metadata"], "ownerReferences": [reference]}}


def all_done(chores: Sequence[Callable[[], list[str] | None]]) -> list[str]:
    """What was changed. What is refused for one group must not keep the others from being healed.

    :raises PgherdError: something was refused; everything else was done
    """
    changed: list[str] = []
    problems: list[str] = []
    for chore in chores:
        try:
            changed += chore() or []
        except PgherdError as error:
            problems.append(str(error))
    if problems:
        raise PgherdError("; ".join(problems))
    return changed
