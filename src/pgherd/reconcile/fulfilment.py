"""Whether a wish has come true, judged from a status: the same on every platform. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.errors import BadInput, PgherdError

AT_REST = ("Running", "Stopped")


def is_fulfilled(
    name: str, now: Mapping[str, Any] | None, generation: int, *, operation: int = 0, silence: str
) -> bool:
    """Whether the cluster is as this generation of its declaration says.

    :param now: its status, None while there is none
    :param operation: one that has to have ended too, or a later one
    :param silence: what to say of a supervisor or operator that has not reported
    :raises PgherdError: it never will be: it failed, its operation was called off, or nodes differ and somebody has to
        see to that
    """
    if now is None or now.get("generation", -1) < generation:
        return False
    if now["phase"] == "Failed":
        raise PgherdError(f"{name}: {obstacle(now, silence)}")
    last = now.get("lastOperation") or {}
    called_off = last.get("generation") == generation and last.get("phase") in ("failed", "cancelled")
    # An operation's error is one round's, and may not have been seen; that it failed stays.
    if (now.get("errors") or called_off) and (unfit := conditions(now).get("EngineUnfit")):
        raise PgherdError(f"{name}: {unfit['message']}")
    # What a stopped cluster was at waits for its start.
    is_at_work = now.get("operation") is not None and now["phase"] != "Stopped"
    if last.get("id", 0) < operation or now["phase"] not in AT_REST or is_at_work:
        return False
    if called_off:
        reason = last.get("error") or last.get("message")
        raise PgherdError(f"{name}: {last.get('kind')} {last['phase']}: {reason}")
    return bool(now.get("settled")) and not now.get("errors")


def time_is_up(
    name: str, now: Mapping[str, Any] | None, generation: int, timeout: float, silence: str
) -> str:
    """What to say when a wish has not come true in time."""
    # An older generation's status says nothing about this wish.
    seen = now if now is not None and now.get("generation", -1) >= generation else None
    return f"{name}: not ready after {timeout:.0f} s: {obstacle(seen, silence)}"


def conditions(now: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """A status's conditions by their type; none where there is no status."""
    return {condition["type"]: condition for condition in (now or {}).get("conditions", ())}


def obstacle(now: Mapping[str, Any] | None, silence: str) -> str:
    """Why a cluster is not there yet, in one line."""
    if now is None:
        return silence
    if now.get("errors"):
        return str(now["errors"][0])
    found = conditions(now)
    degraded = found.get("Degraded", {})
    telling = degraded if degraded.get("status") == "True" else found.get("Progressing", {})
    return str(telling.get("message", now["phase"]))


def repaired(name: str, group: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """What became of a repair that is not due any more.

    :param now: as ``status.repairs`` or whoever knows more says it
    :raises BadInput: it is not made
    :raises PgherdError: it failed, or waits for somebody to accept a loss
    """
    why = now.get("error") or now.get("reason")
    if now["phase"] == "refused":
        raise BadInput(str(why))
    if now["phase"] == "failed":
        unchanged = (
            f"what it was before is kept in {now['kept']}" if now.get("kept") else "nothing was changed"
        )
        raise PgherdError(f"{name}: {group} could not be rebuilt, {unchanged}: {why}")
    if now["phase"] == "in doubt":
        raise PgherdError(
            f"{name}: {group} is not rebuilt yet, it may not get back all it had: {why}: "
            f"'pgherd repair {name} --group {group} --accept-data-loss' goes on without it"
        )
    return dict(now)


def repairing(name: str, group: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """How far a repair is, as statuses say it."""
    operation = {
        "kind": f"repair of {group}",
        "phase": now.get("phase"),
        "bytesDone": now.get("bytesDone", 0),
        "bytesTotal": now.get("bytesTotal", 0),
        "bytesPerSecond": now.get("bytesPerSecond"),
        "etaSeconds": now.get("etaSeconds"),
        "message": now.get("reason") or "",
    }
    return {"name": name, "phase": "Repairing", "operation": operation}
