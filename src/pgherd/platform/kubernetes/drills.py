"""A drill as objects of the namespace. Pure.

Somebody asks for one by an annotation of the cluster (:class:`Ask`), which stays until the drill has ended; a schedule
asks in the same words. How far it is (:class:`State`) is in the ConfigMap ``NAME.drill``, from before anything is made;
what the last one found stays there until the next one begins. The scratch is a resource of its own, owned by the
cluster's: it goes with it, whatever happens to the operator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.ensure import owned

ASK_ANNOTATION = f"{names.DOMAIN}/drill"
"""on a cluster: the drill that somebody wants"""
OF_LABEL = f"{names.DOMAIN}/drill-of"
"""on a scratch, and on everything of it: of which cluster"""
ID_ANNOTATION = f"{names.DOMAIN}/drill-id"
"""on a scratch: of which drill"""
STATE_KEY = "state.json"

BEGUN, ENDING, ENDED = "begun", "ending", "ended"
"""phases: the scratch is made and examined; it is known what was found, and the scratch goes; all is done"""


@dataclass(frozen=True)
class Ask:
    """What kind of drill is wanted. Plain data."""

    id: str
    keep: bool = False
    tables: tuple[str, ...] = ()
    timeout: float | None = None
    """seconds from its beginning to the verdict; None: for ever"""
    schedule: str = ""
    """that wants it; empty: a person"""

    def as_json(self) -> dict[str, Any]:
        """For :func:`ask_from`."""
        return {**asdict(self), "tables": list(self.tables)}


def ask_from(raw: Any) -> Ask | None:
    """The inverse of ``Ask.as_json``; None: nobody can tell what is wanted."""
    try:
        limit = raw.get("timeout")
        return Ask(
            _text(raw["id"]),
            keep=raw.get("keep") is True,
            tables=tuple(map(_text, raw.get("tables", ()))),
            timeout=None if limit is None else float(limit),
            schedule=_text(raw.get("schedule") or " ").strip(),
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def asked(resource: Mapping[str, Any]) -> Ask | None:
    """What a cluster's annotation wants; None: nothing, or nobody can tell (:func:`is_asked`)."""
    try:
        return ask_from(json.loads(_annotation(resource) or "null"))
    except ValueError:
        return None


def is_asked(resource: Mapping[str, Any]) -> bool:
    """Whether a cluster has the annotation, whatever it says."""
    return _annotation(resource) is not None


def _annotation(resource: Mapping[str, Any]) -> str | None:
    found: str | None = (resource["metadata"].get("annotations") or {}).get(ASK_ANNOTATION)
    return found


@dataclass(frozen=True)
class State:
    """How far a drill is. Plain data."""

    ask: Ask
    phase: str
    started_at: str
    point: str | None = None
    """the point that the drill made itself"""
    restore_point: str | None = None
    """the point that is restored"""
    time: str = ""
    """when that was made"""
    told: tuple[str, ...] = ()
    """what was done so far, for who waits"""
    status: Mapping[str, Any] | None = None
    """what the examination is about, as statuses say it"""
    result: Mapping[str, Any] | None = None
    """what was found"""
    error: str = ""
    """why nothing could be found"""
    refused: bool = False
    """that was a mistake of whoever asked"""

    @property
    def is_open(self) -> bool:
        """It has not ended."""
        return self.phase != ENDED

    def saying(self, text: str) -> State:
        """The same, with one thing more that is done."""
        return replace(self, told=(*self.told, text), status=None)


def state_from(config_map: Mapping[str, Any] | None) -> State | None:
    """What the ConfigMap says; None: there was no drill, or nobody can tell."""
    try:
        raw = json.loads(((config_map or {}).get("data") or {})[STATE_KEY])
        ask = ask_from(raw["ask"])
        if ask is None or raw["phase"] not in (BEGUN, ENDING, ENDED):
            return None
        return State(**{**raw, "ask": ask, "told": tuple(raw["told"])})
    except (LookupError, TypeError, ValueError):
        return None


def state_object(cluster: str, state: State, owner: Mapping[str, Any]) -> dict[str, Any]:
    """The ConfigMap.

    :param owner: the cluster's resource
    """
    value = {**asdict(state), "ask": state.ask.as_json(), "told": list(state.told)}
    metadata = {"name": names.drill_state(cluster), "labels": names.labels(cluster)}
    return owned(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {STATE_KEY: json.dumps(value)},
        },
        owner,
    )


# the scratch


def scratch_object(declared: Mapping[str, Any], drill: str, owner: Mapping[str, Any]) -> dict[str, Any]:
    """The resource of a scratch.

    :param declared: what it should be
    :param drill: whose it is
    :param owner: the resource of the cluster that was backed up
    """
    metadata = {
        "name": declared["metadata"]["name"],
        "labels": {OF_LABEL: owner["metadata"]["name"]},
        "annotations": {ID_ANNOTATION: drill},
    }
    return owned({**declared, "metadata": metadata}, owner)


def is_scratch(resource: Mapping[str, Any], cluster: str | None = None) -> bool:
    """Whether a resource was made by a drill.

    :param cluster: of this cluster, or of one that was called so before; None: of any
    """
    metadata = resource["metadata"]
    source = (metadata.get("labels") or {}).get(OF_LABEL)
    if source is None or cluster not in (None, source):
        return False
    # A label is easily copied; an owner has to be named with the identity that only it has.
    return any(
        each.get("kind") == resource.get("kind") and each.get("name") == source and each.get("controller")
        for each in metadata.get("ownerReferences") or ()
    )


def is_of(resource: Mapping[str, Any], drill: str) -> bool:
    """Whether a scratch was made by this very drill, and stays for it."""
    metadata = resource["metadata"]
    return (
        "deletionTimestamp" not in metadata
        and (metadata.get("annotations") or {}).get(ID_ANNOTATION) == drill
    )
