"""Why a member does not come up, as its log tells it: ``status`` says so, instead of sending people to look for it.

Only what came after the server last served, ended as it was told to, or began to be made anew counts; and only what it
or the programs that make it said of themselves, at a line's beginning: a client's wrong password is nobody's reason not
to start, and a client must not be able to write into a status.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL = 64 * 1024
"""bytes of a log's end that are looked at"""
LONGEST = 300
"""characters of a line that are passed on"""
_LOOKED_AT = 1000
"""characters of a line that are looked at: a statement in a log may be megabytes long"""

_BORDER = re.compile(
    r"\[\d+\] LOG: +(?:database system is ready to accept|received (?:smart|fast|immediate) shutdown request)"
    r"|INFO: bootstrap from leader .* in progress"
)
_TELLING = (
    # log_line_prefix of a process without a client: time, zone, process
    re.compile(r"\S+ \S+ \S+ \[\d+\] (?P<told>(?:FATAL|PANIC): .*)"),
    re.compile(r"(?P<told>(?:/\S*/)?[\w.-]+: (?:error|fatal|error while loading shared libraries): .*)"),
    re.compile(r"(?P<told>OSError: .*No space left on device.*)"),
)
_USUAL = re.compile(
    r"terminating |the database system is |could not (?:connect|receive data|send)|WAL streaming|streaming replication"
)
"""what is said while a server ends as it should, or waits for another"""


def last_words(log: Path) -> str:
    """The last reason in a member's log; empty: it has none, or there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        begin = line[:_LOOKED_AT]
        if _BORDER.search(begin):
            return ""
        found = next((match for pattern in _TELLING if (match := pattern.match(begin))), None)
        if found is not None and not _USUAL.search(begin):
            told = found["told"].rstrip()[:LONGEST]
            return "".join(letter if letter.isprintable() else " " for letter in told)
    return ""


def serves(data: Path) -> bool:
    """Whether the server of a data directory notes that it takes connections; one that was killed did.

    The eighth line of ``postmaster.pid`` (PostgreSQL: ``PM_STATUS_READY``, ``PM_STATUS_STANDBY``).
    """
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return len(lines) >= 8 and lines[7].strip() in ("ready", "standby")
