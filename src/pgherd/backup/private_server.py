"""A server that nobody but this process reaches: no network, one socket in a folder that is its owner's alone.

It runs on a data directory that is being made from a backup, with settings of its own: none of those that came along
with the copy, none of the engine's libraries, nothing that acts by itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg

from pgherd.errors import Cancelled, PgherdError, one_line
from pgherd.model.topology import SUPERUSER, Endpoint
from pgherd.platform.base import Programs
from pgherd.platform.local import files
from pgherd.postgres.connections import Connection, is_passing

PORT = 5432
"""part of the socket's name only"""
POLL_SECONDS = 0.1
STOP_SECONDS = 120.0
REFUSED_SECONDS = 60.0
"""a server that turns everybody away for so long, and does not say that it is not open yet, never opens"""
_REFUSED = re.compile(r"FATAL:  (?!the database system is )")

_ALONE = {
    "listen_addresses": "",
    "port": str(PORT),
    "archive_mode": "off",
    "autovacuum": "off",
    "max_logical_replication_workers": "0",
    "synchronous_standby_names": "",
    "primary_conninfo": "",
    "shared_preload_libraries": "",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "hot_standby": "on",
    "wal_level": "logical",
    "fsync": "on",
    "shared_buffers": "64MB",
}
_SOCKETS = "pgherd-"
_NOTES = ("private_hba.conf", "private.conf", "private_sockets")
_CONTROLLED = {
    "max_connections": "max_connections",
    "max_worker_processes": "max_worker_processes",
    "max_wal_senders": "max_wal_senders",
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
"""what the control file says of the server that wrote the log, and the parameters it speaks of"""


class PrivateServer:
    """One server on one data directory.

    :param folder: where its few files are
    :param log: gets what it says, appended
    """

    def __init__(self, programs: Programs, data: Path, folder: Path, log: Path) -> None:
        self.data = data
        self._programs = programs
        self._folder = folder
        self._log = log
        self._begin = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None

    def start(self, settings: Mapping[str, str]) -> None:
        """Start it; returns at once.

        :param settings: over those that every such server has
        """
        self._sockets = self._make_sockets()
        hba, config = self._folder / "private_hba.conf", self._folder / "private.conf"
        files.write(hba, f"local all {SUPERUSER} trust\n")
        files.write(config, "")
        chosen = {
            **_ALONE,
            **({"event_triggers": "off"} if self._programs.major >= 17 else {}),
            **settings,
            "hba_file": str(hba),
            "unix_socket_directories": str(self._sockets),
        }
        command = [
            *self._programs.prefix,
            str(self._programs.find("postgres")),
            *("-D", str(self.data), f"--config-file={config}"),
            *(part for name, value in chosen.items() for part in ("-c", f"{name}={value}")),
        ]
        with files.explained(f"start a server on {self.data}"):
            self._log.parent.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
            self._begin = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                    umask=0o077,
                )

    def _make_sockets(self) -> Path:
        """A short path (a socket's is limited to 107 characters); that of a killed process is removed."""
        note = self._folder / "private_sockets"
        if note.exists():
            before = Path(note.read_text().strip())
            if before.name.startswith(_SOCKETS) and before.parent == Path(tempfile.gettempdir()):
                shutil.rmtree(before, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=_SOCKETS))
        files.write(note, str(made))
        return made

    @property
    def endpoint(self) -> Endpoint:
        """Where this process reaches it."""
        assert self._sockets is not None, "not started"
        return Endpoint(str(self._sockets), PORT)

    def connect(self, database: str = SUPERUSER) -> Connection:
        """A session of the superuser.

        :raises psycopg.Error: it does not take connections (yet)
        """
        return psycopg.connect(
            host=self.endpoint.host, port=PORT, user=SUPERUSER, dbname=database, autocommit=True
        )

    def wait(self, reached: Callable[[Connection], bool], stopping: Callable[[], bool]) -> None:
        """Until a condition holds.

        :raises Cancelled: ``stopping`` said so
        :raises PgherdError: the server ended, or lets nobody in; with its last words
        """
        refused_since: float | None = None
        while True:
            if stopping():
                raise Cancelled("the restore was stopped")
            self.require_running()
            try:
                with self.connect() as connection:
                    while not reached(connection):
                        if stopping():
                            raise Cancelled("the restore was stopped")
                        time.sleep(POLL_SECONDS)
                    return
            except psycopg.OperationalError as error:
                if not is_passing(error):
                    raise
                refused_since = _refused_since(error, refused_since)
                time.sleep(POLL_SECONDS)

    def require_running(self) -> None:
        """:raises PgherdError: the server ended; with its last words"""
        if self._process is None or self._process.poll() is not None:
            raise PgherdError(f"the server on {self.data} ended: {self.last_words()}")

    def stop(self) -> None:
        """End it, with a last checkpoint; no-op if it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(10.0)
        self._process = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        for name in _NOTES:
            (self._folder / name).unlink(missing_ok=True)

    def said(self) -> str:
        """What it said since it was started."""
        with files.explained(f"read {self._log}"), self._log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def last_words(self) -> str:
        """Its last complaint."""
        lines = [line for line in self.said().splitlines() if re.search(r"\b(FATAL|PANIC|ERROR):", line)]
        return re.sub(r"^.*?\b(FATAL|PANIC|ERROR):\s*", "", lines[-1]) if lines else "it did not say why"

    def controlled_settings(self) -> dict[str, int]:
        """The parameters with which the log was written at the time of the copy."""
        command = [*self._programs.prefix, str(self._programs.find("pg_controldata")), str(self.data)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=_environment(), timeout=60
        )
        found = re.findall(r"^(max_\w+) setting:\s*(\d+)$", done.stdout, re.MULTILINE)
        return {_CONTROLLED[name]: int(value) for name, value in found if name in _CONTROLLED}


def _refused_since(error: Exception, before: float | None) -> float | None:
    """Since when a server lets nobody in for another reason than that it is not open yet.

    :raises PgherdError: for too long
    """
    if _REFUSED.search(str(error)) is None:
        return None
    since = time.monotonic() if before is None else before
    if time.monotonic() - since > REFUSED_SECONDS:
        raise PgherdError(f"the server lets nobody in: {one_line(error)}") from error
    return since


def _environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**clean, "LC_ALL": "C"}
