"""A place where a group is rebuilt, in memory: for tests of what a repair decides."""

from __future__ import annotations

from typing import Any

from pgherd.backup import repair


class Bench:
    """It notes what is done there.

    :ivar busy: for how many looks a member of the group has not ended
    """

    def __init__(self, *, accept: bool = True) -> None:
        self.known: dict[str, Any] = {"wish": repair.new_wish("1", accept=accept)}
        self.did: list[str] = []
        self.busy = 0
        self.in_force = False
        self.kept = None
        self.lingering = self.refused = ""
        self.asked = None

    def heed(self, stopping: object) -> None:
        return

    def read(self, what: str) -> Any:
        return self.known.get(what)

    def write(self, what: str, value: Any) -> None:
        self.known[what] = dict(value)

    def is_quiet(self) -> bool:
        self.busy -= 1
        return self.busy < 0

    def place(self, prepare: object) -> None:
        self.did.append("place")
        self.in_force = True

    def __getattr__(self, name: str) -> Any:
        return lambda: self.did.append(name)

    @property
    def state(self) -> dict[str, Any]:
        """How far it is."""
        return dict(self.known.get("state") or {})
