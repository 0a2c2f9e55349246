"""Which volumes are a cluster's own: what follows from what was asked for and what was written down. Pure.

A restore in place never touches a volume that is there: all members get new ones, under other names, and every group
another place in Patroni's store. Volumes and places of one making are an *epoch*. Which one is in force is in the state
of the restore (a ConfigMap that stays as long as the volumes do), and nowhere else:

* ``epoch``: the one that was made last; it is in force unless its making was taken back,
* ``kept``: the one before, untouched; in force if the making was taken back,
* ``discard``: those that nobody needs any more; written down before anything of them is removed.

So taking a restore back is one write, and confirming it is another.

What is asked for is an annotation of the cluster: ``{"id": ..., "recovery": {...}}``, where ``recovery`` is what
``spec.bootstrap.recovery`` would be, and then ``{"id": ..., "confirmed": true}``. With a ``uid`` it is meant for that
resource alone, not for one that is made from a copy of it. To take the annotation away before the restore is done is to
call it off. Where the point has another number of segments, ``segments`` says ``before`` and ``at`` it: the declaration
gets the one with the wish, and the other one back if the restore is taken back.

A wish begins nothing by itself: as long as members run, somebody first looks whether its point is there. What he finds
is written down, the first state of the restore or why the wish is refused, and nobody need look again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from pgherd.model.spec import RecoverySpec
from pgherd.platform.base import DONE, ENDED, FAILED, NO_WAY_BACK, REVERTED
from pgherd.platform.kubernetes import names

State = Mapping[str, Any]
FIRST = 0
"""of every cluster that was never restored in place"""
CALLED_OFF = "it was called off"
WISH_KEYS = ("id", "recovery", "segments")
"""what a state says of the wish that began it"""


@dataclass(frozen=True)
class Own:
    """Which volumes are a cluster's own: those of one epoch, but for the groups that were rebuilt since
    (:mod:`~pgherd.platform.kubernetes.rebuilt`)."""

    epoch: int
    """that of its place in Patroni's store, too"""
    rebuilt: Mapping[int, int] = field(default_factory=dict)
    """by group"""

    def of(self, group: int) -> int:
        """The epoch of a group's volumes."""
        return self.rebuilt.get(group, self.epoch)


@dataclass(frozen=True)
class Wish:
    """What somebody asks for."""

    id: str
    recovery: Mapping[str, Any] | None = None
    confirmed: bool = False
    problem: str = ""
    """why it makes no sense"""
    segments: Mapping[str, int] | None = None
    """how many were declared ``before``, and how many there were ``at`` the point; None: as many"""

    def as_text(self, uid: str) -> str:
        """The annotation's value.

        :param uid: of the resource that it is for
        """
        told: dict[str, Any] = {"confirmed": self.confirmed}
        if self.recovery is not None:
            told = {"recovery": self.recovery}
        if self.segments is not None:
            told["segments"] = self.segments
        return json.dumps({"id": self.id, "uid": uid, **told}, sort_keys=True)


def wish_of(resource: Mapping[str, Any] | None) -> Wish | None:
    """What a cluster's resource asks for."""
    metadata = (resource or {}).get("metadata", {})
    text = (metadata.get("annotations") or {}).get(names.RESTORE_ANNOTATION)
    if not text:
        return None
    try:
        value = json.loads(text)
        if value.get("uid") not in (None, metadata.get("uid")):
            return None
        confirmed, counts = value.get("confirmed") is True, value.get("segments")
        segments = {key: int(counts[key]) for key in ("before", "at")} if counts else None
        wish = Wish(str(value["id"]), value.get("recovery"), confirmed, segments=segments)
        if not wish.confirmed:
            RecoverySpec.model_validate(wish.recovery, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("recovery", *first["loc"])))
        return Wish(wish.id, problem=f"{path}: {first['msg'].removeprefix('Value error, ')}")
    except (ValueError, TypeError, KeyError, AttributeError):
        return Wish(str(text)[:40], problem='it is not {"id": ..., "recovery": {...}}')
    return wish


def current(state: State | None) -> int:
    """The epoch that is in force."""
    if state is None:
        return FIRST
    return int(state.get("kept") if is_reverted(state) else state.get("epoch", FIRST))  # type: ignore[arg-type]


def is_reverted(state: State) -> bool:
    """Whether its last restore in place was taken back."""
    return state.get("phase") == REVERTED and state.get("kept") is not None


def is_under_way(state: State | None) -> bool:
    """Whether it is being restored in place: nothing of it may run, whatever epoch it is of."""
    return state is not None and bool(state.get("inPlace")) and state.get("phase") not in (*ENDED, None)


def is_being_made(state: State) -> bool:
    """Whether volumes are being filled from a backup, in place or for a new cluster."""
    return state.get("phase") not in (*ENDED, FAILED, None)


def unconfirmed(state: State | None) -> int | None:
    """The epoch that is kept beside the one in force; None: none is."""
    if state is None or state.get("phase") != DONE or state.get("kept") is None:
        return None
    return int(state["kept"])


def refusal(name: str, state: State | None, busy: str = "") -> str:
    """Why this cluster can't be restored in place now; empty: it can.

    :param busy: what else is going on
    """
    if busy or state is None:
        return busy
    if unconfirmed(state) is not None:
        return f"what {name} was before its last restore is still kept: 'pgherd restore {name} --confirm' removes it"
    if state.get("phase") not in ENDED:
        return f"{name} is being restored already: 'pgherd status {name}' shows how far it is"
    return ""


def refused(name: str, state: State | None, wish: Wish | None, busy: str = "") -> str:
    """Why a wish is not fulfilled; empty: it is, or nothing is asked for."""
    if wish is None or (state is not None and wish.id == state.get("id")) or wish.confirmed:
        return ""
    return wish.problem or refusal(name, state, busy)


def judged(wish: Wish | None, refusal: Mapping[str, Any] | None) -> Wish | None:
    """A wish with what was found to be wrong with it, when somebody looked whether it can be fulfilled.

    :param refusal: the last one that was written down
    """
    if wish is None or refusal is None:
        return wish
    told = {"id": wish.id, "recovery": wish.recovery, "segments": wish.segments}
    return replace(wish, problem=str(refusal.get("refused"))) if is_same(told, refusal) else wish


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are of the same wish."""
    return all(one.get(key) == other.get(key) for key in WISH_KEYS)


def refusal_of(state: State, why: str) -> dict[str, Any]:
    """What is written down of a wish that is refused.

    :param state: what it would have begun with
    """
    return {**{key: state[key] for key in WISH_KEYS if key in state}, "refused": why}


def as_asked(state: State | None, wish: Wish | None) -> State | None:
    """What was written down, or the end of it if nobody wants it any more."""
    if state is None or not is_under_way(state):
        return state
    is_wanted = wish is not None and wish.id == state.get("id")
    has_one_way = state.get("failure") or state.get(NO_WAY_BACK)
    return state if is_wanted or has_one_way else {**state, "failure": CALLED_OFF}


def with_wish(
    name: str,
    state: State | None,
    wish: Wish | None,
    there: Collection[int] = (FIRST,),
    *,
    used: Collection[int] = (),
    busy: str = "",
) -> State | None:
    """What is to be done: what was written down, or what is newly asked for, or the end of it.

    :param there: epochs of which there are volumes
    :param used: those of them, or of others, that repairs have taken
    :param busy: what else is going on
    """
    if is_under_way(state):
        return as_asked(state, wish)
    if wish is None or wish.confirmed or refused(name, state, wish, busy):
        return state
    if state is not None and wish.id == state.get("id"):
        return state
    if (current(state) not in there and not used) or (state is None and is_lost({*there} - {*used})):
        return state  # there is nothing in whose place anything could be put, or nobody knows what
    return {
        "phase": "requested",
        "inPlace": True,
        "id": wish.id,
        "recovery": wish.recovery,
        "epoch": max((state or {}).get("epoch", FIRST), *there, *used) + 1,
        "kept": current(state),
        "discard": discarded(state),
        **({"segments": dict(wish.segments)} if wish.segments else {}),
    }


def is_lost(there: Collection[int]) -> bool:
    """Whether there must have been a state, if there is none now.

    :param there: epochs of which there are volumes, other than those of repairs
    """
    return any(epoch != FIRST for epoch in there)


def is_confirmed(state: State | None, wish: Wish | None) -> bool:
    """Whether somebody has confirmed what is not confirmed yet."""
    return (
        state is not None
        and wish is not None
        and wish.confirmed
        and wish.id == state.get("id")
        and unconfirmed(state) is not None
    )


def discarded(state: State | None) -> list[int]:
    """Epochs whose volumes are to be removed; never one that is in force or kept."""
    spared = (current(state), unconfirmed(state))
    return [epoch for epoch in (state or {}).get("discard") or () if epoch not in spared]


def confirmed(state: State) -> dict[str, Any]:
    """The state when what was kept is to go."""
    return {**state, "kept": None, "discard": [*discarded(state), unconfirmed(state)]}
