"""Disks that are full."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNKS = (1 << 20, 1 << 10)


def fill(disk: Path) -> Path:
    """Write a file until nothing more goes onto a file system of limited size; returns the file."""
    ballast = disk / "ballast"
    for size in CHUNKS:
        with ballast.open("ab", buffering=0) as file:
            chunk = bytes(size)
            try:
                while True:
                    file.write(chunk)
            except OSError:
                os.fsync(file)  # what was set aside for it and is not needed is free again
    return ballast


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """The same as long as the block lasts: what somebody else lets go there is taken."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.2):
            fill(disk)

    ballast = fill(disk)
    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        ballast.unlink()
