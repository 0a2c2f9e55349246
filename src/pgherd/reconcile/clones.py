"""Groups that begin as a physical copy of a segment: what that means for Patroni's configuration. Pure.

Such a group is a *standby cluster* to Patroni: its first member copies the source, leads the group and follows the
source's primary, whichever that is. Before the engine makes it a segment (``parting``), Patroni is told in one change
to pause and that the group follows nobody: in pause it leaves alone what the engine promotes, and even if somebody
ended the pause, it could only promote the copy, which is harmless, never make the new segment a standby again, which
would throw away what was written there. There is no way back from there to a standby: a copy that did not become a
segment goes. The source keeps a replication slot for the copy, on all its members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.engine.base import Clone
from pgherd.model.topology import Endpoints

SLOT = "pgherd_clone_"
"""what the names of these slots begin with"""
PARTING = "pgherd_parting"
"""in Patroni's configuration: it was we who paused this group"""


def with_clones(
    configs: Mapping[int, Mapping[str, Any]], clones: Mapping[int, Clone], endpoints: Mapping[int, Endpoints]
) -> dict[int, Mapping[str, Any]]:
    """The groups' configurations with what copies need, theirs and their sources'.

    :param endpoints: where the members of each group listen, by ordinal
    """
    wanted = {group: dict(config) for group, config in configs.items()}
    for group, clone in clones.items():
        if clone.state == "undone" or not endpoints.get(clone.source):
            continue
        if group in wanted:
            following = {"standby_cluster": _follow(group, endpoints[clone.source])}
            wanted[group] |= {PARTING: True, "pause": True} if clone.state == "parting" else following
        if clone.source in wanted:
            slots = wanted[clone.source].setdefault("slots", {})
            slots[f"{SLOT}{group}"] = {"type": "physical"}
    return dict(wanted)


def _follow(group: int, source: Endpoints) -> dict[str, Any]:
    return {
        "host": ",".join(endpoint.host for endpoint in source),
        "port": ",".join(str(endpoint.port) for endpoint in source),
        "primary_slot_name": f"{SLOT}{group}",
        "create_replica_methods": ["basebackup"],
    }


def without_primary(config: Mapping[str, Any]) -> bool:
    """Whether nobody need be the primary of a group that is configured so."""
    return bool(config.get("standby_cluster") or config.get(PARTING))


def without_leftovers(
    patch: Mapping[str, Any], current: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """The patch, and what of copies is configured and not wanted any more."""
    gone = {key for key in ("standby_cluster", PARTING) if current.get(key) and not wanted.get(key)}
    gone |= {"pause"} if PARTING in gone else set()
    patch = {**patch, **dict.fromkeys(sorted(gone))}
    kept = wanted.get("slots") or {}
    slots = {name: None for name in current.get("slots") or {} if name.startswith(SLOT) and name not in kept}
    return patch | ({"slots": {**patch.get("slots", {}), **slots}} if slots else {})
