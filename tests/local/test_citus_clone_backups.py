"""Backups of a cluster whose segments are split: what is archived under a segment's name is that segment's, of one and
the same history, whatever becomes of the copies that it is made by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.test_citus_clone import MODE, ROWS, scale
from tests.support.citus import citus_home, held_up, is_promoted, needs_citus
from tests.support.contents import make_items
from tests.support.home import Home, wait_for
from tests.support.repositories import assert_sound, await_first_backup, await_point_after, with_backups

pytestmark = needs_citus

SOURCE, NEW = "segment-1", "segment-2"


def declared(home: Home, segments: int) -> str:
    text = with_backups(archive(home).parents[1], standbys=0, engine="citus", segments=segments)
    return text + MODE


def archive(home: Home) -> Path:
    return home.path.parent / "repository" / "shop" / "wal"


@pytest.fixture
def herd() -> Iterator[Home]:
    with citus_home() as home:
        home.up(declared(home, 1), timeout=400)
        with home.connect() as connection:
            make_items(connection, ROWS)
        await_first_backup(home)
        yield home


def files(home: Home, group: str) -> list[str]:
    """What is archived of a group's log."""
    return sorted(path.name for path in archive(home).glob(f"{group}/*/[!.]*"))


def restored(home: Home, point: str, segments: int, rows: int) -> None:
    """A cluster made of a point has so many segments and rows."""
    home.run("restore", "shop", "then", "--point", point, timeout=400)
    assert home.query("SELECT count(*), sum(id)::bigint FROM item", name="then") == [
        (rows, rows * (rows + 1) // 2)
    ]
    assert [group["name"] for group in home.status("then")["groups"][1:]] == [SOURCE, NEW][:segments]
    assert_sound(home, "then")
    home.run("delete", "then", "--purge", "--yes")


def add(home: Home, last: int) -> None:
    with home.connect() as connection:
        connection.execute(
            "INSERT INTO item SELECT g, 'n' FROM generate_series((SELECT max(id) + 1 FROM item), %s) g",
            [last],
        )


def test_a_copy_that_was_promoted_and_thrown_away_leaves_nothing_in_the_way_of_its_successors_backups(
    herd: Home,
) -> None:
    with held_up(herd, SOURCE):
        thread = scale(herd, 2)
        wait_for(lambda: is_promoted(herd, NEW), "the copy is promoted", 200, every=0.2)
        daemon = herd.supervisor()
        assert daemon is not None
        daemon.kill()
        assert is_promoted(herd, NEW)
    # Made anew, and promoted again.
    herd.up(declared(herd, 2), timeout=400)
    thread.join()
    herd.wait_phase("Running", timeout=180)
    add(herd, ROWS + 100)
    after = await_point_after(herd, "")
    archived = files(herd, NEW)
    assert "00000002.history" in archived
    assert all(name.startswith(("00000001", "00000002")) for name in archived), archived
    restored(herd, after["name"], 2, ROWS + 100)
