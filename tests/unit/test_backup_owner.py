"""Whose a repository is where several homes may write to one path: files are real, databases are only told."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import registry
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import NotOurs
from pgherd.backup.keeper import Keeper, Kept
from pgherd.backup.pgbackrest import PgBackRest
from pgherd.backup.records import Backup
from pgherd.backup.repository import Repository
from pgherd.backup.store import DirectoryStore
from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform
from pgherd.supervisor import backups
from tests.support.platform import cluster

NAME = "000000020000000000000003"
SYSTEM = 7123
"""of both: one was restored from the other, or both were from a third"""


class House:
    """A home with a cluster "shop", whose coordinator's only member has the database system."""

    def __init__(self, home: Path, backup: dict[str, Any]) -> None:
        self.platform = LocalPlatform(home)
        self.cluster: PostgresCluster = cluster(backup=backup)
        backups.prepare(self.platform, self.cluster)
        self.platform.declare(self.cluster)
        self.data = home / "data"
        for folder in ("global", "pg_wal"):
            (self.data / folder).mkdir(parents=True)
        (self.data / "global" / "pg_control").write_bytes(SYSTEM.to_bytes(8, sys.byteorder))
        (self.data / "pg_wal" / NAME).write_bytes(str(home).encode())

    @property
    def method(self) -> BackupMethod:
        return registry.make_method(self.platform, self.cluster)

    @property
    def id(self) -> str:
        return self.platform.owner("shop").id

    def claim(self) -> None:
        """Its keeper does, once its databases answer."""
        self.method.repository.claim({0: str(SYSTEM)}, {})

    def archive(self) -> str:
        """A member's try: what is in its way."""
        command = self.method.parameters(0)["archive_command"]
        command = command.replace("%p", f"pg_wal/{NAME}").replace("%f", NAME)
        done = subprocess.run(command, shell=True, cwd=self.data, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (not done.stderr)
        return done.stderr


@pytest.fixture
def declared(tmp_path: Path) -> dict[str, Any]:
    return {"repository": {"path": str(tmp_path / "repository")}}


@pytest.fixture
def make(tmp_path: Path, declared: dict[str, Any]) -> Callable[[str], House]:
    return lambda name: House(tmp_path / name, declared)


def test_two_clusters_of_one_name_and_one_system_do_not_mix_their_backups(
    make: Callable[[str], House],
) -> None:
    one, other = make("one"), make("other")
    for each in (one, other):
        assert "is known once all groups answer" in each.archive(), "it is nobody's yet"
    one.claim()
    with pytest.raises(NotOurs, match=f"holds the backups of another cluster, {one.id}: name another path"):
        other.claim()
    assert f"holds the backups of another cluster, {one.id}" in other.archive()
    assert one.archive() == ""
    (kept,) = Repository(Path(one.method.location)).log_files(0, str(SYSTEM)).values()
    assert Path(kept.path).read_text() == str(one.platform.home)
    one.claim()


def test_nothing_is_asked_of_another_clusters_repository_nor_shown_of_it(
    make: Callable[[str], House],
) -> None:
    one, other = make("one"), make("other")
    one.claim()
    one.method.repository.remember_backup(Backup("b1", "full", "done", "2026-11-20T12:00:00+00:00"))
    with pytest.raises(NotOurs):
        backups.request(other.platform, "shop", "full")
    with pytest.raises(NotOurs):
        backups.method_of(other.platform, "shop", None)
    with pytest.raises(NotOurs):
        backups.prepare(other.platform, other.cluster)
    assert [each.id for each in one.method.repository.backups()] == ["b1"]
    path = str(Path(one.method.location).parent)
    assert backups.method_of(other.platform, "shop", path).repository.backups(), (
        "to restore it is another matter"
    )


def test_a_repository_from_before_ids_were_written_down_goes_on_without_a_gap(
    make: Callable[[str], House],
) -> None:
    house = make("one")
    Repository(Path(house.method.location)).claim({0: str(SYSTEM)}, {})  # as it was written then
    assert house.method.repository.identity().owner == ""
    assert house.archive() == ""
    backups.method_of(house.platform, "shop", None)
    house.claim()
    assert house.method.repository.identity().owner == house.id
    assert house.archive() == ""


def test_of_two_that_claim_a_repository_at_once_one_gets_it(
    make: Callable[[str], House], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make("one"), make("other")
    locked = DirectoryStore.locked

    def first(store: DirectoryStore) -> Any:
        monkeypatch.setattr(DirectoryStore, "locked", locked)
        other.claim()  # between our look and our writing
        return locked(store)

    monkeypatch.setattr(DirectoryStore, "locked", first)
    with pytest.raises(NotOurs):
        one.claim()
    assert one.method.repository.identity().owner == other.id


def test_a_cluster_that_is_declared_again_over_its_data_is_the_same_and_a_purged_one_is_not(
    make: Callable[[str], House],
) -> None:
    house = make("one")
    known = house.id
    data = Layout(house.platform.home).members("shop") / "shop-coordinator-0" / "data" / "global"
    data.mkdir(parents=True)
    (data / "pg_control").touch()
    house.platform.forget("shop", purge=False)
    house.platform.declare(house.cluster)
    assert house.id == known
    house.platform.forget("shop", purge=True)
    assert house.id == "", "nobody yet"
    house.platform.declare(house.cluster)
    assert house.id not in ("", known)


def test_what_another_clusters_repository_was_prepared_for_is_withdrawn(
    tmp_path: Path, declared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pgBackRest members archive by a configuration: without it they do not."""
    monkeypatch.setattr("pgherd.backup.pgbackrest_program.check", lambda major: None)
    monkeypatch.setattr("pgherd.backup.pgbackrest_program.find", lambda: Path("/bin/true"))
    one, other = (House(tmp_path / name, {**declared, "method": "pgbackrest"}) for name in ("one", "other"))
    one.claim()
    other.method.equip()
    config = other.platform.backup_folder("shop") / "pgbackrest.conf"
    assert config.is_file()
    nobody: Any = None
    kept = Kept("shop", nobody, nobody, other.method, lambda: None, dict, lambda: True, threading.Event())
    with pytest.raises(NotOurs):
        Keeper(kept)._round()
    assert not config.exists()
    assert isinstance(other.method, PgBackRest)
    assert not other.method.is_own()


def test_a_new_cluster_does_not_get_the_place_of_one_that_is_there(make: Callable[[str], House]) -> None:
    make("one").claim()
    with pytest.raises(BadInput, match="holds the backups of another cluster that was called shop"):
        make("other")
