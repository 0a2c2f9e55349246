"""How a server on this machine brings its files to the disk before it recovers from a crash.

By default it opens every file of its data directory and syncs it, and each time the disk empties its cache: a second or
two, and many where the disk is busy. ``syncfs`` does that once, for the file system as a whole. Either way PostgreSQL
notes an error in its log and goes on: recovery writes anew whatever has changed since the last checkpoint, and that
one has synced what was before.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pgherd.errors import PgherdError
from pgherd.platform.local import binaries
from pgherd.platform.local.binaries import Binaries
from pgherd.platform.local.parameters import problems

_WHOLE = {"recovery_init_sync_method": "syncfs"}
_SINCE = (5, 8)
"""older versions of Linux may not tell what could not be written"""
_FILE_SYSTEMS = frozenset({"ext4", "xfs"})
"""those that write to disks of this machine, and for which syncfs is known to wait until the disk has it all"""
_MOUNTS = Path("/proc/self/mountinfo")


def parameters(home: Path, bin_dir: Path | None) -> Mapping[str, str]:
    """PostgreSQL parameters for the servers of this home; none where its own way is the better one, or the only one.

    :param home: need not be there yet
    :param bin_dir: see :func:`~pgherd.platform.local.binaries.find`
    """
    try:
        return _WHOLE if _is_fit(home, binaries.find(bin_dir)) else {}
    except (PgherdError, OSError, subprocess.SubprocessError):  # who starts a member says what it lacks
        return {}


@cache
def _is_fit(home: Path, postgres: Binaries) -> bool:
    is_known = sys.platform == "linux" and kernel() >= _SINCE and file_system(home, _MOUNTS) in _FILE_SYSTEMS
    return is_known and not problems(postgres, _WHOLE)


def kernel() -> tuple[int, ...]:
    """This kernel's version; (0,): it does not tell."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return tuple(map(int, found.groups())) if found else (0,)


def file_system(directory: Path, mounts: Path) -> str:
    """The type of file system that a directory is on, or will be on; empty: nobody tells.

    :param mounts: what is mounted, as ``/proc/self/mountinfo`` has it
    """
    there = next(each for each in (directory, *directory.parents) if each.exists())
    device = there.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    # 36 35 98:0 /root /mounted rw,noatime master:1 - ext4 /dev/root rw
    kinds = (line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == wanted)
    return next(kinds, "")
