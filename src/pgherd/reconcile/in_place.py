"""What comes before a restore in place where members run until it begins: somebody looks whether its point is there.

Members end when it is begun, so what makes no sense must be found before. The look is made beside the loop, for the
repository may be silent for minutes; what it finds is written down. A repository that can't be asked is asked again,
and members go on meanwhile. Where nobody can look without having begun (``looking``), and where nobody runs and there
is nothing to lose by beginning, it begins as it is, and is taken back if there is no such point.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pgherd.backup import restoring
from pgherd.backup.looking import Unseen
from pgherd.errors import BadInput, PgherdError, Withheld, one_line
from pgherd.faults import crash_point
from pgherd.model.spec import PostgresCluster
from pgherd.platform.base import Platform
from pgherd.reconcile.state import Observed

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
"""pause before a repository that could not be asked is asked again"""
LOOKING = "its point is looked for"


class InPlace:
    """The looks of one cluster.

    :param stop: set when this process is to end
    """

    def __init__(self, platform: Platform, name: str, stop: threading.Event) -> None:
        self._platform = platform
        self._name = name
        self._stop = stop
        self._pending: Mapping[str, Any] | None = None
        self._looking: threading.Thread | None = None
        self._waits = ""
        self._again = 0.0

    def threads(self) -> list[threading.Thread]:
        """Those that may run."""
        return [self._looking] if self._looking is not None else []

    def complaints(self) -> list[str]:
        """What keeps somebody from finding out."""
        return [f"the restore in place is not begun: {self._waits}"] if self._waits else []

    def told(self, seen: Observed) -> Observed:
        """The same look, with what is waited for: whoever asked must not take the cluster for the restored one."""
        restore = seen.restore or {}
        if seen.recovery is not None or restore.get("phase") != restoring.PENDING:
            return seen
        waits = f"{self._name} is stopped" if seen.declaration.stopped else self._waits or LOOKING
        operation = seen.operation_status or restoring.operation_status({"message": waits})
        return replace(seen, restore={**restore, "waits": waits}, operation_status=operation)

    def see_to(self) -> None:
        """Begin what nobody loses anything by, and look for the point of the rest. Returns at once."""
        pending = restoring.pending(self._platform, self._name)
        if pending != self._pending:
            # One that looks for another wish may still be waiting for its store; what it finds is not counted.
            self._pending, self._looking, self._waits, self._again = pending, None, "", 0.0
        if pending is None:
            return
        declaration = self._platform.declaration(self._name)
        if declaration.is_winding_down:
            return
        if not any(view.running for view in self._platform.members(self._name).values()):
            self._decide(pending, "")
        elif not self._is_looking() and time.monotonic() >= self._again:
            self._begin_to_look(pending)

    def _is_looking(self) -> bool:
        return self._looking is not None and self._looking.is_alive()

    def _begin_to_look(self, pending: Mapping[str, Any]) -> None:
        name = f"look-{self._name}"
        self._looking = threading.Thread(target=self._look, args=(pending,), name=name, daemon=True)
        self._looking.start()

    def _look(self, pending: Mapping[str, Any]) -> None:
        try:
            cluster = self._platform.declaration(self._name).cluster
            problem = self._problem(pending, cluster)
        except PgherdError as error:
            self._wait_for(pending, one_line(error))
        except Exception as error:  # whatever it was, somebody has to be told
            logger.exception("%s: the point of its restore in place can't be looked for", self._name)
            self._wait_for(pending, f"the look for its point met what nobody expected: {error!r}")
        else:
            crash_point("in-place:looked")
            if not self._stop.is_set():
                self._decide(pending, problem)

    def _problem(self, pending: Mapping[str, Any], cluster: PostgresCluster) -> str:
        """What is wrong with what is asked for; empty: nothing."""
        try:
            restoring.look(self._platform, cluster, pending)
        except Withheld:  # a bad input of another kind: nobody knows whether this wish makes sense
            raise
        except BadInput as error:
            return "; ".join(error.problems)
        except Unseen as error:
            logger.info(
                "%s: the point of its restore in place is not looked for before: %s", self._name, error
            )
        return ""

    def _decide(self, pending: Mapping[str, Any], problem: str) -> None:
        if pending == self._pending:
            self._waits = ""
        try:
            if self._platform.workshop(self._name).decide(pending, problem):
                logger.info("%s: its restore in place %s", self._name, problem or "begins")
        except PgherdError as error:
            self._wait_for(pending, one_line(error))
        crash_point("in-place:decided")

    def _wait_for(self, pending: Mapping[str, Any], why: str) -> None:
        if pending != self._pending:
            return
        if why != self._waits:
            logger.info("%s: its restore in place waits: %s", self._name, why)
        self._waits, self._again = why, time.monotonic() + AGAIN_SECONDS
