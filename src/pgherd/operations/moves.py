"""Carrying out the moves of an operation: several at a time, each tried until it succeeds.

Moves that share no segment go together first: two that do would slow each other down. Which moves may begin is asked
again before each one (paused? in the window? how many at a time?); a move that has begun is brought to its end,
or undone when the operation is to end.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime

import psycopg

from pgherd.engine.base import ShardGroupId
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable
from pgherd.model.spec import ExpansionSpec
from pgherd.model.topology import group_name
from pgherd.operations.base import NotNowError, Work
from pgherd.operations.journal import Step
from pgherd.operations.steps import require_free

logger = logging.getLogger(__name__)

MAX_PARALLEL = 16
RETRY_FIRST = 0.5
RETRY_MOST = 15.0
"""seconds between two attempts of one move"""

HOPELESS_AFTER = 5
"""attempts that fail although every server answered, until the operation is given up"""

CLEAN_UP_EVERY = 2.0
"""seconds between two rounds of removing old copies while moves go on"""


def why_not_now(expansion: ExpansionSpec, now: datetime) -> str | None:
    """Why no move may begin now, and when it goes on; None if one may."""
    if expansion.paused:
        return "paused: goes on with 'pgherd resume'"
    window = expansion.window
    if window is not None and not window.is_open(now.time()):
        return f"outside the window {window.start}-{window.end}: goes on at {window.start}"
    return None


def next_move(
    waiting: Sequence[Step],
    running: Sequence[Step],
    alone: Callable[[ShardGroupId], object] = lambda group: group,
) -> Step | None:
    """The first move that shares no segment with a running one, else the first; None if none may begin.

    :param alone: of shard groups for which this gives the same, only one moves at a time
    """
    busy = {segment for step in running for segment in _segments(step)}
    taken = {alone(_group(step)) for step in running}
    free = [step for step in waiting if alone(_group(step)) not in taken]
    return next((step for step in free if not busy & _segments(step)), free[0] if free else None)


def _group(step: Step) -> ShardGroupId:
    return ShardGroupId(int(step.detail["colocation"]), int(step.detail["index"]))


def _segments(step: Step) -> set[int]:
    return {int(step.detail["source"]), int(step.detail["target"])}


@dataclass
class _Attempts:
    """How often a move was tried, and when it may be tried again."""

    lost: int = 0
    hopeless: int = 0
    not_before: float = 0.0

    def again_in(self) -> float:
        doublings = min(10, self.lost + self.hopeless - 1)
        seconds: float = min(RETRY_MOST, RETRY_FIRST * 2.0**doublings) * random.uniform(0.8, 1.2)
        self.not_before = time.monotonic() + seconds
        return seconds


class Mover:
    """Carries out all open moves of an operation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._attempts: dict[int, _Attempts] = {}
        self._alone: Callable[[ShardGroupId], object] = lambda group: group
        self._cleaned = time.monotonic()

    def run(self) -> None:
        """Returns when no move is open any more.

        :raises EndingError: the operation is to end; what was running is undone
        :raises PgherdError: a move can't succeed
        """
        self._alone = self._work.engine.alone()
        with ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="move") as pool:
            running: dict[Future[None], Step] = {}
            try:
                while self._round(pool, running):
                    pass
            except BaseException:
                self._await_the_end(running)
                raise

    def _round(self, pool: ThreadPoolExecutor, running: dict[Future[None], Step]) -> bool:
        self._work.wishes.check()
        taken = {step.step for step in running.values()}
        waiting = [s for s in self._work.journal.open_steps() if s.kind == "move" and s.step not in taken]
        if not waiting and not running:
            return False
        self._begin(pool, running, waiting)
        done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        for future in done:
            step = running.pop(future)
            self._judge(step, future)
        if not running:
            self._work.wishes.wait(0.02 if done else 0.1)
        self._clean_up()
        return True

    def _begin(
        self, pool: ThreadPoolExecutor, running: dict[Future[None], Step], waiting: list[Step]
    ) -> None:
        expansion = self._work.context.spec().expansion
        reason = why_not_now(expansion, self._work.context.now())
        if reason is not None:
            if not running:
                self._work.journal.set_phase("paused", reason)
            return
        now = time.monotonic()
        ready = [step for step in waiting if self._of(step).not_before <= now]
        while len(running) < min(expansion.parallel_moves, MAX_PARALLEL):
            step = next_move(ready, list(running.values()), self._alone)
            if step is None:
                break
            ready.remove(step)
            if self._may_begin(step):
                self._work.journal.set_phase("moving")
                running[pool.submit(self._move, step, expansion.mode == "blocking")] = step

    def _may_begin(self, step: Step) -> bool:
        try:
            require_free(self._work, int(step.detail["target"]), step.bytes_total)
        except NotNowError as reason:
            self._of(step).not_before = time.monotonic() + 2
            self._work.journal.set_phase(reason.phase, str(reason))
            return False
        return True

    def _of(self, step: Step) -> _Attempts:
        return self._attempts.setdefault(step.step, _Attempts())

    # one move

    def _move(self, step: Step, blocking: bool) -> None:
        work = self._work
        group = _group(step)
        source, target = int(step.detail["source"]), int(step.detail["target"])
        route = f"shard group {group} from {group_name(source)} to {group_name(target)}"
        began = time.monotonic()
        work.journal.start(step, f"moving {route}")
        work.reached(step, "started")
        work.engine.move(work.row.id, group, target, Control(work, step), blocking=blocking)
        work.journal.finish(step, f"moved {route} in {time.monotonic() - began:.1f} s")
        work.reached(step, "done")

    def _judge(self, step: Step, future: Future[None]) -> None:
        """What the end of an attempt means."""
        error = future.exception()
        if error is None:
            return
        logger.info("%s: %s", step.detail, error)
        attempts = self._of(step)
        if isinstance(error, Cancelled):
            self._work.wishes.check()
            attempts.lost += 1
        elif isinstance(error, BadInput) and self._is_gone(step):
            self._work.journal.finish(step, "its tables were dropped meanwhile", "skipped")
            return
        elif isinstance(error, (Unavailable, psycopg.OperationalError)):
            attempts.lost += 1
        elif isinstance(error, PgherdError):
            attempts.hopeless += 1
            if attempts.hopeless >= HOPELESS_AFTER:
                self._work.journal.finish(step, str(error), "failed")
                raise error
        else:
            raise error
        seconds = attempts.again_in()
        message = f"{error}; attempt {attempts.lost + attempts.hopeless + 1} in {seconds:.0f} s"
        self._work.journal.postpone(step, message)
        self._work.journal.set_phase("waiting" if self._attempts_all_wait() else "moving", message)

    def _attempts_all_wait(self) -> bool:
        return all(attempts.not_before > time.monotonic() for attempts in self._attempts.values())

    def _is_gone(self, step: Step) -> bool:
        group = _group(step)
        return all(each.id != group for each in self._work.engine.shard_groups())

    def _await_the_end(self, running: dict[Future[None], Step]) -> None:
        """Running moves hear the wish themselves and undo what they have made."""
        self._work.abort.set()
        wait(running)
        self._work.abort.clear()

    def _clean_up(self) -> None:
        """So that the disks of the sources get their space back while the operation runs."""
        if time.monotonic() - self._cleaned < CLEAN_UP_EVERY:
            return
        try:
            self._work.engine.clean_up(self._work.row.id)
        except (PgherdError, psycopg.Error) as error:
            logger.info("clean-up: %s", error)
        self._cleaned = time.monotonic()


class Control:
    """One move's line to its operation."""

    def __init__(self, work: Work, step: Step) -> None:
        self._work = work
        self._step = step
        self._told = 0.0

    def report(self, message: str, bytes_done: int | None = None) -> None:
        """See :class:`~pgherd.engine.base.MoveControl`."""
        if time.monotonic() - self._told >= 0.2:
            self._told = time.monotonic()
            self._work.journal.progress(self._step, message, bytes_done)
            self._work.journal.tell(message)

    def checkpoint(self, name: str) -> None:
        """See :class:`~pgherd.engine.base.MoveControl`."""
        self._work.reached(self._step, name)
        if self._work.abort.is_set():
            raise Cancelled("the operation ends, so this move is called off")
        self._work.wishes.check(look=name != "attached")  # writers wait at that moment
