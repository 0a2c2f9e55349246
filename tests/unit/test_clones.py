"""Segments that begin as copies of others: which are split, what Patroni is told, and what the planner does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pgherd.engine.base import Clone
from pgherd.engine.citus.clone import too_old
from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster, load
from pgherd.model.splitting import described, sources
from pgherd.model.topology import Member
from pgherd.patroni.config import config_patch
from pgherd.reconcile import steps as p
from pgherd.reconcile.clones import PARTING, QUIET, with_clones, without_leftovers
from pgherd.reconcile.observe import primaries_in
from pgherd.reconcile.plan import plan
from pgherd.reconcile.state import Observed, Operation
from pgherd.reconcile.status import find_problems
from tests.support.looks import cluster, look, member

QUIETLY = {"citus.recover_2pc_interval": "-1"}
EXPANDING = Operation(7, "expand", "preparing", 3, 1, finished=False)


def citus(segments: int = 3) -> PostgresCluster:
    declared = cluster(segments, expansion="{mode: online}")
    spec = declared.spec.model_copy(
        update={"engine": "citus", "expansion": declared.spec.expansion.model_copy(update={"mode": "clone"})}
    )
    return declared.model_copy(update={"spec": spec})


def seen(clones: dict[int, Clone] | None = None, **what: Any) -> Observed:
    """Two segments of three declared; the third is to come by a copy."""
    what.setdefault("members_for", 2)
    found = look(citus(), **what)
    if found.catalogue is None:
        return found
    quiet = dict.fromkeys(clones or {}, QUIETLY)
    catalogue = replace(found.catalogue, clones=clones or {}, clone_parameters=quiet)
    wanted = configured(found, catalogue.clones, catalogue.clone_parameters)
    return replace(found, catalogue=catalogue, wanted_configs=wanted)


def configured(
    found: Observed, clones: Mapping[int, Clone], parameters: Mapping[int, Mapping[str, str]]
) -> dict[int, Any]:
    return with_clones(found.wanted_configs, clones, found.configs, primaries_in(found), parameters)


def started(found: Observed) -> set[Member]:
    return {step.member for step in plan(found) if isinstance(step, p.StartMember)}


# which are split


def test_the_largest_segments_are_split_each_once() -> None:
    assert sources({1: 10, 2: 30, 3: 20}, [4, 5]) == {4: 2, 5: 3}
    assert sources({1: 5, 2: 5}, [4, 3]) == {3: 1, 4: 2}


def test_what_stays_whole_is_said() -> None:
    sizes = {1: 10, 2: 30}
    assert described(sources(sizes, [3]), sizes) == (
        "to be split off: segment-3 from segment-2; segment-1 stay whole: 'pgherd rebalance' makes them even"
    )
    assert "whole" not in described(sources(sizes, [3, 4]), sizes)


def test_more_new_segments_than_there_are_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="from 2 at most 4 come in one go: scale to 4 first"):
        sources({1: 1, 2: 1}, [3, 4, 5])


@pytest.mark.parametrize(
    ("version", "fits"), [("13.0-1", False), ("13.1-1", False), ("13.2-1", True), ("14.0-1", True)]
)
def test_a_citus_that_cannot_is_refused_by_its_version(version: str, fits: bool) -> None:
    refusal = too_old(version)
    assert (
        refusal is None
        if fits
        else refusal
        == (
            f"spec.expansion.mode: clone needs Citus 13.2 or later, here is {version}: use online or blocking"
        )
    )


@pytest.mark.parametrize(
    ("platform", "engine", "reason"),
    [
        ("local", "fdw", "clone needs spec.engine citus"),
        ("local", None, "clone needs spec.engine citus"),
        ("kubernetes", "fdw", "clone needs spec.engine citus"),
    ],
)
def test_where_it_cannot_be_it_is_refused_in_one_line(platform: str, engine: str | None, reason: str) -> None:
    with pytest.raises(BadInput, match=f"spec.expansion.mode: {reason}: use online or blocking"):
        load(in_this_mode(engine), source="test", platform=platform)


@pytest.mark.parametrize(
    ("platform", "engine"), [("local", "citus"), ("kubernetes", "citus"), ("kubernetes", None)]
)
def test_citus_can_on_every_platform(platform: str, engine: str | None) -> None:
    assert load(in_this_mode(engine), source="test", platform=platform).spec.expansion.mode == "clone"


def in_this_mode(engine: str | None) -> str:
    named = f"engine: {engine}, " if engine else ""
    return (
        "apiVersion: pgherd.io/v1alpha1\nkind: PostgresCluster\nmetadata: {name: shop}\n"
        f"spec: {{{named}expansion: {{mode: clone}}}}\n"
    )


# what Patroni is told


def test_a_copy_follows_its_source_through_a_slot_on_all_its_members() -> None:
    wanted = seen({3: Clone(1, "copying")}).wanted_configs
    assert wanted[3]["standby_cluster"] == {
        "host": "127.0.0.1",
        "port": 7010,
        "primary_slot_name": "pgherd_clone_3",
        "create_replica_methods": ["basebackup"],
    }
    assert "pause" not in wanted[3]
    assert wanted[1]["slots"] == {"pgherd_clone_3": {"type": "physical"}}
    assert "slots" not in wanted[2]


def test_a_copy_follows_whoever_leads_its_source_and_stays_while_nobody_does() -> None:
    copying = {3: Clone(1, "copying")}
    other = seen(copying, changes=[member(1, 0, leader=False), member(1, 1, leader=True)])
    assert other.wanted_configs[3]["standby_cluster"]["port"] == 7011
    present = {**other.configs, 3: other.wanted_configs[3]}
    nobody = look(citus(), members_for=2, changes=[member(1, 0, leader=False)])
    wanted = with_clones(nobody.wanted_configs, copying, present, primaries_in(nobody), {})
    assert wanted[3]["standby_cluster"]["port"] == 7011


def test_before_the_split_the_pause_begins_with_the_end_of_following() -> None:
    copying, parting = (seen({3: Clone(1, state)}).wanted_configs[3] for state in ("copying", "parting"))
    assert without_leftovers(config_patch(copying, parting), copying, parting) == {
        "standby_cluster": None,
        "pause": True,
        PARTING: True,
    }


def test_a_segment_that_was_a_copy_is_like_any_other() -> None:
    parting, plain = (seen(clones).wanted_configs[3] for clones in ({3: Clone(1, "parting")}, {}))
    assert without_leftovers(config_patch(parting, plain), parting, plain) == {
        "pause": None,
        PARTING: None,
        QUIET: None,
        "postgresql": {"parameters": {"citus.recover_2pc_interval": None}},
    }


def recovery(config: Mapping[str, Any]) -> str | None:
    interval: str | None = config["postgresql"]["parameters"].get("citus.recover_2pc_interval")
    return interval


@pytest.mark.parametrize("state", ["copying", "parting", "undone"])
def test_a_copy_never_ends_two_phase_commits_in_its_sources_name_whatever_the_user_wants(state: str) -> None:
    declared = citus()
    postgres = declared.spec.postgres.model_copy(
        update={"parameters": {"citus.recover_2pc_interval": "1s", "work_mem": "8MB"}}
    )
    declared = declared.model_copy(update={"spec": declared.spec.model_copy(update={"postgres": postgres})})
    found = look(declared, members_for=3)
    wanted = configured(found, {3: Clone(1, state)}, {3: QUIETLY})
    assert recovery(wanted[3]) == "-1"
    assert wanted[3]["postgresql"]["parameters"]["work_mem"] == "8MB"
    assert [recovery(wanted[group]) for group in (0, 1, 2)] == ["1s"] * 3
    assert recovery(found.wanted_configs[3]) == "1s", "what it is made from stays as it was"


def test_a_new_segment_recovers_only_once_it_knows_itself() -> None:
    parting = seen({3: Clone(1, "parting")}).wanted_configs[3]
    plain = seen().wanted_configs[3]
    unaware = configured(seen(), {}, {3: QUIETLY})[3]
    assert without_leftovers(config_patch(parting, unaware), parting, unaware) == {
        "pause": None,
        PARTING: None,
    }
    assert without_leftovers(config_patch(unaware, plain), unaware, plain) == {
        QUIET: None,
        "postgresql": {"parameters": {"citus.recover_2pc_interval": None}},
    }


@pytest.mark.parametrize("how", ["copying", "parting", "unaware"])
def test_a_copy_stays_what_it_is_while_nobody_can_be_asked(how: str) -> None:
    clones = {} if how == "unaware" else {3: Clone(1, how)}
    found = seen(members_for=3, changes=[member(3, 0, leader=how == "unaware")])
    wanted = configured(found, clones, {3: QUIETLY})
    blind = look(citus(), members_for=3, catalogue=False, changes=[member(3, 0, leader=how == "unaware")])
    steps = plan(replace(blind, configs={**blind.configs, 1: wanted[1], 3: wanted[3]}))
    assert not [step for step in steps if isinstance(step, p.ApplyConfig)]


def test_a_pause_and_slots_of_somebody_else_stay() -> None:
    plain = seen().wanted_configs[1]
    paused = {**plain, "pause": True, "slots": {"theirs": {"type": "physical"}, "pgherd_clone_3": {}}}
    assert without_leftovers({}, paused, plain) == {"slots": {"pgherd_clone_3": None}}


def test_the_pause_ends_by_whichever_member_answers_as_there_is_no_primary_yet() -> None:
    found = seen(members_for=3, admitted=3, changes=[member(3, 0, leader=False)])
    paused = {**found.wanted_configs[3], PARTING: True, "pause": True}
    steps = plan(replace(found, configs={**found.configs, 3: paused}))
    assert p.ApplyConfig(3, {"pause": None, PARTING: None}) in steps


# what is planned


def test_a_group_waits_until_it_is_known_of_which_segment_it_is_a_copy() -> None:
    assert not started(seen())
    assert not started(seen(operation=EXPANDING))
    assert p.RequestOperation("expand", 2, 3) in plan(seen())


def test_a_copy_begins_with_one_member_which_the_others_copy() -> None:
    copying = {3: Clone(1, "copying")}
    assert started(seen(copying, operation=EXPANDING)) == {Member("shop", 3, 0)}
    following = member(3, 0, leader=False)
    one = seen(copying, members_for=3, operation=EXPANDING, changes=[following], gone=[(3, 1)])
    assert started(one) == {Member("shop", 3, 1)}
    assert not one.is_complete_copy(3)
    assert seen(copying, members_for=3, changes=[following]).is_complete_copy(3)


def test_a_copy_does_not_begin_while_its_source_has_no_primary() -> None:
    found = seen({3: Clone(1, "copying")}, operation=EXPANDING, changes=[member(1, 0, leader=False)])
    assert not started(found)


def test_what_a_copy_begins_as_is_not_known_while_its_source_has_no_primary() -> None:
    copying = {3: Clone(1, "copying")}
    stopped = {"members_for": 3, "operation": EXPANDING, "changes": [member(3, 0, running=False)]}
    there = seen(copying, **stopped)
    assert there.beginnings()[3] == there.wanted_configs[3]
    assert Member("shop", 3, 0) in started(there)
    stopped["changes"] = [member(3, 0, running=False), member(1, 0, leader=False)]
    away = seen(copying, **stopped)
    assert away.beginnings()[3] is None
    assert away.beginnings()[1] is not None
    assert not started(away)


def test_what_a_group_begins_as_that_takes_no_part_only_the_catalogue_tells() -> None:
    stopped = [member(2, 0, running=False), member(3, 0, running=False)]
    blind = replace(seen(members_for=3, catalogue=False, changes=stopped), admitted_before=(1, 2))
    assert [group for group, config in blind.beginnings().items() if config is None] == [3]
    assert started(blind) == {Member("shop", 2, 0)}
    # Of a cluster that is only coming up nobody takes part.
    assert None not in replace(blind, admitted_before=()).beginnings().values()


def test_a_node_that_is_not_fenced_yet_is_started_unless_it_is_a_copy() -> None:
    """To fence it its server has to run, and without that there is no catalogue: else both waited for each other."""
    stopped = [member(3, 0, running=False)]
    blind = replace(
        seen(members_for=3, catalogue=False, changes=stopped), admitted_before=(1, 2), initialised={0: False}
    )
    assert not started(blind)
    assert started(replace(blind, copies=())) == {Member("shop", 3, 0)}
    assert not started(replace(blind, copies=(3,)))
    assert replace(blind, copies=(3,)).beginnings()[3] is None


def test_nothing_is_founded_beside_a_coordinator_that_cannot_be_asked() -> None:
    assert not started(seen(catalogue=False))


def test_a_new_cluster_starts_all_members_at_once_in_this_mode_too() -> None:
    gone = [(group, ordinal) for group in range(4) for ordinal in range(2)]
    found = seen(gone=gone, catalogue=False, initialised=False, members_for=3)
    assert len(started(found)) == 8


def test_a_copy_that_was_given_up_goes_even_while_the_operation_runs() -> None:
    found = seen({3: Clone(1, "undone")}, members_for=3, operation=EXPANDING)
    assert {step.member for step in plan(found) if isinstance(step, p.RemoveMember)} == {
        Member("shop", 3, 0),
        Member("shop", 3, 1),
    }


def removed(found: Observed) -> set[int]:
    return {step.member.group for step in plan(found) if isinstance(step, p.RemoveMember)}


def test_a_segment_is_never_removed_as_a_copy_that_was_given_up() -> None:
    assert removed(seen({3: Clone(1, "undone")}, members_for=3, admitted=3, operation=EXPANDING)) == set()
    assert removed(seen({3: Clone(1, "undone")}, members_for=3, admitted=2, operation=EXPANDING)) == {3}


@pytest.mark.parametrize(
    ("state", "goes"), [("copying", set()), ("parting", set()), ("undone", {3}), (None, {3})]
)
def test_a_copy_that_is_not_wanted_any_more_goes_only_once_it_was_given_up(
    state: str | None, goes: set[int]
) -> None:
    """Whoever was killed while he made it a segment may commit yet: giving it up waits for his end."""
    found = look(citus(2), members_for=3, cleanup_due=1)
    assert found.catalogue is not None
    clones = {3: Clone(1, state)} if state else {}
    found = replace(found, catalogue=replace(found.catalogue, clones=clones))
    assert removed(found) == goes
    assert p.CleanUp() in plan(found)


def test_a_copy_is_no_group_without_a_primary() -> None:
    found = seen({3: Clone(1, "copying")}, members_for=3, changes=[member(3, 0, leader=False)], gone=[(3, 1)])
    assert find_problems(found) == ["shop-segment-3-1 is absent"]
