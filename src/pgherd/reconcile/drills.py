"""A drill: the newest restore point is restored into a scratch cluster, which is examined and removed again.

Backups that nobody restores are hopes. A drill does all that a real restore does, in a cluster without standbys; then
it asks the scratch whether its catalogue and its segments agree, reads tables and btree indexes of every group for
damage (``pg_amcheck``), has every file of the base copies verified where they are kept, and says what it found. Page
checksums were verified while no server ran on them (``backup.pages``), native copies when they were restored. Where
tables are named it makes a point of its own, with what they held there (``operations.fingerprint``), and compares. Of
each check it says whether it was made (``drill_checks``).

How the scratch is made and removed, and how programs are run in it, is its :class:`Ground`'s business, which also
writes down how far the drill is: whoever is given that goes on from there.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psycopg

from pgherd.backup import points, records
from pgherd.backup.base import BackupMethod, Verified
from pgherd.engine.base import Engine
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable, one_line
from pgherd.faults import crash_point
from pgherd.model import spec as declaration
from pgherd.model.spec import PostgresCluster
from pgherd.model.spec_models import MAX_NAME
from pgherd.model.topology import group_name
from pgherd.operations import fingerprint
from pgherd.operations.fingerprint import Print
from pgherd.reconcile import drill_checks as checks
from pgherd.reconcile import drill_words as words
from pgherd.reconcile import steering
from pgherd.reconcile.drill_checks import Checks
from pgherd.reconcile.observe import World

SUFFIX = "-drill"
ARCHIVED_SECONDS = 300.0
"""how long a point may take to be archived"""
TRIES = 3
"""of an examination that reaches nobody"""
AGAIN_SECONDS = 10.0
"""between two of them"""
LATE_SECONDS = 60.0
"""how long after its time a drill may still wait for its scratch to answer; then that goes, and the drill with it"""
PAGE_BYTES = 8192
VERIFYING = "verifying the base copies in the repository"
READING = "reading tables and btree indexes"
"""what is told while ``pg_amcheck`` runs: other kinds of indexes it does not know"""
AMCHECK = ("--no-password", "--install-missing", "--progress")
"""what ``pg_amcheck`` is told everywhere"""
_QUIET = "-c event_triggers=off"
_PAGES = re.compile(r"(\d+)/\s*(\d+) pages")
T = TypeVar("T")
Told = Callable[[str], None]
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Wish:
    """What kind of drill.

    :param keep: leave the scratch cluster there
    :param tables: those whose rows are compared with what they were at the point
    :param timeout: seconds from its beginning to the verdict
    :param told: told what is being done
    :param progress: fed with statuses while it goes on
    """

    keep: bool = False
    tables: Sequence[str] = ()
    timeout: float = float("inf")
    told: Told = lambda text: None
    progress: Progress | None = None


@dataclass(frozen=True)
class Course:
    """How far a drill is. Plain data."""

    id: str
    started_at: str
    point: str | None = None
    """the point that it made itself, at which the named tables were counted"""
    restore_point: str | None = None
    """the point that is restored"""
    time: str = ""
    """when that was made"""


class TimeIsUp(PgherdError):
    """The drill takes longer than it may."""


class Ground(ABC):
    """One platform's part in the drills of one cluster.

    :ivar name: the cluster
    :ivar scratch: what is made of its backups
    :ivar in_time: raises :class:`TimeIsUp`; asked whenever something is waited for
    """

    name: str
    scratch: str
    in_time: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def method(self) -> BackupMethod:
        """The cluster's backups."""

    @abstractmethod
    def world(self, name: str) -> World:
        """The way to the databases of the cluster or of the scratch."""

    @abstractmethod
    def plan(self, point: str | None) -> tuple[str, str]:
        """The point that will be restored, and its time; nothing is made yet.

        :param point: that one; None: the newest
        :raises BadInput: there is none, or the scratch's name is taken by something else
        """

    @abstractmethod
    def declare(self, restore_point: str) -> None:
        """See to it that the scratch is declared, made of this point; no-op if this very drill has done so."""

    @abstractmethod
    def wait(self, wish: Wish) -> None:
        """Until the scratch runs.

        :raises PgherdError: it never will, or time ran out
        """

    @abstractmethod
    def amcheck(self, world: World, group: int, watch: Callable[[str], None]) -> None:
        """Run ``pg_amcheck`` over a group of the scratch.

        :param watch: told again and again what it said last
        :raises PgherdError: what it found
        """

    @abstractmethod
    def restored(self) -> Mapping[str, Any]:
        """What was written down while the scratch was made (``backup.restore``).

        :raises PgherdError: it can't be read
        """

    def is_to_stop(self) -> bool:
        """Whether this process is to end."""
        return False

    def note(self, course: Course) -> None:
        """Write down how far the drill is."""
        return

    def pause(self, seconds: float) -> None:
        """Wait so long.

        :raises Cancelled: this process is to end
        :raises TimeIsUp: the drill takes longer than it may
        """
        time.sleep(seconds)
        self.in_time()

    def rest(self, seconds: float) -> None:
        """Wait so long, and until the platform itself can be asked.

        :raises Cancelled: this process is to end
        """
        self.pause(seconds)


def scratch_name(name: str) -> str:
    """What the scratch of a cluster's drills is called.

    :raises BadInput: that would be too long
    """
    scratch = f"{name}{SUFFIX}"
    if len(scratch) > MAX_NAME:
        raise BadInput(f"{name}: its name is too long for a drill, the scratch cluster would be {scratch}")
    return scratch


def lean(cluster: PostgresCluster, scratch: str, **more: Any) -> dict[str, Any]:
    """The shape of a cluster's scratch, as files hold it: without standbys and without backups of its own.

    It has none of the user's pg_hba lines either, whose clients don't come to it: one that only an older version
    accepted would keep it from being made.

    :param more: goes into its ``spec``
    """
    raw = declaration.to_mapping(cluster)
    spec = {key: value for key, value in raw["spec"].items() if key != "backup"}
    for group in ("coordinator", "segments"):
        spec[group] = {**spec[group], "standbys": 0}
    spec["postgres"] = {
        key: value for key, value in spec["postgres"].items() if key != "hostBasedAuthentication"
    }
    # What people and their tools noted on the cluster is not the scratch's.
    return {**raw, "metadata": {"name": scratch}, "spec": {**spec, **more}}


def amcheck_options(engine: Engine, major: int) -> dict[str, str]:
    """The environment of ``pg_amcheck``, which installs its extension on each server by itself."""
    said = [each for each in (_QUIET if major >= 17 else "", engine.alone_options) if each]
    return {"PGOPTIONS": " ".join(said)} if said else {}


class Drill:
    """One drill, from the point to the verdict.

    :param course: how far it is
    """

    def __init__(self, ground: Ground, wish: Wish, course: Course) -> None:
        self._ground, self._wish, self._course = ground, wish, course
        self._since, self._doing = records.now(), "it was beginning"
        self._checks = Checks(tables=bool(wish.tables))
        ground.in_time = self._require_time

    def run(self) -> dict[str, Any]:
        """Go on to the end; returns what is to be remembered. The scratch is still there.

        :raises BadInput: there is nothing to restore, there is no such table, or the scratch's name is taken
        :raises Cancelled: this process is to end; whoever comes next goes on
        :raises PgherdError: the drill can't be made
        """
        if self._wish.tables:
            self._prepare()
        if self._course.restore_point is None:
            name, made_at = self._ground.plan(self._course.point)
            self._note(restore_point=name, time=made_at)
        assert self._course.restore_point is not None, "just planned"
        self._ground.declare(self._course.restore_point)
        crash_point("drill:declared")
        problems, compared = self._outcome()
        begun = records.moment(self._course.started_at)
        finished = records.now()
        return {
            "id": self._course.id,
            "restorePoint": self._course.restore_point,
            "time": self._course.time,
            "finishedAt": finished,
            "seconds": round((records.moment(finished) - begun).total_seconds(), 1),
            "passed": not problems,
            "problems": problems,
            "checks": self._checks.as_json(),
            "compared": compared,
        }

    def _outcome(self) -> tuple[list[str], dict[str, Any] | None]:
        problems, compared = self._try()
        problems += [text for text in self._verified(failed=bool(problems)) if text not in problems]
        crash_point("drill:verified")
        return problems, compared

    def _try(self) -> tuple[list[str], dict[str, Any] | None]:
        try:
            self._told(
                f"restoring {self._course.restore_point} ({self._course.time}) into {self._ground.scratch}"
            )
            self._ground.wait(replace(self._wish, timeout=self._left()))
            crash_point("drill:restored")
            return self._patiently(self._examine)
        except Cancelled:
            raise
        except (PgherdError, psycopg.Error) as error:
            # A scratch that dies of what was restored, or can't be asked, is what a drill is there to find.
            return [one_line(error) or type(error).__name__], None

    def _note(self, **changes: Any) -> None:
        self._course = replace(self._course, **changes)
        self._ground.note(self._course)

    def _told(self, text: str) -> None:
        self._since, self._doing = records.now(), text
        self._require_time()
        self._wish.told(text)

    def _left(self) -> float:
        """Seconds that it may still take: by the clock, for whoever goes on with it is not its beginner."""
        return self._wish.timeout - records.seconds_since(self._course.started_at)

    def _require_time(self) -> None:
        if self._left() < 0:
            raise TimeIsUp(f"it was not done after {self._wish.timeout:.0f} s: {self._doing}")

    def _report(self, doing: str, done: int, total: int, *, unit: str = "") -> None:
        """What a bar shows: bytes where no unit is given."""
        self._require_time()
        if self._wish.progress is None:
            return
        amount: dict[str, Any] = {"movesDone": done, "movesTotal": total, "unit": unit}
        if not unit:
            rate, left = records.pace(self._since, done, total)
            amount = {"bytesDone": done, "bytesTotal": total, "bytesPerSecond": rate, "etaSeconds": left}
        operation = {"kind": "drill", "phase": doing, **amount}
        self._wish.progress({"name": self._ground.scratch, "phase": "Examining", "operation": operation})

    # the point

    def _prepare(self) -> None:
        """See to it that there is an archived point with what the tables held."""
        if self._course.point is None:
            self._make_point()
        if self._course.restore_point is None:
            self._await_archived()

    def _make_point(self) -> None:
        world, method = self._ground.world(self._ground.name), self._ground.method()
        tables = fingerprint.named(world.engine.layout(), self._wish.tables)
        method.repository.require()
        snapshots = fingerprint.Snapshots(world.databases, tables)
        try:
            self._told("making a point, and counting what is there")
            point = points.make(world.engine, world.databases, method, points.new_name("d"), around=snapshots)
            prints = snapshots.prints(
                lambda doing, done, total: self._report(doing, done, total, unit="places")
            )
        finally:
            snapshots.close()
        method.repository.remember_prints(point.name, [each.as_json() for each in prints])
        self._note(point=point.name)
        crash_point("drill:counted")

    def _await_archived(self) -> None:
        world, method = self._ground.world(self._ground.name), self._ground.method()
        known = method.repository.points(days=2)
        point = next((each for each in known if each.name == self._course.point), None)
        if point is None:
            raise PgherdError(
                f"the restore point {self._course.point} is gone: another drill makes another one"
            )
        deadline = time.monotonic() + ARCHIVED_SECONDS
        while (done := points.archived(method, point)) is None:
            if time.monotonic() > deadline:
                raise PgherdError(
                    f"{point.name} was not archived within {ARCHIVED_SECONDS:.0f} s: "
                    f"see 'pgherd status {self._ground.name}'"
                )
            self._ground.pause(0.1 if method.repository.store.near else 1.0)
        method.repository.remember_point(done)
        points.record(world.databases, done)

    # the examination

    def _patiently(self, do: Callable[[], T]) -> T:
        """What asks somebody who may not answer at once.

        :raises Unavailable: nor later
        """
        for _ in range(TRIES - 1):
            try:
                return do()
            except Unavailable as error:
                self._told(f"trying again: {one_line(error)}")
                self._ground.rest(AGAIN_SECONDS)
        return do()

    def _examine(self) -> tuple[list[str], dict[str, Any] | None]:
        world = self._ground.world(self._ground.scratch)
        self._told("comparing its catalogue with its segments")
        findings = [f"{each.check}: {each.message}" for each in steering.findings(world)]
        problems = self._checks.tell(words.CATALOGUE, findings)
        compared = None
        if prints := self._prints():
            different, compared = self._compare(world, prints)
            problems += self._checks.tell(words.ROWS, different)
        self._told(READING)
        problems += self._checks.tell(words.RELATIONS, self._amcheck(world))
        crash_point("drill:examined")
        return problems, compared

    def _prints(self) -> list[Print]:
        if self._course.point is None:
            return []
        return [
            fingerprint.print_from(raw) for raw in self._ground.method().repository.prints(self._course.point)
        ]

    def _compare(self, world: World, prints: Sequence[Print]) -> tuple[Sequence[str], dict[str, Any]]:
        self._told("comparing rows")
        outcome = fingerprint.compare(
            world.databases,
            world.engine,
            prints,
            lambda doing, done, total: self._report(doing, done, total, unit="places"),
        )
        return outcome.problems, {
            "tables": sorted({each.table for each in prints}),
            "rows": outcome.rows,
            "rowsTouched": outcome.touched,
            "placesMoved": outcome.moved,
            "placesUnclear": outcome.unclear,
        }

    def _amcheck(self, world: World) -> list[str]:
        """What ``pg_amcheck`` finds, a line for each group."""

        def watch(text: str) -> None:
            self._require_time()
            if amounts := _PAGES.findall(text):
                done, total = (int(amount) * PAGE_BYTES for amount in amounts[-1])
                self._report(READING, done, total)

        found = []
        for group in sorted(world.databases.addresses()):
            try:
                self._ground.amcheck(world, group, watch)
            except (Cancelled, TimeIsUp, Unavailable):
                raise
            except PgherdError as error:
                found.append(f"{group_name(group)}: {error}")
        return found

    # what was restored, and of what

    def _verified(self, *, failed: bool) -> list[str]:
        """What is wrong with the pages that were restored, and with the copies that they were made of. Also of a
        restore that failed: that says which files are why."""
        problems: list[str] = []
        try:
            restored, method = self._patiently(self._ground.restored), self._ground.method()
            self._checks.by(words.COPIES, method.verifier)
            problems += self._checks.tell(words.PAGES, *checks.of_pages(restored))
            if not failed or self._left() > 0:
                problems += self._verify_copies(method, restored)
        except Cancelled:
            raise
        except TimeIsUp as error:
            problems.append(one_line(error))
        except PgherdError as error:
            self._checks.give_up(one_line(error))
        return problems

    def _verify_copies(self, method: BackupMethod, restored: Mapping[str, Any]) -> list[str]:
        chains = checks.groups_of(restored)
        if not chains:
            return self._checks.tell(words.COPIES, why=words.NOT_REACHED)
        found: dict[int, Verified] = {}
        late: list[str] = []
        try:
            for group, copies in chains.items():
                self._told(f"{VERIFYING}: {group_name(group)}")
                one = self._verify(method, group, copies)
                if one is None:
                    return self._checks.tell(words.COPIES, why=checks.of_restored_copies(restored))
                found[group] = one
                # A method may tell what was raised by its watch as a failure of its program.
                self._require_time()
        except TimeIsUp as error:
            if not found:
                raise
            late = [one_line(error)]
        left = {group: Verified(why=words.NOT_REACHED) for group in chains if group not in found}
        return [*self._checks.tell(words.COPIES, *checks.of_copies({**found, **left})), *late]

    def _verify(self, method: BackupMethod, group: int, copies: Sequence[str]) -> Verified | None:
        def watch(text: str) -> None:
            self._require_time()

        try:
            return self._patiently(lambda: method.verify(copies, group, self._ground.is_to_stop, watch))
        except Unavailable as error:
            return Verified(why=one_line(error))


def verdict(result: Mapping[str, Any]) -> str:
    """What a drill found, in one sentence."""
    if result["passed"]:
        return f"drilled the backups: {result['restorePoint']} was restored and is sound{words.unchecked(result)}"
    return f"a drill of {result['restorePoint']} failed: {'; '.join(result['problems'])}"
