"""Schedules of one home: what the commands ask for, and the thread in the supervisor that does what is due.

What is due is decided in ``backup.schedule``. The thread only asks for backups, like a person at the command line; the
cluster's own keeper makes them. Drills it makes itself, one at a time for each cluster, in threads of their own; one
that takes longer than it may ends as a failed one. A repository that does not answer holds up nobody but its cluster.
All it knows is written down; killed anywhere, the next supervisor goes on: a backup that was to be asked for is asked
for, a drill that was cut short is swept up and made anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pgherd.backup import schedule as rules
from pgherd.backup import scheduling
from pgherd.backup.schedule import Standing
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, one_line
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec_quantity import parse_duration
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.local.schedules import Schedules
from pgherd.reconcile.drills import LATE_SECONDS, verdict
from pgherd.supervisor import backups
from pgherd.supervisor import drill as drilling

if TYPE_CHECKING:
    from pgherd.supervisor.client import Client

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 60.0
"""until a drill that could not even begin is tried again"""
LATE = "the drill that is going on takes longer than it may, and does not end"
SILENT_SECONDS = 60.0
"""a look that takes longer is told in the log"""


# what the commands ask for


def declare(platform: LocalPlatform, schedule: PostgresBackupSchedule) -> None:
    """Create or change a schedule of a cluster that is there.

    :raises BadInput: the cluster has no backups, or can't make this type
    """
    name, spec = schedule.metadata.name, schedule.spec
    method = backups.method_of(platform, spec.cluster, None)
    backups.check_type(platform, method, spec.type, f"spec.type of schedule {name}")
    with platform.locked():
        Schedules(Layout(platform.home)).put(schedule)


def listed(platform: LocalPlatform, cluster: str | None) -> list[dict[str, Any]]:
    """Schedules and what comes next.

    :param cluster: only this one's
    :raises NoSuchCluster: there is none of this name
    """
    if cluster is not None:
        platform.declaration(cluster)
    known, now = Schedules(Layout(platform.home)), datetime.now(UTC)
    return [
        rules.described(
            each, rules.standing_from(known.standing(each)), _last_drill(platform, each.spec.cluster), now
        )
        for each in known.everything()
        if cluster in (None, each.spec.cluster)
    ]


def suspend(platform: LocalPlatform, name: str, wanted: bool) -> None:
    """Change that alone.

    :raises BadInput: there is no such schedule
    """
    known = Schedules(Layout(platform.home))
    known.find(name)  # before the lock, which would make a home that is not there
    with platform.locked():
        found = known.find(name)
        spec = found.spec.model_copy(update={"suspend": wanted})
        known.put(found.model_copy(update={"spec": spec}))


def remove(platform: LocalPlatform, name: str) -> None:
    """Remove a schedule.

    :raises BadInput: there is none of this name
    """
    known = Schedules(Layout(platform.home))
    found = known.find(name)
    with platform.locked():
        known.remove(found)


def _last_drill(platform: LocalPlatform, cluster: str) -> datetime | None:
    """When the last one ended, whoever made it; None: there was none, or nobody can tell now."""
    try:
        return rules.last_end(backups.method_of(platform, cluster, None).repository.drills())
    except PgherdError:
        return None


# what is done by itself


class Scheduler(threading.Thread):
    """See the module.

    :param client: asks for backups and makes drills
    :param stop: set when the supervisor shuts down
    :param clock: the time; a test may have one of its own
    """

    def __init__(
        self,
        platform: LocalPlatform,
        client: Client,
        stop: threading.Event,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(name="schedules", daemon=True)
        self._platform, self._client, self._stop_asked, self._clock = platform, client, stop, clock
        self._known = Schedules(Layout(platform.home))
        self._looks: dict[str, tuple[threading.Thread, float]] = {}
        self._drills: dict[str, threading.Thread] = {}
        self._latest: dict[str, tuple[PostgresBackupSchedule, datetime]] = {}
        """of whom the drill that is going on is, and when it has taken too long, though it should have ended itself"""
        self._enders: dict[str, threading.Thread] = {}
        self._not_before: dict[str, datetime] = {}
        self._complaints: dict[str, str] = {}

    def run(self) -> None:
        """Looks, until the end."""
        while not self._stop_asked.wait(LOOK_SECONDS):
            for cluster in self._platform.clusters():
                self._begin_look(cluster)

    def _begin_look(self, cluster: str) -> None:
        """In a thread of its own: a repository on a disk that does not answer keeps whoever asks."""
        thread, begun = self._looks.get(cluster, (None, 0.0))
        if thread is not None and thread.is_alive():
            if time.monotonic() - begun > SILENT_SECONDS:
                self._complain(
                    cluster, PgherdError("what is due can't be found out: its repository is silent")
                )
            return
        thread = threading.Thread(
            target=self._try_to_look, args=(cluster,), name=f"schedules-{cluster}", daemon=True
        )
        self._looks[cluster] = (thread, time.monotonic())
        thread.start()

    def _try_to_look(self, cluster: str) -> None:
        try:
            self.look(cluster)
        except NoSuchCluster:  # gone meanwhile
            return
        except Exception as error:  # whatever one look ran into, the next one begins anew
            self._complain(cluster, error)

    def _complain(self, name: str, error: Exception) -> None:
        text = one_line(error) or type(error).__name__
        if self._complaints.get(name) != text:
            logger.warning("schedules of %s: %s", name, text, exc_info=not isinstance(error, PgherdError))
        self._complaints[name] = text

    def look(self, cluster: str) -> None:
        """Do what is due for one cluster.

        :raises PgherdError: something could not be read or written; the next look tries again
        """
        declaration = self._platform.declaration(cluster)
        if declaration.is_winding_down:
            return
        if self._is_drilling(cluster):
            self._end_if_late(cluster)
        elif drilling.was_cut_short(self._platform, cluster):
            self._latest.pop(cluster, None)
            self._begin(cluster, lambda: self._client.sweep_drill(cluster))
        for schedule in self._known.of_cluster(cluster):
            self._see_to(schedule)

    def _see_to(self, schedule: PostgresBackupSchedule) -> None:
        now = self._clock()
        before = rules.standing_from(self._known.standing(schedule))
        standing = rules.adjusted(before, schedule, now)
        if standing != before:
            self._write(schedule, standing)
        try:
            standing = self._see_to_backup(schedule, standing, now)
            problem = self._see_to_drill(schedule, standing, now)
        except PgherdError as error:
            problem = one_line(error)
        if problem is not None and problem != standing.problem:
            if problem:
                logger.warning("schedule %s: %s", schedule.metadata.name, problem)
            # Written since, if at all, by this thread alone.
            latest = rules.standing_from(self._known.standing(schedule)) or standing
            self._write(schedule, replace(latest, problem=problem))

    def _write(self, schedule: PostgresBackupSchedule, standing: Standing) -> None:
        with self._platform.locked():
            self._known.write_standing(schedule, standing.as_json())

    # backups

    def _see_to_backup(self, schedule: PostgresBackupSchedule, standing: Standing, now: datetime) -> Standing:
        platform, spec = self._platform, schedule.spec
        return scheduling.see_to_backup(
            schedule,
            standing,
            now,
            repository=lambda: backups.method_of(platform, spec.cluster, None).repository,
            request=lambda name: backups.request(platform, spec.cluster, spec.type, name),
            write=lambda changed: self._write(schedule, changed),
        )

    # drills

    def _is_drilling(self, cluster: str) -> bool:
        return cluster in self._drills and self._drills[cluster].is_alive()

    def _end_if_late(self, cluster: str) -> None:
        """What a drill may wait for without ever looking at the clock is its scratch: without that it ends."""
        known, ender = self._latest.get(cluster), self._enders.get(cluster)
        if known is None or self._clock() <= known[1] or (ender is not None and ender.is_alive()):
            return
        schedule = known[0]

        def end() -> None:
            try:
                self._note(schedule, LATE)
                self._client.end_drill(cluster)
            except Exception as error:  # the next look tries again
                self._complain(cluster, error)

        self._complain(cluster, PgherdError(f"{LATE}: its scratch is removed"))
        self._enders[cluster] = threading.Thread(target=end, name=f"end-drill-{cluster}", daemon=True)
        self._enders[cluster].start()

    def _see_to_drill(
        self, schedule: PostgresBackupSchedule, standing: Standing, now: datetime
    ) -> str | None:
        """Begin a drill if one is due; returns what keeps it from beginning, "" for nothing, None: as before."""
        cluster, declared = schedule.spec.cluster, schedule.spec.drill
        if declared is None or schedule.spec.suspend:
            return ""
        if self._is_drilling(cluster) or drilling.is_going_on(self._platform, cluster):
            return None
        at = rules.drill_due(standing, schedule, _last_drill(self._platform, cluster))
        if at is None or now < at:
            return ""
        if now < self._not_before.get(schedule.metadata.name, now):
            return None
        method = backups.method_of(self._platform, cluster, None)
        if not drilling.is_possible(method):
            self._rest(schedule, now)
            overdue = rules.is_overdue(schedule, at, now)
            return "a drill is overdue: there is no restore point to restore" if overdue else ""
        limit = parse_duration(declared.timeout)
        self._latest[cluster] = (schedule, now + timedelta(seconds=limit + LATE_SECONDS))
        self._begin(cluster, lambda: self._drill(schedule, limit))
        return None

    def _rest(self, schedule: PostgresBackupSchedule, now: datetime) -> None:
        self._not_before[schedule.metadata.name] = now + timedelta(seconds=AGAIN_SECONDS)

    def _begin(self, cluster: str, do: Callable[[], None]) -> None:
        def run() -> None:
            try:
                do()
            except Exception as error:
                self._complain(cluster, error)

        self._drills[cluster] = threading.Thread(target=run, name=f"drill-{cluster}", daemon=True)
        self._drills[cluster].start()

    def _drill(self, schedule: PostgresBackupSchedule, limit: float) -> None:
        declared, cluster = schedule.spec.drill, schedule.spec.cluster
        assert declared is not None, "begun only where drills are declared"
        name = schedule.metadata.name

        def told(text: str) -> None:
            logger.info("schedule %s: drill: %s", name, text)

        try:
            result = self._client.drill(
                cluster, keep=declared.keep, tables=declared.tables, timeout=limit, told=told
            )
        except Exception as error:  # whatever it was, the next one would meet it, too
            self._rest(schedule, self._clock())
            problem = f"a drill could not be made: {one_line(error) or type(error).__name__}"
            self._note(schedule, problem)
            self._platform.announce(cluster, problem, failed=True)
            if not isinstance(error, BadInput):
                raise
            return
        self._note(schedule, "")
        text = verdict(result)
        logger.info("schedule %s: %s", name, text)
        self._platform.announce(cluster, text, failed=not result["passed"])

    def _note(self, schedule: PostgresBackupSchedule, problem: str) -> None:
        with self._platform.locked():
            standing = rules.standing_from(self._known.standing(schedule))
            if standing is not None and standing.problem != problem:
                self._known.write_standing(schedule, replace(standing, problem=problem).as_json())
