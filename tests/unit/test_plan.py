"""The reconcile planner: what it does next in each situation, and what it must never do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgherd.model.topology import Member
from pgherd.reconcile import steps as p
from pgherd.reconcile.plan import plan
from pgherd.reconcile.state import MemberState, Observed, Operation
from tests.support.looks import cluster, endpoint, look, member


def shop(group: int, ordinal: int) -> Member:
    return Member("shop", group, ordinal)


def test_a_cluster_as_declared_needs_nothing() -> None:
    assert plan(look()) == []


def test_a_new_cluster_starts_all_members_at_once() -> None:
    seen = look(gone=[(g, o) for g in range(3) for o in range(2)], catalogue=False, initialised=False)
    assert {step.member for step in plan(seen) if isinstance(step, p.StartMember)} == {
        shop(g, o) for g in range(3) for o in range(2)
    }


def test_a_dead_member_with_data_is_started_even_without_a_primary() -> None:
    seen = look(changes=[member(1, 0, running=False), member(1, 1, running=False)], catalogue=False)
    assert p.StartMember(shop(1, 0)) in plan(seen)
    assert p.StartMember(shop(1, 1)) in plan(seen)


def test_an_empty_member_is_not_started_while_the_others_data_has_no_primary() -> None:
    """A lost Patroni store must not let it found an empty group."""
    seen = look(
        changes=[member(1, 0, leader=False), member(1, 1, running=False, data=False)], catalogue=False
    )
    assert p.StartMember(shop(1, 1)) not in plan(seen)


def test_where_data_are_gone_nothing_empty_takes_their_place() -> None:
    gone = look(gone=[(1, 0), (1, 1)])
    assert not started(gone)
    assert gone.without_data() == [1]
    unread = replace(look(gone=[(1, 0), (1, 1)], catalogue=False), admitted_before=(1, 2))
    assert not started(unread)
    assert unread.without_data() == [1]


def test_a_coordinator_is_not_founded_anew_over_segments_that_took_part() -> None:
    seen = replace(look(gone=[(0, 0), (0, 1)], catalogue=False), admitted_before=(1, 2))
    assert not started(seen)
    assert seen.without_data() == [0]


def test_a_coordinator_that_was_founded_anew_admits_nobody() -> None:
    seen = replace(look(admitted=0), admitted_before=(1, 2))
    assert p.AdmitFirst((1, 2)) not in plan(seen)
    assert seen.without_data() == [0]


def test_new_volumes_that_are_empty_are_no_data() -> None:
    """Kubernetes makes them by itself; Patroni waits in them for a leader that never comes."""
    waiting = [member(1, ordinal, leader=False, state="stopped") for ordinal in range(2)]
    empty = [replace(m, patroni=replace(m.patroni, system_identifier=None)) for m in waiting if m.patroni]
    assert look(changes=list(empty)).without_data() == [1]
    assert look(changes=[waiting[0], empty[1]]).without_data() == []


def test_segments_wait_until_a_coordinator_that_is_there_can_tell_whether_they_took_part() -> None:
    assert not started(look(gone=[(1, 0), (1, 1)], catalogue=False))
    new = look(cluster(segments=3), gone=[(3, 0), (3, 1)])
    assert started(new) == {shop(3, 0), shop(3, 1)}


def started(seen: Observed) -> set[Member]:
    return {step.member for step in plan(seen) if isinstance(step, p.StartMember)}


def test_nothing_new_is_started_while_nodes_differ() -> None:
    seen = replace(look(cluster(segments=3), gone=[(1, 1), (3, 0), (3, 1)]), unfit=("segment-2 has ...",))
    assert started(seen) == {shop(1, 1)}
    first = replace(look(admitted=0), unfit=("segment-2 has ...",))
    assert not any(isinstance(step, p.AdmitFirst) for step in plan(first))


def test_an_empty_standby_is_started_once_its_primary_runs() -> None:
    assert p.StartMember(shop(1, 1)) in plan(look(gone=[(1, 1)]))


def test_changed_parameters_are_patched_once_per_group() -> None:
    seen = look()
    wanted = {group: {**config, "ttl": 30} for group, config in seen.configs.items() if config}
    steps = plan(replace(seen, wanted_configs=wanted))
    assert steps == [p.ApplyConfig(group, {"ttl": 30}) for group in (0, 1, 2)]


def test_a_removed_parameter_is_unset() -> None:
    seen = look()
    old = dict(seen.configs[1] or {})
    old["postgresql"] = {
        **old["postgresql"],
        "parameters": {**old["postgresql"]["parameters"], "geqo_effort": "3"},
    }
    steps = plan(replace(seen, configs={**seen.configs, 1: old}))
    assert steps == [p.ApplyConfig(1, {"postgresql": {"parameters": {"geqo_effort": None}}})]


def test_a_standby_restarts_before_its_primary() -> None:
    raised = {"max_connections": (100, 200)}
    seen = look(changes=[member(1, 0, pending=raised), member(1, 1, pending=raised)])
    assert plan(seen) == [p.RestartMember(shop(1, 1))]


def test_nobody_restarts_with_access_rules_that_no_server_can_read() -> None:
    raised = {"max_connections": (100, 200)}
    seen = look(changes=[member(1, 0, pending=raised), member(1, 1, pending=raised)])
    assert plan(replace(seen, unread=("line 1 can't be read",))) == []


def test_the_primary_restarts_once_its_standby_is_back() -> None:
    raised = {"max_connections": (100, 200)}
    assert plan(look(changes=[member(1, 0, pending=raised)])) == [p.RestartMember(shop(1, 0))]


def test_lowering_what_a_standby_must_not_have_lower_starts_at_the_primary() -> None:
    lowered = {"max_connections": (200, 100)}
    seen = look(changes=[member(1, 0, pending=lowered), member(1, 1, pending=lowered)])
    assert plan(seen) == [p.RestartMember(shop(1, 0))]


def test_nobody_restarts_while_another_member_of_the_group_is_away() -> None:
    raised = {"max_connections": (100, 200)}
    seen = look(changes=[member(1, 0, pending=raised), member(1, 1, state="starting")])
    assert not any(isinstance(step, p.RestartMember) for step in plan(seen))


def test_a_superfluous_standby_goes() -> None:
    seen = look(cluster(standbys=0), changes=[member(1, 1)])
    assert p.RemoveMember(shop(1, 1)) in plan(seen)


def test_a_superfluous_primary_hands_over_first() -> None:
    seen = look(cluster(standbys=0), changes=[member(1, 0, leader=False), member(1, 1, leader=True)])
    steps = plan(seen)
    assert p.Switchover(shop(1, 1), shop(1, 0)) in steps
    assert p.RemoveMember(shop(1, 1)) not in steps


def test_a_superfluous_member_stays_while_its_group_has_no_primary() -> None:
    seen = look(cluster(standbys=0), changes=[member(1, 0, leader=False), member(1, 1, leader=False)])
    assert not any(isinstance(step, p.RemoveMember) for step in plan(seen))


def test_databases_are_prepared_before_segments_are_admitted() -> None:
    steps = plan(look(admitted=0, initialised=False))
    assert {step.group for step in steps if isinstance(step, p.Initialise)} == {0, 1, 2}
    assert not any(isinstance(step, p.AdmitFirst) for step in steps)


def test_the_first_segments_are_admitted_without_an_operation() -> None:
    assert p.AdmitFirst((1, 2)) in plan(look(admitted=0))


def test_changed_members_of_a_segment_are_told_to_the_coordinator() -> None:
    seen = look()
    assert seen.catalogue is not None
    stale = replace(seen.catalogue, endpoints={**seen.catalogue.endpoints, 2: [endpoint(2, 0)]})
    assert plan(replace(seen, catalogue=stale)) == [p.UpdateEndpoints(2, (endpoint(2, 0), endpoint(2, 1)))]


@pytest.mark.parametrize(("admitted", "declared", "kind"), [(2, 4, "expand"), (4, 2, "shrink")])
def test_another_number_of_segments_becomes_an_operation(admitted: int, declared: int, kind: str) -> None:
    seen = look(cluster(segments=declared), admitted=admitted, members_for=max(admitted, declared))
    assert p.RequestOperation(kind, admitted, declared) in plan(seen)


def operation(phase: str, to: int, *, finished: bool, generation: int = 1) -> Operation:
    return Operation(7, "expand", phase, to, generation, finished)


def test_an_unfinished_operation_is_carried_on_and_no_other_requested() -> None:
    seen = look(cluster(segments=3), members_for=4, operation=operation("moving", 4, finished=False))
    assert plan(seen) == [p.RunOperation(7)]


def test_members_of_leaving_segments_stay_while_an_operation_runs() -> None:
    seen = look(cluster(segments=2), members_for=4, operation=operation("moving", 4, finished=False))
    assert not any(isinstance(step, p.RemoveMember) for step in plan(seen))


def test_a_retired_segment_goes() -> None:
    steps = plan(look(cluster(segments=2), members_for=3))
    assert {step.member for step in steps if isinstance(step, p.RemoveMember)} == {shop(3, 0), shop(3, 1)}


def test_no_segment_goes_while_the_catalogue_can_not_be_read() -> None:
    seen = look(cluster(segments=2), members_for=4, catalogue=False)
    assert not any(isinstance(step, p.RemoveMember) for step in plan(seen))


@pytest.mark.parametrize("phase", ["failed", "cancelled"])
def test_a_failed_wish_is_not_tried_again_until_it_is_declared_anew(phase: str) -> None:
    ended = operation(phase, 4, finished=True, generation=5)
    declared = cluster(segments=4)
    assert plan(look(declared, generation=5, last=ended)) == []
    assert plan(look(declared, generation=6, last=ended)) == [p.RequestOperation("expand", 2, 4)]


def test_stopping_ends_standbys_before_primaries() -> None:
    assert plan(look(stopped=True)) == [p.StopMember(shop(g, 1)) for g in range(3)]
    primaries_left = look(stopped=True, changes=[member(g, 1, running=False) for g in range(3)])
    assert plan(primaries_left) == [p.StopMember(shop(g, 0)) for g in range(3)]


def on_a_dead_node(state: MemberState) -> MemberState:
    """A member of which nothing is heard any more."""
    return MemberState(replace(state.view, lost=100.0), None)


@pytest.mark.parametrize("asked", ["stopped", "deleting"])
def test_a_member_on_a_dead_node_does_not_hold_back_the_primaries(asked: str) -> None:
    lost = on_a_dead_node(member(1, 1))
    first = look(changes=[lost], **{asked: True})  # type: ignore[arg-type]
    assert plan(first) == [p.StopMember(shop(g, 1)) for g in range(3)], "standbys that live come first"
    standbys = [member(g, 1, running=False) for g in (0, 2)]
    then = look(changes=[lost, *standbys], **{asked: True})  # type: ignore[arg-type]
    assert set(plan(then)) == {p.StopMember(shop(1, 1)), *(p.StopMember(shop(g, 0)) for g in range(3))}


@pytest.mark.parametrize("asked", ["stopped", "deleting"])
def test_nothing_is_over_before_a_member_on_a_dead_node_has_ended(asked: str) -> None:
    """Two servers on one volume: its node may be back at any time."""
    down = [member(g, o, running=False) for g in range(3) for o in range(2) if (g, o) != (1, 1)]
    last = look(changes=[on_a_dead_node(member(1, 1)), *down], **{asked: True})  # type: ignore[arg-type]
    assert plan(last) == [p.StopMember(shop(1, 1))]


def test_a_standby_that_says_nothing_on_a_node_that_reports_is_waited_for() -> None:
    silent = MemberState(member(1, 1).view, None)
    seen = look(stopped=True, changes=[silent, *(member(g, 1, running=False) for g in (0, 2))])
    assert plan(seen) == [p.StopMember(shop(1, 1))]


def test_a_deletion_forgets_only_when_nothing_runs() -> None:
    assert p.Forget(purge=True) not in plan(look(deleting=True))
    all_down = [member(g, o, running=False) for g in range(3) for o in range(2)]
    assert plan(look(deleting=True, changes=all_down)) == [p.Forget(purge=True)]


def test_leftovers_are_cleaned_up_when_no_operation_runs() -> None:
    assert plan(look(cleanup_due=3)) == [p.CleanUp()]


# Whatever was seen, these hold.

a_member = st.builds(
    lambda group, ordinal, running, data, leader, state: member(
        group, ordinal, running=running, data=data, leader=leader, state=state
    ),
    st.integers(0, 4),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["running", "starting", "stopped", "crashed"]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(a_member, max_size=10),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 4),
    st.booleans(),
)
def test_no_plan_removes_a_primary_or_data_that_may_be_the_last(
    changes: list[MemberState], segments: int, standbys: int, admitted: int, catalogue: bool
) -> None:
    seen = look(cluster(segments, standbys), changes=changes, admitted=admitted, catalogue=catalogue)
    for step in plan(seen):
        if isinstance(step, p.RemoveMember) and step.member.group in seen.wanted_groups():
            primary = seen.primary(step.member.group)
            assert primary is not None
            assert primary.member != step.member
        if isinstance(step, p.RemoveMember) and step.member.group not in seen.wanted_groups():
            assert seen.catalogue is not None
            assert step.member.group not in seen.catalogue.segments


@settings(max_examples=300, deadline=None)
@given(st.lists(a_member, max_size=10), st.integers(1, 4), st.integers(0, 2))
def test_no_plan_lets_an_empty_member_found_a_group_that_has_data(
    changes: list[MemberState], segments: int, standbys: int
) -> None:
    seen = look(cluster(segments, standbys), changes=changes, catalogue=False)
    for step in plan(seen):
        if isinstance(step, p.StartMember):
            state = seen.members.get(step.member.name)
            if state is None or not state.view.has_data:
                group = seen.of_group(step.member.group)
                assert seen.primary(step.member.group) or not any(other.view.has_data for other in group)


# made from a backup


def restoring(running: bool, **state: object) -> list[p.Step]:
    states = [member(group, 0, running=running) for group in range(3)]
    bare = look(cluster(standbys=0), changes=states, catalogue=False)
    return plan(replace(bare, recovery=state))


def test_nothing_starts_before_all_groups_are_restored() -> None:
    assert restoring(False) == [p.Recover()]
    assert restoring(False, phase="copying", steps=["copied", "reached"]) == [p.Recover()]


def test_members_are_stopped_before_they_are_restored_in_place() -> None:
    assert restoring(True) == [p.StopMember(Member("shop", group, 0)) for group in range(3)]


def test_a_restore_that_failed_says_why() -> None:
    assert restoring(False, phase="failed", error="it is damaged") == [p.Recover("it is damaged")]


def test_a_cluster_that_is_to_go_is_not_restored_first() -> None:
    seen = look(cluster(standbys=0), catalogue=False, deleting=True)
    assert not any(isinstance(step, p.Recover) for step in plan(replace(seen, recovery={})))


# repairs


def rebuilding(phase: str, *, due: bool = True, **options: Any) -> list[p.Step]:
    options.setdefault("gone", [(1, 0), (1, 1)])
    seen = replace(look(**options), repairs={1: {"id": "x", "phase": phase, "due": due}})
    return [step for step in plan(seen) if not isinstance(step, (*p.BACKGROUND, p.UpdateEndpoints))]


def test_nobody_is_started_without_data_while_a_group_is_rebuilt() -> None:
    assert rebuilding("copying") == [p.Rebuild(1)]
    assert rebuilding("in doubt", due=False) == []


def test_while_its_data_are_put_in_place_no_member_of_a_group_runs() -> None:
    steps = rebuilding("placing", gone=[], changes=[member(1, 0, leader=False)])
    assert p.Rebuild(1) in steps
    assert {p.StopMember(shop(1, 0)), p.StopMember(shop(1, 1))} <= set(steps)
    assert not any(isinstance(step, p.StartMember) for step in steps)


def test_a_rebuilt_groups_first_member_is_started_before_the_others() -> None:
    steps = rebuilding("joining", gone=[(1, 1)], changes=[member(1, 0, running=False)])
    assert p.StartMember(shop(1, 0)) in steps
    assert p.StartMember(shop(1, 1)) not in steps
