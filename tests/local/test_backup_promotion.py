"""A power cut in the moment in which a server that was restored leaves recovery."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.backup.records import now
from tests.support.home import Home, temporary_home, wait_for
from tests.support.repositories import assert_sound, await_first_backup, await_point_after, with_backups

pytestmark = pytest.mark.local

HISTORY = "00000001.history"
"""the first timeline has none: nobody asks for it but who has just left that timeline"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
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


def test_no_row_of_a_later_time_gets_in(home: Home) -> None:
    point = await_point_after(home, now())
    with home.connect() as connection:
        connection.execute("INSERT INTO item SELECT generate_series(101, 200)")
    await_point_after(home, now())
    data = home.path / "then" / "members" / "then-segment-1-0" / "from-backup"
    pipe = log_of_segment(home) / HISTORY
    home.run("restore", "shop", "then", "--point", point["name"], "--no-wait")
    wait_for((data / "recovery.signal").exists, "the copy is there", 120, every=0.01)
    # PostgreSQL removes recovery.signal, asks for the history of the timeline that it leaves, and only then notes down
    # that it has left recovery. Whoever reads from this pipe waits.
    os.mkfifo(pipe)
    try:
        wait_for(lambda: home.running(HISTORY), "the server asks for the history", 120)
        assert not (data / "recovery.signal").exists()
        home.kill_all()
    finally:
        pipe.unlink()
    home.run("start", "shop", timeout=200)
    home.wait_phase("Running", "then", timeout=200)
    assert home.query("SELECT max(id), count(*) FROM item", "then") == [(100, 100)]
    assert home.query("SELECT max(id), count(*) FROM item") == [(200, 200)]
    assert_sound(home, "then")
