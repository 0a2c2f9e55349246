"""Backups and restores when things go wrong: killed at every step, a repository that is away, damaged, or another's."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup.gaps import file_name
from pgherd.backup.records import now
from pgherd.backup.wal import SEGMENT_BYTES, parse_lsn
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
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

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

ROWS = 20_000
STEPS = (
    *("point:made", "point:remembered"),
    *(
        "backup:running",
        "backup:group:copied",
        "backup:group:renamed",
        "backup:group:recorded",
        "backup:point",
    ),
    *("restore:planned", "restore:pinned", "restore:copied:1", "restore:copied", "restore:reached:2"),
    *("restore:reached", "restore:opened:0", "restore:opened", "restore:settled"),
    *("restore:placed:0", "restore:placed"),
)


def make_items(home: Home) -> None:
    with home.connect() as connection:
        connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text, filler text)")
        connection.execute("SELECT create_distributed_table('item', 'id')")
        connection.execute(
            f"INSERT INTO item SELECT g, 'n' || g, repeat('x', 400) FROM generate_series(1, {ROWS}) g"
        )


def contents(home: Home, name: str = "shop") -> tuple[Any, ...]:
    return home.query("SELECT count(*), sum(id)::bigint, count(DISTINCT note) FROM item", name)[0]


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", standbys=0), timeout=300)
        make_items(home)
        await_first_backup(home)
        await_point_after(home, now()[:10])
        yield home


# what there is


def test_later_backups_hold_what_changed(home: Home) -> None:
    home.query(f"UPDATE item SET note = note || '!' WHERE id <= {ROWS // 100} RETURNING 1")
    home.run("backup", "shop", "--type", "full", timeout=300)
    home.query(f"UPDATE item SET note = note || '!' WHERE id <= {ROWS // 100} RETURNING 1")
    assert "is done (3 groups" in home.run("backup", "shop", "--type", "incremental", timeout=300).stdout
    home.run("backup", "shop", "--type", "differential", timeout=300)
    full, incremental, differential = backups(home)[-3:]
    assert [each["phase"] for each in (full, incremental, differential)] == ["done"] * 3
    assert incremental["bytes"] < full["bytes"] / 3
    assert {group["parent"] for group in incremental["groups"].values()} == {full["id"]}
    assert {group["parent"] for group in differential["groups"].values()} == {full["id"]}


def test_a_chain_of_copies_is_restored_to_the_end_of_its_last_backup(home: Home) -> None:
    home.run("backup", "shop", "--type", "incremental", timeout=300)
    last = backups(home)[-1]
    before = contents(home)
    home.query("DELETE FROM item RETURNING 1")
    home.run("restore", "shop", "chained", "--backup", last["id"], timeout=400)
    assert contents(home, "chained") == before
    home.run("delete", "chained", "--purge", "--yes")
    with home.connect() as connection:
        connection.execute(
            f"INSERT INTO item SELECT g, 'n' || g, repeat('x', 400) FROM generate_series(1, {ROWS}) g"
        )


def test_points_are_in_the_database_too(home: Home) -> None:
    offered = restorable(home)[-1]
    rows = home.query(
        "SELECT group_id, lsn::text, timeline, archived, engine, placement, held_ms, created_at"
        f" FROM pgherd.restore_points WHERE name = '{offered['name']}'"
    )
    assert {str(row[0]): {"lsn": row[1], "timeline": row[2]} for row in rows} == offered["lsns"]
    assert all(row[3] for row in rows)
    same = (
        offered["engine"],
        offered["placement"],
        offered["heldMs"],
        datetime.fromisoformat(offered["time"]),
    )
    assert {row[4:] for row in rows} == {same}


def test_an_idle_cluster_makes_no_points(home: Home) -> None:
    def at_rest() -> bool:
        before = len(points(home))
        time.sleep(4)  # nothing to wait for: that nothing comes is what is shown
        return len(points(home)) == before

    wait_for(at_rest, "no more points come", 90)
    known = points(home)[-1]
    home.query("INSERT INTO item VALUES (-1, 'one more') RETURNING 1")
    await_point_after(home, known["time"])
    home.query("DELETE FROM item WHERE id = -1 RETURNING 1")


def test_a_cluster_is_taken_back_in_place_and_can_be_restored_from_then_on(home: Home) -> None:
    before, target = contents(home), restorable(home)[-1]
    dsn = home.dsn()
    home.query("DELETE FROM item RETURNING 1")
    assert "add --yes" in home.run("restore", "shop", "--in-place", check=False).stderr
    home.run("restore", "shop", "--in-place", "--point", target["name"], "--yes", timeout=400)
    assert contents(home) == before
    assert home.dsn() == dsn
    assert_sound(home, "shop")
    again = home.run("restore", "shop", "--in-place", "--yes", check=False)
    assert "what shop was before its last restore is still kept" in again.stderr
    home.run("restore", "shop", "--confirm")
    assert not (home.path / "shop" / "before-restore").exists()
    written = now()
    home.query("INSERT INTO item VALUES (-3, 'on the new timeline') RETURNING 1")
    later = await_point_after(home, written)
    assert later["lsns"]["1"]["timeline"] > target["lsns"]["1"]["timeline"]
    home.run("restore", "shop", "later", "--point", later["name"], timeout=400)
    assert home.query("SELECT count(*) FROM item WHERE id = -3", "later") == [(1,)]
    home.run("delete", "later", "--purge", "--yes")
    home.query("DELETE FROM item WHERE id = -3 RETURNING 1")


def test_a_history_that_the_repository_lacks_is_sent_again(home: Home) -> None:
    """With nothing written: it does not have to wait for a file of the log."""
    logs = home.path.parent / "repository" / "shop" / "wal"
    gone = [*logs.glob("*/*/*.history")]
    assert len(gone) >= 3, "the cluster was restored in place before"
    for history in gone:
        history.unlink()
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.kill()
    home.run("start", "shop")
    wait_for(lambda: all(history.exists() for history in gone), "they are there again", 90)


def test_a_wish_to_go_back_to_fewer_segments_is_carried_out_though_who_asked_was_killed(
    home: Home, tmp_path: Path
) -> None:
    before, written = contents(home), now()
    home.query("INSERT INTO item VALUES (-4, 'for a point') RETURNING 1")
    target = await_point_after(home, written)
    home.run("scale", "shop", "--segments", "3", timeout=400)
    home.query("DELETE FROM item RETURNING 1")
    mortal = Home(
        home.path, {"PGHERD_CRASH_AT": "in-place:asked", "PGHERD_CRASH_LOG": str(tmp_path / "crashes")}
    )
    asked = ("restore", "shop", "--in-place", "--point", target["name"], "--yes", "--no-wait")
    assert mortal.run(*asked, check=False).returncode == -signal.SIGKILL
    wait_for(
        lambda: home.status()["phase"] == "Running" and contents(home)[0] > 0, "it is back", 300, every=1
    )
    assert len(home.status()["groups"]) == 3
    assert contents(home)[0] == before[0] + 1
    assert_sound(home, "shop")
    home.run("restore", "shop", "--confirm")
    home.query("DELETE FROM item WHERE id = -4 RETURNING 1")


def test_a_drill_restores_examines_and_removes(home: Home) -> None:
    done = home.run("drill", "shop", timeout=600)
    assert "was restored and is sound" in done.stdout
    assert home.run("list").stdout.count("shop") == 1
    last = home.status()["backups"]["lastDrill"]
    assert last["passed"]
    assert last["restorePoint"] in {point["name"] for point in points(home)}


def test_a_running_cluster_is_cloned_without_any_repository(home: Home) -> None:
    before = contents(home)
    home.run("clone", "shop", "dolly", timeout=400)
    assert contents(home, "dolly") == before
    assert_sound(home, "dolly")
    assert not (home.path / "dolly" / "source").exists()
    home.query("DELETE FROM item WHERE id > 5 RETURNING 1", "dolly")
    assert contents(home) == before
    # A clone has no backups, and can be cloned in turn.
    home.run("clone", "dolly", "polly", timeout=400)
    assert contents(home, "polly")[0] == 5
    for name in ("polly", "dolly"):
        home.run("delete", name, "--purge", "--yes")


def test_a_clone_at_a_point_comes_from_the_backups_and_has_none_of_its_own(home: Home) -> None:
    written = now()
    home.query("INSERT INTO item VALUES (-4, 'at the point') RETURNING 1")
    point = await_point_after(home, written)
    home.query("DELETE FROM item WHERE id = -4 RETURNING 1")
    done = home.run("clone", "shop", "molly", "--at", point["name"], timeout=400)
    assert f"molly: shop as of restore point {point['name']}" in done.stderr
    assert home.query("SELECT count(*) FROM item WHERE id = -4", "molly") == [(1,)]
    refused = home.run("backups", "molly", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "molly has no backups" in refused.stderr
    home.run("delete", "molly", "--purge", "--yes")


# bad input


def test_what_can_not_be_is_refused_in_one_line_and_changes_nothing(home: Home) -> None:
    future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    refusals = {
        ("restore", "shop", "x", "--point", "never"): "no restore point 'never' can be restored: there are",
        ("restore", "shop", "x", "--time", "2020-01-01T00:00:00Z"): "is before the first restore point",
        ("restore", "shop", "x", "--time", future): "is in the future: there are",
        ("restore", "shop", "x", "--time", "yesterday"): "must be a time with its zone",
        ("restore", "shop", "x", "--backup", "never"): "no backup 'never' can be restored",
        (
            "restore",
            "shop",
            "x",
            "--time",
            future,
            "--point",
            "p",
        ): "only one of restorePoint, time and backup",
        ("restore", "shop", "shop"): "shop is here already: choose another name",
        ("restore", "nobody", "x"): "no cluster 'nobody'",
        ("clone", "shop", "shop"): "shop is here already: choose another name",
        ("clone", "nobody", "x"): "no cluster 'nobody'",
        ("restore", "shop", "x", "--repository", "/nowhere"): "holds no backups of shop",
        ("restore", "shop", "x", "--repository", "rel%ative"): "must be an absolute path",
        ("backup", "shop", "--type", "huge"): "must be one of full, differential, incremental",
        ("backup", "nobody"): "no cluster 'nobody'",
    }
    for arguments, complaint in refusals.items():
        done = home.run(*arguments, check=False)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        assert complaint in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "x" not in home.run("list").stdout.split()


def test_a_declaration_that_does_not_fit_the_backup_is_refused(home: Home, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(declaration(name="x", segments=3, standbys=0))
    done = home.run("restore", "shop", "x", "-f", str(other), check=False)
    assert done.returncode == 2
    assert "spec.segments.count: must be 2 as in the backup, got 3" in done.stderr


def test_another_clusters_repository_is_refused(home: Home) -> None:
    with temporary_home() as another:
        done = another.up(with_backups(home.path.parent / "repository", standbys=0), check=False)
        assert done.returncode == 2
        assert "holds the backups of another cluster that was called shop" in done.stderr
        assert another.run("list").stdout == ""


def test_a_cluster_without_backups_says_so(home: Home) -> None:
    home.up(declaration(name="bare", segments=1, standbys=0, shards=1), timeout=300)
    for command in ("backup", "backups", "restore-points"):
        done = home.run(command, "bare", check=False)
        assert done.returncode == 2
        assert "bare has no backups: spec.backup says where they should go" in done.stderr
    # Declared later, they come: members restart for it, one after the other.
    home.up(
        with_backups(home.path.parent / "other", name="bare", segments=1, standbys=0, shards=1), timeout=300
    )
    await_first_backup(home, "bare")
    home.run("delete", "bare", "--purge", "--yes")


# faults


def test_a_repository_that_is_away_is_told_and_missed_by_nobody_who_writes(home: Home) -> None:
    root = home.path.parent / "repository"
    away = root.with_name("unplugged")
    root.rename(away)
    try:
        home.query("INSERT INTO item VALUES (-2, 'while it is away') RETURNING 1")
        told = wait_for(
            lambda: (found := condition(home, "BackupsHealthy"))["status"] == "False" and found,
            "the condition tells",
            60,
            every=0.5,
        )
        assert "there is no repository at" in told["message"]
        assert home.status()["phase"] == "Running"
        assert not root.exists(), "what is not mounted is not made anew"
    finally:
        away.rename(root)
    wait_for(
        lambda: condition(home, "BackupsHealthy")["status"] == "True",
        "it is well again by itself",
        120,
        every=1,
    )
    written = now()
    home.query("DELETE FROM item WHERE id = -2 RETURNING 1")
    await_point_after(home, written)


def test_a_damaged_copy_is_found_before_anything_is_made_of_it(home: Home) -> None:
    target = restorable(home)[-1]
    copies = home.path.parent / "repository" / "shop" / "backups"
    before = {path: path.read_bytes() for path in copies.glob("*-full/segment-1/PG_VERSION")}
    try:
        for path in before:
            path.write_bytes(b"19\n")
        done = home.run("restore", "shop", "broken", "--point", target["name"], check=False, timeout=300)
        kept, target = contents(home), restorable(home)[-1]
        back = ("restore", "shop", "--in-place", "--yes", "--point", target["name"])
        in_place = home.run(*back, check=False, timeout=300)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert in_place.returncode == 1
    assert "is as it was before, the restore failed" in in_place.stderr
    assert contents(home) == kept
    assert done.returncode == 1
    assert "segment-1 is damaged" in done.stderr
    assert "restore to a point that another backup serves" in done.stderr
    assert home.status("broken")["phase"] == "Failed"
    assert not list((home.path / "broken" / "members").glob("*/from-backup"))
    home.run("delete", "broken", "--purge", "--yes")


def log_file(home: Home, point: dict[str, Any], *, before: int = 0) -> Path:
    """The archived file that holds a point of segment-1, or one so many before it."""
    at = point["lsns"]["1"]
    number = (parse_lsn(at["lsn"]) - 1) // SEGMENT_BYTES - before
    logs = home.path.parent / "repository" / "shop" / "wal" / "segment-1"
    return next(logs.glob(f"*/{file_name(at['timeline'], number)}"))


def test_a_damaged_file_of_the_log_fails_the_restore_and_leaves_nothing(home: Home) -> None:
    written = now()
    home.query("INSERT INTO item VALUES (-7, 'in a file of its own') RETURNING 1")
    target = await_point_after(home, written)
    damaged = log_file(home, target)
    content = damaged.read_bytes()
    damaged.write_bytes(bytes(len(content)))
    try:
        done = home.run("restore", "shop", "broken", "--point", target["name"], check=False, timeout=300)
    finally:
        damaged.write_bytes(content)
    assert done.returncode == 1
    assert "the log of segment-1 does not lead to" in done.stderr
    assert home.status("broken")["phase"] == "Failed"
    assert not list((home.path / "broken" / "members").glob("*/from-backup"))
    home.run("delete", "broken", "--purge", "--yes")
    home.query("DELETE FROM item WHERE id = -7 RETURNING 1")


def test_a_file_of_the_log_that_is_gone_is_no_way_to_any_point_behind_it(home: Home) -> None:
    written = now()
    home.query("INSERT INTO item VALUES (-8, 'behind the gap') RETURNING 1")
    target = await_point_after(home, written)
    gone = log_file(home, target, before=1)
    gone.rename(gone.with_name(f".{gone.name}"))
    try:
        known = {point["name"]: point["state"] for point in points(home)}
        assert known[target["name"]] == "a gap before it"
        done = home.run("restore", "shop", "x", "--point", target["name"], check=False)
        assert done.returncode == 2
        assert "can be restored: there are" in done.stderr
    finally:
        gone.with_name(f".{gone.name}").rename(gone)
    home.query("DELETE FROM item WHERE id = -8 RETURNING 1")


def test_a_restore_leaves_out_what_is_named_if_that_is_asked_for(home: Home) -> None:
    offered = restorable(home)
    done = home.run("restore", "shop", "lesser", "--point", offered[-1]["name"], "--exclusive", timeout=400)
    assert f"shop as of restore point {offered[-2]['name']}" in done.stderr
    home.run("delete", "lesser", "--purge", "--yes")
    done = home.run("restore", "shop", "x", "--point", offered[0]["name"], "--exclusive", check=False)
    assert done.returncode == 2
    assert "nothing can be restored from before" in done.stderr


def test_a_restore_can_be_given_up(home: Home) -> None:
    home.run("restore", "shop", "early", "--no-wait")
    home.run("delete", "early", "--purge", "--yes", timeout=300)
    wait_for(lambda: not home.running("early-"), "no process is left", 30)
    assert not (home.path / "early").exists()


def test_killed_at_every_step_backups_and_restores_come_to_their_end(tmp_path: Path) -> None:
    log = tmp_path / "crashes"
    crashes = {"PGHERD_CRASH_AT": ",".join(STEPS), "PGHERD_CRASH_LOG": str(log)}
    with temporary_home(crashes) as home:
        home.up(with_backups(home.path.parent / "repository", standbys=0), timeout=400)
        make_items(home)
        written = now()

        def is_backed_up() -> bool:
            home.run("start", "shop")  # the supervisor that a step has killed
            return any(each["phase"] == "done" for each in backups(home))

        wait_for(is_backed_up, "a backup", 240)
        assert len(backups(home)) == 1
        leftovers = list((home.path.parent / "repository").glob("shop/backups/*/*.partial"))
        assert not leftovers
        target = await_point_after(home, written)
        home.run("restore", "shop", "again", "--point", target["name"], timeout=600)
        assert contents(home, "again") == contents(home)
        assert_sound(home, "again")
        assert set(STEPS) == set(log.read_text().split())
        assert not home.running("from-backup"), "no private server is left"
        assert not list((home.path.parent / "repository").glob("shop/pins/*")), "nothing is read any more"


def test_a_cluster_that_is_gone_is_restored_from_its_repository(home: Home) -> None:
    """The last of this file: it takes the cluster away."""
    before, written = contents(home), now()
    assert restorable(home)[-1]["time"] < written
    home.run("delete", "shop", "--purge", "--yes")
    repository = str(home.path.parent / "repository")
    assert backups(home, "--repository", repository)
    home.run("restore", "shop", "risen", "--repository", repository, timeout=400)
    assert contents(home, "risen") == before
    done = home.up(with_backups(home.path.parent / "repository", standbys=0), check=False)
    assert "holds the backups of another cluster that was called shop" in done.stderr
