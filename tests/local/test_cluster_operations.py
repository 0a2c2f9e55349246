"""Growing and shrinking a whole cluster while everything that can die does."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.support.contents import ROWS, contents, fill, nothing_is_left_over
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.writers import audit, writers

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]


@pytest.fixture(scope="module")
def herd(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(declaration(shards=8))
        fill(home, engine)
        yield home


@pytest.fixture(autouse=True)
def two_segments(herd: Home) -> None:
    """Every test begins with two, whatever the one before it left."""
    if len(herd.status()["groups"]) != 3:
        herd.run("scale", "shop", "--segments", "2")


MOVING = (
    "SELECT detail FROM pgherd.operation_steps s JOIN pgherd.operations o ON o.id = s.operation_id"
    " WHERE o.finished_at IS NULL AND s.kind = 'move' AND s.state = 'running'"
)


def moving(home: Home) -> dict[str, Any]:
    """Wait for a move under way; its source and target. (Moves are over sooner than a connection is made.)"""
    with home.connect() as connection:

        def look() -> Any:
            row = connection.execute(MOVING).fetchone()
            return row[0] if row else None

        return dict(wait_for(look, "a move is under way", 90, every=0.005))


@contextmanager
def held_up(home: Home) -> Iterator[None]:
    """Somebody is writing: as long as that lasts no move of the written table comes to its end (engine fdw)."""
    with home.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE item IN ROW EXCLUSIVE MODE")
        yield


def kill_primary(home: Home, group: str) -> None:
    os.kill(home.postmaster(home.member(group, "primary")["name"]), signal.SIGKILL)


@pytest.mark.parametrize("victim", ["source", "target", "coordinator"])
def test_a_primary_killed_in_the_middle_of_a_move_loses_nothing(herd: Home, victim: str) -> None:
    """Three segments and back, with one kill on the way there."""
    expected = contents(herd)
    with herd.connect() as connection:
        connection.execute("TRUNCATE ledger")
    with writers(herd.connect, 2) as journal:
        herd.run("scale", "shop", "--segments", "3", "--no-wait")
        move = moving(herd)
        kill_primary(herd, "coordinator" if victim == "coordinator" else f"segment-{move[victim]}")
        herd.wait_phase("Running", timeout=180)
        herd.run("scale", "shop", "--segments", "2")
    herd.wait_phase("Running")
    assert contents(herd) == expected
    with herd.connect() as connection:
        audit(connection, journal)
    nothing_is_left_over(herd)


def test_pause_resume_cancel_and_a_changed_mind(herd: Home) -> None:
    expected = contents(herd)
    herd.run("pause", "shop")
    herd.run("scale", "shop", "--segments", "3", "--no-wait")

    def paused() -> bool:
        operation = herd.status()["operation"]
        return operation is not None and operation["phase"] == "paused"

    wait_for(paused, "the operation says that it is paused", 90)
    assert herd.status()["operation"]["movesDone"] == 0
    herd.run("resume", "shop")
    herd.wait_phase("Running", timeout=120)
    assert len(herd.status()["groups"]) == 4
    # A new wish while the operation for the old one still runs.
    with held_up(herd):
        herd.run("scale", "shop", "--segments", "2", "--no-wait")
        moving(herd)
        herd.run("scale", "shop", "--segments", "3", "--no-wait")
    herd.run("scale", "shop", "--segments", "3")
    assert len(herd.wait_phase("Running")["groups"]) == 4
    # Cancelled, the cluster is as it was before.
    with held_up(herd):
        herd.run("scale", "shop", "--segments", "2", "--no-wait")
        moving(herd)
        herd.run("cancel", "shop")
    assert len(herd.wait_phase("Running", timeout=120)["groups"]) == 4
    herd.run("scale", "shop", "--segments", "2")
    assert contents(herd) == expected
    nothing_is_left_over(herd)


def test_ddl_during_an_operation_waits_and_then_succeeds(herd: Home) -> None:
    herd.run("scale", "shop", "--segments", "3", "--no-wait")
    moving(herd)
    with herd.connect() as connection:
        connection.execute("ALTER TABLE item ADD COLUMN extra int DEFAULT 7")
        connection.execute("CREATE INDEX item_note ON item (note)")
        connection.execute("CREATE TABLE later (id bigint PRIMARY KEY)")
        wait_for(lambda: distributed(connection, "later"), "no move is in the way of a new table", 120)
        connection.execute("INSERT INTO later SELECT generate_series(1, 100)")
    herd.wait_phase("Running", timeout=120)
    assert herd.query("SELECT count(*), sum(extra) FROM item") == [(ROWS, 7 * ROWS)]
    assert herd.query("SELECT count(*) FROM later") == [(100,)]
    herd.run("scale", "shop", "--segments", "2")
    nothing_is_left_over(herd)


def distributed(connection: psycopg.Connection[Any], table: str) -> bool:
    """With Citus a table can't join its colocation while a shard of that moves: it is refused at once."""
    try:
        connection.execute("SELECT create_distributed_table(%s, 'id')", [table])
    except psycopg.errors.InternalError as error:
        if "could not acquire the lock required to colocate" not in str(error):
            raise
        return False
    return True


def test_readers_never_wait_for_a_move(herd: Home) -> None:
    """A long query over the whole table neither waits nor is waited for."""
    stop, worst = threading.Event(), [0.0]

    def read() -> None:
        with herd.connect() as connection:
            while not stop.is_set():
                began = time.monotonic()
                row = connection.execute("SELECT count(*) FROM item").fetchone()
                worst[0] = max(worst[0], time.monotonic() - began)
                assert row == (ROWS,)

    reader = threading.Thread(target=read)
    reader.start()
    with herd.connect(autocommit=False) as slow:
        slow.execute(
            "SELECT count(*) FROM item"
        )  # and stays open: its locks last until the end of the transaction
        herd.run("scale", "shop", "--segments", "3", "--no-wait")
        wait_for(lambda: _has_moved(herd), "a move has switched although a reader's transaction is open", 90)
    stop.set()
    reader.join(30)
    herd.wait_phase("Running", timeout=120)
    herd.run("scale", "shop", "--segments", "2")
    assert worst[0] < 5.0, "a reader was blocked"


def _has_moved(home: Home) -> bool:
    status = home.status()
    if status["operation"] is not None:
        return bool(status["operation"]["movesDone"] >= 1)
    return any(group["name"] == "segment-3" and group["shards"] for group in status["groups"])


def test_rebalance_says_what_it_would_do(herd: Home) -> None:
    assert json.loads(herd.run("rebalance", "shop", "--dry-run", "-o", "json").stdout) is not None
    herd.run("rebalance", "shop")
    assert herd.status()["lastOperation"]["kind"] == "rebalance"


def test_a_window_that_is_closed_holds_moves_back(herd: Home) -> None:
    hour = time.localtime().tm_hour
    window = f'{{start: "{(hour + 2) % 24:02d}:00", end: "{(hour + 3) % 24:02d}:00"}}'
    herd.up(declaration(segments=3, shards=8, extra=f"  expansion: {{window: {window}}}\n"), "--no-wait")

    def waits() -> bool:
        operation = herd.status()["operation"]
        return operation is not None and operation["phase"] == "paused" and operation["movesDone"] == 0

    wait_for(waits, "the operation waits for its window", 90)
    herd.up(declaration(segments=3, shards=8))
    assert len(herd.wait_phase("Running")["groups"]) == 4
    herd.up(declaration(segments=2, shards=8, extra="  expansion: {mode: blocking}\n"))
    assert len(herd.wait_phase("Running")["groups"]) == 3
    nothing_is_left_over(herd)
