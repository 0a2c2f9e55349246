"""From what is, and what is wanted, to what to do next. Pure: tested with tables and with hypothesis.

The planner answers one look with the steps that are safe *now*; what must wait for them is planned at a later look.
So there is no script to lose one's place in: killed anywhere, the next look finds out where things stand.

Rules that keep data safe:

* A member without data is started only in a group where nobody has data yet, or whose primary is running: a lost
  Patroni store must never let an empty member found a second, empty history of the group. And nobody has data *yet*
  only in a group that never took part: where data are gone, an empty database must not pass for them.
* A member is removed only if another one of its group is the running primary (a superfluous standby), or if the
  catalogue was read and says that its group takes no part and no operation is under way (a retired segment), or that
  it is a copy of a segment that was given up.
* One restart or replacement at a time, and only while everyone else runs: see :mod:`~pgherd.reconcile.rollout`.
"""

from __future__ import annotations

from typing import Any

from pgherd.model.topology import COORDINATOR, Endpoints, Member
from pgherd.patroni.config import config_patch
from pgherd.reconcile.clones import is_of_a_copy, without_leftovers, without_primary
from pgherd.reconcile.rollout import evacuations, heirs_of, rollout
from pgherd.reconcile.state import MemberState, Observed
from pgherd.reconcile.steps import (
    AdmitFirst,
    ApplyConfig,
    CleanUp,
    Forget,
    Initialise,
    Rebuild,
    RebuildMember,
    RecordMembers,
    Recover,
    RemoveMember,
    RequestOperation,
    RunOperation,
    StartMember,
    Step,
    StopMember,
    Switchover,
    UpdateEndpoints,
)


def plan(seen: Observed) -> list[Step]:
    """What to do now; empty when the world is as declared."""
    if seen.declaration.is_winding_down:
        return _wind_down(seen)
    if seen.recovery is not None:
        # Nothing may start before all groups have reached the same point; in place, nothing may run.
        if running := [state.member for state in seen.members.values() if state.view.running]:
            return [StopMember(member) for member in running]
        return [Recover(seen.recovery.get("error"))]
    changes = rollout(seen)
    return [
        *_repairs(seen),
        *_members(seen),
        *_configs(seen),
        *changes,
        *evacuations(seen, changes),
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


def _wind_down(seen: Observed) -> list[Step]:
    # Standbys first: a primary's shutdown then never sets off a promotion. Whose place is silent can't be waited for:
    # all others would go on taking writes. It is asked again and again, and nothing is over before it has ended.
    running = [state for state in seen.members.values() if state.view.running]
    if not seen.declaration.deleting:
        # A stop keeps data: a group goes on of which some would go with its end.
        kept = {state.member.group for state in running if seen.must_go_on(state)}
        running = [state for state in running if state.member.group not in kept]
    standbys = [state for state in running if not state.is_primary]
    waits = any(state.view.lost is None for state in standbys)
    if running:
        return [StopMember(state.member) for state in (standbys if waits else running)]
    return [Forget(seen.declaration.purge)] if seen.declaration.deleting else []


def _repairs(seen: Observed) -> list[Step]:
    """Groups that are rebuilt; while their data are put in place none of their members may run."""
    steps: list[Step] = [Rebuild(group) for group, repair in seen.repairs.items() if repair["due"]]
    return steps + [
        StopMember(state.member)
        for state in seen.members.values()
        if state.view.running and _is_placing(seen, state.member.group)
    ]


def _is_placing(seen: Observed, group: int) -> bool:
    return group in seen.repairs and seen.repairs[group].get("phase") == "placing"


def _waits_for_repair(seen: Observed, group: int) -> bool:
    """Whether nobody has data of a group that is being rebuilt: there is nothing to start."""
    repair = seen.repairs.get(group)
    return (
        repair is not None
        and repair.get("phase") not in ("done", "failed", "refused")
        and not any(state.may_have_data for state in seen.of_group(group))
    )


def _members(seen: Observed) -> list[Step]:
    return [StartMember(member) for member in seen.wanted_members() if _may_start(seen, member)]


def _may_start(seen: Observed, member: Member) -> bool:
    if _is_placing(seen, member.group) or _waits_for_repair(seen, member.group):
        return False
    state = seen.members.get(member.name)
    if (state is not None and state.view.running) or not seen.knows_beginning(member.group):
        return False
    if state is not None and state.view.has_data:
        return True
    if seen.awaits_source(member.group) or (seen.unfit and not seen.took_part(member.group)):
        return False
    if seen.is_clone(member.group):
        # The first one copies the source, the others that one.
        return member.ordinal == 0 or any(other.is_running for other in seen.of_group(member.group))
    if seen.primary(member.group) is not None:
        return True
    return not any(other.view.has_data for other in seen.of_group(member.group)) and _may_found(seen, member)


def _may_found(seen: Observed, member: Member) -> bool:
    """Whether the group may begin: it never had anything."""
    if seen.took_part(member.group):
        return False
    # A coordinator that is there knows which segments there were: it is asked first.
    knows = member.group == COORDINATOR or seen.catalogue is not None
    return knows or not any(state.view.has_data for state in seen.of_group(COORDINATOR))


def _configs(seen: Observed) -> list[Step]:
    patches = {group: _patch(seen, group) for group in seen.wanted_groups()}
    return [ApplyConfig(group, patch) for group, patch in patches.items() if patch]


def _patch(seen: Observed, group: int) -> dict[str, Any]:
    current = seen.configs.get(group)
    if current is None:
        return {}
    wanted = seen.wanted_configs[group]
    patch = config_patch(current, wanted)
    if seen.catalogue is not None:
        patch = without_leftovers(patch, current, wanted)
    elif is_of_a_copy(current):
        # Nobody can say what it is by now, and as anything else it might be promoted.
        return {}
    if seen.primary(group) is None and not without_primary(current):
        # A value with which nobody starts must be taken back; who may lead is not changed in between.
        return {key: value for key, value in patch.items() if key == "postgresql"}
    if not seen.standbys_wanted(group) and len(seen.of_group(group)) > 1:
        # As long as a standby could still take over, it must have everything that was acknowledged.
        for key in ONLY_ALONE:
            patch.pop(key, None)
    if any(state.view.outdated and not state.view.tried for state in seen.of_group(group)):
        return _without_buffers(patch)
    return patch


def _without_buffers(patch: dict[str, Any]) -> dict[str, Any]:
    """Buffers that follow from more memory wait until that is there: who restarts before could not start with them."""
    postgresql = patch.get("postgresql") or {}
    parameters = {
        key: value for key, value in postgresql.get("parameters", {}).items() if key != "shared_buffers"
    }
    rest = {key: value for key, value in postgresql.items() if key != "parameters"}
    kept = {**rest, **({"parameters": parameters} if parameters else {})}
    others = {key: value for key, value in patch.items() if key != "postgresql"}
    return {**others, **({"postgresql": kept} if kept else {})}


#: What is configured otherwise for a member that is alone in its group.
ONLY_ALONE = ("synchronous_mode", "primary_start_timeout")


UNANSWERED_SECONDS = 15.0
"""how long a member on a silent place must not have answered any look before it counts as dead; longer than the 8 s
after which its primary notices that a connection is"""


def _lost(seen: Observed) -> list[Step]:
    """Members whose place has been silent for long; only where another one of the group is the running primary."""
    return [RebuildMember(state.member) for state in seen.members.values() if _is_dead(seen, state)]


def _is_dead(seen: Observed, state: MemberState) -> bool:
    """Nothing is heard of a member from anywhere.

    Its place may be silent and the member alive. As long as it streams under its name, what it has must count: a
    namesake that was built anew would be taken for it, without its rows.
    """
    limit = seen.declaration.cluster.spec.replace_lost_after
    primary = seen.primary(state.member.group)
    if not limit or state.view.lost is None or primary is None or primary.patroni is None:
        return False
    return (
        state.view.lost >= limit
        and state.patroni is None
        and seen.unanswered.get(state.member.name, 0.0) >= UNANSWERED_SECONDS
        and primary.member != state.member
        and not any(downstream.name == state.member.name for downstream in primary.patroni.downstreams)
    )


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
    heirs = heirs_of(seen, state)
    return [Switchover(state.member, heirs[0].member)] if heirs else []


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
        if (
            not seen.admitted_before
            and not seen.unfit
            and all(seen.initialised.get(group) and _is_complete(seen, group) for group in declared)
        ):
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
