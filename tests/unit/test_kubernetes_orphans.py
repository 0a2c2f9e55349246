"""What a member's pod ends when its server was killed alone, and what it leaves alone: with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pgherd.platform.kubernetes import patroni_files
from tests.support.waiting import until
from tests.unit.test_kubernetes_objects import objects

INIT = """\
# Process 1 of a pod: starts servers and what looks after them, and buries the dead.
import ctypes, os, subprocess, sys

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # who is orphaned below comes to us
folder, *servers = sys.argv[1:]
for server in servers:
    # By a child that is gone at once, as Patroni does it.
    started = [sys.executable, f"{folder}/server.py", f"{folder}/{server}"]
    subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.Popen(sys.argv[1:])", *started])
with open(f"{folder}/orphans.py") as file:
    script = file.read().replace(", 1\\n", f", {os.getpid()}\\n", 1)
keeper = subprocess.Popen([sys.executable, "-c", script])
with open(f"{folder}/keeper", "w") as file:
    file.write(str(keeper.pid))
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""

SERVER = """\
import os, signal, subprocess, sys

data = sys.argv[1]
os.chdir(data)
titles = {
    "session": "postgres: shop-segment-1: app app 10.1.0.7(4711) SELECT",
    "checkpointer": "postgres: shop-segment-1: checkpointer ",
    "logger": "postgres: shop-segment-1: logger ",
    "command": "sh -c archive",
}
# They hold both ends of a pipe: no end of the server's is an end of theirs.
reads, writes = os.pipe()
for name, title in titles.items():
    child = subprocess.Popen([title], executable="/bin/cat", stdin=reads, pass_fds=[writes])
    with open(name, "w") as file:
        file.write(str(child.pid))
with open("postmaster.new", "w") as file:
    print(os.getpid(), data, sep="\\n", file=file)
os.rename("postmaster.new", "postmaster.pid")
while True:
    signal.pause()
"""


class Pod:
    """One whose servers work on these folders; the first is the member's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("data", "other"):
            (folder / name).mkdir()
        script = objects()["ConfigMap"]["data"]["orphans.py"]
        (folder / "orphans.py").write_text(script.replace(patroni_files.DATA_PATH, str(folder / "data")))
        (folder / "init.py").write_text(INIT)
        (folder / "server.py").write_text(SERVER)
        self.process = subprocess.Popen(
            [sys.executable, folder / "init.py", folder, "data", "other"], start_new_session=True
        )
        for name in ("data/postmaster.pid", "other/postmaster.pid", "keeper"):
            until((folder / name).exists, f"{name} is there")
        names = ("session", "checkpointer", "logger", "command")
        self.own = {name: self.number(f"data/{name}") for name in names}
        self.others = {name: self.number(f"other/{name}") for name in names}

    def number(self, name: str) -> int:
        return int((self._folder / name).read_text().split()[0])

    def kill(self, folder: str) -> None:
        os.kill(self.number(f"{folder}/postmaster.pid"), signal.SIGKILL)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def lives(pid: int) -> bool:
    """Not so a zombie, which has no command line any more."""
    with suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path)
    yield made
    made.end()


def test_sessions_of_a_killed_server_end_though_they_notice_nothing(pod: Pod) -> None:
    pod.kill("data")
    until(lambda: not lives(pod.own["session"]) and not lives(pod.own["checkpointer"]), "they have ended")
    # What has no shared memory may finish what it does.
    assert lives(pod.own["logger"])
    assert lives(pod.own["command"])


def test_sessions_of_a_server_that_lives_and_those_of_other_data_are_left_alone(pod: Pod) -> None:
    time.sleep(1.5)
    assert all(map(lives, pod.own.values()))
    # Nobody's child any more, but no concern of this member's either.
    pod.kill("other")
    time.sleep(1.5)
    assert all(map(lives, pod.others.values()))
    pod.kill("data")
    until(lambda: not lives(pod.own["session"]), "its own has ended")
    time.sleep(0.5)
    assert all(map(lives, pod.others.values()))


def test_a_note_of_a_server_that_is_long_gone_keeps_nobody_from_looking_again(
    pod: Pod, tmp_path: Path
) -> None:
    """Its number may be another's by now; the next server writes its own."""
    server = pod.number("data/postmaster.pid")
    note = tmp_path / "data" / "postmaster.pid"
    note.write_text(f"{os.getpid()}\n")
    time.sleep(1.2)
    note.write_text(f"{server}\n")
    pod.kill("data")
    until(lambda: not lives(pod.own["session"]), "it has ended")
