"""Disks that are full."""

from __future__ import annotations

from pathlib import Path


def fill(disk: Path) -> Path:
    """Write a file until nothing more goes onto a file system of limited size; returns the file."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        chunk = bytes(1 << 20)
        try:
            while True:
                file.write(chunk)
                file.flush()
        except OSError:
            return ballast
