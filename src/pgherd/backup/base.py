"""What makes and restores the backups of single groups: a method, or none.

The core never asks whether there are backups; where none are declared, :class:`NoBackups` answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgherd.backup.catalogue import Catalogue
from pgherd.backup.records import BackupType, GroupBackup, GroupPoint
from pgherd.backup.wal import History
from pgherd.errors import BadInput
from pgherd.model.topology import REPLICATION_USER
from pgherd.postgres.connections import Databases

REMEMBERED = ("", "points", "pins", "prints", "backups", "backups/[!.]*")
"""the folders of a repository in which what is remembered is written (``catalogue``), as patterns"""

Report = Callable[[int, int], None]
"""told again and again: bytes done, bytes in all (0: not known)"""


@dataclass(frozen=True)
class Verified:
    """What became of the look at one group's base copies, where they are kept."""

    problems: Sequence[str] = ()
    """what is damaged, each with its file"""
    why: str = ""
    """why they were not verified; empty: they were"""


class BackupMethod(ABC):
    """One way to keep a cluster's backups. Stateless: what there is, is in the repository."""

    name: str
    verifier: str = ""
    """what verifies every file of a base copy, before it is restored or by :meth:`verify`"""
    user: str = REPLICATION_USER
    """as whom it connects to a group that it backs up"""

    def parameters(self, group: int) -> Mapping[str, str]:
        """PostgreSQL parameters that the members of a group need."""
        return {}

    @property
    @abstractmethod
    def repository(self) -> Catalogue:
        """Where points and backups are remembered.

        :raises BadInput: there is none
        """

    @property
    @abstractmethod
    def location(self) -> str:
        """What to call the repository; never asks it."""

    def fingerprint(self) -> str:
        """Something that differs whenever what is declared of the repository, or its keys, changed."""
        return self.location

    def differs_in_keys_only(self, other: BackupMethod) -> bool:
        """Whether the same is declared of both, and only what the keys are has changed in between."""
        return False

    def check(self) -> None:
        """Whether this method can be used here.

        :raises BadInput: it can't, and why
        """
        return

    def is_own(self) -> bool:
        """Whether the repository was found to be this cluster's; never asks it.

        :raises PgherdError: nobody can tell
        """
        return True

    def equip(self) -> None:
        """See to it that members have what they need for archiving, before they are asked to.

        :raises PgherdError: keys are missing, or what is declared can't be
        """
        return

    def unequip(self) -> None:
        """See to it that members archive nothing any more: the repository is another cluster's."""
        return

    def admit(self, systems: Mapping[int, str], databases: Databases) -> None:
        """See to it that these groups' logs and copies are taken.

        :param systems: each group's database system
        :raises PgherdError: they can't be
        """
        return

    @abstractmethod
    def back_up(
        self,
        backup: str,
        group: int,
        kind: BackupType,
        parent: str | None,
        connection: Mapping[str, str],
        report: Report,
        stopping: Callable[[], bool],
    ) -> GroupBackup:
        """Make the base copy of one group for a backup whose record is written. What an earlier try left is removed.

        :param parent: the backup that this one builds on; None: make a whole copy
        :param connection: libpq parameters of :attr:`user` at the group's primary
        :param stopping: whether to give up
        :raises Cancelled: ``stopping`` said so
        :raises PgherdError: it failed; worth another try
        """

    @abstractmethod
    def restore(
        self, copies: Sequence[str], group: int, target: Path, report: Report, stopping: Callable[[], bool]
    ) -> None:
        """Make a data directory of a chain of base copies, each of them verified first.

        :param copies: ids of backups, the whole one first
        :param target: must not be there
        :raises Cancelled: ``stopping`` said so
        :raises Withheld: the repository is away, or was meanwhile
        :raises PgherdError: a copy is damaged, or it could not be written
        """

    def verify(
        self,
        copies: Sequence[str],
        group: int,
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> Verified | None:
        """Read a chain of base copies where they are kept, all of it, and compare it with what was written down when
        they were made.

        :param watch: called again and again meanwhile
        :return: None: who restores them has done it already
        :raises Cancelled: ``stopping`` said so
        :raises Unavailable: nobody can tell what became of it
        """
        return None

    def end_verifying(self) -> None:
        """End what somebody who was killed has left at work on that."""
        return

    @abstractmethod
    def restore_command(self, group: int, system: str) -> str:
        """What a recovering server runs to get a file of the log."""

    def hindrance(self, said: str) -> str | None:
        """What kept a recovering server from reading the log that may pass; None: nothing did.

        :param said: what the server and that program said
        """
        return None

    @abstractmethod
    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        """The timeline on which a point can be reached with what is archived; None: not yet."""

    def log_names(self, group: int, system: str) -> Collection[str] | None:
        """The names of the archived files of a system's log; None: nobody can tell, and it is taken for whole."""
        return None

    @abstractmethod
    def histories(self, group: int, system: str) -> Sequence[History]:
        """The histories of a system's timelines, as far as they are archived."""

    @abstractmethod
    def major_of(self, backup: str, group: int) -> int:
        """PostgreSQL's major version in a base copy.

        :raises PgherdError: it can't be read
        """

    # the end of things

    def complete(self, backup: str) -> None:
        """See to it that a backup whose copies are all made is found again after a power cut."""
        return

    def discard(self, backup: str, groups: Collection[int] | None = None) -> None:
        """Remove the copies of a backup that failed; its record stays.

        :param groups: only those of these: others are made instead
        """
        return

    def remove_backup(self, backup: str) -> None:
        """Remove a backup that nothing needs, record and copies."""
        self.repository.remove_backup(backup)

    def systems(self) -> Sequence[tuple[int, str]]:
        """Group and database system of every archived log."""
        return ()

    @abstractmethod
    def remove_log(self, group: int, system: str, before: int | None) -> int:
        """Remove a database system's archived log before a position, or all of it; returns the number of files, as
        far as it is known."""

    def sweep(self) -> None:
        """Remove what was left by those who were killed."""
        return


class NoBackups(BackupMethod):
    """Nothing is kept."""

    name = "none"

    @property
    def repository(self) -> Catalogue:
        raise BadInput(
            "no backups are declared: spec.backup says where they should go ('pgherd explain backup')"
        )

    @property
    def location(self) -> str:
        return ""

    def histories(self, group: int, system: str) -> Sequence[History]:
        return ()

    def major_of(self, backup: str, group: int) -> int:
        raise self._none()

    def back_up(self, *arguments: Any, **named: Any) -> GroupBackup:
        raise self._none()

    def restore(self, *arguments: Any, **named: Any) -> None:
        raise self._none()

    def verify(self, *arguments: Any, **named: Any) -> Verified:
        # Asked only if they were taken out in the middle of a drill: None would say that all were verified.
        return Verified(why="no backups are declared any more")

    def restore_command(self, group: int, system: str) -> str:
        raise self._none()

    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        return None

    def remove_log(self, group: int, system: str, before: int | None) -> int:
        return 0

    @staticmethod
    def _none() -> BadInput:
        return BadInput("no backups are declared")
