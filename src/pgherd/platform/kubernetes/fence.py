"""Nodes that are off for sure get Kubernetes' own fence: their members come back elsewhere *with* their volumes.

A silent node may be alive and only cut off: from here nobody can tell. So two things come together. Kubernetes gave
the node up, and afterwards somebody who can know said that it is off: the cloud's controller by its own taint, or by
an annotation a person or an agent that switched it off. Then the node gets the taint ``out-of-service``: Kubernetes
ends its pods and lets go of its volumes. The taint goes when the node reports again.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pgherd.platform.kubernetes import names, views
from pgherd.platform.kubernetes.api import Api, Object
from pgherd.platform.kubernetes.nodes import silent_since

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""how often nodes are looked at"""
ANSWER_SECONDS = 1.0
"""how long a member on a silent node has to show that it lives"""

OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "value": "pgherd", "effect": "NoExecute"}
SHUT_DOWN = "node.cloudprovider.kubernetes.io/shutdown"
POWERED_OFF = f"{names.DOMAIN}/powered-off"
"""annotation of a node: since when it is known to be off, RFC 3339"""
FENCED = f"{names.DOMAIN}/fenced"
"""label of a node that has our taint"""

Tell = Callable[[str], None]


def who_says_off(node: Mapping[str, Any]) -> str:
    """Who says that a silent node is off; nothing if nobody does, or did so before it fell silent."""
    since = silent_since(node)
    if since is None:
        return ""
    if any(taint.get("key") == SHUT_DOWN for taint in node["spec"].get("taints") or []):
        return "its cloud says that it was shut down"
    said = (node["metadata"].get("annotations") or {}).get(POWERED_OFF, "")
    try:
        return (
            f"its annotation says that it is off since {said}"
            if datetime.fromisoformat(said) >= since
            else ""
        )
    except (ValueError, TypeError):  # no time, or one without a zone
        return ""


def fenced(node: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that puts the fence up."""
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["key"] != OUT_OF_SERVICE["key"]]
    return _patch(node, {"labels": {FENCED: "true"}}, [*taints, OUT_OF_SERVICE])


def unfenced(node: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that takes it down; a taint of somebody else's stays."""
    taints = [
        taint
        for taint in node["spec"].get("taints") or []
        if (taint["key"], taint.get("value")) != (OUT_OF_SERVICE["key"], OUT_OF_SERVICE["value"])
    ]
    return _patch(node, {"labels": {FENCED: None}, "annotations": {POWERED_OFF: None}}, taints)


def _patch(node: Mapping[str, Any], metadata: dict[str, Any], taints: list[Any]) -> dict[str, Any]:
    # Taints are replaced as a whole: with the version just read, nobody else's are lost.
    version = node["metadata"]["resourceVersion"]
    return {"metadata": {**metadata, "resourceVersion": version}, "spec": {"taints": taints}}


class Fence:
    """Looks after the nodes of clusters that are declared so, and after all that were fenced."""

    def __init__(self, api: Api, is_alive: Callable[[str], bool] | None = None) -> None:
        self._api = api
        self._is_alive = is_alive or answers
        self._looked: dict[str, float] = {}

    def look(self, cluster: str, pods: Sequence[Object], tell: Tell) -> None:
        """See whether a node of this cluster's members has to be fenced, or a fence has done its work.

        :raises PgherdError: the API server refuses, for example because the operator may not change nodes
        """
        if time.monotonic() - self._looked.get(cluster, float("-inf")) < LOOK_SECONDS:
            return
        self._looked[cluster] = time.monotonic()
        for name in sorted({found for pod in pods if (found := views.doubtful_node(pod))}):
            self._look_at(name, pods, tell)
        self.lower(tell)

    def forget(self, cluster: str) -> None:
        """Nothing is remembered of a cluster that is gone."""
        self._looked.pop(cluster, None)

    def lower(self, tell: Tell) -> None:
        """Take down the fences of nodes that report again, whatever clusters are declared by now.

        :raises PgherdError: the API server refuses
        """
        for node in self._api.nodes({FENCED: "true"}):
            if views.is_ready(node):
                tell(f"unfence node {node['metadata']['name']}: it reports again")
                self._api.merge_node(node["metadata"]["name"], unfenced(node))

    def _look_at(self, name: str, pods: Sequence[Object], tell: Tell) -> None:
        node = self._api.node(name)
        if node is None or silent_since(node) is None:
            return
        if any(taint["key"] == OUT_OF_SERVICE["key"] for taint in node["spec"].get("taints") or []):
            return
        off = who_says_off(node)
        if not off:
            tell(
                f"wait for node {name}: it is silent; once it is switched off for sure, say so: kubectl annotate node"
                f" {name} --overwrite {POWERED_OFF}=$(date -uIs)"
            )
            return
        alive = [pod["metadata"]["name"] for pod in pods if self._lives_there(pod, name)]
        if alive:
            tell(f"refuse to fence node {name}: {off}, but {', '.join(alive)} on it answers")
            return
        logger.info("fencing node %s: %s", name, off)
        tell(f"fence node {name}: {off}; its members come back elsewhere with their volumes")
        self._api.merge_node(name, fenced(node))

    def _lives_there(self, pod: Object, node: str) -> bool:
        address = str((pod.get("status") or {}).get("podIP") or "")
        return pod["spec"].get("nodeName") == node and bool(address) and self._is_alive(address)


def answers(address: str) -> bool:
    """Whether a member's Patroni takes connections at this address."""
    try:
        with socket.create_connection((address, names.REST_PORT), timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False
