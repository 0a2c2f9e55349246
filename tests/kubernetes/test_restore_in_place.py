"""Restoring in place on a real Kubernetes, from backups in a real S3 server: to a point, back again, killed anywhere.

While a cluster is restored a thread looks at its pods: members of two makings, or members beside the pods in which new
data are made, are never there at the same time.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pgherd.backup.records import now
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.restore_pods import RESTORE_LABEL
from tests.kubernetes.damage import damage
from tests.kubernetes.kube import KubectlError, Namespace, wait_for
from tests.kubernetes.pgherd import Done
from tests.kubernetes.test_backups import (
    KEYS,
    PATIENCE,
    RESTORE_CRASHES,
    Bank,
    crashing,
    declared,
)
from tests.kubernetes.test_backups import store as store
from tests.kubernetes.test_operator import around, patched, survived
from tests.support.money import audit, await_transfers, make_tables, movers, pause
from tests.support.objects import SECRET, Objects
from tests.support.points import moment, newest

pytestmark = [pytest.mark.kubernetes, pytest.mark.long]

NAME = "till"
LONG = 900.0
"""seconds that a restore may take in a lab that has other work"""
SHARDS = 16
"""rows that are enough to be on every segment"""
FOUND = ("in-place:looked", "in-place:decided")
THERE = (
    *FOUND,
    *around("StopMember", "Recover", "StartMember"),
    "restore:aside",
    *RESTORE_CRASHES,
)
BACK = (
    *FOUND,
    *around("StopMember", "Recover"),
    "restore:planned",
    "restore:aside",
    "restore:failed",
    "restore:put-back",
)
CONFIRMED = ("restore:confirmed", "restore:discarded")


class Till(Bank):
    """A bank that is taken back."""

    def take_back(self, point: str, *options: str, **how: Any) -> Done:
        return self.run(
            "restore", self.name, "--in-place", "--yes", "--point", point, *options, timeout=LONG, **how
        )

    def note(self, number: int) -> str:
        """Rows of this number, on every segment; a moment after their commit."""
        with self.connected() as connection:
            connection.execute(
                f"INSERT INTO note SELECT {number} * 1000 + g, {number} FROM generate_series(1, {SHARDS}) g"
            )
        return now()

    def notes(self) -> dict[int, int]:
        """How many rows there are of each number."""
        with self.connected() as connection:
            return dict(connection.execute("SELECT number, count(*) FROM note GROUP BY number").fetchall())

    def claims(self) -> list[str]:
        return sorted(
            each["metadata"]["name"]
            for each in self.namespace.list("pvc", f"{names.CLUSTER_LABEL}={self.name}")
        )

    def epochs(self) -> set[int]:
        """Of which epochs there are volumes."""
        claims = (names.claim_of(self.name, each) for each in self.claims())
        return {claim[1] for claim in claims if claim is not None}

    def stores(self) -> set[int]:
        """Of which epochs there is anything in Patroni's store."""
        found = self.namespace.list("cm", f"{names.CLUSTER_LABEL}={self.name},{names.SCOPE_LABEL}")
        return {names.epoch_of_scope(each["metadata"]["labels"][names.SCOPE_LABEL]) for each in found}

    def condition(self) -> dict[str, Any]:
        return self.cluster.condition("RestoredInPlace")

    def uids(self) -> set[str]:
        """Of its pods."""
        return {pod["metadata"]["uid"] for pod in self.cluster.pods()}

    def running(self) -> None:
        self.cluster.wait_phase("Running", timeout=PATIENCE)

    def is_well(self) -> None:
        assert self.run("check", self.name, check=False).code == 0
        assert not self.namespace.list("pods", RESTORE_LABEL), "what was only needed meanwhile is gone"

    def confirm(self) -> None:
        """If there is anything to confirm."""
        if self.condition().get("reason") == "Unconfirmed":
            self.run("restore", self.name, "--confirm")


@pytest.fixture(scope="module")
def till(namespace: Namespace, store: Objects) -> Iterator[Till]:
    made = Till(namespace, NAME)
    try:
        made.cluster.apply(backup=declared(store))
        made.running()
        with made.connected() as connection:
            make_tables(connection)
            connection.execute("CREATE TABLE note (id int PRIMARY KEY, number int)")
            connection.execute("SELECT create_distributed_table('note', 'id')")
        made.await_backup()
        yield made
    finally:
        made.run("delete", NAME, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgb,pgbs", "--all", check=False)


@contextmanager
def one_at_a_time(till: Till) -> Iterator[None]:
    """Nobody runs on two makings at once as long as the block lasts."""
    over, seen = threading.Event(), list[str]()

    def look() -> None:
        while not over.wait(0.5):
            try:
                pods = till.namespace.list("pods", f"{names.CLUSTER_LABEL}={till.name}")
            except (KubectlError, OSError, subprocess.SubprocessError):
                continue
            labels = [pod["metadata"]["labels"] for pod in pods]
            epochs = {
                names.epoch_of_scope(each[names.SCOPE_LABEL]) for each in labels if names.SCOPE_LABEL in each
            }
            making = [each[RESTORE_LABEL] for each in labels if RESTORE_LABEL in each]
            if len(epochs) > 1 or (epochs and making):
                seen.append(f"members of {sorted(epochs)} beside the making of {making}")

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(60)
    assert not seen, seen[:3]


@contextmanager
def dying(operator: Namespace, points: tuple[str, ...]) -> Iterator[None]:
    """The operator dies by SIGKILL once at each place as long as the block lasts."""
    with patched(operator, crashing(points)):
        yield


@contextmanager
def wrong_keys(till: Till) -> Iterator[None]:
    """The repository refuses the keys as long as the block lasts, and everybody knows."""

    def set_key(key: str) -> None:
        change = {"data": {"secret-access-key": base64.b64encode(key.encode()).decode()}}
        till.namespace.kubectl("patch", "secret", KEYS, "--type", "merge", "-p", json.dumps(change))

    def healthy() -> str:
        return str(till.cluster.condition("BackupsHealthy").get("status"))

    set_key("nonsense")
    try:
        wait_for(lambda: healthy() == "False", "the keys are known to be refused", PATIENCE, every=1)
        yield
    finally:
        set_key(SECRET)
    wait_for(lambda: healthy() == "True", "the backups are well again", PATIENCE, every=1)


def test_a_cluster_is_taken_back_to_a_point_and_goes_on_from_there(till: Till) -> None:
    secret = till.namespace.get("secret", f"{NAME}-owner")["data"]
    with till.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 60)
        pause(ledger)
        point = till.await_point_after(newest(ledger))
        ledger.paused.clear()
        await_transfers(ledger, 60)
        pause(ledger)
        later = till.await_point_after(newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    with one_at_a_time(till):
        done = till.take_back(point["name"])
    assert f"{NAME}: restored after " in done.out, done
    assert f"restore {NAME} --confirm' removes it" in done.err, done
    with till.connected() as connection:
        at = moment(point["time"])
        assert audit(connection, ledger, since=at, until=at) >= 60
    till.is_well()
    assert till.namespace.get("secret", f"{NAME}-owner")["data"] == secret, "clients find it where it was"
    assert till.epochs() == {0, 1}
    assert till.condition()["reason"] == "Unconfirmed"
    # What came after the point can still be restored; what is written now is on a timeline of its own.
    assert later["name"] in {row["name"] for row in till.restorable()}
    following = till.await_point_after(till.note(1))
    assert following["lsns"]["1"]["timeline"] > point["lsns"]["1"]["timeline"]


def test_what_was_kept_is_seen_and_nothing_is_restored_over_it(till: Till) -> None:
    kept = till.cluster.status["restore"]["kept"]
    assert kept
    assert all(names.claim_of(NAME, each) is not None for each in kept)
    assert kept[0] in till.condition()["message"]
    assert kept[0] in till.run("status", NAME, "-o", "json").out
    again = till.take_back(till.restorable()[-1]["name"], check=False)
    assert (again.code, len(again.err.splitlines())) == (2, 1), again
    assert f"what {NAME} was before its last restore is still kept" in again.err
    refused = till.run("delete", NAME, check=False)
    assert "its data is kept, and what it was before it was restored" in refused.err
    assert set(kept) <= set(till.claims())


def test_confirming_removes_what_it_was_before(till: Till) -> None:
    before = till.notes()
    till.run("restore", NAME, "--confirm")
    assert till.epochs() == {1}
    wait_for(lambda: till.stores() == {1}, "its place in Patroni's store is gone", 60)
    wait_for(lambda: not till.condition(), "nothing is told of it any more", 60)
    assert till.notes() == before
    again = till.run("restore", NAME, "--confirm", check=False)
    assert (again.code, len(again.err.splitlines())) == (2, 1), again
    assert "nothing is kept from before a restore" in again.err
    # Members that come anew are given volumes of this making.
    till.run("scale", NAME, "--segments", "3", timeout=LONG)
    till.run("scale", NAME, "--segments", "2", timeout=LONG)
    assert till.epochs() == {1}
    assert till.notes() == before
    till.is_well()


def test_a_wish_that_makes_no_sense_is_told_and_changes_nothing(till: Till) -> None:
    pods, key = {pod["metadata"]["uid"] for pod in till.cluster.pods()}, names.RESTORE_ANNOTATION
    asked = json.dumps({"id": "by hand", "recovery": {"cluster": NAME, "point": "p1"}})
    till.namespace.kubectl("annotate", "--overwrite", "pgc", NAME, f"{key}={asked}")
    wait_for(lambda: till.condition().get("reason") == "Refused", "it is refused", 60)
    assert "recovery" in till.condition()["message"]
    till.namespace.kubectl("annotate", "pgc", NAME, f"{key}-")
    wait_for(lambda: not till.condition(), "nothing is told of it any more", 60)
    till.running()
    assert {pod["metadata"]["uid"] for pod in till.cluster.pods()} == pods


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"restorePoint": "nowhere"}, "no restore point 'nowhere' can be restored: there are"),
        ({"time": "2099-01-01T00:00:00Z"}, "2099-01-01T00:00:00Z is in the future: there are"),
    ],
)
def test_a_point_that_is_not_there_is_told_and_no_pod_ends(
    till: Till, operator: Namespace, wanted: dict[str, str], why: str
) -> None:
    pods, before, key = till.uids(), till.notes(), names.RESTORE_ANNOTATION
    backup = till.namespace.get("pgc", NAME)["spec"]["backup"]
    source = {
        name: backup[name] for name in ("method", "repository", "secretRef", "encrypt") if name in backup
    }
    asked = json.dumps({"id": why, "recovery": {"cluster": NAME, **source, **wanted}})
    with dying(operator, FOUND):
        till.namespace.kubectl("annotate", "--overwrite", "pgc", NAME, f"{key}={asked}")
        wait_for(lambda: till.condition().get("reason") == "Refused", "it is refused", PATIENCE)
        survived(operator, *FOUND)
    assert why in till.condition()["message"]
    assert till.uids() == pods
    till.namespace.kubectl("annotate", "pgc", NAME, f"{key}-")
    wait_for(lambda: not till.condition(), "nothing is told of it any more", 60)
    till.running()
    assert till.uids() == pods
    assert till.notes() == before


def test_a_repository_that_refuses_the_keys_costs_nothing_but_the_time(till: Till) -> None:
    point = till.await_point_after(till.note(2))
    till.note(3)
    before, claims, pods = till.notes(), till.claims(), till.uids()
    with wrong_keys(till), one_at_a_time(till):
        till.take_back(point["name"], "--no-wait")
        wait_for(
            lambda: "refuses these keys" in till.condition().get("message", ""), "it is waited for", PATIENCE
        )
        assert till.condition()["reason"] == "Waiting"
        till.run("cancel", NAME)
        wait_for(lambda: not till.condition(), "nothing is told of it any more", 60)
        assert till.uids() == pods
        # Where nobody runs it begins all the same, and is taken back.
        till.run("stop", NAME)
        failed = till.take_back(point["name"], check=False)
    assert failed.code == 1, failed
    assert f"{NAME}: is as it was before, the restore failed: " in failed.err
    assert "refuses these keys" in failed.err
    till.running()
    assert till.notes() == before
    assert till.condition()["reason"] == "TakenBack"
    assert "refuses these keys" in till.condition()["message"]
    wait_for(lambda: till.claims() == claims, "what was begun is gone", 120)
    till.is_well()


def test_what_has_to_wait_is_refused_in_one_line_and_a_restore_can_be_called_off(till: Till) -> None:
    point = till.await_point_after(till.note(4))
    till.note(5)
    before = till.notes()
    with one_at_a_time(till):
        till.take_back(point["name"], "--no-wait")
        for command in (
            ("scale", NAME, "--segments", "3"),
            ("rebalance", NAME),
            ("restore", NAME, "--in-place", "--yes"),
            ("restore", NAME, "--confirm"),
        ):
            refused = till.run(*command, check=False)
            assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused
            assert f"{NAME} is being restored in place" in refused.err
        wait_for(lambda: till.cluster.status["restore"]["phase"] == "copying", "it has begun", PATIENCE)
        till.run("cancel", NAME)
        wait_for(
            lambda: "it was called off" in till.condition().get("message", ""), "it is taken back", PATIENCE
        )
        till.running()
    assert till.condition()["reason"] == "TakenBack"
    assert till.notes() == before
    till.is_well()


def test_a_stop_in_the_middle_waits_for_the_start(till: Till) -> None:
    point = till.await_point_after(till.note(6))
    before = till.notes()
    till.note(7)
    with one_at_a_time(till):
        till.take_back(point["name"], "--no-wait")
        wait_for(lambda: till.namespace.list("pods", RESTORE_LABEL), "the restore has begun", PATIENCE)
        till.run("stop", NAME)
        assert not till.cluster.pods(role="primary")
        till.run("start", NAME, "--timeout", f"{LONG:.0f}", timeout=LONG)
    assert till.notes() == before
    assert till.condition()["reason"] == "Unconfirmed"


def test_a_deletion_keeps_both_and_a_new_cluster_takes_up_what_was_restored(
    till: Till, store: Objects
) -> None:
    before, claims, epochs = till.notes(), till.claims(), till.epochs()
    assert len(epochs) == 2
    told = till.run("delete", NAME, "--yes")
    assert "its data is kept, and what it was before it was restored" in told.out
    assert till.claims() == claims
    till.cluster.apply(backup=declared(store))
    till.running()
    assert till.notes() == before
    assert till.condition()["reason"] == "Unconfirmed"
    till.run("restore", NAME, "--confirm")
    assert till.epochs() == {max(epochs)}
    assert till.notes() == before


def test_an_operator_that_is_killed_at_every_step_is_followed_by_one_that_goes_on(
    till: Till, operator: Namespace
) -> None:
    till.confirm()
    point = till.await_point_after(till.note(8))
    before = till.notes()
    till.note(9)
    with dying(operator, (*THERE, *CONFIRMED)):
        with one_at_a_time(till):
            till.take_back(point["name"])
        survived(operator, *THERE)
        assert till.notes() == before
        till.run("restore", NAME, "--confirm")
        survived(operator, *CONFIRMED)
    assert len(till.epochs()) == 1
    assert till.notes() == before
    till.is_well()


def test_a_copy_that_is_damaged_leaves_everything_as_it_was_wherever_the_operator_is_killed(
    till: Till, operator: Namespace, store: Objects
) -> None:
    till.confirm()
    point = till.await_point_after(till.note(10))
    till.note(11)
    before = till.notes()
    damage(store, NAME, "segment-1")
    with dying(operator, BACK), one_at_a_time(till):
        failed = till.take_back(point["name"], check=False)
        survived(operator, *BACK)
    assert failed.code == 1, failed
    assert f"{NAME}: is as it was before, the restore failed: " in failed.err
    till.running()
    assert till.notes() == before
    wait_for(lambda: len(till.epochs()) == 1, "what was begun is gone", 120)
    till.is_well()
    # It goes on as before, and a new backup is as good as any.
    till.run("backup", NAME, timeout=LONG)
    till.await_point_after(till.note(12))


def test_a_purge_removes_what_was_kept_too(till: Till) -> None:
    point = till.await_point_after(till.note(13))
    till.take_back(point["name"])
    assert len(till.epochs()) == 2
    till.run("delete", NAME, "--purge", "--yes")
    wait_for(lambda: not till.claims(), "all volumes are gone", 120)
    left = till.namespace.kubectl("get", "cm,secrets", "-l", f"{names.CLUSTER_LABEL}={NAME}", "-o", "name")
    assert not left.split()
