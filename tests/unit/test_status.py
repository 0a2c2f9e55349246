"""What people are told of a cluster in each situation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pgherd.cli.render import drills
from pgherd.model.topology import Member
from pgherd.reconcile.fulfilment import obstacle
from pgherd.reconcile.plan import plan
from pgherd.reconcile.state import MemberState, Observed, Operation
from pgherd.reconcile.status import build, hindered, is_data_lost, is_told, news
from tests.support.looks import cluster, look, member

NOW, LATER = "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:01:00.000+00:00"
LATE = "2026-01-01T00:01:01.000+00:00"
DEAD = "its node node2 does not report any more: bring it back"


def status(seen: Observed, **options: Any) -> dict[str, Any]:
    options.setdefault("now", NOW)
    return build(seen, plan(seen), **options)


def condition(told: dict[str, Any], kind: str) -> dict[str, str]:
    return next(entry for entry in told["conditions"] if entry["type"] == kind)


def test_a_healthy_cluster_is_running_and_ready() -> None:
    told = status(look())
    assert told["phase"] == "Running"
    assert condition(told, "Ready")["status"] == "True"
    assert condition(told, "Degraded")["status"] == "False"


def test_every_member_is_shown_with_its_role_and_address() -> None:
    first = status(look())["groups"][1]
    assert first["name"] == "segment-1"
    assert [m["role"] for m in first["members"]] == ["primary", "standby"]
    assert first["members"][0]["port"] == 7010


def test_a_cluster_that_never_ran_is_being_created() -> None:
    seen = look(gone=[(1, 0), (1, 1)], catalogue=False)
    assert status(seen)["phase"] == "Creating"


def test_a_dead_standby_degrades_but_the_cluster_serves() -> None:
    told = status(look(changes=[member(1, 1, running=False)]), previous={"phase": "Running"})
    assert told["phase"] == "Degraded"
    assert condition(told, "Ready")["status"] == "True"
    assert "shop-segment-1-1 is stopped" in condition(told, "Degraded")["message"]


def test_a_member_that_is_copied_anew_says_from_whom() -> None:
    copied = member(1, 1, data=False, state="creating")
    told = condition(status(look(changes=[copied]), previous={"phase": "Running"}), "Degraded")
    assert "shop-segment-1-1 is creating: base backup from the primary, shop-segment-1-0" in told["message"]
    alone = status(look(changes=[copied], gone=[(1, 0)]), previous={"phase": "Running"})
    assert "base backup" not in condition(alone, "Degraded")["message"], "nobody is there to copy from"


def test_nodes_that_differ_are_a_condition_of_their_own() -> None:
    told = status(replace(look(), unfit=("segment-2 has another version: bring all to one",)))
    assert condition(told, "EngineUnfit")["message"] == "segment-2 has another version: bring all to one"
    assert told["phase"] == "Running"
    assert "EngineUnfit" not in {each["type"] for each in status(look())["conditions"]}


def test_access_rules_that_servers_can_not_read_are_a_condition_and_told_once() -> None:
    seen = replace(look(), unread=("line 1 can't be read: correct it",))
    told = status(seen)
    assert condition(told, "AccessRulesUnread")["message"] == "line 1 can't be read: correct it"
    assert told["phase"] == "Running"
    assert news(seen, status(look())) == [("line 1 can't be read: correct it", True)]
    assert not news(seen, told)
    for unknown in ((), None):
        assert "AccessRulesUnread" not in {
            each["type"] for each in status(replace(look(), unread=unknown))["conditions"]
        }


def test_a_group_without_a_primary_is_not_ready() -> None:
    told = status(look(changes=[member(1, 0, running=False)]), previous={"phase": "Running"})
    assert condition(told, "Ready")["status"] == "False"
    assert "segment-1 has no primary" in condition(told, "Ready")["message"]


def test_a_primary_whose_database_does_not_answer_is_a_problem_of_its_group_alone() -> None:
    seen = look()
    object.__setattr__(seen, "initialised", {0: True, 1: True})
    told = status(seen, previous={"phase": "Running"})
    assert condition(told, "Ready")["status"] == "False"
    assert condition(told, "Degraded")["message"] == "the database of segment-2 does not answer"


def test_whose_volume_somebody_deleted_is_told_before_its_data_are_gone() -> None:
    going = member(1, 0)
    going = MemberState(replace(going.view, doomed="its volume claim data-x is being deleted"), going.patroni)
    told = status(look(changes=[going]), previous={"phase": "Running"})
    says = "shop-segment-1-0 has its data only until it ends (its volume claim data-x is being deleted): "
    assert told["phase"] == "Degraded"
    assert condition(told, "Degraded")["message"].startswith(says)
    stopping = status(look(changes=[going], stopped=True), previous={"phase": "Running"})
    assert (stopping["phase"], condition(stopping, "Degraded")["status"]) == ("Updating", "True")
    assert condition(stopping, "Progressing")["message"].startswith(says), "what the stop waits for"
    assert condition(status(look(changes=[going], deleting=True)), "Degraded")["status"] == "False"


def test_a_size_that_could_not_be_asked_is_not_zero() -> None:
    assert [group["bytes"] for group in status(look())["groups"]] == [0, None, None]
    assert [group["shards"] for group in status(look(catalogue=False))["groups"]] == [0, None, None]
    assert [group["shards"] for group in status(look(admitted=1))["groups"]] == [0, None, 0]


def test_commits_without_a_synchronous_standby_are_not_called_safe() -> None:
    told = status(look(changes=[member(2, 1, sync=False)]), previous={"phase": "Running"})
    assert told["phase"] == "Degraded"
    assert "segment-2 has no synchronous standby" in condition(told, "Degraded")["message"]


def test_what_does_not_answer_is_unknown_never_guessed() -> None:
    silent = look(changes=[member(1, 1, running=False)])
    told = status(silent)["groups"][1]["members"][1]
    assert told["role"] == "unknown"
    assert told["lagBytes"] is None


def test_an_operation_names_the_phase() -> None:
    operation = Operation(1, "shrink", "moving", 1, 1, finished=False)
    assert status(look(operation=operation))["phase"] == "Shrinking"


def test_a_stopped_cluster_is_stopped_only_when_nothing_runs() -> None:
    assert status(look(stopped=True))["phase"] == "Updating"
    down = [member(g, o, running=False) for g in range(3) for o in range(2)]
    stopped = look(stopped=True, changes=down)
    assert status(stopped)["phase"] == "Stopped"
    assert status(replace(stopped, is_being_made=True))["phase"] == "Updating", "it may begin one more"


def on_a_dead_node(state: MemberState) -> MemberState:
    """A member of which nothing is heard any more."""
    return MemberState(replace(state.view, lost=100.0, note=DEAD), None)


@pytest.mark.parametrize(("asked", "phase"), [("stopped", "Updating"), ("deleting", "Deleting")])
def test_what_a_stop_or_a_deletion_waits_for_is_told(asked: str, phase: str) -> None:
    down = [member(g, o, running=False) for g in range(3) for o in range(2) if (g, o) != (1, 1)]
    seen = look(changes=[on_a_dead_node(member(1, 1)), *down], **{asked: True})  # type: ignore[arg-type]
    told = status(seen, previous={"phase": "Running"})
    says = f"shop-segment-1-1 is not known to have ended ({DEAD})"
    assert told["phase"] == phase
    assert (condition(told, "Degraded")["status"], condition(told, "Degraded")["message"]) == ("True", says)
    assert condition(told, "Progressing")["message"] == says
    assert obstacle(told, "") == says, "the command line says it, too"
    healthy = status(look(**{asked: True}))  # type: ignore[arg-type]
    assert condition(healthy, "Degraded")["status"] == "False", "members that are still ending are no problem"


def test_who_is_on_a_node_that_is_silent_is_unknown() -> None:
    told = status(look(changes=[on_a_dead_node(member(1, 1))]), previous={"phase": "Running"})
    assert told["groups"][1]["members"][1]["state"] == "unknown"
    assert f"shop-segment-1-1 is unknown ({DEAD})" in condition(told, "Degraded")["message"]
    answers = member(1, 1)
    seen = look(changes=[replace(answers, view=replace(answers.view, lost=100.0))])
    assert status(seen)["groups"][1]["members"][1]["state"] == "running", "its Patroni says so"


@pytest.mark.parametrize("phase", ["Updating", "Stopped"])
def test_what_does_not_come_back_from_a_change_is_a_fault(phase: str) -> None:
    seen = look(changes=[member(1, 1, running=False)])
    first = status(seen, previous={**status(look()), "phase": phase})
    assert first["phase"] == "Updating"
    later = status(seen, previous=first, now=LATER)
    assert later["phase"] == "Updating"
    late = status(seen, previous=later, now=LATE)
    assert late["phase"] == "Degraded"
    assert status(look(), previous=late)["phase"] == "Running"


def test_each_member_of_a_long_change_has_its_own_time_to_come_back() -> None:
    one, other = (look(changes=[member(group, 1, running=False)]) for group in (1, 2))
    first = status(one, previous={**status(look()), "phase": "Updating"})
    between = {**status(look(), previous=first, now=LATER), "phase": "Updating"}
    assert status(other, previous=between, now=LATE)["phase"] == "Updating"


@pytest.mark.parametrize("phase", ["Updating", "Stopped"])
def test_a_node_that_dies_in_the_middle_of_a_change_is_a_fault_at_once(phase: str) -> None:
    seen = look(changes=[on_a_dead_node(member(1, 1))])
    assert status(seen, previous={"phase": phase})["phase"] == "Degraded"


def test_what_a_restore_in_place_took_away_comes_back_from_its_end_on() -> None:
    down = look(changes=[member(1, 1, running=False)])
    during = replace(down, recovery={"phase": "copying"}, restore={"phase": "copying"})
    told = status(during, previous={**status(look()), "phase": "Running"})
    ended = replace(down, restore={"phase": "done"})
    after = status(ended, previous=status(during, previous=told, now=LATER), now=LATE)
    assert (after["phase"], condition(after, "Degraded")["lastTransitionTime"]) == ("Updating", LATE)
    assert status(ended, previous=after, now="2026-01-01T00:03:00.000+00:00")["phase"] == "Degraded"


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    before = status(look())
    assert condition(status(look(), now=LATER, previous=before), "Ready")["lastTransitionTime"] == NOW
    broken = look(changes=[member(1, 0, running=False)])
    assert condition(status(broken, now=LATER, previous=before), "Ready")["lastTransitionTime"] == LATER


def test_a_member_that_waits_for_a_restart_says_so() -> None:
    told = status(look(changes=[member(1, 0, pending={"max_connections": (1, 2)})]))
    assert told["groups"][1]["members"][0]["pendingRestart"] is True


def test_a_failed_operation_stays_visible() -> None:
    last = Operation(1, "expand", "failed", 4, 1, finished=True, error="no space on segment-3")
    told = status(
        look(cluster(segments=4), members_for=4, admitted=2, last=last), previous={"phase": "Running"}
    )
    assert "no space on segment-3" in condition(told, "OperationFailed")["message"]


def test_members_not_there_yet_are_absent() -> None:
    told = status(look(gone=[(1, 1)]))
    names = {m["name"]: m["state"] for m in told["groups"][1]["members"]}
    assert names[Member("shop", 1, 1).name] == "absent"


def test_an_operation_is_not_forgotten_while_the_coordinator_can_not_be_asked() -> None:
    before = {"phase": "Expanding", "operation": {"kind": "expand"}, "lastOperation": None}
    assert status(look(catalogue=False), previous=before)["operation"] == {"kind": "expand"}
    assert status(look(), previous=before)["operation"] is None


def test_a_look_that_was_hindered_says_so_and_claims_nothing() -> None:
    told = hindered("shop", "the Secret is lost", now=LATER, previous=status(look()))
    assert told["phase"] == "Degraded"
    assert told["observedAt"] == NOW
    assert (condition(told, "Ready")["status"], condition(told, "Degraded")["status"]) == ("Unknown", "True")
    assert condition(told, "Degraded")["message"] == "the Secret is lost"
    assert is_told(told, "the Secret is lost")
    assert not is_told(told, "something else")
    assert not is_told(status(look()), "the Secret is lost")
    assert hindered("shop", "x", now=NOW)["phase"] == "Pending"


def test_a_cluster_that_is_restored_is_being_created_or_updated_never_degraded() -> None:
    seen = replace(look(catalogue=False), recovery={"phase": "copying"}, operation_status={"kind": "restore"})
    assert status(seen)["phase"] == "Creating"
    assert status(seen, previous={"phase": "Creating"})["operation"] == {"kind": "restore"}
    assert status(seen, previous={"phase": "Running", "conditions": []})["phase"] == "Updating"


def test_backups_are_shown_with_what_is_wrong_with_them() -> None:
    assert status(look())["backups"] is None
    well = status(replace(look(), backups={"method": "native", "problems": []}))
    assert condition(well, "BackupsHealthy")["status"] == "True"
    assert well["phase"] == "Running"
    ill = status(replace(look(), backups={"problems": ["segment-1 can't archive x"], "error": "no point"}))
    assert condition(ill, "BackupsHealthy")["status"] == "False"
    assert condition(ill, "BackupsHealthy")["message"] == "segment-1 can't archive x; no point"
    assert ill["phase"] == "Running"


def test_what_is_news_is_told_once() -> None:
    refused = replace(
        look(), declaration=replace(look().declaration, problems=("spec.engine: can't be changed",))
    )
    assert news(refused, status(look())) == [("spec.engine: can't be changed", True)]
    assert news(refused, status(refused)) == []
    assert news(look(), status(refused)) == []


@pytest.mark.parametrize(
    ("phase", "error", "told"),
    [
        ("done", None, ("finished expand to 4 segments", False)),
        ("cancelled", None, ("cancelled expand to 4 segments", False)),
        ("failed", "no space", ("could not expand to 4 segments: no space", True)),
    ],
)
def test_an_operations_end_is_news(phase: str, error: str | None, told: tuple[str, bool]) -> None:
    last = {"id": 3, "kind": "expand", "phase": phase, "toSegments": 4, "error": error}
    seen = replace(look(), last_operation_status=last)
    before = status(replace(look(), last_operation_status={**last, "id": 2}))
    assert news(seen, before) == [told]
    assert news(seen, status(seen)) == []
    assert news(look(catalogue=False), before) == []
    assert news(seen, None) == []  # of an earlier life


def test_data_that_are_gone_are_said_to_be_and_nothing_is_ready() -> None:
    told = status(look(gone=[(1, 0), (1, 1)]))
    assert condition(told, "Ready")["status"] == "False"
    assert condition(told, "DataLost")["message"].startswith("the data of segment-1 are gone")
    assert told["phase"] == "Degraded"
    lost = [group for group in ("coordinator", "segment-1", "segment-2") if is_data_lost(told, group)]
    assert lost == ["segment-1"]
    assert "DataLost" not in {each["type"] for each in status(look())["conditions"]}


def test_what_is_refused_is_told_beside_the_repair_that_there_is() -> None:
    refused = {"id": "b", "reason": "it is being rebuilt already"}
    done = {"id": "a", "phase": "done", "due": False, "reason": "it is whole", "refused": None}
    assert "Repairing" not in {
        each["type"] for each in status(replace(look(), repairs={1: done}))["conditions"]
    }
    for phase in ("done", "placing"):
        told = status(replace(look(), repairs={1: {**done, "phase": phase, "refused": refused}}))
        assert told["repairs"][0]["refused"] == refused
        assert condition(told, "Repairing")["reason"] == "Refused"
        assert condition(told, "Repairing")["message"] == (
            f"segment-1 is {phase}: it is whole; what else is asked for is refused: it is being rebuilt already"
        )


def test_who_took_part_is_remembered_while_nobody_can_tell() -> None:
    assert status(look())["admitted"] == [1, 2]
    for seen in (look(catalogue=False), look(admitted=0)):
        assert status(replace(seen, admitted_before=(1, 2)))["admitted"] == [1, 2]


@pytest.mark.parametrize(
    ("last", "drill", "expected"),
    [
        ({"passed": True, "restorePoint": "p"}, None, ("True", "DrillPassed")),
        ({"passed": True, "restorePoint": "p"}, {"overdue": False}, ("True", "DrillPassed")),
        ({"passed": True, "restorePoint": "p"}, {"overdue": True}, ("False", "DrillOverdue")),
        ({"passed": False, "problems": ["x is damaged"]}, {"overdue": False}, ("False", "DrillFailed")),
        (None, {"overdue": False}, ("Unknown", "NoDrillYet")),
        (None, {"overdue": True}, ("False", "DrillOverdue")),
    ],
)
def test_whether_a_restore_is_proven_is_told(
    last: dict[str, Any] | None, drill: dict[str, Any] | None, expected: tuple[str, str]
) -> None:
    planned = [{"drill": drill and {"dueAt": "2026-01-01T00:00:00+00:00", **drill}}]
    told = status(replace(look(), backups={"lastDrill": last, "schedules": planned, "problems": []}))
    found = condition(told, "RestoreProven")
    assert (found["status"], found["reason"]) == expected


def test_a_proof_says_which_of_its_checks_were_not_made() -> None:
    checks = [
        {"check": "pages", "done": False, "why": "data checksums are off (segment-1)"},
        {"check": "rows", "done": False, "why": "no tables are named"},
        {"check": "copies", "done": True, "why": ""},
    ]
    last = {"passed": True, "restorePoint": "p", "finishedAt": "t", "checks": checks}
    told = status(replace(look(), backups={"lastDrill": last, "schedules": [], "problems": []}))
    found = condition(told, "RestoreProven")
    left = "not checked: page checksums (data checksums are off (segment-1))"
    assert (found["status"], found["message"]) == ("True", f"p was restored and is sound (t); {left}")
    row = {**last, "seconds": 1.0, "problems": []}
    assert list(drills([row]).columns[-1].cells) == [f"sound; {left}"]


def test_while_a_repository_is_silent_a_drill_that_it_holds_up_becomes_overdue() -> None:
    drill = {
        "dueAt": "2025-12-31T00:00:00+00:00",
        "overdueAt": "2026-01-01T00:00:30+00:00",
        "overdue": False,
    }
    seen = {"lastDrill": {"passed": True, "restorePoint": "p"}, "schedules": [{"drill": drill}]}
    silent = {"problems": ["/mnt/backups/shop does not answer"]}
    before = status(replace(look(), backups={**seen, "problems": []}))
    for backups in ({**seen, **silent}, silent):
        now = status(replace(look(), backups=backups), previous=before)
        assert condition(now, "RestoreProven")["status"] == "True"
        late = status(replace(look(), backups=backups), now=LATER, previous=now)
        told = condition(late, "RestoreProven")
        assert (told["status"], told["reason"]) == ("False", "DrillOverdue")


def test_where_no_drills_are_made_nothing_is_said_of_them() -> None:
    told = status(replace(look(), backups={"schedules": [{"drill": None}], "problems": []}))
    assert "RestoreProven" not in {entry["type"] for entry in told["conditions"]}
