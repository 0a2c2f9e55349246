"""Backups on a real Kubernetes, into a real S3 server: money moves between segments, and every point holds all of it.

The server runs on the lab's control plane, where pods reach it. Its certificate is from an authority of its own, which
members and operator know from the Secret alone; everything in the bucket is encrypted.
"""

from __future__ import annotations

import functools
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd.backup.records import now
from pgherd.remote.client import KubernetesClient
from tests.kubernetes.conftest import installed
from tests.kubernetes.kube import ENGINE, Cluster, Namespace, wait_for
from tests.kubernetes.pgherd import Done, pgherd
from tests.kubernetes.test_operator import LOG, RESTART, patched, survived
from tests.support.money import ACCOUNTS, await_transfers, make_tables, move, movers, pause
from tests.support.objects import BUCKET, KEY, SECRET, Objects, objects
from tests.support.points import audit_point, inside, newest
from tests.support.repositories import stir

pytestmark = pytest.mark.kubernetes

CONTROL_PLANE = "192.168.50.1"
KEYS = "safe-keys"
PATIENCE = 300.0
BACKUP_CRASHES = ("backup:running", "backup:group:copied", "backup:group:recorded", "backup:point")
RESTORE_CRASHES = (
    "restore:planned",
    "restore:copied:1",
    "restore:copied",
    "restore:reached:0",
    "restore:reached",
    "restore:opened:2",
    "restore:opened",
    "restore:settled",
    "restore:placed:0",
    "restore:placed",
)
KNOWN_ADDRESSES = {
    "fdw": "SELECT string_agg(o, ' ') FROM pg_foreign_server s, unnest(srvoptions) o",
    "citus": "SELECT string_agg(nodename, ' ') || ' ' || current_setting('citus.node_conninfo')"
    " FROM pg_dist_node WHERE groupid > 0",
}
"""where the coordinator finds segments, and whom it takes for them"""


class Bank:
    """A cluster with backups, whose money moves."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        self.namespace, self.name = namespace, name
        self.cluster = Cluster(namespace, name)

    def run(self, command: str, *arguments: str, **how: Any) -> Done:
        return pgherd("-n", self.namespace.name, command, *arguments, **how)

    def rows(self, command: str) -> list[dict[str, Any]]:
        return list(self.run(command, self.name, "-o", "json").json())

    def seen(self, what: str) -> list[dict[str, Any]]:
        """As :meth:`rows`, for looks that are taken again and again: without a new process for each of them."""
        client = self._client
        asked = {"backups": client.backups, "restore-points": client.restore_points, "drills": client.drills}
        return asked[what](self.name)

    @functools.cached_property
    def _client(self) -> KubernetesClient:
        return KubernetesClient(namespace=self.namespace.name)

    def restorable(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("restore-points") if row["restorable"]]

    def await_point_after(self, moment: str) -> dict[str, Any]:
        """The first restorable point that holds all that is there now, and is later than ``moment``."""
        after = max(moment, now())
        with self.connected() as connection:
            stir(connection)

        def there() -> dict[str, Any] | None:
            rows = self.seen("restore-points")
            return next((row for row in rows if row["restorable"] and row["began"] > after), None)

        return dict(wait_for(there, f"a point of {self.name} after {after} can be restored", PATIENCE))

    def write(self) -> str:
        """Change a row, without which no point is made; returns a time right before."""
        before = now()
        with self.connected() as connection:
            connection.execute("UPDATE account SET balance = balance WHERE id = 1")
        return before

    def await_backup(self) -> dict[str, Any]:
        def done() -> dict[str, Any] | None:
            return next((row for row in self.seen("backups") if row["phase"] == "done"), None)

        return dict(wait_for(done, f"{self.name} has a backup", PATIENCE))

    def ask(self, name: str, kind: str = "full") -> None:
        """Declare a backup."""
        self.namespace.apply(
            {
                "apiVersion": "pgherd.io/v1alpha1",
                "kind": "PostgresBackup",
                "metadata": {"name": name},
                "spec": {"cluster": self.name, "type": kind},
            }
        )

    def asked(self, name: str) -> dict[str, Any]:
        """What became of it so far."""
        return dict(self.namespace.get("pgb", name).get("status") or {})

    def await_end(self, name: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            found = self.asked(name)
            return found if found.get("phase") in ("Done", "Failed") else None

        return dict(wait_for(ended, f"backup {name} ends", PATIENCE, every=1))

    def fail_over(self, group: str) -> None:
        """A group's primary goes, and another member leads."""
        before = self.cluster.leader(group)
        self.namespace.kubectl("delete", "pod", str(before), "--wait=false")
        wait_for(lambda: self.cluster.leader(group) not in (None, "", before), "another one leads", 90)

    @contextmanager
    def dsn(self, name: str = "") -> Iterator[str]:
        """A way in, through a tunnel of this process."""
        client = KubernetesClient(namespace=self.namespace.name)
        (_, text), secret = client.psql_command(name or self.name)
        yield f"{text} password={secret['PGPASSWORD']}"

    @contextmanager
    def connected(self, name: str = "") -> Iterator[psycopg.Connection[Any]]:
        with self.dsn(name) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
            yield connection


@pytest.fixture(scope="module")
def store(in_lab: bool, namespace: Namespace) -> Iterator[Objects]:
    if not in_lab:
        pytest.skip("the S3 server is in the lab's network")
    enter = (sys.executable, "-m", "lab", "run")
    with (
        tempfile.TemporaryDirectory(prefix="pgherd-s3-") as folder,
        objects(Path(folder) / "s3", CONTROL_PLANE, enter) as server,
    ):
        keys = {
            "access-key-id": KEY,
            "secret-access-key": SECRET,
            "passphrase": "correct horse battery staple",
            "ca.crt": server.authority.read_text(),
        }
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS}, "stringData": keys}
        namespace.apply(secret)
        yield server


def declared(store: Objects, **more: Any) -> dict[str, Any]:
    """``spec.backup``"""
    s3 = {"bucket": BUCKET, "endpoint": store.endpoint, "uriStyle": "path"}
    return {
        "method": "pgbackrest",
        "repository": {"s3": s3},
        "secretRef": KEYS,
        "encrypt": True,
        "restorePointEvery": "2s",
        **more,
    }


@pytest.fixture(scope="module")
def bank(namespace: Namespace, store: Objects) -> Iterator[Bank]:
    made = Bank(namespace, "bank")
    try:
        made.cluster.apply(backup=declared(store))
        made.cluster.wait_phase("Running", timeout=PATIENCE)
        with made.connected() as connection:
            make_tables(connection)
        made.await_backup()
        yield made
    finally:
        for name in ("bank", "bank-copy", "bank-again"):
            made.run("delete", name, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgb,pgbs", "--all", check=False)


def test_backups_are_healthy_and_told_everywhere(bank: Bank) -> None:
    def told() -> bool:
        last = (bank.cluster.status.get("backups") or {}).get("lastBackup") or {}
        return (
            bank.cluster.condition("BackupsHealthy").get("status") == "True" and last.get("phase") == "done"
        )

    wait_for(told, "backups are healthy, and the first one is told of", 90)
    status = bank.cluster.status["backups"]
    assert status["method"] == "pgbackrest"
    assert status["repository"] == f"s3://{BUCKET}/bank"
    [first] = bank.rows("backups")
    assert set(first["groups"]) == {"0", "1", "2"}
    assert all(group["type"] == "full" for group in first["groups"].values())


def test_keys_are_in_no_environment_and_in_no_declaration(bank: Bank) -> None:
    for pod in bank.cluster.pods():
        environment = bank.namespace.kubectl("exec", pod["metadata"]["name"], "--", "env")
        assert SECRET not in environment
        assert SECRET not in str(pod)


def test_a_point_under_moving_money_is_restored_into_a_new_cluster(bank: Bank) -> None:
    with bank.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 100)
        done = bank.run("backup", bank.name, "--type", "incremental", timeout=PATIENCE)
        assert "is done (3 groups" in done.out, done
        await_transfers(ledger, 100)
        pause(ledger)
        bank.await_point_after(newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    offered = bank.restorable()
    among = inside(offered, ledger)
    assert len(among) >= 3, offered
    chosen = random.choice(among)
    point = offered[chosen]
    restored = bank.run("restore", bank.name, "bank-copy", "--point", point["name"], timeout=600.0)
    assert "bank-copy: restored after " in restored.out, restored
    with bank.connected("bank-copy") as connection:
        transfers = audit_point(connection, ledger, offered, chosen)
    assert 0 < transfers < len(ledger.acknowledged)
    # Of a member that is too busy to answer a look it is told that it is starting.
    wait_for(
        lambda: bank.run("check", "bank-copy", check=False).code == 0, "nothing is wrong with it", PATIENCE
    )
    # It is one of its own: other passwords, other addresses, another place in the bucket, standbys.
    one, other = (bank.namespace.get("secret", f"{name}-owner")["data"] for name in ("bank", "bank-copy"))
    assert one["password"] != other["password"]
    segments = Cluster(bank.namespace, "bank-copy").psql(
        Cluster(bank.namespace, "bank-copy").member("coordinator", "primary"),
        KNOWN_ADDRESSES[ENGINE],
    )
    assert "bank-copy-segment-1" in segments
    assert f"{bank.namespace.name}.bank-copy.ca.crt" in segments
    assert f"{bank.namespace.name}.bank.ca.crt" not in segments
    assert not bank.namespace.list("pods", "pgherd.io/restore"), "what was only needed meanwhile is gone"


def test_an_unknown_point_changes_nothing(bank: Bank) -> None:
    wrong = bank.run("restore", bank.name, "bank-none", "--point", "nonsense", check=False)
    assert wrong.code == 2
    assert "no restore point 'nonsense' can be restored: there are " in wrong.err
    assert not bank.namespace.exists("pgc", "bank-none")


def test_backups_are_resources(bank: Bank) -> None:
    bank.namespace.apply(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresBackup",
            "metadata": {"name": "before-release"},
            "spec": {"cluster": bank.name, "type": "differential"},
        }
    )

    def done() -> bool:
        status = bank.namespace.get("pgb", "before-release").get("status") or {}
        assert status.get("phase") != "Failed", status
        return bool(status.get("phase") == "Done")

    wait_for(done, "the declared backup is done", PATIENCE)
    status = bank.namespace.get("pgb", "before-release")["status"]
    assert status["restorePoint"]
    assert {group["type"] for group in status["groups"].values()} == {"differential"}


def test_backups_of_which_nothing_can_come_say_why(bank: Bank) -> None:
    for name, cluster in (("of-nobody", "bankk"), ("of-none", "plain")):
        bank.namespace.apply(
            {
                "apiVersion": "pgherd.io/v1alpha1",
                "kind": "PostgresBackup",
                "metadata": {"name": name},
                "spec": {"cluster": cluster},
            }
        )
    plain = Cluster(bank.namespace, "plain")
    try:
        plain.apply(segments=1, standbys=0)

        def told(name: str) -> str:
            status = bank.namespace.get("pgb", name).get("status") or {}
            return str(status.get("message")) if status.get("phase") == "Waiting" else ""

        wait_for(
            lambda: f"there is no cluster bankk in namespace {bank.namespace.name}" in told("of-nobody"),
            "the backup of a cluster that is not there says so",
            60,
        )
        wait_for(
            lambda: "plain has no backups" in told("of-none"),
            "the backup of a cluster without backups says so",
            120,
        )
    finally:
        bank.run("delete", "plain", "--purge", "--yes", check=False)
        bank.namespace.kubectl("delete", "pgb", "of-nobody", "of-none", check=False)


def test_a_schedule_makes_backups(bank: Bank) -> None:
    bank.namespace.apply(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresBackupSchedule",
            "metadata": {"name": "each-minute"},
            "spec": {"cluster": bank.name, "cron": "* * * * *", "type": "incremental"},
        }
    )
    try:

        def made() -> bool:
            return any(
                row["id"].startswith("each-minute-") and row["phase"] == "done"
                for row in bank.seen("backups")
            )

        wait_for(made, "the schedule's first backup is done", PATIENCE)
        [row] = bank.run("backup-schedules", "-o", "json").json()
        assert row["lastBackup"].startswith("each-minute-")
    finally:
        bank.run("delete-schedule", "each-minute")
        # The last one that it began goes on, and there is one at a time.
        wait_for(
            lambda: all(row["phase"] in ("done", "failed") for row in bank.seen("backups")),
            "no backup goes on",
            PATIENCE,
        )


def test_an_operator_that_is_killed_in_a_backup_is_followed_by_one_that_goes_on(
    bank: Bank, operator: Namespace
) -> None:
    with patched(operator, crashing(BACKUP_CRASHES)):
        done = bank.run("backup", bank.name, timeout=600.0)
        assert "is done (3 groups" in done.out, done
        survived(operator, *BACKUP_CRASHES)
    last = bank.rows("backups")[-1]
    assert (last["phase"], set(last["groups"])) == ("done", {"0", "1", "2"})
    for pod in bank.cluster.pods():
        running = bank.namespace.kubectl("exec", pod["metadata"]["name"], "--", "sh", "-c", PROCESSES)
        assert "--log-level-console=detail" not in running, "no backup goes on in a pod"
    bank.await_point_after(now()[:10])


@pytest.mark.long
def test_an_operator_that_is_killed_at_every_step_of_a_restore_is_followed_by_one_that_goes_on(
    bank: Bank, operator: Namespace
) -> None:
    with bank.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 20)
        pause(ledger)
        point = bank.await_point_after(newest(ledger))
    with patched(operator, crashing(RESTORE_CRASHES)):
        bank.run("restore", bank.name, "bank-again", "--point", point["name"], timeout=900.0)
        survived(operator, *RESTORE_CRASHES)
    with bank.connected("bank-again") as connection:
        balances = connection.execute("SELECT sum(balance), count(*) FROM account").fetchone()
        transfers = connection.execute("SELECT count(*) FROM transfer").fetchone()
    assert balances is not None
    assert balances[0] == 64 * 1000
    assert transfers is not None
    assert transfers[0] >= len(ledger.acknowledged)


def from_bank(store: Objects, point: str, **more: Any) -> dict[str, Any]:
    """``spec.bootstrap``"""
    source = {key: value for key, value in declared(store).items() if key != "restorePointEvery"}
    return {"recovery": {"cluster": "bank", **source, "restorePoint": point, **more}}


def restore_pods(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.namespace.list("pods", f"pgherd.io/restore,pgherd.io/cluster={cluster.name}")


def contents(bank: Bank, name: str = "") -> tuple[int, int]:
    """All the money, and how many transfers there were."""
    with bank.connected(name) as connection:
        money = connection.execute("SELECT sum(balance)::bigint FROM account").fetchone()
        transfers = connection.execute("SELECT count(*) FROM transfer").fetchone()
    assert money is not None
    assert transfers is not None
    return money[0], transfers[0]


def settled_point(bank: Bank, transfers: int) -> tuple[str, tuple[int, int]]:
    """A point after some more transfers, and what the bank held then: nobody moves anything any more."""
    with bank.connected() as connection:
        highest = connection.execute("SELECT coalesce(max(id), 0) FROM transfer").fetchone()
        assert highest is not None
        for transfer in range(highest[0] + 1, highest[0] + 1 + transfers):
            move(connection, transfer, *random.sample(range(1, ACCOUNTS + 1), 2))
        last = now()
        # Without a write no point would follow.
        connection.execute("UPDATE account SET balance = balance WHERE id = 1")
    return bank.await_point_after(last)["name"], contents(bank)


def test_a_restore_waits_for_its_keys_and_a_mistyped_point_is_mended_by_an_edit(
    bank: Bank, store: Objects
) -> None:
    point, held = settled_point(bank, 10)
    namespace, late = bank.namespace, Cluster(bank.namespace, "bank-late")
    try:
        late.apply(standbys=0, bootstrap=from_bank(store, "nonsense", secretRef="copy-keys"))

        def told() -> bool:
            message = str((late.status.get("operation") or {}).get("message") or "")
            return f"there is no Secret copy-keys of namespace {namespace.name}" in message

        wait_for(told, "the missing Secret is told and waited for", PATIENCE)
        data = namespace.get("secret", KEYS)["data"]
        namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "copy-keys"}, "data": data}
        )
        failed = late.wait_phase("Failed", timeout=PATIENCE)
        assert "no restore point 'nonsense' can be restored" in str(failed["errors"]), failed["errors"]
        wait_for(lambda: not restore_pods(late), "nothing runs of a restore that failed", PATIENCE)
        assert not namespace.exists("secret", "bank-late.recovery")
        late.patch({"bootstrap": from_bank(store, point, secretRef="copy-keys")})
        late.wait_phase("Running", timeout=600.0)
        assert contents(bank, "bank-late") == held
    finally:
        bank.run("delete", "bank-late", "--purge", "--yes", check=False)
        namespace.kubectl("delete", "secret", "copy-keys", check=False)


@pytest.mark.long
def test_another_point_that_is_declared_in_the_middle_of_a_restore_is_the_one_that_is_restored(
    bank: Bank, store: Objects
) -> None:
    first, before = settled_point(bank, 10)
    second, after = settled_point(bank, 10)
    assert before[1] < after[1]
    changed = Cluster(bank.namespace, "bank-changed")
    try:
        changed.apply(standbys=0, bootstrap=from_bank(store, first))
        wait_for(lambda: restore_pods(changed), "the restore has begun", PATIENCE)
        changed.patch({"bootstrap": from_bank(store, second)})
        changed.wait_phase("Running", timeout=600.0)
        assert contents(bank, "bank-changed") == after
    finally:
        bank.run("delete", "bank-changed", "--purge", "--yes", check=False)


def test_a_restore_that_is_stopped_goes_on_and_one_that_is_purged_leaves_nothing_to_the_next_one(
    bank: Bank,
) -> None:
    """Where the backups are its declaration leaves to the bank's."""
    point, held = settled_point(bank, 10)
    bootstrap = {"recovery": {"cluster": "bank", "restorePoint": point}}
    twice = Cluster(bank.namespace, "bank-twice")
    try:
        twice.apply(standbys=0, bootstrap=bootstrap)
        begun = wait_for(lambda: restore_pods(twice), "the restore has begun", PATIENCE)
        # In the middle of it: a command takes longer to begin than a small restore does.
        bank.namespace.kubectl("annotate", "pgc", "bank-twice", "pgherd.io/stopped=true")
        assert {pod["spec"]["serviceAccountName"] for pod in begun} == {"bank-twice"}
        bank.run("stop", "bank-twice", timeout=PATIENCE)
        twice.wait_phase("Stopped", timeout=PATIENCE)
        assert not restore_pods(twice), "what is stopped runs nothing"
        bank.run("start", "bank-twice", "--no-wait")
        wait_for(lambda: restore_pods(twice), "the restore goes on", PATIENCE)
        twice.purge()
        assert not bank.namespace.list("pvc", "pgherd.io/cluster=bank-twice"), (
            "a purge is over when it is over"
        )
        assert not bank.namespace.exists("configmap", "bank-twice.recovery")
        twice.apply(standbys=0, bootstrap=bootstrap)
        twice.wait_phase("Running", timeout=600.0)
        assert contents(bank, "bank-twice") == held, "it was restored anew, and not founded empty"
    finally:
        bank.run("delete", "bank-twice", "--purge", "--yes", check=False)


@pytest.mark.long
def test_a_cluster_whose_volumes_were_removed_by_hand_is_restored_again_when_it_is_declared_again(
    bank: Bank, store: Objects
) -> None:
    point, held = settled_point(bank, 10)
    emptied = Cluster(bank.namespace, "bank-emptied")
    try:
        emptied.apply(standbys=0, bootstrap=from_bank(store, point))
        emptied.wait_phase("Running", timeout=600.0)
        emptied.delete()
        bank.namespace.kubectl("delete", "pvc", "-l", "pgherd.io/cluster=bank-emptied", timeout=120.0)
        emptied.apply(standbys=0, bootstrap=from_bank(store, point))
        emptied.wait_phase("Running", timeout=600.0)
        assert contents(bank, "bank-emptied") == held
    finally:
        bank.run("delete", "bank-emptied", "--purge", "--yes", check=False)


@pytest.mark.long
def test_backups_that_are_switched_on_later_wait_for_their_keys_and_nothing_else_waits_for_them(
    namespace: Namespace, store: Objects
) -> None:
    late = Bank(namespace, "late")
    try:
        late.cluster.apply(segments=1, standbys=0)
        late.cluster.wait_phase("Running", timeout=PATIENCE)
        late.cluster.patch({"backup": declared(store, secretRef="late-keys")})

        def told() -> str:
            found = late.cluster.condition("BackupsHealthy")
            return found["message"] if found.get("status") == "False" else ""

        wait_for(
            lambda: f"there is no Secret late-keys of namespace {namespace.name}" in told(),
            "the missing Secret is told",
            PATIENCE,
        )
        # Its members were replaced one by one, and serve.
        late.cluster.wait_phase("Running", timeout=PATIENCE)
        assert told()
        data = namespace.get("secret", KEYS)["data"]
        namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late-keys"}, "data": data}
        )
        late.await_backup()
        wait_for(
            lambda: late.cluster.condition("BackupsHealthy").get("status") == "True",
            "backups are healthy",
            180,
        )
        assert late.restorable()
    finally:
        late.run("delete", "late", "--purge", "--yes", check=False)


@pytest.mark.long
def test_a_cluster_restored_onto_its_sources_place_leaves_its_sources_repository_alone(
    bank: Bank, store: Objects
) -> None:
    # Of the same name, with the same backups, in another namespace: as the same manifest makes it.
    with installed() as staging:
        keys = bank.namespace.get("secret", KEYS)["data"]
        staging.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS}, "data": keys})
        twin = Bank(staging, bank.name)
        backup = declared(store)
        source = {key: backup[key] for key in ("method", "repository", "secretRef", "encrypt")}
        wanted = {**source, "cluster": bank.name}
        before = {row["id"] for row in bank.rows("backups")}
        twin.cluster.apply(standbys=0, backup=backup, bootstrap={"recovery": wanted})
        twin.cluster.wait_phase("Running", timeout=600)
        owner = bank.namespace.get("configmap", f"{bank.name}.owner")["data"]["owner"]

        def told() -> bool:
            found = twin.cluster.condition("BackupsHealthy")
            return found.get("status") == "False" and f"another cluster, {owner}" in found["message"]

        wait_for(told, "whose the repository is", PATIENCE)
        staging.apply(
            {
                "apiVersion": "pgherd.io/v1alpha1",
                "kind": "PostgresBackup",
                "metadata": {"name": "of-the-twin"},
                "spec": {"cluster": bank.name},
            }
        )
        wait_for(
            lambda: (
                f"another cluster, {owner}"
                in (staging.get("pgb", "of-the-twin").get("status") or {}).get("message", "")
            ),
            "the backup of the twin waits and says why",
            PATIENCE,
        )
        assert not staging.exists("secret", f"{bank.name}.backup"), "its members archive nothing there"
        assert twin.rows("backups") == []
        # The source goes on: nothing of it was removed or spoiled.
        bank.await_point_after(bank.write())
        after = {row["id"] for row in bank.rows("backups")}
        assert before <= after
        assert "of-the-twin" not in after
        assert bank.cluster.condition("BackupsHealthy")["status"] == "True"


@pytest.mark.long
def test_a_cluster_that_is_gone_comes_back_and_goes_on_in_its_repository_once_it_is_told_to(
    namespace: Namespace, store: Objects, tmp_path: Path
) -> None:
    phoenix, backup = Bank(namespace, "phoenix"), declared(store)
    try:
        phoenix.cluster.apply(segments=1, standbys=0, backup=backup)
        phoenix.cluster.wait_phase("Running", timeout=PATIENCE)
        with phoenix.connected() as connection:
            make_tables(connection)
        phoenix.await_backup()
        phoenix.await_point_after(phoenix.write())
        owner = namespace.get("configmap", "phoenix.owner")["data"]["owner"]
        phoenix.run("delete", "phoenix", "--purge", "--yes", timeout=PATIENCE)
        wait_for(
            lambda: not namespace.list("pvc", "pgherd.io/cluster=phoenix"), "its volumes are gone", PATIENCE
        )
        source = {key: backup[key] for key in ("method", "repository", "secretRef", "encrypt")}
        restored_by_command(phoenix, "ashes", source, tmp_path)
        recovery = {**source, "cluster": "phoenix"}
        phoenix.cluster.apply(segments=1, standbys=0, backup=backup, bootstrap={"recovery": recovery})
        phoenix.cluster.wait_phase("Running", timeout=600)
        with phoenix.connected() as connection:
            assert connection.execute("SELECT count(*) FROM account").fetchone() == (64,)
        wanted = f"kubectl -n {namespace.name} annotate --overwrite pgc phoenix pgherd.io/takes-over={owner}"
        wait_for(
            lambda: wanted in phoenix.cluster.condition("BackupsHealthy").get("message", ""),
            "it is told what to do",
            PATIENCE,
        )
        namespace.kubectl(*wanted.split()[3:])
        wait_for(
            lambda: phoenix.cluster.condition("BackupsHealthy").get("status") == "True",
            "it goes on",
            PATIENCE,
        )
        phoenix.await_point_after(phoenix.write())
        assert namespace.get("configmap", "phoenix.owner")["data"]["owner"] != owner
        assert phoenix.rows("backups"), "the old ones are listed, too"
    finally:
        phoenix.run("delete", "phoenix", "--purge", "--yes", check=False)


def restored_by_command(gone: Bank, name: str, source: dict[str, Any], folder: Path) -> None:
    """Of a cluster that is gone, nothing but files says where its backups are, and what the new one should be."""
    where, what = folder / "gone.yaml", folder / f"{name}.yaml"
    made = Bank(gone.namespace, name)
    where.write_text(json.dumps(source))
    what.write_text(json.dumps(made.cluster.declaration(segments=1, standbys=0)))
    try:
        options = ("--repository", str(where), "--file", str(what))
        made.run("restore", gone.name, name, *options, timeout=600)
        with made.connected() as connection:
            assert connection.execute("SELECT count(*) FROM account").fetchone() == (64,)
    finally:
        made.run("delete", name, "--purge", "--yes", check=False)


PROCESSES = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done"


def crashing(points: tuple[str, ...]) -> dict[str, object]:
    """The operator's container; it dies by SIGKILL once at each place."""
    return {
        "name": "operator",
        "command": ["sh", "-c", RESTART],
        "env": [
            {"name": "PGHERD_CRASH_AT", "value": ",".join(points)},
            {"name": "PGHERD_CRASH_LOG", "value": LOG},
        ],
    }
