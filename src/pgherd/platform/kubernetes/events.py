"""Events: what was decided about a cluster, told where ``kubectl describe`` shows it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes.api import EVENT, Api
from pgherd.platform.kubernetes.recent import Recent

logger = logging.getLogger(__name__)

MAX_MESSAGE = 1000
LOOK_SECONDS = 5.0
"""how old an answer about warnings may be"""
STALE = timedelta(minutes=20)
"""an older warning is history: whoever has the problem still says so more often"""
REMEMBERED_SECONDS = 3600.0
"""how long Kubernetes keeps an event"""
QUIET_SECONDS = 30.0
"""the same event is told again after this time at the earliest"""


class Events:
    """Tells events; one that is told again and again counts up, at a bounded rate."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._told: Recent[tuple[datetime, int]] = Recent(REMEMBERED_SECONDS)

    def tell(self, about: Mapping[str, Any], what: str, *, failed: bool) -> None:
        """Tell something about an object; never raises: nothing depends on it."""
        now = datetime.now(UTC)
        event = render(about, what, failed=failed, now=now, count=1)
        name = event["metadata"]["name"]
        _, (at, count) = self._told.get(name) or (0.0, (None, 0))
        if at is not None and (now - at).total_seconds() < QUIET_SECONDS:
            self._told.put(name, (at, count + 1))
            return
        self._told.put(name, (now, count + 1))
        namespace = about["metadata"]["namespace"]
        try:
            if self._api.create(namespace, event) is None:
                again = {"lastTimestamp": event["lastTimestamp"], "count": count + 1}
                self._api.merge(EVENT, namespace, name, again)
        except PgherdError as error:
            logger.debug("an event was not told: %s", error)


class Hints:
    """What Kubernetes last complained about: asked for objects that something is wrong with, and not too often."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._seen: Recent[str] = Recent(10 * LOOK_SECONDS)

    def of(self, name: str, uid: str) -> str:
        """The newest warning about this very object, or nothing."""
        age, found = self._seen.get(uid) or (float("inf"), "")
        if age > LOOK_SECONDS:
            try:
                found = newest(self._api.warnings(self._namespace, name), uid, datetime.now(UTC))
            except PgherdError:
                found = ""
            self._seen.put(uid, found)
        return found


def newest(warnings: Sequence[Mapping[str, Any]], uid: str, now: datetime) -> str:
    """The newest of these events in its own words, unless it is about another object of that name, or history."""

    def at(event: Mapping[str, Any]) -> str:
        again = (event.get("series") or {}).get("lastObservedTime")
        stamps = (again, event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
        return str(next(filter(None, stamps), ""))

    def counts(event: Mapping[str, Any]) -> bool:
        try:
            about = (event.get("involvedObject") or {}).get("uid")
            return about == uid and now - datetime.fromisoformat(at(event)) < STALE
        except (ValueError, TypeError):  # no time, or one without a zone
            return False

    of_it = [event for event in warnings if counts(event)]
    if not of_it:
        return ""
    last = max(of_it, key=at)
    return ": ".join(filter(None, (last.get("reason"), last.get("message"))))


def render(about: Mapping[str, Any], what: str, *, failed: bool, now: datetime, count: int) -> dict[str, Any]:
    """The Event. Its name follows from what it says, so that the same one is found again."""
    metadata = about["metadata"]
    said = hashlib.sha256(f"{metadata['uid']} {failed} {what}".encode()).hexdigest()[:16]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{said}"},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": "Warning" if failed else "Normal",
        "reason": reason(what, failed=failed),
        "message": what[:MAX_MESSAGE],
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": count,
        "source": {"component": "pgherd"},
    }


def reason(what: str, *, failed: bool) -> str:
    """One word in CamelCase: what is done, or that it failed."""
    if failed:
        return "Failed"
    return what.split(" ", 1)[0].strip(",:").capitalize() or "Decided"
