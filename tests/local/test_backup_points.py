"""The central promise of backups: every restore point is a moment at which the whole cluster agrees.

Writers move money between accounts on different segments while points are made every second; points chosen at random
are restored into new clusters. ``PGHERD_RESTORES`` says how many. From 20 on it is the long form: the cluster also
grows while money moves, and points from before, during and after that are restored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home
from tests.support.money import Ledger, audit, await_transfers, make_tables, movers, pause
from tests.support.points import audit_point, choose, inside, kind, newest
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    restorable,
    restores,
    with_backups,
    write_seconds,
)

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

RESTORES = restores(4)
IS_LONG = RESTORES >= 20
SECONDS = write_seconds(6)


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository"), timeout=300)
        with home.connect() as connection:
            make_tables(connection)
        await_first_backup(home)
        yield home


@pytest.fixture(scope="module")
def past(home: Home) -> Ledger:
    """Money moves, a segment fails over while it rests, and money moves on; in the long form the cluster then grows."""
    with movers(home.dsn()) as ledger:
        time.sleep(SECONDS)
        pause(ledger)
        await_point_after(home, newest(ledger))
        home.fail_over("segment-1")
        ledger.paused.clear()
        await_transfers(ledger, 10)
        time.sleep(SECONDS)
        if IS_LONG:
            home.run("scale", "shop", "--segments", "3", timeout=600)
            await_transfers(ledger, 10)
            time.sleep(SECONDS)
    await_point_after(home, newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    assert len(ledger.acknowledged) > 100
    return ledger


def test_points_restored_at_random_have_the_right_sum_and_no_later_row(
    home: Home, past: Ledger, tmp_path: Path
) -> None:
    offered = restorable(home)
    chosen = choose(offered, inside(offered, past), RESTORES)
    kinds = {kind(offered[n]) for n in chosen}
    assert {timeline for timeline, _ in kinds} == {1, 2}, (
        "there are points from before and after the failover"
    )
    assert {groups for _, groups in kinds} == ({3, 4} if IS_LONG else {3}), (
        "and from before and after it grew"
    )
    lean = tmp_path / "lean.yaml"
    held = []
    for n in sorted(chosen):
        point = offered[n]
        lean.write_text(declaration(name="any", segments=point["groups"] - 1, standbys=0))
        home.run("restore", "shop", "then", "--point", point["name"], "-f", str(lean), timeout=400)
        with home.connect("then") as connection:
            held.append(audit_point(connection, past, offered, n))
        assert_sound(home, "then")
        home.run("delete", "then", "--purge", "--yes")
    assert held == sorted(held), "a later point holds more"
    assert held[-1] > held[0]


def test_the_restored_cluster_is_one_of_its_own(home: Home, past: Ledger) -> None:
    target = restorable(home)[-1]
    told = home.run("restore", "shop", "twin", "--time", target["time"], timeout=400)
    assert target["name"] in told.stderr
    before = home.query("SELECT count(*), sum(balance) FROM account")
    with home.connect("twin") as connection:
        connection.execute("UPDATE account SET balance = 0")
        connection.execute("INSERT INTO transfer VALUES (-1, 1, 2, 3)")
    assert home.query("SELECT count(*), sum(balance) FROM account") == before
    assert home.query("SELECT count(*) FROM transfer WHERE id = -1") == [(0,)]
    assert home.dsn("twin") != home.dsn("shop")
    for group in ("coordinator", "segment-1", "segment-2"):
        assert home.member(group, "standby", "twin")["state"] in ("running", "streaming")
    assert_sound(home, "twin")
    # It keeps backups of its own, beside those of its source, and can be restored from them in turn.
    await_first_backup(home, "twin")
    bootstrap = "  bootstrap: {recovery: {cluster: twin}}\n"
    home.up(declaration(name="third", standbys=0, extra=bootstrap), timeout=400)
    assert home.query("SELECT sum(balance) FROM account", "third") == [(0,)]
    for name in ("third", "twin"):
        home.run("delete", name, "--purge", "--yes")


def test_a_clone_of_a_busy_cluster_spares_its_primaries_and_lacks_no_row_from_before_it(home: Home) -> None:
    with home.connect() as connection:
        connection.execute("DROP TABLE account, transfer")
        make_tables(connection)
    with movers(home.dsn()) as ledger:
        began = datetime.now(UTC)
        await_transfers(ledger, 50)
        home.run("clone", "shop", "dolly", timeout=600)
        await_transfers(ledger, 10)
    assert not ledger.errors, ledger.errors[:3]
    state = json.loads((home.path / "dolly" / "restore.json").read_text())
    made = datetime.fromisoformat(state["point"]["time"])
    with home.connect("dolly") as connection:
        # The point's time is read when it is made already: what was acknowledged well before is in it.
        since = made - timedelta(seconds=2)
        assert audit(connection, ledger, since=max(since, began), until=made) >= 50
    log = (home.path / "supervisor.log").read_text()
    assert {
        group
        for group in ("coordinator", "segment-1", "segment-2")
        if f"{group} is copied from a standby" in log
    }
    assert_sound(home, "dolly")
    home.run("delete", "dolly", "--purge", "--yes")
