"""Restore points of a Citus cluster: two-phase commits are whole, nodes and passwords are the new cluster's."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgherd.backup.records import now
from tests.support.citus import citus_home, needs_citus
from tests.support.home import Home, wait_for
from tests.support.money import make_tables, movers
from tests.support.points import audit_point, choose, inside, newest
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    restorable,
    restores,
    with_backups,
    write_seconds,
)

pytestmark = needs_citus


@pytest.fixture(scope="module")
def herd() -> Iterator[Home]:
    with citus_home() as home:
        declared = with_backups(home.path.parent / "repository", standbys=0, engine="citus")
        home.up(declared, timeout=400)
        with home.connect() as connection:
            make_tables(connection)
        await_first_backup(home)
        yield home


def superuser(home: Home, group: str, name: str = "shop") -> psycopg.Connection[tuple[object, ...]]:
    from pgherd.engine.registry import make_engine
    from pgherd.model.topology import group_id
    from pgherd.platform.local.platform import LocalPlatform
    from pgherd.reconcile import observe

    world = observe.connect(LocalPlatform(home.path), name, make_engine)
    return world.databases.connect(group_id(group))


def test_points_under_two_phase_commits_have_the_right_sum(herd: Home) -> None:
    with movers(herd.dsn()) as ledger:
        time.sleep(write_seconds(6))
    await_point_after(herd, newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    offered = restorable(herd)
    held = []
    for n in choose(offered, inside(offered, ledger), restores(1)):
        herd.run("restore", "shop", "then", "--point", offered[n]["name"], timeout=400)
        with herd.connect("then") as connection:
            held.append(audit_point(connection, ledger, offered, n))
            # It writes to its own nodes, and to those of its source it does not.
            connection.execute("UPDATE account SET balance = 0")
        assert herd.query("SELECT sum(balance) > 0 FROM account") == [(True,)]
        assert_sound(herd, "then")
        herd.run("delete", "then", "--purge", "--yes")
    assert max(held) > 0


def test_prepared_transactions_are_ended_as_the_commit_records_say(herd: Home) -> None:
    decided, undecided = "citus_0_4242_1_1", "citus_0_4242_2_1"
    with superuser(herd, "coordinator") as desk, superuser(herd, "segment-1") as segment:
        desk.execute("ALTER SYSTEM SET citus.recover_2pc_interval = -1")
        desk.execute("SELECT pg_reload_conf()")
        for gid, table in ((decided, "decided"), (undecided, "undecided")):
            segment.execute("SET citus.enable_ddl_propagation TO off")
            segment.execute(f"BEGIN; CREATE TABLE {table} (id int)")
            segment.execute(f"PREPARE TRANSACTION '{gid}'")
        desk.execute("INSERT INTO pg_dist_transaction (groupid, gid) VALUES (1, %s)", [decided])
        written = now()
        target = await_point_after(herd, written)
        for gid in (decided, undecided):
            segment.execute(f"ROLLBACK PREPARED '{gid}'")
    herd.run("restore", "shop", "ended", "--point", target["name"], timeout=400)
    with superuser(herd, "segment-1", "ended") as segment:
        assert segment.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone() == (0,)
        found = segment.execute("SELECT to_regclass('decided') IS NOT NULL, to_regclass('undecided') IS NULL")
        assert found.fetchone() == (True, True)
    herd.run("delete", "ended", "--purge", "--yes")


def test_a_rebuilt_segment_ends_prepared_transactions_as_the_other_groups_say(herd: Home) -> None:
    """The last of this file: the segment's data are lost."""
    decided, undecided = "citus_0_4242_3_1", "citus_0_4242_4_1"
    with superuser(herd, "coordinator") as desk, superuser(herd, "segment-1") as segment:
        desk.execute("ALTER SYSTEM SET citus.recover_2pc_interval = -1")
        desk.execute("SELECT pg_reload_conf()")
        for gid, table in ((decided, "kept"), (undecided, "dropped")):
            segment.execute("SET citus.enable_ddl_propagation TO off")
            segment.execute(f"BEGIN; CREATE TABLE {table} (id int)")
            segment.execute(f"PREPARE TRANSACTION '{gid}'")
        desk.execute("INSERT INTO pg_dist_transaction (groupid, gid) VALUES (1, %s)", [decided])
    before = herd.query("SELECT count(*), sum(balance) FROM account")
    herd.run("stop", "shop", timeout=120)
    wait_for(lambda: herd.status()["phase"] == "Stopped", "it is stopped", 90, every=0.5)
    shutil.rmtree(herd.path / "shop" / "members" / "shop-segment-1-0" / "data")
    herd.run("start", "shop", "--no-wait")
    told = herd.run("repair", "shop", "--group", "segment-1", timeout=400)
    assert "(rung: repository)" in told.stdout
    assert f"{decided} was committed, as coordinator says" in told.stderr
    assert f"{undecided} was undone, coordinator never committed it" in told.stderr
    herd.wait_phase("Running", timeout=180)
    with superuser(herd, "segment-1") as segment:
        assert segment.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone() == (0,)
        found = segment.execute("SELECT to_regclass('kept') IS NOT NULL, to_regclass('dropped') IS NULL")
        assert found.fetchone() == (True, True)
    assert herd.query("SELECT count(*), sum(balance) FROM account") == before
    assert_sound(herd, "shop")
