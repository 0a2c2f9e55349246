"""Keeps a running cluster's backups as declared: a thread beside its reconcile loop.

It makes restore points when they are due, notices when they are archived, carries out backups that were requested (or
that a group without any base copy needs), and removes what retention lets go. All it knows is in the repository;
killed anywhere, the next one finds out where things stand.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import psycopg

from pgherd.backup import choice, gaps, histories, points
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import NEVER, Catalogue, NotOurs
from pgherd.backup.maker import Job, Maker, is_full, is_named, request
from pgherd.backup.pins import Found, Readers
from pgherd.backup.points import Standing
from pgherd.backup.records import Backup, Point, moment, seconds_since, unanswered
from pgherd.backup.wal import History
from pgherd.engine.base import Engine
from pgherd.errors import Cancelled, PgherdError, one_line
from pgherd.model.spec import BackupSpec, parse_duration
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.postgres.connections import Databases

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
FAR_LOOK_SECONDS = 2.0
"""the same for a repository of which every look is a request, that somebody pays for"""
RETENTION_SECONDS = 3600.0
HELD_SECONDS = 60.0
"""until it is tried again where nothing could be let go because of what can't be read, and between two looks for who
reads"""
GAPS_SECONDS = 5.0
"""between two looks for holes in the archived logs"""
HISTORIES_SECONDS = 30.0
"""until histories of a group that were not there are looked for again; an archiver looks for them once a minute"""
HISTORIES_GOOD_SECONDS = 300.0
"""the same where all were there"""
AGAIN_SECONDS = 60.0
"""until a backup that failed of what may pass, or that is needed, is tried again; doubled with each time it fails"""
AGAIN_MOST_SECONDS = 6 * 3600.0
"""the most of that: it may not fit at all, and fills the disk each time"""
MISSING_MOST_SECONDS = 1800.0
"""the same for one without which no point could be restored"""
FAILED_KEPT = 10
"""records of backups that failed, the last of all, that are kept however old they are"""
FAILED_SECONDS = 24 * 3600.0
"""until others go"""
INTERRUPTED_SECONDS = 5.0
"""until a backup is carried on that could not go on"""
GOES_ON_SECONDS = 60.0
"""until one that is carried on counts as going on: longer than it takes to meet the same thing again"""
LOST_AGAIN_SECONDS = 60.0
"""between two looks for a point that hardly comes any more"""
POINTS_SECONDS = 5.0
"""between two looks for points that others made, while no backup waits for its own"""


@dataclass(frozen=True)
class Kept:
    """What a keeper needs to know of its cluster, asked anew each time.

    :param declared: what is declared; None: no backups any more
    :param declaration: all of it as plain data, for the repository
    :param ready: whether every group has a primary and the engine's objects
    """

    name: str
    engine: Engine
    databases: Databases
    method: BackupMethod
    declared: Callable[[], BackupSpec | None]
    declaration: Callable[[], Mapping[str, Any]]
    ready: Callable[[], bool]
    stop: threading.Event


class Keeper(threading.Thread):
    """See the module. Ends when no backups are declared any more, or on ``stop``."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(name=f"backups-{kept.name}", daemon=True)
        self._kept = kept
        self.fingerprint = kept.method.fingerprint()
        """the repository that it keeps"""
        self._pending: dict[str, Point] | None = None
        self._standing: dict[int, Standing] = {}
        self._quiet: dict[int, int] = {}
        self._known_histories: dict[tuple[int, str], Sequence[History]] = {}
        self._points_version: tuple[str, str | None] | None = None
        self._looked_for_points = NEVER
        self._look_again: dict[str, float] = {}
        """when to look for a point that hardly comes any more"""
        self._last_point = NEVER
        self._retained = NEVER
        self._looked_for_gaps = NEVER
        self._histories_due: dict[tuple[int, str, int], float] = {}
        """when to look for the histories of a group, with its system and timeline, again"""
        self._lost = points.Lost(kept.method)
        self._maker: threading.Thread | None = None
        self._leaving = threading.Event()
        self.error: str | None = None
        """what the last round, or the last try of a backup, ran into"""
        self._interrupted: str | None = None
        self._carried_on = NEVER
        """when a backup that was interrupted may go on"""
        self._begun = NEVER
        """when the last backup was begun, or carried on"""
        self._held: str | None = None
        """why nothing is let go"""
        self._readers = Readers()
        self._is_tidy = False
        self._looked_for_readers = NEVER

    @property
    def complaint(self) -> str | None:
        """What is wrong, in one line."""
        return "; ".join(filter(None, (self.error, self._held))) or None

    @property
    def readers(self) -> list[dict[str, Any]]:
        """Who reads backups, which are left there meanwhile."""
        return [pin.told() for pin in self._readers.found.pins.values()]

    def run(self) -> None:
        """Rounds until the end."""
        while not self._is_over():
            try:
                self._round()
                self.error = None if self._goes_on() else self._interrupted
            except (PgherdError, psycopg.Error, OSError) as error:
                text = one_line(error) or type(error).__name__
                if text != self.error:
                    logger.warning("%s: backups: %s", self._kept.name, text)
                self.error = text
                self._kept.stop.wait(1.0)
            except Exception as error:  # the thread must outlive whatever one look ran into
                logger.exception("%s: a round of the backups failed", self._kept.name)
                self.error = f"a round of the backups met what nobody expected: {one_line(error) or error!r}"
                self._kept.stop.wait(1.0)
            self._kept.stop.wait(self._pause())

    def _pause(self) -> float:
        try:
            return LOOK_SECONDS if self._kept.method.repository.store.near else FAR_LOOK_SECONDS
        except PgherdError:
            return FAR_LOOK_SECONDS

    def leave(self) -> None:
        """Ask it to end."""
        self._leaving.set()

    def is_to_leave_for(self, method: BackupMethod) -> bool:
        """Whether another keeper has to take its place, who keeps what is declared now.

        Keys that were renewed are no reason to begin a backup anew: while the old ones do, it is made to its end."""
        if self.fingerprint == method.fingerprint():
            return False
        return not (
            self._is_making() and self.error is None and self._kept.method.differs_in_keys_only(method)
        )

    def is_at_rest(self) -> bool:
        """Whether neither it nor a backup is at work."""
        return not self.is_alive() and not self._is_making()

    def join_maker(self, timeout: float) -> None:
        """Wait for a running backup to come to a resumable place after ``stop`` was set."""
        if self._maker is not None:
            self._maker.join(timeout)

    def _is_over(self) -> bool:
        if self._kept.stop.is_set() or self._leaving.is_set():
            return True
        try:
            return self._kept.declared() is None
        except PgherdError:
            return True

    def _round(self) -> None:
        self._repository.require()
        self._refuse_anothers()
        self._tidy_once()
        self._note_archived()
        if not self._kept.ready():
            return
        declared = self._kept.declared()
        if declared is None:
            return
        if time.monotonic() - self._last_point >= parse_duration(declared.restore_point_every):
            self._make_point()
        self._see_to_histories()
        self._see_to_backups()
        self._see_to_readers()
        if time.monotonic() - self._retained >= RETENTION_SECONDS:
            self.retain(declared)

    def _refuse_anothers(self) -> None:
        if self._repository.is_own():
            return
        try:
            self._repository.refuse_anothers()
        except NotOurs:
            self._kept.method.unequip()
            raise

    def _tidy_once(self) -> None:
        """What a retention left that was killed: who reads waits for it, and this one may not retain for days."""
        if not self._is_tidy and self._repository.is_own():
            self._readers.tidy(self._repository)
            self._is_tidy = True

    @property
    def _repository(self) -> Catalogue:
        return self._kept.method.repository

    # points

    def _make_point(self) -> None:
        kept = self._kept
        self._standing = points.look(kept.databases, [COORDINATOR, *kept.engine.segments()])
        self._claim()
        self._last_point = time.monotonic()
        before = self._standing
        if self._quiet == {group: standing.next for group, standing in before.items()}:
            return  # nothing was written anywhere: the last point still says how things are
        point = points.make(kept.engine, kept.databases, kept.method, points.new_name())
        self._open_points()[point.name] = point
        at_rest = all(standing.oldest == standing.next for standing in before.values())
        self._quiet = {group: standing.next for group, standing in before.items()} if at_rest else {}
        self._wrote()

    def _wrote(self) -> None:
        """A transaction of our own at the coordinator: it is no change."""
        if COORDINATOR in self._quiet:
            self._quiet[COORDINATOR] += 1

    def _claim(self) -> None:
        systems = {group: standing.system for group, standing in self._standing.items()}
        self._repository.claim(systems, self._kept.declaration())
        self._kept.method.admit(systems, self._kept.databases)

    def _open_points(self) -> dict[str, Point]:
        if self._pending is None:
            self._pending = {point.name: point for point in self._repository.points() if not point.archived}
        return self._pending

    def _see_others(self) -> None:
        """Follow points that somebody else wrote down: backups and drills make their own, and of ours one may be
        written down though what came after it failed."""
        if not self._is_making() and time.monotonic() - self._looked_for_points < POINTS_SECONDS:
            return
        self._looked_for_points = time.monotonic()
        version = self._repository.points_version()
        if version == self._points_version:
            return
        known = self._open_points()
        for point in self._repository.points(days=2):
            if not point.archived:
                known.setdefault(point.name, point)
        self._points_version = version

    def _note_archived(self) -> None:
        self._see_others()
        known = self._open_points()
        for point in sorted(known.values(), key=lambda each: each.time):
            done = None if point.archived else self._archived(point)
            if done is not None:
                self._repository.remember_point(done)
                # The database may be away, which is no reason to write the line again.
                known[point.name] = done
        for point in [point for point in known.values() if point.archived]:
            points.record(self._kept.databases, point)
            self._wrote()
            self._forget(point.name)

    def _archived(self, point: Point) -> Point | None:
        """The point as it can be offered; None: not yet. One that hardly comes any more is looked for now and then."""
        if time.monotonic() < self._look_again.get(point.name, NEVER):
            return None
        done = points.archived(self._kept.method, point)
        if done is None and self._lost.is_certain(point):
            self._look_again[point.name] = time.monotonic() + LOST_AGAIN_SECONDS
        return done

    def _see_to_histories(self) -> None:
        now = time.monotonic()
        for group, standing in self._standing.items():
            key = (group, standing.system, standing.timeline)
            if standing.timeline == 1 or now < self._histories_due.get(key, NEVER):
                continue
            # First of all: a group that can't be asked now is no reason to ask the repository all the time.
            self._histories_due[key] = now + HISTORIES_SECONDS
            known = {each.timeline for each in self._kept.method.histories(group, standing.system)}
            sent = histories.send_again(self._kept.databases, group, known)
            if not sent:
                self._histories_due[key] = now + HISTORIES_GOOD_SECONDS
                continue
            text = ", ".join(map(str, sent))
            logger.info(
                "%s: %s archives the histories of its timelines %s", self._kept.name, group_name(group), text
            )

    def _forget(self, name: str) -> None:
        self._open_points().pop(name, None)
        self._look_again.pop(name, None)
        self._lost.forget(name)

    # backups

    def _is_making(self) -> bool:
        return self._maker is not None and self._maker.is_alive()

    def _goes_on(self) -> bool:
        """Whether a backup is at work, for so long that what interrupted it before is over."""
        return self._is_making() and time.monotonic() - self._begun > GOES_ON_SECONDS

    def _see_to_backups(self) -> None:
        if self._is_making():
            return
        if time.monotonic() < self._carried_on:
            return
        known = self._repository.backups()
        due = next((backup for backup in known if backup.is_open), None)
        if due is None:
            self._interrupted = None  # what was interrupted is not there any more
            systems = {group: standing.system for group, standing in self._standing.items()}
            usable = [backup for backup in known if backup.phase == "done"]
            missing = choice.missing_base(self._present(), usable, self._histories) or self._cut_off(
                systems, usable
            )
            failed = unanswered(known)
            if missing and _have_rested(_last_failures(known), MISSING_MOST_SECONDS):
                # Without it no point could be restored: the first of all, that of a segment that is new, or one after
                # a part of the log that is not in the repository.
                due = request(self._repository, "full", missing)
            elif not missing and failed and failed[-1].again and _have_rested(failed, AGAIN_MOST_SECONDS):
                due = request(self._repository, failed[-1].type, failed[-1].wanted)
            else:
                return
        self._start(due)

    def _present(self) -> choice.Present:
        return {group: (each.system, each.timeline) for group, each in self._standing.items()}

    def _histories(self, group: int, system: str) -> Sequence[History]:
        """Asked for until that of the present timeline is there: none ever changes."""
        known = self._known_histories.get((group, system), ())
        if not any(each.timeline == self._standing[group].timeline for each in known):
            known = self._known_histories[group, system] = self._kept.method.histories(group, system)
        return known

    def _cut_off(self, systems: Mapping[int, str], usable: Sequence[Backup]) -> list[int]:
        if time.monotonic() - self._looked_for_gaps < GAPS_SECONDS:
            return []
        self._looked_for_gaps = time.monotonic()
        logs = gaps.Logs(self._kept.method.log_names, self._kept.method.histories)
        found = gaps.cut_off(systems, usable, logs)
        for group, gap in found.items():
            count, name = gap.last - gap.first + 1, group_name(group)
            logger.warning("%s: %s files of the log of %s are missing", self._kept.name, count, name)
        return list(found)

    def _start(self, backup: Backup) -> None:
        job = Job(self._kept.engine, self._kept.databases, self._kept.method, self._is_over)

        def make() -> None:
            try:
                Maker(job, backup).run()
            except Cancelled:
                return
            except Exception as error:  # its record stays open: another round carries it on
                self._carried_on = time.monotonic() + INTERRUPTED_SECONDS
                self._interrupted = (
                    f"backup {backup.id} was interrupted, and is tried again: {one_line(error)}"
                )
                unknown = not isinstance(error, PgherdError)
                logger.warning("%s: %s", self._kept.name, self._interrupted, exc_info=unknown)
                return
            self._interrupted = None
            self._retained = NEVER

        self._begun = time.monotonic()
        self._maker = threading.Thread(target=make, name=f"backup-{self._kept.name}", daemon=True)
        self._maker.start()

    # retention

    def _see_to_readers(self) -> None:
        """What somebody has read goes soon after that."""
        if time.monotonic() - self._looked_for_readers < HELD_SECONDS:
            return
        self._looked_for_readers = time.monotonic()
        before = self._readers.found.holds
        if before - self._readers.look(self._repository).holds:
            self._retained = NEVER

    def retain(self, declared: BackupSpec) -> None:
        """Remove what retention lets go. Offers vanish first, then copies, then logs."""
        if self._is_making():
            return
        method, repository = self._kept.method, self._repository
        held = repository.held()
        (known, unread_points), backups = repository.points_and_damage(), held.backups
        records = [*(f"backups/{each}/backup.json" for each in held.complaints()), *unread_points]
        unread = [*records, *self._readers.look(repository).unread]
        self._hold(unread)
        if not unread:
            forgotten = self._clear_failed(backups)
            backups = [each for each in backups if each.id not in forgotten]

        def waste(found: Found) -> choice.Waste:
            return choice.waste(
                known,
                backups,
                method.histories,
                method.systems(),
                full=declared.retention.full,
                days=declared.retention.days,
                now=datetime.now(UTC),
                present=self._present(),
                unread=[*records, *found.unread],
                read=found.backups,
            )

        try:
            is_gone = self._let_go(self._readers.agree(repository, waste))
        except Exception:
            # Who is about to read what was to go would wait for it for ever: it stays, until all begins anew.
            with suppress(PgherdError, OSError):
                self._readers.tidy(repository)
            raise
        self._readers.tidy(repository)
        again = unread or not is_gone
        self._retained = time.monotonic() - (RETENTION_SECONDS - HELD_SECONDS if again else 0)

    def _let_go(self, gone: choice.Waste) -> bool:
        """False: somebody reads some of it by now, and the rest stays, too."""
        try:
            self._forget_points(gone.points)
        except PgherdError as error:
            if not is_full(error):
                raise
            # What goes makes the room to write in; nobody can restore a point meanwhile that has no copy.
            is_gone = self._remove(gone)
            self._forget_points(gone.points)
            return is_gone
        return self._remove(gone)

    def _forget_points(self, names: Collection[str]) -> None:
        if not names:
            return
        self._repository.forget_points(set(names))
        for name in names:
            self._forget(name)
        points.forget(self._kept.databases, sorted(names))

    def _remove(self, gone: choice.Waste) -> bool:
        for number, each in enumerate(gone.backups):
            if not self._readers.may_go(self._repository, gone.backups[number:]):
                logger.info("%s: %s is read by now: retention leaves it", self._kept.name, each)
                return False
            self._kept.method.remove_backup(each)
        for (group, system), begins in gone.logs.items():
            self._kept.method.remove_log(group, system, None if begins is None else begins[1])
        self._kept.method.sweep()
        return True

    def _clear_failed(self, backups: Sequence[Backup]) -> set[str]:
        """Remove what is left of backups that failed, and most of their records in the end; returns whose.

        Also while there is no full one: there may never be one on a disk that is full."""
        failed = [each for each in backups if each.phase == "failed"]
        long_ago = datetime.now(UTC) - timedelta(seconds=FAILED_SECONDS)
        old = [
            each
            for each in failed[:-FAILED_KEPT]
            if not each.groups and not is_named(each) and moment(each.requested_at) < long_ago
        ]
        for each in [*failed[-FAILED_KEPT:], *old]:
            self._kept.method.discard(each.id)
        for each in old:
            self._kept.method.remove_backup(each.id)
        return {each.id for each in old}

    def _hold(self, unread: Sequence[str]) -> None:
        """Say that nothing is let go, and why."""
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        told = (
            f"retention removes nothing while what may need it can't be read: {', '.join(unread[:3])}{more} in "
            f"{self._repository.location}: put that back from a copy, or remove it (of a backup the whole folder)"
        )
        if unread and told != self._held:
            logger.warning("%s: backups: %s", self._kept.name, told)
        self._held = told if unread else None


def _last_failures(known: Sequence[Backup]) -> list[Backup]:
    """Those that failed since the last one was done, oldest first."""
    return list(takewhile(lambda each: each.phase == "failed", reversed(known)))[::-1]


def _have_rested(failed: Sequence[Backup], most: float) -> bool:
    """Whether it is time to make anew what failed so many times, oldest first."""
    if not failed or failed[-1].finished_at is None:
        return True
    rest: float = min(AGAIN_SECONDS * 2 ** min(len(failed) - 1, 20), most)
    return seconds_since(failed[-1].finished_at) >= rest
