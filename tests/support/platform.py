"""Groups of real members on a real local platform, driven without a supervisor: the test decides what starts."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from pgherd.errors import PgherdError
from pgherd.model import spec
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import SUPERUSER, Endpoint, Member
from pgherd.patroni.client import MemberStatus, PatroniClient
from pgherd.patroni.config import dynamic_config
from pgherd.platform.base import MemberView
from pgherd.platform.local.platform import LocalPlatform
from pgherd.postgres.connections import Databases
from tests.support.home import wait_for as wait_for

Connection = psycopg.Connection[Any]


def cluster(name: str = "shop", segments: int = 1, standbys: int = 1, **fields: Any) -> PostgresCluster:
    """A declaration, spec fields in camelCase."""
    counts = {"coordinator": {"standbys": standbys}, "segments": {"count": segments, "standbys": standbys}}
    return spec.from_mapping(
        {
            "apiVersion": spec.API_VERSION,
            "kind": spec.KIND,
            "metadata": {"name": name},
            "spec": {"shardCount": 8, **counts, **fields},
        }
    )


@dataclass
class Group:
    """One group of one cluster and its members, all of them declared to run."""

    platform: LocalPlatform
    cluster: PostgresCluster
    group: int = 0
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        standbys = (self.cluster.spec.segments if self.group else self.cluster.spec.coordinator).standbys
        self.members = [Member(self.name, self.group, ordinal) for ordinal in range(standbys + 1)]

    @property
    def name(self) -> str:
        """The cluster's"""
        return self.cluster.metadata.name

    @property
    def patroni(self) -> PatroniClient:
        """Of this cluster"""
        return PatroniClient(self.platform.credentials(self.name).rest)

    def start(self, *which: Member) -> None:
        """Start these members, or all."""
        self.platform.declare(self.cluster)
        for member in which or self.members:
            self.platform.start_member(self.cluster, member, dynamic_config(self.cluster, self.group, {}, []))

    def up(self) -> Group:
        """Start all and wait until each standby is synchronous."""
        self.start()
        self.wait_ready()
        return self

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until there is a leader and all others are synchronous (where the declaration asks for that) standbys."""
        wait_for(self.is_ready, f"{self.name}/{self.group} to be ready: {self.tail()}", timeout)

    def is_ready(self) -> bool:
        """Whether all members are where they should be."""
        seen = list(self.statuses().values())
        synchronous = self.cluster.spec.durability != "asynchronous"
        leaders = [status for status in seen if status and status.leader and status.state == "running"]
        standbys = [status for status in seen if status and status.streaming]
        return (
            len(leaders) == 1
            and len(standbys) == len(seen) - 1
            and (not standbys or not synchronous or any(status.sync_standby for status in standbys))
        )

    def view(self, member: Member) -> MemberView:
        """What the platform sees."""
        return self.platform.members(self.name)[member.name]

    def statuses(self) -> dict[Member, MemberStatus | None]:
        """What the members say."""
        views = self.platform.members(self.name)
        known = {member: views.get(member.name) for member in self.members}
        return {
            member: self.patroni.member_status(view.rest) if view and view.running else None
            for member, view in known.items()
        }

    def leader(self) -> Member:
        """The primary."""
        return next(member for member, status in self.statuses().items() if status and status.leader)

    def standby(self) -> Member:
        """One that is not."""
        leader = self.leader()
        return next(member for member in self.members if member != leader)

    def endpoints(self) -> list[Endpoint]:
        """Where the members that there are listen, by ordinal."""
        views = self.platform.members(self.name)
        return [views[member.name].postgres for member in self.members if member.name in views]

    def connect(self, database: str = SUPERUSER, **parameters: Any) -> Connection:
        """A superuser's connection to the primary."""
        databases = Databases(
            self.cluster.spec.database,
            self.platform.credentials(self.name),
            lambda: {self.group: self.endpoints()},
        )
        return psycopg.connect(
            autocommit=True,
            **{**databases.parameters(self.group, database=database), **parameters},
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the primary."""
        with self.connect() as connection:
            return connection.execute(sql).fetchall()

    def query_nothing(self, sql: str) -> None:
        """Run a command that gives no rows."""
        with self.connect() as connection:
            connection.execute(sql)

    def wait_query(self, sql: str, timeout: float = 30.0) -> list[tuple[Any, ...]]:
        """Ask the primary as soon as there is one."""

        def ask() -> list[tuple[Any, ...]] | None:
            with contextlib.suppress(psycopg.OperationalError, StopIteration):
                return self.query(sql)
            return None

        rows: list[tuple[Any, ...]] = wait_for(
            ask, f"an answer from {self.name}/{self.group}: {self.tail()}", timeout
        )
        return rows

    def patroni_pid(self, member: Member) -> int:
        """Of the running Patroni."""
        config = self.directory(member) / "patroni.yml"
        found = [
            process.pid
            for process in processes_of(self.directory(member))
            if arguments(process)[-1] == str(config)
        ]
        return found[0]

    def postmaster_pid(self, member: Member) -> int:
        """Of the running PostgreSQL."""
        return int((self.directory(member) / "data" / "postmaster.pid").read_text().split()[0])

    def directory(self, member: Member) -> Path:
        """The member's"""
        return self.platform.home / self.name / "members" / member.name

    def stop(self) -> None:
        """Standbys first."""
        leaders = [member for member, status in self.statuses().items() if status and status.leader]
        others = [member for member in self.members if member not in leaders]
        for batch in (others, leaders):
            with ThreadPoolExecutor(max_workers=8) as pool:
                list(pool.map(self.platform.stop_member, batch))

    def tail(self) -> str:
        """The last log lines, for messages."""
        directory = self.platform.home / self.name / "log"
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            for path in sorted(directory.glob("*.log"))
        )


def arguments(process: psutil.Process) -> list[str]:
    """A command line; never empty, never an error."""
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def processes_of(directory: Path) -> list[psutil.Process]:
    """All live processes that name a directory in their command line or work in it."""

    def belongs(process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            named = any(f"{directory}/" in f"{argument}/" for argument in process.cmdline())
            return named or Path(process.cwd()).is_relative_to(directory)
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if process.pid != os.getpid() and belongs(process)]


def kill_everything(directory: Path) -> None:
    """As a power failure does: every process of the home at once."""
    found = processes_of(directory)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    wait_for(lambda: not processes_of(directory), f"all processes of {directory} to be gone", 20)


def end_everything(directory: Path) -> None:
    """Nothing of value is left: quick, but servers get to release their shared memory."""
    found = processes_of(directory)
    servers = [process for process in found if "--config-file" in " ".join(arguments(process))]
    for process in (each for each in found if each not in servers):
        with contextlib.suppress(psutil.Error):
            if not arguments(process)[0].startswith("postgres: "):
                process.send_signal(signal.SIGKILL)
    for server in servers:
        with contextlib.suppress(psutil.Error):
            server.send_signal(signal.SIGQUIT)
    psutil.wait_procs(servers, 5)
    kill_everything(directory)


@contextlib.contextmanager
def local_platform(bin_dir: Path | None = None) -> Iterator[LocalPlatform]:
    """A platform with a home of its own; whatever runs there at the end is ended and removed."""
    with tempfile.TemporaryDirectory(prefix="pgherd-platform-") as directory:
        home = Path(directory) / "home"
        try:
            yield LocalPlatform(home, bin_dir)
        finally:
            end_everything(home)


def purge(platform: LocalPlatform, *groups: Group, stop: Callable[[Group], None] = Group.stop) -> bool:
    """Remove clusters as the supervisor does. True if the home is gone."""
    for group in groups:
        stop(group)
    for name in {group.name for group in groups}:
        platform.set_deleting(name, purge=True)
        platform.forget(name, purge=True)
    with contextlib.suppress(PgherdError):
        return platform.close_if_empty()
    return False
