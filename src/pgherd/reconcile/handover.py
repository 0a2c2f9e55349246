"""Handing a group over to another member, and telling at once who leads it now.

Where the engine has Patroni know of the other groups, the coordinator's Patroni holds statements that need the segment
from before its primary ends until it hears of the new one. The new one's Patroni looks once a second whether its server
serves, and tells it at its next look: that is up to two seconds in which a server that could answer is not asked. So it
is told here, as soon as the new primary says that it is one. Patroni takes it from its store who leads, and to be told
twice changes nothing, unless the new primary is asked to go in that moment: then statements fail instead of waiting.
"""

from __future__ import annotations

import logging
import threading

from pgherd.engine import registry
from pgherd.errors import PgherdError
from pgherd.model.topology import COORDINATOR
from pgherd.patroni.client import PatroniClient
from pgherd.reconcile.observe import World
from pgherd.reconcile.state import MemberState, Observed

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
TELLINGS = 3
"""Patroni says nothing of news that its view of the store does not have yet, and forgets them"""
SERVES_SECONDS = 10.0
"""how long after Patroni's word the new primary is waited for; its own Patroni tells the coordinator in any case"""


def switchover(world: World, seen: Observed, leader: MemberState, candidate: MemberState) -> None:
    """Let ``candidate`` lead the group of ``leader``.

    :raises Unavailable: no answer
    :raises PgherdError: Patroni refused, or it did not happen
    """
    coordinator, group = seen.primary(COORDINATOR), leader.member.group
    held = group != COORDINATOR and bool(registry.patroni_section(seen.declaration.cluster, group))
    herald = _Herald(world.patroni, coordinator, candidate) if held and coordinator is not None else None
    try:
        if herald is not None:
            herald.start()
        answer = world.patroni.switchover(leader.view.rest, leader.member.name, candidate.member.name)
        if herald is not None and candidate.member.name in answer:  # Patroni may have found another one
            herald.join(SERVES_SECONDS)
    finally:
        if herald is not None:
            herald.dismiss()


class _Herald(threading.Thread):
    """Waits until a member serves as primary, and tells the coordinator's Patroni."""

    def __init__(self, patroni: PatroniClient, coordinator: MemberState, heir: MemberState) -> None:
        super().__init__(name=f"herald of {heir.member.name}", daemon=True)
        self._patroni, self._coordinator, self._heir = patroni, coordinator, heir
        self._dismissed = threading.Event()

    def dismiss(self) -> None:
        """Nothing is told any more."""
        self._dismissed.set()

    def run(self) -> None:
        told = 0
        while told < TELLINGS and not self._dismissed.wait(LOOK_SECONDS):
            status = self._patroni.member_status(self._heir.view.rest)
            if not MemberState(self._heir.view, status).is_primary:
                continue
            member = self._heir.member
            try:
                self._patroni.announce_primary(self._coordinator.view.rest, member.group, member.name)
            except PgherdError as error:
                logger.info("the coordinator's Patroni was not told of %s: %s", member.name, error)
            told += 1
