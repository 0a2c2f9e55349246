"""Making a backup: a base copy of every group, side by side, and a restore point that closes it.

The record is written before anything else. Whoever finds it unfinished carries it on: copies that are complete stay,
the others are made anew. A group whose primary changes meanwhile is copied again from the new one.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from pgherd.backup import choice, points, presence, records
from pgherd.backup.amounts import Amounts
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.gaps import Logs
from pgherd.backup.records import Backup, BackupType
from pgherd.engine.base import Engine
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable, Withheld, one_line
from pgherd.faults import crash_point
from pgherd.model.topology import COORDINATOR, SUPERUSER, group_name
from pgherd.postgres.connections import Databases

logger = logging.getLogger(__name__)
T = TypeVar("T")

TRIES = 3
"""for each group, and for the closing point"""
RETRY_SECONDS = 5.0
SILENT_SECONDS = 180.0
"""how long a group that does not answer is waited for before it is tried again: it may be failing over"""
PARALLEL = 4
"""groups at a time"""
_GIVEN = re.compile(rf"\d{{8}}-\d{{6}}-({'|'.join(records.TYPES)})(-\d+)?")
"""ids that nobody chose"""
_NO_ROOM = re.compile("no space left on device|disk quota exceeded|read-only file system", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What a backup is made of.

    :param stopping: whether this process is to end, or the cluster to go
    """

    engine: Engine
    databases: Databases
    method: BackupMethod
    stopping: Callable[[], bool]


def request(
    repository: Catalogue, kind: BackupType, groups: Sequence[int] = (), name: str | None = None
) -> Backup:
    """Write down that a backup is to be made.

    :param groups: of these only; none: of all
    :param name: its id; one of this id that is there, done or not, is meant then
    :raises BadInput: another one is not done yet, or the one of this id is of another type, or its record can't be
        read
    """
    with repository.locked():
        held = repository.held()
        taken = {known.id: known for known in held.backups}
        if name in taken:
            return _same(taken[name], kind)
        if name is not None and (complaint := held.complaints().get(name)):
            raise BadInput(complaint)  # its copies would be made anew, over those that may be good
        for known in held.backups:
            if known.is_open:
                raise BadInput(f"backup {known.id} is not done yet: 'pgherd backups' shows how far it is")
        base = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{kind}"
        if name is None:
            name = next(
                each
                for n in range(1000)
                if (each := f"{base}-{n}" if n else base) not in (*taken, *held.unread)
            )
        backup = Backup(name, kind, "requested", records.now(), wanted=tuple(groups))
        repository.remember_backup(backup)
    return backup


def is_named(backup: Backup) -> bool:
    """Whether somebody chose its id, and may ask for it again: without its record it would be made anew."""
    return _GIVEN.fullmatch(backup.id) is None


def _same(known: Backup, kind: BackupType) -> Backup:
    if known.type != kind:
        raise BadInput(f"backup {known.id} is there already, and {known.type}: choose another name")
    return known


class Maker:
    """Carries one backup on to its end."""

    def __init__(self, job: Job, backup: Backup) -> None:
        self._job = job
        self._repository = job.method.repository
        self._backup = backup
        self._amounts = Amounts()
        self._guard = threading.Lock()
        self._told = 0.0

    def run(self) -> Backup:
        """Until it is done, or has failed; returns the record.

        :raises Cancelled: this process is asked to stop; whoever comes next goes on
        :raises PgherdError: the repository is away, or takes no record; the same
        """
        try:
            self._copies()
            self._close()
        except Cancelled:
            raise
        except PgherdError as error:
            if self._is_away():
                raise  # what is complete is kept for when it is back
            self._fail(error)
        return self._backup

    def _is_away(self) -> bool:
        """Whether the repository is. It is asked: a look of a moment ago, which will do otherwise, may cost all that is
        copied."""
        try:
            self._repository.identity()
        except Withheld:
            return True
        except PgherdError:
            pass
        return presence.obstacle(self._job.method) is not None

    def _copies(self) -> None:
        groups = self._backup.wanted or self._patiently(self._taking_part)
        begins = any(group not in self._backup.groups for group in groups)
        # How fast it goes is measured anew by whoever carries it on.
        change = {"started_at": records.now(), "bytes_done": 0, "bytes_total": 0} if begins else {}
        self._amounts = Amounts()
        while groups:
            wanted = tuple(dict.fromkeys([*self._backup.wanted, *groups]))
            self._change(phase="running", wanted=wanted, **change)
            change = {}
            crash_point("backup:running")
            due = [group for group in groups if group not in self._backup.groups]
            self._amounts.expect(due)
            with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
                for _ in pool.map(self._copy, due):
                    pass
            groups = self._newcomers()

    def _taking_part(self) -> tuple[int, ...]:
        return (COORDINATOR, *self._job.engine.segments())

    def _newcomers(self) -> tuple[int, ...]:
        """Segments that were admitted meanwhile: the closing point goes through their logs, too."""
        if COORDINATOR not in self._backup.wanted:
            return ()
        taking_part = self._patiently(self._taking_part)
        return tuple(group for group in taking_part if group not in self._backup.wanted)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What the groups answer, also those that fail over.

        :raises Unavailable: one does not answer for long
        """
        until = time.monotonic() + SILENT_SECONDS
        while True:
            try:
                return ask()
            except Unavailable:
                if time.monotonic() > until:
                    raise
                self._rest()

    def _copy(self, group: int) -> None:
        for left in reversed(range(TRIES)):
            try:
                self._copy_once(group)
                return
            except Cancelled:
                raise
            except PgherdError as error:
                if self._has_left(group):
                    return
                if not left:
                    raise PgherdError(f"{group_name(group)}: {error}") from error
                self._try_again(f"{group_name(group)}: {error}")
                self._await(group)

    def _try_again(self, reason: str) -> None:
        logger.warning("backup %s: %s: trying again", self._backup.id, reason)
        with suppress(PgherdError):  # only news
            self._change(message=f"{one_line(reason)}: trying again")
        self._rest()

    def _await(self, group: int) -> None:
        """A group that fails over, which takes longer than some tries. It may leave the cluster meanwhile, too."""

        def look() -> None:
            try:
                points.look(self._job.databases, [group])
            except Unavailable:
                if not self._has_left(group):
                    raise

        with suppress(Unavailable):  # the next try tells it
            self._patiently(look)

    def _has_left(self, group: int) -> bool:
        """A segment that was retired meanwhile: what it held is on the others, and copied there.

        :raises PgherdError: it was the only one to be copied
        """
        try:
            if group in self._taking_part():
                return False
        except PgherdError:
            return False
        left = tuple(each for each in self._backup.wanted if each != group)
        if not left:
            # Without any the record would mean a backup of all groups, and with no copy a good one.
            raise PgherdError(f"{group_name(group)} takes no part any more: nothing is left to copy")
        logger.info("backup %s: %s takes no part any more", self._backup.id, group_name(group))
        with suppress(PgherdError):
            self._change(wanted=left)
            self._amounts.forget(group)
            return True
        return False

    def _copy_once(self, group: int) -> None:
        job = self._job
        standing = points.look(job.databases, [group])[group]
        known = [each for each in self._repository.backups() if each.phase == "done"]
        present = (standing.system, standing.timeline)
        parent = choice.parent_for(self._backup.type, group, present, known, job.method.histories)
        connection = job.databases.parameters(group, user=job.method.user, database=SUPERUSER)
        made = job.method.back_up(
            self._backup.id,
            group,
            self._backup.type,
            parent,
            connection,
            lambda done, total: self._report(group, done, total),
            job.stopping,
        )
        if made.system != standing.system:
            raise PgherdError("another database system answered meanwhile")
        self._amounts.finish(group, made.bytes)
        with self._guard:
            self._backup = self._counted().with_group(group, made)
            self._repository.remember_backup(self._backup)
        crash_point("backup:group:recorded")

    def _close(self) -> None:
        """The point up to which all copies can be brought, archived: only now the backup is worth something."""
        for _ in range(TRIES):
            point = self._archived_point()
            astray = self._astray(point) or self._cut_off(point)
            if not astray:
                break
            self._copy_again(astray)
        else:
            raise Unavailable("its groups' logs did not lead from their copies to its end again and again")
        # Its copies may have to be found by their names after a power cut.
        self._job.method.complete(self._backup.id)
        self._change(phase="done", finished_at=records.now(), message="")

    def _archived_point(self) -> records.Point:
        if self._backup.point is None:
            self._change(message="making the restore point that closes it")
            point = self._make_point()
            crash_point("backup:point")
            self._change(point=point.name)
        self._change(message="waiting for the groups' logs to be archived")
        lost = points.Lost(self._job.method)
        while not (point := self._closing_point()).archived:
            if self._job.stopping():
                raise Cancelled("the backup was stopped")
            if lost.is_certain(point):
                # Its file was let go: another one closes the backup.
                self._change(point=self._make_point().name)
            time.sleep(0.1 if self._repository.store.near else 1.0)
        return point

    def _astray(self, point: records.Point) -> list[int]:
        """Groups whose copy does not lead to the point: what it was made of was left by a failover in its last moment,
        or by a restore in place."""
        histories = self._job.method.histories
        return [
            group
            for group, made in self._backup.groups.items()
            if (at := point.groups.get(group)) is not None
            and (made.system != at.system or not choice.is_on_path(made, group, at.timeline, histories))
        ]

    def _cut_off(self, point: records.Point) -> list[int]:
        """Groups whose log is not whole from their copy to the point: files of it were let go, or removed. A standby
        may still bring them, as with a point that seems lost."""
        deadline = time.monotonic() + points.LOST_SECONDS
        while found := self._behind_a_gap(point):
            if time.monotonic() > deadline:
                return found
            self._rest()
        return []

    def _behind_a_gap(self, point: records.Point) -> list[int]:
        logs = Logs(self._job.method.log_names, self._job.method.histories)
        return [
            group
            for group, made in self._backup.groups.items()
            if (at := point.groups.get(group)) is not None and not logs.is_whole(group, made, at)
        ]

    def _copy_again(self, groups: Sequence[int]) -> None:
        names = ", ".join(map(group_name, groups))
        logger.warning("backup %s: nothing leads on from the copies of %s: again", self._backup.id, names)
        left = {group: made for group, made in self._backup.groups.items() if group not in groups}
        self._change(groups=left, point=None)
        crash_point("backup:astray")
        self._job.method.discard(self._backup.id, groups)
        self._copies()

    def _make_point(self) -> records.Point:
        job = self._job
        for left in reversed(range(TRIES)):
            try:
                return points.make(
                    job.engine, job.databases, job.method, points.new_name("b"), backup=self._backup.id
                )
            except Cancelled:
                raise
            except PgherdError as error:
                if not left:
                    raise
                self._try_again(str(error))
            with suppress(Unavailable):  # the next try tells it
                self._patiently(lambda: points.look(job.databases, self._taking_part()))
        raise Unavailable("the restore point that closes the backup could not be made")

    def _closing_point(self) -> records.Point:
        """The keeper notes when it is archived."""
        point = self._repository.point(str(self._backup.point))
        if point is None:
            self._repository.require()  # one that is away has lost nothing
            raise PgherdError(f"the repository lost the restore point {self._backup.point}")
        return point

    def _rest(self) -> None:
        until = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < until:
            if self._job.stopping():
                raise Cancelled("the backup was stopped")
            time.sleep(0.1)

    def _report(self, group: int, done: int, total: int) -> None:
        self._amounts.report(group, done, total)
        with self._guard:
            if time.monotonic() - self._told < (0.5 if self._repository.store.near else 3.0):
                return
            self._told = time.monotonic()
            self._backup = self._counted()
            with suppress(PgherdError):  # only progress
                self._repository.remember_backup(self._backup)

    def _counted(self) -> Backup:
        done, total = self._amounts.sums()
        return replace(self._backup, bytes_done=done, bytes_total=total, message=records.COPYING)

    def _change(self, **what: object) -> None:
        with self._guard:
            self._backup = replace(self._backup, **what)  # type: ignore[arg-type]
            self._repository.remember_backup(self._backup)

    def _fail(self, error: PgherdError) -> None:
        logger.error("backup %s failed: %s", self._backup.id, error)
        with self._guard:
            failed = replace(
                self._backup,
                phase="failed",
                finished_at=records.now(),
                error=str(error),
                groups={},
                message="",
                again=may_pass(error),
            )
            try:
                self._repository.remember_backup(failed)
            except PgherdError as found:
                if not is_full(found):
                    raise
                # What the record does not name makes the room to write it in.
                self._job.method.discard(self._backup.id, set(failed.wanted) - set(self._backup.groups))
                self._repository.remember_backup(failed)
            self._backup = failed
        with suppress(PgherdError):  # retention tries again
            self._job.method.discard(self._backup.id)


def may_pass(error: BaseException | None) -> bool:
    """Whether what a backup failed of may pass by itself: a group or a repository that does not answer, or a full one.
    With anything else it would only fail again, after hours of copying."""
    while error is not None:
        if isinstance(error, Unavailable | Withheld) or is_full(error):
            return True
        error = error.__cause__
    return False


def is_full(error: BaseException) -> bool:
    """Whether there was no room to write in."""
    return _NO_ROOM.search(str(error)) is not None
