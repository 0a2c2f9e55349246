"""What a cluster's custom resource says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pgherd.model import spec as declaration
from pgherd.model.spec import PostgresCluster
from pgherd.platform.base import ENDED
from pgherd.platform.kubernetes import epochs, names
from pgherd.reconcile.fulfilment import conditions

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

SILENCE = (
    "nothing is heard of the operator: 'kubectl -n pgherd-system get pods' shows whether it runs,"
    " 'pgherd install' installs it"
)
STALE_SECONDS = 75.0
"""an operator that lives says something of each cluster that runs at least every 30 seconds"""


def could_be_name(name: str) -> bool:
    """Whether Kubernetes would take it for an object's name; others must not get into a URL."""
    return _NAME.fullmatch(name) is not None


def cluster_of(resource: Mapping[str, Any]) -> PostgresCluster:
    """The declaration that a custom resource holds, with the platform's defaults.

    It is there already, and no wish: a pg_hba line in it that only an older version accepted must not keep anybody from
    correcting it.

    :raises BadInput: it is none that this version understands
    """
    metadata = resource["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if metadata.get(key)}
    value = {key: resource[key] for key in ("apiVersion", "kind", "spec") if key in resource}
    return declaration.from_mapping({**value, "metadata": kept}, platform="kubernetes", kept=True)


def is_stopped(resource: Mapping[str, Any]) -> bool:
    """``pgherd stop`` was asked for."""
    return (resource["metadata"].get("annotations") or {}).get(names.STOPPED_ANNOTATION) == "true"


def restore_of(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the operator said that the last restore in place stands; empty: there was none."""
    return (resource.get("status") or {}).get("restore") or {}


def groups_of(resource: Mapping[str, Any]) -> set[int]:
    """The groups of which the operator has seen anything."""
    found = (resource.get("status") or {}).get("groups") or ()
    return {each["id"] for each in found if isinstance(each.get("id"), int)}


def members_of(resource: Mapping[str, Any], group: str) -> list[Mapping[str, Any]]:
    """A group's members, as the operator saw them."""
    found = (resource.get("status") or {}).get("groups") or ()
    return [member for each in found if each.get("name") == group for member in each.get("members", ())]


def primary_of(resource: Mapping[str, Any], group: str) -> str | None:
    """Who leads a group and takes writes, as the operator saw it."""
    leads = ("primary", "running")
    found = [each for each in members_of(resource, group) if (each.get("role"), each.get("state")) == leads]
    return str(found[0]["name"]) if len(found) == 1 else None


def repair_of(resource: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    """How the operator said that the last repair of a group stands; empty: there was none."""
    found = (resource.get("status") or {}).get("repairs") or ()
    return next((each for each in found if each.get("group") == group), {})


def being_rebuilt(resource: Mapping[str, Any]) -> str | None:
    """A group that is being rebuilt, as far as anybody has said, or waits for somebody to accept a loss."""
    found = (resource.get("status") or {}).get("repairs") or ()
    open_ones = (each for each in found if each.get("due") or each.get("phase") == "in doubt")
    return next((str(each["group"]) for each in open_ones), None)


def is_restore_seen(resource: Mapping[str, Any]) -> bool:
    """Whether the operator has seen what is asked for of restoring in place."""
    wish = epochs.wish_of(resource)
    return wish is None or restore_of(resource).get("asked") == wish.id


def is_being_restored(resource: Mapping[str, Any]) -> bool:
    """Whether a restore in place is asked for and not at its end, as far as anybody has said."""
    restore = restore_of(resource)
    if not is_restore_seen(resource):
        return True
    return not restore.get("refused") and restore.get("phase") not in (None, *ENDED)


def generation(resource: Mapping[str, Any]) -> int:
    """Grows with every change of the spec."""
    return int(resource["metadata"].get("generation", 0))


def status_of(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What the operator wrote (DESIGN section 3), whole even if it has not written anything yet."""
    name = resource["metadata"]["name"]
    found: dict[str, Any] = {**nothing_known(resource), **(resource.get("status") or {}), "name": name}
    if resource["metadata"].get("deletionTimestamp"):
        found["phase"] = "Deleting"
    return found


def aged(status: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The same, for people: what is too old to be believed says so, and how old it is by this machine's clock."""
    if not is_stale(status, now):
        return dict(status)
    message = f"last seen {status['phase']}, {age(status, now):.0f} s ago by this machine's clock: {SILENCE}"
    unknown = {"status": "Unknown", "reason": "OperatorSilent", "message": message}
    return {
        **status,
        "phase": "Unknown",
        "settled": False,
        "conditions": [
            {**each, **unknown} if each["type"] == "Ready" else each for each in status["conditions"]
        ],
    }


def is_stale(status: Mapping[str, Any], now: datetime) -> bool:
    """Whether nobody has renewed a status that an operator would have.

    A stopped cluster isn't looked at, and where the operator can't look it has said so itself.
    """
    is_unsure = conditions(status).get("Ready", {}).get("status") == "Unknown"
    is_left_alone = status["phase"] in ("Stopped", "Deleting") or is_unsure
    return not is_left_alone and age(status, now) > STALE_SECONDS


def age(status: Mapping[str, Any], now: datetime) -> float:
    """Seconds since the operator looked; 0 where nobody has yet."""
    try:
        return (now - datetime.fromisoformat(str(status.get("observedAt"))).astimezone(UTC)).total_seconds()
    except ValueError:
        return 0.0


def nothing_known(resource: Mapping[str, Any]) -> dict[str, Any]:
    """The status of a cluster that nobody has looked at."""
    unknown = {"status": "Unknown", "reason": "Pending", "message": SILENCE, "lastTransitionTime": None}
    return {
        "name": resource["metadata"]["name"],
        "phase": "Pending",
        "engine": (resource.get("spec") or {}).get("engine"),
        "generation": -1,
        "observedAt": None,
        "settled": False,
        "conditions": [{"type": kind, **unknown} for kind in ("Ready", "Progressing")],
        "groups": [],
        "operation": None,
        "lastOperation": None,
        "errors": [],
    }
