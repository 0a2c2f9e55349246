"""Repairs of one home's clusters, as the command asks for them.

Two of the ladder's rungs need nobody (see :mod:`pgherd.backup.repair`): where a group has a primary, whatever is wrong
with its other members is put right from it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from pgherd.backup import repair, restoring
from pgherd.backup.registry import make_method
from pgherd.errors import BadInput, PgherdError
from pgherd.model.topology import group_id, group_name
from pgherd.platform.base import REPAIR_ENDED
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import fulfilment, observe, steering

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
        return {"id": None, "message": steering.copy_anew(world, seen, number)}
    if platform.declaration(name).cluster.spec.backup is None:
        raise BadInput(
            f"{name} has no backups to rebuild {group} from: put the data of its members back in their places"
        )
    repair.newest_copy(make_method(platform, platform.declaration(name).cluster), number)
    return {"id": _wish(platform, name, number, accept), "message": f"rebuilding {group} from the backups"}


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
            progress(fulfilment.repairing(name, group, now))
        if now.get("id") == identity and not now["due"]:
            return fulfilment.repaired(name, group, now)
        if time.monotonic() > deadline:
            raise PgherdError(
                f"{name}: the repair of {group} is not done after {timeout:.0f} s: {now.get('phase')}"
            )
        time.sleep(POLL_SECONDS)


def confirm(platform: LocalPlatform, world: observe.World, group: str) -> None:
    """Remove what a repair kept, and its record.

    :raises BadInput: there was none, or it has not ended
    """
    number = steering.group_number(world, group)
    known = restoring.repairs(platform, world.name).get(number)
    if known is None:
        raise BadInput(f"{world.name}: {group} was not repaired, nothing is kept")
    if known.get("phase") not in REPAIR_ENDED:
        raise BadInput(
            f"{world.name}: the repair of {group} is not done: 'pgherd status {world.name}' shows how far it is"
        )
    platform.bench(world.name, number).clear()
