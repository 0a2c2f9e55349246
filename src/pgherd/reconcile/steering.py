"""What people ask of a running cluster directly: of its databases, or of its groups' Patroni.

The same on every platform; how the world is reached is the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pgherd.engine.base import Finding, ShardGroupId
from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.topology import group_id, group_name
from pgherd.operations import copy, store
from pgherd.operations.rebalance import plan_rebalance
from pgherd.reconcile import access, handover, observe, status
from pgherd.reconcile.state import MemberState, Observed

POLL_SECONDS = 0.2

LOOKS = 3
"""how often a member is asked until it is said that something is wrong with it"""

BETWEEN_LOOKS_SECONDS = 2.0


def group_number(world: observe.World, group: str) -> int:
    """The number of a group by its name.

    :raises BadInput: the cluster has no such group
    """
    try:
        number = group_id(group)
    except ValueError as error:
        raise BadInput(str(error)) from error
    known = {view.member.group for view in world.platform.members(world.name).values()}
    known |= set(range(world.platform.declaration(world.name).cluster.spec.segments.count + 1))
    if number not in known:
        there = ", ".join(group_name(one) for one in sorted(known))
        raise BadInput(f"{world.name} has no {group}: it has {there}")
    return number


def request_rebalance(world: observe.World) -> int:
    """Write down a rebalance; returns the operation's id.

    :raises BadInput: another operation is running
    """
    generation = world.platform.declaration(world.name).generation
    return store.request(world.databases, "rebalance", parameters={"generation": generation})


def copy_to(
    source: observe.World, destination: observe.World, pg_dump: Path, tell: copy.Tell, parallel: int
) -> copy.Summary:
    """Copy the database of one cluster to another, or go on with it; see :func:`pgherd.operations.copy.copy`."""
    here, there = (copy.Side(world.name, world.databases, world.engine) for world in (source, destination))
    return copy.copy(here, there, pg_dump, tell, parallel=parallel)


def request_cancel(world: observe.World) -> int | None:
    """Ask the running operation to end.

    :return: the number of segments to declare again, if it was to change that
    :raises BadInput: no operation is running
    """
    running = store.current(world.databases)
    if running is None:
        raise BadInput(f"{world.name}: no operation is running")
    store.request_cancel(world.databases, running.id)
    return running.from_segments if running.to_segments is not None else None


def planned_moves(world: observe.World) -> list[dict[str, Any]]:
    """The moves that a rebalance would make, in order."""
    tables: Mapping[ShardGroupId, Any] = {group.id: group.tables for group in world.engine.shard_groups()}
    return [
        {
            "colocation": move.colocation,
            "index": move.index,
            "source": group_name(move.source),
            "target": group_name(move.target),
            "bytes": move.bytes,
            "tables": list(tables.get(ShardGroupId(move.colocation, move.index), ())),
        }
        for move in plan_rebalance(world.engine)
    ]


def findings(world: observe.World) -> list[Finding]:
    """Everything that the catalogue and the world disagree on.

    Who does not answer once may only be slow, or the way there may be: what the last of several looks finds is told.
    """
    seen = observe.observe(world)
    for _ in range(LOOKS - 1):
        if not status.find_problems(seen):
            break
        time.sleep(BETWEEN_LOOKS_SECONDS)
        seen = observe.observe(world)
    members = [
        Finding(-1, "members", problem, "see 'pgherd status'") for problem in status.find_problems(seen)
    ]
    return members if seen.catalogue is None else [*members, *world.engine.check()]


def switchover(world: observe.World, group: str, to: str | None) -> str:
    """Let another member of a group lead. Returns the new primary's name.

    :raises BadInput: no such group or member
    :raises PgherdError: nobody may take over right now, or the one that leads could not start again
    """
    number = group_number(world, group)
    seen = observe.observe(world)
    primary, names = seen.primary(number), [state.member.name for state in seen.of_group(number)]
    if to is not None and to not in names:
        raise BadInput(f"{to} is not a member of {group} of {world.name}: it has {', '.join(names)}")
    if primary is None:
        raise PgherdError(
            f"{group} of {world.name} has no primary right now: see 'pgherd status {world.name}'"
        )
    if to == primary.member.name:
        return to
    candidate = to or _heir(seen, number, primary)
    heir = next(state for state in seen.of_group(number) if state.member.name == candidate)
    access.require_readable(world.databases, seen, [number])  # the one that leads starts again as a standby
    handover.switchover(world, seen, primary, heir)
    return _await_primary(world, number, candidate)


def _heir(seen: Observed, group: int, primary: MemberState) -> str:
    others = [state for state in seen.of_group(group) if state.is_running and state.member != primary.member]
    others.sort(key=lambda state: (not (state.patroni and state.patroni.sync_standby), state.member.ordinal))
    if not others:
        raise Unavailable(f"{group_name(group)} has no running standby to switch over to")
    return others[0].member.name


def _await_primary(world: observe.World, group: int, wanted: str, timeout: float = 60.0) -> str:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        seen = observe.observe(world)
        primary = seen.primary(group)
        # The old primary too must be back: until then Patroni refuses whatever is asked next.
        settled = all(state.is_running for state in seen.of_group(group))
        if primary is not None and primary.member.name == wanted and settled:
            return wanted
        time.sleep(POLL_SECONDS)
    raise PgherdError(
        f"{wanted} did not become primary within {timeout:.0f} s: see 'pgherd logs {world.name}'"
    )


def restart(
    world: observe.World, group: str | None, progress: Callable[[str], None] = lambda text: None
) -> None:
    """Restart PostgreSQL of every member of a group, or of all, one at a time, standbys first.

    :raises PgherdError: a member did not come back, or could not
    """
    seen = observe.observe(world)
    numbers = [group_number(world, group)] if group else seen.wanted_groups()
    access.require_readable(world.databases, seen, numbers)
    for number in reversed(numbers):
        for state in sorted(seen.of_group(number), key=lambda state: state.is_primary):
            progress(f"restarting {state.member.name}")
            try:
                world.patroni.restart(state.view.rest)
            except Unavailable as error:
                raise Unavailable(f"{state.member.name} may not have been restarted: {error}") from error
            _await_running(world, state.member.name)


def _await_running(world: observe.World, member: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if observe.observe(world).members[member].is_running:
            return
        time.sleep(POLL_SECONDS)
    raise PgherdError(
        f"{member} did not come back within {timeout:.0f} s: see 'pgherd logs {world.name} {member}'"
    )


def nothing_is_wrong(name: str, group: str, primary: str) -> BadInput:
    """There is nothing to repair."""
    return BadInput(f"nothing is wrong with {group} of {name}: {primary} leads and all its members run")


def copy_anew(world: observe.World, seen: Observed, group: int) -> str:
    """Have what is wrong with the members of a group that has a primary put right from it, by Patroni: the ladder's
    second rung.

    :return: what is done
    :raises BadInput: nothing is wrong
    :raises Unavailable: a member can't be told so now
    """
    broken = [state for state in seen.of_group(group) if not state.is_running]
    primary = seen.primary(group)
    assert primary is not None, "asked only where there is one"
    if not broken:
        raise nothing_is_wrong(world.name, group_name(group), primary.member.name)
    for state in broken:
        _reinitialise(world, state)
    names = ", ".join(state.member.name for state in broken)
    return (
        f"{group_name(group)} has a primary: {names} is copied anew from {primary.member.name}, nothing is lost "
        "(rung: base backup from the primary)"
    )


def _reinitialise(world: observe.World, state: MemberState) -> None:
    """Have Patroni copy a member anew; one without data, or in the middle of a copy, is copied as it is.

    :raises Unavailable: it can't be told that now
    """
    told = state.patroni
    if not state.view.has_data or (told is not None and told.state == "creating"):
        return
    if told is None or told.state == "starting":
        why = "does not answer" if told is None else "is starting"
        raise Unavailable(
            f"{state.member.name} {why}, it can't be told to begin anew: ask again if it does not come up"
        )
    world.patroni.reinitialize(state.view.rest)
