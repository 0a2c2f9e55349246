"""The first process of a machine of the lab: it lays out the root, keeps services running, buries orphans.

`python -m lab.init FOLDER`, as process 1 of fresh namespaces. FOLDER/machine.json says how the root is made (see
`Layout`); FOLDER/services/*.json are the services that shall run, looked at again and again: a file that appears starts
a service, one that goes stops it, a service that ended is started again. When this process is killed, the kernel ends
everything in the machine, as if its power had failed.

Only the standard library, all of it imported beforehand: once the root is laid out, the host's Python is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

LISTENER = 100
"""The descriptor a service finds the host's listening socket on, if it asks for it."""

TICK = 0.1
RESTART_AFTER = 1.0
KILL_AFTER = 10.0
SHARED_WITH_HOST = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc")


KUBELET_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets for the whole host unless it is so already. The lab shows it files that say so instead."""


class Layout(TypedDict):
    """FOLDER/machine.json."""

    name: str
    binds: list[tuple[str, str]]  # (on the host, in the machine), writable
    listener: int | None  # a listening socket handed down by who started us


class ServiceFile(TypedDict):
    """FOLDER/services/NAME.json."""

    argv: list[str]
    env: dict[str, str]
    listener: bool  # wants the host's listening socket as descriptor LISTENER


def main(folder: Path) -> None:
    """Become the machine; never returns."""
    layout: Layout = json.loads((folder / "machine.json").read_text())
    socket.sethostname(layout["name"])
    listener = layout["listener"]
    if listener is not None:
        listener = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, LISTENER + 1)
    lay_out_root(folder / "root", layout["binds"])
    supervisor = Supervisor(folder, listener)
    (folder / "booted").touch()
    while True:
        supervisor.tick()
        time.sleep(TICK)


def lay_out_root(root: Path, binds: list[tuple[str, str]]) -> None:
    """Make a root of our own around the host's programs, and leave the host's.

    The host's programs and settings are seen but can't be written; everything a machine writes stays in its own
    folders or in a file system that ends with it.
    """
    for name in ("proc", "sys", "dev", "run", "tmp", "var/log", "var/lib", "opt", ".host"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mount("--bind", root, root)
    for name in SHARED_WITH_HOST:
        share(Path("/", name), root / name)
    mount("--rbind", "/dev", root / "dev")
    mount("-t", "proc", "proc", root / "proc")
    pretend_tunables(root)
    mount("-t", "sysfs", "sysfs", root / "sys")
    mount("--rbind", "/sys/fs/cgroup", root / "sys/fs/cgroup")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "run")
    for source, target in binds:
        place = root / target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        mount("--bind", source, place)
    (root / "run/lock").mkdir()
    for name, target in (("var/run", "/run"), ("var/tmp", "/tmp")):
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    os.chdir(root)
    command("pivot_root", ".", ".host")
    os.chdir("/")
    command("umount", "--lazy", "/.host")
    mount("--make-rshared", "/")  # the kubelet passes mounts on to containers


def pretend_tunables(root: Path) -> None:
    """Keep the host's own settings out of the machine's reach."""
    for number, (name, value) in enumerate(KUBELET_TUNABLES.items()):
        pretended = root / f".tunable{number}"
        pretended.write_text(f"{value}\n")
        mount("--bind", pretended, root / "proc/sys" / name)


def share(source: Path, target: Path) -> None:
    """Show a directory of the host, not to be written; a link (as /bin is) stays a link."""
    if source.is_symlink():
        if not target.is_symlink():
            target.symlink_to(os.readlink(source))
    elif source.is_dir():
        target.mkdir(exist_ok=True)
        mount("--bind", source, target)
        mount("-o", "remount,bind,ro", target)


def mount(*arguments: str | Path) -> None:
    command("mount", "--no-mtab", *map(str, arguments))  # that one would be the host's


def command(*argv: str) -> None:
    subprocess.run(argv, check=True)


@dataclass
class Service:
    """One service as it is now."""

    pid: int | None = None
    argv: list[str] = field(default_factory=list)
    stopping_since: float | None = None
    start_after: float = 0.0


class Supervisor:
    """Makes what runs equal to what FOLDER/services says."""

    def __init__(self, folder: Path, listener: int | None) -> None:
        self.folder = folder
        self.listener = listener
        self.services: dict[str, Service] = {}

    def tick(self) -> None:
        """Look at everything once."""
        self.bury()
        wanted = {path.stem: path for path in (self.folder / "services").glob("*.json")}
        for name in wanted.keys() - self.services.keys():
            self.services[name] = Service()
        for name, service in list(self.services.items()):
            if name in wanted:
                self.keep(name, service, wanted[name])
            elif service.pid is None:
                del self.services[name]
            else:
                self.stop(service)

    def bury(self) -> None:
        """Take note of services that ended, and of orphans that nobody else waits for."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                for service in self.services.values():
                    if service.pid == ended:
                        service.pid, service.stopping_since = None, None
                        service.start_after = time.monotonic() + RESTART_AFTER

    def keep(self, name: str, service: Service, path: Path) -> None:
        try:
            told: ServiceFile = json.loads(path.read_text())
        except FileNotFoundError:  # taken away meanwhile: the next tick stops it
            return
        if service.pid is not None:
            if told["argv"] != service.argv:
                self.stop(service)
        elif time.monotonic() >= service.start_after:
            self.start(name, service, told)

    def start(self, name: str, service: Service, told: ServiceFile) -> None:
        """Start a service in a session of its own, its words going to FOLDER/log/NAME.log."""
        log = str(self.folder / "log" / f"{name}.log")
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        if told["listener"] and self.listener is not None:
            actions.append((os.POSIX_SPAWN_DUP2, self.listener, LISTENER))
        argv = told["argv"]
        try:
            service.pid = os.posix_spawnp(argv[0], argv, told["env"], file_actions=actions, setsid=True)
        except OSError as error:  # a machine outlives a service that can't be started
            (self.folder / "log" / f"{name}.log").write_text(f"can't be started: {error}\n")
            service.start_after = time.monotonic() + RESTART_AFTER
        service.argv, service.stopping_since = argv, None

    def stop(self, service: Service) -> None:
        """Ask a service to end, and make it end when it does not."""
        if service.pid is None:
            return
        now = time.monotonic()
        if service.stopping_since is None:
            service.stopping_since = now
            os.kill(service.pid, signal.SIGTERM)
        elif now - service.stopping_since > KILL_AFTER:
            os.kill(service.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
