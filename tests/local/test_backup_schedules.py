"""Backups and drills that are made by themselves, on a real cluster, and supervisors that are killed meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.repositories import await_first_backup, backups, condition, with_backups

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

ROWS = 5000
STEPS = (
    *("schedule:planned", "schedule:asked"),
    *("drill:counted", "drill:declared", "drill:restored", "drill:examined", "drill:verified"),
    "drill:remembered",
)
SCHEDULE = """\
---
apiVersion: pgherd.io/v1alpha1
kind: PostgresBackupSchedule
metadata: {name: often}
spec:
  cluster: shop
  cron: "* * * * *"
  type: incremental
"""
BACKUP = """\
---
apiVersion: pgherd.io/v1alpha1
kind: PostgresBackup
metadata: {name: before-release}
spec: {cluster: shop}
"""
DRILL = "  drill: {every: %s, tables: [item, kind]}\n"


def make_tables(home: Home) -> None:
    with home.connect() as connection:
        connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
        connection.execute("SELECT create_distributed_table('item', 'id')")
        connection.execute("CREATE TABLE kind (id int PRIMARY KEY)")
        connection.execute("SELECT create_reference_table('kind')")
        connection.execute(f"INSERT INTO item SELECT g, 'n' || g FROM generate_series(1, {ROWS}) g")
        connection.execute("INSERT INTO kind VALUES (1), (2)")


def everything(home: Home) -> str:
    return with_backups(home.path.parent / "repository", standbys=0) + SCHEDULE + BACKUP


def schedules(home: Home) -> list[dict[str, Any]]:
    return list(json.loads(home.run("backup-schedules", "-o", "json").stdout))


def drills(home: Home) -> list[dict[str, Any]]:
    return list(json.loads(home.run("drills", "shop", "-o", "json").stdout))


def of_schedule(home: Home, phase: str = "done") -> list[str]:
    return [
        each["id"] for each in backups(home) if each["id"].startswith("often-") and each["phase"] == phase
    ]


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(everything(home), timeout=500)
        make_tables(home)
        yield home


def test_a_file_declares_a_cluster_its_schedule_and_a_backup_and_again_changes_nothing(home: Home) -> None:
    named = [each for each in backups(home) if each["id"] == "before-release"]
    assert [(each["phase"], each["type"]) for each in named] == [("done", "full")]
    assert named[0]["restorePoint"]
    assert {group["type"] for group in named[0]["groups"].values()} == {"full"}
    assert all(group["startLsn"] and group["stopLsn"] for group in named[0]["groups"].values())
    again = home.up(everything(home), timeout=500)
    assert "backup before-release is done" in again.stdout
    assert [each["id"] for each in backups(home)].count("before-release") == 1
    refused = home.up(BACKUP.replace("{cluster: shop}", "{cluster: shop, type: incremental}"), check=False)
    assert refused.returncode == 2
    assert "backup before-release is there already, and full" in refused.stderr


def test_backups_are_made_when_their_time_comes_also_after_a_supervisor_was_killed(home: Home) -> None:
    wait_for(lambda: of_schedule(home), "a backup was made by itself", 180, every=1)
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(20)
    known = set(of_schedule(home))
    home.run("start", "shop", timeout=400)
    wait_for(lambda: set(of_schedule(home)) - known, "another backup was made", 180, every=1)
    assert home.status()["backups"]["schedules"][0]["lastBackup"].startswith("often-")


def test_a_suspended_schedule_makes_none(home: Home) -> None:
    home.run("suspend-schedule", "often")
    wait_for(
        lambda: not of_schedule(home, "running") + of_schedule(home, "requested"), "none is running", 120
    )
    known = of_schedule(home)
    time.sleep(62)  # nothing to wait for: that nothing comes is what is shown
    assert of_schedule(home) == known
    assert schedules(home)[0]["nextAt"] is None


def test_a_drill_on_a_schedule_compares_rows_tells_its_result_and_removes_the_scratch(home: Home) -> None:
    schedule = SCHEDULE.replace("* * * * *", "0 0 1 1 *") + DRILL % "365d"
    home.up(schedule)
    wait_for(lambda: drills(home), "the first drill is made", 300, every=2)
    (drill,) = drills(home)
    assert drill["passed"], drill
    assert drill["compared"]["tables"] == ["public.item", "public.kind"]
    assert drill["compared"]["rows"] + drill["compared"]["rowsTouched"] >= ROWS + 2
    proven = wait_for(
        lambda: (found := condition(home, "RestoreProven"))["status"] == "True" and found,
        "it is told",
        60,
        every=1,
    )
    assert drill["restorePoint"] in proven["message"]
    wait_for(lambda: "shop-drill" not in home.run("list").stdout, "the scratch is gone", 60, every=1)
    assert not (home.path / "shop-drill").exists()
    assert not (home.path / "shop" / "drill.json").exists()


def test_a_drill_by_hand_finds_what_is_damaged(home: Home) -> None:
    refused = home.run("drill", "shop", "--table", "nothing", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == "pgherd: table nothing: there is none of this name"
    done = home.run("drill", "shop", "--table", "item", timeout=600)
    assert "rows of 1 table are as they were" in done.stdout
    assert not (home.path / "shop-drill").exists()
    newest = backups(home)[-1]["id"]
    copies = home.path.parent / "repository" / "shop" / "backups" / newest
    victim = next((copies / "segment-1" / "base").rglob("PG_VERSION"))
    victim.write_text("damaged")
    failed = home.run("drill", "shop", "--table", "item", check=False, timeout=600)
    assert failed.returncode == 1
    assert "is damaged" in failed.stderr
    told = wait_for(
        lambda: (found := condition(home, "RestoreProven"))["status"] == "False" and found,
        "it is told",
        60,
        every=1,
    )
    assert told["reason"] == "DrillFailed"
    assert not (home.path / "shop-drill").exists()


def test_a_drill_that_hangs_fails_in_time_and_leaves_nothing() -> None:
    """Its scratch stands still: nothing in it answers, and nothing ends."""
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", segments=1, standbys=0), timeout=400)
        make_tables(home)
        await_first_backup(home)
        slow = "  drill: {every: 365d, timeout: 1m}\n"
        home.up(SCHEDULE.replace("* * * * *", "0 0 1 1 *") + slow)

        def halted() -> bool:
            servers = [each for each in home.running("shop-drill") if "postgres" in each.name()]
            for server in servers:
                with suppress(psutil.Error):
                    server.suspend()
            return bool(servers)

        wait_for(halted, "a server of the scratch stands still", 60, every=0.05)
        told = wait_for(
            lambda: (found := condition(home, "RestoreProven")).get("status") == "False" and found,
            "it is told",
            240,
            every=2,
        )
        assert told["reason"] == "DrillFailed"
        assert "after" in told["message"]
        assert "60 s" in told["message"], told
        wait_for(lambda: not (home.path / "shop-drill").exists(), "no scratch is left", 120, every=1)
        assert not home.running("shop-drill")
        home.run("drill", "shop", timeout=400)
        wait_for(
            lambda: condition(home, "RestoreProven")["status"] == "True", "the next one passes", 60, every=1
        )


def test_what_can_not_be_is_refused_in_one_line_and_changes_nothing(home: Home) -> None:
    def declared() -> list[tuple[str, str, str]]:
        return [(each["name"], each["cluster"], each["cron"]) for each in schedules(home)]

    known = declared()
    refusals = {
        SCHEDULE.replace("* * * * *", "0 0 30 2 *"): "spec.cron: never comes: no such day in that month",
        SCHEDULE.replace("cluster: shop", "cluster: nobody"): "no cluster 'nobody'",
        declaration(name="new") + SCHEDULE.replace("cluster: shop", "cluster: new"): "new has no backups",
    }
    for text, complaint in refusals.items():
        done = home.up(text, check=False)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert complaint in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert declared() == known
    assert "new" not in home.run("list").stdout.split()


def test_killed_at_every_step_backups_are_made_once_and_no_scratch_is_left(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    log = tmp_path_factory.mktemp("crashes") / "log"
    crashes = {"PGHERD_CRASH_AT": ",".join(STEPS), "PGHERD_CRASH_LOG": str(log)}
    with temporary_home(crashes) as home:
        home.up(with_backups(home.path.parent / "repository", standbys=0), timeout=400)
        make_tables(home)
        await_first_backup(home)
        home.up(SCHEDULE + DRILL % "365d")

        def done() -> bool:
            home.run("start", "shop", "--no-wait", timeout=120)  # somebody has to start the next supervisor
            return log.exists() and set(STEPS) == set(log.read_text().split())

        wait_for(done, "it was killed at every step", 900, every=2)
        home.run("start", "shop", timeout=400)
        wait_for(lambda: of_schedule(home), "a backup was made", 180, every=1)
        identifiers = [each["id"] for each in backups(home)]
        assert len(identifiers) == len(set(identifiers))
        wait_for(lambda: drills(home)[-1]["passed"], "a drill came to its end", 300, every=2)
        wait_for(lambda: not (home.path / "shop-drill").exists(), "no scratch is left", 120, every=1)
        wait_for(lambda: not (home.path / "shop" / "drill.json").exists(), "nor a record of one", 60)
        assert not home.running("shop-drill-")
