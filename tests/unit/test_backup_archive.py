"""Log files on their way into the repository: whole or not at all, never other content, never without a repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from patroni.postgresql.rewind import Rewind

from pgherd.backup import archive
from pgherd.backup.native import Native
from pgherd.backup.repository import Repository
from pgherd.backup.wal import SEGMENT_BYTES
from pgherd.platform.base import Programs

NAME = "000000010000000000000001"
SEGMENT = b"log" * 1000 + bytes(1 << 20)


@pytest.fixture
def member(tmp_path: Path) -> Path:
    """A data directory as far as archiving looks at it."""
    data = tmp_path / "data"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").write_bytes((7123).to_bytes(8, sys.byteorder) + b"rest")
    (data / "pg_wal").mkdir()
    (data / "pg_wal" / NAME).write_bytes(SEGMENT)
    return data


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository" / "shop")
    made.create("shop")
    return made


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", archive.__file__, *arguments]
    return subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)


def push(data: Path, repository: Repository) -> subprocess.CompletedProcess[str]:
    return run(data, "push", str(repository.logs(1)), f"pg_wal/{NAME}", NAME)


def test_a_file_is_archived_below_its_system_and_comes_back_the_same(
    member: Path, repository: Repository
) -> None:
    assert push(member, repository).returncode == 0
    assert list(repository.log_files(1, "7123")) == [NAME]
    back = member / "pg_wal" / "RECOVERYXLOG"
    assert run(member, "fetch", str(repository.logs(1) / "7123"), NAME, str(back)).returncode == 0
    assert back.read_bytes() == SEGMENT


def test_empty_pages_take_no_room(member: Path, repository: Repository) -> None:
    push(member, repository)
    stored = (repository.logs(1) / "7123" / NAME).stat()
    assert stored.st_size == len(SEGMENT)
    assert stored.st_blocks * 512 < len(SEGMENT) // 4


def test_the_same_file_again_is_fine(member: Path, repository: Repository) -> None:
    assert [push(member, repository).returncode for _ in range(2)] == [0, 0]
    assert os.listdir(repository.logs(1) / "7123") == [NAME]


def test_other_content_under_the_same_name_is_refused_and_changes_nothing(
    member: Path, repository: Repository
) -> None:
    push(member, repository)
    (member / "pg_wal" / NAME).write_bytes(b"x" * len(SEGMENT))
    done = push(member, repository)
    assert done.returncode == 1
    assert "is there with other content" in done.stderr
    assert (repository.logs(1) / "7123" / NAME).read_bytes() == SEGMENT


FORK = 1 * SEGMENT_BYTES + 0x4000
"""inside of the file that is called NAME"""


def follow(data: Path, left: int, timeline: int = 2) -> None:
    """What a member has when it was told of the next timeline."""
    text = f"1\t{left >> 32:X}/{left & 0xFFFFFFFF:X}\tno recovery target specified\n"
    (data / "pg_wal" / f"{timeline:08X}.history").write_text(text)


def test_the_file_in_which_a_timeline_was_left_is_archived_by_nobody(
    member: Path, repository: Repository
) -> None:
    """Members that follow a promotion have it with different ends: the second would be refused for ever."""
    follow(member, FORK)
    for rest in (b"x", b"y"):
        (member / "pg_wal" / NAME).write_bytes(rest * len(SEGMENT))
        assert push(member, repository).returncode == 0
    assert repository.log_files(1, "7123") == {}


@pytest.mark.parametrize(
    "left", [FORK - SEGMENT_BYTES, FORK + SEGMENT_BYTES, 2 * SEGMENT_BYTES, FORK + (1 << 32)]
)
def test_a_file_that_its_timeline_went_beyond_or_never_reached_is_archived(
    member: Path, repository: Repository, left: int
) -> None:
    """Left at the first byte of the next file, this one is whole, and no other timeline has it."""
    follow(member, left)
    assert push(member, repository).returncode == 0
    assert list(repository.log_files(1, "7123")) == [NAME]


@pytest.mark.parametrize("name", [f"{NAME}.partial", "00000002.history", f"00000003{NAME[8:]}"])
def test_what_comes_beside_a_left_file_is_archived(member: Path, repository: Repository, name: str) -> None:
    follow(member, FORK)
    if not name.endswith(".history"):
        (member / "pg_wal" / name).write_bytes(SEGMENT)
    assert run(member, "push", str(repository.logs(1)), f"pg_wal/{name}", name).returncode == 0
    assert list(repository.log_files(1, "7123")) == [name]


def test_a_primary_that_died_does_not_archive_the_file_in_which_its_successor_left_it(
    member: Path, repository: Repository
) -> None:
    """It has not heard of that; the repository has."""
    place = repository.logs(1) / "7123"
    place.mkdir(parents=True)
    left = f"0/{FORK:X}\tno recovery target specified\n"
    (place / "00000002.history").write_text(f"1\t0/{9 * SEGMENT_BYTES:X}\tx\n")
    (place / "00000003.history").write_text(f"1\t{left}2\t0/{9 * SEGMENT_BYTES:X}\tx\n")
    assert push(member, repository).returncode == 0
    assert sorted(repository.log_files(1, "7123")) == ["00000002.history", "00000003.history"]


def test_patroni_archives_what_a_member_that_died_had_not(
    member: Path, repository: Repository, tmp_path: Path
) -> None:
    """It runs the command in a directory of its own."""
    method = Native(repository.root, _no_programs, let_go=64 * SEGMENT_BYTES)
    (member / "pg_wal" / "archive_status").mkdir()
    command = method.parameters(1)["archive_command"]
    server = SimpleNamespace(wal_dir=str(member / "pg_wal"))
    ready = Rewind._build_archiver_command(cast(Any, SimpleNamespace(_postgresql=server)), command, NAME)
    subprocess.run(ready, shell=True, cwd=tmp_path, check=True)
    assert list(repository.log_files(1, "7123")) == [NAME]


def test_no_file_of_a_timeline_is_archived_without_its_history(member: Path, repository: Repository) -> None:
    """What waits is forgotten after a crash, but for files of the log, or was let go."""
    follow(member, FORK)
    name = f"00000002{NAME[8:]}"
    (member / "pg_wal" / name).write_bytes(SEGMENT)
    assert run(member, "push", str(repository.logs(1)), f"pg_wal/{name}", name).returncode == 0
    assert sorted(repository.log_files(1, "7123")) == ["00000002.history", name]


def test_a_repository_that_is_away_is_not_made(member: Path, tmp_path: Path) -> None:
    away = Repository(tmp_path / "not-mounted" / "shop")
    done = push(member, away)
    assert done.returncode == 1
    assert "there is no repository" in done.stderr
    assert not away.root.exists()


def test_another_system_of_the_same_name_has_a_place_of_its_own(member: Path, repository: Repository) -> None:
    push(member, repository)
    (member / "global" / "pg_control").write_bytes((7124).to_bytes(8, sys.byteorder))
    (member / "pg_wal" / NAME).write_bytes(b"another")
    assert push(member, repository).returncode == 0
    assert sorted(os.listdir(repository.logs(1))) == ["7123", "7124"]


def test_what_is_not_archived_is_not_fetched(member: Path, repository: Repository) -> None:
    target = member / "pg_wal" / "RECOVERYXLOG"
    assert run(member, "fetch", str(repository.logs(1) / "7123"), NAME, str(target)).returncode == 1
    assert not target.exists()


def test_a_repository_that_is_away_is_not_taken_for_the_end_of_the_log(
    member: Path, repository: Repository
) -> None:
    repository.root.rename(repository.root.with_name("elsewhere"))
    done = run(member, "fetch", str(repository.logs(1) / "7123"), NAME, "pg_wal/RECOVERYXLOG")
    assert done.returncode > 125, (
        "PostgreSQL ends the server, instead of opening it where the log seems to end"
    )
    assert "No such file" in done.stderr


def test_a_killed_archiver_leaves_nothing_under_the_name(member: Path, repository: Repository) -> None:
    place = repository.logs(1) / "7123"
    place.mkdir(parents=True)
    (place / f".{NAME}.1.abc.tmp").write_bytes(b"half")
    assert repository.log_files(1, "7123") == {}
    assert push(member, repository).returncode == 0
    assert (place / NAME).read_bytes() == SEGMENT


def test_retention_removes_logs_before_a_position_and_keeps_histories(repository: Repository) -> None:
    method = Native(repository.root, _no_programs)
    place = repository.logs(1) / "7123"
    place.mkdir(parents=True)
    names = [f"00000001000000000000000{number}" for number in range(1, 6)]
    for name in (*names, "00000002.history", "000000020000000000000004"):
        (place / name).write_bytes(b"log")
    assert method.remove_log(1, "7123", 3 * SEGMENT_BYTES + 40) == 2
    assert sorted(repository.log_files(1, "7123")) == [
        *names[2:],
        "00000002.history",
        "000000020000000000000004",
    ]
    assert method.remove_log(1, "7123", None) == 5
    assert not place.exists()


def test_the_archive_command_is_safe_for_the_shell_and_for_postgresql(tmp_path: Path) -> None:
    command = Native(tmp_path / "50%=a~b", _no_programs).parameters(1)["archive_command"]
    assert command.endswith(" %p %f")
    assert "50%%=a~b" in command


def _no_programs() -> Programs:
    raise AssertionError("no program is needed")


# letting go


def push_or_let_go(data: Path, repository: Repository, limit: int) -> subprocess.CompletedProcess[str]:
    return run(data, "push", "--let-go", str(limit), str(repository.logs(1)), f"pg_wal/{NAME}", NAME)


def let_wait(data: Path, count: int) -> None:
    status = data / "pg_wal" / "archive_status"
    status.mkdir(exist_ok=True)
    for number in range(count):
        (status / f"{number:024X}.ready").touch()


def test_below_the_limit_nothing_is_let_go(member: Path, repository: Repository) -> None:
    let_wait(member, 2)
    repository.root.rename(repository.root.with_name("away"))
    assert push_or_let_go(member, repository, 2 * archive.SEGMENT_BYTES).returncode == 1
    assert not (member / archive.NOTE).exists()


def test_past_the_limit_a_file_is_let_go_and_noted_until_the_repository_is_back(
    member: Path, repository: Repository
) -> None:
    let_wait(member, 3)
    repository.root.rename(away := repository.root.with_name("away"))
    for count in (1, 2):
        assert push_or_let_go(member, repository, 2 * archive.SEGMENT_BYTES).returncode == 0
        note = json.loads((member / archive.NOTE).read_text())
        assert (note["first"], note["last"], note["count"]) == (NAME, NAME, count)
        assert "there is no repository" in note["reason"]
    away.rename(repository.root)
    assert push_or_let_go(member, repository, 2 * archive.SEGMENT_BYTES).returncode == 0
    assert not (member / archive.NOTE).exists()
    assert list(repository.log_files(1, "7123")) == [NAME]


def test_what_contradicts_the_repository_is_never_let_go(member: Path, repository: Repository) -> None:
    push(member, repository)
    let_wait(member, 3)
    (member / "pg_wal" / NAME).write_bytes(SEGMENT + b"else")
    done = push_or_let_go(member, repository, archive.SEGMENT_BYTES)
    assert done.returncode == 1
    assert "other content" in done.stderr
