"""A repository in a directory, and what is remembered in it.

::

    PATH/CLUSTER/repository.json              whose it is, and the cluster's declaration
    PATH/CLUSTER/lock                         held while anything but logs is changed
    PATH/CLUSTER/wal/GROUP/SYSTEM/NAME        the groups' logs (``archive``)
    PATH/CLUSTER/points/DAY.jsonl             restore points: one line each, one more when it is archived
    PATH/CLUSTER/backups/ID/backup.json       what a backup is, written before anything of it is made
    PATH/CLUSTER/backups/ID/GROUP/            one group's base copy; GROUP.partial/ while it is made

All of it can be read when the cluster is gone. Points are appended, with a flush each; a line that a crash cut short is
passed over, and the next append begins a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgherd.backup import records
from pgherd.backup.archive import MARK
from pgherd.backup.records import Backup, Point
from pgherd.backup.wal import History, parse_history
from pgherd.errors import BadInput, PgherdError
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.platform.local import files


@dataclass(frozen=True)
class Identity:
    """Whose repository it is."""

    cluster: str
    id: str
    declared: Mapping[str, Any] = field(default_factory=dict)
    """the cluster's declaration, as it was last"""
    systems: Mapping[str, str] = field(default_factory=dict)
    """the database system of each group, by the group's name, as it was last"""


class Repository:
    """The repository of one cluster.

    :param root: ``PATH/CLUSTER``
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = files.Lock(root / "lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from changing what is remembered.

        :raises PgherdError: the repository is not there
        """
        self.require()
        with self._lock.held():
            yield

    # whose it is

    def is_there(self) -> bool:
        """Whether there is a repository (it may be on a disk that is not mounted)."""
        return (self.root / MARK).is_file()

    def require(self) -> None:
        """:raises PgherdError: it is not there"""
        if not self.is_there():
            raise PgherdError(f"there is no repository at {self.root}: see to it that its disk is mounted")

    def identity(self) -> Identity:
        """Whose it is.

        :raises PgherdError: it is not there, or damaged
        """
        self.require()
        raw = files.read_json(self.root / MARK) or {}
        try:
            return Identity(**raw)
        except TypeError:
            raise PgherdError(f"{self.root / MARK} is damaged: restore it from a copy") from None

    def create(self, cluster: str) -> None:
        """Begin a repository, if its path is there; no-op if there is one.

        :raises PgherdError: the path is not there, or can't be written to
        """
        if self.is_there():
            return
        with files.explained(f"make {self.root}"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.root / "wal", self.root / "points", self.root / "backups"):
                folder.mkdir(exist_ok=True, mode=files.PRIVATE_DIRECTORY)
        files.write_json(self.root / MARK, vars(Identity(cluster, secrets.token_hex(8))))

    def claim(self, systems: Mapping[int, str], declared: Mapping[str, Any]) -> None:
        """Remember what the cluster is now.

        :raises BadInput: the repository holds the backups of another one
        """
        known = self.identity()
        named = {group_name(group): system for group, system in systems.items()}
        check_owner(self.root, known, named.get(group_name(COORDINATOR)))
        wanted = Identity(known.cluster, known.id, dict(declared), {**known.systems, **named})
        if wanted != known:
            with self.locked():
                files.write_json(self.root / MARK, vars(wanted))

    # points

    def points(self, *, days: int = 0) -> list[Point]:
        """Every restore point, oldest first.

        :param days: only those of the last so many days on which there were any; 0: all
        """
        found: dict[str, Point] = {}
        for path in sorted((self.root / "points").glob("*.jsonl"))[-days:]:
            with files.explained(f"read {path}"):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                with contextlib.suppress(ValueError, TypeError, LookupError):
                    point = records.point_from(json.loads(line))
                    found[point.name] = point
        return sorted(found.values(), key=lambda point: point.time)

    def points_version(self) -> tuple[str, int] | None:
        """Something that differs whenever a point was written down. Cheap."""
        days = sorted((self.root / "points").glob("*.jsonl"))
        return (days[-1].name, days[-1].stat().st_size) if days else None

    def remember_point(self, point: Point) -> None:
        """Write a point down, or what became of it."""
        path = self.root / "points" / f"{point.time[:10]}.jsonl"
        with self.locked(), files.explained(f"write {path}"):
            is_new = not path.exists()
            with open(path, "ab", opener=_private) as file:
                # A line of its own, whatever a crash left before it.
                file.write(b"\n" + json.dumps(point.as_json()).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                files.sync_directory(path.parent)

    def forget_points(self, names: set[str]) -> None:
        """Let points go that can't be restored any more."""
        with self.locked():
            for path in sorted((self.root / "points").glob("*.jsonl")):
                self._rewrite(path, names)

    def _rewrite(self, path: Path, gone: set[str]) -> None:
        kept: list[str] = []
        lost = False
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                if json.loads(line)["name"] in gone:
                    lost = True
                else:
                    kept.append(line)
        if lost and kept:
            files.write(path, "\n".join(kept) + "\n")
        elif lost:
            files.remove(path)

    # backups

    def folder(self, backup: str) -> Path:
        """Where a backup is."""
        return self.root / "backups" / backup

    def copy_of(self, backup: str, group: int) -> Path:
        """One group's base copy."""
        return self.folder(backup) / group_name(group)

    def backups(self) -> list[Backup]:
        """Every backup, oldest first; those that ended badly too."""
        found = []
        for path in (self.root / "backups").glob("*/backup.json"):
            with contextlib.suppress(ValueError, TypeError, LookupError, PgherdError):
                found.append(records.backup_from(files.read_json(path) or {}))
        return sorted(found, key=lambda backup: (backup.requested_at, backup.id))

    def backup(self, backup: str) -> Backup:
        """One backup.

        :raises BadInput: there is none of this name
        """
        for found in self.backups():
            if found.id == backup:
                return found
        raise BadInput(f"there is no backup {backup} in {self.root}: 'pgherd backups' shows what there is")

    def remember_backup(self, backup: Backup, *, durable: bool = True) -> None:
        """Write a backup's record; before anything of it is made."""
        with self.locked():
            files.write_json(self.folder(backup.id) / "backup.json", backup.as_json(), durable=durable)
            if durable:
                files.sync_directory(self.folder(backup.id).parent)

    def remove_backup(self, backup: str) -> None:
        """Remove a backup, record and copies."""
        with self.locked():
            files.remove(self.folder(backup))

    # logs

    def logs(self, group: int) -> Path:
        """Where a group's log is archived, a folder for each database system."""
        return self.root / "wal" / group_name(group)

    def log_files(self, group: int, system: str) -> dict[str, os.DirEntry[str]]:
        """The archived files of one database system's log, by name."""
        try:
            with os.scandir(self.logs(group) / system) as entries:
                return {entry.name: entry for entry in entries if not entry.name.startswith(".")}
        except FileNotFoundError:
            return {}

    def histories(self, group: int, system: str) -> list[History]:
        """The histories of a system's timelines, as far as they are archived."""
        found = []
        for name in self.log_files(group, system):
            timeline, dot, kind = name.partition(".")
            if dot and kind == "history":
                text = (self.logs(group) / system / name).read_text(errors="replace")
                found.append(parse_history(int(timeline, 16), text))
        return found


def check_owner(root: Path, known: Identity, coordinator: str | None) -> None:
    """Refuse another cluster's repository.

    :param coordinator: the database system of the coordinator; None: it has no data yet
    :raises BadInput: in one line
    """
    before = known.systems.get(group_name(COORDINATOR))
    if before is not None and before != coordinator:
        raise BadInput(
            f"spec.backup.repository.path: {root} holds the backups of another cluster that was called "
            f"{known.cluster}: name another path, or move these away"
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, files.PRIVATE_FILE)
