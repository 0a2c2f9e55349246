"""A running cluster as a repository of one backup and one point, for a clone.

Its logs are received from now on, its groups are copied, and then a restore point is made; the repository is complete
once the received logs hold it. It is thrown away when the clone is made. Killed in between, all of it is begun anew: it
lives as long as one process.

Copies are of standbys where there are any that keep up, so that primaries are spared; the logs are the primaries'. A
standby is copied once it has replayed all that was written before its group's log was received, and a copy brings the
log along that was written meanwhile: from its beginning to the point there is no hole.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import psycopg

from pgherd.backup import points, records
from pgherd.backup.native import Native
from pgherd.backup.records import Backup, GroupBackup, Point
from pgherd.engine.base import Engine
from pgherd.errors import Cancelled, PgherdError
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


class LiveCopy:
    """Makes the repository.

    :param engine: the source's
    :param databases: the source's
    :param method: of the repository that is made
    :param stopping: whether to give up
    """

    def __init__(
        self,
        engine: Engine,
        databases: Databases,
        method: Native,
        programs: Programs,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._databases = databases
        self._method = method
        self._programs = programs
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
        repository = self._method.repository
        groups = [COORDINATOR, *self._engine.segments()]
        standing = points.look(self._databases, groups)
        for group in groups:
            tools.end_strays(repository.logs(group) / standing[group].system)
        files.remove(repository.root)
        repository.create(cluster)
        with ThreadPoolExecutor(max_workers=len(groups)) as receivers:
            try:
                for group in groups:
                    folder = repository.logs(group) / standing[group].system
                    folder.mkdir(parents=True)
                    receivers.submit(self._receive, group, folder)
                self._await(lambda: all(self._is_receiving(group, standing) for group in groups))
                return self._copy(cluster, groups, report)
            finally:
                self._enough.set()

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
            self._stopping,
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

    # the logs

    def _receive(self, group: int, folder: Path) -> None:
        parameters = self._databases.parameters(group, user=REPLICATION_USER, database=SUPERUSER)
        password = parameters.pop("password")
        command: list[str | Path] = [
            *self._programs.prefix,
            self._programs.find("pg_receivewal"),
            f"--dbname={psycopg.conninfo.make_conninfo('', **parameters)}",
            "--directory",
            folder,
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

    def _is_receiving(self, group: int, standing: dict[int, points.Standing]) -> bool:
        folder = self._method.repository.logs(group) / standing[group].system
        return any(folder.iterdir())

    def _await(self, arrived: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while not arrived():
            if self._stopping():
                raise Cancelled("the clone was stopped")
            for group, trouble in self._trouble.items():
                raise PgherdError(f"the log of {group_name(group)} can't be received: {trouble}")
            if time.monotonic() > deadline:
                raise PgherdError("the groups' logs do not arrive: see whether all groups have a primary")
            time.sleep(0.1)
