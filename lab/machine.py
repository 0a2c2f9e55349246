"""Machines from the outside: switching them on and off, finding them, telling them what to run.

Whether a machine is on is asked of the kernel: it is on if its cgroup holds a first process (see `init_pid`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lab import cgroups
from lab.errors import LabError
from lab.init import Layout, ServiceFile
from lab.settings import CONTROL_PLANE, Machine, Settings
from lab.shell import run, wait_until

BOOT_DEADLINE = 20.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Service:
    """A program a machine runs, and starts again when it ends."""

    name: str
    argv: list[str]
    listener: bool = False


def init_pid(machine: Machine) -> int | None:
    """The first process of a machine, as the host numbers it; None if the machine is off."""
    for pid in cgroups.processes(f"{machine.cgroup}/machine"):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if fields["NSpid"].split()[1:] == ["1"] and "Z" not in fields["State"]:
            return pid
    return None


def switch_on(settings: Settings, machine: Machine, listener: int | None = None) -> int:
    """Boot a machine that is off; its disks are as it left them, its services are none until they are set.

    :param listener: a listening socket for the services that ask for it
    :return: its first process
    """
    home = settings.home(machine)
    for name in ("root", "log", "services"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for leftover in (*home.glob("services/*"), home / "booted", home / "equipped"):
        leftover.unlink(missing_ok=True)
    layout = Layout(name=machine.name, binds=_binds(settings), listener=listener)
    (home / "machine.json").write_text(json.dumps(layout))
    cgroups.create(machine)
    _spawn(home, machine, listener)
    log = home / "log" / "init.log"
    wait_until(
        (home / "booted").exists,
        f"{machine.name} to boot",
        deadline=BOOT_DEADLINE,
        hint=f"see {log}",
    )
    pid = init_pid(machine)
    assert pid is not None, f"{machine.name} booted without a first process"
    return pid


def _binds(settings: Settings) -> list[tuple[str, str]]:
    return [(str(path), str(path)) for path in (settings.state, settings.cache)]


def _spawn(home: Path, machine: Machine, listener: int | None) -> None:
    """Join the cgroup first, then become the machine: there is no moment in which it runs unlisted."""
    join = " && ".join(f"echo 0 > '{path}'" for path in cgroups.joining(machine))
    unshare = "exec unshare --pid --fork --kill-child --mount --net --uts --ipc --propagation private"
    with (home / "log" / "init.log").open("ab") as log:
        subprocess.Popen(
            ["sh", "-c", f'{join} && {unshare} "$@"', "sh", sys.executable, "-m", "lab.init", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                "PATH": PATH,
                "PYTHONPATH": str(Path(__file__).parent.parent),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            pass_fds=() if listener is None else (listener,),
            start_new_session=True,
        )


def switch_off(machine: Machine) -> None:
    """Power failure: everything in the machine is gone at once; its disks stay."""
    pid = init_pid(machine)
    if pid is not None:
        os.kill(pid, 9)  # the kernel takes the rest of the machine with it
    cgroups.remove(machine.cgroup)


def set_service(settings: Settings, machine: Machine, service: Service) -> None:
    """Have a machine run a service from now on."""
    told = ServiceFile(argv=service.argv, env={"PATH": PATH, "HOME": "/tmp"}, listener=service.listener)
    path = settings.home(machine) / "services" / f"{service.name}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(told))
    new.rename(path)


def unset_service(settings: Settings, machine: Machine, name: str) -> None:
    """Have a machine stop a service and leave it stopped."""
    (settings.home(machine) / "services" / f"{name}.json").unlink(missing_ok=True)


def is_service_set(settings: Settings, machine: Machine, name: str) -> bool:
    return (settings.home(machine) / "services" / f"{name}.json").exists()


def inside(
    machine: Machine, *argv: str | Path, stdin: str | BinaryIO | None = None, timeout: float = 300
) -> str:
    """Run a program in a machine, with its root, its network and its processes, and return what it printed."""
    return run([*entering(machine), *argv], stdin=stdin, timeout=timeout)


def entering(machine: Machine) -> list[str]:
    """The words before a command that make it run in a machine.

    :raises LabError: the machine is off
    """
    return ["nsenter", "--target", str(_pid_of(machine)), "--all", "--"]


def entering_network(machine: Machine = CONTROL_PLANE) -> list[str]:
    """The words before a command of the host that give it a machine's network, and nothing else of it."""
    return ["nsenter", "--target", str(_pid_of(machine)), "--net", "--"]


def _pid_of(machine: Machine) -> int:
    pid = init_pid(machine)
    if pid is None:
        raise LabError(f"{machine.name} is off; `lab status` tells what is on")
    return pid


def erase(settings: Settings) -> None:
    """Remove all that the lab has written, except its cache."""
    shutil.rmtree(settings.state, ignore_errors=True)
    if settings.state.exists():
        shutil.rmtree(settings.state)
