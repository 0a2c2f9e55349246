"""What ``pgbackrest verify`` says of one base copy. Pure.

It ends with 0 whatever it finds, and calls a stanza sound in which a copy has lost its manifest. So what it says is
read: a line for each damaged file (``--log-level-console=info``), and a line for each copy that it looked at
(``--verbose``). It is there since 2.39. ``--set`` is taken by all of them, but before 2.55 everything in the stanza is
verified: what is said of other copies is passed over then, and of the log what is older than the copy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from pgherd.backup import wal
from pgherd.backup.base import Verified
from pgherd.backup.pgbackrest_config import is_away

OPTIONS = ("--output=text", "--verbose", "--log-level-console=info")
"""without them it tells nothing that can be read here"""
NAMED = 5
"""damaged files that are named; of the others only how many there are"""
_FILE = re.compile(
    r"INFO: (file missing|invalid checksum|invalid size|invalid result) '?([^\s':]+)'?(?:: (.*))?$",
    re.MULTILINE,
)
_COPY = re.compile(r"^\s*backup: (\S+), status: ([^,\n]+),", re.MULTILINE)
_STATUS = re.compile(r"^status: (ok|error)$", re.MULTILINE)
_COMPLAINT = re.compile(r"^  (No usable .*|'.*' is not a valid .*|backup set .* is not valid)$", re.MULTILINE)
_WORDS = {
    "file missing": "is missing",
    "invalid checksum": "has another checksum than when it was made",
    "invalid size": "has another size than when it was made",
    "invalid result": "can't be read",
}


def read(said: str, labels: Sequence[str], start: str) -> Verified:
    """Understand it.

    :param labels: the copy and those that it builds on, itself last
    :param start: where in the log it begins
    """
    found = dict.fromkeys(
        (path, what, why)
        for what, path, why in _FILE.findall(said)
        if _matters(path, labels, wal.parse_lsn(start))
    )
    if away := [why for _, _, why in found if is_away(why)]:
        return Verified(why=away[0])
    problems = [f"{path} {_WORDS[what]}{f' ({why})' if why else ''}" for path, what, why in found]
    told = dict(_COPY.findall(said))
    bad = [label for label in labels if told.get(label, "valid") != "valid"]
    # A copy is called invalid with one that it builds on: whose the files are, their lines say.
    if lost := [label for label in bad if told[label] == "manifest missing"]:
        problems += [f"{label}/backup.manifest can't be read" for label in lost]
    elif not problems:
        problems += [f"{label} is {told[label]}" for label in bad]
    problems += dict.fromkeys(_COMPLAINT.findall(said))
    if not problems and (labels[-1] not in told or _STATUS.search(said) is None):
        return Verified(why=f"it said nothing of {labels[-1]}")
    more = len(problems) - NAMED
    return Verified([*problems[:NAMED], *([f"and {more} more"] if more > 0 else [])])


def _matters(path: str, labels: Collection[str], start: int) -> bool:
    """Whether the copy, or what leads on from it, needs a file."""
    folder, _, rest = path.partition("/")
    if folder in labels:
        return True
    number = wal.segment_number(rest.rpartition("/")[2][:24])
    return number is not None and number >= start // wal.SEGMENT_BYTES
