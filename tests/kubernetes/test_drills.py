"""Drills and clones on a real Kubernetes, of backups in a real S3 server: what is proven, what is told, what is left.

Everything that a drill makes carries the label of its scratch, ``vault-drill``; after each of them nothing has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pgherd.platform.kubernetes import drills
from tests.kubernetes.damage import damage
from tests.kubernetes.kube import Cluster, Namespace, wait_for
from tests.kubernetes.pgherd import Done
from tests.kubernetes.test_backups import PATIENCE, Bank, crashing, declared
from tests.kubernetes.test_backups import store as store
from tests.kubernetes.test_operator import patched, survived
from tests.support.money import ACCOUNTS, SUM, await_transfers, make_tables, movers, pause
from tests.support.objects import Objects
from tests.support.points import newest

pytestmark = [pytest.mark.kubernetes, pytest.mark.long]

NAME, SCRATCH, COPY = "vault", "vault-drill", "vault-copy"
LONG = 900.0
"""seconds that a drill may take in a lab that has other work"""
CRASHES = (
    "drill:begun",
    "drill:counted",
    "drill:declared",
    "drill:restored",
    "drill:examined",
    "drill:verified",
    "drill:remembered",
    "drill:removed",
)


class Vault(Bank):
    """A bank whose backups are tried."""

    def drill(self, *options: str, **how: Any) -> Done:
        return self.run("drill", self.name, *options, timeout=LONG, **how)

    def drills(self) -> list[dict[str, Any]]:
        return self.rows("drills")

    def left(self) -> list[str]:
        """What there is of the scratch."""
        kinds = "pgc,pods,pvc,sts,svc,cm,secrets,sa,roles,rolebindings,pdb,netpol"
        text = self.namespace.kubectl(
            "get", kinds, "-l", f"pgherd.io/cluster={SCRATCH}", "-o", "name", "--ignore-not-found"
        )
        found = text.split()
        return found + ([f"pgc/{SCRATCH}"] if self.namespace.exists("pgc", SCRATCH) else [])

    def assert_nothing_is_left(self) -> None:
        wait_for(lambda: not self.left(), f"nothing is left of {SCRATCH}: {self.left()}", 60, every=1)

    def await_condition(self, status: str, reason: str) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            found = self.cluster.condition("RestoreProven")
            return found if (found.get("status"), found.get("reason")) == (status, reason) else None

        return dict(wait_for(there, f"RestoreProven is {status} ({reason})", LONG, every=1))

    def events(self, kind: str) -> list[str]:
        """What was told of the cluster."""
        found = self.namespace.list("events")
        return [
            str(each["message"])
            for each in found
            if each["involvedObject"]["name"] == self.name and each["type"] == kind
        ]


@pytest.fixture(scope="module")
def vault(namespace: Namespace, store: Objects) -> Iterator[Vault]:
    made = Vault(namespace, NAME)
    try:
        made.cluster.apply(standbys=0, backup=declared(store))
        made.cluster.wait_phase("Running", timeout=PATIENCE)
        with made.connected() as connection:
            make_tables(connection)
        made.await_backup()
        yield made
    finally:
        for name in (NAME, SCRATCH, COPY):
            made.run("delete", name, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgbs", "--all", check=False)


@contextmanager
def meanwhile(vault: Vault, *options: str) -> Iterator[list[Done]]:
    """A drill by hand goes on as long as the block lasts, and to its end."""
    ended: list[Done] = []
    thread = threading.Thread(target=lambda: ended.append(vault.drill(*options, check=False)), daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        thread.join(LONG)


def test_a_drill_under_moving_money_proves_the_backups_and_leaves_nothing(vault: Vault) -> None:
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 50)
        done = vault.drill("--table", "account", "--table", "transfer")
    assert not ledger.errors, ledger.errors[:3]
    assert "was restored and is sound" in done.out, done
    assert "rows of 2 tables are as they were" in done.out, done
    assert "restoring d-" in done.err, done
    assert "reading tables and btree indexes" in done.err, done
    vault.assert_nothing_is_left()
    last = vault.drills()[-1]
    assert last["passed"], last
    assert all(each["done"] for each in last["checks"]), last
    assert {each["check"]: each["by"] for each in last["checks"]}["copies"] == "pgbackrest verify"
    assert [each.rpartition(".")[2] for each in last["compared"]["tables"]] == ["account", "transfer"]
    assert last["compared"]["rows"] + last["compared"]["rowsTouched"] >= ACCOUNTS
    assert last["restorePoint"] in vault.await_condition("True", "DrillPassed")["message"]
    assert any(last["restorePoint"] in text for text in vault.events("Normal"))
    assert not drills.is_asked(vault.cluster.resource)


def test_a_kept_scratch_is_of_the_cluster_archives_nothing_and_makes_room_for_the_next(
    vault: Vault, store: Objects
) -> None:
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 20)
        pause(ledger)
        vault.await_point_after(newest(ledger))
    vault.drill("--keep")
    scratch = Cluster(vault.namespace, SCRATCH)
    resource = scratch.resource
    assert "backup" not in resource["spec"]
    assert resource["metadata"]["labels"][drills.OF_LABEL] == NAME
    (owner,) = resource["metadata"]["ownerReferences"]
    assert owner["uid"] == vault.cluster.resource["metadata"]["uid"]
    assert not scratch.condition("BackupsHealthy")
    assert len(scratch.pods()) == 3, "no standbys"
    assert vault.run("check", SCRATCH, check=False).code == 0
    with vault.connected(SCRATCH) as connection:
        row = connection.execute("SELECT sum(balance), count(*) FROM account").fetchone()
        assert row == (SUM, ACCOUNTS)
        assert connection.execute("SHOW archive_mode").fetchone() == ("off",)
    first = resource["metadata"]["uid"]
    with meanwhile(vault) as ended:

        def another() -> bool:
            return bool(
                vault.namespace.exists("pgc", SCRATCH) and scratch.resource["metadata"]["uid"] != first
            )

        wait_for(another, "the next drill's scratch has taken its place", LONG)
        refused = vault.drill(check=False)
        assert refused.code == 2, refused
        assert "a drill of vault is going on: wait until it is done" in refused.err
        assert len(refused.err.strip().splitlines()) == 1
    assert ended[0].code == 0, ended
    vault.assert_nothing_is_left()


def test_what_can_not_be_is_refused_in_one_line_and_nothing_is_made(vault: Vault) -> None:
    known = len(vault.drills())
    wrong = vault.drill("--table", "nothing", check=False)
    assert wrong.code == 2, wrong
    assert wrong.err.strip().splitlines()[-1].endswith("table nothing: there is none of this name"), wrong
    vault.assert_nothing_is_left()
    assert len(vault.drills()) == known
    unknown = vault.run("clone", NAME, COPY, "--at", "nonsense", check=False)
    assert unknown.code == 2, unknown
    assert "no restore point 'nonsense' can be restored" in unknown.err
    assert not vault.namespace.exists("pgc", COPY)


def test_a_clone_at_a_point_holds_what_there_was_and_has_no_backups(vault: Vault) -> None:
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 20)
        pause(ledger)
        point = vault.await_point_after(newest(ledger))
    with vault.connected() as connection:
        (before,) = connection.execute("SELECT count(*) FROM transfer").fetchone() or (0,)
        connection.execute("DELETE FROM transfer")
    done = vault.run("clone", NAME, COPY, "--at", point["name"], timeout=LONG)
    assert f"as of restore point {point['name']}" in done.err, done
    with vault.connected(COPY) as connection:
        assert connection.execute("SELECT count(*) FROM transfer").fetchone() == (before,)
        assert connection.execute("SELECT sum(balance) FROM account").fetchone() == (SUM,)
    assert "backup" not in Cluster(vault.namespace, COPY).resource["spec"]
    refused = vault.run("clone", COPY, "vault-third", "--at", point["name"], check=False)
    assert refused.code == 2, refused
    assert f"{COPY} has no backups, and so no restore points" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    vault.run("delete", COPY, "--purge", "--yes")


def test_an_operator_that_is_killed_at_every_step_of_a_drill_is_followed_by_one_that_goes_on(
    vault: Vault, operator: Namespace
) -> None:
    known = {each["id"] for each in vault.drills()}
    with patched(operator, crashing(CRASHES)):
        done = vault.drill("--table", "account")
        assert "was restored and is sound" in done.out, done
        survived(operator, *CRASHES)
    new = [each for each in vault.drills() if each["id"] not in known]
    assert len(new) == 1, "it is remembered once"
    assert new[0]["compared"]["rows"] + new[0]["compared"]["rowsTouched"] >= ACCOUNTS
    vault.assert_nothing_is_left()
    wait_for(lambda: not drills.is_asked(vault.cluster.resource), "the wish is withdrawn", 60)


def test_a_schedules_drill_that_fails_is_a_condition_and_an_event_until_one_passes(
    vault: Vault, store: Objects
) -> None:
    known = {each["id"] for each in vault.drills()}

    def another() -> dict[str, Any] | None:
        return next((each for each in reversed(vault.seen("drills")) if each["id"] not in known), None)

    damage(store, NAME, "segment-1")
    vault.namespace.apply(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresBackupSchedule",
            "metadata": {"name": "yearly"},
            "spec": {
                "cluster": NAME,
                "cron": "0 0 1 1 *",
                "drill": {"every": "1m", "tables": ["account"]},
            },
        }
    )
    try:
        failed = dict(wait_for(another, "the schedule's drill is made", LONG))
        assert not failed["passed"], failed
        assert any("segment-1" in text and "is missing" in text for text in failed["problems"]), failed
        told = vault.await_condition("False", "DrillFailed")
        assert "segment-1" in told["message"], told
        assert any(
            text.startswith(f"a drill of {failed['restorePoint']} failed") for text in vault.events("Warning")
        )
        [row] = vault.run("backup-schedules", NAME, "-o", "json").json()
        assert (row["drill"]["every"], row["drill"]["tables"]) == ("1m", ["account"])
        # A new copy mends it, and the next drill says so by itself.
        vault.run("backup", NAME, timeout=PATIENCE)
        vault.await_condition("True", "DrillPassed")
    finally:
        vault.run("suspend-schedule", "yearly")
    wait_for(lambda: not vault.left(), "the last drill has ended", LONG, every=2)
    vault.run("delete-schedule", "yearly")


def test_a_kept_scratch_goes_with_its_cluster(vault: Vault) -> None:
    vault.drill("--keep")
    assert vault.namespace.exists("pgc", SCRATCH)
    vault.run("delete", NAME, "--purge", "--yes", timeout=LONG)
    wait_for(lambda: not vault.left(), "the scratch has gone, too", 300, every=1)
