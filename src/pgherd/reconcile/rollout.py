"""How a change gets to members that have to be restarted or replaced for it. Pure.

A change may be wrong: an image that is not there, a node that nobody has, a value that PostgreSQL does not start with.
So it goes to one member at a time, in the whole cluster, and no further while anyone who should run does not: standbys
before their primary, segments before the coordinator. A member is replaced only after its platform saw that it could
run in what is declared now, and one that never ran in what it has, or can't start in it any more while another one of
its group leads, is put right at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgherd.model.topology import COORDINATOR
from pgherd.reconcile.state import MemberState, Observed
from pgherd.reconcile.steps import ReplaceMember, RestartMember, Step, Switchover, TryMember


def rollout(seen: Observed) -> list[Step]:
    """What brings members nearer to what is declared; nothing while an earlier step has not turned out well."""
    if repairs := _repairs(seen):
        return repairs
    if not _all_run(seen) or seen.unread:
        return []  # with rules that it can't read no server would come back
    return _restarts(seen) or _replacements(seen)


def _repairs(seen: Observed) -> list[Step]:
    """One that does not run protects nobody: what is wrong with it is put right at once, wherever it is."""
    wanted = set(seen.wanted_groups())
    broken = [
        state
        for state in seen.members.values()
        if state.view.outdated
        and _is_down(seen, state)
        and state.view.lost is None
        and state.member.group in wanted
    ]
    # A lone member whose process is back in a moment must not be taken out of the image in which it can run.
    return [step for state in broken for step in _renewal(seen, state)]


def _is_down(seen: Observed, state: MemberState) -> bool:
    if not state.view.running:
        return True
    # A parameter with which its old image does not start leaves Patroni alone in there. Where nobody leads, it may
    # have what nobody else has, and a value that is taken back is enough.
    primary = seen.primary(state.member.group)
    has_failed = state.patroni is not None and state.patroni.state == "failed"
    return has_failed and primary is not None and primary.member != state.member


def _renewal(seen: Observed, state: MemberState) -> list[Step]:
    if seen.must_go_on(state):
        return []
    if state.view.tried is None:
        return [TryMember(state.member)]
    return [ReplaceMember(state.member)] if state.view.tried else []


def _all_run(seen: Observed) -> bool:
    """Whether everyone who should run does, but for those whose node is silent: their own group waits for them."""
    states = (seen.members.get(member.name) for member in seen.wanted_members())
    return all(state is not None and (state.is_running or state.view.lost is not None) for state in states)


def _in_order(groups: Sequence[int]) -> list[int]:
    # The coordinator is the last to change.
    return sorted(groups, key=lambda group: (group == COORDINATOR, -group))


def _restarts(seen: Observed) -> list[Step]:
    for group in _in_order(seen.wanted_groups()):
        if due := due_for_restart(seen, group):
            return [RestartMember(due.member)]
    return []


def due_for_restart(seen: Observed, group: int) -> MemberState | None:
    """Whose turn it is to restart for parameters that wait for it. Who has to be replaced starts anew by that."""
    states = seen.of_group(group)
    pending = [state for state in states if state.patroni is not None and state.patroni.pending_restart]
    if not pending or not all(state.is_running for state in states):
        return None
    standbys = [state for state in pending if not state.is_primary]
    primaries = [state for state in pending if state.is_primary]
    due = (standbys or primaries)[0]
    # A standby refuses a lower value than its primary's for some parameters, so a decrease starts at the primary.
    if primaries and standbys and all(_only_decreases(state) for state in standbys):
        due = primaries[0]
    return None if due.view.outdated else due


#: Parameters that a standby must not have lower than its primary (PostgreSQL, "Hot Standby", administrator's overview).
PRIMARY_FIRST_WHEN_LOWERED = frozenset(
    {
        "max_connections",
        "max_prepared_transactions",
        "max_locks_per_transaction",
        "max_wal_senders",
        "max_worker_processes",
    }
)


def _only_decreases(state: MemberState) -> bool:
    reasons = state.patroni.pending_restart_reason if state.patroni else {}
    return bool(reasons) and all(
        name in PRIMARY_FIRST_WHEN_LOWERED and _is_lower(reason.get("new_value"), reason.get("old_value"))
        for name, reason in reasons.items()
    )


def _is_lower(new: Any, old: Any) -> bool:
    try:
        return int(new) < int(old)
    except (TypeError, ValueError):
        return False


def evacuations(seen: Observed, changes: Sequence[Step]) -> list[Step]:
    """A primary that serves where nobody reports on it any more: clients are led elsewhere, so it hands over.

    That is its own group's business: it waits for nobody else's members, as a change does.

    :param changes: what is done now of a :func:`rollout`
    """
    restarting = {step.member.group for step in changes if isinstance(step, RestartMember)}
    steps: list[Step] = []
    for group in seen.wanted_groups():
        primary = seen.primary(group)
        if primary is None or primary.view.lost is None:
            continue
        if group in restarting:
            continue  # its heir may be away for a moment; that a restart is only due may last for ever
        if primary.member not in seen.wanted_members():
            continue  # it hands over because it has to go, see _shed_standby
        heirs = [heir for heir in heirs_of(seen, primary) if heir.view.lost is None]
        if heirs and heirs[0].patroni and (heirs[0].patroni.sync_standby or not _is_synchronous(seen)):
            steps.append(Switchover(primary.member, heirs[0].member))
    return steps


def _is_synchronous(seen: Observed) -> bool:
    return seen.declaration.cluster.spec.durability != "asynchronous"


def _replacements(seen: Observed) -> list[Step]:
    outdated = {
        state.member.group
        for state in seen.members.values()
        if state.view.outdated and state.view.lost is None
    }
    groups = _in_order([group for group in seen.wanted_groups() if group in outdated])
    return _replacement(seen, groups[0]) if groups else []


def _replacement(seen: Observed, group: int) -> list[Step]:
    states = seen.of_group(group)
    outdated = [state for state in states if state.view.outdated and state.view.lost is None]
    if not all(state.is_running and state.view.lost is None for state in states):
        return []
    standbys = [state for state in outdated if not state.is_primary]
    if standbys:
        return _renewal(seen, standbys[0]) if seen.primary(group) is not None else []
    if len(states) == 1:
        return _renewal(seen, outdated[0])
    heirs = heirs_of(seen, outdated[0])
    return [Switchover(outdated[0].member, heirs[0].member)] if heirs else []


def heirs_of(seen: Observed, primary: MemberState) -> list[MemberState]:
    """Who could lead the group instead, the best first."""
    wanted = set(seen.wanted_members())
    heirs = [
        other
        for other in seen.of_group(primary.member.group)
        if other.member in wanted and other.is_running and other.member != primary.member
    ]
    # With synchronous replication only a synchronous standby may lead; Patroni refuses the others.
    heirs.sort(key=lambda other: (not (other.patroni and other.patroni.sync_standby), other.member.ordinal))
    return heirs
