"""One cluster's reconcile loop, in a thread of its own.

Each round looks, plans, acts and writes the status. Steps of a round are independent and run side by side. An
operation runs in a second thread, so that members are healed while data moves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg

from pgherd.backup import restoring
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import NotOurs
from pgherd.backup.keeper import Keeper, Kept
from pgherd.backup.registry import make_method
from pgherd.engine.base import Engine
from pgherd.engine.registry import make_engine
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, one_line
from pgherd.faults import crash_point
from pgherd.model.spec import to_mapping
from pgherd.operations.runner import Context, Runner
from pgherd.platform.base import Platform
from pgherd.postgres.connections import Databases
from pgherd.reconcile import observe, plan, status
from pgherd.reconcile.act import Actor
from pgherd.reconcile.in_place import InPlace
from pgherd.reconcile.repairs import Repairs
from pgherd.reconcile.state import Observed
from pgherd.reconcile.steps import BACKGROUND, Forget, Rebuild, Recover, RunOperation, Step, is_settled

logger = logging.getLogger(__name__)

BUSY_SECONDS = 0.2
"""pause between two rounds while there is something to do"""
CALM_SECONDS = 1.0
"""pause after a round that failed"""
LASTING_SECONDS = 10.0
"""a problem that is older is told as an event"""
UNPIN_SECONDS = 5.0
"""how long a deletion waits for a making to end, and for the repository that it read"""
OWN_SECONDS = 5.0
"""how long members are kept waiting, in all, for it to be known whose their repository is"""
SIZES_EVERY = 5.0
"""seconds between two looks at the shards' sizes"""


class ClusterLoop(threading.Thread):
    """Keeps one cluster as declared until told to stop, or until the cluster is gone.

    :param stop: set when the supervisor shuts down; databases go on
    """

    def __init__(self, platform: Platform, name: str, stop: threading.Event) -> None:
        super().__init__(name=f"loop-{name}", daemon=True)
        self.cluster = name
        self._platform = platform
        self._stop_asked = stop
        self._operation: threading.Thread | None = None
        self._recovery: threading.Thread | None = None
        self._repairs = Repairs(platform, name, stop)
        self._in_place = InPlace(platform, name, stop)
        self._keeper: Keeper | None = None
        self._serving = False
        self._last_backups: Mapping[str, Any] | None = None
        self._errors: list[str] = []
        self._problems: dict[str, float | None] = {}
        self._fatal_generation: int | None = None
        self._sizes_at = float("-inf")
        self._last_sizes: dict[int, Any] = {}
        self._last_unfit: Sequence[str] = ()
        self._last_unread: Sequence[str] | None = ()
        self._revision: object = None
        self._repeated: tuple[list[Step], float] = ([], BUSY_SECONDS)
        self._rests = False
        self._unanswered: dict[str, float] = {}
        self._own_until: float | None = None
        self._unpinned = False
        self.has_forgotten = False
        """the cluster was to be deleted, and is: nothing of it runs, and what was to go is gone"""
        self.beside: Callable[[], str] = str
        """what keeps those who look after the cluster's backups beside it from their work; empty: nothing"""

    def run(self) -> None:
        """Rounds, until the end; a stopped cluster needs none, the daemon starts a new loop when it is to run."""
        while not self._stop_asked.is_set():
            try:
                pause = self.round()
            except NoSuchCluster:
                return
            except BadInput as error:
                if self._is_done_with(error):
                    return
                pause = CALM_SECONDS
            except PgherdError as error:
                logger.warning("%s: %s", self.cluster, error)
                self._hindered(str(error))
                pause = CALM_SECONDS
            except Exception as error:  # the loop must outlive whatever one look ran into
                logger.exception("%s: a round failed", self.cluster)
                self._hindered(f"a look at it met what nobody expected: {error!r}")
                pause = CALM_SECONDS
            if self._rests:
                return
            self._wait(pause)

    def _wait(self, seconds: float) -> None:
        # A changed declaration ends the pause early.
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop_asked.wait(0.1):
            try:
                if self._platform.revision(self.cluster) != self._revision:
                    return
            except PgherdError:
                return

    def round(self) -> float:
        """Look, plan, act, tell.

        :return: seconds to wait before the next round
        :raises NoSuchCluster: the cluster is gone
        """
        # Taken before the look: what changes meanwhile ends the pause after it.
        self._revision = self._platform.revision(self.cluster)
        world = observe.connect(self._platform, self.cluster, make_engine)
        self._in_place.see_to()
        seen = self._look(world)
        hindrances = []
        try:
            if self._align(seen):
                # What was just applied may have made members outdated: the plan must know.
                seen = self._look(world)
        except PgherdError as error:
            # What is around the members waits; members are healed all the same.
            logger.warning("%s: %s", self.cluster, error)
            hindrances = [one_line(error)]
        steps = plan.plan(seen)
        self._tell(seen, steps, hindrances)
        self._see_to_backups(world, seen)
        self._act(world, seen, steps)
        if any(isinstance(step, Forget) for step in steps) and not self._errors:
            self.has_forgotten = True
            raise NoSuchCluster(self.cluster)
        # Who comes next would begin the making anew beside one that has not heard of the stop yet.
        runs = seen.is_being_made or any(state.view.running for state in seen.members.values())
        is_over = seen.declaration.stopped and not steps and not runs
        self._rests = is_over and self._note_end()
        return self._pause(steps)

    def _note_end(self) -> bool:
        """It is stopped either way: without a note less can be proven, should its volumes be lost."""
        try:
            self._platform.has_stopped(self.cluster)
        except PgherdError as error:
            logger.warning("%s: how its servers ended is not written down yet: %s", self.cluster, error)
            return False
        return True

    def _pause(self, steps: list[Step]) -> float:
        """Short while things happen, longer while the same steps wait for the same things."""
        calm = self._platform.calm_seconds
        if is_settled(steps) and not self._errors:
            self._repeated = ([], BUSY_SECONDS)
            return calm
        before, pause = self._repeated
        pause = min(pause * 1.5, calm) if steps == before else BUSY_SECONDS
        self._repeated = (steps, pause)
        return pause

    def _look(self, world: observe.World) -> Observed:
        due = time.monotonic() - self._sizes_at > SIZES_EVERY
        # Before the look: what it made until its end is seen.
        is_being_made = self._recovery is not None and self._recovery.is_alive()
        seen = self._in_place.told(observe.observe(world, sizes=due))
        if due:
            self._sizes_at = time.monotonic()
            self._last_backups = seen.backups
        if seen.unfit is not None:
            self._last_unfit = seen.unfit
        if seen.unread is not None:
            self._last_unread = seen.unread
        seen = replace(
            seen,
            backups=self._with_complaint(self._last_backups),
            unfit=self._last_unfit,
            unread=self._last_unread,
            is_being_made=is_being_made,
        )
        if seen.sizes:
            self._last_sizes = dict(seen.sizes)
        else:
            object.__setattr__(seen, "sizes", self._last_sizes)
        object.__setattr__(seen, "unanswered", self._count_unanswered(seen))
        return seen

    def _with_complaint(self, backups: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if backups is None:
            return None
        keeper = self._keeper
        complaint = (keeper.complaint if keeper is not None else None) or self.beside()
        told = {"error": complaint, "readers": keeper.readers if keeper is not None else None}
        return {**backups, **{key: value for key, value in told.items() if value}}

    def _count_unanswered(self, seen: Observed) -> dict[str, float]:
        """One answer, and counting begins anew; so does it with us: nobody is given up on one look."""
        now = time.monotonic()
        silent = [
            name
            for name, state in seen.members.items()
            if state.view.lost is not None and state.patroni is None
        ]
        self._unanswered = {name: self._unanswered.get(name, now) for name in silent}
        return {name: now - since for name, since in self._unanswered.items()}

    def _tell(self, seen: Observed, steps: list[Step], hindrances: list[str]) -> None:
        previous = self._platform.read_status(self.cluster)
        problems = status.find_problems(seen)
        if seen.recovery is not None or status.is_being_created(seen, steps, previous):
            # What is not there yet is no news; what keeps it from coming is.
            problems = [problem for problem in problems if status.has_cause(problem)]
        self._complain([*problems, *hindrances, *self._in_place.complaints()])
        for what, failed in status.news(seen, previous):
            self._platform.announce(self.cluster, what, failed=failed)
        fatal = self._fatal_generation == seen.declaration.generation
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = status.build(
            seen,
            steps,
            now=now,
            previous=previous,
            errors=self._errors,
            hindrances=hindrances,
            fatal=fatal,
        )
        self._platform.write_status(self.cluster, text)

    def _complain(self, problems: list[str]) -> None:
        """Tell problems that last; most pass by themselves while members start."""
        now = time.monotonic()
        self._problems = {problem: self._problems.get(problem, now) for problem in problems}
        for problem, since in self._problems.items():
            if since is not None and now - since > LASTING_SECONDS:
                self._platform.announce(self.cluster, problem, failed=True)
                self._problems[problem] = None

    def _is_done_with(self, error: BadInput) -> bool:
        """What was declared can't be: say so, and wait for it to be declared anew, or deleted."""
        try:
            purge = self._platform.deletion(self.cluster)
            running = [view for view in self._platform.members(self.cluster).values() if view.running]
            if purge is not None:
                for view in running:
                    self._platform.stop_member(view.member)
                if not running:
                    self._unpin()
                    self._platform.forget(self.cluster, purge=purge)
                    self.has_forgotten = True
                    return True
        except PgherdError as another:
            logger.warning("%s: %s", self.cluster, another)
        except Exception:  # the loop must outlive this, too
            logger.exception("%s: what it is to become can't be told", self.cluster)
        self._refuse(error)
        return False

    def _refuse(self, error: BadInput) -> None:
        logger.warning("%s: %s", self.cluster, error)
        try:
            generation = self._platform.generation(self.cluster)
            previous = self._platform.read_status(self.cluster)
            if (previous or {}).get("errors") != list(error.problems):
                self._platform.announce(self.cluster, "; ".join(error.problems), failed=True)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = status.refused(self.cluster, generation, error.problems, now=now, previous=previous)
            self._platform.write_status(self.cluster, text)
        except PgherdError as another:
            logger.warning("%s: %s", self.cluster, another)
        except Exception:  # the loop must outlive this, too
            logger.exception("%s: its status can't be written", self.cluster)

    def _hindered(self, problem: str) -> None:
        """Say that nobody could look, and why: the status before would pass for the truth."""
        problem = one_line(problem)
        try:
            previous = self._platform.read_status(self.cluster)
            if previous is None or not status.is_told(previous, problem):
                self._platform.announce(self.cluster, problem, failed=True)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = status.hindered(self.cluster, problem, now=now, previous=previous)
            self._platform.write_status(self.cluster, text)
        except Exception as another:  # the loop must outlive this, too
            logger.warning("%s: %r", self.cluster, another)

    def _align(self, seen: Observed) -> bool:
        if seen.declaration.is_winding_down or (seen.recovery or {}).get("inPlace"):
            return False
        changed = self._platform.align(seen.declaration.cluster, seen.beginnings())
        self._equip(seen)
        return changed

    def _equip(self, seen: Observed) -> None:
        """Before members are made that need it. Databases do not wait for it: the condition of backups tells it.

        With it members archive, which they must not do into another cluster's repository."""
        if seen.recovery is not None:
            return
        try:
            method = make_method(self._platform, seen.declaration.cluster)
            if self._is_own(method):
                method.equip()
        except PgherdError as error:
            logger.info("%s: backups: %s", self.cluster, one_line(error))

    def _is_own(self, method: BackupMethod) -> bool:
        """A new member that gets it with its start need not wait until it is brought there: so this waits a little."""
        if self._own_until is None:
            self._own_until = time.monotonic() + OWN_SECONDS
            if not method.is_own():
                threading.Thread(target=self._find_out_whose, args=(method,), daemon=True).start()
        while not (own := method.is_own()) and time.monotonic() < self._own_until:
            if self._stop_asked.wait(0.1):
                break
        return own

    def _find_out_whose(self, method: BackupMethod) -> None:
        """Beside the loop: the repository may be silent. Whose it is may be known only when the databases answer."""
        while (self._own_until or 0.0) > time.monotonic() and not self._stop_asked.is_set():
            try:
                if not method.repository.refuse_anothers().owner:
                    self._own_until = 0.0
                return
            except NotOurs:
                self._own_until = 0.0
            except PgherdError:  # it is away, or not there yet
                self._stop_asked.wait(0.5)

    def _act(self, world: observe.World, seen: Observed, steps: list[Step]) -> None:
        actor = Actor(
            world,
            lambda operation: self._run_operation(world, operation),
            lambda: self._recover(seen),
            lambda group: self._repairs.carry_on(world, group),
        )
        if not steps:
            self._errors = []
            return
        if any(isinstance(step, Forget) for step in steps):
            self._unpin()
        with ThreadPoolExecutor(max_workers=8) as pool:
            outcomes = list(pool.map(lambda step: self._do(actor, step, seen), steps))
        self._errors = [outcome for outcome in outcomes if outcome]

    def _do(self, actor: Actor, step: Step, seen: Observed) -> str | None:
        if not isinstance(step, RunOperation | Recover | Rebuild):
            logger.info("%s: %s", self.cluster, step)
            self._announce(step)
        point = f"step:{type(step).__name__}"
        try:
            crash_point(f"{point}:started")
            actor.act(step, seen)
            crash_point(f"{point}:done")
        except Exception as error:  # nobody reads logs while the status says nothing
            if not isinstance(error, PgherdError | psycopg.Error | OSError):
                logger.exception("%s: %s met what nobody expected", self.cluster, step)
            if isinstance(error, BadInput):
                self._fatal_generation = seen.declaration.generation
            text = one_line(error) or type(error).__name__
            logger.warning("%s: could not %s: %s", self.cluster, step, text)
            self._announce(step, f"could not {step}: {text}")
            return f"could not {step}: {text}"
        return None

    def _announce(self, step: Step, failed: str = "") -> None:
        if not isinstance(step, BACKGROUND):
            self._platform.announce(self.cluster, failed or str(step), failed=bool(failed))

    def _run_operation(self, world: observe.World, operation: int) -> None:
        if self._operation is not None and self._operation.is_alive():
            return
        runner = Runner(self._context(world))

        def run() -> None:
            try:
                runner.run(operation)
            except Exception:  # the row stays unfinished, the next round carries it on
                logger.exception("%s: operation %s was interrupted", self.cluster, operation)

        self._operation = threading.Thread(target=run, name=f"operation-{self.cluster}", daemon=True)
        self._operation.start()

    def _recover(self, seen: Observed) -> None:
        if self._recovery is not None and self._recovery.is_alive():
            return
        logger.info("%s: carry on making the cluster from its backup", self.cluster)
        platform = self._platform

        def running(source: str) -> tuple[Engine, Databases]:
            other = observe.connect(platform, source, make_engine)
            return other.engine, other.databases

        restore = restoring.begin(
            platform, seen.declaration.cluster, make_engine, self._stop_asked, running, self._is_unkept
        )
        if restore is None:
            return

        def run() -> None:
            try:
                restore.run()
            except (PgherdError, psycopg.Error):  # written down where it matters, or to be carried on
                return
            except Exception:
                logger.exception("%s: its making from a backup was interrupted", self.cluster)

        self._recovery = threading.Thread(target=run, name=f"restore-{self.cluster}", daemon=True)
        self._recovery.start()

    def _is_unkept(self) -> bool:
        return self._keeper is None or not self._keeper.is_alive()

    def _unpin(self) -> None:
        """Let go what the cluster's making reads, while its state still says what. No deletion waits long for a
        repository that is away, nor again: the pin lapses."""
        if self._unpinned:
            return
        self._unpinned = True
        if self._recovery is not None:
            self._recovery.join(UNPIN_SECONDS)  # it does so by itself, and would write it anew

        def unpin() -> None:
            try:
                restoring.unpin(self._platform, self.cluster)
            except Exception as error:  # whatever it was, the cluster goes
                logger.warning(
                    "%s: the pin of its making stays until it lapses: %s", self.cluster, one_line(error)
                )

        remover = threading.Thread(target=unpin, name=f"unpin-{self.cluster}", daemon=True)
        remover.start()
        remover.join(UNPIN_SECONDS)

    def _see_to_backups(self, world: observe.World, seen: Observed) -> None:
        """A keeper runs while backups are declared; it waits by itself where the cluster does not serve."""
        self._serving = status.is_serving(seen)
        cluster = seen.declaration.cluster
        method = make_method(self._platform, cluster)
        wanted = (
            cluster.spec.backup is not None
            and self._platform.keeps_backups
            and not seen.declaration.is_winding_down
            and seen.recovery is None
        )
        keeper = self._keeper
        if keeper is not None and keeper.is_alive():
            if not wanted or keeper.is_to_leave_for(method):
                keeper.leave()
            return
        if wanted:
            self._keeper = Keeper(self._kept(world, method))
            self._keeper.start()

    def _kept(self, world: observe.World, method: BackupMethod) -> Kept:
        platform, name = self._platform, self.cluster
        return Kept(
            name=name,
            engine=world.engine,
            databases=world.databases,
            method=method,
            declared=lambda: platform.declaration(name).cluster.spec.backup,
            declaration=lambda: to_mapping(platform.declaration(name).cluster),
            ready=lambda: self._serving,
            stop=self._stop_asked,
        )

    def _context(self, world: observe.World) -> Context:
        platform, name = self._platform, self.cluster

        def ready(group: int) -> bool:
            seen = observe.observe(world)
            return bool(seen.initialised.get(group)) and seen.primary(group) is not None

        def held(group: int) -> bool:
            states = observe.observe(world).of_group(group)
            return bool(states) and all(state.patroni and state.patroni.paused for state in states)

        def complete(group: int) -> bool:
            return observe.observe(world).is_complete_copy(group)

        def free_bytes(group: int) -> int | None:
            known = [
                free
                for view in platform.members(name).values()
                if view.member.group == group and (free := platform.free_bytes(view.member)) is not None
            ]
            return min(known) if known else None

        def archived() -> Collection[tuple[int, str]]:
            return make_method(platform, platform.declaration(name).cluster).systems()

        return Context(
            engine=world.engine,
            databases=world.databases,
            spec=lambda: platform.declaration(name).cluster.spec,
            segment_ready=ready,
            complete=complete,
            held=held,
            free_bytes=free_bytes,
            endpoints=lambda group: tuple(observe.addresses(platform, name).get(group, ())),
            archived=archived,
            now=datetime.now,
            stop=self._stop_asked,
        )

    def is_at_rest(self) -> bool:
        """Whether neither it nor what runs beside it is at work."""
        beside = (self._operation, self._recovery, *self._repairs.threads(), *self._in_place.threads())
        working = any(thread is not None and thread.is_alive() for thread in (self, *beside))
        return not working and (self._keeper is None or self._keeper.is_at_rest())

    def join_operation(self, timeout: float) -> None:
        """Wait for what runs beside the loop to reach a resumable place after ``stop`` was set."""
        beside = (*self._repairs.threads(), *self._in_place.threads())
        for thread in (self._operation, self._recovery, self._keeper, *beside):
            if thread is not None:
                thread.join(timeout)
        if self._keeper is not None:
            self._keeper.join_maker(timeout)
