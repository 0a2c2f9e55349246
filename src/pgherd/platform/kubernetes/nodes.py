"""Nodes that fell silent, and since when."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from pgherd.platform.kubernetes.api import Api
from pgherd.platform.kubernetes.recent import Recent

LOOK_SECONDS = 3.0
"""how old an answer may be"""


class Nodes:
    """Asks for the nodes of members that are not ready; only for those, and not too often."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._seen: Recent[datetime | None] = Recent(600.0)

    def silent(self, nodes: Collection[str]) -> dict[str, float]:
        """Which of these nodes are silent (or gone), with the seconds since.

        :raises PgherdError: the API server does not answer
        """
        now = datetime.now(UTC)
        found = {node: self._since(node) for node in nodes if node}
        return {node: (now - since).total_seconds() for node, since in found.items() if since is not None}

    def _since(self, name: str) -> datetime | None:
        age, since = self._seen.get(name) or (float("inf"), None)
        if age > LOOK_SECONDS:
            node = self._api.node(name)
            # A node that is gone counts from when that was seen first.
            since = silent_since(node) if node is not None else since or datetime.now(UTC)
            self._seen.put(name, since)
        return since


def silent_since(node: Mapping[str, Any]) -> datetime | None:
    """When a node's kubelet was given up, or None if it reports."""
    for condition in (node.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready" and condition.get("status") == "Unknown":
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return None
