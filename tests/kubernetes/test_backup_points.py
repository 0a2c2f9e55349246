"""The central promise of backups, on a real Kubernetes and with a real S3 server: every point is a moment at which the
whole cluster agrees.

Writers move money between accounts on different segments while points are made every second, and one on demand; a
segment fails over, and the cluster grows. Points from before, between and after are restored into new clusters,
``PGHERD_RESTORES`` of them: ``make e2e-points`` restores twenty.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kubernetes.kube import Cluster, Namespace
from tests.kubernetes.test_backups import PATIENCE, Bank, declared
from tests.kubernetes.test_backups import store as store
from tests.support.money import Ledger, await_transfers, make_tables, movers, pause
from tests.support.objects import Objects
from tests.support.points import Points, audit_point, choose, inside, kind, newest
from tests.support.repositories import restores, write_seconds

pytestmark = [pytest.mark.kubernetes, pytest.mark.long]

RESTORES = restores(4)
SECONDS = write_seconds(10)
AT_ONCE = 2
"""restores side by side: the lab has two cores"""
ON_DEMAND = "asked-for"
"""the backup whose point nobody waited a second for"""


@pytest.fixture(scope="module")
def treasury(namespace: Namespace, store: Objects) -> Iterator[Bank]:
    made = Bank(namespace, "treasury")
    try:
        made.cluster.apply(backup=declared(store, restorePointEvery="1s"))
        made.cluster.wait_phase("Running", timeout=PATIENCE)
        with made.connected() as connection:
            make_tables(connection)
        made.await_backup()
        yield made
    finally:
        made.run("delete", made.name, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgb", ON_DEMAND, "--ignore-not-found", check=False)


@pytest.fixture(scope="module")
def past(treasury: Bank) -> Ledger:
    """Money moves while a backup is made and rests while a segment fails over; it moves on, and the cluster grows."""
    with treasury.dsn() as dsn, movers(dsn) as ledger:
        time.sleep(SECONDS)
        treasury.ask(ON_DEMAND, "incremental")
        assert treasury.await_end(ON_DEMAND)["phase"] == "Done"
        time.sleep(SECONDS)
        pause(ledger)
        treasury.await_point_after(newest(ledger))
        treasury.fail_over("segment-1")
        ledger.paused.clear()
        await_transfers(ledger, 10)
        time.sleep(SECONDS)
        treasury.run("scale", treasury.name, "--segments", "3", timeout=600.0)
        await_transfers(ledger, 10)
        time.sleep(SECONDS)
    treasury.await_point_after(newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    assert len(ledger.acknowledged) > 100
    return ledger


def test_points_restored_at_random_have_the_right_sum_and_no_later_row(
    treasury: Bank, past: Ledger, tmp_path: Path
) -> None:
    offered = treasury.restorable()
    among = inside(offered, past)
    on_demand = [n for n in among if offered[n]["backup"] == ON_DEMAND]
    assert len(on_demand) == 1
    chosen = sorted(choose(offered, among, RESTORES, also=on_demand))
    before, after = {kind(offered[n])[0] for n in among}, {kind(offered[n])[1] for n in among}
    assert len(before) == 2, f"there are points from before and after the failover: timelines {before}"
    assert after == {3, 4}, "and from before and after it grew"

    def restored(n: int) -> int:
        return transfers_at(treasury, offered, n, past, tmp_path)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        held = list(pool.map(restored, chosen))
    assert held == sorted(held), "a later point holds more"
    assert held[-1] > held[0]


def transfers_at(treasury: Bank, offered: Points, n: int, past: Ledger, folder: Path) -> int:
    """A new cluster is made of a point, audited, and removed; returns how many transfers there were."""
    point = offered[n]
    then = Cluster(treasury.namespace, f"treasury-then-{n}")
    lean = folder / f"{then.name}.yaml"
    lean.write_text(json.dumps(then.declaration(segments=point["groups"] - 1, standbys=0)))
    try:
        treasury.run(
            "restore", treasury.name, then.name, "--point", point["name"], "--file", str(lean), timeout=900.0
        )
        with treasury.connected(then.name) as connection:
            held = audit_point(connection, past, offered, n)
        sound = treasury.run("check", then.name, check=False)
        assert sound.code == 0, sound
    finally:
        treasury.run("delete", then.name, "--purge", "--yes", check=False)
    return held
