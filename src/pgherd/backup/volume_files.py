"""The small files of a repository that is on a volume, where that is mounted.

    python3 -I -S -c TEXT COMMAND ROOT [ARGUMENT...]

Runs by itself, with nothing but the standard library, in a pod that mounts the volume: its text is brought along each
time, so that it fits whoever asks. File names are relative to ROOT, contents are written as base64 for the way there.

    create                          see to it that ROOT is there, and can be written to
    read NAME                       prints + and the content; -: there is no such file; !: the disk has lost it
    put NAME TOKEN OFFSET PART      a part of a new content is kept aside, under TOKEN
    keep NAME TOKEN OFFSET PART     the last part: the file is replaced
    add NAME TOKEN PART             the file is replaced by its content with PART behind it; prints ! as above
    names FOLDER                    prints the files directly in a folder, with their versions, as JSON
    folders FOLDER                  prints the names of the folders directly in a folder, as JSON
    room                            prints how many bytes more fit in
    remove NAME                     a file, or a folder with everything in it
    sweep FOLDER                    what removals and writes directly in a folder have left that were cut short; it may
                                    be a pattern

A file is replaced as a whole, flushed to disk with its folder: a reader sees the old content or the new one. Whoever
calls holds the lock.
"""

import base64
import contextlib
import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

MARK = "repository.json"
"""without it there is no repository"""
USED = "/tmp/used"
"""touched by each use: who holds the volume for us ends when nobody has asked for a while"""
OLD_SECONDS = 3600
"""from which on nobody is at work on what was kept aside any more"""
LOST = b"!"
_GONE = (errno.EIO, errno.EBADMSG)
_HINTS = {
    errno.ENOSPC: "make room and try again",
    errno.EDQUOT: "make room and try again",
    errno.EACCES: f"user {os.getuid()} must be able to write to the volume: give it the right there",
    errno.EPERM: f"user {os.getuid()} must be able to write to the volume: give it the right there",
    errno.EROFS: "a volume that can be written to is needed",
}


class Lost(Exception):
    """The disk answers, but not with this file."""


class Files:
    """Those below a folder."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def create(self) -> bytes:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(exist_ok=True, mode=0o700)
        probe = self.root / f".probe.{os.getpid()}.tmp"
        self._write(probe, 0, b"", True)
        probe.unlink()
        return b""

    def read(self, name: str) -> bytes:
        try:
            content = self._content(name)
        except Lost:
            return LOST
        return b"-" if content is None else b"+" + content

    def put(self, name: str, token: str, offset: str, part: str) -> bytes:
        self._write(self._aside(name, token), int(offset), base64.urlsafe_b64decode(part), False)
        return b""

    def keep(self, name: str, token: str, offset: str, part: str) -> bytes:
        aside = self._aside(name, token)
        self._write(aside, int(offset), base64.urlsafe_b64decode(part), True)
        aside.replace(self.root / name)
        _sync(aside.parent)
        return b""

    def add(self, name: str, token: str, part: str) -> bytes:
        try:
            before = self._content(name) or b""
        except Lost:
            return LOST
        whole = before + base64.urlsafe_b64decode(part)
        return self.keep(name, token, "0", base64.urlsafe_b64encode(whole).decode())

    def names(self, folder: str) -> bytes:
        found = []
        for each in self._entries(folder):
            try:
                if each.is_file() and not each.name.startswith("."):
                    seen = each.stat()
                    version = f"{seen.st_ino}-{seen.st_size}-{seen.st_mtime_ns}"
                    found.append([f"{folder}/{each.name}" if folder else each.name, version])
            except FileNotFoundError:  # what is being written is renamed under our eyes
                continue
        return json.dumps(sorted(found)).encode()

    def folders(self, folder: str) -> bytes:
        entries = self._entries(folder)
        return json.dumps(
            sorted(each.name for each in entries if each.is_dir() and each.name[0] != ".")
        ).encode()

    def room(self) -> bytes:
        return str(shutil.disk_usage(self.root).free).encode()

    def remove(self, name: str) -> bytes:
        path = self.root / name
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            # First out of the way: a removal cut short leaves no damaged folder under its name.
            path.rename(path.with_name(f".removed.{path.name}.{os.urandom(4).hex()}"))
            _sync(path.parent)
        return self._sweep(path.parent, f".removed.{path.name}.*")

    def sweep(self, folder: str) -> bytes:
        before = time.time() - OLD_SECONDS
        for found in list(self.root.glob(folder)) if folder else [self.root]:
            for rest in list(found.glob(".*.tmp")):
                with contextlib.suppress(FileNotFoundError):
                    if rest.is_file() and rest.stat().st_mtime < before:
                        rest.unlink()
            self._sweep(found, ".removed.*")
        return b""

    def _sweep(self, folder: Path, pattern: str) -> bytes:
        for rest in list(folder.glob(pattern)):
            for _ in range(100):  # another one may remove the same, and something may still be made in it
                shutil.rmtree(rest, ignore_errors=True)
                if not rest.exists():
                    break
            else:
                shutil.rmtree(rest)
        return b""

    def _content(self, name: str) -> "bytes | None":
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in _GONE and name != MARK and self._answers():
                raise Lost(name) from error
            raise

    def _answers(self) -> bool:
        try:
            return bool((self.root / MARK).read_bytes())
        except OSError:
            return False

    def _aside(self, name: str, token: str) -> Path:
        path = self.root / name
        # Not those above the root: a repository that was removed is not begun anew by a late record.
        if path.parent != self.root and not path.parent.is_dir():
            os.stat(self.root)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sync(path.parent.parent)
            _sync(self.root)
        return path.with_name(f".{path.name}.{token}.tmp")

    def _write(self, path: Path, offset: int, content: bytes, last: bool) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if os.fstat(descriptor).st_size < offset:
                    raise OSError(errno.EIO, "a part of it is missing")
                file.seek(offset)
                file.write(content)
                file.truncate()
                file.flush()
                if last:
                    os.fsync(descriptor)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _entries(self, folder: str) -> "list[os.DirEntry[str]]":
        try:
            with os.scandir(self.root / folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


COMMANDS = {
    "create": "make",
    "read": "read",
    **dict.fromkeys(("put", "keep", "add"), "write"),
    **dict.fromkeys(("names", "folders", "room"), "list"),
    "remove": "remove",
    "sweep": "clean up",
}
"""what each is called where it fails"""


def main(arguments: "list[str]") -> int:
    """Exit code: 0 done; 1 not done, and why."""
    command, root, *rest = arguments
    with contextlib.suppress(OSError):  # the volume is what counts
        Path(USED).touch()
    what = f"{COMMANDS[command]} {'/'.join((root, *rest[:1]))}"
    try:
        sys.stdout.buffer.write(getattr(Files(root), command)(*rest))
        sys.stdout.buffer.flush()
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        said = (error.strerror or str(error)).lower()
        sys.stderr.write(f"could not {what}: {said}" + (f": {hint}" if hint else "") + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
