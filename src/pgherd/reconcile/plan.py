"""From what is, and what is wanted, to what to do next. Pure: tested with tables and with hypothesis.

The planner answers one look with the steps that are safe *now*; what must wait for them is planned at a later look.
So there is no script to lose one's place in: killed anywhere, the next look finds out where things stand.

Rules that keep data safe:

* A member without data is started only in a group where nobody has data yet, or whose primary is running: a lost
  Patroni store must never let an empty member found a second, empty history of the group.
* A member is removed only if another one of its group is the running primary (a superfluous standby), or if the
  catalogue was read and says that its group takes no part and no operation is under way (a retired segment), or that
  it is a copy of a segment that was given up.
* One restart at a time in a group, and only while all its other members run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgherd.model.topology import COORDINATOR, Endpoints, Member, group_name
from pgherd.patroni.config import config_patch
from pgherd.reconcile.clones import without_leftovers, without_primary
from pgherd.reconcile.state import MemberState, Observed


@dataclass(frozen=True)
class Step:
    """Something to do now. Steps of one plan don't depend on one another.

    ``str(step)`` is one sentence for the log and for events.
    """


@dataclass(frozen=True)
class StartMember(Step):
    """Bring a member to life."""

    member: Member

    def __str__(self) -> str:
        return f"start {self.member.name}"


@dataclass(frozen=True)
class StopMember(Step):
    """End a member's processes, keep its data."""

    member: Member

    def __str__(self) -> str:
        return f"stop {self.member.name}"


@dataclass(frozen=True)
class RemoveMember(Step):
    """Remove a member and its data."""

    member: Member

    def __str__(self) -> str:
        return f"remove {self.member.name} and its data"


@dataclass(frozen=True)
class Forget(Step):
    """The last act of a deletion."""

    purge: bool

    def __str__(self) -> str:
        return "forget the cluster and its data" if self.purge else "forget the cluster, keep its data"


@dataclass(frozen=True)
class ApplyConfig(Step):
    """Patch Patroni's dynamic configuration of a group."""

    group: int
    patch: Mapping[str, Any]

    def __str__(self) -> str:
        return f"change the configuration of {group_name(self.group)}: {', '.join(sorted(self.patch))}"


@dataclass(frozen=True)
class RestartMember(Step):
    """Restart PostgreSQL of a member whose parameters wait for it."""

    member: Member

    def __str__(self) -> str:
        return f"restart {self.member.name} so that changed parameters take effect"


@dataclass(frozen=True)
class RebuildMember(Step):
    """Build a member anew elsewhere that is lost with what it ran on."""

    member: Member

    def __str__(self) -> str:
        return f"rebuild {self.member.name} elsewhere, what it ran on is lost"


@dataclass(frozen=True)
class ReplaceMember(Step):
    """Put a member into what is declared now (image, resources, ...)."""

    member: Member

    def __str__(self) -> str:
        return f"replace {self.member.name}, what it runs in was declared anew"


@dataclass(frozen=True)
class Switchover(Step):
    """Let another member of the group lead, because the present primary has to go."""

    leader: Member
    candidate: Member

    def __str__(self) -> str:
        return f"switch over from {self.leader.name} to {self.candidate.name}"


@dataclass(frozen=True)
class Initialise(Step):
    """Prepare a group's primary for the engine."""

    group: int

    def __str__(self) -> str:
        return f"prepare the database of {group_name(self.group)}"


@dataclass(frozen=True)
class AdmitFirst(Step):
    """Let the first segments take part; later ones come by an expand operation."""

    groups: tuple[int, ...]

    def __str__(self) -> str:
        return f"admit {', '.join(group_name(group) for group in self.groups)}"


@dataclass(frozen=True)
class UpdateEndpoints(Step):
    """The coordinator must learn the members of a segment anew."""

    group: int
    endpoints: Endpoints

    def __str__(self) -> str:
        return f"tell the coordinator the members of {group_name(self.group)}"


@dataclass(frozen=True)
class RequestOperation(Step):
    """Write down a new operation."""

    kind: str
    from_segments: int
    to_segments: int

    def __str__(self) -> str:
        return f"{self.kind} from {self.from_segments} to {self.to_segments} segments"


@dataclass(frozen=True)
class RunOperation(Step):
    """Carry on the unfinished operation (no-op where it runs already)."""

    operation: int

    def __str__(self) -> str:
        return f"carry on operation {self.operation}"


@dataclass(frozen=True)
class CleanUp(Step):
    """Carry out clean-up records that are due."""

    def __str__(self) -> str:
        return "clean up what moves left behind"


@dataclass(frozen=True)
class RecordMembers(Step):
    """Bring ``pgherd.segment_configuration`` up to date."""

    def __str__(self) -> str:
        return "record the members' roles"


#: Steps that are always there in a healthy cluster's life: they don't keep it from being Ready.
BACKGROUND = (CleanUp, RecordMembers)


def plan(seen: Observed) -> list[Step]:
    """What to do now; empty when the world is as declared."""
    if seen.declaration.deleting or seen.declaration.stopped:
        return _wind_down(seen)
    return [
        *_members(seen),
        *_configs(seen),
        *_restarts(seen),
        *_replacements(seen),
        *_evacuations(seen),
        *_lost(seen),
        *_superfluous(seen),
        *_databases(seen),
        *_operations(seen),
        *_housekeeping(seen),
    ]


def wanted_endpoints(seen: Observed, group: int) -> Endpoints:
    """Where the group's wanted members listen, by ordinal; members that have no address yet are left out.

    Lost ones come last: who tries them first waits for a timeout with every new connection.
    """
    views = [
        seen.members[member.name].view
        for member in seen.wanted_members()
        if member.group == group and member.name in seen.members
    ]
    return [view.postgres for view in sorted(views, key=lambda view: view.lost is not None)]


def is_settled(steps: list[Step]) -> bool:
    """Nothing left to do but housekeeping."""
    return all(isinstance(step, BACKGROUND) for step in steps)


def _wind_down(seen: Observed) -> list[Step]:
    # Standbys first: a primary's shutdown then never sets off a promotion.
    running = [state for state in seen.members.values() if state.view.running]
    standbys = [state for state in running if not state.is_primary]
    if running:
        return [StopMember(state.member) for state in (standbys or running)]
    return [Forget(seen.declaration.purge)] if seen.declaration.deleting else []


def _members(seen: Observed) -> list[Step]:
    return [StartMember(member) for member in seen.wanted_members() if _may_start(seen, member)]


def _may_start(seen: Observed, member: Member) -> bool:
    state = seen.members.get(member.name)
    if state is not None and state.view.running:
        return False
    if state is not None and state.view.has_data:
        return True
    if seen.awaits_source(member.group):
        return False
    group = seen.of_group(member.group)
    if seen.catalogue is not None and (clone := seen.catalogue.clones.get(member.group)) is not None:
        # The first one copies the source, the others that one.
        return (
            seen.primary(clone.source) is not None
            if member.ordinal == 0
            else any(s.is_running for s in group)
        )
    return not any(other.view.has_data for other in group) or seen.primary(member.group) is not None


def _configs(seen: Observed) -> list[Step]:
    steps: list[Step] = []
    for group in seen.wanted_groups():
        current = seen.configs.get(group)
        if current is None or (seen.primary(group) is None and not without_primary(current)):
            continue
        wanted = seen.wanted_configs[group]
        patch = without_leftovers(config_patch(current, wanted), current, wanted)
        if not seen.standbys_wanted(group) and len(seen.of_group(group)) > 1:
            # As long as a standby could still take over, it must have everything that was acknowledged.
            for key in ONLY_ALONE:
                patch.pop(key, None)
        if patch:
            steps.append(ApplyConfig(group, patch))
    return steps


#: What is configured otherwise for a member that is alone in its group.
ONLY_ALONE = ("synchronous_mode", "primary_start_timeout")


def _restarts(seen: Observed) -> list[Step]:
    return [
        RestartMember(due.member) for group in seen.wanted_groups() if (due := _due_for_restart(seen, group))
    ]


def _due_for_restart(seen: Observed, group: int) -> MemberState | None:
    states = seen.of_group(group)
    pending = [state for state in states if state.patroni is not None and state.patroni.pending_restart]
    if not pending or not all(state.is_running for state in states):
        return None
    standbys = [state for state in pending if not state.is_primary]
    primaries = [state for state in pending if state.is_primary]
    # A standby refuses a lower value than its primary's for some parameters, so a decrease starts at the primary.
    if primaries and standbys and all(_only_decreases(state) for state in standbys):
        return primaries[0]
    return (standbys or primaries)[0]


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


def _evacuations(seen: Observed) -> list[Step]:
    """A primary that serves where nobody reports on it any more: clients are led elsewhere, so it hands over."""
    steps: list[Step] = []
    for group in seen.wanted_groups():
        primary = seen.primary(group)
        if primary is None or primary.view.lost is None or _is_restarting(seen, group):
            continue
        if primary.member not in seen.wanted_members():
            continue  # it hands over because it has to go, see _shed_standby
        heirs = [heir for heir in _heirs(seen, primary) if heir.view.lost is None]
        if heirs and heirs[0].patroni and (heirs[0].patroni.sync_standby or not _is_synchronous(seen)):
            steps.append(Switchover(primary.member, heirs[0].member))
    return steps


def _is_synchronous(seen: Observed) -> bool:
    return seen.declaration.cluster.spec.durability != "asynchronous"


def _lost(seen: Observed) -> list[Step]:
    """Members whose place has been silent for long; only where another one of the group is the running primary."""
    limit = seen.declaration.cluster.spec.replace_lost_after
    return [
        RebuildMember(state.member)
        for state in seen.members.values()
        if limit
        and state.view.lost is not None
        and state.view.lost >= limit
        and state.patroni is None
        and (primary := seen.primary(state.member.group)) is not None
        and primary.member != state.member
    ]


def _replacements(seen: Observed) -> list[Step]:
    """Segments before the coordinator, so that it is the last to change; one member of a group at a time."""
    outdated = sorted(
        {state.member.group for state in seen.members.values() if state.view.outdated}, reverse=True
    )
    wanted = set(seen.wanted_groups())
    segments = [group for group in outdated if group != COORDINATOR and group in wanted]
    steps = (_replacement(seen, group) for group in (segments or [g for g in outdated if g in wanted]))
    return [step for step in steps if step is not None]


def _replacement(seen: Observed, group: int) -> Step | None:
    states = seen.of_group(group)
    outdated = [state for state in states if state.view.outdated and state.view.lost is None]
    if not outdated:
        return None
    # One that does not run protects nobody: a wrong image is put right at once.
    broken = [state for state in outdated if not state.view.running]
    if broken:
        return ReplaceMember(broken[0].member)
    if not all(state.is_running and state.view.lost is None for state in states) or _is_restarting(
        seen, group
    ):
        return None
    standbys = [state for state in outdated if not state.is_primary]
    if standbys:
        return ReplaceMember(standbys[0].member) if seen.primary(group) is not None else None
    if len(states) == 1:
        return ReplaceMember(outdated[0].member)
    heirs = _heirs(seen, outdated[0])
    return Switchover(outdated[0].member, heirs[0].member) if heirs else None


def _is_restarting(seen: Observed, group: int) -> bool:
    return any(state.patroni and state.patroni.pending_restart for state in seen.of_group(group))


def _superfluous(seen: Observed) -> list[Step]:
    wanted = set(seen.wanted_members())
    groups = set(seen.wanted_groups())
    steps: list[Step] = []
    for state in seen.members.values():
        if state.member in wanted:
            continue
        if state.member.group not in groups:
            # Only reached with a catalogue that was read and says that the group takes no part (wanted_groups).
            steps.append(RemoveMember(state.member))
        else:
            steps.extend(_shed_standby(seen, state))
    return steps


def _shed_standby(seen: Observed, state: MemberState) -> list[Step]:
    group = state.member.group
    primary = seen.primary(group)
    if primary is None:
        return []
    if primary.member != state.member:
        return [RemoveMember(state.member)]
    heirs = _heirs(seen, state)
    return [Switchover(state.member, heirs[0].member)] if heirs else []


def _heirs(seen: Observed, primary: MemberState) -> list[MemberState]:
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


def _databases(seen: Observed) -> list[Step]:
    steps: list[Step] = [
        Initialise(group)
        for group in seen.wanted_groups()
        if seen.initialised.get(group) is False and seen.primary(group) is not None
    ]
    catalogue = seen.catalogue
    if catalogue is None or steps:
        return steps
    declared = range(1, seen.declaration.cluster.spec.segments.count + 1)
    if not catalogue.segments and catalogue.operation is None:
        if all(seen.initialised.get(group) and _is_complete(seen, group) for group in declared):
            steps.append(AdmitFirst(tuple(declared)))
        return steps
    for group in catalogue.segments:
        wanted = wanted_endpoints(seen, group)
        if wanted and list(catalogue.endpoints.get(group, ())) != list(wanted):
            steps.append(UpdateEndpoints(group, tuple(wanted)))
    return steps


def _is_complete(seen: Observed, group: int) -> bool:
    return len(wanted_endpoints(seen, group)) == seen.standbys_wanted(group) + 1


def _operations(seen: Observed) -> list[Step]:
    catalogue = seen.catalogue
    if catalogue is None:
        return []
    if catalogue.operation is not None:
        return [RunOperation(catalogue.operation.id)]
    wanted, present = seen.declaration.cluster.spec.segments.count, len(catalogue.segments)
    if present in (0, wanted) or _was_given_up(seen, wanted):
        return []
    return [RequestOperation("expand" if wanted > present else "shrink", present, wanted)]


def _was_given_up(seen: Observed, wanted: int) -> bool:
    """The same wish has failed or was cancelled: it must be declared anew, or the loop would try for ever."""
    last = seen.catalogue.last if seen.catalogue else None
    return (
        last is not None
        and last.phase in ("failed", "cancelled")
        and last.to_segments == wanted
        and last.generation == seen.declaration.generation
    )


def _housekeeping(seen: Observed) -> list[Step]:
    catalogue = seen.catalogue
    if catalogue is None:
        return []
    steps: list[Step] = []
    if catalogue.cleanup_due and catalogue.operation is None:
        steps.append(CleanUp())
    if dict(catalogue.configuration) != segment_configuration(seen):
        steps.append(RecordMembers())
    return steps


def segment_configuration(seen: Observed) -> dict[str, tuple[str, str, str]]:
    """Role, mode and status of every member, as ``pgherd.segment_configuration`` should show them."""
    return {
        name: _row(state)
        for name, state in seen.members.items()
        if state.member.group in seen.wanted_groups()
    }


def _row(state: MemberState) -> tuple[str, str, str]:
    if state.patroni is None or not state.is_running:
        return ("unknown", "none", "down")
    if state.is_primary:
        return ("primary", "none", "up")
    return ("standby", "synchronous" if state.patroni.sync_standby else "asynchronous", "up")
