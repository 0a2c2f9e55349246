"""A log that waits too long, a volume that is full: it is told, no writer notices, and it clears by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgherd.backup.records import now
from pgherd.backup.wal import SEGMENT_BYTES, parse_lsn
from tests.kubernetes.kube import Cluster, Namespace, wait_for
from tests.kubernetes.small_volume import small_volume
from tests.kubernetes.test_backup_faults import Mint, silent
from tests.kubernetes.test_backups import PATIENCE, declared
from tests.kubernetes.test_backups import store as store
from tests.support.disks import full
from tests.support.money import Ledger, audit, await_transfers, make_tables, movers, pause
from tests.support.objects import Objects
from tests.support.points import moment, newest

pytestmark = [pytest.mark.kubernetes, pytest.mark.long]

LIMIT_MIB = 64
"""of a group's log that may wait"""
CLAIM = "cellar"
SMALL_MIB = 256
ASKED = "into-the-full"
GROUP = "segment-1"
"""whose log grows"""
_WAITING = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"


class Hoard(Mint):
    """A small bank of one segment."""

    def prepare(self, **backup: object) -> None:
        self.cluster.apply(segments=1, backup=backup)
        self.cluster.wait_phase("Running", timeout=PATIENCE)
        with self.connected() as connection:
            make_tables(connection)
        self.await_backup()
        self.await_health()

    def waits_at(self, member: str) -> int:
        """How many files of its log wait at a member, as its server says."""
        return int(self.cluster.psql(member, _WAITING))

    def assert_whole_at(self, point: str, ledger: Ledger) -> None:
        """A new cluster is made of a point, at which money rested: it holds all of it, and is sound."""
        row = next(each for each in self.restorable() if each["name"] == point)
        then = Cluster(self.namespace, f"{self.name}-then")
        try:
            self.run("restore", self.name, then.name, "--point", point, timeout=600.0)
            with self.connected(then.name) as connection:
                held = audit(connection, ledger, since=moment(row["began"]), until=moment(row["time"]))
            assert held >= len(ledger.acknowledged)
            sound = self.run("check", then.name, check=False)
            assert sound.code == 0, sound
        finally:
            self.run("delete", then.name, "--purge", "--yes", check=False)


@contextmanager
def hoard_in(namespace: Namespace, name: str) -> Iterator[Hoard]:
    made = Hoard(namespace, name)
    try:
        yield made
    finally:
        made.run("delete", name, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pgb", "--all", check=False)


def test_past_its_limit_the_log_is_let_go_and_no_point_spans_the_gap(
    namespace: Namespace, store: Objects
) -> None:
    with hoard_in(namespace, "hoard") as hoard:
        hoard.prepare(**declared(store, walLimit=f"{LIMIT_MIB}Mi", whenFull="drop"))
        with hoard.dsn() as dsn, movers(dsn) as ledger:
            before = hoard.await_point_after(newest(ledger))
            known = {row["id"] for row in hoard.rows("backups")}
            with silent(store):
                gap = now()
                assert_let_go(hoard)
                await_transfers(ledger, 20)
            # What comes behind it shows the gap.
            hoard.grow_log(GROUP, 1)
            with hoard.standing_copy(GROUP):
                assert_gap_is_told(hoard, gap)
            hoard.await_health()
            pause(ledger)
            after = hoard.await_point_after(newest(ledger))
        assert not ledger.errors, ledger.errors[:3]
        assert ledger.retries == 0, "nobody who wrote noticed"
        assert not hoard.cluster.status["backups"]["gaps"]
        made = [row for row in hoard.rows("backups") if row["id"] not in known and row["phase"] == "done"]
        copied = min(parse_lsn(row["groups"]["1"]["stopLsn"]) for row in made if "1" in row["groups"])
        offered = hoard.restorable()
        assert before["name"] in {row["name"] for row in offered}, "what was before the gap is still offered"
        later = [parse_lsn(row["lsns"]["1"]["lsn"]) for row in offered if row["time"] > gap]
        assert later
        assert min(later) >= copied
        hoard.assert_whole_at(after["name"], ledger)


def assert_let_go(hoard: Hoard) -> None:
    """The store is away: more and more waits, and past the limit all that waits is let go, by every member."""
    members = [pod["metadata"]["name"] for pod in hoard.cluster.pods(GROUP)]
    assert len(members) == 2
    hoard.grow_log(GROUP, 2)
    wait_for(lambda: hoard.waiting(GROUP) >= 2 * SEGMENT_BYTES, "the bytes are told", 90)
    told = hoard.waiting(GROUP)
    hoard.grow_log(GROUP, 1)
    wait_for(lambda: hoard.waiting(GROUP) > told, "it is told that they grow", 90)
    wait_for(lambda: "does not answer" in hoard.health(), "and why", 60)
    assert "MiB of" in hoard.shown()
    hoard.grow_log(GROUP, LIMIT_MIB * 2**20 // SEGMENT_BYTES)
    wait_for(lambda: not any(hoard.waits_at(member) for member in members), "every member lets go", PATIENCE)
    wait_for(lambda: hoard.waiting(GROUP) == 0, "nothing waits any more", 90)
    assert hoard.cluster.status["phase"] == "Running"


def assert_gap_is_told(hoard: Hoard, since: str) -> None:
    """The store takes files again, and there is no new copy yet."""

    def told() -> bool:
        gaps = hoard.cluster.status["backups"].get("gaps") or []
        wanted = f"the log of {GROUP} from"
        return [each["group"] for each in gaps] == [GROUP] and wanted in hoard.health()

    wait_for(told, "the gap is told", 90)
    assert "points after it can be restored once there is a new base copy" in hoard.shown()

    def later() -> list[str]:
        return [
            row["state"] for row in hoard.seen("restore-points") if row["time"] > since and row["archived"]
        ]

    wait_for(later, "points are made behind the gap", 90)
    assert set(later()) == {"a gap before it"}, "and none of them is offered"


@pytest.fixture(scope="module")
def disk(in_lab: bool, namespace: Namespace) -> Iterator[Path]:
    if not in_lab:
        pytest.skip("a file system of limited size is mounted on the lab's nodes")
    with small_volume(namespace, CLAIM, SMALL_MIB) as path:
        yield path


def test_a_full_volume_is_told_with_what_to_do_and_clears_by_itself(namespace: Namespace, disk: Path) -> None:
    with hoard_in(namespace, "crammed") as hoard:
        volume = {"volume": {"claimName": CLAIM}}
        hoard.prepare(method="pgbackrest", repository=volume, restorePointEvery="2s")
        with hoard.dsn() as dsn, movers(dsn) as ledger:
            await_transfers(ledger, 20)
            known = {row["id"] for row in hoard.rows("backups")}
            with full(disk):
                assert_fullness_is_told(hoard)
                await_transfers(ledger, 20)
            hoard.await_health()
            pause(ledger)
            after = hoard.await_point_after(newest(ledger))
        assert not ledger.errors, ledger.errors[:3]
        assert ledger.retries == 0, "nobody who wrote noticed"
        assert [row["phase"] for row in hoard.rows("backups")][-1] == "done", (
            "it was carried on, or made anew"
        )
        assert hoard.rows("backups")[-1]["id"] not in known
        assert not hoard.cluster.status["backups"]["gaps"], "all of the log has come"
        assert hoard.waiting(GROUP) < 2 * SEGMENT_BYTES
        hoard.assert_whole_at(after["name"], ledger)


def assert_fullness_is_told(hoard: Hoard) -> None:
    hoard.grow_log(GROUP, 2)
    wait_for(lambda: f"volume://{CLAIM}/crammed is full" in hoard.health(), "it is told", 90)
    assert "make room there, and what waits comes by itself" in hoard.shown()
    wait_for(lambda: f"{GROUP} can't archive" in hoard.health(), "it is told who can't archive", 90)
    wait_for(lambda: hoard.waiting(GROUP) >= 2 * SEGMENT_BYTES, "the bytes are told", 90)
    hoard.ask(ASKED)

    def why() -> str:
        return str(hoard.asked(ASKED).get("message") or "").lower()

    wait_for(lambda: "no space left on device" in why(), f"the backup says why: {hoard.asked(ASKED)}", 120)
    assert hoard.cluster.status["phase"] == "Running"
