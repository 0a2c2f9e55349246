"""A running cluster copied to where another one's members are put together: into pods, each group into its own.

The rule is that of ``live_copy``. Programs of PostgreSQL run on the volumes that become the new members': what
``pg_basebackup`` writes there *is* the member's data directory, and the received log lies beside it until it has been
replayed. What is remembered meanwhile is in memory: before the point is made nothing that was copied is worth anything,
and once it is, all that is needed is in the restore's own state and on the volumes.

The pods get the source's password for replication and its authority's certificate, as files, and nothing else of it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgherd.backup import planning, wal
from pgherd.backup.base import BackupMethod, Report
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.held_log import HeldLog
from pgherd.backup.live_copy import LiveCopy
from pgherd.backup.records import BackupType, GroupBackup, GroupPoint, Point, now
from pgherd.backup.store import MemoryStore
from pgherd.engine.base import Engine
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable, one_line
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import COORDINATOR, REPLICATION_USER, SUPERUSER, group_name
from pgherd.platform.local import files, tools
from pgherd.platform.machine import Machine, Machines
from pgherd.postgres.connections import Databases

RECEIVED = Path("spool") / "received"
"""beside a member's data: its folder goes when they are put in their place"""
KEYS_SECONDS = 150.0
"""how long files may take to appear in a pod that was there before them"""
SYNC_SECONDS = 3600.0
_PASSWORD, _AUTHORITY = "source-{}.password", "source-{}.crt"
_WITH_PASSWORD = 'PGPASSWORD=$(< "$1") || exit 1; export PGPASSWORD; shift; exec "$@"'
_SHELL = "/bin/bash"


@dataclass(frozen=True)
class Place:
    """Where a group of the new cluster is put together.

    :param data: the data directory that is made
    :param log: the folder of the received log; it goes when the data are put in their place
    """

    machine: Machine
    data: Path
    log: Path


class FarMethod(BackupMethod):
    """What has been copied: of a backup it has one copy of each group, which is where it is needed already.

    :param place: of a group
    :param source: what to call it
    """

    name = "native"

    def __init__(self, place: Callable[[int], Place], source: str) -> None:
        self._place = place
        self._source = source
        self._repository = Catalogue(MemoryStore(f"the copies of {source}"))
        self._repository.create(source)
        self.systems_now: dict[int, str] = {}

    @property
    def repository(self) -> Catalogue:
        return self._repository

    @property
    def location(self) -> str:
        return self._repository.location

    def empty(self, group: int) -> None:
        """End and remove what an earlier try left of a group, and make the folder of its log."""
        place = self._place(group)
        for path in (place.data, place.log):
            place.machine.end_strays(str(path))
            place.machine.remove(path)
        place.machine.make_folder(place.log)

    def discard_all(self, groups: Sequence[int]) -> None:
        """Give the room back that was taken, as far as that can be."""
        for group in groups:
            with suppress(PgherdError):
                self.empty(group)

    def back_up(
        self,
        backup: str,
        group: int,
        kind: BackupType,
        parent: str | None,
        connection: Mapping[str, str],
        report: Report,
        stopping: Callable[[], bool],
    ) -> GroupBackup:
        place, begun = self._place(group), time.monotonic()
        place.machine.end_strays(str(place.data))
        place.machine.remove(place.data)

        def watch(text: str) -> None:
            if amount := tools.kilobytes(text):
                report(*amount)

        options = (
            "--wal-method=stream",
            "--format=plain",
            "--checkpoint=fast",
            "--progress",
            "--label=pgherd",
        )
        command = [place.machine.program("pg_basebackup"), *options, "--pgdata", str(place.data)]
        run(place.machine, command, connection, stopping, watch)
        size = int(place.machine.output(["du", "-sb", str(place.data)]).split()[0])
        return _described(
            place.machine.output(["tail", "-n", "100", str(place.data / "backup_manifest")]).decode(),
            self.systems_now[group],
            size,
            time.monotonic() - begun,
        )

    def restore(
        self, copies: Sequence[str], group: int, target: Path, report: Report, stopping: Callable[[], bool]
    ) -> None:
        """It is there: it is verified, and with its log on the disk when this returns."""
        place = self._place(group)
        program = place.machine.program("pg_verifybackup")
        try:
            command = [program, "--no-parse-wal", "--quiet", str(place.data)]
            place.machine.run(command, stopping=stopping)
        except (Cancelled, Unavailable):
            raise
        except PgherdError as error:
            raise PgherdError(f"the copy of {group_name(group)} is damaged: {error}") from error
        for path in (place.data, place.log):
            place.machine.output(["sync", "-f", str(path)], seconds=SYNC_SECONDS)

    def restore_command(self, group: int, system: str) -> str:
        log = shlex.quote(str(self._place(group).log)).replace("%", "%%")
        return f"[ -f {log}/%f ] && cp {log}/%f %p"

    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        there = self.log_names(group, at.system)
        known = at.timeline == 1 or f"{at.timeline:08X}.history" in there
        return (
            at.timeline if known and wal.segment_before(at.timeline, wal.parse_lsn(at.lsn)) in there else None
        )

    def log_names(self, group: int, system: str) -> Sequence[str]:
        place = self._place(group)
        return place.machine.names(place.log, "")

    def histories(self, group: int, system: str) -> Sequence[wal.History]:
        """Nobody needs one: who changes its primary meanwhile is copied anew."""
        return ()

    def major_of(self, backup: str, group: int) -> int:
        place = self._place(group)
        return int(place.machine.output(["cat", str(place.data / "PG_VERSION")]))

    def remove_log(self, group: int, system: str, before: int | None) -> int:
        return 0


class FarCopy(LiveCopy):
    """Makes it.

    :param machines: where the new members are put together
    :param place: of a group there
    :param cluster: the new one
    """

    poll_seconds = 1.0

    def __init__(
        self,
        engine: Engine,
        databases: Databases,
        method: FarMethod,
        stopping: Callable[[], bool],
        machines: Machines,
        place: Callable[[int], Place],
        cluster: PostgresCluster,
    ) -> None:
        super().__init__(engine, databases, method, stopping)
        self._far, self._machines, self._place, self._cluster = method, machines, place, cluster
        self._name = f"pgherd_copy_{secrets.token_hex(6)}"
        self._keys: dict[str, str] = {}

    def make(self, cluster: str, report: Callable[[int, int, int], None]) -> Point:
        try:
            return super().make(cluster, report)
        except (Cancelled, Unavailable, BadInput):
            raise
        except PgherdError as error:
            self._far.discard_all(sorted(self._far.systems_now))
            # A primary that another one followed, a disk that was full for a moment: it is begun anew, some times.
            raise psycopg.OperationalError(str(error)) from error

    def _prepare(self, cluster: str, systems: Mapping[int, str]) -> None:
        self._require_fit(systems)
        self._far.systems_now = dict(systems)
        # Before there are pods: in one that runs, files appear a minute later.
        self._equip()
        with ThreadPoolExecutor(max_workers=len(systems)) as pool:
            list(pool.map(self._prepare_group, systems))

    def _prepare_group(self, group: int) -> None:
        machine = self._place(group).machine
        self._require_same_version(group, machine.major)
        deadline = time.monotonic() + KEYS_SECONDS
        while not set(self._keys) <= set(machine.names(self._machines.folder, "")):
            if self._stopping():
                raise Cancelled("the clone was stopped")
            if time.monotonic() > deadline:
                raise Unavailable(f"{group_name(group)}: the files with its source's keys do not arrive")
            time.sleep(self.poll_seconds)
        self._far.empty(group)

    def _require_fit(self, systems: Mapping[int, str]) -> None:
        """:raises BadInput: what is declared can't be a copy of this"""
        planning.check_shape(self._cluster, self._engine.name, self._databases.database, max(systems))

    def _require_same_version(self, group: int, here: int) -> None:
        with self._databases.connect(group, database=SUPERUSER) as connection:
            there = connection.info.server_version // 10000
        if there != here:
            raise BadInput(
                f"spec.postgres: {group_name(group)} of the source runs PostgreSQL {there}, which {here} can't read: "
                f"name an image with postgres.version: {there}"
            )

    # keys

    def _equip(self) -> None:
        parameters = self._databases.parameters(COORDINATOR, user=REPLICATION_USER, database=SUPERUSER)
        certificate = ""
        if "sslrootcert" in parameters:
            with files.explained("read the source's certificate"):
                certificate = Path(parameters["sslrootcert"]).read_text()
        # Other keys have other names, so that nobody takes those of an earlier try for them.
        mark = hashlib.sha256(f"{parameters['password']}{certificate}".encode()).hexdigest()[:8]
        self._keys = {_PASSWORD.format(mark): parameters["password"], _AUTHORITY.format(mark): certificate}
        self._machines.equip(self._keys)

    def _way_to(self, group: int, member: Any, user: str) -> dict[str, str]:
        known = super()._way_to(group, member, user)
        if user != REPLICATION_USER:
            return known  # it is this process that asks
        password, authority = (str(self._machines.folder / name) for name in self._keys)
        return {
            **known,
            "password": password,
            **({"sslrootcert": authority} if "sslrootcert" in known else {}),
        }

    # the log

    def _keeping_the_log(self, groups: list[int]) -> AbstractContextManager[object]:
        return HeldLog(self._databases, groups, self._name, self._trouble.__setitem__)

    def _receive(self, group: int, system: str) -> None:
        way = {**self._way_to(group, None, REPLICATION_USER), "application_name": self._name}
        try:
            place = self._place(group)
            options = ("--no-loop", "--status-interval=1", "--directory", str(place.log))
            command = [place.machine.program("pg_receivewal"), *options]
            run(place.machine, command, way, lambda: self._enough.is_set() or self._stopping())
        except Cancelled:
            return
        except PgherdError as error:
            self._trouble[group] = str(error)
        else:
            self._trouble[group] = "its primary ended"

    def _is_receiving(self, group: int, system: str) -> bool:
        return bool(self._far.log_names(group, system))


def run(
    machine: Machine,
    command: Sequence[str],
    connection: Mapping[str, str],
    stopping: Callable[[], bool],
    watch: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a program that connects to the source; no password is among its arguments.

    :param connection: libpq parameters, where ``password`` is the file that holds it
    """
    way = dict(connection)
    password = way.pop("password")
    full = [_SHELL, "-c", _WITH_PASSWORD, "copy", password, *command]
    full.append(f"--dbname={psycopg.conninfo.make_conninfo('', **way)}")
    try:
        machine.run(full, stopping=stopping, watch=watch)
    except (Cancelled, Unavailable):
        raise
    except PgherdError as error:
        raise PgherdError(str(error).replace(_SHELL, Path(command[0]).name, 1)) from error


def _described(manifest: str, system: str, size: int, seconds: float) -> GroupBackup:
    """What the end of a copy's manifest says.

    :raises PgherdError: it is none
    """
    try:
        ranges = json.loads("{" + manifest[manifest.index('"WAL-Ranges"') :])["WAL-Ranges"]
        first = min(ranges, key=lambda each: int(each["Timeline"]))
        last = max(ranges, key=lambda each: int(each["Timeline"]))
        return GroupBackup(
            system=system,
            timeline=int(last["Timeline"]),
            start=first["Start-LSN"],
            stop=last["End-LSN"],
            stopped_at=now(),
            type="full",
            parent=None,
            bytes=size,
            seconds=round(seconds, 3),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise PgherdError(f"the manifest of a copy can't be read: {one_line(error)}") from error
