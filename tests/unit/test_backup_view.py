"""What the status says of a repository of real files; no group is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import finding
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.gaps import file_name
from pgherd.backup.native import Native
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore
from pgherd.backup.view import view
from tests.support.backups import SYSTEM, backup, copy, point
from tests.support.platform import cluster

PER_HOUR = 16
"""files of the log: of 16 MiB"""


class Seen:
    """A repository of one group, and the status of it."""

    def __init__(self, root: Path) -> None:
        def no_programs() -> Any:
            raise AssertionError("nothing is run here")

        self.method = Native(root, no_programs)
        self.repository = self.method.repository
        self.repository.create("shop")
        self.log = self.repository.logs(0) / SYSTEM
        self.log.mkdir(parents=True)

    def archive(self, begin: float, end: float) -> None:
        for number in range(int(begin * PER_HOUR), int(end * PER_HOUR)):
            (self.log / file_name(1, number)).touch()

    def lose(self, at: float) -> None:
        (self.log / file_name(1, int(at * PER_HOUR))).unlink()

    def points(self, *hours: float) -> None:
        for each in hours:
            self.repository.remember_point(point(each, groups=1))

    def look(self) -> dict[str, Any]:
        nobody: Any = SimpleNamespace(addresses=dict)
        return view(self.method, nobody, cluster(backup={"repository": {"path": "/x"}}), ())


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path / "shop")


def test_the_last_point_that_is_told_is_one_that_can_be_restored(seen: Seen) -> None:
    seen.repository.remember_backup(backup(1, groups=1))
    seen.archive(1, 4)
    seen.points(2, 3, 4)
    assert seen.look()["lastRestorePoint"]["name"] == "p4"
    seen.lose(2.5)
    found = seen.look()
    assert found["lastRestorePoint"]["name"] == "p2"
    assert finding.restorable(seen.method)[-1].name == "p2"
    assert not any("can be restored, though" in each for each in found["problems"])


def test_that_no_archived_point_can_be_restored_is_a_problem(seen: Seen) -> None:
    seen.repository.remember_backup(backup(1, groups=1))
    seen.archive(1, 4)
    seen.points(2, 3)
    seen.lose(1.5)
    found = seen.look()
    assert found["lastRestorePoint"] is None
    assert found["problems"] == [
        "none of the last 2 restore points can be restored, though they are archived: 'pgherd restore-points shop' "
        "shows why"
    ]


def test_before_the_first_backup_is_done_nothing_is_wrong(seen: Seen) -> None:
    seen.repository.remember_backup(backup(1, groups=1, phase="running"))
    seen.archive(0, 4)
    seen.points(2, 3)
    found = seen.look()
    assert (found["lastRestorePoint"], found["problems"]) == (None, [])


def test_a_damaged_record_of_a_backup_is_named(seen: Seen) -> None:
    seen.repository.remember_backup(backup(1, groups=1))
    (seen.repository.folder("f1") / "coordinator").mkdir()
    (seen.repository.folder("f1") / "backup.json").write_text("{")
    (problem,) = seen.look()["problems"]
    assert problem.startswith("the record of backup f1 is damaged: put backup.json in ")


def test_a_record_of_another_version_is_named_with_the_way_out(seen: Seen) -> None:
    seen.repository.remember_backup(backup(1, groups=1))
    newer = {**backup(2, groups=1).as_json(), "shape": 2}
    seen.repository.store.write("backups/f2/backup.json", json.dumps(newer).encode())
    (problem,) = seen.look()["problems"]
    assert problem.startswith(
        "the record of backup f2 is not understood: it is of another version of pgherd (go on with that one)"
    )


def test_damaged_points_of_an_encrypted_repository_are_named(seen: Seen, tmp_path: Path) -> None:
    plain = DirectoryStore(tmp_path / "sealed")
    repository = Catalogue(SealedStore(plain, "open sesame"))
    repository.create("shop")
    for hours in (1, 2):
        repository.remember_point(point(hours, groups=1))
    plain.write("points/2026-11-01T01.jsonl", b"")
    nobody: Any = SimpleNamespace(addresses=dict)
    method: Any = SimpleNamespace(
        name="native",
        location="there",
        repository=repository,
        histories=seen.method.histories,
        log_names=seen.method.log_names,
    )
    (problem,) = view(method, nobody, cluster(backup={"repository": {"path": "/x"}}), ())["problems"]
    assert problem == (
        "there/points/2026-11-01T01.jsonl is damaged, its points are not offered: put it back from a copy or remove it"
    )


def test_a_failed_backup_is_complained_of_until_another_one_is_done(seen: Seen) -> None:
    def complaints() -> list[str]:
        return [each for each in seen.look()["problems"] if each.startswith("backup ")]

    seen.archive(0, 4)
    bad = replace(backup(1, groups=1, phase="failed"), error="no space left on device", again=True)
    seen.repository.remember_backup(bad)
    said = ["backup f1 failed: no space left on device: another one is made by itself"]
    assert complaints() == said
    seen.repository.remember_backup(backup(2, groups=1, phase="running"))
    assert complaints() == said, "it is not known to fare any better"
    seen.repository.remember_backup(backup(2, groups=1))
    assert complaints() == []


def test_a_backup_that_failed_is_not_made_up_for_by_copies_of_some_groups(seen: Seen) -> None:
    seen.archive(0, 4)
    bad = replace(backup(1, groups=1, phase="failed"), error="no space left on device", again=True)
    seen.repository.remember_backup(bad)
    seen.repository.remember_backup(replace(backup(2), groups={2: copy(2)}, wanted=(2,)))
    problems = [each for each in seen.look()["problems"] if each.startswith("backup ")]
    assert problems == ["backup f1 failed: no space left on device: another one is made by itself"]


def test_what_waits_for_a_repository_that_is_away_is_told_in_bytes_before_anything_has_failed(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that gets no answer takes a minute to fail, and a group that writes little fills no file meanwhile."""

    def archiving(*those: object) -> dict[int, dict[str, Any]]:
        quiet = {"failing": None, "failed": None, "system": SYSTEM, "mode": "always", "let_go": None}
        failing = {**quiet, "failing": True, "failed": "0000000100000000000000AB"}
        return {0: {**quiet, "waiting": 0}, 1: {**quiet, "waiting": 3}, 2: {**failing, "waiting": 2}}

    monkeypatch.setattr("pgherd.backup.view._archiving", archiving)
    root = seen.repository.root
    root.rename(root.with_name("away"))
    found = seen.look()
    assert found["waitingBytes"] == {"coordinator": 0, "segment-1": 3 << 24, "segment-2": 2 << 24}
    away, failing, waits = found["problems"]
    assert away.startswith(f"there is no repository at {root}")
    assert failing.startswith("segment-2 can't archive 0000000100000000000000AB: 32 MiB of its log wait")
    assert waits == "48 MiB of the log of segment-1 wait for it"


def test_that_a_repository_is_full_is_told_with_the_way_out_of_who_can_not_archive(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def archiving(*those: object) -> dict[int, dict[str, Any]]:
        waits = {"waiting": 2, "failing": True, "failed": "0000000100000000000000AB", "let_go": None}
        return {0: {**waits, "system": SYSTEM, "mode": "always"}}

    def told(room: int | None) -> list[str]:
        monkeypatch.setattr(seen.repository.store, "room", lambda: room)
        return [each for each in seen.look()["problems"] if "full" in each]

    assert told(1 << 20) == []
    monkeypatch.setattr("pgherd.backup.view._archiving", archiving)
    location = seen.method.location
    full = f"{location} is full, 1 MiB are left: make room there, and what waits comes by itself"
    assert told(1 << 20) == [full]
    assert (told(1 << 30), told(None)) == ([], [])
    assert seen.look()["problems"][0].startswith("coordinator can't archive 0000000100000000000000AB")


def test_stores_know_how_much_more_fits_in(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    room = store.room()
    assert room is not None
    assert room > 0
    assert SealedStore(store, "open sesame").room() is not None
    assert DirectoryStore(tmp_path / "away").room() is None
