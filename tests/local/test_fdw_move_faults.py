"""However a move ends (cancelled, failed, killed, a server lost), nothing is lost and nothing is left over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw import move_catalog
from pgherd.engine.fdw.cleanup import clean_up
from pgherd.engine.fdw.move import move_shard_group
from pgherd.errors import Cancelled, Unavailable
from tests.support.move_child import run_killed_at
from tests.support.moves import (
    BEFORE_SWITCH,
    GROUP,
    MOMENTS,
    Control,
    cancel,
    leftovers,
    load,
    make_tables,
    move,
    other_place,
    place_of,
    raising,
    settle,
)
from tests.support.servers import Herd, running_herd

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("faults"), segments=2, shard_count=4) as herd:
        make_tables(herd)
        yield herd


@pytest.fixture(autouse=True)
def nothing_is_left(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(move_catalog, "GRACE", "200 milliseconds")
    yield
    settle(herd)
    assert leftovers(herd) == {}
    assert contents(herd) == (2000, 2001000, 2000, 2001000)


def contents(herd: Herd) -> tuple[int, ...] | None:
    """The rows that were there from the start."""
    with herd.connect() as connection:
        return connection.execute(
            "SELECT (SELECT count(*) FROM kept WHERE id < 0), (SELECT sum(v)::int FROM kept WHERE id < 0),"
            " (SELECT count(*) FROM loose WHERE id < 0), (SELECT sum(v)::int FROM loose WHERE id < 0)"
        ).fetchone()


@pytest.mark.parametrize("moment", BEFORE_SWITCH)
def test_a_cancelled_move_is_undone_at_once(herd: Herd, moment: str) -> None:
    source = place_of(herd)
    with load(herd, writers=2):
        with pytest.raises(Cancelled):
            move(herd, Control(**{moment.replace("-", "_"): cancel}))
        assert place_of(herd) == source
        settle(herd, 1)
        assert leftovers(herd) == {}


@pytest.mark.parametrize("moment", [m for m in MOMENTS if m not in BEFORE_SWITCH])
def test_cancelling_comes_too_late_once_the_placement_has_switched(herd: Herd, moment: str) -> None:
    with load(herd, writers=2):
        move(herd, Control(**{moment.replace("-", "_"): cancel}))


@pytest.mark.parametrize("moment", ["created", "subscribed", "attached"])
def test_a_move_that_fails_is_undone_and_can_be_made_again(herd: Herd, moment: str) -> None:
    with load(herd, writers=2):
        with pytest.raises(ZeroDivisionError):
            move(herd, Control(**{moment.replace("-", "_"): raising(ZeroDivisionError())}))
        move(herd)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_move_whose_process_is_killed_is_undone_or_finished(
    herd: Herd, moment: str, tmp_path: Path
) -> None:
    source, target = place_of(herd), other_place(herd)
    with load(herd, writers=2):
        run_killed_at(herd, GROUP, target, moment, tmp_path)
        settle(herd)
        assert leftovers(herd) == {}
        assert place_of(herd) == (source if moment in BEFORE_SWITCH else target)
        move(herd)


@pytest.mark.parametrize("moment", ["copied", "attached"])
def test_a_blocking_move_that_fails_is_undone(herd: Herd, moment: str) -> None:
    with load(herd, writers=2), pytest.raises(ZeroDivisionError):
        move(herd, Control(**{moment: raising(ZeroDivisionError())}), blocking=True)


@pytest.mark.parametrize("moment", ["created", "copied", "subscribed", "attached", "switched"])
@pytest.mark.parametrize("which", ["source", "target", "coordinator"])
def test_a_server_that_crashes_during_a_move_costs_only_the_move(herd: Herd, which: str, moment: str) -> None:
    source, target = place_of(herd), other_place(herd)
    victim = {"source": source, "target": target, "coordinator": 0}[which]

    def crash() -> None:
        herd.kill9(victim)

    with load(herd, writers=3, readers=1, faults=True) as running:
        with contextlib.suppress(Unavailable):
            move_shard_group(herd.databases, 1, GROUP, target, Control(**{moment: crash}))
        herd.start(victim)
        settle(herd)
        assert leftovers(herd) == {}
        move_again(herd, target)
        before = running.acknowledged
        deadline = time.monotonic() + 20
        while running.acknowledged < before + 20:
            assert time.monotonic() < deadline, "writers do not come back"
            time.sleep(0.02)


def move_again(herd: Herd, target: int) -> None:
    """As an operation does: until it works."""
    for attempt in range(20):
        try:
            move_shard_group(herd.databases, 1, GROUP, target, Control())
            break
        except Unavailable:
            assert attempt < 19
            time.sleep(0.2)
    assert place_of(herd) == target


def test_records_of_a_server_that_is_away_stay_until_it_is_back(herd: Herd) -> None:
    source = place_of(herd)
    move(herd, Control(switched=lambda: herd.kill9(source)))
    assert clean_up(herd.databases) > 0
    herd.start(source)
    settle(herd)


def test_a_slot_that_a_former_primary_still_has_is_found(herd: Herd) -> None:
    """Another server stands in for the standby that was the primary when the slot was made."""
    source, target = place_of(herd), other_place(herd)
    with herd.superuser(target) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('pgherd_move_4711', 'pgoutput')")
    with herd.superuser() as desk:
        desk.execute(
            "INSERT INTO pgherd.cleanup (operation_id, group_id, kind, name, detail) VALUES (1, %s, 'slot',"
            ' \'pgherd_move_4711\', \'{"move": 4711, "colocation": 1, "index": 0}\')',
            [source],
        )
    addresses = {g: list(endpoints) for g, endpoints in herd.addresses().items()}
    addresses[source] += addresses[target]
    assert clean_up(replace(herd.databases, addresses=lambda: addresses)) == 0


def test_records_of_a_segment_that_is_gone_for_good_go_too(herd: Herd) -> None:
    with herd.superuser() as desk:
        desk.execute(
            "INSERT INTO pgherd.cleanup (operation_id, group_id, kind, name, detail) VALUES (1, 9, 'slot',"
            ' \'pgherd_move_4712\', \'{"move": 4712, "colocation": 1, "index": 0}\')'
        )
    assert clean_up(herd.databases) == 0


def test_membership_that_does_not_agree_with_the_placement_is_put_right(herd: Herd) -> None:
    home = place_of(herd)
    with herd.connect(home) as connection:
        row = connection.execute(
            "SELECT c.relname::text FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid"
            " WHERE i.inhparent = 'kept'::regclass ORDER BY 1 LIMIT 1"
        ).fetchone()
        assert row is not None
        connection.execute(f"ALTER TABLE kept DETACH PARTITION pgherd_shards.{row[0]}".encode())
    settle(herd)
    assert leftovers(herd) == {}


def test_a_leftover_of_an_earlier_move_is_removed_before_the_shard_comes_back(herd: Herd) -> None:
    with herd.connect(autocommit=False) as reader:
        cursor = psycopg.ServerCursor(reader, "slow")
        cursor.execute("SELECT id FROM kept")
        cursor.fetchone()
        home = place_of(herd)
        move(herd)
        waiting = Control(waiting=reader.rollback)
        move(herd, waiting, target=home)
        assert any("former move" in message for message in waiting.messages)


def test_two_groups_move_at_the_same_time(herd: Herd) -> None:
    def other() -> None:
        group = ShardGroupId(1, 2)
        move(herd, group=group)

    with load(herd, writers=3):
        move(herd, Control(copied=other))
