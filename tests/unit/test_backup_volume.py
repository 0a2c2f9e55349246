"""A repository's small files on a volume: each look and each change is a program where the volume is mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import volume_files, volume_store
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import Damaged
from pgherd.backup.volume_store import PART, VolumeStore
from pgherd.errors import PgherdError, Refused, Unavailable, Withheld
from pgherd.platform.local.machine import LocalMachine
from tests.support.backups import point

WHERE = "volume://backups/shop"


class Pod(LocalMachine):
    """A machine that has the volume; it remembers what was run.

    :param real: whether that is a program of its own, which takes its time
    """

    def __init__(self, trouble: Exception | None = None, *, real: bool = False) -> None:
        self.trouble, self.real = trouble, real
        self.ran: list[Sequence[str]] = []

    def output(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, seconds: float = 1
    ) -> bytes:
        if self.trouble is not None:
            raise self.trouble
        self.ran.append(command[5:])
        assert command[:4] == ["python3", "-I", "-S", "-c"]
        if not self.real:
            verb, root, *rest = command[5:]
            try:
                return bytes(getattr(volume_files.Files(root), verb)(*rest))
            except OSError as error:
                said = (error.strerror or "").lower()
                raise PgherdError(f"could not {volume_files.COMMANDS[verb]} {root}: {said}") from error
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False)
        if done.returncode != 0:
            raise PgherdError(done.stderr.decode().strip())
        return done.stdout


@pytest.fixture
def pod() -> Pod:
    return Pod()


@pytest.fixture
def store(tmp_path: Path, pod: Pod) -> VolumeStore:
    made = VolumeStore(WHERE, tmp_path / "prefix" / "shop", lambda: pod)
    made.create()
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "prefix" / "shop"


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART + 7])
def test_contents_of_any_size_come_back_as_they_were_written(store: VolumeStore, size: int) -> None:
    content = os.urandom(size)
    store.write("prints/a.json", content)
    store.write("prints/a.json", content)
    assert store.read("prints/a.json") == content
    assert [entry.name for entry in store.names("prints")] == ["prints/a.json"], "nothing is left beside it"


@pytest.mark.parametrize("size", [1, PART + 1])
def test_what_is_appended_is_behind_what_was_there(store: VolumeStore, size: int) -> None:
    line = os.urandom(size)
    store.append("points/day.jsonl", b"first\n")
    before = store.names("points")[0].version
    store.append("points/day.jsonl", line)
    assert store.read("points/day.jsonl") == b"first\n" + line
    assert store.names("points")[0].version != before, "who has read it reads it again"


def test_a_file_is_replaced_as_a_whole_however_late_its_writer_is_killed(
    store: VolumeStore, root: Path, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("drills.json", b"old")
    ask = VolumeStore._ask

    def cut(self: VolumeStore, command: str, *arguments: str, **how: Any) -> bytes:
        if command == "keep":
            raise Withheld("killed")
        return ask(self, command, *arguments, **how)

    monkeypatch.setattr(VolumeStore, "_ask", cut)
    with pytest.raises(Withheld):
        store.write("drills.json", b"n" * (2 * PART))
    monkeypatch.undo()
    assert store.read("drills.json") == b"old"
    [aside] = root.glob(".*.tmp")
    store.sweep("")
    assert aside.exists(), "somebody may be at work on it"
    os.utime(aside, (1, 1))
    store.sweep("")
    assert not aside.exists()


def test_it_is_known_how_much_more_fits_in(store: VolumeStore, root: Path) -> None:
    room = store.room()
    assert room is not None
    assert abs(room - shutil.disk_usage(root).free) < 1 << 30


def test_a_part_that_is_missing_is_no_content(store: VolumeStore, root: Path) -> None:
    with pytest.raises(PgherdError, match="a part of it is missing"):
        store._ask("keep", "drills.json", "token", "7", "AAAA")
    assert store.read("drills.json") is None
    assert list(root.iterdir()) == []


def test_folders_go_as_a_whole_and_what_a_removal_has_left_is_swept(store: VolumeStore, root: Path) -> None:
    store.write("backups/a/backup.json", b"{}")
    store.write("backups/b/backup.json", b"{}")
    (root / "backups" / ".removed.c.1234").mkdir()
    assert store.folders("backups") == ["a", "b"]
    store.remove("backups/a")
    store.remove("backups/nothing")
    assert store.folders("backups") == ["b"]
    store.sweep("backups")
    assert [each.name for each in (root / "backups").iterdir()] == ["b"]


def test_a_file_that_the_disk_has_lost_hides_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = volume_files.Files(str(tmp_path))
    (tmp_path / "repository.json").write_text("{}")
    (tmp_path / "lost").write_text("x")
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "lost":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert files.read("lost") == volume_files.LOST
    assert files.add("lost", "token", "AAAA") == volume_files.LOST
    (tmp_path / "repository.json").unlink()
    with pytest.raises(OSError, match="Input/output"):
        files.read("lost")


def test_nothing_is_appended_to_what_is_lost(store: VolumeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VolumeStore, "_ask", lambda *asked, **how: volume_files.LOST)
    for size in (1, PART + 1):
        with pytest.raises(Damaged, match=r"backups/shop/points/day[.]jsonl is damaged"):
            store.append("points/day.jsonl", b"x" * size)
    assert store.read("points/day.jsonl") == b"", "it is there, and can't be read"


def test_a_repository_that_was_removed_is_not_begun_anew_by_a_late_record(
    store: VolumeStore, root: Path
) -> None:
    root.rmdir()
    for name in ("drills.json", "points/day.jsonl"):
        with pytest.raises(PgherdError, match=r"could not write .*: no such file"):
            store.write(name, b"x")
    assert not root.exists()


def test_a_volume_that_members_may_not_write_to_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*given: Any, **how: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert volume_files.main(["create", str(tmp_path / "shop")]) == 1
    assert f"permission denied: user {os.getuid()} must be able to write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "kind", "says"),
    [
        (Unavailable("the connection broke"), Withheld, "volume://backups/shop does not answer: the conn"),
        (Refused("there is no PersistentVolumeClaim backups"), Refused, "^there is no PersistentVolumeCl"),
        (PgherdError("could not read /x: stale"), PgherdError, "volume://backups/shop: could not read /x"),
    ],
)
def test_what_keeps_it_from_answering_is_told_in_one_line(
    tmp_path: Path, trouble: Exception, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        VolumeStore(WHERE, tmp_path, lambda: Pod(trouble)).read("repository.json")


@pytest.mark.parametrize("sealed", [False, True])
def test_it_holds_what_is_remembered_of_backups(store: VolumeStore, pod: Pod, sealed: bool) -> None:
    kept = Catalogue(SealedStore(store, "correct horse") if sealed else store, "pgbackrest")
    kept.create("shop")
    assert kept.identity().cluster == "shop"
    points = [point(number) for number in range(3)]
    for each in points:
        kept.remember_point(each)
    assert [each.name for each in kept.points()] == [each.name for each in points]
    pod.ran.clear()
    assert len(kept.points()) == 3
    assert {each[0] for each in pod.ran} == {"names"}, "what has not changed is remembered"


def test_its_program_runs_with_nothing_but_python(tmp_path: Path) -> None:
    store = VolumeStore(WHERE, tmp_path / "shop", lambda: Pod(real=True))
    store.create()
    store.append("points/day.jsonl", b"\x00line\n")
    assert store.read("points/day.jsonl") == b"\x00line\n"
    (tmp_path / "shop").rename(tmp_path / "gone")
    with pytest.raises(PgherdError, match=r"^volume://backups/shop: could not write .*: no such file"):
        store.write("drills.json", b"x")


def test_its_program_is_small_enough_to_be_brought_along() -> None:
    assert len(volume_store._text_of_program()) + PART * 4 / 3 < 100_000
