"""A cluster of the engine citus: its life, its faults and its growing, by the command line, under load.

What these tests say of data they say of acknowledged transactions: each is there, once, whatever died.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg
import pytest

from tests.support import money
from tests.support.citus import citus_home, needs_citus, superuser
from tests.support.contents import make_items
from tests.support.home import Home, declaration, wait_for
from tests.support.money import Ledger, await_transfers, make_tables, movers
from tests.support.writers import Journal, audit, make_table, writers

pytestmark = needs_citus

ROWS = 4000
GROUPS = ("coordinator", "segment-1", "segment-2")
MEMBERS = {f"shop-{group}-{n}" for group in GROUPS for n in (0, 1)}


def declared(segments: int = 2, standbys: int = 1, extra: str = "") -> str:
    return declaration(engine="citus", segments=segments, standbys=standbys, extra=extra)


@pytest.fixture(scope="module")
def herd() -> Iterator[Home]:
    with citus_home() as home:
        home.up(declared(), timeout=300)
        with home.connect() as connection:
            make_table(connection)
            make_items(connection, ROWS)
            connection.execute("CREATE TABLE kind (id int PRIMARY KEY, name text)")
            connection.execute("SELECT create_reference_table('kind')")
            connection.execute("INSERT INTO kind VALUES (1, 'one'), (2, 'two')")
            make_tables(connection)
        yield home


@pytest.fixture(autouse=True)
def _empty_ledger(herd: Home) -> None:
    herd.wait_phase("Running", timeout=180)
    with herd.connect() as connection:
        connection.execute("TRUNCATE ledger")


def sessions(home: Home) -> Callable[[], psycopg.Connection[Any]]:
    """How writers connect: by the one URI that stays right, not by asking pgherd each time."""
    dsn = home.dsn()
    return lambda: psycopg.connect(dsn, autocommit=True, connect_timeout=3)


def reconcile(home: Home, journal: Journal) -> None:
    """Every acknowledged row is there, once; a session whose postmaster was killed may say so in Citus's own words."""
    journal.errors = [error for error in journal.errors if "postmaster was shut down" not in error]
    with home.connect() as connection:
        audit(connection, journal)


def contents(home: Home) -> list[Any]:
    queries = (
        "SELECT count(*), sum(id)::bigint FROM item",
        "SELECT count(*), min(name) FROM kind",
        "SELECT count(*), sum(balance)::bigint FROM account",
    )
    return [home.query(query) for query in queries]


def kill_primary(home: Home, group: str) -> str:
    name: str = home.member(group, "primary")["name"]
    os.kill(home.postmaster(name), signal.SIGKILL)
    return name


def crash_primary(home: Home, group: str) -> None:
    """Kill a primary's server, and wait until the same member leads again: only its disk has all that it committed."""
    name = home.member(group, "primary")["name"]
    killed = home.postmaster(name)
    os.kill(killed, signal.SIGKILL)
    home.await_restart(group, name, killed)


def sound(home: Home) -> None:
    """``pgherd check`` finds nothing (leftovers may take Citus some seconds)."""
    wait_for(
        lambda: home.run("check", "shop", check=False).stdout.strip().endswith("nothing found wrong"),
        f"a sound cluster: {home.run('check', 'shop', check=False).stdout}",
        60,
        every=1.0,
    )


# life


def test_up_makes_a_citus_cluster_that_is_closed_to_strangers(herd: Home) -> None:
    status = herd.status()
    assert {m["name"] for group in status["groups"] for m in group["members"]} == MEMBERS
    with superuser(herd) as connection:
        rows = connection.execute(
            "SELECT groupid, shouldhaveshards, hasmetadata, metadatasynced, isactive FROM pg_dist_node"
            " WHERE noderole = 'primary' ORDER BY 1"
        ).fetchall()
        lines = connection.execute(
            "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'trust'"
        ).fetchone()
    assert rows == [(0, False, True, True, True), (1, True, True, True, True), (2, True, True, True, True)]
    assert lines == (0,)
    sound(herd)


def test_every_node_answers_and_nobody_else_writes_passwords(herd: Home) -> None:
    for group in ("coordinator", "segment-1", "segment-2"):
        with herd.connect("shop", "--group", group) as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (ROWS,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT * FROM pg_dist_authinfo")


def test_a_restore_point_is_made_on_each_node(herd: Home) -> None:
    from pgherd.engine.registry import make_engine
    from pgherd.platform.local.platform import LocalPlatform
    from pgherd.reconcile import observe

    world = observe.connect(LocalPlatform(herd.path), "shop", make_engine)
    points = world.engine.create_restore_point("before-lunch")
    assert sorted(points) == [0, 1, 2]
    assert all(re.fullmatch("[0-9A-F]+/[0-9A-F]+", lsn) for lsn in points.values())


# high availability


@pytest.mark.parametrize("group", ["segment-1", "coordinator"])
def test_a_primary_killed_under_writers_loses_nothing(herd: Home, group: str) -> None:
    with writers(sessions(herd)) as journal:
        wait_for(lambda: len(journal.acknowledged) > 50, "writers are at work")
        killed = time.monotonic()
        crash_primary(herd, group)
        done = len(journal.acknowledged)
        wait_for(lambda: len(journal.acknowledged) > done + 100, "writers go on", 60)
    herd.wait_phase("Running", timeout=180)
    gap = longest_gap(journal.latencies, killed)
    print(f"{group}: no acknowledged write for {gap:.2f} s")
    reconcile(herd, journal)
    sound(herd)


def longest_gap(latencies: list[tuple[float, float]], since: float) -> float:
    ends = sorted(began + seconds for began, seconds in latencies if began + seconds >= since)
    return max((b - a for a, b in zip([since, *ends], ends, strict=False)), default=0.0)


@pytest.mark.parametrize(
    ("group", "through"),
    [
        ("segment-2", "coordinator"),
        ("coordinator", "coordinator"),
        ("segment-2", "segment-1"),
        ("segment-1", "segment-1"),
    ],
)
def test_each_acknowledged_transfer_is_whole_when_a_primary_dies_in_two_phase_commits(
    herd: Home, group: str, through: str
) -> None:
    with movers(herd.dsn("shop", "--group", through)) as ledger:
        await_transfers(ledger, 50)
        crash_primary(herd, group)
        await_transfers(ledger, 50)
    whole(herd, ledger)
    print(f"{group}: {len(ledger.acknowledged)} transfers, {ledger.retries} failed")


def whole(home: Home, ledger: Ledger) -> None:
    """No transaction is there in part, seen from any node, once the cluster has healed."""
    home.wait_phase("Running", timeout=180)

    def resolved() -> bool:
        return all(no_prepared(home, each) for each in GROUPS)

    wait_for(resolved, "what was left prepared is resolved by itself", 60, every=0.5)
    now = datetime.now(UTC)
    for each in GROUPS:
        with home.connect("shop", "--group", each) as connection:
            money.audit(connection, ledger, since=now, until=now)


def no_prepared(home: Home, group: str) -> bool:
    with superuser(home, group) as connection:
        return connection.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone() == (0,)


@pytest.mark.parametrize(
    ("group", "patroni"),
    [
        pytest.param("segment-1", False, id="a segment's"),
        pytest.param("coordinator", False, id="the coordinator's"),
        pytest.param("segment-1", True, id="a segment's with its Patroni"),
    ],
)
def test_a_commit_that_waits_for_the_standby_is_whole_when_the_server_is_killed(
    herd: Home, group: str, patroni: bool
) -> None:
    """Such a session commits what it has prepared elsewhere as soon as its server is gone: its own part is on this
    disk only, and so is the part of a reference table that is on this node."""
    primary = herd.member(group, "primary")["name"]
    killed = herd.postmaster(primary)
    watchers = herd.running(f"members/{primary}/patroni.yml") if patroni else []
    with movers(herd.dsn("shop", "--group", group)) as ledger:
        await_transfers(ledger, 20)
        senders = senders_of(killed)
        try:
            for sender in senders:
                sender.suspend()
            with in_background(herd, group, "INSERT INTO kind VALUES (100, 'late')"):
                wait_for(lambda: waiting(herd, group) >= 3, "commits wait for the standby", 20, every=0.02)
                for process in watchers:
                    process.kill()
                at = datetime.now(UTC)
                os.kill(killed, signal.SIGKILL)
        finally:
            for sender in senders:
                with suppress(psutil.Error):
                    sender.kill()
        herd.await_restart(group, primary, killed)
        await_transfers(ledger, 50)
    back = min(when for when in ledger.acknowledged.values() if when > at) - at
    print(f"{group}: money moves again after {back.total_seconds():.2f} s")
    whole(herd, ledger)
    copies = []
    for each in GROUPS:
        with herd.connect("shop", "--group", each) as connection:
            copies.append(connection.execute("SELECT count(*) FROM kind WHERE id = 100").fetchone())
    herd.query("DELETE FROM kind WHERE id = 100 RETURNING id")
    assert len(set(copies)) == 1, f"the copies of a reference table have {copies} rows of a transaction"


def senders_of(postmaster: int) -> list[psutil.Process]:
    """The processes that send a server's log to its standbys."""
    return [
        child
        for child in psutil.Process(postmaster).children()
        if "walsender replicator" in " ".join(child.cmdline())
    ]


def waiting(home: Home, group: str) -> int:
    """How many sessions wait for the standby; asked of a server that acknowledges nothing."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with superuser(home, group) as connection:
        return int(connection.execute(query).fetchall()[0][0])


@contextmanager
def in_background(home: Home, group: str, statement: str) -> Iterator[None]:
    """Run a statement of the owner's through a group, whatever becomes of it."""

    def run() -> None:
        with suppress(psycopg.Error), home.connect("shop", "--group", group) as connection:
            connection.execute(statement)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)


def test_a_session_that_computes_does_not_hold_up_the_restart_of_its_primary(herd: Home) -> None:
    """It does not notice that its server was killed, and has its shared memory."""
    busy = "DO $$ BEGIN FOR i IN 1..2000000000 LOOP NULL; END LOOP; END $$"
    computes = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"
    with in_background(herd, "segment-1", busy):
        with superuser(herd, "segment-1") as connection:
            wait_for(lambda: connection.execute(computes).fetchone() == (1,), "it computes", 20)
        crash_primary(herd, "segment-1")
    herd.wait_phase("Running", timeout=180)


def test_a_primary_that_cannot_start_again_gives_way_to_its_standby(herd: Home) -> None:
    primary = herd.member("segment-2", "primary")["name"]
    settings = herd.path / "shop" / "members" / primary / "data" / "postgresql.auto.conf"
    good = settings.read_text()
    settings.write_text(f"{good}this is no setting\n")
    killed = time.monotonic()
    os.kill(herd.postmaster(primary), signal.SIGKILL)
    herd.await_another_primary("segment-2", primary, 30)
    print(f"another one led after {time.monotonic() - killed:.1f} s")
    settings.write_text(good)
    herd.wait_phase("Running", timeout=180)


def test_a_switchover_pauses_writers_and_fails_nobody(herd: Home) -> None:
    with writers(sessions(herd), 8) as journal:
        wait_for(lambda: len(journal.acknowledged) > 100, "writers are at work")
        began = time.monotonic()
        herd.run("switchover", "shop", "--group", "segment-1")
        done = len(journal.acknowledged)
        wait_for(lambda: len(journal.acknowledged) > done + 100, "writers go on", 60)
    gap = longest_gap(journal.latencies, began)
    print(f"switchover: the longest pause was {gap:.2f} s, {len(journal.unknown)} writes failed")
    assert journal.unknown == []
    reconcile(herd, journal)


# growing and shrinking


def test_out_to_four_and_back_under_writers(herd: Home) -> None:
    expected = contents(herd)
    shards = sum(group["shards"] for group in herd.status()["groups"])
    with writers(sessions(herd), 8) as journal:
        herd.run("scale", "shop", "--segments", "4", timeout=400)
        grown = herd.wait_phase("Running", timeout=120)
        herd.run("scale", "shop", "--segments", "2", timeout=400)
    herd.wait_phase("Running", timeout=120)
    counts = [group["shards"] for group in grown["groups"][1:]]
    assert sum(counts) == shards
    assert max(counts) - min(counts) <= 1
    assert contents(herd) == expected
    assert journal.unknown == []
    reconcile(herd, journal)
    with superuser(herd) as connection:
        nodes = connection.execute("SELECT DISTINCT groupid FROM pg_dist_node ORDER BY 1").fetchall()
    assert nodes == [(0,), (1,), (2,)]
    slowest = max(seconds for _, seconds in journal.latencies)
    print(f"{len(journal.acknowledged)} writes, the slowest took {slowest:.2f} s")
    sound(herd)


@pytest.mark.parametrize("victim", ["source", "target", "coordinator"])
def test_a_primary_killed_in_the_middle_of_a_move_loses_nothing(herd: Home, victim: str) -> None:
    expected = contents(herd)
    with writers(sessions(herd), 2) as journal:
        herd.run("scale", "shop", "--segments", "3", "--no-wait")
        move = moving(herd)
        kill_primary(herd, "coordinator" if victim == "coordinator" else f"segment-{move[victim]}")
        herd.wait_phase("Running", timeout=240)
        herd.run("scale", "shop", "--segments", "2", timeout=400)
    herd.wait_phase("Running", timeout=120)
    assert contents(herd) == expected
    reconcile(herd, journal)
    sound(herd)


def moving(home: Home) -> dict[str, Any]:
    def look() -> Any:
        rows = home.query(
            "SELECT detail FROM pgherd.operation_steps s JOIN pgherd.operations o ON o.id = s.operation_id"
            " WHERE o.finished_at IS NULL AND s.kind = 'move' AND s.state = 'running'"
        )
        return rows[0][0] if rows else None

    return dict(wait_for(look, "a move is under way", 120, every=0.02))


def test_a_cancelled_expansion_leaves_everything_as_it_was(herd: Home) -> None:
    expected = contents(herd)
    herd.run("scale", "shop", "--segments", "3", "--no-wait")
    moving(herd)
    herd.run("cancel", "shop")
    herd.run("scale", "shop", "--segments", "2", timeout=400)
    assert len(herd.wait_phase("Running", timeout=180)["groups"]) == 3
    assert contents(herd) == expected
    sound(herd)


def test_tables_that_cannot_move_online_are_named_before_anything_starts(herd: Home) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE keyless (id int, note text)")
        connection.execute("SELECT create_distributed_table('keyless', 'id')")
        connection.execute("INSERT INTO keyless SELECT g, 'x' FROM generate_series(1, 100) g")
    refused = herd.run("rebalance", "shop", check=False)
    assert refused.returncode == 1
    assert "keyless has no primary key: add one" in refused.stdout + refused.stderr
    herd.up(declared(3, extra="  expansion: {mode: blocking}\n"), timeout=400)
    assert herd.query("SELECT count(*) FROM keyless") == [(100,)]
    herd.up(declared(2, extra="  expansion: {mode: blocking}\n"), timeout=400)
    assert herd.query("SELECT count(*) FROM keyless") == [(100,)]
    with herd.connect() as connection:
        connection.execute("DROP TABLE keyless")


def test_schemas_as_tenants_move_like_shards(herd: Home) -> None:
    with herd.connect() as connection:
        for tenant in range(4):
            connection.execute(f"CREATE SCHEMA tenant{tenant}")
            connection.execute(f"CREATE TABLE tenant{tenant}.note (id int PRIMARY KEY)")
            connection.execute(f"SELECT citus_schema_distribute('tenant{tenant}')")
            connection.execute(f"INSERT INTO tenant{tenant}.note VALUES (1), (2)")
    herd.up(declared(3), timeout=400)
    placed = herd.query("SELECT DISTINCT group_id FROM pgherd.shard_map WHERE relation::text LIKE 'tenant%'")
    assert len(placed) == 3
    herd.up(declared(2), timeout=400)
    for tenant in range(4):
        assert herd.query(f"SELECT count(*) FROM tenant{tenant}.note") == [(2,)]
        with herd.connect() as connection:
            connection.execute(f"DROP SCHEMA tenant{tenant} CASCADE")
    sound(herd)


# bad input


def test_a_postgresql_without_citus_is_refused_in_one_line() -> None:
    with citus_home({"PGHERD_BIN_DIR": ""}) as home:
        done = home.up(declared(), check=False)
        assert done.returncode == 2
        assert "citus is not in the PostgreSQL" in done.stderr
        assert "--bin-dir" in done.stderr
        assert not home.path.exists() or not home.processes()
