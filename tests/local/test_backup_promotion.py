"""A power cut in the moment in which a server that was restored leaves recovery."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgherd.backup.records import now
from tests.support.control_file import IN_RECOVERY, SHUTTING_DOWN, set_state
from tests.support.engines import engine
from tests.support.home import Home, temporary_home, wait_for
from tests.support.repositories import assert_sound, await_first_backup, await_point_after, with_backups

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

HISTORY = "00000001.history"
"""the first timeline has none: nobody asks for it but who has just left that timeline"""


@pytest.fixture
def home(engine: str) -> Iterator[Home]:
    """On its first timeline: one for each test."""
    with temporary_home() as home:
        repository = with_backups(home.path.parent / "repository", segments=1, standbys=0, shards=2)
        home.up(repository, timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE item (id int PRIMARY KEY)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute("INSERT INTO item SELECT generate_series(1, 100)")
        await_first_backup(home)
        yield home


def log_of_segment(home: Home) -> Path:
    [folder] = (home.path.parent / "repository" / "shop" / "wal" / "segment-1").iterdir()
    return folder


@contextmanager
def power_cut_when_it_leaves_recovery(home: Home, data: Path) -> Iterator[None]:
    """At the end of the block: PostgreSQL has removed recovery.signal, asks for the history of the timeline that it
    leaves, and only then would note down that it has left recovery."""
    log = log_of_segment(home)
    # Whoever reads from a pipe waits.
    os.mkfifo(log / HISTORY)
    try:
        yield
        wait_for(lambda: home.running(f"{log} {HISTORY}"), "the server asks for the history", 180)
        assert (data / "PG_VERSION").exists()
        assert not (data / "recovery.signal").exists()
        home.kill_all()
    finally:
        (log / HISTORY).unlink()


def test_no_row_of_a_later_time_gets_in(home: Home) -> None:
    point = await_point_after(home, now())
    with home.connect() as connection:
        connection.execute("INSERT INTO item SELECT generate_series(101, 200)")
    await_point_after(home, now())
    data = home.path / "then" / "members" / "then-segment-1-0" / "from-backup"
    with power_cut_when_it_leaves_recovery(home, data):
        home.run("restore", "shop", "then", "--point", point["name"], "--no-wait")
    home.run("start", "shop", timeout=200)
    home.wait_phase("Running", "then", timeout=200)
    assert home.query("SELECT max(id), count(*) FROM item", "then") == [(100, 100)]
    assert home.query("SELECT max(id), count(*) FROM item") == [(200, 200)]
    assert_sound(home, "then")


@pytest.mark.parametrize("state", [IN_RECOVERY, SHUTTING_DOWN], ids=["before its last checkpoint", "in it"])
def test_a_repair_goes_on_where_it_was(home: Home, state: int) -> None:
    home.query("INSERT INTO item SELECT generate_series(101, 200) RETURNING 1")
    home.run("stop", "shop", timeout=120)
    wait_for(lambda: home.status()["phase"] == "Stopped", "it is stopped", 60, every=0.5)
    shutil.rmtree(home.path / "shop" / "members" / "shop-segment-1-0" / "data")
    data = home.path / "shop" / "repairs" / "segment-1" / "data"
    with power_cut_when_it_leaves_recovery(home, data):
        home.run("start", "shop", "--no-wait")
        home.run("repair", "shop", "--group", "segment-1", "--no-wait")
    set_state(data, state)
    home.run("start", "shop", timeout=300)
    home.wait_phase("Running", timeout=200)
    assert home.query("SELECT max(id), count(*) FROM item") == [(200, 200)]
    assert home.status()["repairs"][0]["rung"] == "repository"
    home.run("repair", "shop", "--group", "segment-1", "--confirm")
    assert_sound(home, "shop")
