"""A repository that is full, a log that waits too long, points that are older than what is kept."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd.backup.records import now
from pgherd.backup.wal import parse_lsn
from tests.support.disks import fill
from tests.support.engines import engine
from tests.support.home import Home, temporary_home, wait_for
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    backups,
    condition,
    points,
    restorable,
    with_backups,
)

pytestmark = [
    pytest.mark.local,
    pytest.mark.usefixtures("engine"),
    pytest.mark.skipif(
        os.geteuid() != 0, reason="a file system of limited size is mounted, which needs root"
    ),
]
__all__ = ["engine"]

LIMIT_MIB = 64
SHAPE: dict[str, Any] = {"segments": 1, "standbys": 0, "shards": 2}
KEPT = f", retention: {{full: 1, days: 0}}, walLimit: {LIMIT_MIB}Mi"


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system of its own."""
    path = Path(tempfile.mkdtemp(prefix="herd-disk-"))
    path.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()


@pytest.fixture(scope="module")
def disk(engine: str) -> Iterator[Path]:
    with small_disk("700M") as path:
        yield path


@pytest.fixture(scope="module")
def home(engine: str, disk: Path) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(disk / "repository", extra=f"{KEPT}, whenFull: drop", **SHAPE), timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute("INSERT INTO item SELECT g, 'first' FROM generate_series(1, 1000) g")
        await_first_backup(home)
        yield home


def segment(home: Home) -> psycopg.Connection[tuple[object, ...]]:
    from pgherd.engine.registry import make_engine
    from pgherd.platform.local.platform import LocalPlatform
    from pgherd.reconcile import observe

    return observe.connect(LocalPlatform(home.path), "shop", make_engine).databases.connect(1)


def grow_log(home: Home, files: int) -> None:
    with segment(home) as connection:
        for _ in range(files):
            connection.execute("SELECT pg_logical_emit_message(false, 'pgherd-test', repeat('x', 1000))")
            connection.execute("SELECT pg_switch_wal()")


def well(home: Home) -> bool:
    return str(condition(home, "BackupsHealthy")["status"]) == "True"


def test_a_point_that_is_older_than_what_is_kept_is_refused_with_the_range_there_is(home: Home) -> None:
    written = now()
    home.query("INSERT INTO item VALUES (-1, 'old') RETURNING 1")
    old = await_point_after(home, written)
    home.run("backup", "shop", timeout=300)
    wait_for(
        lambda: old["name"] not in {point["name"] for point in points(home)}, "it is let go", 60, every=0.5
    )
    known = restorable(home)
    for option, value in (("--point", old["name"]), ("--time", old["time"])):
        done = home.run("restore", "shop", "x", option, value, check=False)
        assert done.returncode == 2
        assert known[0]["name"] in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert len(backups(home)) == 1
    home.query("DELETE FROM item WHERE id = -1 RETURNING 1")


def test_a_full_repository_is_told_and_clears_by_itself(home: Home, disk: Path) -> None:
    wait_for(lambda: well(home), "all is well before", 90, every=1)
    ballast = fill(disk)
    try:
        home.query("INSERT INTO item VALUES (-2, 'while it is full') RETURNING 1")
        grow_log(home, 1)
        told = wait_for(
            lambda: not well(home) and condition(home, "BackupsHealthy"), "it is told", 90, every=0.5
        )
        assert "no space left" in told["message"].lower() or "can't archive" in told["message"]
        assert home.status()["phase"] == "Running"
        done = home.run("backup", "shop", check=False, timeout=300)
        assert done.returncode == 1, done.stdout
    finally:
        ballast.unlink()
    wait_for(lambda: well(home), "it is well again by itself, whatever failed meanwhile", 300, every=1)
    written = now()
    home.query("DELETE FROM item WHERE id = -2 RETURNING 1")
    await_point_after(home, written)


def test_past_its_limit_the_log_is_let_go_and_no_point_spans_the_gap(home: Home, disk: Path) -> None:
    written = now()
    home.query("INSERT INTO item VALUES (-3, 'before the gap') RETURNING 1")
    await_point_after(home, written)
    known = {backup["id"] for backup in backups(home)}
    root, away = disk / "repository", disk / "unplugged"
    root.rename(away)
    gap = now()
    try:
        home.query("INSERT INTO item VALUES (-4, 'in the gap') RETURNING 1")
        grow_log(home, 2 + LIMIT_MIB // 16)
        told = wait_for(
            lambda: (
                "lets its log go unarchived" in (text := condition(home, "BackupsHealthy")["message"])
                and text
            ),
            "it is told that the log is let go",
            180,
            every=1,
        )
        assert "segment-1" in told
        assert "as whenFull says" in told
        assert home.status()["phase"] == "Running"
    finally:
        away.rename(root)
    grow_log(home, 1)
    wait_for(
        lambda: any(each["id"] not in known and each["phase"] == "done" for each in backups(home)),
        "a new copy is made by itself",
        240,
        every=1,
    )
    wait_for(lambda: well(home), "it is well again by itself", 120, every=1)
    written = now()
    home.query("INSERT INTO item VALUES (-5, 'after the gap') RETURNING 1")
    after = await_point_after(home, written)
    made = [each for each in backups(home) if each["id"] not in known and each["phase"] == "done"]
    copied = [parse_lsn(each["groups"]["1"]["stopLsn"]) for each in made]
    offered = [parse_lsn(point["lsns"]["1"]["lsn"]) for point in restorable(home) if point["time"] > gap]
    assert offered
    assert all(lsn >= min(copied) for lsn in offered), (copied, offered)
    home.run("restore", "shop", "then", "--point", after["name"], timeout=400)
    assert home.query("SELECT id FROM item WHERE id < 0 ORDER BY 1", "then") == [(-5,), (-4,), (-3,)]
    assert_sound(home, "then")
    home.run("delete", "then", "--purge", "--yes")


def test_a_log_that_is_kept_waits_for_the_repository(home: Home, disk: Path) -> None:
    """The other policy, and the last of this file."""
    home.up(with_backups(disk / "repository", extra=f"{KEPT}, whenFull: keep", **SHAPE), timeout=300)
    root, away = disk / "repository", disk / "unplugged"
    root.rename(away)
    try:
        grow_log(home, 2 + LIMIT_MIB // 16)
        wait_for(
            lambda: "more than walLimit" in condition(home, "BackupsHealthy")["message"],
            "it is told that much waits",
            120,
            every=1,
        )
        home.query("INSERT INTO item VALUES (-6, 'all the same') RETURNING 1")
    finally:
        away.rename(root)
    wait_for(lambda: well(home), "it is well again by itself", 180, every=1)
    written = now()
    home.query("INSERT INTO item VALUES (-7, 'and on') RETURNING 1")
    assert await_point_after(home, written)["restorable"]
    assert not home.status()["backups"]["gaps"]
