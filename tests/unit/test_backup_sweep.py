"""What is left by those who were killed, or by a power cut, goes; what may be good stays. With real files."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup.catalogue import Unread
from pgherd.backup.native import LEFTOVER_SECONDS, Native
from pgherd.backup.pgbackrest import PgBackRest
from pgherd.backup.records import Backup
from pgherd.backup.store import DirectoryStore, Store
from pgherd.backup.volume_store import VolumeStore
from pgherd.platform.local import files
from tests.support.backups import SYSTEM, at, backup, unread
from tests.unit.test_backup_volume import Pod

BEGUN = Backup("begun", "full", "running", at(0))


@pytest.fixture
def native(tmp_path: Path) -> Native:
    def no_programs() -> Any:
        raise AssertionError("nothing is run here")

    made = Native(tmp_path / "shop", no_programs)
    made.repository.create("shop")
    (made.repository.logs(0) / SYSTEM).mkdir(parents=True)
    return made


def folder(native: Native, name: str, *copies: str, record: str | None = "", hours: float = 2) -> Path:
    """A backup's folder that was last touched so long ago."""
    made = native.repository.folder(name)
    for copy in copies:
        (made / copy / "base").mkdir(parents=True)
    made.mkdir(exist_ok=True)
    if record is not None:
        (made / "backup.json").write_text(record)
    then = time.time() - hours * LEFTOVER_SECONDS
    for path in (*made.iterdir(), made):
        os.utime(path, (then, then))
    return made


def test_removals_that_were_cut_short_are_finished(native: Native) -> None:
    repository = native.repository
    repository.remember_backup(replace(backup(1), id="kept"))
    for rest in (
        repository.root / "backups" / ".removed.gone.12ab",
        repository.folder("kept") / ".removed.segment-1.partial.12ab",
        repository.logs(0) / f".removed.{SYSTEM}.12ab",
    ):
        (rest / "base").mkdir(parents=True)
    native.sweep()
    assert not list(repository.root.rglob(".removed*"))
    assert [each.id for each in repository.backups()] == ["kept"]
    assert native.systems() == [(0, SYSTEM)]


def asides(root: Path) -> list[Path]:
    """What a write that was cut short may have left, wherever something is remembered."""
    folders = ("", "points", "pins", "prints", "backups/kept")
    found = [root / folder / ".some.json.12ab.tmp" for folder in folders]
    for path in found:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    return found


def test_what_writes_that_were_cut_short_left_goes_when_it_is_old(native: Native) -> None:
    repository = native.repository
    repository.remember_backup(replace(backup(1), id="kept"))
    half = asides(repository.root)
    native.sweep()
    assert all(path.exists() for path in half), "somebody may be at work on it"
    for path in half:
        os.utime(path, (1, 1))
    native.sweep()
    assert not any(path.exists() for path in half)
    assert [each.id for each in repository.backups()] == ["kept"]


@pytest.mark.parametrize("far", [False, True])
def test_what_is_remembered_beside_pgbackrest_is_swept_alike(tmp_path: Path, far: bool) -> None:
    near = DirectoryStore(tmp_path)
    store: Store = VolumeStore("volume://backups/shop", tmp_path, Pod) if far else near
    near.write("backups/kept/backup.json", b"{}")
    (tmp_path / "points" / ".removed.old.12ab").mkdir(parents=True)
    old, young = asides(tmp_path), tmp_path / "pins" / ".young.json.12ab.tmp"
    for path in old:
        os.utime(path, (1, 1))
    young.write_text("half")
    made: Any = PgBackRest.__new__(PgBackRest)
    made._stores = (store, store)
    made.sweep()
    assert [path.name for path in tmp_path.rglob(".*")] == [young.name]
    assert near.read("backups/kept/backup.json") == b"{}"


@pytest.mark.parametrize("record", [None, "", '{"id": "torn", "ty', "[]"])
def test_what_was_begun_without_a_record_goes(native: Native, record: str | None) -> None:
    torn = folder(native, "torn", "coordinator.partial", ".removed.segment-1.partial.12ab", record=record)
    native.sweep()
    assert not torn.exists()
    assert not list(torn.parent.iterdir())


def test_what_was_begun_just_now_stays(native: Native) -> None:
    young = folder(native, "young", "coordinator.partial", record=None, hours=0.5)
    native.sweep()
    assert young.is_dir()


def test_a_complete_copy_stays_whatever_happened_to_its_record_and_it_is_told(native: Native) -> None:
    torn = folder(native, "torn", "coordinator", "segment-1.partial")
    folder(native, "never", "coordinator", record=None)
    native.sweep()
    assert (torn / "coordinator" / "base").is_dir()
    assert native.repository.backups() == []
    assert native.repository.nameless() == ["never", "torn"]
    assert unread(native.repository, Unread.DAMAGED) == ["torn"]
    assert sorted(native.repository.held().complaints()) == ["never", "torn"]


def test_a_record_of_another_version_is_a_record(native: Native) -> None:
    other = folder(native, "newer", "coordinator.partial", record='{"id": "newer", "shape": 2}')
    native.sweep()
    assert other.is_dir()
    assert native.repository.nameless() == []
    assert unread(native.repository, Unread.FOREIGN) == ["newer"]


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "verifying"},
        {"type": "snapshot"},
        {"shape": 2},
        {"groups": [{"group": 0}]},
        {"requested_at": None},
    ],
)
def test_a_record_that_says_what_nobody_here_knows_is_of_another_version(
    native: Native, change: dict[str, Any]
) -> None:
    """Taken for one of ours it would be let go, or nobody could read the others."""
    native.repository.remember_backup(backup(1))
    folder(native, "newer", "coordinator", record=json.dumps({**backup(2).as_json(), **change}))
    assert [each.id for each in native.repository.backups()] == ["f1"]
    assert unread(native.repository, Unread.FOREIGN) == ["newer"]
    assert unread(native.repository, Unread.DAMAGED) == []


def test_the_record_of_a_running_backup_survives_a_power_cut(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = files.write_bytes

    def noted(path: Path, content: bytes, *, durable: bool = True) -> None:
        written.append((path.name, durable))
        write(path, content, durable=durable)

    monkeypatch.setattr(files, "write_bytes", noted)
    native.repository.remember_backup(BEGUN)
    native.repository.remember_backup(replace(BEGUN, bytes_done=1))
    # Whoever renews a pin elsewhere in this process writes, too.
    assert {each for each in written if each[0] == "backup.json"} == {("backup.json", True)}
