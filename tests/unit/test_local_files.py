"""Files of a home: whole or not there, and locks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgherd.errors import PgherdError
from pgherd.platform.local import files


def test_a_file_is_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret.json"
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["secret.json"]


def test_there_is_no_json_where_there_is_no_file(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "nothing") is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    path.write_text("{")
    with pytest.raises(PgherdError, match=r"ports\.json is damaged"):
        files.read_json(path)


FULL = """
import resource, signal, sys
from pathlib import Path
from pgherd.errors import PgherdError
from pgherd.platform.local import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    files.write(Path(sys.argv[1]), "x" * 100)
except PgherdError as error:
    print(error)
"""


def test_a_write_that_finds_no_room_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    files.write(path, "old")
    answer = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
    )
    assert f"could not write {path}" in answer.stdout
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["cluster.yaml"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    files.write_json(path, {"n": 0, "filler": "x" * 100_000})
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            files.write_json(path, {"n": n, "filler": "x" * 100_000}, durable=False)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(len(files.read_json(path)["filler"]) == 100_000 for _ in range(300))
    finally:
        stop.set()
        writer.join()


def test_a_removal_that_was_cut_short_is_finished_by_the_next(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    rest = tmp_path / ".removed.data.1234"
    for each in (directory, rest):
        (each / "deep").mkdir(parents=True)
        (each / "deep" / "file").touch()
    files.remove(directory)
    files.remove(directory)
    assert os.listdir(tmp_path) == []


def test_a_sweep_leaves_what_was_not_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".removed.kept.12").mkdir()
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_a_lock_keeps_threads_and_other_holders_out_but_not_its_own_thread(tmp_path: Path) -> None:
    path = tmp_path / "home" / "lock"
    locks = [files.Lock(path), files.Lock(path)]
    counter = {"inside": 0, "most": 0}

    def work(number: int) -> None:
        lock = locks[number % 2]
        with lock.held(), lock.held():
            counter["inside"] += 1
            counter["most"] = max(counter["most"], counter["inside"])
            counter["inside"] -= 1

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(work, range(200)))
    assert counter == {"inside": 0, "most": 1}


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = files.Lock(path), files.Lock(path)
    taken = threading.Event()
    with first.held():
        waiter = threading.Thread(target=lambda: _hold(second, taken))
        waiter.start()
        path.unlink()
        with files.Lock(path).held():
            pass
    waiter.join(10)
    assert taken.is_set()


def _hold(lock: files.Lock, taken: threading.Event) -> None:
    with lock.held():
        taken.set()


def test_a_place_without_rights_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PgherdError, match="could not write"):
        files.write(tmp_path / "file" / "below", "x")
