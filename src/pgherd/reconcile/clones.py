"""Groups that begin as a physical copy of a segment: what that means for Patroni's configuration. Pure.

Such a group is a *standby cluster* to Patroni: its first member copies the source, leads the group and follows the
source's primary; where that changes, Patroni is told. Before the engine makes it a segment (``parting``), Patroni is
told in one change to pause and that the group follows nobody: in pause it leaves alone what the engine promotes, and
even if somebody ended the pause, it could only promote the copy, which is harmless, never make the new segment a
standby again, which would throw away what was written there. There is no way back from there to a standby: a copy that
did not become a segment goes. The source keeps a replication slot for the copy, on all its members.

What the engine wants configured in a copy (it must not act in its source's name) is there from its first start on, and
stays until the engine says that the new segment knows itself. While nobody can be asked which groups are copies, what
is configured of them stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.engine.base import Clone
from pgherd.model.topology import Endpoint

SLOT = "pgherd_clone_"
"""what the names of these slots begin with"""
PARTING = "pgherd_parting"
"""in Patroni's configuration: it was we who paused this group"""
QUIET = "pgherd_quiet"
"""in Patroni's configuration: this group has parameters that a copy needs"""


def with_clones(
    configs: Mapping[int, Mapping[str, Any]],
    clones: Mapping[int, Clone],
    present: Mapping[int, Mapping[str, Any] | None],
    primaries: Mapping[int, Endpoint],
    parameters: Mapping[int, Mapping[str, str]],
) -> dict[int, Mapping[str, Any]]:
    """The groups' configurations with what copies need, theirs and their sources'.

    :param present: what is configured now; a copy goes on following whom it follows while the source has no primary
    :param primaries: where the primary of each group that has one listens
    :param parameters: PostgreSQL's, above all others, of groups that are copies or were until a moment ago
    """
    wanted = {group: _with_parameters(config, parameters.get(group)) for group, config in configs.items()}
    for group, clone in clones.items():
        if clone.state == "undone":
            continue
        if group in wanted:
            primary = primaries.get(clone.source)
            before = (present.get(group) or {}).get("standby_cluster")
            following = {"standby_cluster": before if primary is None and before else _follow(group, primary)}
            wanted[group] |= {PARTING: True, "pause": True} if clone.state == "parting" else following
        if clone.source in wanted:
            slots = wanted[clone.source].setdefault("slots", {})
            slots[f"{SLOT}{group}"] = {"type": "physical"}
    return dict(wanted)


def _with_parameters(config: Mapping[str, Any], parameters: Mapping[str, str] | None) -> dict[str, Any]:
    if not parameters:
        return dict(config)
    postgresql = {**config["postgresql"], "parameters": {**config["postgresql"]["parameters"], **parameters}}
    return {**config, "postgresql": postgresql, QUIET: True}


def _follow(group: int, source: Endpoint | None) -> dict[str, Any]:
    # One address: Patroni's password file can't tell apart members that differ in their port only.
    return {
        "host": source.host if source else None,
        "port": source.port if source else None,
        "primary_slot_name": f"{SLOT}{group}",
        "create_replica_methods": ["basebackup"],
    }


def without_primary(config: Mapping[str, Any]) -> bool:
    """Whether nobody need be the primary of a group that is configured so."""
    return bool(config.get("standby_cluster") or config.get(PARTING))


def is_of_a_copy(config: Mapping[str, Any]) -> bool:
    """Whether a group that is configured so is a copy, or was one until a moment ago."""
    return without_primary(config) or bool(config.get(QUIET))


def without_leftovers(
    patch: Mapping[str, Any], current: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """The patch, and what of copies is configured and not wanted any more."""
    gone = {key for key in ("standby_cluster", PARTING, QUIET) if current.get(key) and not wanted.get(key)}
    gone |= {"pause"} if PARTING in gone else set()
    patch = {**patch, **dict.fromkeys(sorted(gone))}
    kept = wanted.get("slots") or {}
    slots = {name: None for name in current.get("slots") or {} if name.startswith(SLOT) and name not in kept}
    return patch | ({"slots": {**patch.get("slots", {}), **slots}} if slots else {})
