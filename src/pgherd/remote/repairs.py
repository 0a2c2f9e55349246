"""Bringing a group back that has lost all its data, where clusters run in Kubernetes: an annotation that the operator
follows.

What needs nobody but Patroni is asked of it directly. All else that has to be known is in the cluster's own resource:
what is asked for, and in its status how that stands.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.topology import group_id, group_name
from pgherd.platform.base import REPAIR_ENDED
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.rebuilt import Wish, wish_of
from pgherd.reconcile import fulfilment, observe, status, steering
from pgherd.reconcile.observe import World
from pgherd.remote import objects
from pgherd.remote.in_place import InPlace

POLL_SECONDS = 0.5
PRIMARY_SECONDS = 15.0
"""how long a group that has not lost its data may be without a primary until that is no failover any more"""
REMOVAL_SECONDS = 120.0
"""how long the removal of volumes is waited for"""
Progress = Callable[[dict[str, Any]], None]


class Repairs(InPlace):
    """The commands' calls about it."""

    def _world(self, name: str) -> AbstractContextManager[World]:
        raise NotImplementedError

    def _refuse_if_leaving(self, name: str, resource: dict[str, Any]) -> None:
        raise NotImplementedError

    def repair(self, name: str, group: str, *, accept_data_loss: bool) -> dict[str, Any]:
        """Ask for a group to be rebuilt; ``id`` is to be waited for (None: nothing is), ``message`` says what is done.

        :raises BadInput: no such group, nothing is wrong with it, or there is nothing to rebuild it from
        :raises Unavailable: a member that is to be copied anew can't be told so now
        """
        resource = self._ready(name)
        number = _number(name, group, resource)
        if (primary := self._primary(name, group)) is not None:
            return {"id": None, "message": self._copy_anew(name, group, number, primary)}
        if objects.cluster_of(resource).spec.backup is None:
            raise BadInput(
                f"{name} has no backups to rebuild {group} from: bring the volumes of its members back"
            )
        wish = _asked(name, group, resource, accept=accept_data_loss)
        self._ask(name, resource, wish, number)
        return {"id": wish.id, "message": f"rebuilding {group} from the backups"}

    def _primary(self, name: str, group: str) -> str | None:
        """Who leads a group, as the operator sees it; None: it has lost its data, or nobody has for some time.

        :raises PgherdError: nothing is heard of the operator
        """
        deadline = time.monotonic() + PRIMARY_SECONDS
        while True:
            resource = self._get(name)
            now = objects.status_of(resource)
            if objects.is_stale(now, datetime.now(UTC)) or not resource.get("status"):
                raise PgherdError(f"{name}: {objects.SILENCE}")
            if (primary := objects.primary_of(resource, group)) is not None:
                return primary
            if status.is_data_lost(now, group) or time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)

    def _copy_anew(self, name: str, group: str, number: int, primary: str) -> str:
        """The group has a primary: the second rung, by Patroni."""
        if all(each["state"] == "running" for each in objects.members_of(self._get(name), group)):
            raise steering.nothing_is_wrong(name, group, primary)
        with self._world(name) as there:
            seen = observe.observe(there)
            if seen.primary(number) is None:
                raise Unavailable(f"{primary} leads {group} of {name}, and does not answer: ask again")
            return steering.copy_anew(there, seen, number)

    def _ready(self, name: str) -> dict[str, Any]:
        resource = self._get(name)
        self._refuse_if_leaving(name, resource)
        if objects.is_stopped(resource):
            raise BadInput(f"{name} is stopped: 'pgherd start {name}' brings it back")
        self.refuse_if_restored(name, resource)
        return resource

    def _ask(self, name: str, resource: Mapping[str, Any], wish: Wish, group: int) -> None:
        text = wish.as_text(resource["metadata"]["uid"])
        self._patch(name, {"metadata": {"annotations": {names.repair_annotation(group): text}}})

    def wait_repair(
        self, name: str, group: str, identity: str, *, timeout: float, progress: Progress | None
    ) -> dict[str, Any]:
        """Until a repair has ended; its entry of ``status.repairs``.

        :raises BadInput: it is not made
        :raises PgherdError: it failed, waits for somebody to accept a loss, or time ran out
        """
        begun = time.monotonic()
        while True:
            try:
                resource = self._get(name)
            except Unavailable:  # the API is away for a while
                resource = None
            if resource is not None and (found := _news(name, group, identity, resource)) is not None:
                if _is_over(group, identity, found, resource):
                    return fulfilment.repaired(name, group, found)
                if progress is not None:
                    progress(fulfilment.repairing(name, group, found))
            elif time.monotonic() - begun > objects.STALE_SECONDS:
                raise PgherdError(f"{name}: nothing is heard of the repair of {group}: {objects.SILENCE}")
            if time.monotonic() - begun > timeout:
                raise PgherdError(
                    f"{name}: the repair of {group} is not done after {timeout:.0f} s; the operator goes on with it"
                )
            time.sleep(POLL_SECONDS)

    def confirm_repair(self, name: str, group: str) -> None:
        """Remove what a repair kept, and its record.

        :raises BadInput: there was none, or it has not ended
        :raises PgherdError: it is not gone yet
        """
        resource = self._ready(name)
        found = objects.repair_of(resource, group)
        if not found or found.get("phase") == "refused":
            _number(name, group, resource)
            raise BadInput(f"{name}: {group} was not repaired, nothing is kept")
        if found.get("phase") not in REPAIR_ENDED:
            raise BadInput(
                f"{name}: the repair of {group} is not done: 'pgherd status {name}' shows how far it is"
            )
        self._ask(name, resource, Wish(str(found["id"]), confirmed=True), group_id(group))
        volumes = set(str(found.get("kept") or "").split(", "))
        deadline = time.monotonic() + REMOVAL_SECONDS
        while (left := volumes.intersection(self._kept(name))) or objects.repair_of(self._get(name), group):
            if time.monotonic() > deadline:
                raise PgherdError(
                    f"{name}: it is confirmed, but not gone after {REMOVAL_SECONDS:.0f} s: "
                    f"{', '.join(sorted(left)) or 'the record of the repair'}; the operator goes on removing it"
                )
            time.sleep(POLL_SECONDS)


def _number(name: str, group: str, resource: Mapping[str, Any]) -> int:
    """The number of a group by its name.

    :raises BadInput: the cluster has no such group
    """
    try:
        number = group_id(group)
    except ValueError as error:
        raise BadInput(str(error)) from error
    known = {*range(objects.cluster_of(resource).spec.segments.count + 1), *objects.groups_of(resource)}
    if number not in known:
        there = ", ".join(group_name(one) for one in sorted(known))
        raise BadInput(f"{name} has no {group}: it has {there}")
    return number


def _asked(name: str, group: str, resource: Mapping[str, Any], *, accept: bool) -> Wish:
    """What is to be asked for: the same repair goes on where one is open.

    :raises BadInput: what the last one kept is not confirmed
    """
    found, wish = objects.repair_of(resource, group), wish_of(resource, group_id(group))
    is_open = found.get("due") or (found.get("phase") == "in doubt" and accept)
    # A loss once accepted stays so.
    if wish is not None and not wish.confirmed:
        if (found.get("refused") or {}).get("id") == wish.id:
            if is_open:
                return Wish(str(found["id"]), accept or bool(found.get("accepted")))
        elif not wish.problem and (found.get("id") != wish.id or is_open):
            return Wish(wish.id, accept or wish.accept)
    if found.get("kept"):
        raise BadInput(
            f"what {group} was before its last repair is still kept in {found['kept']}: 'pgherd repair {name} --group "
            f"{group} --confirm' removes it"
        )
    return Wish(f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}", accept)


def _news(name: str, group: str, identity: str, resource: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the operator has said of this repair; None: nothing yet.

    :raises PgherdError: nobody wants it any more
    """
    found, wish = objects.repair_of(resource, group), wish_of(resource, group_id(group))
    if found.get("id") == identity:
        return found
    if (refused := found.get("refused") or {}).get("id") == identity:
        return {**found, "id": identity, "phase": "refused", "reason": refused["reason"], "due": False}
    if wish is None or wish.id != identity:
        raise PgherdError(f"{name}: the repair of {group} was called off")
    return None


def _is_over(group: str, identity: str, found: Mapping[str, Any], resource: Mapping[str, Any]) -> bool:
    """Whether it has ended, or waits for somebody; that a loss was accepted may not have been seen yet."""
    wish = wish_of(resource, group_id(group))
    accepts = wish is not None and wish.id == identity and wish.accept
    return not found.get("due") and (
        bool(found.get("accepted")) or not accepts or found["phase"] == "refused"
    )
