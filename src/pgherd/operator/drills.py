"""The drills of one cluster: wanted by a schedule or by somebody's annotation, made in a thread, one at a time.

How far one is (``platform.kubernetes.drills.State``) is written down before anything is made, and each step after it
was done; all steps can be done again. An operator that is killed anywhere is followed by one that goes on: there never
is more than one scratch, for it has one name, and it goes before the drill is said to have ended. What was found is
remembered with the backups before the scratch goes, once, by the drill's id.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from pgherd.backup import finding, records
from pgherd.backup import schedule as rules
from pgherd.backup.base import BackupMethod
from pgherd.errors import BadInput, Cancelled, NoSuchCluster, PgherdError, Unavailable, one_line
from pgherd.faults import crash_point
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec_quantity import parse_duration
from pgherd.operator.scratch import Scratch
from pgherd.platform.kubernetes import drills
from pgherd.platform.kubernetes.drills import BEGUN, ENDED, ENDING, Ask, State
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.reconcile.drills import LATE_SECONDS, Course, Drill, Wish, verdict

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 60.0
"""until a schedule's drill that could not be made is tried again"""
TRIES = 6
"""of a drill that reaches nobody"""
TRY_SECONDS = 10.0
"""between two of them"""
TELL_SECONDS = 2.0
"""between two amounts that are told"""


class Drills:
    """See the module. Looked at by one thread.

    :param stop: set when somebody else is to look after the cluster
    """

    def __init__(self, platform: KubernetesPlatform, name: str, stop: threading.Event) -> None:
        self._platform, self._name, self._stop = platform, name, stop
        self._thread: threading.Thread | None = None
        self._remembered: Sequence[dict[str, Any]] | None = None
        self._not_before: dict[str, datetime] = {}
        self._trouble: dict[str, str] = {}
        self._failed: set[str] = set()
        self._overdue: set[datetime] = set()

    def look(self, backups: bool) -> None:
        """Go on with a drill, or begin the one that somebody asked for.

        :param backups: whether any are declared: without them a drill only comes to its end
        """
        if self.is_at_work():
            self._end_if_late()
            return
        state, resource = self._platform.drill(self._name), self._platform.resource_of(self._name)
        if state is not None and state.is_open:
            self._begin(state if backups else _given_up(state, f"{self._name} has no backups any more"))
        elif (ask := drills.asked(resource)) is not None and backups:
            if state is not None and state.ask.id == ask.id:
                self._platform.withdraw_drill(self._name)
            else:
                self._begin(State(ask, BEGUN, records.now()))
        elif drills.is_asked(resource):
            self._platform.withdraw_drill(self._name)

    def see_to(
        self, method: BackupMethod, schedule: PostgresBackupSchedule, standing: rules.Standing, now: datetime
    ) -> str | None:
        """Begin a drill if one is due; returns what keeps it from beginning, "" for nothing, None: as before."""
        name, declared = schedule.metadata.name, schedule.spec.drill
        if declared is None or schedule.spec.suspend:
            return ""
        at = rules.drill_due(standing, schedule, rules.last_end(self.remembered(method)))
        overdue = rules.is_overdue(schedule, at, now)
        if overdue and at is not None and at not in self._overdue:
            self._overdue.add(at)
            self._platform.announce(self._name, f"a drill was due at {at:%Y-%m-%d %H:%M} UTC", failed=True)
        if self.is_going_on():
            return None
        if at is None or now < at:
            return ""
        if name in self._failed:
            self._failed.discard(name)
            self._rest(name, now)
        if now < self._not_before.get(name, now):
            return self._trouble.get(name)
        if not finding.restorable(method):
            self._rest(name, now)
            return "a drill is overdue: there is no restore point to restore" if overdue else ""
        limit = float(parse_duration(declared.timeout))
        ask = Ask(new_id(), declared.keep, tuple(declared.tables), limit, schedule=name)
        self._begin(State(ask, BEGUN, records.now()))
        return None

    def _rest(self, schedule: str, now: datetime) -> None:
        self._not_before[schedule] = now + timedelta(seconds=AGAIN_SECONDS)

    def remembered(self, method: BackupMethod) -> Sequence[dict[str, Any]]:
        """The last drills, oldest first. Nobody but this operator adds to them.

        :raises PgherdError: the repository does not answer
        """
        known = self._remembered
        if known is None:
            known = self._remembered = method.repository.known_drills()
        return known

    def is_going_on(self) -> bool:
        """Whether a drill has begun and not ended."""
        state = self._platform.drill(self._name)
        return self.is_at_work() or (state is not None and state.is_open)

    def join(self, seconds: float) -> None:
        """Wait for the thread's end, once :attr:`stop` is set."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _end_if_late(self) -> None:
        """What a drill may wait for without ever looking at the clock is its scratch: without that it ends."""
        state = self._platform.drill(self._name)
        if state is None or state.phase != BEGUN or state.restore_point is None or not _is_late(state):
            return
        logger.warning("%s: its drill takes too long and does not end: its scratch is removed", self._name)
        scratch = Scratch(
            self._platform,
            self._name,
            state.ask.id,
            wait=self._stop.wait,
            stopping=self._stop.is_set,
            write=lambda course: None,
        )
        with suppress(BadInput):  # what has its name is not ours
            scratch.remove()

    def is_at_work(self) -> bool:
        """Whether this process makes one."""
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, state: State) -> None:
        """From here on: the first step is to write down that it has begun."""
        run = _Run(self._platform, self._name, state, self._stop, self._ended)
        self._thread = threading.Thread(target=run.run, name=f"drill-{self._name}", daemon=True)
        self._thread.start()

    def _ended(self, state: State) -> None:
        self._remembered = None
        self._trouble.pop(state.ask.schedule, None)
        if state.ask.schedule and state.result is None:
            self._trouble[state.ask.schedule] = _told(state)
            self._failed.add(state.ask.schedule)


class _Run:
    """One drill, or what is left of it, in a thread.

    :param state: how far it is
    :param ended: told how it ended
    """

    def __init__(
        self,
        platform: KubernetesPlatform,
        name: str,
        state: State,
        stop: threading.Event,
        ended: Callable[[State], None],
    ) -> None:
        self._platform, self._name, self._state = platform, name, state
        self._stop, self._ended = stop, ended
        self._shown = 0.0

    def run(self) -> None:
        """To the end, or until somebody else has to go on."""
        try:
            self._write(self._state)
            crash_point("drill:begun")
            self._go()
        except Cancelled as error:
            logger.info("%s: %s", self._name, error)
        except NoSuchCluster:
            return  # its scratch goes with it
        except PgherdError as error:  # such as an API server that does not answer
            self._rest(one_line(error))
        except Exception as error:  # nobody would be told of it
            logger.exception("%s: its drill met what nobody expected", self._name)
            self._rest(one_line(error) or type(error).__name__)

    def _rest(self, why: str) -> None:
        """Nothing that matters could be written down: the next look goes on, and not at once."""
        logger.warning("%s: its drill pauses: %s", self._name, why)
        self._platform.announce(self._name, f"its drill pauses: {why}", failed=True)
        self._stop.wait(TRY_SECONDS)

    def _go(self) -> None:
        if self._state.phase == BEGUN:
            self._write(self._found())
        if self._state.phase == ENDING:
            self._announce()
            self._remove()
            crash_point("drill:removed")
            self._write(replace(self._state, phase=ENDED, status=None))
        self._ended(self._state)

    def _found(self) -> State:
        """The state in which it is known what was found, or why nothing was."""
        try:
            result = self._result()
        except (Cancelled, NoSuchCluster):
            raise
        except BadInput as error:
            return _given_up(self._state, one_line(error), refused=True)
        except Exception as error:  # whatever it was, the next one would meet it, too
            if not isinstance(error, PgherdError):
                logger.exception("%s: its drill met what nobody expected", self._name)
            return _given_up(self._state, one_line(error) or type(error).__name__)
        return replace(self._state, phase=ENDING, result=result)

    def _result(self) -> dict[str, Any]:
        for _ in range(TRIES - 1):
            try:
                return self._made()
            except Unavailable as error:
                logger.info("%s: its drill is tried again: %s", self._name, one_line(error))
                self._scratch().pause(TRY_SECONDS)
        return self._made()

    def _made(self) -> dict[str, Any]:
        state, scratch = self._state, self._scratch()
        repository = scratch.method().repository
        repository.require_own()
        if known := next(
            (each for each in repository.known_drills() if each.get("id") == state.ask.id), None
        ):
            return known
        course = Course(state.ask.id, state.started_at, state.point, state.restore_point, state.time)
        limit = float("inf") if state.ask.timeout is None else state.ask.timeout
        wish = Wish(state.ask.keep, state.ask.tables, limit, self._tell, self._show)
        result = Drill(scratch, wish, course).run()
        repository.remember_drill(result)
        crash_point("drill:remembered")
        return result

    def _remove(self) -> None:
        if self._state.ask.keep and self._state.result is not None:
            return
        if self._state.restore_point is not None:
            self._tell("removing it")
        try:
            self._scratch().clear()
        except BadInput as error:  # what has its name is not ours, so there is nothing of ours
            logger.info("%s: %s", self._name, one_line(error))

    def _announce(self) -> None:
        failed = self._state.result is None or not self._state.result["passed"]
        logger.info("%s: %s", self._name, _told(self._state))
        # Somebody who asked for what can't be is told at once, and alone.
        if not (self._state.refused and not self._state.ask.schedule):
            self._platform.announce(self._name, _told(self._state), failed=failed)

    # what is written down

    def _scratch(self) -> Scratch:
        return Scratch(
            self._platform,
            self._name,
            self._state.ask.id,
            wait=self._stop.wait,
            stopping=self._is_to_stop,
            write=self._note,
        )

    def _is_to_stop(self) -> bool:
        if self._stop.is_set():
            return True
        try:
            return self._platform.deletion(self._name) is not None
        except NoSuchCluster:
            return True

    def _write(self, state: State) -> None:
        if self._is_to_stop():
            raise Cancelled(f"the drill of {self._name} pauses")
        self._platform.write_drill(self._name, state)
        self._state = state

    def _note(self, course: Course) -> None:
        self._write(
            replace(self._state, point=course.point, restore_point=course.restore_point, time=course.time)
        )

    def _tell(self, text: str) -> None:
        logger.info("%s: drill: %s", self._name, text)
        self._try_to_write(self._state.saying(text))

    def _show(self, status: dict[str, Any]) -> None:
        if time.monotonic() - self._shown > TELL_SECONDS:
            self._shown = time.monotonic()
            self._try_to_write(replace(self._state, status=status))
        elif self._stop.is_set():
            raise Cancelled(f"the drill of {self._name} pauses")

    def _try_to_write(self, state: State) -> None:
        """What is only shown: nothing depends on it."""
        try:
            self._write(state)
        except (Cancelled, NoSuchCluster):
            raise
        except PgherdError as error:
            logger.info("%s: %s", self._name, one_line(error))


def new_id() -> str:
    """A name that no other drill has."""
    return secrets.token_hex(6)


def _is_late(state: State) -> bool:
    """Whether it takes longer than it may, though it should have ended itself."""
    limit = state.ask.timeout
    return limit is not None and records.seconds_since(state.started_at) > limit + LATE_SECONDS


def _given_up(state: State, error: str, *, refused: bool = False) -> State:
    return replace(state, phase=ENDING, error=error, refused=refused)


def _told(state: State) -> str:
    """How it ended."""
    if state.result is None:
        return f"a drill could not be made: {state.error}"
    return verdict(state.result)
