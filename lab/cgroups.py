"""The lab's cgroups: the list of everything that runs in the lab, kept by the kernel.

Each machine has `/pgherd-lab/NAME` in every hierarchy (version 1, 2 or both mounted side by side); its own processes
are in `machine` below it and the kubelet puts its pods next to that. A process joins before it becomes a machine, so
whatever is in these cgroups, and nothing else, is the lab.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lab.errors import LabError
from lab.settings import NAME, Machine

WEIGHT = 8
"""how many busy processes the whole lab weighs as much as"""


@cache
def hierarchies() -> tuple[Path, ...]:
    """Where cgroups are mounted, one path per hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = tuple(dict.fromkeys(Path(words[1]) for words in mounts if words[2] in ("cgroup", "cgroup2")))
    if not found:
        raise LabError(
            "no cgroups are mounted (looked in /proc/self/mounts): the lab can't confine its nodes"
        )
    return found


def create(machine: Machine) -> None:
    """Make a machine's cgroups; those that exist stay."""
    for hierarchy in hierarchies():
        for part in (NAME, machine.cgroup, f"{machine.cgroup}/machine"):
            folder = hierarchy / part
            _pass_controllers_down(folder.parent)
            folder.mkdir(exist_ok=True)
            _inherit_cpuset(folder)
        _weigh(hierarchy / NAME)


def _weigh(folder: Path) -> None:
    """All of the lab would count as a single process beside whatever else runs here, and starve."""
    for name, usual in (("cpu.shares", 1024), ("cpu.weight", 100)):
        if (folder / name).exists():
            (folder / name).write_text(str(WEIGHT * usual))


def _pass_controllers_down(folder: Path) -> None:
    """Version 2: a child has only the controllers its parent passes on. Version 1 has no such file."""
    if (folder / "cgroup.subtree_control").exists():
        for controller in (folder / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):  # one we may not have is one the kubelet does without
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _inherit_cpuset(folder: Path) -> None:
    """Version 1: a new cpuset is empty, and takes no process until it has processors and memory."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (folder / name).exists() and not (folder / name).read_text().strip():
            (folder / name).write_text((folder.parent / name).read_text())


def joining(machine: Machine) -> list[Path]:
    """The files a process writes 0 to, to be of this machine."""
    return [hierarchy / machine.cgroup / "machine" / "cgroup.procs" for hierarchy in hierarchies()]


def processes(path: str = NAME) -> set[int]:
    """Everything that runs in a cgroup or below it, in any hierarchy."""
    return {pid for folder in _tree(path) for pid in _members(folder)}


def exists() -> bool:
    """Whether the lab has any cgroup."""
    return any((hierarchy / NAME).exists() for hierarchy in hierarchies())


def kill(path: str = NAME, *, deadline: float = 30) -> None:
    """End everything in a cgroup with SIGKILL, and whatever it starts meanwhile.

    :raises LabError: something is still alive after `deadline` seconds
    """
    end = time.monotonic() + deadline
    killed: set[int] = set()
    while pids := processes(path):
        killed |= pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise LabError(f"processes of cgroup {path} do not die: {sorted(pids)}")
        time.sleep(0.02)
    while any(Path(f"/proc/{pid}").exists() for pid in killed) and time.monotonic() < end:
        time.sleep(0.02)  # the dead hold on to their namespaces until they are buried


def remove(path: str = NAME, *, deadline: float = 30) -> None:
    """End everything in a cgroup and remove it with all below it; what comes in meanwhile is ended as well.

    :raises LabError: the kernel still refuses after `deadline` seconds
    """
    end = time.monotonic() + deadline
    while folders := list(_tree(path)):
        kill(path)
        for folder in reversed(folders):
            with contextlib.suppress(OSError):  # the dead leave a cgroup a moment after they are gone
                folder.rmdir()
        if time.monotonic() > end:
            raise LabError(f"cgroups can't be removed: {', '.join(map(str, folders))}")
        time.sleep(0.02)


def _tree(path: str) -> Iterator[Path]:
    """A cgroup and all below it, parents first, in every hierarchy."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / path):
            yield Path(folder)


def _members(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split() if pid != "0"]
    except OSError:  # removed meanwhile
        return []
