"""What a cluster is declared to be made from, as it is remembered beside how far that is. Pure.

A declaration may change while it is carried out, or after that failed. What was begun for another one does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.backup import pins
from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster
from pgherd.platform import base, origin

KEY = origin.DECLARED
"""where it is in the state of a restore"""
LOST = "lost"
"""in that state: groups whose places are to be removed before anything else is done"""
_ACCESS = ("secretRef",)
"""how to get at the backups: that may change, what is brought back stays the same"""


def told(cluster: PostgresCluster) -> dict[str, Any]:
    """What is declared; what is left to defaults is left out, so that it stays the same in a later version."""
    bootstrap = cluster.spec.bootstrap
    if bootstrap is None or not bootstrap.is_needed:
        return {}
    return bootstrap.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def is_other(state: Mapping[str, Any], cluster: PostgresCluster) -> bool:
    """Whether something else is declared than when this was written down.

    What is put in place of a cluster's own data has a wish of its own. One that is not declared any more is carried on.
    """
    known, now = state.get(KEY), told(cluster)
    return not state.get("inPlace") and known is not None and bool(now) and known != now


def leads_elsewhere(state: Mapping[str, Any], cluster: PostgresCluster) -> bool:
    """Whether it would be another point, or another cluster's."""
    return is_other(state, cluster) and _target(state[KEY]) != _target(told(cluster))


def _target(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    return {kind: without_access(what) for kind, what in declared.items()}


def without_access(recovery: Mapping[str, Any]) -> dict[str, Any]:
    """What is brought back, without how to get at it."""
    return {name: value for name, value in recovery.items() if name not in _ACCESS}


def require_open(state: Mapping[str, Any], cluster: PostgresCluster) -> None:
    """Refuse to begin anew over data that are being put in their places.

    :raises BadInput: some may be there already
    """
    if leads_elsewhere(state, cluster) and "settled" in state.get("steps", ()):
        name, point = cluster.metadata.name, (state.get("point") or {}).get("name")
        raise BadInput(
            f"spec.bootstrap: was changed when {name} was all but restored to {point}: declare that again, or delete "
            f"what is there (pgherd delete {name} --purge) and declare it anew"
        )


def is_due(
    state: Mapping[str, Any] | None, cluster: PostgresCluster, has_data: bool, *, lived: bool = False
) -> bool:
    """Whether a cluster is (still) to be made from a backup.

    :param state: what was written down of it
    :param has_data: whether any member has data
    :param lived: whether it ever served as it is declared now: what it lost then, nobody makes anew by himself
    """
    wanted = bool(told(cluster)) and not has_data
    if state is None:
        return wanted
    if state.get("phase") in base.ENDED and not lived:
        return wanted  # what was made then, also in place, is gone, and would be founded anew, empty
    return state.get("phase") not in base.ENDED


def standing(state: Mapping[str, Any], cluster: PostgresCluster) -> Mapping[str, Any]:
    """What counts of what was written down of a making that is due: nothing of one that has ended, or of one that led
    elsewhere, but for places that are lost, and for the pin, which is there until somebody removes it."""
    if state.get("phase") in base.ENDED:
        return {}
    if state.get("inPlace"):
        return state
    if state.get("phase") == base.FAILED and is_other(state, cluster):
        return _outlasting(state, cluster, pins.KEY)
    if leads_elsewhere(state, cluster):
        return _outlasting(state, cluster, LOST, pins.KEY)
    return state


def _outlasting(state: Mapping[str, Any], cluster: PostgresCluster, *names: str) -> Mapping[str, Any]:
    # A clone reads no repository: it would look for the pin in its own files.
    names = names if told(cluster).get("recovery") else tuple(each for each in names if each != pins.KEY)
    return {name: state[name] for name in names if state.get(name)}
