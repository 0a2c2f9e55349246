"""Which move begins next, and whether one may begin now."""

from __future__ import annotations

from datetime import datetime

import pytest

from pgherd.engine.base import ShardGroupId
from pgherd.engine.citus.move import alone_in
from pgherd.model.spec import ExpansionSpec
from pgherd.operations.journal import Step
from pgherd.operations.moves import next_move, why_not_now
from pgherd.operations.runner import crash_points


def step(number: int, source: int, target: int, colocation: int = 1) -> Step:
    detail = {"source": source, "target": target, "colocation": colocation, "index": number}
    return Step(number, "move", detail, "pending", "", 0)


def expansion(**fields: object) -> ExpansionSpec:
    return ExpansionSpec.model_validate(fields)


NOON, NIGHT, DAWN = datetime(2026, 5, 1, 12), datetime(2026, 5, 1, 23, 30), datetime(2026, 5, 1, 6)
NIGHTLY = {"start": "22:00", "end": "06:00"}


def test_moves_may_begin_at_any_time_by_default() -> None:
    assert why_not_now(expansion(), NOON) is None


def test_paused_says_how_to_resume() -> None:
    assert "resume" in (why_not_now(expansion(paused=True), NOON) or "")


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        (NOON, False),
        (NIGHT, True),
        (datetime(2026, 5, 1, 5, 59), True),
        (DAWN, False),
        (datetime(2026, 5, 1, 22), True),
    ],
)
def test_a_window_may_span_midnight(now: datetime, allowed: bool) -> None:
    assert (why_not_now(expansion(window=NIGHTLY), now) is None) is allowed


def test_outside_the_window_it_says_when_it_goes_on() -> None:
    assert (why_not_now(expansion(window=NIGHTLY), NOON) or "").endswith("goes on at 22:00")


def test_moves_that_share_no_segment_go_together() -> None:
    waiting = [step(1, 1, 4), step(2, 2, 3), step(3, 2, 4)]
    assert next_move(waiting, [step(0, 1, 3)]) == waiting[2]


def test_rather_a_shared_segment_than_nothing_to_do() -> None:
    waiting = [step(1, 1, 3), step(2, 2, 3)]
    assert next_move(waiting, [step(0, 1, 3)]) == waiting[0]


def test_no_move_waits() -> None:
    assert next_move([], []) is None


def test_an_old_citus_moves_one_shard_group_of_a_colocation_at_a_time() -> None:
    waiting, running = [step(1, 2, 4), step(2, 2, 4, colocation=2)], [step(0, 1, 3)]
    assert next_move(waiting, running, alone_in("14.0-1")) == waiting[0]
    assert next_move(waiting, running, alone_in("13.2-1")) == waiting[0]
    assert next_move(waiting, running, alone_in("13.0-1")) == waiting[1]
    assert next_move(waiting[:1], running, alone_in("13.1-1")) is None


def test_tables_of_one_shard_may_always_move_together() -> None:
    alone = alone_in("13.0-1")
    assert alone(ShardGroupId(0, 5)) != alone(ShardGroupId(0, 6))


@pytest.mark.parametrize("kind", ["expand", "shrink", "rebalance"])
def test_every_moment_of_an_operation_has_a_name_of_its_own(kind: str) -> None:
    names = crash_points(kind)
    assert len(names) == len(set(names))
    assert all(name.startswith(f"{kind}:") for name in names)
    assert f"{kind}:move:attached" in names
