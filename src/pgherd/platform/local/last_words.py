"""Why a member does not come up, as its log tells it: ``status`` says so, instead of sending people to look for it.

Only what came after the server last took connections counts, and only what it or the programs that make it said of
themselves: a client's wrong password is nobody's reason not to start.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL = 64 * 1024
"""bytes of a log's end that are looked at"""
LONGEST = 300
"""characters of a line that are passed on"""

_SERVES = re.compile(r"LOG: +database system is ready to accept")
_TELLING = re.compile(
    r"(?P<server>\[\d+\] (?:FATAL|PANIC): .*)"
    r"|(?P<program>(?:^|/)[\w.-]+: (?:error|fatal): .*|^.*: error while loading shared libraries: .*)"
    r"|(?P<disk>.*No space left on device.*)"
)
_USUAL = re.compile(r"terminating |the database system is |could not (?:connect|receive data|send)")
"""what is said while a server ends as it should, or waits for another"""


def last_words(log: Path) -> str:
    """The last reason in a member's log since its server served; empty: it has none, or there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if _SERVES.search(line):
            return ""
        found = _TELLING.search(line)
        if found is not None and not _USUAL.search(line):
            return re.sub(r"^\[\d+\] ", "", found.group().strip())[:LONGEST]
    return ""
