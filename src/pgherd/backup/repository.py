"""A repository in a directory, all of it: what is remembered, and the base copies and logs of the method ``native``.

::

    PATH/CLUSTER/...                          what is remembered (``catalogue``)
    PATH/CLUSTER/wal/GROUP/SYSTEM/NAME        the groups' logs (``archive``)
    PATH/CLUSTER/backups/ID/GROUP/            one group's base copy; GROUP.partial/ while it is made
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pgherd.backup.archive import MARK
from pgherd.backup.catalogue import Catalogue, Identity, check_owner
from pgherd.backup.store import DirectoryStore
from pgherd.backup.wal import History, parse_history
from pgherd.model.topology import group_name
from pgherd.platform.base import Owner
from pgherd.platform.local import files

__all__ = ["Identity", "Repository", "check_owner"]


class Repository(Catalogue):
    """The repository of one cluster.

    :param root: ``PATH/CLUSTER``
    :param owner: tells who asks
    """

    def __init__(self, root: Path, owner: Callable[[], Owner] = Owner) -> None:
        super().__init__(DirectoryStore(root), owner=owner)
        self.root = root

    def is_there(self) -> bool:
        with files.explained(f"read {self.root / MARK}"):
            return (self.root / MARK).is_file()

    def create(self, cluster: str) -> None:
        if self.is_there():
            return
        self.store.create()
        with files.explained(f"make {self.root}"):
            for folder in ("wal", "points", "backups"):
                (self.root / folder).mkdir(exist_ok=True, mode=files.PRIVATE_DIRECTORY)
        super().create(cluster)

    # base copies

    def folder(self, backup: str) -> Path:
        """Where a backup is."""
        return self.root / "backups" / backup

    def copy_of(self, backup: str, group: int) -> Path:
        """One group's base copy."""
        return self.folder(backup) / group_name(group)

    # logs

    def logs(self, group: int) -> Path:
        """Where a group's log is archived, a folder for each database system."""
        return self.root / "wal" / group_name(group)

    def log_files(self, group: int, system: str) -> dict[str, os.DirEntry[str]]:
        """The archived files of one database system's log, by name; whatever else is there is none of them.

        :raises Away: the repository is away, which is not to be taken for an empty log
        """
        try:
            with os.scandir(self.logs(group) / system) as entries:
                return {
                    entry.name: entry
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_file()
                }
        except FileNotFoundError:
            self.require()
            return {}

    def histories(self, group: int, system: str) -> list[History]:
        """The histories of a system's timelines, as far as they are archived."""
        found = []
        for name in self.log_files(group, system):
            timeline, dot, kind = name.partition(".")
            if dot and kind == "history":
                path = self.logs(group) / system / name
                with files.explained(f"read {path}"):
                    text = path.read_text(errors="replace")
                found.append(parse_history(int(timeline, 16), text))
        return found
