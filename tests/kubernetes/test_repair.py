"""A segment whose volumes are all lost comes back on a real Kubernetes, from backups in a real S3 server.

While a group is rebuilt the rest of its cluster goes on, and nobody removes what the group had before somebody says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from pgherd.platform.kubernetes import names, rebuilt
from pgherd.platform.kubernetes.epochs import Own
from pgherd.platform.kubernetes.restore_pods import RESTORE_LABEL
from tests.kubernetes.kube import Namespace, wait_for
from tests.kubernetes.pgherd import Done
from tests.kubernetes.test_backups import PATIENCE, Bank, declared
from tests.kubernetes.test_backups import store as store
from tests.kubernetes.test_operator import around, survived
from tests.kubernetes.test_restore_in_place import dying
from tests.support.money import audit, await_transfers, make_tables, movers, pause
from tests.support.objects import Objects
from tests.support.points import newest

pytestmark = [pytest.mark.kubernetes, pytest.mark.long]

NAME = "vault"
LONG = 900.0
"""seconds that a repair may take in a lab that has other work"""
CRASHES = (
    *around("Rebuild"),
    "repair:begun",
    "repair:copied",
    "repair:replayed",
)
ACCEPTED = (
    "repair:judged",
    "repair:settled",
    "repair:aside",
    "repair:whole",
    "repair:in-force",
    "repair:placed",
    "repair:joined",
)
CONFIRMED = ("repair:confirmed", "repair:discarded")


class Vault(Bank):
    """A bank that loses what is on a segment's volumes."""

    def repair(self, *options: str, group: str = "segment-1", **how: Any) -> Done:
        return self.run("repair", self.name, "--group", group, *options, **{"timeout": LONG, **how})

    def lose(self, group: str = "segment-1") -> None:
        """All volumes of a group, for good; of one that is not stopped Kubernetes makes empty ones in their place."""
        claims = {claim: self.namespace.get("pvc", claim)["metadata"]["uid"] for claim in self.claims(group)}
        pods = [pod["metadata"]["name"] for pod in self.cluster.pods(group)]
        self.namespace.kubectl("delete", "pvc", *claims, "--wait=false")
        if pods:
            self.namespace.kubectl("delete", "pod", *pods, timeout=180)

        def are_gone() -> bool:
            left = {each["metadata"]["uid"] for each in self.namespace.list("pvc")}
            return not left.intersection(claims.values())

        wait_for(are_gone, f"the volumes of {group} are gone", 120)

    def await_told(self, group: str = "segment-1") -> None:
        """Until the status says what is lost."""
        told = wait_for(
            lambda: self.cluster.condition("DataLost").get("message"), "a condition says so", PATIENCE
        )
        assert f"the data of {group} are gone" in told
        assert f"'pgherd repair {self.name} --group {group}'" in told

    def claims(self, group: str) -> list[str]:
        """Its volumes, of whatever epoch."""
        prefix = f"{names.CLUSTER_LABEL}={self.name},{names.GROUP_LABEL}={group}"
        return sorted(each["metadata"]["name"] for each in self.namespace.list("pvc", prefix))

    def epochs(self, group: str = "segment-1") -> set[int]:
        claims = (names.claim_of(self.name, each) for each in self.claims(group))
        return {claim[1] for claim in claims if claim is not None}

    def own(self) -> Own:
        """Which volumes are in force."""
        found = self.namespace.get("cm", f"{self.name}.recovery")["data"]["repairs.json"]
        return rebuilt.own(rebuilt.records_from(json.loads(found)), 0)

    def told(self, group: str = "segment-1") -> dict[str, Any]:
        """What the status says of a group's repair."""
        found = self.cluster.status.get("repairs") or []
        return next((dict(each) for each in found if each["group"] == group), {})

    def is_well(self) -> None:
        self.cluster.wait_phase("Running", timeout=PATIENCE)
        # It asks through tunnels, and takes who does not answer in time for absent.
        wait_for(
            lambda: self.run("check", self.name, check=False).code == 0, "nothing is wrong", 120, every=2
        )
        assert not self.namespace.list("pods", RESTORE_LABEL), "what was only needed meanwhile is gone"
        assert not self.cluster.condition("DataLost")

    def archived(self) -> None:
        """Everything that was acknowledged is in the repository."""
        self.await_point_after(self.write())


@pytest.fixture(scope="module")
def vault(namespace: Namespace, store: Objects) -> Iterator[Vault]:
    made = Vault(namespace, NAME)
    try:
        made.cluster.apply(backup=declared(store))
        made.cluster.wait_phase("Running", timeout=PATIENCE)
        with made.connected() as connection:
            make_tables(connection)
        made.await_backup()
        yield made
    finally:
        made.run("delete", NAME, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgb,pgbs", "--all", check=False)


def test_where_nothing_is_wrong_nothing_is_done(vault: Vault) -> None:
    refusals = {
        ("repair", NAME, "--group", "segment-1"): f"nothing is wrong with segment-1 of {NAME}",
        ("repair", NAME, "--group", "segment-9"): f"{NAME} has no segment-9: it has",
        ("repair", NAME, "--group", "nobody"): "is not a group",
        ("repair", "nobody", "--group", "segment-1"): "no cluster 'nobody'",
        ("repair", NAME, "--group", "segment-1", "--confirm"): "segment-1 was not repaired",
        (
            "repair",
            NAME,
            "--group",
            "segment-1",
            "--confirm",
            "--accept-data-loss",
        ): "--confirm ends a repair",
    }
    for arguments, complaint in refusals.items():
        refused = vault.run(*arguments, check=False)
        assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1), (arguments, refused)
        assert complaint in refused.err
    assert not vault.told()


def test_a_wish_that_makes_no_sense_is_told_and_changes_nothing(vault: Vault) -> None:
    key, pods = names.repair_annotation(1), {pod["metadata"]["uid"] for pod in vault.cluster.pods()}
    vault.namespace.kubectl("annotate", "pgc", NAME, f"{key}=soon")
    wait_for(lambda: vault.cluster.condition("Repairing").get("reason") == "Refused", "it is refused", 60)
    vault.namespace.kubectl("annotate", "pgc", NAME, f"{key}-")
    wait_for(lambda: not vault.cluster.condition("Repairing"), "nothing is told of it any more", 60)
    assert {pod["metadata"]["uid"] for pod in vault.cluster.pods()} == pods
    assert vault.epochs() == {0}


def test_a_segment_that_was_shut_down_comes_back_complete(vault: Vault) -> None:
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 60)
        pause(ledger)
    assert not ledger.errors, ledger.errors[:3]
    vault.run("stop", NAME, timeout=LONG)
    vault.lose()
    vault.run("start", NAME, "--no-wait")
    vault.await_told()
    assert not vault.cluster.pods("segment-1"), "nothing empty is put in place of the data"
    done = vault.repair()
    assert "segment-1 is back after" in done.out, done
    assert "(rung: repository)" in done.out
    assert "was shut down at" in done.out
    vault.is_well()
    with vault.connected() as connection:
        end = datetime.now(UTC)
        assert audit(connection, ledger, since=end, until=end) >= len(ledger.acknowledged)
    assert vault.told()["findings"] == []
    assert len(vault.cluster.pods("segment-1")) == 2, "its standby was copied from it"
    [epoch] = vault.epochs()
    assert epoch == vault.own().of(1) > 0
    vault.repair("--confirm")
    assert not vault.told()
    vault.archived()


def test_a_segment_whose_volumes_are_lost_while_it_serves_comes_back_if_that_is_accepted(
    vault: Vault,
) -> None:
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 60)
        pause(ledger)
        vault.await_point_after(newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    vault.lose()
    vault.await_told()
    doubted = vault.repair(check=False)
    assert (doubted.code, len(doubted.err.splitlines()[-1:])) == (1, 1), doubted
    assert "it may not get back all it had: the archived log ends at" in doubted.err
    assert "nothing is known to be missing" in doubted.err
    assert "--accept-data-loss' goes on without it" in doubted.err
    told = vault.cluster.condition("Repairing")
    assert (told["status"], told["reason"]) == ("False", "InDoubt")
    assert vault.told()["phase"] == "in doubt"
    assert not vault.namespace.list("pods", RESTORE_LABEL), "nobody waits in a pod for somebody to decide"
    assert len(vault.epochs()) == 2
    refused = vault.run("restore", NAME, "--in-place", "--yes", check=False)
    assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused
    assert f"segment-1 of {NAME} is being rebuilt" in refused.err
    done = vault.repair("--accept-data-loss")
    assert "segment-1 is back after" in done.out, done
    assert "(rung: accepted loss)" in done.out
    vault.is_well()
    with vault.connected() as connection:
        end = datetime.now(UTC)
        assert audit(connection, ledger, since=end, until=end) >= len(ledger.acknowledged)
    assert vault.told()["findings"] == []
    assert len(vault.cluster.pods("segment-1")) == 2, "its standby was copied from it"


def test_what_was_before_is_kept_until_somebody_confirms(vault: Vault) -> None:
    kept = vault.told()["kept"].split(", ")
    assert len(kept) == 2
    assert len(vault.epochs()) == 2
    vault.repair("--confirm")
    assert not {*kept}.intersection(vault.claims("segment-1"))
    assert vault.epochs() == {vault.own().of(1)}
    assert not vault.told()
    annotations = vault.cluster.resource["metadata"].get("annotations") or {}
    assert names.repair_annotation(1) not in annotations
    # It goes on as before: points can be restored, and members come anew on volumes of this making.
    vault.archived()
    vault.is_well()


def test_an_operator_that_is_killed_at_every_step_is_followed_by_one_that_goes_on(
    vault: Vault, operator: Namespace
) -> None:
    with vault.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 30)
        pause(ledger)
        vault.await_point_after(newest(ledger))
    vault.lose()
    vault.await_told()
    with dying(operator, (*CRASHES, *ACCEPTED, *CONFIRMED)):
        assert vault.repair(check=False).code == 1
        survived(operator, *CRASHES)
        vault.repair("--accept-data-loss")
        survived(operator, *ACCEPTED)
        vault.is_well()
        vault.repair("--confirm")
        survived(operator, *CONFIRMED)
    assert len(vault.epochs()) == 1
    with vault.connected() as connection:
        end = datetime.now(UTC)
        assert audit(connection, ledger, since=end, until=end) >= len(ledger.acknowledged)
    vault.is_well()


def test_a_repair_that_nobody_wants_any_more_leaves_nothing_behind(vault: Vault) -> None:
    vault.archived()
    if vault.told().get("kept"):
        vault.repair("--confirm")
    before = vault.epochs()
    vault.lose()
    vault.await_told()
    assert vault.repair(check=False).code == 1
    assert len(vault.epochs()) == 2
    vault.namespace.kubectl("annotate", "pgc", NAME, f"{names.repair_annotation(1)}-")
    wait_for(lambda: not vault.told(), "nothing is told of it any more", 60)
    wait_for(lambda: vault.epochs() == before, "what was made is gone", 120)
    assert vault.cluster.condition("DataLost"), "nothing was put in place of the data"
    vault.repair("--accept-data-loss")
    vault.is_well()


def test_what_was_repaired_outlives_its_resource(vault: Vault, store: Objects) -> None:
    vault.archived()
    with vault.connected() as connection:
        rows = connection.execute("SELECT count(*), sum(balance) FROM account").fetchone()
    own = vault.own()
    assert own.of(1) > 0
    vault.run("delete", NAME, "--yes", timeout=LONG)
    vault.cluster.apply(backup=declared(store))
    vault.is_well()
    with vault.connected() as connection:
        assert connection.execute("SELECT count(*), sum(balance) FROM account").fetchone() == rows
    assert vault.own() == own
