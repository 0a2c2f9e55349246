"""One group that has lost all its data comes back from the repository; what may be missing is told before anything is
changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from pgherd.backup.records import now
from pgherd.engine.registry import make_engine
from pgherd.errors import Unavailable
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe
from tests.support.engines import engine
from tests.support.home import Home, declaration, programs, temporary_home, wait_for
from tests.support.money import audit, make_tables, movers
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    backups,
    condition,
    restorable,
    with_backups,
)

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

STEPS = tuple(
    f"repair:{step}"
    for step in (
        "begun",
        "copied",
        "replayed",
        "judged",
        "settled",
        "aside",
        "moved",
        "placed",
        "joined",
    )
)
ROWS = 2_000
COPY_AGAIN = {
    "fdw": ["SELECT pgherd.repair_table('kind')"],
    "citus": ["SELECT undistribute_table('kind')", "SELECT create_reference_table('kind')"],
}
"""what makes the copies of a reference table anew"""


def members(home: Home, group: str) -> list[Path]:
    return sorted((home.path / "shop" / "members").glob(f"shop-{group}-*"))


def lose(home: Home, group: str) -> None:
    """All data of a group that does not run."""
    for member in members(home, group):
        shutil.rmtree(member / "data")


def stop(home: Home) -> None:
    home.run("stop", "shop", timeout=120)
    wait_for(lambda: home.status()["phase"] == "Stopped", "it is stopped", 60, every=0.5)


def kill_group(home: Home, group: str) -> None:
    """The machine of a group's members dies, and that of the supervisor with it."""
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.kill()

    def gone() -> bool:
        found = home.running(f"shop-{group}-")
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return not found

    wait_for(gone, f"{group} is dead", 20)


def make_item(home: Home) -> None:
    with home.connect() as connection:
        connection.execute("CREATE TABLE item (id bigint PRIMARY KEY)")
        connection.execute("SELECT create_distributed_table('item', 'id')")


def await_told(home: Home, group: int) -> None:
    """Until Patroni's store has heard of what a group has written by now; its leader tells it once a second."""
    platform = LocalPlatform(home.path, programs().directory)
    world = observe.connect(platform, "shop", make_engine)
    with world.databases.connect(group) as connection:
        row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        connection.execute("SELECT pg_log_standby_snapshot()")
    assert row is not None
    bench = platform.bench("shop", group)

    def told() -> bool:
        with suppress(Unavailable):
            return (bench.last_words().store_lsn or 0) >= int(row[0])
        return False

    wait_for(told, "the store has heard of it", 90, every=0.5)


def repair_of(home: Home, group: str = "segment-1") -> dict[str, Any]:
    return next(dict(each) for each in home.status()["repairs"] if each["group"] == group)


def repair(home: Home, *arguments: str, group: str = "segment-1", **options: Any) -> Any:
    return home.run("repair", "shop", "--group", group, *arguments, **{"timeout": 400, **options})


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository"), timeout=300)
        with home.connect() as connection:
            make_tables(connection)
        await_first_backup(home)
        yield home


def test_where_nothing_is_wrong_nothing_is_done(home: Home) -> None:
    refusals = {
        ("repair", "shop", "--group", "segment-1"): "nothing is wrong with segment-1 of shop",
        ("repair", "shop", "--group", "segment-9"): "shop has no segment-9: it has",
        ("repair", "shop", "--group", "nobody"): "is not a group",
        ("repair", "nobody", "--group", "segment-1"): "no cluster 'nobody'",
        ("repair", "shop", "--group", "segment-1", "--confirm"): "segment-1 was not repaired",
    }
    for arguments, complaint in refusals.items():
        done = home.run(*arguments, check=False)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        assert complaint in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_group_that_was_shut_down_comes_back_complete(home: Home) -> None:
    with movers(home.dsn()) as ledger:
        wait_for(lambda: len(ledger.acknowledged) > 100, "money moves", 60)
    assert not ledger.errors, ledger.errors[:3]
    stop(home)
    lose(home, "segment-1")
    home.run("start", "shop", "--no-wait")
    told = wait_for(lambda: condition(home, "DataLost").get("message"), "the status tells", 60, every=0.5)
    assert told.startswith("the data of segment-1 are gone")
    assert "'pgherd repair shop --group segment-1'" in told
    assert not any((member / "data" / "PG_VERSION").exists() for member in members(home, "segment-1"))
    done = repair(home)
    assert "segment-1 is back after" in done.stdout
    assert "(rung: repository)" in done.stdout
    assert "was shut down at" in done.stdout
    home.wait_phase("Running", timeout=180)
    with home.connect() as connection:
        end = datetime.now(UTC)
        assert audit(connection, ledger, since=end, until=end) >= len(ledger.acknowledged)
    assert repair_of(home)["phase"] == "done"
    assert repair_of(home)["findings"] == []
    assert home.member("segment-1", "standby")["state"] in ("running", "streaming")
    assert_sound(home, "shop")
    assert "rung: repository" in home.run("status", "shop").stdout
    repair(home, "--confirm")
    assert home.status()["repairs"] == []
    assert not list((home.path / "shop" / "repairs").glob("*"))


def test_a_repaired_group_can_be_restored_to_points_before_and_after(home: Home, tmp_path: Path) -> None:
    before = [point for point in restorable(home) if point["lsns"]["1"]["timeline"] == 1][-1]
    written = now()
    home.query("INSERT INTO transfer VALUES (-1, 1, 1, 0) RETURNING 1")
    after = await_point_after(home, written)
    assert after["lsns"]["1"]["timeline"] > before["lsns"]["1"]["timeline"]
    lean = tmp_path / "lean.yaml"
    lean.write_text(declaration(name="any", standbys=0))
    for point, rows in ((before, 0), (after, 1)):
        home.run("restore", "shop", "then", "--point", point["name"], "-f", str(lean), timeout=400)
        assert home.query("SELECT count(*) FROM transfer WHERE id = -1", "then") == [(rows,)]
        home.run("delete", "then", "--purge", "--yes")
    home.query("DELETE FROM transfer WHERE id = -1 RETURNING 1")


def test_a_standby_that_is_broken_is_copied_from_its_primary(home: Home) -> None:
    """The ladder's second rung: nothing is asked of the repository."""
    standby = home.member("segment-2", "standby")["name"]
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.kill()
    for process in home.running(standby):
        with suppress(psutil.Error):
            process.kill()
    data = home.path / "shop" / "members" / standby / "data"
    (data / "base" / "1" / "1259").write_bytes(b"x" * 100)
    (data / "global" / "pg_filenode.map").write_bytes(b"x" * 100)
    home.run("start", "shop", "--no-wait")

    def broken() -> bool:
        states = {each["name"]: each for each in home.status()["groups"][2]["members"]}
        return states[standby]["state"] not in ("running", "streaming")

    wait_for(broken, "it does not come up", 60, every=0.5)

    def asked() -> bool:
        done = repair(home, group="segment-2", check=False)
        assert done.returncode == 0 or "ask again" in done.stderr or not broken(), done.stderr
        return done.returncode == 0 and "rung: base backup from the primary" in done.stdout

    wait_for(asked, "it is copied anew", 60, every=1)
    home.wait_phase("Running", timeout=180)
    assert home.status()["repairs"] == []


def of_segment(
    connection: psycopg.Connection[Any], port: int, items: set[tuple[Any, ...]]
) -> set[tuple[Any, ...]]:
    """Those items that are on the segment whose primary listens there."""
    shards = connection.execute(
        "SELECT shardid FROM citus_shards WHERE table_name = 'item'::regclass AND nodeport = %s", [port]
    ).fetchall()
    own = connection.execute(
        "SELECT id FROM unnest(%s::bigint[]) AS id"
        " WHERE get_shard_id_for_distribution_column('item'::regclass, id) = ANY (%s)",
        [[item[0] for item in items], [shard[0] for shard in shards]],
    ).fetchall()
    here = {row[0] for row in own}
    assert 0 < len(here) < len(items)
    return {item for item in items if item[0] in here}


def test_what_may_be_missing_is_told_and_nothing_is_changed_until_that_is_accepted(engine: str) -> None:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", every="1h", standbys=0), timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute("CREATE TABLE kind (id int PRIMARY KEY, name text)")
            connection.execute("SELECT create_reference_table('kind')")
            connection.execute(f"INSERT INTO item SELECT g, 'early' FROM generate_series(1, {ROWS}) g")
            await_first_backup(home)
            home.run("backup", "shop", timeout=300)
            # Acknowledged, and on their way into the repository only when this file of the log is full.
            connection.execute(
                f"INSERT INTO item SELECT g, 'late' FROM generate_series({ROWS + 1}, {2 * ROWS}) g"
            )
            connection.execute("INSERT INTO kind VALUES (1, 'late')")
            before = set(connection.execute("SELECT id, note FROM item").fetchall())
            survivors = of_segment(connection, home.member("segment-2", "primary")["port"], before)
        await_told(home, 1)
        kill_group(home, "segment-1")
        data = members(home, "segment-1")[0] / "data"
        # Not all of it is gone: what is left must not be taken for nothing.
        (data / "global" / "pg_control").unlink()
        home.run("start", "shop", "--no-wait")
        done = repair(home, check=False)
        assert done.returncode == 1
        assert "may not get back all it had" in done.stderr
        assert str(data) in done.stderr
        assert (data / "PG_VERSION").exists()
        shutil.rmtree(data)
        done = repair(home, check=False)
        assert done.returncode == 1
        assert "bytes of it are missing" in done.stderr
        assert "--accept-data-loss' goes on without it" in done.stderr
        told = condition(home, "Repairing")
        assert (told["status"], told["reason"]) == ("False", "InDoubt")
        assert "the archived log ends at" in told["message"]
        assert repair_of(home)["missingBytes"] > 0
        assert not data.exists()
        assert not home.running("repairs/segment-1"), "no private server is left"
        done = repair(home, "--accept-data-loss")
        assert "(rung: accepted loss)" in done.stdout
        home.wait_phase("Running", timeout=180)
        after = set(home.query("SELECT id, note FROM item"))
        early = {row for row in before if row[1] == "early"}
        assert early <= after
        assert survivors <= after
        assert after <= before
        assert after != before, "what was not archived is lost, and it was said so"
        # What another group knows of and this one has lost is told: the copy of a reference table.
        assert any("reference table public.kind" in each for each in repair_of(home)["findings"])
        for statement in COPY_AGAIN[engine]:
            home.query(statement)
        assert_sound(home, "shop")
        home.query(
            f"INSERT INTO item SELECT g, 'new' FROM generate_series({2 * ROWS + 1}, {3 * ROWS}) g RETURNING 1"
        )


def test_a_repair_that_fails_changes_nothing_and_what_is_left_is_kept_when_it_does_not() -> None:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", segments=1, standbys=0, shards=2), timeout=300)
        make_item(home)
        home.query("INSERT INTO item SELECT generate_series(1, 100) RETURNING 1")
        await_first_backup(home)
        written = now()
        home.query("INSERT INTO item SELECT generate_series(101, 200) RETURNING 1")
        await_point_after(home, written)
        kill_group(home, "segment-1")
        data = members(home, "segment-1")[0] / "data"
        (data / "global" / "pg_control").unlink()
        home.run("start", "shop", "--no-wait")
        version = next((home.path.parent / "repository").glob("shop/backups/*-full/segment-1/PG_VERSION"))
        content = version.read_bytes()
        version.write_bytes(b"19\n")
        try:
            done = repair(home, "--accept-data-loss", check=False)
        finally:
            version.write_bytes(content)
        assert done.returncode == 1
        assert "could not be rebuilt, nothing was changed" in done.stderr
        assert "is damaged" in done.stderr
        assert (data / "PG_VERSION").exists()
        assert condition(home, "Repairing")["reason"] == "Failed"
        done = repair(home, "--accept-data-loss")
        kept = home.path / "shop" / "repairs" / "segment-1" / "before" / "shop-segment-1-0" / "data"
        assert (kept / "PG_VERSION").exists()
        home.wait_phase("Running", timeout=120)
        assert home.query("SELECT count(*) FROM item") == [(200,)]
        repair(home, "--confirm")
        assert not kept.exists()
        assert_sound(home, "shop")


def test_killed_at_every_step_a_repair_comes_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "crashes"
    crashes = {"PGHERD_CRASH_AT": ",".join(STEPS), "PGHERD_CRASH_LOG": str(log)}
    with temporary_home(crashes) as home:
        home.up(with_backups(home.path.parent / "repository", segments=1, standbys=0, shards=2), timeout=300)
        make_item(home)
        home.query("INSERT INTO item SELECT generate_series(1, 100) RETURNING 1")
        await_first_backup(home)
        home.query("INSERT INTO item SELECT generate_series(101, 200) RETURNING 1")
        stop(home)
        lose(home, "segment-1")
        home.run("start", "shop", "--no-wait")
        # The supervisor dies nine times meanwhile, and is started anew.
        assert "(rung: repository)" in repair(home, timeout=1200).stdout
        home.run("start", "shop", timeout=300)
        home.wait_phase("Running", timeout=120)
        assert set(STEPS) == set(log.read_text().split())
        assert home.query("SELECT count(*), count(DISTINCT id) FROM item") == [(200, 200)]
        assert_sound(home, "shop")
        assert not home.running("repairs/segment-1"), "no private server is left"
        assert len(backups(home)) >= 1


def test_the_coordinator_comes_back_the_same_way() -> None:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", segments=1, standbys=0, shards=2), timeout=300)
        make_item(home)
        home.query("INSERT INTO item SELECT generate_series(1, 100) RETURNING 1")
        await_first_backup(home)
        stop(home)
        lose(home, "coordinator")
        home.run("start", "shop", "--no-wait")
        assert "(rung: repository)" in repair(home, group="coordinator").stdout
        home.wait_phase("Running", timeout=120)
        assert home.query("SELECT count(*) FROM item") == [(100,)]
        assert_sound(home, "shop")
