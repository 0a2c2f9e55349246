"""Page checksums of a data directory whose server is shut down: every page of every relation's file is verified.

Only there are they all verified. A server verifies what it reads, but not what nobody asks it for; ``pg_basebackup``
passes over pages that look newer than its beginning, and damage may make a page look so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from pgherd.backup.private_server import PrivateServer, is_open
from pgherd.errors import Cancelled, PgherdError, Unavailable, one_line
from pgherd.platform.machine import Machine

PROGRAM = "pg_checksums"
NAMED = 5
"""damaged pages that are named; of the others only how many there are"""
KEY = "pages"
"""of what a restore writes down: what was found, by group"""
OFF = "data checksums are off"
_BLOCKS = re.compile(r"^Blocks scanned:\s*(\d+)", re.MULTILINE)
_BAD = re.compile(r"^Bad checksums:\s*(\d+)", re.MULTILINE)
_FOUND = re.compile(r'error: checksum verification failed in file "([^"]+)", block (\d+)')
_UNREAD = re.compile(r'error: (could not (?:open|read|stat|seek)\b.*(?:"|: ).*)')
_IS_OFF = re.compile(r"data checksums are not enabled")


@dataclass(frozen=True)
class Pages:
    """What became of the check of one data directory. Plain data."""

    done: bool
    why: str = ""
    """why it was not done"""
    blocks: int = 0
    """pages that were verified"""
    problems: tuple[str, ...] = ()
    """pages and files that are damaged"""

    def as_json(self) -> dict[str, Any]:
        """For :func:`pages_from`."""
        return {**asdict(self), "problems": list(self.problems)}


def pages_from(raw: Any) -> Pages:
    """The inverse of ``Pages.as_json``; what is none says that it was not done."""
    try:
        return Pages(
            raw["done"] is True, str(raw["why"]), int(raw["blocks"]), tuple(map(str, raw["problems"]))
        )
    except (LookupError, TypeError, ValueError):
        return Pages(False, "nothing was written down of it")


def verify(
    machine: Machine, server: PrivateServer, wanted: Mapping[str, str], stopping: Callable[[], bool]
) -> Pages:
    """Verify every page of a server's data, which has left recovery.

    :param machine: where they are
    :param wanted: parameters that it needs, if it has to be started to be shut down in order: it was killed
    :raises Cancelled: ``stopping`` said so
    :raises Unavailable: nobody can tell what became of it
    """
    data, said = str(server.data), [""]
    try:
        machine.end_strays(data)
        _shut_down(server, wanted, stopping)
    except (Cancelled, Unavailable):
        raise
    except (PgherdError, psycopg.Error) as error:
        # Whoever starts it next will meet it, too, and that is told then.
        return Pages(False, f"its server could not be shut down in order: {one_line(error)}")

    def watch(text: str) -> None:
        said[0] = text

    complaint = ""
    try:
        machine.run([machine.program(PROGRAM), "--check", "-D", data], stopping=stopping, watch=watch)
    except (Cancelled, Unavailable):
        raise
    except PgherdError as error:
        complaint = one_line(error)
    return read(said[0], complaint, data)


def _shut_down(server: PrivateServer, wanted: Mapping[str, str], stopping: Callable[[], bool]) -> None:
    control = server.controlled()
    if control.shut_down:
        return
    server.start(control.enough(wanted))
    try:
        server.wait(is_open, stopping)
    finally:
        server.stop()


def read(said: str, complaint: str, data: str) -> Pages:
    """Understand what ``pg_checksums`` said.

    :param complaint: why it ended badly; empty: it did not
    :param data: the directory that was verified
    """
    if _IS_OFF.search(f"{said} {complaint}"):
        return Pages(False, OFF)
    bad, blocks = _BAD.search(said), _BLOCKS.search(said)
    found = [
        f"the page checksum of {name.removeprefix(f'{data}/')}, page {block}, is wrong"
        for name, block in _FOUND.findall(said)
    ]
    unread = [
        text.replace(f"{data}/", "").strip() for text in _UNREAD.findall(said) if "pg_control" not in text
    ]
    count = int(blocks[1]) if blocks else 0
    if unread or found:
        return Pages(True, blocks=count, problems=_named(found, int(bad[1]) if bad else len(found), unread))
    if complaint or bad is None or blocks is None:
        return Pages(False, complaint or f"{PROGRAM} did not say what it found")
    if int(bad[1]):
        return Pages(True, blocks=count, problems=(f"{bad[1]} page checksums are wrong",))
    return Pages(True, blocks=count)


def _named(found: Sequence[str], bad: int, unread: Sequence[str]) -> tuple[str, ...]:
    named = [*unread, *found][:NAMED]
    more = bad + len(unread) - len(named)
    return (*named, *([f"and {more} more"] if more > 0 else []))
