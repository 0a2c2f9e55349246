"""Where a repository's small files are kept: records, points, whose it is. A directory, or a bucket.

A file is replaced as a whole: a reader sees the old content or the new one. Writers of one store exclude each other by
:meth:`Store.locked`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pgherd.backup.archive import MARK
from pgherd.errors import PgherdError
from pgherd.platform.local import files

_LOST = (errno.EIO, errno.EBADMSG)
"""what a disk says that can't read a file's place any more, and a file system that finds other bytes there"""

OLD_SECONDS = 3600.0
"""from which on nobody is at work any more on what was written aside"""


class Damaged(PgherdError):
    """What a file holds is not what was written to it."""


@dataclass(frozen=True)
class Entry:
    """A file in a store.

    :param name: its path, from the store's root
    :param version: differs whenever the content does; None: nobody can tell without reading it
    """

    name: str
    version: str | None = None


class Store(ABC):
    """Small files by path."""

    location: str
    """what to call it in messages"""
    grows: bool = True
    """a file is appended to without being written anew"""
    near: bool = True
    """looking costs nothing, and may be done all the time"""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's content; None: there is no such file; nothing: it is known to be damaged.

        :raises PgherdError: the store does not answer, or refuses
        """

    def is_damaged(self, name: str) -> bool:
        """Whether a file is there of which nothing can be read. An empty one is not where files grow: a crash may
        leave it."""
        return self.read(name) == b""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Replace a file, or make it; durably.

        :raises PgherdError: it could not be written
        """

    @abstractmethod
    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file, durably; whoever calls holds the lock.

        :raises Damaged: it can't be read, and is left as it is
        """

    @abstractmethod
    def names(self, folder: str) -> list[Entry]:
        """The files directly in a folder, in order; none if there is no such folder."""

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder, in order."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it; no-op if there is none."""

    def sweep(self, folder: str) -> None:
        """Finish removals directly in a folder that were cut short, and let go of what is left of such writes.

        :param folder: may be a pattern (glob)
        """
        return

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Keep other writers out."""

    def room(self) -> int | None:
        """How many bytes more fit in; None: nobody can tell."""
        return None

    def create(self) -> None:
        """See to it that something can be written here.

        :raises PgherdError: the place is not there, or nobody may write to it
        """
        return


class DirectoryStore(Store):
    """Files below a directory, flushed to disk.

    :param root: need not be there
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)
        self._lock = files.Lock(root / "lock")

    def read(self, name: str) -> bytes | None:
        try:
            return self._content(name)
        except Damaged:
            return b""

    def room(self) -> int | None:
        try:
            return shutil.disk_usage(self.root).free
        except OSError:
            return None

    def is_damaged(self, name: str) -> bool:
        try:
            self._content(name)
        except Damaged:
            return True
        return False

    def _content(self, name: str) -> bytes | None:
        """A file's content; None: there is no such file.

        :raises Damaged: the disk has lost it, and answers otherwise: one bad sector is not to hide all the others
        """
        path = self.root / name
        with files.explained(f"read {path}"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno in _LOST and name != MARK and self._answers():
                    raise Damaged(f"{path} is damaged: put it back from a copy, or remove it") from error
                raise

    def _answers(self) -> bool:
        """Whether the mark can be read from the disk itself: what was on one that is gone is remembered for a while."""
        try:
            with open(self.root / MARK, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                return bool(file.read())
        except OSError:
            return False

    def write(self, name: str, content: bytes) -> None:
        path = self.root / name
        is_new = not path.parent.is_dir()
        files.write_bytes(path, content)
        if os.geteuid() == 0:
            self._hand_over([path, path.parent] if is_new else [path])
        if is_new:
            files.sync_directory(path.parent.parent)

    def _hand_over(self, made: list[Path]) -> None:
        """To whom all of it belongs: whoever keeps it could not read what root leaves in it."""
        with files.explained(f"write {made[0]}"):
            owner = self.root.stat()
            for path in made:
                os.chown(path, owner.st_uid, owner.st_gid)

    def append(self, name: str, content: bytes) -> None:
        path = self.root / name
        with files.explained(f"write {path}"):
            is_new = self._content(name) is None
            path.parent.mkdir(exist_ok=True, mode=files.PRIVATE_DIRECTORY)
            with open(path, "ab", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                files.sync_directory(path.parent)

    def names(self, folder: str) -> list[Entry]:
        found: list[Entry] = []
        with _entries(self.root / folder) as entries:
            for each in filter(_is_file, entries):
                # What is being written is renamed under our eyes.
                with contextlib.suppress(FileNotFoundError):
                    stat = each.stat()
                    found.append(Entry(f"{folder}/{each.name}", f"{stat.st_ino}-{stat.st_size}"))
        return sorted(found, key=lambda entry: entry.name)

    def folders(self, folder: str) -> list[str]:
        with _entries(self.root / folder) as entries:
            return sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))

    def remove(self, name: str) -> None:
        files.remove(self.root / name)

    def sweep(self, folder: str) -> None:
        before = time.time() - OLD_SECONDS
        for found in list(self.root.glob(folder)) if folder else [self.root]:
            with files.explained(f"clean up {found}"):
                for rest in list(found.glob(".*.tmp")):
                    with contextlib.suppress(FileNotFoundError):
                        if rest.is_file() and rest.stat().st_mtime < before:
                            rest.unlink()
            files.sweep(found)

    def locked(self) -> AbstractContextManager[None]:
        return self._lock.held()

    def create(self) -> None:
        with files.explained(f"make {self.root}"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(exist_ok=True, mode=files.PRIVATE_DIRECTORY)


class MemoryStore(Store):
    """For what need not outlive this process."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def write(self, name: str, content: bytes) -> None:
        self._files[name] = content

    def append(self, name: str, content: bytes) -> None:
        self._files[name] = self._files.get(name, b"") + content

    def names(self, folder: str) -> list[Entry]:
        found = [name for name in list(self._files) if name.rpartition("/")[0] == folder]
        return [Entry(name) for name in sorted(found)]

    def folders(self, folder: str) -> list[str]:
        below = f"{folder}/"
        rests = [name.removeprefix(below) for name in list(self._files) if name.startswith(below)]
        return sorted({rest.partition("/")[0] for rest in rests if "/" in rest})

    def remove(self, name: str) -> None:
        for each in [each for each in self._files if each == name or each.startswith(f"{name}/")]:
            del self._files[each]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._lock:
            yield


@contextlib.contextmanager
def _entries(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """A directory's entries; none if it is not there."""
    with files.explained(f"read {folder}"):
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            yield iter(())
            return
        with entries:
            yield entries


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and not entry.name.startswith(".")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, files.PRIVATE_FILE)
