"""Clones of a cluster without backups on a real Kubernetes: what they hold, and that nothing is left of making them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgherd.platform.kubernetes.restore_pods import RESTORE_LABEL
from tests.kubernetes.kube import Cluster, Namespace, wait_for
from tests.kubernetes.test_backups import Bank, crashing
from tests.kubernetes.test_operator import patched, survived
from tests.support.money import SUM, Ledger, audit, await_transfers, make_tables, movers

pytestmark = pytest.mark.kubernetes

NAME, COPY = "spring", "brook"
LONG = 600.0
"""seconds that a clone may take in a lab that has other work"""
GROUPS = ("coordinator", "segment-1", "segment-2")
CRASHES = (
    "clone:receiving",
    "clone:copied",
    "restore:planned",
    "restore:copied:1",
    "restore:reached:0",
    "restore:opened",
    "restore:settled",
    "restore:placed:0",
)


@pytest.fixture(scope="module")
def spring(namespace: Namespace) -> Iterator[Bank]:
    made = Bank(namespace, NAME)
    try:
        made.cluster.apply()
        made.cluster.wait_phase("Running", timeout=LONG)
        with made.connected() as connection:
            make_tables(connection)
        yield made
    finally:
        for name in (COPY, NAME):
            made.run("delete", name, "--purge", "--yes", check=False)


def members(cluster: Cluster) -> dict[str, tuple[str, int]]:
    """What runs, and how often it was restarted."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(each["restartCount"] for each in pod["status"]["containerStatuses"]),
        )
        for pod in cluster.pods()
    }


def slots(cluster: Cluster) -> list[str]:
    """Replication slots on all members, but for those of members, and who copies."""
    found = []
    for member in members(cluster):
        text = cluster.psql(
            member,
            "SELECT slot_name FROM pg_replication_slots WHERE temporary OR slot_name ~ 'pgherd' UNION ALL"
            " SELECT application_name FROM pg_stat_activity WHERE application_name ~ 'pgherd_copy|pg_basebackup'",
        )
        found += [f"{member}: {line}" for line in text.splitlines()]
    return found


def assert_nothing_is_left(bank: Bank) -> None:
    wait_for(lambda: not slots(bank.cluster), "nobody holds or reads the source's log", 90, every=2)
    assert not bank.namespace.list("pods", RESTORE_LABEL)
    assert not bank.namespace.exists("secret", f"{COPY}.recovery"), "nobody keeps the source's password"


def assert_holds(bank: Bank, ledger: Ledger, began: datetime) -> None:
    """What was there before it was begun, and no transfer in part."""
    with bank.connected(COPY) as connection:
        assert audit(connection, ledger, since=began - timedelta(seconds=2), until=datetime.now(UTC)) >= 20
        connection.execute("UPDATE account SET balance = balance + 0")


def test_a_clone_of_a_busy_cluster_without_backups_holds_every_row_and_leaves_nothing_on_its_source(
    spring: Bank, operator: Namespace
) -> None:
    before = members(spring.cluster)
    with spring.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 20)
        began = datetime.now(UTC)
        done = spring.run("clone", NAME, COPY, timeout=LONG)
        await_transfers(ledger, 5)
    assert f"{COPY}: a copy of {NAME}" in done.out + done.err
    assert not ledger.errors, ledger.errors[:3]
    assert_holds(spring, ledger, began)
    assert_nothing_is_left(spring)
    assert members(spring.cluster) == before
    with spring.connected() as connection:
        assert connection.execute("SELECT sum(balance) FROM account").fetchone() == (SUM,)
    logs = operator.kubectl("logs", "-l", "app.kubernetes.io/name=pgherd-operator", "--tail=-1")
    assert {group for group in GROUPS if f"{group} is copied from a standby" in logs}
    passwords: list[Any] = [
        spring.namespace.get("secret", f"{name}-credentials")["data"] for name in (NAME, COPY)
    ]
    assert not set(passwords[0].values()) & set(passwords[1].values()), "it has passwords of its own"
    status = Cluster(spring.namespace, COPY).wait_phase("Running")
    assert sorted(len(group["members"]) for group in status["groups"]) == [2, 2, 2]
    spring.run("delete", COPY, "--purge", "--yes")


def test_what_waits_for_its_source_says_so_and_a_clone_that_is_called_off_leaves_nothing(
    spring: Bank,
) -> None:
    copy = Cluster(spring.namespace, COPY)
    copy.apply(bootstrap={"clone": {"cluster": "sprnig"}})
    told = "there is no cluster sprnig here: it is waited for"
    wait_for(lambda: told in str(copy.status), "the status says what it waits for", 60)
    copy.patch({"bootstrap": {"clone": {"cluster": NAME}}})
    wait_for(lambda: spring.namespace.list("pods", RESTORE_LABEL), "it is begun", 60)
    spring.run("delete", COPY, "--purge", "--yes", timeout=LONG)
    assert_nothing_is_left(spring)
    assert not [each for each in spring.namespace.list("pvc") if COPY in each["metadata"]["name"]]


def test_what_postgresql_refuses_of_a_clone_is_said_before_it_starts_and_what_was_copied_is_kept(
    spring: Bank,
) -> None:
    copy = Cluster(spring.namespace, COPY)
    copy.apply(bootstrap={"clone": {"cluster": NAME}}, postgres={"parameters": {"shared_bufers": "1GB"}})
    says = 'spec.postgres.parameters.shared_bufers: unrecognized configuration parameter "shared_bufers"'
    wait_for(
        lambda: says in copy.condition("Degraded").get("message", ""), "the condition says so", LONG, every=2
    )
    volumes = {each["metadata"]["uid"] for each in spring.namespace.list("pvc", f"pgherd.io/cluster={COPY}")}
    copy.patch({"postgres": {"parameters": None}})
    copy.wait_phase("Running", timeout=LONG)
    after = {each["metadata"]["uid"] for each in spring.namespace.list("pvc", f"pgherd.io/cluster={COPY}")}
    assert volumes <= after, "they were copied once"
    with spring.connected(COPY) as connection:
        assert connection.execute("SELECT sum(balance) FROM account").fetchone() == (SUM,)
    spring.run("delete", COPY, "--purge", "--yes")


@pytest.mark.long
def test_an_operator_that_is_killed_at_every_step_of_a_clone_is_followed_by_one_that_goes_on(
    spring: Bank, operator: Namespace
) -> None:
    with spring.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 20)
        began = datetime.now(UTC)
        with patched(operator, crashing(CRASHES)):
            spring.run("clone", NAME, COPY, timeout=LONG)
            survived(operator, *CRASHES)
    assert not ledger.errors, ledger.errors[:3]
    assert_holds(spring, ledger, began)
    assert_nothing_is_left(spring)
    spring.run("delete", COPY, "--purge", "--yes")
