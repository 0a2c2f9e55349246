"""What people are told: the status of DESIGN section 3 as a pure function of one look.

Nothing here is remembered except when a condition last changed, which is taken from the status before. A status never
says more than was seen: what did not answer is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pgherd.backup.restoring import PENDING
from pgherd.model.topology import COORDINATOR, Member, group_name
from pgherd.patroni.client import lag_bytes
from pgherd.reconcile.drill_words import unchecked
from pgherd.reconcile.fulfilment import conditions as by_type
from pgherd.reconcile.state import GroupSize, MemberState, Observed
from pgherd.reconcile.steps import BACKGROUND, Step, is_settled

HINDERED = "NotObserved"
"""reason of conditions that nobody could look at"""
_UNBORN = (None, "Pending", "Creating", "Failed")
"""phases of a cluster that was never there"""
LASTING_SECONDS = 60.0
"""how long members may be on their way back, after a stop or in a change, until that counts as a fault"""
_GONE = "the data of {} are gone"
OPERATION_PHASES = {"expand": "Expanding", "shrink": "Shrinking", "rebalance": "Rebalancing"}


def build(
    seen: Observed,
    steps: Sequence[Step],
    *,
    now: str,
    previous: Mapping[str, Any] | None = None,
    errors: Sequence[str] = (),
    hindrances: Sequence[str] = (),
    fatal: bool = False,
) -> dict[str, Any]:
    """The status JSON.

    :param steps: the plan for this look
    :param now: RFC 3339 time of this look
    :param previous: the status written last
    :param errors: what the last steps ran into
    :param hindrances: what keeps things around the members from being as declared
    :param fatal: trying again can't help, somebody must change something
    """
    seen = replace(seen, backups=_with_drills(seen.backups, previous))
    problems = [*find_problems(seen), *hindrances]
    phase = _phase(seen, steps, problems, previous, fatal, now)
    spec = seen.declaration.cluster.spec
    return {
        "name": seen.declaration.cluster.metadata.name,
        "phase": phase,
        "engine": spec.engine,
        "generation": seen.declaration.generation,
        "observedAt": now,
        "settled": is_settled(list(steps)),
        "conditions": _conditions(seen, steps, problems, errors, phase, now, previous),
        "groups": [_group(seen, group) for group in _groups(seen)],
        "admitted": list(_admitted(seen, previous)),
        **_operations(seen, previous),
        "backups": dict(seen.backups) if seen.backups is not None else None,
        "repairs": [_repair(group, repair) for group, repair in sorted(seen.repairs.items())],
        "restore": dict(seen.restore) if seen.restore is not None else None,
        "errors": [*seen.declaration.problems, *errors],
    }


def refused(
    name: str,
    generation: int,
    problems: Sequence[str],
    *,
    now: str,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The status of a cluster whose declaration can't be, and of which none was accepted before."""
    before = by_type(previous)
    text = "; ".join(problems)
    return {
        "name": name,
        "engine": None,
        "groups": [],
        "operation": None,
        "lastOperation": None,
        **(previous or {}),
        "phase": "Failed",
        "generation": generation,
        "observedAt": now,
        "settled": False,
        "conditions": [
            _condition(before.get("Ready"), "Ready", False, "InvalidSpec", text, now),
            _condition(before.get("Progressing"), "Progressing", False, "InvalidSpec", text, now),
            _condition(before.get("SpecRefused"), "SpecRefused", True, "InvalidSpec", text, now),
        ],
        "errors": list(problems),
    }


def _admitted(seen: Observed, previous: Mapping[str, Any] | None) -> Sequence[int]:
    """Segments that take part, as far as was ever known: it outlives the catalogue's loss."""
    if seen.recovery is not None:
        return (previous or {}).get("admitted") or ()  # nobody is asked
    return (seen.catalogue.segments if seen.catalogue is not None else ()) or seen.admitted_before


def _operations(seen: Observed, previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """What runs and what ran last. While the coordinator can't be asked nobody knows better than before."""
    if seen.catalogue is None and seen.recovery is None and previous:
        known = previous.get("operation")
        if seen.operation_status is not None or _is_pending(known):
            known = seen.operation_status  # it does not come from the coordinator
        return {"operation": known, "lastOperation": previous.get("lastOperation")}
    return {"operation": seen.operation_status, "lastOperation": seen.last_operation_status}


def _is_pending(operation: object) -> bool:
    """Whether it is a restore in place that was not begun when that was told."""
    known = operation if isinstance(operation, dict) else {}
    return (known.get("kind"), known.get("phase")) == ("restore", PENDING)


def hindered(
    name: str, problem: str, *, now: str, previous: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The status when nobody could look: what was seen last (``observedAt`` says when), and why nothing newer is."""
    before = by_type(previous)
    phase = (previous or {}).get("phase", "Pending")
    kept = [each for kind, each in before.items() if kind not in ("Ready", "Progressing", "Degraded")]
    return {
        "name": name,
        "engine": None,
        "generation": 0,
        "observedAt": None,
        "groups": [],
        "operation": None,
        "lastOperation": None,
        **(previous or {}),
        "phase": phase if phase in ("Pending", "Creating", "Deleting") else "Degraded",
        "settled": False,
        "conditions": [
            _condition(before.get("Ready"), "Ready", None, HINDERED, problem, now),
            _condition(before.get("Progressing"), "Progressing", False, HINDERED, problem, now),
            _condition(before.get("Degraded"), "Degraded", True, HINDERED, problem, now),
            *kept,
        ],
        "errors": [problem],
    }


def is_told(status: Mapping[str, Any], problem: str) -> bool:
    """Whether this status says already that this keeps everybody from looking."""
    return HINDERED in (each["reason"] for each in status.get("conditions", [])) and problem in status.get(
        "errors", []
    )


def news(seen: Observed, previous: Mapping[str, Any] | None) -> list[tuple[str, bool]]:
    """What is to be told once, because the status written last does not say it, and whether it is bad.

    A declaration that was refused, an operation's end. Told before it is written: rather twice than never.
    """
    found: list[tuple[str, bool]] = []
    for kind, told in (("SpecRefused", seen.declaration.problems), ("AccessRulesUnread", seen.unread or ())):
        text = "; ".join(told)
        if text and text != by_type(previous).get(kind, {}).get("message"):
            found.append((text, True))
    found += _not_begun(seen, previous) + _taken_back(seen, previous)
    last = seen.last_operation_status
    known = (previous or {}).get("lastOperation")
    if last and previous is not None and (not isinstance(known, dict) or known.get("id") != last["id"]):
        found.append((_ended(last), last["phase"] == "failed"))
    return found


def _not_begun(seen: Observed, previous: Mapping[str, Any] | None) -> list[tuple[str, bool]]:
    """That a restore in place is refused."""
    now, before = seen.restore or {}, (previous or {}).get("restore") or {}
    told = ("asked", "refused")
    if not now.get("refused") or all(now.get(key) == before.get(key) for key in told):
        return []
    return [(f"the restore in place is refused, nothing was changed: {now['refused']}", True)]


def _taken_back(seen: Observed, previous: Mapping[str, Any] | None) -> list[tuple[str, bool]]:
    """That a restore in place failed."""
    now, before = seen.restore or {}, (previous or {}).get("restore") or {}
    if not now.get("error") or (now.get("id"), now["error"]) == (before.get("id"), before.get("error")):
        return []
    return [(f"the restore in place failed, and was taken back: {now['error']}", True)]


def _ended(operation: Mapping[str, Any]) -> str:
    what = str(operation["kind"])
    if operation.get("toSegments") is not None:
        what += f" to {operation['toSegments']} segments"
    if operation["phase"] == "failed":
        return f"could not {what}: {operation.get('error') or 'no reason was written down'}"
    return f"{'cancelled' if operation['phase'] == 'cancelled' else 'finished'} {what}"


def find_problems(seen: Observed) -> list[str]:
    """What keeps the cluster from being as declared, a sentence each; most important first."""
    if seen.declaration.is_winding_down:
        return _held_up(seen)
    problems = [data_lost(seen, group) for group in seen.without_data()]
    for group in seen.wanted_groups():
        if seen.is_clone(group):
            continue  # it follows a primary; its operation says how far it is
        if seen.primary(group) is None:
            problems.append(f"{group_name(group)} has no primary")
        elif group not in seen.initialised:
            problems.append(f"the database of {group_name(group)} does not answer")
    for member in seen.wanted_members():
        state = seen.members.get(member.name)
        if state is None or not state.is_running:
            note = state.view.note if state else ""
            problems.append(
                f"{member.name} is {_state(state)}" + (f" ({note})" if note else _source(seen, state))
            )
    for state in seen.members.values():
        if state.is_running and state.view.outdated and state.view.obstacle:
            problems.append(
                f"{state.member.name} stays as it is, it could not run as declared ({state.view.obstacle})"
            )
    problems.extend(_doomed(seen))
    for group in seen.wanted_groups():
        problems.extend(_unprotected(seen, group))
    if seen.catalogue is None and not problems:
        problems.append("the coordinator's catalogue can't be read")
    return problems


def _held_up(seen: Observed) -> list[str]:
    """Members of which nobody can tell whether they have ended: a stop and a deletion wait for them, a stop also for
    those that must not end."""
    kept = [] if seen.declaration.deleting else _doomed(seen)
    return kept + [
        f"{state.member.name} is not known to have ended ({state.view.note or 'its place is silent'})"
        for state in seen.members.values()
        if state.view.running and state.view.lost is not None
    ]


def _doomed(seen: Observed) -> list[str]:
    """Members whose data would go with what they run in."""
    return [
        f"{state.member.name} has its data only until it ends ({state.view.doomed}): let it end only while another"
        " member, if need be a new standby, leads its group, and it is built anew"
        for state in seen.members.values()
        if state.view.doomed and state.member in seen.wanted_members()
    ]


def data_lost(seen: Observed, group: int) -> str:
    """What to say of a group that took part and has nothing left."""
    name, which = seen.declaration.cluster.metadata.name, group_name(group)
    what = f"{_GONE.format(which)}, nothing empty is put in their place: bring its volumes back, or"
    if seen.backups is not None:
        return f"{what} rebuild it from the backups with 'pgherd repair {name} --group {which}'"
    return f"{what} delete the cluster with what is left of it ('pgherd delete {name} --purge') and create it anew"


def is_data_lost(now: Mapping[str, Any], group: str) -> bool:
    """Whether a status says so of this group.

    :param group: its name
    """
    return f"{_GONE.format(group)}, " in by_type(now).get("DataLost", {}).get("message", "")


def has_cause(problem: str) -> bool:
    """Whether the platform told what is behind this problem."""
    return problem.endswith(")")


def _unprotected(seen: Observed, group: int) -> list[str]:
    if seen.declaration.cluster.spec.durability == "asynchronous" or not seen.standbys_wanted(group):
        return []
    if seen.primary(group) is None or any(s.patroni and s.patroni.sync_standby for s in seen.of_group(group)):
        return []
    return [f"{group_name(group)} has no synchronous standby: a commit is on the primary only"]


def _phase(
    seen: Observed,
    steps: Sequence[Step],
    problems: Sequence[str],
    previous: Mapping[str, Any] | None,
    fatal: bool,
    now: str,
) -> str:
    if seen.declaration.deleting:
        return "Deleting"
    if seen.declaration.stopped:
        # Who has not heard of the stop yet may make one more pod, or begin one more server.
        running = seen.is_being_made or any(state.view.running for state in seen.members.values())
        return "Updating" if running else "Stopped"
    if fatal:
        return "Failed"
    if seen.recovery is not None and (previous or {}).get("phase") not in _UNBORN:
        return "Updating"
    if not seen.members:
        return "Pending"
    if is_being_created(seen, steps, previous):
        return "Creating"
    if seen.catalogue is not None and seen.catalogue.operation is not None:
        return OPERATION_PHASES.get(seen.catalogue.operation.kind, "Updating")
    if problems:
        return "Updating" if _comes_back(seen, previous, now) else "Degraded"
    return "Running" if is_settled(list(steps)) else "Updating"


def _comes_back(seen: Observed, previous: Mapping[str, Any] | None, now: str) -> bool:
    """Coming back from a stop or a change is no fault, unless it lasts; the conditions say what is still missing."""
    if (previous or {}).get("phase") not in ("Stopped", "Updating") or seen.without_data():
        return False
    if any(state.view.lost is not None and not state.is_running for state in seen.members.values()):
        return False
    missing = _before(seen, previous).get("Degraded")
    return (
        missing is None
        or missing["status"] != "True"
        or _seconds(missing["lastTransitionTime"], now) <= LASTING_SECONDS
    )


def is_being_created(seen: Observed, steps: Sequence[Step], previous: Mapping[str, Any] | None) -> bool:
    """It has never been Running, and is not yet."""
    before = (previous or {}).get("phase")
    if before not in _UNBORN:
        return False
    if before is None and seen.catalogue is not None and seen.catalogue.segments:
        return False
    return bool(find_problems(seen)) or any(not isinstance(step, BACKGROUND) for step in steps)


def _repair(group: int, repair: Mapping[str, Any]) -> dict[str, Any]:
    """A group that is being rebuilt, or was: the rung of the ladder, why that one, and how far it is."""
    verdict = repair.get("verdict") or {}
    return {
        "group": group_name(group),
        "id": repair["id"],
        "phase": repair.get("phase"),
        "accepted": repair.get("accepted", False),
        "due": repair["due"],
        "rung": repair.get("rung"),
        "reason": repair.get("error") or repair.get("reason") or "",
        "missingBytes": verdict.get("missing_bytes"),
        "bytesDone": repair.get("bytesDone", 0),
        "bytesTotal": repair.get("bytesTotal", 0),
        "bytesPerSecond": repair.get("bytesPerSecond"),
        "etaSeconds": repair.get("etaSeconds"),
        "done": list(repair.get("done", ())),
        "findings": list(repair.get("findings", ())),
        "kept": repair.get("kept"),
        "finishedAt": repair.get("finishedAt"),
        "refused": repair.get("refused"),
    }


def _repair_condition(seen: Observed) -> list[tuple[str, bool, str, str]]:
    """Whether groups are being rebuilt; there while that goes on, waits for somebody, has failed, or is refused."""
    open_repairs = [
        (group, repair)
        for group, repair in sorted(seen.repairs.items())
        if repair.get("phase") != "done" or repair.get("refused")
    ]
    if not open_repairs:
        return []
    texts = []
    for group, repair in open_repairs:
        way_out = ""
        if repair.get("phase") == "in doubt":
            name = seen.declaration.cluster.metadata.name
            way_out = (
                f": 'pgherd repair {name} --group {group_name(group)} --accept-data-loss' goes on without it"
            )
        why = repair.get("error") or repair.get("reason") or "it begins"
        texts.append(f"{group_name(group)} is {repair.get('phase')}: {why}{way_out}")
        if repair.get("refused") and repair.get("phase") != "refused":
            texts.append(f"what else is asked for is refused: {repair['refused']['reason']}")
    phases = {repair.get("phase") for _, repair in open_repairs}
    phases |= {"refused" for _, repair in open_repairs if repair.get("refused")}
    reasons = {"in doubt": "InDoubt", "failed": "Failed", "refused": "Refused"}
    reason = next((reasons[phase] for phase in reasons if phase in phases), "FromRepository")
    return [("Repairing", any(repair["due"] for _, repair in open_repairs), reason, "; ".join(texts))]


def _restore_condition(seen: Observed) -> list[tuple[str, bool, str, str]]:
    """How the last restore in place ended, as long as somebody may have to know."""
    restore, name = seen.restore or {}, seen.declaration.cluster.metadata.name
    kind = "RestoredInPlace"
    if restore.get("refused"):
        return [(kind, False, "Refused", str(restore["refused"]))]
    if restore.get("waits"):
        return [(kind, False, "Waiting", f"it is not begun yet: {restore['waits']}")]
    if restore.get("noWayBack"):
        return [(kind, False, "NoWayBack", str(restore["noWayBack"]))]
    if restore.get("error"):
        return [
            (kind, False, "TakenBack", f"{name} is as it was before, the restore failed: {restore['error']}")
        ]
    if restore.get("kept"):
        what = ", ".join(restore["kept"])
        text = f"what {name} was before is kept ({what}): 'pgherd restore {name} --confirm' removes it"
        return [(kind, True, "Unconfirmed", text)]
    return []


def _conditions(
    seen: Observed,
    steps: Sequence[Step],
    problems: Sequence[str],
    errors: Sequence[str],
    phase: str,
    now: str,
    previous: Mapping[str, Any] | None,
) -> list[dict[str, str]]:
    serving = is_serving(seen)
    why_not = problems[0] if problems else (str(steps[0]) if steps else phase)
    doing = [str(step) for step in steps if not isinstance(step, BACKGROUND)]
    progressing = bool(doing) or seen.operation_status is not None
    waits_for = "; ".join(problems) if seen.declaration.is_winding_down else ""
    message = (
        "; ".join(errors)
        or waits_for
        or "; ".join(doing[:3])
        or (seen.operation_status or {}).get("message", "")
    )
    refused = seen.declaration.problems
    conditions: list[tuple[str, bool | None, str, str]] = [
        (
            "Ready",
            serving,
            "AllGroupsServe" if serving else phase,
            "every group takes writes" if serving else why_not,
        ),
        ("Progressing", progressing, phase, message or "nothing to do"),
        ("Degraded", bool(problems), phase, "; ".join(problems) or "all members are as declared"),
    ]
    if refused:
        conditions.append(("SpecRefused", True, "InvalidSpec", "; ".join(refused)))
    if lost := seen.without_data():
        conditions.append(("DataLost", True, "NoData", "; ".join(data_lost(seen, group) for group in lost)))
    if seen.unfit:
        conditions.append(("EngineUnfit", True, "NodesDiffer", "; ".join(seen.unfit)))
    if seen.unread:
        conditions.append(("AccessRulesUnread", True, "WrongLine", "; ".join(seen.unread)))
    if seen.catalogue is not None and (last := seen.catalogue.last) is not None and last.phase == "failed":
        conditions.append(("OperationFailed", True, last.kind, last.error or "it failed"))
    if seen.backups is not None:
        told = [*seen.backups.get("problems", ()), *filter(None, [seen.backups.get("error")])]
        trouble = list(dict.fromkeys(told))
        reason = "Failing" if trouble else "AsDeclared"
        conditions.append(
            ("BackupsHealthy", not trouble, reason, "; ".join(trouble) or "logs are archived as they fill")
        )
        conditions += _drills(seen.backups, now)
    conditions += _repair_condition(seen)
    conditions += _restore_condition(seen)
    before = _before(seen, previous)
    return [
        _condition(before.get(kind), kind, holds, reason, text, now)
        for kind, holds, reason, text in conditions
    ]


def _before(seen: Observed, previous: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The conditions told last. What a restore in place took away is on its way back from the restore's end on."""
    before = by_type(previous)
    known, now = (previous or {}).get("restore") or {}, seen.restore or {}
    if seen.recovery is None and known.get("phase") != now.get("phase"):
        before.pop("Degraded", None)
    return before


def _with_drills(
    backups: Mapping[str, Any] | None, previous: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Of a repository that does not answer is known what was seen last: a drill that it holds up becomes overdue."""
    before = (previous or {}).get("backups")
    if backups is None or "schedules" in backups or not isinstance(before, Mapping):
        return backups
    return {**{key: before[key] for key in ("schedules", "lastDrill") if key in before}, **backups}


def _drills(backups: Mapping[str, Any], now: str) -> list[tuple[str, bool | None, str, str]]:
    """Whether a restore has been proven, where drills are made at all."""
    last = backups.get("lastDrill")
    drills = [each["drill"] for each in backups.get("schedules", ()) if each.get("drill")]
    overdue = [each["dueAt"] for each in drills if each["overdue"] or _is_past(each.get("overdueAt"), now)]
    if last is not None and not last.get("passed"):
        return [("RestoreProven", False, "DrillFailed", "; ".join(last.get("problems", ())))]
    if overdue:
        return [("RestoreProven", False, "DrillOverdue", f"a drill was due at {min(overdue)}")]
    if last is not None:
        proven = f"{last.get('restorePoint')} was restored and is sound ({last.get('finishedAt')})"
        text = f"{proven}{unchecked(last)}"
        return [("RestoreProven", True, "DrillPassed", text)]
    return [("RestoreProven", None, "NoDrillYet", "the first drill is due")] if drills else []


def _seconds(since: str, now: str) -> float:
    """How long ago that was; what is no time was long ago."""
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")


def _is_past(moment: str | None, now: str) -> bool:
    return bool(moment) and datetime.fromisoformat(str(moment)) < datetime.fromisoformat(now)


def _condition(
    before: Mapping[str, str] | None, kind: str, holds: bool | None, reason: str, message: str, now: str
) -> dict[str, str]:
    status = "Unknown" if holds is None else "True" if holds else "False"
    since = before["lastTransitionTime"] if before and before["status"] == status else now
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def is_serving(seen: Observed) -> bool:
    """Whether every group that takes part takes writes."""
    if (
        seen.without_data()
        or seen.declaration.is_winding_down
        or seen.catalogue is None
        or not seen.catalogue.segments
    ):
        return False
    serving = (COORDINATOR, *seen.catalogue.segments)
    return all(seen.primary(group) is not None and group in seen.initialised for group in serving)


def _groups(seen: Observed) -> list[int]:
    return sorted({state.member.group for state in seen.members.values()} | set(seen.wanted_groups()))


def _group(seen: Observed, group: int) -> dict[str, Any]:
    # Without the catalogue, or without an answer of the segment, nobody knows what it holds.
    known = group == COORDINATOR or (seen.catalogue is not None and group not in seen.catalogue.segments)
    size = seen.sizes.get(group, GroupSize(0, 0) if known else None)
    names = {state.member for state in seen.of_group(group)}
    names.update(member for member in seen.wanted_members() if member.group == group)
    return {
        "name": group_name(group),
        "id": group,
        "shards": size.shards if size else None,
        "bytes": size.bytes if size else None,
        "members": [_member(member, seen) for member in sorted(names)],
    }


def _member(member: Member, seen: Observed) -> dict[str, Any]:
    state = seen.members.get(member.name)
    patroni = state.patroni if state else None
    return {
        "name": member.name,
        "role": patroni.role if patroni else "unknown",
        "state": _state(state),
        "sync": bool(patroni and patroni.sync_standby),
        "host": state.view.postgres.host if state else None,
        "port": state.view.postgres.port if state else None,
        "lagBytes": _lag(seen, state),
        "timeline": patroni.timeline if patroni else None,
        "pendingRestart": bool(patroni and patroni.pending_restart),
    }


def _lag(seen: Observed, state: MemberState | None) -> int | None:
    if state is None or state.patroni is None:
        return None
    if state.is_primary:
        return 0
    primary = seen.primary(state.member.group)
    return lag_bytes(primary.patroni, state.patroni) if primary and primary.patroni else None


def _source(seen: Observed, state: MemberState | None) -> str:
    """Of a member that its Patroni makes anew: from what, the second rung of the ladder."""
    primary = None if state is None else seen.primary(state.member.group)
    if primary is None or _state(state) != "creating":
        return ""
    return f": base backup from the primary, {primary.member.name}"


def _state(state: MemberState | None) -> str:
    if state is None or (not state.view.running and not state.view.has_data):
        return "absent"
    if state.patroni is not None:
        return state.patroni.state
    if state.view.lost is not None:
        return "unknown"
    return "starting" if state.view.running else "stopped"
