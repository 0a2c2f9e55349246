"""A node dies under the pods in which data are made from a backup: they are made again elsewhere, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from pgherd.platform.base import PLACING, REPAIR_ENDED
from pgherd.platform.kubernetes.restore_pods import RESTORE_LABEL
from tests.kubernetes.kube import Cluster, lab, wait_for
from tests.kubernetes.test_backups import PATIENCE, contents, from_bank, settled_point
from tests.kubernetes.test_backups import store as store
from tests.kubernetes.test_repair import LONG, Vault
from tests.kubernetes.test_repair import vault as vault
from tests.support.money import audit, await_transfers, movers, pause
from tests.support.objects import Objects

pytestmark = [pytest.mark.kubernetes, pytest.mark.long, pytest.mark.alone]

LOST = 20
"""``replaceLostAfter``: seconds"""


def stands(cluster: Cluster, group: str) -> list[dict[str, Any]]:
    """Pods in which a group's data are made, that have a node."""
    label = f"{RESTORE_LABEL},pgherd.io/cluster={cluster.name}"
    found = cluster.namespace.list("pods", label)
    return [pod for pod in found if group in pod["metadata"]["name"] and pod["spec"].get("nodeName")]


@contextmanager
def dead_node_under(cluster: Cluster, group: str) -> Iterator[str]:
    """The node dies on which this group's data are made, and comes back at the end."""
    [pod] = wait_for(lambda: stands(cluster, group), f"{group} is being made somewhere", PATIENCE, every=0.2)
    node = pod["spec"]["nodeName"]
    number = node.removeprefix("node")
    lab("kill-node", number)
    try:
        yield node
    finally:
        lab("mend", number)


def test_a_restore_goes_on_without_the_node_that_died_under_it(vault: Vault, store: Objects) -> None:
    point, held = settled_point(vault, 10)
    moved = Cluster(vault.namespace, "vault-moved")
    try:
        recovery = from_bank(store, point, cluster=vault.name)
        moved.apply(standbys=0, replaceLostAfter=LOST, bootstrap=recovery)
        with dead_node_under(moved, "segment-1") as node:
            assert not vault.namespace.exists("pod", f"{moved.name}-segment-1-0"), "that was too late"
            moved.wait_phase("Running", timeout=LONG)
            assert node not in {pod["spec"]["nodeName"] for pod in moved.pods()}
            assert contents(vault, moved.name) == held
        vault.cluster.wait_phase("Running", timeout=LONG)
        wait_for(
            lambda: vault.run("check", moved.name, check=False).code == 0, "nothing is wrong", 120, every=2
        )
        assert not vault.namespace.list("pods", RESTORE_LABEL), "what was only needed meanwhile is gone"
        assert len(vault.namespace.list("pvc", f"pgherd.io/cluster={moved.name}")) == 3
    finally:
        vault.run("delete", moved.name, "--purge", "--yes", check=False)


def test_a_repair_goes_on_without_the_node_that_died_under_it(vault: Vault) -> None:
    vault.cluster.patch({"replaceLostAfter": LOST})
    vault.is_well()
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 30)
        pause(ledger)
    vault.archived()
    vault.lose()
    vault.await_told()
    vault.repair("--accept-data-loss", "--no-wait")
    with dead_node_under(vault.cluster, "segment-1") as node:
        assert vault.told()["phase"] not in (PLACING, *REPAIR_ENDED), "that was too late"
        done = vault.repair("--accept-data-loss")
        assert "segment-1 is back after" in done.out, done
        assert node not in {pod["spec"]["nodeName"] for pod in vault.cluster.pods("segment-1")}
        with vault.connected() as connection:
            end = datetime.now(UTC)
            assert audit(connection, ledger, since=end, until=end) >= len(ledger.acknowledged)
    vault.cluster.patch({"replaceLostAfter": None})
    vault.repair("--confirm")
    vault.is_well()
    assert len(vault.epochs()) == 1
