"""Log files of members: read, follow, keep small.

One file per member takes what its Patroni and its PostgreSQL print, so that cause and effect stand side by side.
"""

from __future__ import annotations

import heapq
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pgherd.platform.local import files

MAX_BYTES = 20 * 1024 * 1024
_POLL_SECONDS = 0.2
_TIME = len("2026-01-01 00:00:00.000")


def rotate(log: Path) -> None:
    """Move a log that has grown too large aside to ``LOG.1``, which is overwritten.

    The writers have it open for appending, so they go on at its new end.
    """
    try:
        if log.stat().st_size > MAX_BYTES:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            with log.open("r+b") as file:
                file.truncate(0)
    except FileNotFoundError:
        pass


def remove(log: Path) -> None:
    """Remove a log and what was moved aside."""
    for path in (log, log.with_name(f"{log.name}.1")):
        files.remove(path)


def lines(logs: Sequence[tuple[str, Path]], *, follow: bool) -> Iterator[str]:
    """Lines of several logs by time, then, with ``follow``, new ones as they come, for ever.

    :param logs: what to put before each line, and the file
    """
    offsets = {path: _size(path) for _, path in logs}
    yield from _merged(logs, offsets)
    if follow:
        yield from _followed(logs, offsets)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _merged(logs: Sequence[tuple[str, Path]], offsets: dict[Path, int]) -> Iterator[str]:
    streams = [_timed(index, prefix, path, offsets[path]) for index, (prefix, path) in enumerate(logs)]
    for _, _, line in heapq.merge(*streams, key=lambda item: item[:2]):
        yield line


def _timed(index: int, prefix: str, path: Path, end: int) -> Iterator[tuple[str, int, str]]:
    """Lines with the time by which they sort: a line without one belongs to the line before."""
    moment = ""
    if not path.exists():
        return
    with path.open("rb") as file:
        while file.tell() < end and (raw := file.readline()):
            line = raw.decode("utf-8", "replace").rstrip("\n")
            if line[:4].isdecimal():
                moment = max(moment, line[:_TIME].replace(",", "."))
            yield moment, index, prefix + line


def _followed(logs: Sequence[tuple[str, Path]], offsets: dict[Path, int]) -> Iterator[str]:
    while True:
        for prefix, path in logs:
            for line in _new_lines(path, offsets):
                yield prefix + line
        time.sleep(_POLL_SECONDS)


def _new_lines(path: Path, offsets: dict[Path, int]) -> list[str]:
    size = _size(path)
    if size < offsets.get(path, 0):
        offsets[path] = 0
    if size <= offsets.get(path, 0):
        return []
    with path.open("rb") as file:
        file.seek(offsets.get(path, 0))
        raw = file.read()
    complete = raw[: raw.rfind(b"\n") + 1]
    offsets[path] = offsets.get(path, 0) + len(complete)
    return complete.decode("utf-8", "replace").splitlines()
