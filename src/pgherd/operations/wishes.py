"""What people wish while an operation runs: to stop, to cancel, to have something else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import psycopg

from pgherd.errors import Cancelled, PgherdError

LOOK_EVERY = 0.3
"""seconds for which an answer is good"""


class EndingError(Cancelled):
    """The operation shall not go on.

    :param phase: how it ends: ``cancelled``, ``superseded``, or None: it doesn't end, somebody else will carry it on
    """

    def __init__(self, phase: str | None, reason: str) -> None:
        super().__init__(reason)
        self.phase = phase


class Wishes:
    """Asked all the time, from all threads; looks a few times a second.

    :param stop: this process shuts down
    :param look: tells whether the operation is to end, and why (phase, reason); may fail while the coordinator is
        away, which changes nothing
    """

    def __init__(self, stop: threading.Event, look: Callable[[], tuple[str, str] | None]) -> None:
        self._stop = stop
        self._look = look
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._ending: tuple[str, str] | None = None

    def check(self, *, look: bool = True) -> None:
        """See whether to go on.

        :param look: may ask the coordinator, which takes some milliseconds
        :raises EndingError: leave off at the next safe place
        """
        if self._stop.is_set():
            raise EndingError(None, "the supervisor is shutting down")
        with self._lock:
            if look and self._ending is None and time.monotonic() - self._looked > LOOK_EVERY:
                self._looked = time.monotonic()
                with contextlib.suppress(PgherdError, psycopg.Error):
                    self._ending = self._look()
            ending = self._ending
        if ending is not None:
            raise EndingError(*ending)

    def wait(self, seconds: float) -> None:
        """Sleep, but not past a wish.

        :raises EndingError: as :meth:`check`
        """
        deadline = time.monotonic() + seconds
        self.check()
        while (left := deadline - time.monotonic()) > 0:
            self._stop.wait(min(left, LOOK_EVERY))
            self.check()
