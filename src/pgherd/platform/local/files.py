"""Files that are whole or not there: atomic replacement, locks, removal.

A reader never sees a half-written file, a crash leaves the old one or the new one, and a full disk the old one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgherd.errors import PgherdError

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an operating system's error into one clear line.

    :param doing: what was tried, for example ``write /home/x/ports.json``
    :raises PgherdError: instead of OSError
    """
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "make room and try again",
            errno.EDQUOT: "make room and try again",
            errno.EACCES: "check the owner and the rights, or choose another place with --home",
            errno.EPERM: "check the owner and the rights, or choose another place with --home",
            errno.EROFS: "choose another place with --home",
        }
        hint = hints.get(error.errno or 0)
        reason = (error.strerror or str(error)).lower()
        raise PgherdError(f"could not {doing}: {reason}" + (f": {hint}" if hint else "")) from error


def write(path: Path, text: str, *, durable: bool = True) -> None:
    """:func:`write_bytes` of a text."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file's content in one step; only its owner may read it.

    :param durable: survive a power failure (flush the file and its directory to disk)
    :raises PgherdError: it could not be written; the old content is intact
    """
    with explained(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            _write_new(temporary, content, durable)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)


def _write_new(path: Path, content: bytes, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with open(descriptor, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """:func:`write` of a JSON document."""
    write(path, json.dumps(value, indent=2) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """The JSON object of a file, or None if there is no such file.

    :raises PgherdError: it can't be read or is no JSON object
    """
    with explained(f"read {path}"):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    raise PgherdError(f"{path} is damaged (no JSON object): restore it from a copy")


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a whole directory; no-op if there is none.

    A directory is renamed first, so that a removal cut short never leaves a damaged one under its name. The renamed
    rest is removed by the next call for the same path.

    :raises PgherdError: it could not be removed
    """
    hide(path)
    sweep(path.parent, path.name)


def hide(path: Path) -> None:
    """The first half of :func:`remove`, which takes no time: a file is gone, a directory waits for :func:`sweep`.

    :raises PgherdError: it could not be removed
    """
    with explained(f"remove {path}"):
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            path.rename(path.with_name(f"{_trash_prefix(path)}{secrets.token_hex(4)}"))
            sync_directory(path.parent)


def _trash_prefix(path: Path) -> str:
    return f".removed.{path.name}."


def sweep(directory: Path, name: str = "*") -> None:
    """Finish removals in a directory that were cut short."""
    with explained(f"clean up {directory}"):
        for rest in directory.glob(f".removed.{name}.*") if directory.is_dir() else ():
            _remove_tree(rest)


def sweep_below(root: Path, depth: int) -> None:
    """:func:`sweep` of a directory and of those below it. It may take long, and needs no lock.

    :param depth: how far down
    """
    for level in range(depth + 1):
        for folder in list(root.glob("/".join("*" * level))) if level else [root]:
            sweep(folder)


def _remove_tree(path: Path) -> None:
    # A process that is about to end may still make a file in between, and another one may remove the same.
    for _ in range(100):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
        if not path.exists():
            return


class Lock:
    """A lock between processes and between threads; the same thread may take it again.

    It goes with the process that holds it, however that ends.

    :param path: the lock file, made when needed
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.RLock()
        self._depth = 0
        self._descriptor = -1

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock and hold it."""
        with self._threads:
            if self._depth == 0:
                self._descriptor = self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    os.close(self._descriptor)

    def _acquire(self) -> int:
        with explained(f"lock {self._path}"):
            while True:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY)
                try:
                    descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
                except FileNotFoundError:
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self._is_current(descriptor):
                    return descriptor
                os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        # Whoever held the lock before may have removed the file (the home went away): then it guards nothing.
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False
