"""What was learnt lately, by name: forgotten when nobody has learnt it anew for some time, so that nothing piles up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by name; safe to share between threads.

    :param seconds: for so long a value is kept at least, and twice as long at most
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._new: dict[str, tuple[float, T]] = {}
        self._old: dict[str, tuple[float, T]] = {}
        self._turned = clock()
        self._guard = threading.Lock()

    def get(self, name: str) -> tuple[float, T] | None:
        """How many seconds ago it was learnt, and what; None if not lately."""
        with self._guard:
            self._turn()
            found = self._new.get(name) or self._old.get(name)
            return (self._clock() - found[0], found[1]) if found else None

    def put(self, name: str, value: T) -> None:
        """It was learnt now."""
        with self._guard:
            self._turn()
            self._new[name] = (self._clock(), value)

    def forget(self, name: str) -> None:
        """It is no longer of interest."""
        with self._guard:
            self._new.pop(name, None)
            self._old.pop(name, None)

    def __len__(self) -> int:
        return len({*self._new, *self._old})

    def _turn(self) -> None:
        passed = self._clock() - self._turned
        if passed > self._seconds:
            self._old = self._new if passed <= 2 * self._seconds else {}
            self._new, self._turned = {}, self._clock()
