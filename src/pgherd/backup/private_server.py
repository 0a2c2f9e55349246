"""A server that nobody but this process reaches.

It runs on a data directory that is being made from a backup, with settings of its own: none of those that came along
with the copy, none of the engine's libraries, nothing that acts by itself. How it is reached, and by nobody else, is
its machine's affair (``Machine.entrance``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgherd.errors import Cancelled, PgherdError, one_line
from pgherd.model.topology import SUPERUSER, Endpoint
from pgherd.platform.machine import Entrance, Machine, Process
from pgherd.postgres.connections import Connection, is_passing

POLL_SECONDS = 0.1
STOP_SECONDS = 120.0
REFUSED_SECONDS = 60.0
"""a server that turns everybody away for so long, and does not say that it is not open yet, never opens"""
_REFUSED = re.compile(r"FATAL:  (?!the database system is )")

_ALONE = {
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
_NOTES = ("private_hba.conf", "private.conf")
_CONTROLLED = {
    "max_connections": "max_connections",
    "max_worker_processes": "max_worker_processes",
    "max_wal_senders": "max_wal_senders",
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
"""what the control file says of the server that wrote the log, and the parameters it speaks of"""
_TIMELINES = ("Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline")
_IN_RECOVERY = ("in archive recovery", "shut down in recovery")


@dataclass(frozen=True)
class Controlled:
    """What a data directory's control file says.

    It alone tells how far the end of recovery has come: the signal file is removed *before* the server asks for its
    timeline's history, which may take long, and only then it notes down that it is on a timeline of its own. A server
    that is killed in between and started without the file replays whatever log there is.
    """

    settings: Mapping[str, int]
    """the parameters with which the log was written"""
    timeline: int
    """the newest one that it knows of"""
    in_recovery: bool
    """it has not left recovery yet; what was just copied is not known to have been in it"""
    shut_down: bool
    """its server ended in order, after recovery"""

    def enough(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Parameters with which a server can read the log, and hold what was prepared in it.

        :param wanted: what they were at a point
        """
        return {name: str(max(int(value), self.settings.get(name, 0))) for name, value in wanted.items()}


class PrivateServer:
    """One server on one data directory.

    :param machine: where both are
    :param folder: where its few files are
    :param log: gets what it says, appended
    """

    def __init__(self, machine: Machine, data: Path, folder: Path, log: Path) -> None:
        self.data = data
        self._machine = machine
        self._folder = folder
        self._log = log
        self._process: Process | None = None
        self._entrance: Entrance | None = None

    def start(self, settings: Mapping[str, str]) -> None:
        """Start it; returns at once.

        :param settings: over those that every such server has
        """
        machine = self._machine
        self._entrance = entrance = machine.entrance(self._folder)
        hba, config = (self._folder / name for name in _NOTES)
        machine.write(hba, entrance.access)
        machine.write(config, "")
        chosen = {
            **_ALONE,
            **({"event_triggers": "off"} if machine.major >= 17 else {}),
            **settings,
            **entrance.settings,
            "hba_file": str(hba),
        }
        command = [
            machine.program("postgres"),
            *("-D", str(self.data), f"--config-file={config}"),
            *(part for name, value in chosen.items() for part in ("-c", f"{name}={value}")),
        ]
        self._process = machine.start(command, self._log)

    @property
    def endpoint(self) -> Endpoint:
        """Where this process reaches it."""
        assert self._entrance is not None, "not started"
        return self._entrance.endpoint

    def connect(self, database: str = SUPERUSER) -> Connection:
        """A session of the superuser.

        :raises psycopg.Error: it does not take connections (yet)
        """
        return psycopg.connect(
            host=self.endpoint.host,
            port=self.endpoint.port,
            user=SUPERUSER,
            dbname=database,
            autocommit=True,
        )

    def wait(self, reached: Callable[[Connection], bool], stopping: Callable[[], bool]) -> None:
        """Until a condition holds.

        :raises Cancelled: ``stopping`` said so
        :raises Unavailable: nobody can tell any more whether the server runs
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
        if self._process is None or not self._process.is_running():
            raise PgherdError(f"the server on {self.data} ended: {self.last_words()}")

    def timeline(self) -> int:
        """On which it writes, once it is open."""
        with self.connect() as connection:
            row = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
        assert row is not None
        return int(str(row[0])[:8], 16)

    def stop(self) -> None:
        """End it, with a last checkpoint; no-op if it does not run."""
        if self._process is not None:
            self._process.stop(STOP_SECONDS)
        if self._entrance is not None:
            self._entrance.close()
            for name in _NOTES:
                self._machine.remove(self._folder / name)
        self._process = self._entrance = None

    def said(self) -> str:
        """What it said since it was started."""
        return self._process.said() if self._process is not None else ""

    def last_words(self) -> str:
        """Its last complaint."""
        lines = [line for line in self.said().splitlines() if re.search(r"\b(FATAL|PANIC|ERROR):", line)]
        return re.sub(r"^.*?\b(FATAL|PANIC|ERROR):\s*", "", lines[-1]) if lines else "it did not say why"

    def controlled(self) -> Controlled:
        """What the control file says of the data directory, while no server runs there."""
        command = [self._machine.program("pg_controldata"), str(self.data)]
        return read_control(self._machine.output(command).decode(errors="replace"))


def read_control(text: str) -> Controlled:
    """Understand what ``pg_controldata`` says.

    :raises PgherdError: it does not say what is needed
    """
    told = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    try:
        return Controlled(
            settings={
                parameter: int(told[f"{name} setting"])
                for name, parameter in _CONTROLLED.items()
                if f"{name} setting" in told
            },
            timeline=max(int(told[name]) for name in _TIMELINES),
            in_recovery=told["Database cluster state"] in _IN_RECOVERY,
            shut_down=told["Database cluster state"] == "shut down",
        )
    except (KeyError, ValueError) as error:
        raise PgherdError(f"pg_controldata says nothing of {error}") from error


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


def is_open(connection: Connection) -> bool:
    """It has left recovery."""
    return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


def is_paused_or_open(connection: Connection) -> bool:
    """It waits at its target, or has left recovery."""
    row = connection.execute(
        "SELECT NOT pg_is_in_recovery() OR pg_get_wal_replay_pause_state() = 'paused'"
    ).fetchone()
    return row == (True,)
