"""Repairs of one home's clusters, as the command asks for them.

Two of the ladder's rungs need nobody (see :mod:`pgherd.backup.repair`): where a group has a primary, whatever is wrong
with its other members is put right from it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from pgherd.backup import repair, restoring
from pgherd.backup.registry import make_method
from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.topology import group_id, group_name
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe, steering
from pgherd.reconcile.state import MemberState, Observed

POLL_SECONDS = 0.3
Progress = Callable[[dict[str, Any]], None]


def request(platform: LocalPlatform, world: observe.World, group: str, *, accept: bool) -> dict[str, Any]:
    """Write down that a group is to be rebuilt, or have its primary's standbys copied anew.

    :param accept: the loss of whatever is not in the repository is accepted
    :return: ``id`` (None: Patroni does it, or nothing is to be done) and ``message``
    :raises BadInput: there is nothing to repair, or nothing to repair it from
    :raises Unavailable: a member that is to be copied anew can't be told so now
    """
    name, number = world.name, steering.group_number(world, group)
    if platform.declaration(name).stopped:
        raise BadInput(f"{name} is stopped: 'pgherd start {name}' brings it back")
    seen = observe.observe(world)
    if seen.recovery is not None:
        raise BadInput(f"{name} is being restored: 'pgherd status {name}' shows how far it is")
    if seen.primary(number) is not None:
        return {"id": None, "message": _copy_anew(world, seen, number)}
    if platform.declaration(name).cluster.spec.backup is None:
        raise BadInput(
            f"{name} has no backups to rebuild {group} from: put the data of its members back in their places"
        )
    repair.newest_copy(make_method(platform, platform.declaration(name).cluster), number)
    return {"id": _wish(platform, name, number, accept), "message": f"rebuilding {group} from the backups"}


def _copy_anew(world: observe.World, seen: Observed, group: int) -> str:
    """The group has a primary: the second rung, by Patroni."""
    broken = [state for state in seen.of_group(group) if not state.is_running]
    primary = seen.primary(group)
    assert primary is not None, "asked only where there is one"
    if not broken:
        raise BadInput(
            f"nothing is wrong with {group_name(group)} of {world.name}: {primary.member.name} leads and all its "
            "members run"
        )
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


def _wish(platform: LocalPlatform, name: str, group: int, accept: bool) -> str:
    title = group_name(group)
    with platform.locked():
        bench = platform.bench(name, group)
        known = restoring.repairs(platform, name).get(group)
        wish = bench.read("wish")
        if known is not None and wish is not None:
            if known["due"] or (known.get("phase") == repair.DOUBT and accept):
                # The same repair goes on; a loss once accepted stays so.
                bench.write("wish", {**wish, "accept": accept or bool(wish["accept"])})
                return str(wish["id"])
            if known["kept"]:
                raise BadInput(
                    f"what {title} was before its last repair is still kept in {known['kept']}: "
                    f"'pgherd repair {name} --group {title} --confirm' removes it"
                )
        identity = secrets.token_hex(4)
        bench.write("wish", repair.new_wish(identity, accept=accept))
        return identity


def wait(
    platform: LocalPlatform,
    name: str,
    group: str,
    identity: str,
    *,
    timeout: float,
    progress: Progress | None,
    see_to_it: Callable[[], None],
) -> dict[str, Any]:
    """Until a repair has ended.

    :param see_to_it: called again and again: makes sure that somebody does it
    :raises PgherdError: it failed, waits for somebody to accept a loss, or time ran out
    """
    deadline = time.monotonic() + timeout
    while True:
        see_to_it()
        now = dict(restoring.repairs(platform, name).get(group_id(group), {}))
        if progress is not None:
            progress(_as_status(name, group, now))
        if now.get("id") == identity and not now["due"]:
            return _ended(name, group, now)
        if time.monotonic() > deadline:
            raise PgherdError(
                f"{name}: the repair of {group} is not done after {timeout:.0f} s: {now.get('phase')}"
            )
        time.sleep(POLL_SECONDS)


def _ended(name: str, group: str, now: dict[str, Any]) -> dict[str, Any]:
    if now["phase"] == repair.FAILED:
        raise PgherdError(f"{name}: {group} could not be rebuilt, nothing was changed: {now['error']}")
    if now["phase"] == repair.DOUBT:
        raise PgherdError(
            f"{name}: {group} is not rebuilt yet, it may not get back all it had: {now['reason']}: "
            f"'pgherd repair {name} --group {group} --accept-data-loss' goes on without it"
        )
    return now


def _as_status(name: str, group: str, now: Mapping[str, Any]) -> dict[str, Any]:
    operation = {
        "kind": f"repair of {group}",
        "phase": now.get("phase"),
        "bytesDone": now.get("bytesDone", 0),
        "bytesTotal": now.get("bytesTotal", 0),
    }
    return {"name": name, "phase": "Repairing", "operation": operation}


def confirm(platform: LocalPlatform, world: observe.World, group: str) -> None:
    """Remove what a repair kept, and its record.

    :raises BadInput: there was none, or it is not done
    """
    number = steering.group_number(world, group)
    known = restoring.repairs(platform, world.name).get(number)
    if known is None:
        raise BadInput(f"{world.name}: {group} was not repaired, nothing is kept")
    if known.get("phase") != repair.DONE:
        raise BadInput(
            f"{world.name}: the repair of {group} is not done: 'pgherd status {world.name}' shows how far it is"
        )
    platform.bench(world.name, number).clear()
