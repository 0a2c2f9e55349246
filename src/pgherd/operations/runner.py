"""Carrying out one operation, from wherever it stands, to its end.

The runner reads which steps are open, does the first, and reads again. It holds nothing that is not in the rows, so
it may be killed at any moment and started again, also by another process. What a step can't do now is tried
again after a pause; only a refusal that does not heal ends the operation as failed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from contextlib import closing

import psycopg

from pgherd.errors import BadInput, PgherdError, Unavailable, one_line
from pgherd.faults import crash_point
from pgherd.operations import store
from pgherd.operations.base import Context, Course, NotNowError, Work, as_steps
from pgherd.operations.expand import Expand
from pgherd.operations.journal import TAIL, Journal, Step
from pgherd.operations.moves import Mover
from pgherd.operations.rebalance import Rebalance
from pgherd.operations.shrink import Shrink
from pgherd.operations.wishes import EndingError, Wishes

__all__ = ["Context", "Runner", "crash_points"]

logger = logging.getLogger(__name__)

COURSES: Mapping[str, Course] = {course.kind: course for course in (Expand(), Shrink(), Rebalance())}

PAUSE_FIRST = 0.3
PAUSE_MOST = 5.0
"""seconds between two attempts of a step"""


def crash_points(kind: str) -> list[str]:
    """The names for ``PGHERD_CRASH_AT`` at which an operation of this kind can be killed."""
    return COURSES[kind].crash_points()


class Runner:
    """Carries operations on; one instance may run one after the other."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(self, operation: int) -> str:
        """Carry the operation on until it ends or this process is to stop; returns its phase.

        :raises BadInput: there is no such operation, or its kind is not known
        """
        pauses = _Pauses()
        while True:
            try:
                row = store.get(self._context.databases, operation)
                if row is None:
                    raise BadInput(f"there is no operation {operation}")
                if row.finished:
                    return row.phase
                return self._carry_on(row)
            except (Unavailable, psycopg.Error) as error:
                # Also where the rows themselves can't be reached: there is nobody to tell but the log.
                logger.info("operation %s waits: %s", operation, error)
                if self._context.stop.wait(pauses.next()):
                    return "waiting"

    def _carry_on(self, row: store.OperationRow) -> str:
        course = COURSES.get(row.kind)
        if course is None:
            raise BadInput(f"operations of kind {row.kind} are not known here")
        with closing(Journal(self._context.databases, row.id)) as journal:
            wishes = Wishes(self._context.stop, lambda: self._ending(course, row, journal))
            work = Work(self._context, row, journal, wishes, threading.Event())
            try:
                journal.begin(course.head(self._context, row), course.tail(self._context, row))
                self._do_steps(course, work)
            except EndingError as ending:
                return self._leave(work, ending)
            except Unavailable:
                raise
            except PgherdError as error:
                journal.end("failed", f"{course.kind} failed: {error}", str(error))
                return "failed"
            return self._end(course, work)

    def _ending(self, course: Course, row: store.OperationRow, journal: Journal) -> tuple[str, str] | None:
        """Whether the operation is to end, and how."""
        if journal.is_cancel_requested():
            return "cancelled", f"{course.kind} cancelled; what was moved stays where it is"
        if course.is_superseded(self._context, row):
            count = self._context.spec().segments.count
            return "superseded", f"{course.kind} left off: {count} segments are declared now"
        return None

    # steps

    def _do_steps(self, course: Course, work: Work) -> None:
        pauses = _Pauses()
        while steps := work.journal.open_steps():
            work.wishes.check()
            try:
                self._do(course, work, steps[0])
                pauses = _Pauses()
            except NotNowError as reason:
                work.journal.set_phase(reason.phase, str(reason))
                work.wishes.wait(pauses.next())
            except (Unavailable, psycopg.Error) as error:
                work.journal.set_phase("waiting", f"{one_line(error) or type(error).__name__}; trying again")
                work.wishes.wait(pauses.next())

    def _do(self, course: Course, work: Work, step: Step) -> None:
        if step.kind == "move":
            Mover(work).run()
            work.journal.set_phase("finishing")
            return
        work.journal.set_phase("finishing" if step.step >= TAIL else "preparing")
        work.journal.start(step, step.message)
        work.reached(step, "started")
        if step.kind in course.planners:
            planned = course.planners[step.kind](work, step)
            work.journal.finish_plan(step, planned.message, as_steps(planned.moves), planned.again)
        else:
            work.journal.finish(step, course.doers[step.kind](work, step))
        work.reached(step, "done")

    # ends

    def _end(self, course: Course, work: Work) -> str:
        moves, splits = (
            sum(step.state == "done" for step in work.journal.steps(kind)) for kind in ("move", "split")
        )
        work.journal.end("done", course.summary(work.row, moves, splits))
        crash_point(f"{course.kind}:operation:done")
        return "done"

    def _leave(self, work: Work, ending: EndingError) -> str:
        if ending.phase is None:
            return work.row.phase
        self._undo(work)
        work.journal.end(ending.phase, str(ending))
        if ending.phase == "superseded":
            self._even_out(work)
        return ending.phase

    def _even_out(self, work: Work) -> None:
        """The wish is back to the segments that are there: nobody will ask for an operation, but some shards moved."""
        moved = any(step.state == "done" for step in work.journal.steps("move"))
        if moved and len(work.engine.segments()) == self._context.spec().segments.count:
            with contextlib.suppress(BadInput):
                store.request(self._context.databases, "rebalance", parameters=work.row.parameters)

    def _undo(self, work: Work) -> None:
        """What moves of a killed predecessor left is removed before the operation counts as ended, if possible."""
        try:
            work.engine.steer(())
            work.engine.clean_up(work.row.id)
        except (PgherdError, psycopg.Error) as error:
            logger.info("operation %s: clean-up is left for later: %s", work.row.id, error)


class _Pauses:
    """Growing pauses between attempts."""

    def __init__(self) -> None:
        self._next = PAUSE_FIRST

    def next(self) -> float:
        now, self._next = self._next, min(PAUSE_MOST, self._next * 1.6)
        return now
