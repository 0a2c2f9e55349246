"""The kinds of steps that several operations share."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from pgherd.engine.base import Engine
from pgherd.errors import PgherdError
from pgherd.model.placement import Move
from pgherd.model.topology import group_name
from pgherd.operations.base import NotNowError, Work, counted, names
from pgherd.operations.journal import Step

SPACE_FACTOR = 1.2
"""how much more than the shards themselves a target has to have: the log of their copying, and indexes that grow"""

SPACE_RESERVE = 64 * 1024 * 1024
"""bytes that stay free in any case"""

CLEAN_UP_SECONDS = 10.0
"""how long an operation waits for its last old copies to become removable"""


def check(work: Work, step: Step) -> str:
    """Whether all tables can be moved and the servers have what it takes. Nothing has been started yet."""
    require_fit(work.engine)
    groups = [group.id for group in work.engine.shard_groups()]
    blocking = work.context.spec().expansion.mode == "blocking"
    retiring = step.detail.get("retiring", ())
    problems = work.engine.preflight(groups, blocking=blocking, retiring=retiring)
    if problems:
        raise PgherdError("; ".join(problems))
    return f"{counted(len(groups))} can be moved"


def require_fit(engine: Engine) -> None:
    """:raises PgherdError: nodes differ: they could not even be asked for their shards"""
    if problems := engine.unfit():
        raise PgherdError("; ".join(problems))


def members(work: Work, step: Step) -> str:
    """Wait until the new segments' members are up."""
    groups: Sequence[int] = step.detail["segments"]
    while missing := [group for group in groups if not work.context.segment_ready(group)]:
        work.journal.tell(f"waiting for the members of {names(missing)}")
        # Of an earlier operation, in another mode: while it is there nothing is started in its place.
        work.engine.forget_clones()
        work.wishes.wait(0.2)
    return f"the members of {names(groups)} are up"


def admit(work: Work, step: Step) -> str:
    """Let one new segment take part."""
    group = int(step.detail["segment"])
    endpoints = work.context.endpoints(group)
    if not endpoints:
        raise NotNowError(f"{group_name(group)} has no members yet")
    work.engine.admit(group, endpoints)
    return f"{group_name(group)} is admitted"


def clean_up(work: Work, step: Step) -> str:
    """Remove what the moves left behind; what an old reader still needs is left to the supervisor."""
    deadline = time.monotonic() + CLEAN_UP_SECONDS
    while (left := work.engine.clean_up(work.row.id)) and time.monotonic() < deadline:
        work.journal.tell(f"removing old copies: {left} left")
        work.wishes.wait(0.2)
    if left:
        return f"{left} old copies are still needed or out of reach; they will be removed as soon as possible"
    return "nothing is left over from the moves"


def require_space(work: Work, moves: Sequence[Move]) -> None:
    """:raises NotNowError: a target's disk is too small for what is planned"""
    incoming: dict[int, int] = defaultdict(int)
    for move in moves:
        incoming[move.target] += move.bytes
    for target, size in sorted(incoming.items()):
        require_free(work, target, size)


def require_free(work: Work, target: int, size: int) -> None:
    """:raises NotNowError: ``size`` bytes of shards don't fit on ``target``"""
    free = work.context.free_bytes(target)
    needed = int(size * SPACE_FACTOR) + SPACE_RESERVE
    if free is not None and free < needed:
        raise NotNowError(
            f"{group_name(target)} has {_mib(free)} of disk space left and needs {_mib(needed)}: make room there",
            phase="paused",
        )


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:,.0f} MiB"
