"""What the demo and the benchmarks share: the command line, a plain PostgreSQL to compare with, small statistics.

Clusters are driven only through the command ``pgherd`` in a process of its own and through psycopg with what
``pgherd dsn`` prints: what a user has, no more.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from pgherd.errors import PgherdError
from pgherd.platform.local import binaries, runas

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")


class RunError(Exception):
    """The demo or a benchmark can't go on; the message says why."""


# The command line


@dataclass(frozen=True)
class Pgherd:
    """The command ``pgherd`` on one home of its own."""

    home: Path

    def __call__(self, *arguments: str, timeout: float = 300) -> str:
        """Run a command and return what it printed.

        :raises RunError: it did not exit with 0, or not in time
        """
        done = self.attempt(*arguments, timeout=timeout)
        if done.returncode != 0:
            raise RunError(f"'pgherd {' '.join(arguments)}' exited with {done.returncode}: {_last(done)}")
        return done.stdout

    def attempt(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever it exits with."""
        program = Path(sys.executable).parent / "pgherd"
        environment = {**os.environ, "PGHERD_HOME": str(self.home), "PGHERD_PLATFORM": "local"}
        try:
            return subprocess.run(
                [program, *arguments],
                check=False,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"'pgherd {' '.join(arguments)}' did not end within {timeout:g} s") from None

    def status(self, name: str) -> dict[str, Any]:
        """``pgherd status NAME -o json``"""
        found: dict[str, Any] = json.loads(self("status", name, "-o", "json"))
        return found

    def dsn(self, name: str, group: str = "coordinator") -> str:
        """``pgherd dsn NAME``"""
        return self("dsn", name, "--group", group).strip()

    def primary(self, name: str, group: str) -> str:
        """The member that leads a group."""
        for found in self.status(name)["groups"]:
            for member in found["members"]:
                if found["name"] == group and member["role"] == "primary":
                    return str(member["name"])
        raise RunError(f"{group} of {name} has no primary")

    def postmaster(self, name: str, member: str) -> int:
        """The process id of a member's PostgreSQL."""
        pid_file = self.home / name / "members" / member / "data" / "postmaster.pid"
        return int(pid_file.read_text().splitlines()[0])

    def await_running(self, name: str, within: float) -> None:
        """Wait until every member is there and in step.

        :raises RunError: that did not happen in time
        """
        await_true(lambda: self.status(name)["phase"] == "Running", within, f"{name} to be Running again")

    def save_evidence(self, directory: Path) -> None:
        """Copy what tells why something went wrong: the status, and the logs of the supervisor and all members."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        with suppress(RunError):
            (directory / "status.json").write_text(self("list", "-o", "json", timeout=30))
        for log in [*self.home.glob("*.log"), *self.home.glob("*/*.log"), *self.home.glob("*/log/*.log")]:
            with suppress(OSError):
                shutil.copy(log, directory / log.name)

    def remove_everything(self) -> None:
        """Delete every cluster of this home with its data, then the home."""
        if not self.home.exists():
            return
        for cluster in json.loads(self("list", "-o", "json")):
            self("delete", cluster["name"], "--purge", "--yes")
        # the supervisor leaves by itself once nothing is left to look after, and may still be writing its log
        await_true(lambda: not _removed(self.home).exists(), 10, f"{self.home} to be gone")


def _removed(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    return directory


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else "it said nothing"


# A plain PostgreSQL


@dataclass
class PlainPostgres:
    """One ordinary PostgreSQL of the same programs, reached through a socket in a directory that only we can enter."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """its data directory"""
        return self.directory / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*runas.prefix(), str(binaries.find().program(program)), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise RunError(f"{program} of the plain PostgreSQL failed: {_last(done)}")

    def start(self) -> PlainPostgres:
        """Make it anew and start it; one that an earlier run left behind is stopped first."""
        self.remove()
        self.directory.mkdir(parents=True)
        # the path of a socket has to be short, that of the build directory may not be
        socket = tempfile.mkdtemp(prefix="pgherd-plain-")
        (self.directory / "socket").symlink_to(socket)
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
            "--no-instructions",
        )  # fmt: skip
        settings = {"listen_addresses": "", "unix_socket_directories": socket, **self.settings}
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.restart()
        return self

    def restart(self) -> bool:
        """Start it with the data it has, after it was stopped or killed.

        :raises RunError: processes of its last life have not ended yet
        """
        self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", str(self.directory / "log"))
        return True

    def connect(self) -> Connection:
        """A superuser's connection, autocommit."""
        return psycopg.connect(
            host=str((self.directory / "socket").resolve()),
            user="postgres",
            dbname="postgres",
            autocommit=True,
        )

    def stop(self) -> None:
        """End it, if it runs, and remove its socket's directory."""
        if (self.data / "postmaster.pid").exists():
            with suppress(RunError):
                self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.data))
        socket = self.directory / "socket"
        if socket.is_symlink():
            shutil.rmtree(socket.resolve(), ignore_errors=True)
            socket.unlink()

    def remove(self) -> None:
        """End it and remove its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


# Waiting and numbers


def await_true(question: Callable[[], bool], within: float, what: str, every: float = 0.1) -> None:
    """Ask until the answer is yes; an answer that fails for a while is a no.

    :raises RunError: not within ``within`` seconds
    """
    deadline = time.monotonic() + within
    reason = ""
    while time.monotonic() < deadline:
        try:
            if question():
                return
        except (RunError, PgherdError, psycopg.Error, OSError) as error:
            reason = f" ({error})"
        time.sleep(every)
    raise RunError(f"waited {within:g} s in vain for {what}{reason}")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not below ``percent`` % of the values (nearest rank); 0 if there are none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """How many seconds something took, and what it returned."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep a second run out of ``directory``.

    :raises RunError: one is there
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another run is using {directory}: wait for it to end") from None
        yield
