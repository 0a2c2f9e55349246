"""Whether servers of this machine sync whole file systems before they recover from a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.engine.citus.engine import CitusEngine
from pgherd.model.topology import Credentials
from pgherd.platform.local import binaries, recovery
from pgherd.platform.local.binaries import Binaries
from pgherd.platform.local.platform import LocalPlatform
from pgherd.postgres.connections import Databases
from pgherd.reconcile.observe import wanted_config
from tests.support.platform import cluster

NAME = "recovery_init_sync_method"
WHOLE = {NAME: "syncfs"}
MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
41 22 8:17 /pg /srv/my\\040data rw,noatime shared:1 master:2 - xfs /dev/sdb1 rw
"""


def has(monkeypatch: pytest.MonkeyPatch, release: str, kind: str) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(recovery, "file_system", lambda directory, mounts: kind)


@pytest.mark.parametrize(
    ("release", "kind", "expected"),
    [
        ("6.1.0-18-amd64", "ext4", WHOLE),
        ("5.8.0", "xfs", WHOLE),
        ("5.7.19", "ext4", {}),
        ("4.18.0-553.el8_10.x86_64", "xfs", {}),
        ("who knows", "ext4", {}),
        ("6.1.0", "overlay", {}),
        ("6.1.0", "virtiofs", {}),
        ("6.1.0", "", {}),
    ],
)
def test_whole_file_systems_are_synced_only_where_linux_tells_errors_and_the_disk_is_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str, kind: str, expected: dict[str, str]
) -> None:
    has(monkeypatch, release, kind)
    assert recovery.parameters(tmp_path, None) == expected


@pytest.mark.parametrize(
    "answer",
    ["#!/bin/sh\necho 'FATAL:  invalid value for parameter' >&2\nexit 1\n", "no program"],
    ids=["that refuses it", "that does not run"],
)
def test_a_postgresql_that_may_not_know_how_to_sync_a_file_system_is_not_told_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    """It would not start."""
    has(monkeypatch, "6.1.0", "ext4")
    server = tmp_path / "postgres"
    server.write_text(answer)
    server.chmod(0o755)
    monkeypatch.setattr(binaries, "find", lambda bin_dir: Binaries(tmp_path, "18.1"))
    assert recovery.parameters(tmp_path, None) == {}


def test_a_machine_without_postgresql_has_no_parameters_for_it(tmp_path: Path) -> None:
    assert recovery.parameters(tmp_path, tmp_path) == {}


def test_who_declares_another_way_to_sync_before_recovery_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has(monkeypatch, "6.1.0", "ext4")
    engine = CitusEngine(Databases("app", Credentials("s", "r", "o", "p"), dict))

    def way(**declared: str) -> object:
        wanted = wanted_config(LocalPlatform(tmp_path), engine, cluster(postgres={"parameters": declared}), 1)
        return wanted["postgresql"]["parameters"].get(NAME)

    assert way() == "syncfs"
    assert way(**{NAME: "fsync"}) == "fsync"
    assert way(**{NAME.upper(): "fsync"}) == "fsync"


@pytest.mark.parametrize(
    ("device", "kind"), [((254, 0), "ext4"), ((0, 21), "proc"), ((8, 17), "xfs"), ((9, 9), "")]
)
def test_a_directory_has_the_file_system_of_its_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: tuple[int, int], kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    monkeypatch.setattr("os.major", lambda number: device[0])
    monkeypatch.setattr("os.minor", lambda number: device[1])
    assert recovery.file_system(tmp_path, mounts) == kind


def test_a_home_that_is_not_there_yet_has_the_file_system_of_the_directory_that_it_will_be_in() -> None:
    mounts = Path("/proc/self/mountinfo")
    assert recovery.file_system(Path("/proc/nowhere/home"), mounts) == "proc"
    assert recovery.file_system(Path("/proc"), Path("/nowhere")) == ""
