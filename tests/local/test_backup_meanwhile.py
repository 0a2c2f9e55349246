"""What happens while a backup is made: a group fails over, the cluster grows and shrinks, the supervisor is killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pgherd.backup.records import now
from tests.support.contents import make_items
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    backups,
    condition,
    points,
    with_backups,
)
from tests.support.throttle import Throttle, throttled

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

ROWS = 5_000


@pytest.fixture(scope="module")
def throttle(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Throttle:
    return throttled(tmp_path_factory.mktemp("programs") / "bin")


@pytest.fixture(scope="module")
def home(engine: str, throttle: Throttle) -> Iterator[Home]:
    with temporary_home({"PGHERD_BIN_DIR": str(throttle.directory)}) as home:
        home.up(with_backups(home.path.parent / "repository"), timeout=400)
        with home.connect() as connection:
            make_items(connection, ROWS)
        await_first_backup(home)
        yield home


def copying(home: Home, group: str) -> list[psutil.Process]:
    """Base copies of a group for a backup that are being made."""
    return at_work(home, "pg_basebackup", f"/{group}.partial")


def at_work(home: Home, *marks: str) -> list[psutil.Process]:
    """Processes on the repository with all of this in their command lines."""
    repository = str(home.path.parent / "repository")
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(mark in command for mark in (repository, *marks)):
            found.append(process)
    return found


@contextmanager
def held(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """They stand still as long as the block lasts: however long that takes, no copy comes to its end in it."""
    assert processes
    for each in processes:
        each.suspend()
    try:
        yield
    finally:
        for each in processes:
            with suppress(psutil.Error):
                each.resume()


def begin_backup(home: Home, throttle: Throttle, group: str = "segment-1") -> str:
    """A backup that is copying this group; returns its id."""
    begin_copying(home, throttle, group)
    return str(backups(home)[-1]["id"])


def begin_copying(home: Home, throttle: Throttle, group: str = "segment-1") -> list[psutil.Process]:
    """The processes that have just begun to copy this group for a new backup."""
    throttle.off()
    wait_for(lambda: all(is_over(each) for each in backups(home)), "no other is being made", 240, every=0.5)
    throttle.on()
    home.run("backup", "shop", "--no-wait")
    return list(wait_for(lambda: copying(home, group), f"{group} is being copied", 60))


def is_over(backup: dict[str, Any]) -> bool:
    return backup["phase"] in ("done", "failed")


def await_backup(home: Home, throttle: Throttle, backup: str) -> dict[str, object]:
    throttle.off()

    def ended() -> dict[str, object] | None:
        found = next(each for each in backups(home) if each["id"] == backup)
        return found if is_over(found) else None

    return dict(wait_for(ended, f"backup {backup} ends", 240, every=0.5))


def assert_restorable(home: Home, backup: str, segments: int, tmp_path: Path) -> None:
    """What the backup ends with can be restored, and is what was there."""
    before = home.query("SELECT count(*), sum(id)::bigint FROM item")
    lean = tmp_path / "lean.yaml"
    lean.write_text(declaration(name="any", segments=segments, standbys=0))
    home.run("restore", "shop", "then", "--backup", backup, "-f", str(lean), timeout=400)
    assert home.query("SELECT count(*), sum(id)::bigint FROM item", "then") == before
    assert_sound(home, "then")
    home.run("delete", "then", "--purge", "--yes")


def segments_at_the_end_of(home: Home, backup: str) -> int:
    return next(int(point["groups"]) for point in points(home) if point["backup"] == backup) - 1


def test_a_group_that_fails_over_is_copied_again_from_its_new_primary(
    home: Home, throttle: Throttle, tmp_path: Path
) -> None:
    with held(begin_copying(home, throttle)):
        backup = str(backups(home)[-1]["id"])
        home.fail_over("segment-1")
    done = await_backup(home, throttle, backup)
    assert done["phase"] == "done", done["error"]
    groups = done["groups"]
    assert isinstance(groups, dict)
    assert groups["1"]["timeline"] > groups["2"]["timeline"]
    home.query("INSERT INTO item VALUES (-1, 'after') RETURNING 1")
    home.query("DELETE FROM item WHERE id = -1 RETURNING 1")
    assert_restorable(home, backup, 2, tmp_path)


def test_a_supervisor_that_is_killed_in_the_middle_of_a_copy_carries_the_backup_on(
    home: Home, throttle: Throttle, tmp_path: Path
) -> None:
    backup = begin_backup(home, throttle)
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.kill()
    home.run("start", "shop")
    done = await_backup(home, throttle, backup)
    assert done["phase"] == "done", done["error"]
    assert not list((home.path.parent / "repository" / "shop" / "backups").glob("*/*.partial"))
    assert not copying(home, "segment-1")
    assert_restorable(home, backup, 2, tmp_path)


def test_a_segment_that_joins_in_the_middle_is_part_of_the_backup(
    home: Home, throttle: Throttle, tmp_path: Path
) -> None:
    backup = begin_backup(home, throttle)
    home.run("scale", "shop", "--segments", "3", timeout=400)
    done = await_backup(home, throttle, backup)
    assert done["phase"] == "done", done["error"]
    wait_for(lambda: condition(home, "BackupsHealthy")["status"] == "True", "backups are well", 120, every=1)
    assert_restorable(home, backup, segments_at_the_end_of(home, backup), tmp_path)


def test_a_segment_that_leaves_in_the_middle_does_not_fail_the_backup(
    home: Home, throttle: Throttle, tmp_path: Path
) -> None:
    backup = begin_backup(home, throttle, "segment-3")
    home.run("scale", "shop", "--segments", "2", timeout=400)
    done = await_backup(home, throttle, backup)
    assert done["phase"] == "done", done["error"]
    assert len(home.status()["groups"]) == 3
    assert_restorable(home, backup, segments_at_the_end_of(home, backup), tmp_path)


def test_a_restore_outlives_a_repository_that_drops_for_a_moment(home: Home, throttle: Throttle) -> None:
    """What is being read of it then looks damaged."""
    target = await_point_after(home, now())
    before = home.query("SELECT count(*), sum(id)::bigint FROM item")
    root = home.path.parent / "repository"
    away = root.with_name("unplugged")

    def doing() -> str:
        return str((home.status("later").get("operation") or {}).get("message", ""))

    throttle.on()
    try:
        home.run("restore", "shop", "later", "--point", target["name"], "--no-wait")
        wait_for(lambda: at_work(home, "pg_verifybackup"), "its copies are being read", 120, every=0.2)
        root.rename(away)
        try:
            throttle.off()
            wait_for(
                lambda: f"there is no repository at {root}/shop" in doing(),
                "the status says so",
                60,
                every=0.5,
            )
            assert home.status("later")["phase"] != "Failed"
        finally:
            away.rename(root)
    finally:
        throttle.off()
    home.wait_phase("Running", "later", timeout=300)
    assert home.query("SELECT count(*), sum(id)::bigint FROM item", "later") == before
    assert_sound(home, "later")
    home.run("delete", "later", "--purge", "--yes")
