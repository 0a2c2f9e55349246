"""The steps of an expansion whose new segments begin as copies of present ones.

The engine writes down of which segment a group is a copy; the reconcile loop makes the copy by that, and pauses its
Patroni when the engine is about to split. So these steps write, wait and look, and any of them may be done again. Which
segment is split for which is decided once, with the steps themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pgherd.engine.base import Engine
from pgherd.errors import PgherdError, one_line
from pgherd.model.splitting import described
from pgherd.model.splitting import sources as choose
from pgherd.model.topology import SUPERUSER, group_name
from pgherd.operations import steps
from pgherd.operations.base import NotNowError, Work, names
from pgherd.operations.journal import NewStep, Step
from pgherd.operations.moves import Control, why_not_now
from pgherd.postgres.connections import system_of

LOOK_EVERY = 0.3
"""seconds between two looks at a copy"""
HELD_SECONDS = 3.0
"""how long after it paused a Patroni may still be in a round that began before"""


def head(engine: Engine, new: Sequence[int]) -> list[NewStep]:
    """The steps by which these segments come.

    :raises PgherdError: the present segments can't be split into so many, or nodes differ
    """
    steps.require_fit(engine)
    try:
        chosen = choose(_sizes(engine), new)
    except ValueError as error:
        raise PgherdError(str(error)) from None
    pairs = [{"segment": segment, "source": source} for segment, source in chosen.items()]
    return [
        NewStep("check", {"clone": True, "pairs": pairs}),
        NewStep("copies", {"segments": list(new), "pairs": pairs}),
        *(NewStep("split", pair) for pair in pairs),
    ]


def check(work: Work, step: Step) -> str:
    """Whether segments can be split. Nothing has been started yet."""
    steps.require_fit(work.engine)
    groups = [group.id for group in work.engine.shard_groups()]
    problems = (
        work.engine.clone_problems()
        or work.engine.preflight(groups, blocking=True)
        or _taken_names(work, step.detail.get("pairs", ()))
    )
    if problems:
        raise PgherdError("; ".join(problems))
    return "segments can be split"


def _taken_names(work: Work, pairs: Sequence[Mapping[str, int]]) -> list[str]:
    """A repository tells logs apart by group and database system, and a copy has its source's. An earlier segment of
    the same two has used the numbers of timelines that the new one would use: each file of it would be refused, and the
    base copies of the one be taken for the other's."""
    try:
        held = set(work.context.archived())
    except (PgherdError, OSError) as error:
        raise NotNowError(
            f"what the backups hold of earlier segments can't be read: {one_line(error)}"
        ) from error
    return [
        f"{group_name(pair['segment'])} can't begin as a copy of {group_name(pair['source'])}: the backups hold the log"
        f" of an earlier {group_name(pair['segment'])} that was one, too, and files of both would have the same names:"
        " set spec.expansion.mode to online, or wait until retention has let go of the backups that have it"
        for pair in pairs
        if held and (pair["segment"], _system(work, pair["source"])) in held
    ]


def _system(work: Work, group: int) -> str:
    with work.context.databases.connect(group, database=SUPERUSER, read_only=True) as connection:
        return system_of(connection)


def copies(work: Work, step: Step) -> str:
    """Write down what is copied from where, by which the copies are made, and wait until they follow their sources."""
    chosen = {int(pair["segment"]): int(pair["source"]) for pair in step.detail["pairs"]}
    sizes = _sizes(work.engine)
    for source in chosen.values():
        steps.require_free(work, source, sizes[source])
    for group, source in chosen.items():
        _begin(work, group, source)
    for group, source in chosen.items():
        _await_copy(work, group, source)
    return f"{names(sorted(chosen))} follow the segments that they are copies of; {described(chosen, sizes)}"


def _sizes(engine: Engine) -> dict[int, int]:
    sizes = dict.fromkeys(engine.segments(), 0)
    for group in engine.shard_groups():
        sizes[group.segment] += group.bytes
    return sizes


def _begin(work: Work, group: int, source: int) -> None:
    while group not in work.engine.segments() and not work.engine.begin_clone(work.row.id, group, source):
        work.journal.tell(f"an earlier copy is being removed: {group_name(group)}")
        work.wishes.wait(LOOK_EVERY)


def _await_copy(work: Work, group: int, source: int) -> None:
    """With its standbys: what the source drops after the split must be on as many servers as before."""
    while (missing := _missing(work, group)) is not None:
        work.journal.tell(missing)
        work.wishes.wait(LOOK_EVERY)
        _begin(work, group, source)


def _missing(work: Work, group: int) -> str | None:
    if (missing := work.engine.is_copied(group)) is not None or group in work.engine.segments():
        return missing
    return None if work.context.complete(group) else f"the standbys of {group_name(group)} are being made"


def split(work: Work, step: Step) -> str:
    """One copy becomes a segment and takes half of its source's shards."""
    group, source = int(step.detail["segment"]), int(step.detail["source"])
    if group not in work.engine.segments():
        _require_open(work)
        _begin(work, group, source)
        _await_copy(work, group, source)
        _hold(work, group, source)
        work.engine.split(work.row.id, group, source, Control(work, step))
    work.engine.finish_split()
    while not work.context.segment_ready(group):
        work.journal.tell(f"{group_name(group)} takes over its part of {group_name(source)}")
        work.wishes.wait(LOOK_EVERY)
    work.engine.admit(group, work.context.endpoints(group))
    return f"{group_name(group)} has its part of {group_name(source)}"


def _hold(work: Work, group: int, source: int) -> None:
    work.engine.hold_clone(group)
    work.journal.set_phase("moving")
    # A predecessor's commit may end only now; for a segment nobody pauses.
    while group not in work.engine.segments() and not work.context.held(group):
        work.journal.tell(f"{group_name(group)} is about to be split off from {group_name(source)}")
        work.wishes.wait(LOOK_EVERY)
    work.wishes.wait(HELD_SECONDS)


def _require_open(work: Work) -> None:
    """:raises NotNowError: the operation is paused, or outside its window"""
    expansion = work.context.spec().expansion
    if (reason := why_not_now(expansion, work.context.now())) is not None:
        raise NotNowError(reason, phase="paused")
