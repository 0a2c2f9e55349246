"""Expand, shrink and rebalance: they end as declared, wherever they were stopped, killed, paused or called off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw import move_catalog
from pgherd.engine.fdw.move import move_shard_group
from pgherd.errors import BadInput
from pgherd.operations import moves, store
from pgherd.operations.rebalance import plan_rebalance
from pgherd.operations.runner import crash_points
from tests.support.moves import Control, leftovers, load, make_tables, settle
from tests.support.operations import World, background, per_segment, run_killed_at, steps
from tests.support.servers import Herd, running_herd

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("operations"), segments=2, shard_count=8) as herd:
        make_tables(herd)
        for _ in range(2):
            herd.add_segment(admit=False)
        yield herd


@pytest.fixture
def world(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Two segments, evenly filled; they are so again afterwards, and nothing is left over."""
    monkeypatch.setattr(move_catalog, "GRACE", "200 milliseconds")
    monkeypatch.setattr(moves, "RETRY_FIRST", 0.1)
    world = World(herd, 2)
    yield world
    world.stop.set()  # a failed test may have left its operation running
    _end_what_runs(herd)
    settle(herd)
    assert leftovers(herd) == {}
    World(herd, 2).scale(2)
    with herd.connect() as connection:
        assert connection.execute("SELECT count(*), sum(v) FROM kept WHERE id < 0").fetchone() == (
            2000,
            2001000,
        )
    assert list(herd.engine.check()) == []


def _end_what_runs(herd: Herd) -> None:
    """Call off an operation that a failed test left: the next test is not to fail for it."""
    left = store.current(herd.databases)
    if left is not None:
        store.request_cancel(herd.databases, left.id)
        World(herd, len(herd.engine.segments())).run(left.id)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def now(herd: Herd) -> dict[str, object]:
    """``status.operation``, or the last one."""
    running, last = store.statuses(herd.databases)
    return running or last or {}


def is_even(herd: Herd) -> bool:
    """Every segment has its share of the eight shard groups, give or take one (bytes count too)."""
    counts = per_segment(herd).values()
    return all(abs(count - 8 / len(counts)) <= 1 for count in counts)


def test_expanding_under_writers_moves_the_fair_share_and_nothing_more(herd: Herd, world: World) -> None:
    world.segments = 4
    with load(herd):
        operation = world.request("expand")
        assert world.run(operation) == "done"
    assert is_even(herd)
    done = now(herd)
    assert (done["phase"], done["movesTotal"], done["movesDone"]) == ("done", 4, 4)
    assert done["bytesDone"] == done["bytesTotal"] != 0
    assert done["message"] == "expanded to 4 segments: 4 shard groups moved"
    assert {step.state for step in steps(herd, operation)} == {"done"}
    assert all(step.message for step in steps(herd, operation))


def test_shrinking_empties_the_last_segments_and_lets_them_go(herd: Herd, world: World) -> None:
    world.scale(4)
    world.segments = 3
    with load(herd):
        assert world.run(world.request("shrink")) == "done"
    assert is_even(herd)
    assert list(herd.engine.segments()) == [1, 2, 3]


def test_a_rebalance_evens_out_and_its_plan_can_be_seen_before(herd: Herd, world: World) -> None:
    for index in range(8):
        move_shard_group(herd.databases, 1, ShardGroupId(1, index), 2, Control())
    assert per_segment(herd) == {1: 0, 2: 8}
    assert len(plan_rebalance(herd.engine)) == 4
    assert world.run(world.request("rebalance")) == "done"
    assert is_even(herd)
    assert plan_rebalance(herd.engine) == []


@pytest.mark.parametrize("kind", ["expand", "shrink"])
def test_killed_at_every_step_it_goes_on_where_it_was(
    herd: Herd, world: World, kind: str, tmp_path: Path
) -> None:
    if kind == "shrink":
        world.scale(4)
    world.segments = {"expand": 4, "shrink": 2}[kind]
    operation = world.request(kind)
    with load(herd, writers=2):
        reached = run_killed_at(world, operation, crash_points(kind), tmp_path)
    assert sorted(reached) == sorted(crash_points(kind))
    assert now(herd)["phase"] == "done"
    assert is_even(herd)
    settle(herd)
    assert leftovers(herd) == {}


def test_a_cancelled_expansion_ends_and_its_reverse_brings_everything_back(herd: Herd, world: World) -> None:
    world.segments = 4
    world.expansion = {"parallel_moves": 1}
    operation = world.request("expand")
    with load(herd, writers=2):
        thread, phases = background(world, operation)
        wait_until(lambda: any(step.state == "done" for step in steps(herd, operation, "move")))
        store.request_cancel(herd.databases, operation)
        thread.join(60)
        assert phases == ["cancelled"]
        settle(herd)
        assert leftovers(herd) == {}
        assert {step.state for step in steps(herd, operation, "move")} <= {"done", "undone", "skipped"}
        world.scale(2)
    assert is_even(herd)


def test_a_new_wish_supersedes_and_the_next_operation_ends_evenly(herd: Herd, world: World) -> None:
    world.segments = 4
    world.expansion = {"parallel_moves": 1}
    operation = world.request("expand")
    thread, phases = background(world, operation)
    wait_until(lambda: any(step.state == "done" for step in steps(herd, operation, "move")))
    world.segments = 3
    thread.join(60)
    assert phases == ["superseded"]
    assert world.run(world.request("shrink")) == "done"
    assert is_even(herd)


def test_a_shrink_that_is_not_wanted_any_more_is_evened_out(herd: Herd, world: World) -> None:
    world.scale(3)
    world.segments = 2
    world.expansion = {"parallel_moves": 1}
    operation = world.request("shrink")
    thread, phases = background(world, operation)
    wait_until(lambda: any(step.state == "done" for step in steps(herd, operation, "move")))
    world.segments = 3
    thread.join(60)
    assert phases == ["superseded"]
    following = store.current(herd.databases)
    assert following is not None
    assert following.kind == "rebalance"
    assert world.run(following.id) == "done"
    assert is_even(herd)


def test_a_shutdown_leaves_the_operation_to_the_next_process(herd: Herd, world: World) -> None:
    world.segments = 4
    world.expansion = {"parallel_moves": 1}
    operation = world.request("expand")
    thread, _ = background(world, operation)
    wait_until(lambda: any(step.state == "running" for step in steps(herd, operation, "move")))
    world.stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert store.current(herd.databases) is not None
    world.stop.clear()
    assert world.run(operation) == "done"
    assert is_even(herd)


def test_paused_it_begins_no_move_and_says_how_to_go_on(herd: Herd, world: World) -> None:
    world.segments = 3
    world.expansion = {"paused": True}
    thread, phases = background(world, world.request("expand"))
    wait_until(lambda: now(herd).get("phase") == "paused")
    assert "pgherd resume" in str(now(herd)["message"])
    assert now(herd)["movesDone"] == 0
    world.expansion = {"window": {"start": "22:00", "end": "06:00"}}
    world.now = datetime(2026, 1, 1, 12, 0)
    wait_until(lambda: "22:00" in str(now(herd)["message"]))
    world.now = datetime(2026, 1, 1, 23, 0)
    thread.join(60)
    assert phases == ["done"]


def test_a_full_disk_on_the_target_pauses_until_there_is_room(herd: Herd, world: World) -> None:
    world.segments = 3
    world.free = {3: 1000}
    thread, phases = background(world, world.request("expand"))
    wait_until(lambda: now(herd).get("phase") == "paused")
    assert "segment-3 has 0 MiB of disk space left" in str(now(herd)["message"])
    world.free = {}
    thread.join(60)
    assert phases == ["done"]


def test_it_waits_for_the_members_of_a_new_segment(herd: Herd, world: World) -> None:
    world.segments = 3
    world.ready = {1, 2}
    thread, phases = background(world, world.request("expand"))
    wait_until(lambda: "waiting for the members of segment-3" in str(now(herd).get("message")))
    world.ready.add(3)
    thread.join(60)
    assert phases == ["done"]


def test_tables_that_can_not_move_end_it_before_anything_has_started(herd: Herd, world: World) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE papers (id bigint, body json)")
        connection.execute("SELECT create_distributed_table('papers', 'id')")
        try:
            world.segments = 3
            assert world.run(world.request("expand")) == "failed"
            assert "papers has no primary key" in str(now(herd)["error"])
            assert list(herd.engine.segments()) == [1, 2]
            world.expansion = {"mode": "blocking"}
            world.scale(3)
            world.scale(2)
        finally:
            connection.execute("DROP TABLE papers")


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_server_that_is_away_for_a_while_only_delays_it(herd: Herd, world: World, victim: int) -> None:
    world.segments = 4
    world.expansion = {"parallel_moves": 2}
    operation = world.request("expand")
    with load(herd, writers=2, faults=True):
        thread, phases = background(world, operation)
        wait_until(lambda: any(step.state == "running" for step in steps(herd, operation, "move")))
        herd.kill9(victim)
        time.sleep(0.5)  # the time for which it is away
        assert not phases
        herd.start(victim)
        thread.join(60)
        assert phases == ["done"]
    assert is_even(herd)


def test_a_table_that_is_dropped_meanwhile_is_left_out(herd: Herd, world: World) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE fleeting (id uuid PRIMARY KEY)")
        connection.execute("SELECT create_distributed_table('fleeting', 'id')")
        world.segments = 3
        world.expansion = {"paused": True}
        thread, phases = background(world, world.request("expand"))
        wait_until(lambda: now(herd).get("phase") == "paused")
        connection.execute("DROP TABLE fleeting")
        world.expansion = {}
        thread.join(60)
    assert phases == ["done"]


def test_a_table_created_on_a_leaving_segment_leaves_too(herd: Herd, world: World) -> None:
    world.scale(3)
    world.segments = 2
    world.expansion = {"paused": True}
    operation = world.request("shrink")
    thread, phases = background(world, operation)
    wait_until(lambda: now(herd).get("phase") == "paused")
    with herd.connect() as connection:
        connection.execute("CREATE TABLE late (id uuid PRIMARY KEY, n int)")
        connection.execute("SELECT create_distributed_table('late', 'id', colocate_with => 'none')")
        connection.execute("INSERT INTO late SELECT gen_random_uuid(), g FROM generate_series(1, 100) g")
        world.expansion = {}
        thread.join(60)
        assert phases == ["done"]
        assert list(herd.engine.segments()) == [1, 2]
        assert connection.execute("SELECT count(*) FROM late").fetchone() == (100,)
        connection.execute("DROP TABLE late")


def test_what_is_not_known_is_refused(world: World) -> None:
    with pytest.raises(BadInput, match="no operation 4711"):
        world.run(4711)
