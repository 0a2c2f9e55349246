"""A repository whose disk drops while it is read, and comes back: nothing is damaged, and nothing that is made goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import archive, presence, repair
from pgherd.backup.catalogue import Away
from pgherd.backup.native import Native
from pgherd.backup.repository import Repository
from pgherd.errors import Cancelled, PgherdError, Withheld
from pgherd.platform.base import Programs
from tests.support.backups import SYSTEM
from tests.support.waiting import until

DAMAGED = PgherdError("the copy is damaged")
NOWHERE = "there is no repository at .*shop: see to it that its disk is mounted"


class Disk:
    """With a repository, and somebody who pulls it out and plugs it in again."""

    def __init__(self, folder: Path) -> None:
        self.mounted, self.pulled = folder / "disk", folder / "pulled"
        self.mounted.mkdir()
        self.root = self.mounted / "shop"
        self.repository = Repository(self.root)
        self.repository.create("shop")
        self.method = Native(self.root, lambda: None)  # type: ignore[arg-type, return-value]

    def pull(self) -> None:
        """The empty folder stays that it is mounted on."""
        self.mounted.rename(self.pulled)
        self.mounted.mkdir()

    def plug_in(self) -> None:
        self.mounted.rmdir()
        self.pulled.rename(self.mounted)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.01)
    return Disk(tmp_path)


def test_work_is_told_to_stop_while_the_repository_is_away(disk: Disk) -> None:
    def copy() -> None:
        with presence.watched(disk.method, lambda: False) as stopping:
            assert not stopping()
            disk.pull()
            until(stopping)
            raise Cancelled("cp was stopped")

    with pytest.raises(Away, match=NOWHERE):
        copy()


def test_what_failed_while_it_was_away_is_no_damage_though_it_is_back(disk: Disk) -> None:
    def copy() -> None:
        with presence.watched(disk.method, lambda: False) as stopping:
            disk.pull()
            until(stopping)
            disk.plug_in()
            raise DAMAGED

    with pytest.raises(Away, match=NOWHERE):
        copy()


@pytest.mark.parametrize("error", [DAMAGED, Cancelled("the cluster is to stop"), OSError("no room")])
def test_what_fails_while_the_repository_is_there_is_what_it_is(disk: Disk, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), presence.watched(disk.method, lambda: True):
        raise error


def test_a_share_that_does_not_answer_is_away(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path) -> bool:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "is_file", stale)
    found = presence.obstacle(disk.method)
    assert type(found) is Withheld
    assert "repository.json: stale file handle" in str(found)


def test_a_log_is_not_taken_for_empty_while_its_repository_is_away(disk: Disk) -> None:
    assert disk.repository.log_files(1, SYSTEM) == {}
    disk.pull()
    for ask in (disk.repository.log_files, disk.repository.histories):
        with pytest.raises(Away, match=NOWHERE):
            ask(1, SYSTEM)


# native


def programs(folder: Path, verifier: str = "exit 0") -> Callable[[], Programs]:
    """PostgreSQL's, of which only one does anything."""

    def find(name: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{verifier if name == 'pg_verifybackup' else ''}\n")
        path.chmod(0o755)
        return path

    return lambda: Programs(find, (), 18)


def test_a_copy_that_is_verified_while_its_disk_drops_is_not_called_damaged(
    disk: Disk, tmp_path: Path
) -> None:
    """The verifier goes through all the rest of a copy before it says what it could not read."""
    drop = (
        f"mv {disk.mounted} {disk.pulled}; mkdir {disk.mounted}; sleep 30; echo error: no such file; exit 1"
    )
    method = Native(disk.root, programs(tmp_path, drop))
    copy = disk.repository.copy_of("b1", 1)
    copy.mkdir(parents=True)
    (copy / "backup_manifest").write_text("{}")
    with pytest.raises(Away, match=NOWHERE):
        method.restore(["b1"], 1, tmp_path / "data", lambda done, total: None, lambda: False)


def test_nothing_is_removed_for_a_copy_while_the_repository_is_away(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "row").write_text("precious")
    disk.pull()
    method = Native(disk.root, programs(tmp_path))
    with pytest.raises(Away, match=NOWHERE):
        method.restore(["b1"], 1, tmp_path / "data", lambda done, total: None, lambda: False)
    assert (tmp_path / "data" / "row").read_text() == "precious"


def test_no_copy_is_made_below_the_place_of_a_disk_that_is_away(disk: Disk, tmp_path: Path) -> None:
    disk.pull()
    method = Native(disk.root, programs(tmp_path))
    with pytest.raises(Away, match=NOWHERE):
        method.back_up("b1", 1, "full", None, {}, lambda done, total: None, lambda: False)
    assert list(disk.mounted.iterdir()) == []


def test_an_empty_folder_in_the_repositorys_place_is_not_the_end_of_the_log(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk may be mounted right there."""
    disk.pull()
    disk.root.mkdir()
    folder = disk.repository.logs(1) / SYSTEM
    assert archive.main(["fetch", str(folder), "000000010000000000000001", "/x"]) == archive.AWAY
    said = capsys.readouterr().err
    assert said == f"pgherd: there is no repository at {disk.root} (No such file or directory)\n"
    assert disk_hindrance(disk, said) == said.removeprefix("pgherd: ").strip()


def disk_hindrance(disk: Disk, said: str) -> str | None:
    return disk.method.hindrance(said)


def test_what_hindered_a_server_before_the_last_file_that_it_read_counts_no_more(disk: Disk) -> None:
    away = "pgherd: there is no repository at /disk/shop (No such file or directory)\n"
    fatal = (
        'FATAL:  could not restore file "000000010000000000000007" from archive: exited with exit code 255\n'
    )
    read = 'LOG:  restored log file "000000010000000000000007" from archive\n'
    assert disk_hindrance(disk, read + away + fatal) == away.removeprefix("pgherd: ").strip()
    assert disk_hindrance(disk, away + read + "FATAL:  invalid record length\n") is None
    assert disk_hindrance(disk, "pgherd: [Errno 28] No space left on device\n" + fatal) is None


# a repair


class Judging(repair.Repair):
    """One that knows how far its group's log led."""

    def __init__(self, method: Native) -> None:
        site: Any = type("Site", (), {"method": method, "group": 1})()
        super().__init__(site)
        reached = {"timeline": 1, "lsn": "0/0", "last_commit": None}
        self._state = {"system": SYSTEM, "reached": reached}


def test_nothing_is_judged_complete_by_a_repository_that_is_away(disk: Disk, tmp_path: Path) -> None:
    """It would have no points that the group had got to."""
    judging = Judging(Native(disk.root, programs(tmp_path)))
    disk.pull()
    with pytest.raises(Away, match=NOWHERE):
        judging._marks()
