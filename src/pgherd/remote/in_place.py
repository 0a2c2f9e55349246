"""Restoring a cluster in place where clusters run in Kubernetes: an annotation that the operator follows.

All that has to be known is in the cluster's own resource: what is asked for, and in its status how that stands.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pgherd.errors import BadInput, PgherdError
from pgherd.platform.base import REVERTED
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.epochs import Wish, wish_of
from pgherd.remote import objects

POLL_SECONDS = 0.5
REMOVAL_SECONDS = 120.0
"""how long the removal of volumes is waited for"""


class InPlace:
    """The commands' calls about it."""

    def _get(self, name: str) -> dict[str, Any]:
        raise NotImplementedError

    def _kept(self, name: str) -> list[str]:
        raise NotImplementedError

    def _patch(self, name: str, change: dict[str, Any], *, leaving: bool = False) -> None:
        raise NotImplementedError

    def require_restorable(self, name: str) -> None:
        """Refuse what can't be restored in place now.

        :raises BadInput: the last one has not been confirmed, another is going on, or there is nothing yet
        """
        resource = self._get(name)
        self.refuse_if_restored(name, resource)
        if objects.restore_of(resource).get("kept"):
            raise BadInput(
                f"what {name} was before its last restore is still kept: 'pgherd restore {name} --confirm' removes it"
            )
        if (group := objects.being_rebuilt(resource)) is not None:
            raise BadInput(f"{group} of {name} is being rebuilt: 'pgherd status {name}' shows how far it is")
        if not self._kept(name):
            raise BadInput(f"{name} has no data yet that could be taken back")

    def refuse_if_restored(self, name: str, resource: Mapping[str, Any]) -> None:
        """Refuse what has to wait for the end of a restore in place.

        :raises BadInput: one is under way
        """
        if objects.is_being_restored(resource):
            raise BadInput(
                f"{name} is being restored in place: 'pgherd status {name}' shows how far it is, 'pgherd cancel {name}'"
                " takes it back"
            )

    def ask_for_restore(self, name: str, recovery: Mapping[str, Any], segments: int) -> None:
        """Write the wish down, all of it at once.

        :param recovery: what ``spec.bootstrap.recovery`` would be
        :param segments: how many the cluster had at that point
        """
        resource = self._get(name)
        before = objects.cluster_of(resource).spec.segments.count
        counts = {"before": before, "at": segments} if before != segments else None
        wish = Wish(f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}", recovery, segments=counts)
        annotations = {
            names.RESTORE_ANNOTATION: wish.as_text(resource["metadata"]["uid"]),
            names.STOPPED_ANNOTATION: None,
        }
        change: dict[str, Any] = {"metadata": {"annotations": annotations}}
        if counts is not None:
            change["spec"] = {"segments": {"count": segments}}
        self._patch(name, change)

    def call_off_restore(self, name: str) -> bool:
        """Take the wish back; whether there was one to take back.

        :raises BadInput: there is nothing to go back to
        """
        resource = self._get(name)
        if not objects.is_being_restored(resource):
            return False
        if way := objects.restore_of(resource).get("noWayBack"):
            raise BadInput(f"{name} can't be called back: {way}")
        change: dict[str, Any] = {"metadata": {"annotations": {names.RESTORE_ANNOTATION: None}}}
        wish = wish_of(resource)
        counts = (wish and wish.segments) or {}
        if objects.cluster_of(resource).spec.segments.count == counts.get("at"):
            # In the same change: what is as it was before must not be made smaller or larger afterwards.
            change["spec"] = {"segments": {"count": counts["before"]}}
        self._patch(name, change)
        return True

    def restore_outcome(self, name: str) -> str | None:
        """Why the last restore in place was taken back; None: it was done.

        :raises BadInput: it was not begun
        """
        restore = objects.restore_of(self._get(name))
        if restore.get("refused"):
            raise BadInput(f"{name}: nothing was changed, the restore is refused: {restore['refused']}")
        return str(restore.get("error")) if restore.get("phase") == REVERTED else None

    def confirm_restore(self, name: str) -> None:
        """Remove what a restore in place kept.

        :raises BadInput: nothing is kept, or the restore is not done
        :raises PgherdError: it is not gone yet
        """
        resource = self._get(name)
        self.refuse_if_restored(name, resource)
        restore = objects.restore_of(resource)
        if not restore.get("kept"):
            raise BadInput(f"{name}: nothing is kept from before a restore")
        if objects.is_stopped(resource):
            raise BadInput(f"{name} is stopped: 'pgherd start {name}' brings it back")
        wish = Wish(str(restore["id"]), confirmed=True)
        text = wish.as_text(resource["metadata"]["uid"])
        self._patch(name, {"metadata": {"annotations": {names.RESTORE_ANNOTATION: text}}})
        self._await_removal(name, set(restore["kept"]))

    def _await_removal(self, name: str, volumes: set[str]) -> None:
        deadline = time.monotonic() + REMOVAL_SECONDS
        while left := volumes.intersection(self._kept(name)):
            if time.monotonic() > deadline:
                raise PgherdError(
                    f"{name}: it is confirmed, but not gone after {REMOVAL_SECONDS:.0f} s: {', '.join(sorted(left))}; "
                    "the operator goes on removing it"
                )
            time.sleep(POLL_SECONDS)
