"""A bench is where one group's data are put together anew, and what is known there of those that were lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgherd.platform.machine import Machine, Machines


@dataclass(frozen=True)
class Ending:
    """How a member's server ended: written down after its end, forgotten before its next start."""

    primary: bool
    """it took writes until then; else it was a standby"""
    timeline: int
    checkpoint: int
    """where its last checkpoint is in the log (bytes): the last thing that a server writes that is shut down"""


@dataclass(frozen=True)
class LastWords:
    """What is known of how far a group's log went when nobody can be asked any more."""

    endings: Mapping[str, Ending | None]
    """by member; None: it was not shut down, or has been started since"""
    store_lsn: int | None
    """what its leader had written (bytes) when it last told Patroni's store, at most a second before it died"""
    data: Sequence[str]
    """what is left of data, by its path"""


class Bench(ABC):
    """Where one group's data are put together anew while the rest of its cluster goes on."""

    @abstractmethod
    def folder(self) -> Path:
        """A folder of this repair alone, on :meth:`machine`."""

    @property
    @abstractmethod
    def data(self) -> Path:
        """The data directory while it is made."""

    @abstractmethod
    def machine(self) -> Machine:
        """Where that is.

        :raises Unavailable: it can't be used yet
        :raises Lost: nor will it ever be
        """

    def machines(self) -> Machines | None:
        """The same for whoever copies; None: this machine."""
        return None

    def heed(self, stopping: Callable[[], bool]) -> None:
        """Wait for nothing any more once this says so."""
        return

    def rest(self) -> None:
        """Nobody works here for now; what was made stays.

        :raises Unavailable: what was needed only for the work is still going
        """
        return

    def renew(self, state: Mapping[str, Any]) -> None:
        """Write down that what was made is lost with its place, and take another one; durably, and both or neither.

        :param state: how far the work in that one is
        """
        self.write("state", state)

    @abstractmethod
    def drop(self) -> None:
        """Remove what was made and is in nobody's place; no-op if there is nothing."""

    @property
    def asked(self) -> str | None:
        """Which repair was asked for last, where that is known beside what was begun."""
        return None

    @property
    def refused(self) -> str:
        """Why that one is not made; empty: it is, or none is asked for."""
        return ""

    @property
    def unwanted(self) -> bool:
        """Whether what is under way is to end: nobody wants it any more, or something else."""
        return False

    @abstractmethod
    def last_words(self) -> LastWords:
        """What is known of how far the group's log went; asked before :meth:`set_aside`.

        :raises Unavailable: Patroni's store does not answer
        """

    @abstractmethod
    def is_quiet(self) -> bool:
        """Whether no member of the group runs."""

    @property
    def lingering(self) -> str:
        """Which one still does, and why, where that is known."""
        return ""

    @abstractmethod
    def set_aside(self) -> None:
        """Take what is left of all members' data out of their places; no-op if that was done before."""

    @abstractmethod
    def put_back(self) -> None:
        """Undo :meth:`set_aside`, unless :meth:`place` was done; no-op if nothing is aside."""

    @abstractmethod
    def place(self, prepare: Callable[[Machine, Path], None]) -> None:
        """Make the finished data directory that of the group's first member; no-op if that was done before.

        :param prepare: called before, with where it is
        """

    @property
    @abstractmethod
    def in_force(self) -> bool:
        """Whether :meth:`place` was done, whatever was written down since: nothing is taken back any more."""

    @abstractmethod
    def end_processes(self) -> None:
        """End every PostgreSQL process that works on the unfinished data directory."""

    @abstractmethod
    def read(self, what: str) -> dict[str, Any] | None:
        """What was written last of this."""

    @abstractmethod
    def write(self, what: str, value: Mapping[str, Any]) -> None:
        """Write it down, durably; no-op once the cluster is gone."""

    @property
    @abstractmethod
    def kept(self) -> str | None:
        """What was set aside, while it is there."""

    @abstractmethod
    def clear(self) -> None:
        """Remove everything of this repair, what was set aside too."""
