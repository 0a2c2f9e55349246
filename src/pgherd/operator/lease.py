"""One operator at a time, by a Lease that whoever works holds and renews.

A Deployment of one replica is not enough: when its node is cut off a second pod starts elsewhere, while the first may
go on with databases that it still reaches. So an operator begins only when it has the Lease, and one that could not
renew it in time ends at once, before anybody else may take it. Times are measured by each one's own clock: the holder
ends :data:`DEADLINE_SECONDS` after its last renewal was sent, another takes over :data:`LEASE_SECONDS` after it saw the
last change.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pgherd.errors import PgherdError, Unavailable
from pgherd.platform.kubernetes.api import LEASE, Api, Object, is_conflict

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15
DEADLINE_SECONDS = 10.0
RENEW_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""how long one call may take"""
LOOK_SECONDS = 1.0
"""how often one that waits looks; the holder's deadline is looked at more often"""
LABELS = {"app.kubernetes.io/name": "pgherd-operator"}
LOST = 70
"""exit status of an operator that lost its lease"""


def uptime() -> float:
    """Seconds; also those in which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def end_at_once() -> None:
    """No clean-up: whatever is done from now on may be done by two."""
    logging.shutdown()
    os._exit(LOST)


class Lease:
    """One Lease, as one candidate sees it.

    :param identity: of this candidate; one that is started again under the same identity has taken its own place
    :param lost: called when the lease may be another's soon
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = uptime,
        lost: Callable[[], None] = end_at_once,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._lost = lost
        self._seen: tuple[object, float] = (None, clock())
        self._version = ""
        self._renewed = float("-inf")
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire(self, looked: Callable[[], None] = lambda: None) -> None:
        """Wait until it is ours, and keep it from then on.

        :param looked: called after each look
        :raises PgherdError: the API server refuses: a right is missing
        """
        told = ""
        while True:
            try:
                holder = self.take()
                if holder == self._identity:
                    break
                news = f"waiting for the lease {self._name}: {holder} has it"
            except Unavailable as error:
                news = str(error)
            looked()
            if news != told:
                logger.info(news)
            told = news
            time.sleep(LOOK_SECONDS)
        logger.info("has the lease %s as %s", self._name, self._identity)
        self._renewer = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._renewer.start()
        threading.Thread(target=self._guard, name="lease-guard", daemon=True).start()

    def take(self) -> str:
        """Take or renew the lease, unless it is another's; returns who has it.

        :raises PgherdError: the API server refuses, or does not answer
        """
        sent = self._clock()
        found = self._api.get(LEASE, self._namespace, self._name)
        if found is None:
            if self._may_be_held():
                return "who had it before it was removed"
            made = self._api.create(self._namespace, self._new())
        else:
            holder = str((found.get("spec") or {}).get("holderIdentity") or "")
            if holder not in ("", self._identity) and not self._is_over(found):
                return holder
            made = self._change(found, self._mine(found))
        if made is None:
            return "somebody who was faster"
        self._version, self._renewed = made["metadata"]["resourceVersion"], sent
        self._seen = (None, sent)
        return self._identity

    def renew(self) -> str:
        """Say that it is still held; returns who has it.

        :raises PgherdError: the API server refuses, or does not answer
        """
        sent = self._clock()
        made = self._change({"metadata": {"resourceVersion": self._version}}, {"renewTime": _now()})
        if made is None:  # somebody changed it: who?
            return self.take()
        self._version, self._renewed = made["metadata"]["resourceVersion"], sent
        return self._identity

    def release(self) -> None:
        """Let another one take it at once. Only for who does nothing any more; never raises."""
        self._stop.set()
        if self._renewer is not None:
            self._renewer.join(ANSWER_SECONDS)
        try:
            found = self._api.get(LEASE, self._namespace, self._name)
            if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._identity:
                self._change(found, {"holderIdentity": None, "renewTime": _now()})
        except PgherdError as error:
            logger.info("the lease was not released: %s", error)

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                holder = self.renew()
            except PgherdError as error:
                logger.warning("the lease was not renewed: %s", error)
                continue
            if holder != self._identity and not self._stop.is_set():
                logger.critical("the lease %s was taken by %s", self._name, holder)
                self._lost()
                return

    def _guard(self) -> None:
        while not self._stop.wait(DEADLINE_SECONDS / 40):
            if self._clock() - self._renewed > DEADLINE_SECONDS:
                logger.critical("the lease %s was not renewed for %.0f s", self._name, DEADLINE_SECONDS)
                self._lost()
                return

    def _is_over(self, found: Object) -> bool:
        """Whether another's lease has not changed for as long as it lasts."""
        record = (found["metadata"]["resourceVersion"], found["metadata"].get("uid"))
        if self._seen[0] != record:
            self._seen = (record, self._clock())
        lasts = (found.get("spec") or {}).get("leaseDurationSeconds") or LEASE_SECONDS
        return bool(self._clock() - self._seen[1] > lasts)

    def _may_be_held(self) -> bool:
        """Whether another's lease was there a moment ago: whoever removed it, its holder has not heard of that yet."""
        record, at = self._seen
        return record is not None and self._clock() - at <= LEASE_SECONDS

    def _change(self, found: Object, spec: dict[str, Any]) -> Object | None:
        """Change it as it was found; None if somebody else did meanwhile."""
        patch = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "spec": spec}
        try:
            return self._api.merge(LEASE, self._namespace, self._name, patch)
        except PgherdError as error:
            if is_conflict(error):
                return None
            raise

    def _mine(self, found: Object) -> dict[str, Any]:
        spec = found.get("spec") or {}
        mine: dict[str, Any] = {"renewTime": _now(), "leaseDurationSeconds": LEASE_SECONDS}
        if spec.get("holderIdentity") != self._identity:
            changes = int(spec.get("leaseTransitions") or 0) + 1
            mine |= {
                "holderIdentity": self._identity,
                "acquireTime": mine["renewTime"],
                "leaseTransitions": changes,
            }
        return mine

    def _new(self) -> Object:
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": self._name, "labels": LABELS},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": LEASE_SECONDS,
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
