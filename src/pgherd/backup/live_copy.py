"""A running cluster as a repository of one backup and one point, for a clone.

Its logs are received from now on, its groups are copied, and then a restore point is made; the repository is complete
once the received logs hold it. It is thrown away when the clone is made. Killed in between, all of it is begun anew: it
lives as long as one process.

Copies are of standbys where there are any that keep up, so that primaries are spared; the logs are the primaries'. A
standby is copied once it has replayed all that was written before its group's log was received, and a copy brings the
log along that was written meanwhile: from its beginning to the point there is no hole.

What is the same everywhere is here, and what is done on one machine; in pods it is ``far_copy``.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import psycopg

from pgherd.backup import points, records
from pgherd.backup.base import BackupMethod
from pgherd.backup.native import Native
from pgherd.backup.records import Backup, GroupBackup, Point
from pgherd.engine.base import Engine
from pgherd.errors import Cancelled, PgherdError
from pgherd.faults import crash_point
from pgherd.model.topology import COORDINATOR, REPLICATION_USER, SUPERUSER, Endpoint, group_name
from pgherd.platform.base import Programs
from pgherd.platform.local import files, tools
from pgherd.postgres.connections import Databases

PARALLEL = 4
ARRIVAL_SECONDS = 120.0
"""how long a group's log may take to arrive here"""
CATCH_UP_SECONDS = 20.0
"""how long a standby may take to replay what is written already; one that lags farther is not copied"""
_REPLAYED = """
SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn FROM pg_stat_wal_receiver
 WHERE pg_is_in_recovery() AND status = 'streaming'
"""

logger = logging.getLogger(__name__)


class LiveCopy(ABC):
    """Makes the repository.

    :param engine: the source's
    :param databases: the source's
    :param method: of the repository that is made
    :param stopping: whether to give up
    """

    poll_seconds = 0.1

    def __init__(
        self,
        engine: Engine,
        databases: Databases,
        method: BackupMethod,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._databases = databases
        self._method = method
        self._stopping = stopping
        self._enough = threading.Event()
        self._guard = threading.Lock()
        self._trouble: dict[int, str] = {}

    def make(self, cluster: str, report: Callable[[int, int, int], None]) -> Point:
        """All of it; returns the point.

        :param report: told the group, its bytes done, and in all
        :raises Cancelled: ``stopping`` said so
        :raises PgherdError: the source could not be copied
        """
        groups = [COORDINATOR, *self._engine.segments()]
        standing = points.look(self._databases, groups)
        systems = {group: standing[group].system for group in groups}
        self._prepare(cluster, systems)
        with self._keeping_the_log(groups), ThreadPoolExecutor(max_workers=len(groups)) as receivers:
            try:
                for group, system in systems.items():
                    receivers.submit(self._receive, group, system)
                self._await(
                    lambda: all(self._is_receiving(group, system) for group, system in systems.items())
                )
                crash_point("clone:receiving")
                return self._copy(cluster, groups, report)
            except Cancelled:
                if not self._stopping():
                    self._require_no_trouble()
                raise
            finally:
                self._enough.set()

    @abstractmethod
    def _prepare(self, cluster: str, systems: Mapping[int, str]) -> None:
        """Remove what an earlier try left, and make places for the groups' logs.

        :param systems: each group's database system
        """

    def _keeping_the_log(self, groups: list[int]) -> AbstractContextManager[object]:
        """Around all that is received: the source keeps what has not been received yet."""
        return nullcontext()

    @abstractmethod
    def _receive(self, group: int, system: str) -> None:
        """Receive a group's log until it is enough; what keeps it from that is :attr:`_trouble`."""

    @abstractmethod
    def _is_receiving(self, group: int, system: str) -> bool:
        """Whether some of it has arrived."""

    def _copy(self, cluster: str, groups: list[int], report: Callable[[int, int, int], None]) -> Point:
        repository = self._method.repository
        backup = Backup("live", "full", "running", records.now(), wanted=tuple(groups))
        repository.remember_backup(backup)

        def copy(group: int) -> None:
            nonlocal backup
            standby = self._standby(group)
            if standby is not None:
                logger.info("%s: %s is copied from a standby, %s", cluster, group_name(group), standby)
            try:
                made = self._copy_of(backup.id, group, standby, report)
            except Cancelled:
                raise
            except PgherdError as error:
                if standby is None:
                    raise
                logger.warning("%s: %s: %s: copying its primary", cluster, group_name(group), error)
                made = self._copy_of(backup.id, group, None, report)
            with self._guard:
                backup = backup.with_group(group, made)

        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            list(pool.map(copy, groups))
        crash_point("clone:copied")
        point = self._point(backup.id)
        self._await(lambda: points.archived(self._method, point) is not None)
        done = points.archived(self._method, point) or point
        repository.remember_point(done)
        repository.remember_backup(Backup(**{**vars(backup), "phase": "done", "point": point.name}))
        return done

    def _copy_of(
        self, backup: str, group: int, standby: Endpoint | None, report: Callable[[int, int, int], None]
    ) -> GroupBackup:
        return self._method.back_up(
            backup,
            group,
            "full",
            None,
            self._way_to(group, standby, REPLICATION_USER),
            lambda done, total: report(group, done, total),
            # Whose log has a hole is copied in vain.
            lambda: bool(self._trouble) or self._stopping(),
        )

    def _way_to(self, group: int, member: Endpoint | None, user: str) -> dict[str, str]:
        """libpq parameters of one member, or of the primary."""
        known = self._databases.parameters(group, user=user, database=SUPERUSER)
        if member is None:
            return known
        return {**known, "host": member.host, "port": str(member.port), "target_session_attrs": "any"}

    def _standby(self, group: int) -> Endpoint | None:
        """A standby that has replayed all that its group has written by now; None: there is none."""
        if len(self._databases.addresses()[group]) < 2:
            return None
        with self._databases.connect(group, database=SUPERUSER) as primary:
            row = primary.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while time.monotonic() < deadline and not self._stopping():
            for member in self._databases.addresses()[group]:
                if self._has_replayed(group, member, str(row[0])):
                    return member
            time.sleep(0.1)
        return None

    def _has_replayed(self, group: int, member: Endpoint, lsn: str) -> bool:
        parameters = self._way_to(group, member, SUPERUSER)
        try:
            with psycopg.connect(autocommit=True, **parameters) as connection:  # type: ignore[arg-type]
                return connection.execute(_REPLAYED, [lsn]).fetchone() == (True,)
        except psycopg.Error:
            return False

    def _point(self, backup: str) -> Point:
        for left in (True, True, False):
            with suppress(PgherdError) if left else nullcontext():
                return points.make(
                    self._engine,
                    self._databases,
                    self._method,
                    points.new_name("c"),
                    backup=backup,
                    recorded=False,
                )
        raise AssertionError("unreachable")

    def _await(self, arrived: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while not arrived():
            if self._stopping():
                raise Cancelled("the clone was stopped")
            self._require_no_trouble()
            if time.monotonic() > deadline:
                raise PgherdError("the groups' logs do not arrive: see whether all groups have a primary")
            time.sleep(self.poll_seconds)

    def _require_no_trouble(self) -> None:
        for group, trouble in list(self._trouble.items()):
            raise PgherdError(f"the log of {group_name(group)} can't be received: {trouble}")


class NearCopy(LiveCopy):
    """On this machine.

    :param method: of a repository in a directory, which is made anew
    """

    def __init__(
        self,
        engine: Engine,
        databases: Databases,
        method: Native,
        programs: Programs,
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__(engine, databases, method, stopping)
        self._repository = method.repository
        self._programs = programs

    def _prepare(self, cluster: str, systems: Mapping[int, str]) -> None:
        folders = [self._folder(group, system) for group, system in systems.items()]
        for folder in folders:
            tools.end_strays(folder)
        files.remove(self._repository.root)
        self._repository.create(cluster)
        for folder in folders:
            folder.mkdir(parents=True)

    def _folder(self, group: int, system: str) -> Path:
        return self._repository.logs(group) / system

    def _receive(self, group: int, system: str) -> None:
        parameters = self._databases.parameters(group, user=REPLICATION_USER, database=SUPERUSER)
        password = parameters.pop("password")
        command: list[str | Path] = [
            *self._programs.prefix,
            self._programs.find("pg_receivewal"),
            f"--dbname={psycopg.conninfo.make_conninfo('', **parameters)}",
            "--directory",
            self._folder(group, system),
            *("--no-loop", "--status-interval=1"),
        ]
        try:
            tools.run(
                command,
                environment={"PGPASSWORD": password},
                stopping=lambda: self._enough.is_set() or self._stopping(),
            )
        except Cancelled:
            return
        except PgherdError as error:
            self._trouble[group] = str(error)

    def _is_receiving(self, group: int, system: str) -> bool:
        return any(self._folder(group, system).iterdir())
