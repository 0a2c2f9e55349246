"""What a bar shows of copies: how much is done of how much, how fast it goes, and how long it still takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgherd.backup import repair, restoring
from pgherd.backup.amounts import BEFORE, SINCE, Amounts, pace_in
from pgherd.backup.records import COPYING, Backup, pace
from pgherd.cli.render import operation_line
from pgherd.operator import backups as operator
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import fulfilment, status
from pgherd.remote import backups as remote
from pgherd.supervisor import backups as supervisor
from tests.support.backups import backup
from tests.support.platform import cluster

MB = 1_000_000
FAST = "10.0 MB/s, about 30 s left"
"""100 MB of 400 MB in ten seconds, but for the moment that the test takes"""


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stands still while ten seconds are counted."""
    monkeypatch.setattr("pgherd.backup.records.seconds_since", lambda text: round(_since(text)))


def _since(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()


def test_groups_that_have_not_begun_are_taken_for_as_large_as_the_others() -> None:
    amounts = Amounts(range(7))
    assert amounts.sums() == (0, 0), "nobody can tell yet"
    amounts.report(0, 5, 10)
    assert amounts.sums() == (5, 10), "a coordinator says nothing about segments"
    amounts.report(1, 0, 100)
    amounts.report(2, 0, 300)
    assert amounts.sums() == (5, 10 + 400 + 4 * 200)
    amounts.forget(6)
    assert amounts.sums() == (5, 10 + 400 + 3 * 200)
    for group in range(6):
        amounts.finish(group, 50)
    assert amounts.sums() == (10 + 400 + 3 * 50, 10 + 400 + 3 * 50)


def test_a_group_that_is_larger_than_was_thought_is_never_more_than_done() -> None:
    amounts = Amounts([1])
    amounts.report(1, 120, 100)
    assert amounts.sums() == (120, 120)


def test_what_was_copied_before_counts_as_done_and_not_as_speed() -> None:
    amounts = Amounts([0, 1, 2], {0: (300 * MB, 300 * MB)})
    state = amounts.beginning()
    assert pace_in(state) == (None, None), "nothing is copied yet"
    amounts.report(1, 100 * MB, 200 * MB)
    state = {**state, **amounts.told(), SINCE: ago(10)}
    assert (state["bytesDone"], state["bytesTotal"], state[BEFORE]) == (400 * MB, 700 * MB, 300 * MB)
    assert pace_in(state) == (10 * MB, 30)


def test_nobody_can_tell_how_fast_it_goes_before_anything_is_copied() -> None:
    assert pace(None, 5, 10) == (None, None)
    assert pace(ago(1), 0, 10) == (None, None)
    assert pace_in({"bytesDone": 5, "bytesTotal": 10}) == (None, None), "written by a version before"
    assert pace_in({}) == (None, None)


def test_a_clock_that_was_put_back_gives_no_pace() -> None:
    assert pace(ago(-60), 5 * MB, 10 * MB) == (None, None)


def open_backup(**changes: Any) -> Backup:
    amounts: dict[str, Any] = {"bytes_done": 100 * MB, "bytes_total": 400 * MB, "message": COPYING}
    return replace(backup(1, phase="running"), started_at=ago(10), **{**amounts, **changes})


def test_a_backup_tells_mb_s_and_time_left_on_both_platforms() -> None:
    there = remote._as_status("shop", operator.status_of(open_backup()))
    for told in (supervisor._as_status("shop", open_backup()), there):
        assert FAST in operation_line(told["operation"])


@pytest.mark.parametrize(
    "changes", [{"message": "waiting for the groups' logs to be archived"}, {"phase": "done"}]
)
def test_a_backup_that_is_copied_tells_no_time_left_any_more(changes: dict[str, Any]) -> None:
    told = operator.status_of(open_backup(**changes))
    assert (told["bytesPerSecond"], told["etaSeconds"]) == (None, None)
    assert "left" not in operation_line(supervisor._as_status("shop", open_backup(**changes))["operation"])


COPIED = {SINCE: ago(10), BEFORE: 0, "bytesDone": 100 * MB, "bytesTotal": 400 * MB}


def copied() -> dict[str, Any]:
    return {**COPIED, SINCE: ago(10)}


def test_a_restore_or_a_clone_tells_mb_s_and_time_left_while_it_is_copied() -> None:
    state = {"phase": "copying", "steps": [], "startedAt": ago(86400), **copied()}
    assert FAST in operation_line(restoring.operation_status(state))
    state["steps"] = ["copied"]
    assert "left" not in operation_line(restoring.operation_status(state))


def test_a_repair_tells_its_rung_why_and_how_long_it_still_takes(tmp_path: Any) -> None:
    platform = LocalPlatform(tmp_path / "home")
    platform.declare(cluster(engine="fdw", segments=2))
    bench = platform.bench("shop", 1)
    bench.write("wish", repair.new_wish("a", accept=False))
    bench.write("state", {"id": "a", **repair.BEGINNING, **copied()})
    found = restoring.repairs(platform, "shop")[1]
    entry = status._repair(1, found)
    assert (entry["rung"], entry["reason"]) == ("repository", "no member of the group is left to copy from")
    for each in (found, entry):  # as it is asked for here, and through a status
        line = operation_line(fulfilment.repairing("shop", "segment-1", each)["operation"])
        assert FAST in line
        assert line.endswith("no member of the group is left to copy from")
    bench.write("state", {"id": "a", **repair.BEGINNING, **copied(), "phase": "replaying"})
    found = restoring.repairs(platform, "shop")[1]
    assert "MB/s" not in operation_line(fulfilment.repairing("shop", "segment-1", found)["operation"])
