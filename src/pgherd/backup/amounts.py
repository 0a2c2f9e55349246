"""How much is copied, of groups that are copied side by side, and how fast that goes.

A copy may be carried on by one process after another. What those before did counts as done, but how fast it goes now
is measured from when this one began, so that neither their work nor the time in which nobody did any is taken for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from pgherd.backup.records import now, pace
from pgherd.model.topology import COORDINATOR

SINCE, BEFORE = "copyingSince", "copiedBefore"
"""when whoever copies now began, and how many bytes were copied by then"""
Amount = tuple[int, int]
"""bytes that are copied, and in all"""


class Amounts:
    """Of several groups what is copied of each. May be told by several threads.

    :param groups: all that there are to copy
    :param before: of these it was copied by somebody else
    """

    def __init__(self, groups: Iterable[int] = (), before: Mapping[int, Amount] | None = None) -> None:
        self._groups = {*groups, *(before or ())}
        self._known: dict[int, Amount] = dict(before or {})
        self._before = sum(done for done, _ in self._known.values())
        self._guard = threading.Lock()

    def expect(self, groups: Iterable[int]) -> None:
        """These are to be copied, too."""
        with self._guard:
            self._groups |= {*groups}

    def forget(self, group: int) -> None:
        """It is not to be copied any more."""
        with self._guard:
            self._groups.discard(group)
            self._known.pop(group, None)

    def report(self, group: int, done: int, total: int) -> None:
        """How far a group is."""
        with self._guard:
            self._groups.add(group)
            self._known[group] = (done, max(done, total))

    def finish(self, group: int, size: int) -> None:
        """All of a group is copied.

        :param size: what it is taken for if nothing was heard of it
        """
        _, total = self.of(group)
        self.report(group, total or size, total or size)

    def of(self, group: int) -> Amount:
        """How far a group is."""
        with self._guard:
            return self._known.get(group, (0, 0))

    def sums(self) -> Amount:
        """How far all of them are. Segments that have not begun are taken for as large as the others are on average:
        placement keeps them even."""
        with self._guard:
            done = sum(each for each, _ in self._known.values())
            total = sum(each for _, each in self._known.values())
            sizes = [size for group, (_, size) in self._known.items() if size and group != COORDINATOR]
            unknown = len(self._groups - self._known.keys() - {COORDINATOR})
        return done, total + (unknown * sum(sizes) // len(sizes) if sizes else 0)

    def told(self) -> dict[str, Any]:
        """The same, for the state of whatever copies."""
        done, total = self.sums()
        return {"bytesDone": done, "bytesTotal": total}

    def beginning(self) -> dict[str, Any]:
        """What that state says as copying begins."""
        return {SINCE: now(), BEFORE: self._before, **self.told()}


def pace_in(state: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Bytes per second, and the seconds that are left, as the state of whatever copies tells; None where nobody can
    tell (yet)."""
    done, total, before = (int(state.get(key) or 0) for key in ("bytesDone", "bytesTotal", BEFORE))
    return pace(state.get(SINCE), done - before, total - before)
