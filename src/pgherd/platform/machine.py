"""Where a member's data are, and where programs work on them: this machine, or a pod.

Who makes a backup or puts a data directory together says what is run on which files, and asks no further.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pgherd.model.spec import VolumeSpec
from pgherd.model.topology import Endpoint

PATIENCE_SECONDS = 120.0
"""for a command that only looks"""
LAST_BYTES = 1 << 20
"""of what a program said are told when it has ended"""

VOLUMES = Path("/repository")
"""where pods have repositories that are on volumes, each under its claim's name"""


class Process(ABC):
    """A program that was started and goes on."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether it has not ended yet.

        :raises Unavailable: nobody can tell any more
        """

    @abstractmethod
    def said(self) -> str:
        """What it said since it was started."""

    @abstractmethod
    def stop(self, seconds: float) -> None:
        """End it (a server: with a last checkpoint), after so many seconds by force; no-op if it has ended."""


class Entrance(ABC):
    """The only way into a server that nobody but this process reaches.

    :ivar settings: PostgreSQL parameters that make it so
    :ivar access: the one line of its ``pg_hba.conf``
    :ivar endpoint: where this process reaches it
    """

    settings: Mapping[str, str]
    access: str
    endpoint: Endpoint

    @abstractmethod
    def close(self) -> None:
        """Nobody comes in any more."""


class Machine(ABC):
    """Paths are its own; commands are programs with their arguments."""

    @property
    @abstractmethod
    def major(self) -> int:
        """PostgreSQL's major version there."""

    @abstractmethod
    def program(self, name: str) -> str:
        """One of PostgreSQL's programs."""

    @abstractmethod
    def output(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = PATIENCE_SECONDS,
    ) -> bytes:
        """What a program prints.

        :raises Unavailable: nobody can tell what became of it
        :raises PgherdError: it failed; with what it said
        """

    @abstractmethod
    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Run a program that takes its time to its end. It does not outlive this process for long.

        :param watch: told again and again what it said last, and when it has ended its last :data:`LAST_BYTES`
        :raises Cancelled: ``stopping`` said so; the program has ended
        :raises Unavailable: nobody can tell what became of it
        :raises PgherdError: it failed; with its own words
        """

    @abstractmethod
    def start(self, command: Sequence[str], log: Path) -> Process:
        """Start a program that goes on; it does not outlive this process for long.

        :param log: gets what it says, where there is a place for that
        """

    @abstractmethod
    def entrance(self, folder: Path) -> Entrance:
        """A new way into a server that is started next.

        :param folder: where notes about it may be kept
        """

    @abstractmethod
    def end_strays(self, argument: str) -> None:
        """End programs with this argument that a process which was killed has left."""

    @abstractmethod
    def write(self, path: Path, text: str) -> None:
        """Make or replace a file that only its owner may read."""

    @abstractmethod
    def names(self, folder: Path, ending: str) -> Sequence[str]:
        """The names of the files in a folder that end so; none if it is not there."""

    @abstractmethod
    def make_folder(self, path: Path) -> None:
        """Make a folder that only its owner may enter, and those above it."""

    @abstractmethod
    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with everything in it; no-op if it is not there."""


class Machines(ABC):
    """Where a cluster's members run, or are put together, if that is not this machine.

    :ivar folder: where what :meth:`equip` brings is found there
    :ivar processes: how many programs may copy side by side
    """

    folder: Path
    processes: int

    @abstractmethod
    def at(self, host: str) -> Machine:
        """That of the member that is reached under this name.

        :raises Unavailable: it does not run
        """

    @abstractmethod
    def of(self, group: int | None) -> Machine:
        """One of a group's; None: one of the cluster's.

        :raises Unavailable: none of them runs
        """

    @abstractmethod
    def end_strays(self, group: int, argument: str) -> None:
        """End programs with this argument on all of a group's, as far as they can be reached."""

    @abstractmethod
    def equip(self, files: Mapping[str, str]) -> None:
        """See to it that these files, which only members may read, are found in :attr:`folder`, soon."""

    @abstractmethod
    def holder(self, volume: VolumeSpec) -> Machine:
        """One that has a volume, whether any member runs or not: for what is remembered in a repository there.

        :raises Withheld: the volume is not to be had, and why
        """
