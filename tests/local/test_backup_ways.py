"""A restore that fails goes back, or if there is nothing to go back to, on: it is never stuck between its data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.backup.records import now
from pgherd.backup.wal import SEGMENT_BYTES, parse_lsn
from tests.support.engines import engine
from tests.support.home import Home, temporary_home, wait_for
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    condition,
    with_backups,
)

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

ROWS = 1000


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", segments=1, standbys=0), timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute(f"INSERT INTO item SELECT generate_series(1, {ROWS})")
        await_first_backup(home)
        yield home


def count(home: Home, name: str = "shop") -> int:
    return int(home.query("SELECT count(*) FROM item", name)[0][0])


def mortal(home: Home, tmp_path: Path, step: str) -> Path:
    """The supervisor dies once at this step; returns where that is written down."""
    log = tmp_path / "crashes"
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(20)
    Home(home.path, {"PGHERD_CRASH_AT": step, "PGHERD_CRASH_LOG": str(log)}).run("start", "shop")
    return log


def doing(home: Home, name: str) -> str:
    return str((home.status(name)["operation"] or {}).get("message", ""))


def test_a_new_cluster_keeps_its_data_while_something_is_in_the_way_of_their_place(
    home: Home, tmp_path: Path
) -> None:
    target = await_point_after(home, now())
    log = mortal(home, tmp_path, "restore:settled")
    home.run("restore", "shop", "again", "--point", target["name"], "--no-wait")
    wait_for(log.exists, "the supervisor died where all groups were settled", 120)
    in_the_way = home.path / "again" / "members" / "again-segment-1-0" / "data" / "of somebody"
    in_the_way.mkdir(parents=True)
    home.run("start", "again", "--no-wait")
    wait_for(
        lambda: "could not put" in doing(home, "again"), "the status says what is in the way", 90, every=1
    )
    assert home.status("again")["operation"]["phase"] == "placing"
    assert (in_the_way.parents[1] / "from-backup").is_dir()
    shutil.rmtree(in_the_way.parent)
    home.wait_phase("Running", "again", timeout=120)
    assert count(home, "again") == ROWS
    assert_sound(home, "again")
    home.run("delete", "again", "--purge", "--yes")


def test_a_restore_in_place_whose_old_data_were_removed_goes_on_and_says_so(
    home: Home, tmp_path: Path
) -> None:
    target = await_point_after(home, now())
    home.query("DELETE FROM item RETURNING 1")
    at = target["lsns"]["1"]
    number = (parse_lsn(at["lsn"]) - 1) // SEGMENT_BYTES
    logs = home.path.parent / "repository" / "shop" / "wal" / "segment-1"
    name = f"{at['timeline']:08X}{number >> 8:08X}{number & 0xFF:08X}"
    damaged = next(logs.glob(f"*/{name}"))
    content = damaged.read_bytes()
    log = mortal(home, tmp_path, "restore:copied")
    home.run("restore", "shop", "--in-place", "--yes", "--point", target["name"], "--no-wait")
    wait_for(log.exists, "the supervisor died where all was copied", 120)
    damaged.write_bytes(bytes(len(content)))
    shutil.rmtree(home.path / "shop" / "before-restore")
    home.run("start", "shop", "--no-wait")
    told = wait_for(
        lambda: (found := condition(home, "RestoredInPlace")).get("reason") == "NoWayBack" and found,
        "it is told that there is no way back",
        120,
        every=1,
    )
    assert "so it can't be taken back (the log of segment-1 does not lead to" in told["message"]
    wait_for(lambda: re.search("try [2-9] ended so", doing(home, "shop")), "it is tried again", 300, every=1)
    damaged.write_bytes(content)
    home.wait_phase("Running", timeout=300)
    assert count(home) == ROWS
    assert_sound(home, "shop")
    assert not condition(home, "RestoredInPlace"), "nothing is kept"
    await_point_after(home, now())
