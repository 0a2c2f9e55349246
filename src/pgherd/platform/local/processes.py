"""Processes: start them detached, find them again, end them.

A daemon (a member's Patroni, the store's controller) is known by its command line, which ends in the path of its
configuration file; a server or tool of PostgreSQL by the member's directory, which it works in or has among its
arguments. Both are read from the process table, so whoever comes later finds what an earlier process started, and a
number used again for another process is never mistaken. A zombie counts as dead.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from pgherd.errors import PgherdError
from pgherd.platform.local import files

logger = logging.getLogger(__name__)

PATRONI = ("-m", "patroni")
RAFT_CONTROLLER = ("-c", "from patroni.raft_controller import main; main()  # patroni_raft_controller")
KEEPER = ("-m", "pgherd.platform.local.keeper")

_TOOLS = frozenset(
    {"initdb", "pg_basebackup", "pg_checksums", "pg_controldata", "pg_ctl", "pg_rewind", "postgres"}
)
_POLL_SECONDS = 0.02
_START_SECONDS = 10.0
_FOREIGN_SETTINGS = ("PATRONI_", "PG")
"""Variables that would override what we configure (``PATRONI_NAME``, ``PGPORT``)"""


class Daemons:
    """The daemons of one home. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[Path, psutil.Process] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._guard = threading.Lock()

    def find(self, config: Path) -> psutil.Process | None:
        """The daemon with this configuration file, or None if it is not running."""
        return self.find_all([config]).get(config)

    def find_all(self, configs: Collection[Path]) -> Mapping[Path, psutil.Process]:
        """Those of these daemons that run."""
        with self._guard:
            # Without this our own dead children would stay zombies.
            self._children = [child for child in self._children if child.poll() is None]
            if not all(config in self._known and is_alive(self._known[config]) for config in configs):
                self._scan(configs)
            return {config: self._known[config] for config in configs if config in self._known}

    def _scan(self, configs: Collection[Path]) -> None:
        wanted = {str(config): config for config in configs}
        for config in configs:
            self._known.pop(config, None)
        found = [
            (process.create_time(), wanted[command[-1]], process)
            for process, command in _commands()
            if command[-1] in wanted and _is_daemon(command)
        ]
        # The store forks to write its snapshots: the eldest is the daemon.
        for _, config, process in sorted(found, key=lambda each: each[0]):
            if is_alive(process):
                self._known.setdefault(config, process)

    def start_patroni(self, config: Path, log: Path, prefix: Sequence[str]) -> None:
        """Start a member's Patroni, below a keeper of its own; returns once it can be found.

        :param log: gets what it and its PostgreSQL print, appended
        :param prefix: put before its command
        :raises PgherdError: it could not be started
        """
        keeper = self._start([*prefix, sys.executable, "-P", *KEEPER, str(config.parent)], config, log)
        deadline = time.monotonic() + _START_SECONDS
        while self.find(config) is None:
            if keeper.poll() is not None or time.monotonic() > deadline:
                raise PgherdError(f"Patroni does not start: see {log}")
            time.sleep(_POLL_SECONDS)

    def start_raft_controller(self, config: Path, log: Path, prefix: Sequence[str]) -> None:
        """Start the store's controller and return at once; parameters as above."""
        child = self._start([*prefix, sys.executable, "-P", *RAFT_CONTROLLER, str(config)], config, log)
        with self._guard:
            self._known[config] = psutil.Process(child.pid)

    def _start(self, command: Sequence[str], config: Path, log: Path) -> subprocess.Popen[bytes]:
        with files.explained(f"start {command[0]} with {config}"):
            log.parent.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
            with log.open("ab") as output:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=config.parent,
                    env=_environment(),
                    start_new_session=True,
                    umask=0o077,
                )
        with self._guard:
            self._children.append(child)
        return child


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_SETTINGS)}


def _commands() -> Iterable[tuple[psutil.Process, list[str]]]:
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command:
            yield process, command


def _is_daemon(command: Sequence[str]) -> bool:
    return tuple(command[-3:-1]) in (PATRONI, RAFT_CONTROLLER)


def is_alive(process: psutil.Process) -> bool:
    """Whether it is still the same process, and more than a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def keepers_of(directory: Path) -> list[psutil.Process]:
    """The keepers of a member: one for each of its Patronis that still runs or has left something running."""
    wanted = (*KEEPER, str(directory))
    return [
        process for process, command in _commands() if tuple(command[-3:]) == wanted and is_alive(process)
    ]


def postgres_of(directory: Path) -> list[psutil.Process]:
    """All servers, their children and tools of PostgreSQL that work on a member's directory."""
    return [
        process
        for process, command in _commands()
        if _is_postgres(command[0]) and _works_on(process, command, directory) and is_alive(process)
    ]


def _is_postgres(program: str) -> bool:
    # A server's children carry a title instead: "postgres: SCOPE: checkpointer"
    return program.startswith("postgres: ") or Path(program).name in _TOOLS


def _works_on(process: psutil.Process, command: Sequence[str], directory: Path) -> bool:
    if any(argument.removeprefix("--pgdata=").startswith(f"{directory}/") for argument in command[1:]):
        return True
    try:
        return Path(process.cwd()).is_relative_to(directory)
    except psutil.Error:
        return False


def postmaster_of(data: Path) -> psutil.Process | None:
    """The running server of a data directory, as far as its own note tells."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid) if pid > 0 else None
    except (OSError, ValueError, psutil.Error):
        return None
    if process is None or not is_alive(process):
        return None
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    return process if command and str(data) in command else None


def end(processes: Collection[psutil.Process], number: int, seconds: float) -> bool:
    """Send a signal and wait. True once all are gone.

    A stopped process (SIGSTOP) is woken, or it would never act on the signal.
    """
    for process in processes:
        for each in (number, signal.SIGCONT):
            try:
                process.send_signal(each)
            except psutil.Error:
                break
    return wait_gone(processes, seconds)


def wait_gone(processes: Collection[psutil.Process], seconds: float) -> bool:
    """Wait for processes to end. True once all are gone."""
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def end_postgres(directory: Path, data: Path) -> None:
    """End whatever of PostgreSQL works on a member's directory: first asked, then made to.

    The ladder is bounded: fast shutdown (20 s), immediate shutdown (5 s), SIGKILL (5 s).
    """
    server = postmaster_of(data)
    if server is not None:
        logger.info("ending the PostgreSQL %s left without its Patroni in %s", server.pid, data)
        end([server], signal.SIGINT, 20.0) or end([server], signal.SIGQUIT, 5.0)
    # Children of a server that was killed notice that by themselves.
    rest = postgres_of(directory)
    tools = [process for process in rest if not process.name().startswith("postgres")]
    if not end(tools, signal.SIGTERM, 2.0) or not wait_gone(rest, 2.0):
        end(postgres_of(directory), signal.SIGKILL, 5.0)
    # With nothing left below them they end by themselves.
    keepers = keepers_of(directory)
    wait_gone(keepers, 2.0) or end(keepers, signal.SIGKILL, 2.0)
    _remove_stale_note(directory, data)


def _remove_stale_note(directory: Path, data: Path) -> None:
    """Of a server that was killed. After a restart of the machine its number may be another process's, and a zombie
    still has it: PostgreSQL would take that for itself, and refuse to start."""
    note = data / "postmaster.pid"
    # Most have none: who ended as asked took it along, and nobody has to be looked for.
    if note.exists() and postmaster_of(data) is None and not postgres_of(directory):
        _remove_shared_memory(data)
        with suppress(OSError):
            note.unlink()


def _remove_shared_memory(data: Path) -> None:
    """A server that was killed leaves a (tiny) System V segment, which its note names, for its next start to remove."""
    try:
        note = (data / "postmaster.pid").read_text().splitlines()
        key, identifier = note[6].split()
        listed = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except (OSError, IndexError, ValueError):
        return
    if any(fields[:2] == [key, identifier] and fields[6] == "0" for fields in map(str.split, listed)):
        subprocess.run(["ipcrm", "-m", identifier], capture_output=True, check=False)


def end_home(home: Path) -> None:
    """SIGKILL for every daemon, keeper and PostgreSQL process of a home whose files are gone."""
    for _ in range(3):  # a Patroni may be starting something just now
        daemons = [
            process
            for process, command in _commands()
            if tuple(command[-3:-1]) in (PATRONI, RAFT_CONTROLLER, KEEPER)
            and command[-1].startswith(f"{home}/")
        ]
        if end([*daemons, *postgres_of(home)], signal.SIGKILL, 5.0) and not daemons:
            return


def listener(port: int) -> str | None:
    """Who listens on a port of this machine (``program, process N``), where we may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if (
                connection.status == psutil.CONN_LISTEN
                and address
                and address.port == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:
        pass
    return None
