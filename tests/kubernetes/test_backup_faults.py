"""Backups on a real Kubernetes when something goes wrong: the store is silent or refuses the keys, a copy is killed in
the middle, its server dies, the cluster grows meanwhile. It is told, no writer notices, and it clears by itself.

The lab's containers are processes here, so that a copy can be made to stand still for as long as something else needs.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from pgherd.backup.records import now
from pgherd.backup.wal import SEGMENT_BYTES
from tests.kubernetes.kube import Namespace, wait_for
from tests.kubernetes.test_backups import KEYS, PATIENCE, Bank, declared
from tests.kubernetes.test_backups import store as store
from tests.kubernetes.test_failures import kill_container, processes
from tests.support.money import await_transfers, make_tables, movers
from tests.support.objects import BUCKET, SECRET, Objects

pytestmark = [pytest.mark.kubernetes, pytest.mark.long]

NAME = "mint"
LIMIT_MIB = 64
"""of a group's log that may wait"""
ALL = {"0", "1", "2"}


class Mint(Bank):
    """A bank whose backups are disturbed."""

    def health(self) -> str:
        """What is wrong with its backups; empty: nothing."""
        found = self.cluster.condition("BackupsHealthy")
        return str(found.get("message")) if found.get("status") == "False" else ""

    def await_health(self) -> None:
        def well() -> bool:
            return self.cluster.condition("BackupsHealthy").get("status") == "True"

        wait_for(well, f"backups are well again by themselves: {self.health()}", PATIENCE, every=1)

    def shown(self) -> str:
        """What ``status`` prints, in one line."""
        return " ".join(self.run("status", self.name).out.split())

    def waiting(self, group: str) -> int:
        """Bytes of a group's log that wait for the repository, as the status says."""
        return int(((self.cluster.status.get("backups") or {}).get("waitingBytes") or {}).get(group, 0))

    def grow_log(self, group: str, files: int) -> None:
        member = str(self.cluster.leader(group))
        for _ in range(files):
            self.cluster.psql(member, "SELECT pg_logical_emit_message(false, 'mint', repeat('x', 1000))")
            self.cluster.psql(member, "SELECT pg_switch_wal()")

    def is_offered(self, backup: str) -> bool:
        """Whether anything of a backup is offered to be restored."""
        phases = {row["id"]: row["phase"] for row in self.rows("backups")}
        return phases.get(backup) == "done" or any(row["backup"] == backup for row in self.restorable())

    def copies(self, group: str, backup: str) -> int:
        """How many whole copies of a group there are that were made for a backup, as pgBackRest says."""
        told = self.namespace.kubectl(
            "exec", str(self.cluster.leader(group)), "--", "pgbackrest",
            "--config=/etc/pgherd-backup/pgbackrest.conf", "info", "--output=json",
        )  # fmt: skip
        return sum(
            (each.get("annotation") or {}).get("pgherd-backup") == backup and not each.get("error")
            for stanza in json.loads(told)
            if stanza["name"].startswith(f"{group}-")
            for each in stanza["backup"]
        )

    @contextmanager
    def copying(self, group: str, backup: str, kind: str = "full") -> Iterator[int]:
        """A backup under way, whose copy of this group stands still as long as the block lasts; its process."""
        self.ask(backup, kind)
        with self.standing_copy(group) as process:
            wait_for(lambda: self.asked(backup).get("phase") == "Running", "it is told", 60)
            assert not self.is_offered(backup)
            yield process

    @contextmanager
    def standing_copy(self, group: str) -> Iterator[int]:
        """The next copy of this group, which stands still as long as the block lasts; its process."""
        uid = self.namespace.get("pod", str(self.cluster.leader(group)))["metadata"]["uid"]

        def begun() -> int | None:
            for pid, command in processes(uid).items():
                if command.startswith("pgbackrest ") and command.rstrip().endswith(" backup"):
                    os.kill(pid, signal.SIGSTOP)
                    return pid
            return None

        process = int(wait_for(begun, f"{group} is being copied", PATIENCE, every=0.02))
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@contextmanager
def silent(store: Objects) -> Iterator[None]:
    """The store takes connections and says nothing."""
    store.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        store.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def mint(namespace: Namespace, store: Objects) -> Iterator[Mint]:
    made = Mint(namespace, NAME)
    try:
        made.cluster.apply(backup=declared(store, walLimit=f"{LIMIT_MIB}Mi"))
        made.cluster.wait_phase("Running", timeout=PATIENCE)
        with made.connected() as connection:
            make_tables(connection)
        made.await_backup()
        made.await_health()
        yield made
    finally:
        made.run("delete", NAME, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgb", "--all", check=False)


def test_a_silent_store_is_told_with_the_bytes_that_wait_and_missed_by_nobody_who_writes(
    mint: Mint, store: Objects
) -> None:
    with mint.dsn() as dsn, movers(dsn) as ledger:
        await_transfers(ledger, 20)
        with silent(store):
            mint.grow_log("segment-1", 2)
            wait_for(lambda: "does not answer" in mint.health(), "the silence is told", 60)
            wait_for(lambda: mint.waiting("segment-1") >= 2 * SEGMENT_BYTES, "the bytes are told", 90)
            assert "does not answer" in mint.shown()
            assert "MiB of" in mint.shown()
            before = mint.waiting("segment-1")
            mint.grow_log("segment-1", LIMIT_MIB * 2**20 // SEGMENT_BYTES)
            wait_for(
                lambda: f"more than walLimit ({LIMIT_MIB}Mi)" in mint.health(),
                "it is told that more waits than may",
                90,
            )
            assert mint.waiting("segment-1") > before
            assert mint.cluster.status["phase"] == "Running"
            await_transfers(ledger, 20)
        mint.await_health()
        written = mint.write()
        point = mint.await_point_after(written)
        await_transfers(ledger, 20)
    assert not ledger.errors, ledger.errors[:3]
    assert ledger.retries == 0, "nobody who wrote noticed"
    assert point["restorable"]
    assert not mint.cluster.status["backups"]["gaps"], "all of the log has come"
    assert mint.waiting("segment-1") < 2 * SEGMENT_BYTES


def test_keys_that_are_wrong_are_told_and_brought_to_no_member_and_right_ones_clear_it(mint: Mint) -> None:
    def set_key(value: str) -> None:
        patch = {"stringData": {"secret-access-key": value}}
        mint.namespace.kubectl("patch", "secret", KEYS, "--type", "merge", "-p", json.dumps(patch))

    def brought() -> dict[str, str]:
        return dict(mint.namespace.get("secret", f"{NAME}.backup")["data"])

    before = brought()
    set_key("not/the+secret")
    try:
        refused = f"s3://{BUCKET} refuses these keys"
        wait_for(lambda: refused in mint.health(), "the refusal is told", 90)
        assert refused in mint.shown()
        mint.ask("with-wrong-keys", "incremental")
        wait_for(lambda: refused in mint.asked("with-wrong-keys").get("message", ""), "it says why", 60)
        assert mint.asked("with-wrong-keys")["phase"] == "Waiting"
        mint.grow_log("segment-1", 1)
        assert brought() == before, "members go on with those that are good"
    finally:
        set_key(SECRET)
    done = mint.await_end("with-wrong-keys")
    assert done["phase"] == "Done", done
    mint.await_health()
    mint.await_point_after(mint.write())


def test_a_copy_that_is_killed_in_the_middle_is_made_again_and_nothing_half_made_is_offered(
    mint: Mint,
) -> None:
    with mint.copying("segment-1", "killed") as process:
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: "trying again" in mint.asked("killed").get("message", ""), "it is told", 60)
        assert not mint.is_offered("killed")
    ended_well(mint, "killed")
    assert [mint.copies(group, "killed") for group in ("coordinator", "segment-1", "segment-2")] == [1, 1, 1]


def ended_well(mint: Mint, backup: str) -> dict[str, Any]:
    """A backup that was disturbed, and the one after it."""
    done = mint.await_end(backup)
    assert (done["phase"], set(done["groups"])) == ("Done", ALL), done
    mint.cluster.wait_phase("Running", timeout=PATIENCE)
    # The list, which the command looks at, is some seconds behind the resource.
    wait_for(lambda: all(row["phase"] == "done" for row in mint.rows("backups")), "the list says so", 60)
    following = mint.run("backup", NAME, "--type", "incremental", timeout=PATIENCE)
    assert "is done (3 groups" in following.out, following
    mint.await_health()
    mint.await_point_after(mint.write())
    return done


def test_a_container_that_is_killed_while_it_is_copied_is_waited_for(mint: Mint) -> None:
    with mint.copying("segment-1", "crashed"):
        kill_container(mint.cluster, str(mint.cluster.leader("segment-1")))
    ended_well(mint, "crashed")


def test_a_group_that_fails_over_while_it_is_copied_is_copied_from_its_new_primary(mint: Mint) -> None:
    with mint.copying("coordinator", "failed-over"):
        mint.fail_over("coordinator")
    done = ended_well(mint, "failed-over")
    assert done["groups"]["0"]["timeline"] > 1


def test_a_segment_that_joins_in_the_middle_is_part_of_the_backup(mint: Mint) -> None:
    with mint.copying("segment-2", "grown"):
        mint.cluster.patch({"segments": {"count": 3}})

        def grown() -> bool:
            groups = {each["name"]: each.get("shards") for each in mint.cluster.status["groups"]}
            return bool(groups.get("segment-3"))

        wait_for(grown, "the new segment has shards", PATIENCE, every=1)
        mint.cluster.wait_phase("Running", timeout=PATIENCE)
        assert mint.asked("grown")["phase"] == "Running", "the copy stood still, the expansion did not wait"
    done = mint.await_end("grown")
    assert (done["phase"], set(done["groups"])) == ("Done", {*ALL, "3"}), done
    mint.await_health()
    after = mint.await_point_after(max(mint.write(), now()))
    assert after["groups"] == 4
