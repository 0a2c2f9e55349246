"""What the planner does with members whose surroundings changed, or were lost. Kubernetes is what has such things."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Member
from pgherd.patroni.client import Downstream
from pgherd.reconcile import steps as p
from pgherd.reconcile.plan import plan
from pgherd.reconcile.state import MemberState, Observed
from tests.support.looks import cluster, look, member


def shop(group: int, ordinal: int) -> Member:
    return Member("shop", group, ordinal)


def seen_as(state: MemberState, **view: Any) -> MemberState:
    return replace(state, view=replace(state.view, **view))


def outdated(group: int, ordinal: int, *, tried: bool | None = True, **says: Any) -> MemberState:
    return seen_as(member(group, ordinal, **says), outdated=True, tried=tried)


def lost(group: int, ordinal: int, seconds: float) -> MemberState:
    return replace(seen_as(member(group, ordinal), lost=seconds), patroni=None)


def everybody_outdated() -> Observed:
    return look(changes=[outdated(group, ordinal) for group in range(3) for ordinal in range(2)])


def restarted(steps: list[p.Step]) -> list[p.Step]:
    return [step for step in steps if isinstance(step, p.RestartMember)]


def test_segments_before_the_coordinator_and_standbys_before_primaries_one_at_a_time() -> None:
    assert plan(everybody_outdated()) == [p.ReplaceMember(shop(2, 1))]


def test_nobody_is_replaced_anywhere_while_one_that_was_does_not_run() -> None:
    """A wrong change takes one standby at most."""
    everybody = [outdated(group, ordinal) for group in range(3) for ordinal in range(2)]
    for away in (member(2, 1, running=False), member(2, 1, state="starting")):
        assert not rolled(plan(look(changes=[*everybody, away])))
    assert not rolled(plan(look(changes=everybody, gone=[(2, 1)])))


def test_nobody_restarts_anywhere_while_one_that_did_does_not_run() -> None:
    raised = {"max_connections": (100, 200)}
    waiting = [member(group, ordinal, pending=raised) for group in range(3) for ordinal in range(2)]
    assert plan(look(changes=waiting)) == [p.RestartMember(shop(2, 1))]
    assert not rolled(plan(look(changes=[*waiting, member(2, 1, state="failed")])))


def test_a_primary_waits_for_its_standby_to_come_back_with_the_new_value() -> None:
    raised = {"max_connections": (100, 200)}
    still_waiting = look(changes=[member(1, 0, pending=raised), member(1, 1, pending=raised)])
    assert plan(still_waiting) == [p.RestartMember(shop(1, 1))]
    assert not rolled(plan(look(changes=[member(1, 0, pending=raised)], gone=[(1, 1)])))


def test_a_member_is_replaced_only_after_a_trial() -> None:
    for standbys, ordinal in ((1, 1), (0, 0)):
        declared = cluster(standbys=standbys)
        untried = outdated(1, ordinal, tried=None)
        assert plan(look(declared, changes=[untried])) == [p.TryMember(shop(1, ordinal))]
        assert plan(look(declared, changes=[outdated(1, ordinal, tried=False)])) == []
        assert plan(look(declared, changes=[outdated(1, ordinal)])) == [p.ReplaceMember(shop(1, ordinal))]


def test_a_lone_member_that_is_away_for_a_moment_is_not_replaced_untried() -> None:
    away = seen_as(member(1, 0, running=False), outdated=True)
    assert plan_of(look(cluster(standbys=0), changes=[away]), p.ReplaceMember) == []


def test_larger_buffers_wait_for_the_memory_they_need() -> None:
    """Who crashes meanwhile must be able to start in what it has."""
    seen = look(changes=[outdated(1, ordinal, tried=None) for ordinal in range(2)])
    config = dict(seen.configs[1] or {})
    parameters = {**config["postgresql"]["parameters"], "shared_buffers": "32GB", "work_mem": "9MB"}
    wanted = {
        **seen.wanted_configs,
        1: {**config, "postgresql": {**config["postgresql"], "parameters": parameters}},
    }
    [step] = plan_of(replace(seen, wanted_configs=wanted), p.ApplyConfig)
    assert step.patch == {"postgresql": {"parameters": {"work_mem": "9MB"}}}
    tried = look(changes=[outdated(1, ordinal) for ordinal in range(2)])
    [step] = plan_of(replace(tried, wanted_configs=wanted), p.ApplyConfig)
    assert step.patch["postgresql"]["parameters"]["shared_buffers"] == "32GB"


def test_a_value_with_which_nobody_starts_can_be_taken_back() -> None:
    failed = look(cluster(standbys=0), changes=[member(1, 0, leader=False, state="failed")])
    config = dict(failed.configs[1] or {})
    bad = {**config["postgresql"], "parameters": {**config["postgresql"]["parameters"], "work_mem": "1PB"}}
    seen = replace(failed, configs={**failed.configs, 1: {**config, "ttl": 99, "postgresql": bad}})
    [step] = plan_of(seen, p.ApplyConfig)
    assert list(step.patch) == ["postgresql"]


def plan_of(seen: Observed, kind: type[Any]) -> list[Any]:
    return [step for step in plan(seen) if isinstance(step, kind)]


def rolled(steps: list[p.Step]) -> list[p.Step]:
    return [
        step
        for step in steps
        if isinstance(step, p.ReplaceMember | p.RestartMember | p.Switchover | p.TryMember)
    ]


def test_a_primary_hands_over_before_it_is_replaced() -> None:
    assert plan(look(changes=[outdated(1, 0)])) == [p.Switchover(shop(1, 0), shop(1, 1))]


def test_the_old_primary_is_replaced_once_it_is_a_standby() -> None:
    seen = look(changes=[outdated(1, 0, leader=False), member(1, 1, leader=True)])
    assert p.ReplaceMember(shop(1, 0)) in plan(seen)


def test_the_coordinator_follows_when_its_segments_are_done() -> None:
    assert plan(look(changes=[outdated(0, 1)])) == [p.ReplaceMember(shop(0, 1))]


def test_a_member_alone_is_replaced_in_place() -> None:
    seen = look(cluster(standbys=0), changes=[outdated(1, 0)])
    assert p.ReplaceMember(shop(1, 0)) in plan(seen)


def test_nobody_is_replaced_while_another_member_of_the_group_is_away() -> None:
    seen = look(changes=[outdated(1, 0), member(1, 1, state="starting")])
    assert not any(isinstance(step, p.ReplaceMember | p.Switchover) for step in plan(seen))


def test_an_outdated_member_that_can_not_start_is_put_right_at_once() -> None:
    """A wrong image was declared, a standby hangs in it, and the right one was declared."""
    broken = seen_as(member(1, 1, running=False), outdated=True, tried=True, note="ImagePullBackOff")
    assert p.ReplaceMember(shop(1, 1)) in plan(look(changes=[broken]))


def test_an_outdated_standby_whose_server_can_not_start_any_more_is_put_right_at_once() -> None:
    """Its Patroni goes on without a server, in an image that lacks a library which the new one has."""
    for tried, expected in (
        (None, [p.TryMember(shop(1, 0))]),
        (True, [p.ReplaceMember(shop(1, 0))]),
        (False, []),
    ):
        failed = outdated(1, 0, tried=tried, leader=False, state="failed")
        seen = look(changes=[failed, member(1, 1, leader=True), outdated(2, 1)])
        assert rolled(plan(seen)) == expected


def test_a_member_whose_server_can_not_start_is_left_alone_while_nobody_else_leads() -> None:
    failed = outdated(1, 0, leader=False, state="failed")
    for other in (member(1, 1, state="starting"), outdated(1, 1, state="failed")):
        assert not rolled(plan(look(changes=[failed, other])))
    assert not rolled(plan(look(cluster(standbys=0), changes=[failed])))
    assert not rolled(
        plan(look(changes=[member(1, 0, leader=False, state="failed"), member(1, 1, leader=True)]))
    )


def test_who_has_to_be_replaced_does_not_restart_before() -> None:
    """Larger buffers would start in the old pod's smaller memory; and two outages are one too many."""
    raised = {"shared_buffers": (100, 200)}
    both = [outdated(1, ordinal, pending=raised) for ordinal in range(2)]
    assert plan(look(changes=both)) == [p.ReplaceMember(shop(1, 1))]
    assert plan(look(changes=both[:1])) == [p.Switchover(shop(1, 0), shop(1, 1))]


GOING = "its volume claim data-shop-segment-1-0 is being deleted"


def test_a_member_is_not_replaced_whose_data_would_go_with_its_pod() -> None:
    """Somebody deleted its volume claim: Kubernetes keeps that, and its rows, for as long as the pod is there."""
    alone = cluster(standbys=0)
    for state in (outdated(1, 0), seen_as(member(1, 0, running=False), outdated=True, tried=True)):
        assert p.ReplaceMember(shop(1, 0)) in plan(look(alone, changes=[state]))
        assert not rolled(plan(look(alone, changes=[seen_as(state, doomed=GOING)])))


def test_one_whose_data_its_primary_has_is_built_anew_by_its_replacement() -> None:
    both = [seen_as(outdated(1, ordinal), doomed=GOING) for ordinal in range(2)]
    assert plan(look(changes=both)) == [p.ReplaceMember(shop(1, 1))]
    assert plan(look(changes=both[:1])) == [p.Switchover(shop(1, 0), shop(1, 1))]


def test_a_stop_ends_no_group_of_which_data_would_go_with_it() -> None:
    going = seen_as(member(1, 0), doomed=GOING)
    stopped = plan(look(cluster(standbys=0), changes=[going], stopped=True))
    assert stopped == [p.StopMember(shop(0, 0)), p.StopMember(shop(2, 0))]
    # Nor the standby, which would lack what is committed after its end.
    both = plan(look(changes=[going], stopped=True))
    assert both == [p.StopMember(shop(0, 1)), p.StopMember(shop(2, 1))]
    assert p.StopMember(shop(1, 0)) in plan(look(cluster(standbys=0), changes=[going], deleting=True))


def test_who_is_not_outdated_restarts_before_others_are_replaced() -> None:
    raised = {"max_connections": (100, 200)}
    steps = plan(look(changes=[outdated(1, 0), member(1, 1, pending=raised)]))
    assert steps == [p.RestartMember(shop(1, 1))]


def test_a_lowered_value_and_a_replacement_do_not_wait_for_one_another() -> None:
    """A standby takes its primary's higher value until that has the lower one: restarting it changes nothing."""
    lowered = {"max_connections": (200, 100)}
    seen = look(changes=[outdated(1, 0, pending=lowered), member(1, 1, pending=lowered)])
    assert plan(seen) == [p.Switchover(shop(1, 0), shop(1, 1))]


def test_a_primary_on_a_silent_node_hands_over_although_its_restart_is_held_up_by_access_rules() -> None:
    """No restart comes as long as a line is wrong, and nobody reports on it any more."""
    raised = {"max_connections": (100, 200)}
    alive = replace(member(1, 0, pending=raised), view=replace(member(1, 0).view, lost=20.0))
    seen = look(changes=[alive, member(1, 1, pending=raised)])
    assert p.Switchover(shop(1, 0), shop(1, 1)) not in plan(seen)
    assert p.Switchover(shop(1, 0), shop(1, 1)) in plan(replace(seen, unread=("line 1 can't be read",)))


@pytest.mark.parametrize("away", [member(2, 1, running=False), member(2, 1, state="failed")])
def test_a_primary_on_a_silent_node_hands_over_although_its_restart_waits_for_another_group(
    away: MemberState,
) -> None:
    raised = {"max_connections": (100, 200)}
    alive = seen_as(member(1, 0, pending=raised), lost=20.0)
    steps = plan(look(changes=[alive, member(1, 1, pending=raised), away]))
    assert not restarted(steps)
    assert p.Switchover(shop(1, 0), shop(1, 1)) in steps


def test_a_primary_on_a_silent_node_does_not_wait_for_another_groups_turn_to_restart() -> None:
    raised = {"max_connections": (100, 200)}
    waiting = [member(group, ordinal, pending=raised) for group in (1, 2) for ordinal in range(2)]
    steps = plan(look(changes=[*waiting, seen_as(member(1, 0, pending=raised), lost=20.0)]))
    assert restarted(steps) == [p.RestartMember(shop(2, 1))]
    assert p.Switchover(shop(1, 0), shop(1, 1)) in steps


def silent(*changes: MemberState, seconds: float = 60.0, declared: PostgresCluster | None = None) -> Observed:
    """A look after which the lost ones among these have not answered for so long."""
    seen = look(declared, changes=list(changes))
    unanswered = {state.member.name: seconds for state in changes if state.patroni is None}
    return replace(seen, unanswered=unanswered)


def test_a_lost_standby_is_built_anew_after_its_time() -> None:
    assert p.RebuildMember(shop(1, 1)) in plan(silent(lost(1, 1, 301)))
    assert p.RebuildMember(shop(1, 1)) not in plan(silent(lost(1, 1, 299)))


def test_one_look_without_an_answer_gives_nobody_up() -> None:
    assert p.RebuildMember(shop(1, 1)) not in plan(look(changes=[lost(1, 1, 10_000)]))
    assert p.RebuildMember(shop(1, 1)) not in plan(silent(lost(1, 1, 10_000), seconds=14))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_standby_that_its_primary_still_hears_is_not_built_anew(streaming: bool) -> None:
    """A kubelet that stopped alone, and an operator that can't reach the pod: two of one name would acknowledge."""
    heard = Downstream(name=shop(1, 1).name, streaming=streaming, synchronous=True)
    primary = member(1, 0)
    assert primary.patroni is not None
    primary = replace(primary, patroni=replace(primary.patroni, downstreams=(heard,)))
    assert p.RebuildMember(shop(1, 1)) not in plan(silent(lost(1, 1, 10_000), primary))


def test_never_when_so_declared() -> None:
    declared = cluster(replaceLostAfter=0)
    assert p.RebuildMember(shop(1, 1)) not in plan(silent(lost(1, 1, 10_000), declared=declared))


def test_a_lost_primary_is_rebuilt_only_after_another_one_leads() -> None:
    alone = silent(lost(1, 0, 1000), member(1, 1, leader=False))
    assert not any(isinstance(step, p.RebuildMember) for step in plan(alone))
    led = silent(lost(1, 0, 1000), member(1, 1, leader=True))
    assert p.RebuildMember(shop(1, 0)) in plan(led)


def test_a_primary_whose_node_is_silent_but_that_serves_hands_over() -> None:
    unheard = seen_as(member(1, 0), lost=1.0)
    assert p.Switchover(shop(1, 0), shop(1, 1)) in plan(look(changes=[unheard]))
    behind = member(1, 1, sync=False)
    assert not any(isinstance(step, p.Switchover) for step in plan(look(changes=[unheard, behind])))
    lonely = [unheard, seen_as(member(1, 1), lost=1.0)]
    assert not any(isinstance(step, p.Switchover) for step in plan(look(changes=lonely)))


def test_a_lost_member_that_still_answers_stays() -> None:
    answering = seen_as(member(1, 1), lost=1000.0)
    assert p.RebuildMember(shop(1, 1)) not in plan(look(changes=[answering]))


STATES = st.builds(
    lambda group, ordinal, leader, running, is_lost, old, tried, state: seen_as(
        member(group, ordinal, leader=leader, running=running, state=state),
        lost=1000.0 if is_lost else None,
        outdated=old,
        tried=tried,
    ),
    st.integers(0, 2),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, False, True]),
    st.sampled_from(["running", "failed"]),
)


@given(st.lists(STATES, max_size=6))
def test_a_rollout_takes_at_most_one_running_member_and_only_a_tried_one(changes: list[MemberState]) -> None:
    seen = look(changes=changes)
    taken = [
        state
        for step in plan(seen)
        if isinstance(step, p.ReplaceMember | p.RestartMember)
        and (state := seen.members[step.member.name]).is_running
    ]
    assert len(taken) <= 1
    for step in plan(seen):
        if isinstance(step, p.ReplaceMember):
            assert seen.members[step.member.name].view.tried


@given(st.lists(STATES, max_size=6))
def test_data_goes_only_where_another_member_is_the_running_primary(changes: list[MemberState]) -> None:
    seen = silent(*changes)
    for step in plan(seen):
        if isinstance(step, p.RebuildMember):
            primary = seen.primary(step.member.group)
            assert primary is not None
            assert primary.member != step.member


@given(st.lists(STATES, max_size=6))
def test_a_running_primary_with_standbys_is_never_replaced_under_its_feet(changes: list[MemberState]) -> None:
    seen = look(changes=changes)
    for step in plan(seen):
        if isinstance(step, p.ReplaceMember):
            primary = seen.primary(step.member.group)
            assert primary is None or primary.member != step.member


def test_a_group_that_loses_its_standbys_stays_synchronous_until_they_are_gone() -> None:
    """A standby that may still take over must have everything that was acknowledged."""
    declared = cluster(standbys=0)
    synchronous = dict(look().configs[1] or {})
    together = look(declared, changes=[member(1, 1)])
    object.__setattr__(together, "configs", {**together.configs, 1: synchronous})
    assert not [step for step in plan(together) if isinstance(step, p.ApplyConfig)]
    alone = look(declared)
    object.__setattr__(alone, "configs", {**alone.configs, 1: synchronous})
    [step] = [step for step in plan(alone) if isinstance(step, p.ApplyConfig)]
    assert step.patch["synchronous_mode"] is False


def test_connections_try_lost_members_last() -> None:
    steps = plan(look(changes=[lost(1, 0, 20), member(1, 1, leader=True)]))
    [update] = [step for step in steps if isinstance(step, p.UpdateEndpoints)]
    assert [endpoint.port for endpoint in update.endpoints] == [7011, 7010]
    assert not [step for step in plan(look()) if isinstance(step, p.UpdateEndpoints)]
