"""Which backups a cluster is made from, as the state of its making says. Pure.

A declaration may leave it to another cluster's where these are. That is found out once, when the making begins, and
written down: whatever is declared of the other one later, or if it goes, leads no making elsewhere that is under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECLARED = "declared"
"""in the state: what ``spec.bootstrap`` said"""
FOUND = "found"
"""in the state: what was found of a declaration that names no repository: ``recovery``, and its ``owner``"""


def recovery(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is restored, with its repository, as ``spec.bootstrap.recovery`` would say it; None: nothing, or nobody
    knows yet.

    :param state: of a making from backups, in place or not
    """
    asked = state.get("recovery") or (state.get(DECLARED) or {}).get("recovery")
    if asked is None or "repository" in asked:
        return asked
    found = (state.get(FOUND) or {}).get("recovery")
    return {**found, **asked} if found and found["cluster"] == asked["cluster"] else None


def owner(state: Mapping[str, Any]) -> str:
    """Whose backups these must be, as their repository says; empty: whoever's they are."""
    return str((state.get(FOUND) or {}).get("owner", ""))
