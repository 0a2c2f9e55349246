"""What the planner does with members whose surroundings changed, or were lost. Kubernetes is what has such things."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pgherd.model.topology import Member
from pgherd.reconcile import plan as p
from pgherd.reconcile.plan import plan
from pgherd.reconcile.state import MemberState, Observed
from tests.support.looks import cluster, look, member


def shop(group: int, ordinal: int) -> Member:
    return Member("shop", group, ordinal)


def seen_as(state: MemberState, **view: Any) -> MemberState:
    return replace(state, view=replace(state.view, **view))


def outdated(group: int, ordinal: int, **says: Any) -> MemberState:
    return seen_as(member(group, ordinal, **says), outdated=True)


def lost(group: int, ordinal: int, seconds: float) -> MemberState:
    return replace(seen_as(member(group, ordinal), lost=seconds), patroni=None)


def everybody_outdated() -> Observed:
    return look(changes=[outdated(group, ordinal) for group in range(3) for ordinal in range(2)])


def test_segments_before_the_coordinator_and_standbys_before_primaries() -> None:
    assert plan(everybody_outdated()) == [p.ReplaceMember(shop(2, 1)), p.ReplaceMember(shop(1, 1))]


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
    broken = seen_as(member(1, 1, running=False), outdated=True, note="ImagePullBackOff")
    assert p.ReplaceMember(shop(1, 1)) in plan(look(changes=[broken]))


def test_parameters_that_wait_for_a_restart_come_before_replacements() -> None:
    pending = {"max_connections": (100, 200)}
    steps = plan(look(changes=[outdated(1, 0), outdated(1, 1, pending=pending)]))
    assert steps == [p.RestartMember(shop(1, 1))]


def test_a_lost_standby_is_built_anew_after_its_time() -> None:
    assert p.RebuildMember(shop(1, 1)) in plan(look(changes=[lost(1, 1, 301)]))
    assert p.RebuildMember(shop(1, 1)) not in plan(look(changes=[lost(1, 1, 299)]))


def test_never_when_so_declared() -> None:
    declared = cluster(replaceLostAfter=0)
    assert p.RebuildMember(shop(1, 1)) not in plan(look(declared, changes=[lost(1, 1, 10_000)]))


def test_a_lost_primary_is_rebuilt_only_after_another_one_leads() -> None:
    alone = look(changes=[lost(1, 0, 1000), member(1, 1, leader=False)])
    assert not any(isinstance(step, p.RebuildMember) for step in plan(alone))
    led = look(changes=[lost(1, 0, 1000), member(1, 1, leader=True)])
    assert p.RebuildMember(shop(1, 0)) in plan(led)


def test_a_primary_whose_node_is_silent_but_that_serves_hands_over() -> None:
    silent = seen_as(member(1, 0), lost=1.0)
    assert p.Switchover(shop(1, 0), shop(1, 1)) in plan(look(changes=[silent]))
    behind = member(1, 1, sync=False)
    assert not any(isinstance(step, p.Switchover) for step in plan(look(changes=[silent, behind])))
    lonely = [silent, seen_as(member(1, 1), lost=1.0)]
    assert not any(isinstance(step, p.Switchover) for step in plan(look(changes=lonely)))


def test_a_lost_member_that_still_answers_stays() -> None:
    answering = seen_as(member(1, 1), lost=1000.0)
    assert p.RebuildMember(shop(1, 1)) not in plan(look(changes=[answering]))


STATES = st.builds(
    lambda group, ordinal, leader, running, is_lost, old: seen_as(
        member(group, ordinal, leader=leader, running=running),
        lost=1000.0 if is_lost else None,
        outdated=old,
    ),
    st.integers(0, 2),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(STATES, max_size=6))
def test_data_goes_only_where_another_member_is_the_running_primary(changes: list[MemberState]) -> None:
    seen = look(changes=changes)
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
