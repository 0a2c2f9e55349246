"""What makes and restores the backups of single groups: a method, or none.

The core never asks whether there are backups; where none are declared, :class:`NoBackups` answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgherd.backup.records import BackupType, GroupBackup, GroupPoint
from pgherd.backup.repository import Repository
from pgherd.errors import BadInput

Report = Callable[[int, int], None]
"""told again and again: bytes done, bytes in all (0: not known)"""


class BackupMethod(ABC):
    """One way to keep a cluster's backups. Stateless: what there is, is in the repository."""

    name: str

    def parameters(self, group: int) -> Mapping[str, str]:
        """PostgreSQL parameters that the members of a group need."""
        return {}

    @property
    @abstractmethod
    def repository(self) -> Repository:
        """Where points and backups are remembered.

        :raises BadInput: there is none
        """

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
        :param connection: libpq parameters of the replication role at the group's primary
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
        :raises PgherdError: a copy is damaged, or it could not be written
        """

    @abstractmethod
    def restore_command(self, group: int, system: str) -> str:
        """What a recovering server runs to get a file of the log."""

    @abstractmethod
    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        """The timeline on which a point can be reached with what is archived; None: not yet."""

    def log_names(self, group: int, system: str) -> Collection[str] | None:
        """The names of the archived files of a system's log; None: nobody can tell, and it is taken for whole."""
        return None

    @abstractmethod
    def remove_log(self, group: int, system: str, before: int | None) -> int:
        """Remove a database system's archived log before a position, or all of it; returns the number of files."""


class NoBackups(BackupMethod):
    """Nothing is kept."""

    name = "none"

    @property
    def repository(self) -> Repository:
        raise BadInput(
            "no backups are declared: spec.backup says where they should go ('pgherd explain backup')"
        )

    def back_up(self, *arguments: Any, **named: Any) -> GroupBackup:
        raise self._none()

    def restore(self, *arguments: Any, **named: Any) -> None:
        raise self._none()

    def restore_command(self, group: int, system: str) -> str:
        raise self._none()

    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        return None

    def remove_log(self, group: int, system: str, before: int | None) -> int:
        return 0

    @staticmethod
    def _none() -> BadInput:
        return BadInput("no backups are declared")
