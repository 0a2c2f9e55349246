"""How members' servers ended: the only proof that nothing was written after a certain place in a group's log.

A server that is shut down writes a last checkpoint and says so in its control file. That is read and written down once
the server has ended, beside the data and not among them, and forgotten before the server is started again: data may be
lost with the disk that they are on.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgherd.errors import PgherdError
from pgherd.model.topology import Member
from pgherd.platform.base import Programs
from pgherd.platform.bench import Ending
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout

logger = logging.getLogger(__name__)

_ENDED = {"shut down": True, "shut down in recovery": False}
"""what a control file says of a server that was shut down -> whether it took writes"""


def note(layout: Layout, member: Member, programs: Programs) -> None:
    """Write down how a member's server ended, which must not run. Callers hold the home's lock."""
    ending = read_control(programs, layout.member(member).data)
    known = _read(layout.endings(member.cluster))
    wanted = {key: value for key, value in known.items() if key != member.name}
    if ending is not None:
        wanted[member.name] = asdict(ending)
    if wanted != known and layout.declaration(member.cluster).exists():
        files.write_json(layout.endings(member.cluster), wanted)


def forget(layout: Layout, member: Member) -> None:
    """The member's server is about to be started, or the member to go. Callers hold the home's lock."""
    known = _read(layout.endings(member.cluster))
    if member.name in known:
        del known[member.name]
        files.write_json(layout.endings(member.cluster), known)


def of(layout: Layout, member: Member) -> Ending | None:
    """How a member's server ended; None: nobody knows."""
    raw = _read(layout.endings(member.cluster)).get(member.name)
    try:
        return None if raw is None else Ending(**raw)
    except TypeError:
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(files.read_json(path) or {})
    except PgherdError:  # what can't be read proves nothing
        return {}


def read_control(programs: Programs, data: Path) -> Ending | None:
    """What the control file says of a server that was shut down; None: it was not, or there is none."""
    if not (data / "global" / "pg_control").is_file():
        return None
    command = [*programs.prefix, str(programs.find("pg_controldata")), str(data)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"}, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s: its control file can't be read: %s", data, error)
        return None
    return parse_control(done.stdout)


def parse_control(text: str) -> Ending | None:
    """The same from what ``pg_controldata`` prints."""
    found: Mapping[str, str] = dict(re.findall(r"^([^:\n]+):\s*(.*)$", text, re.MULTILINE))
    primary = _ENDED.get(found.get("Database cluster state", ""))
    if primary is None:
        return None
    high, _, low = found["Latest checkpoint location"].partition("/")
    timeline = int(found["Latest checkpoint's TimeLineID"])
    return Ending(primary, timeline, (int(high, 16) << 32) + int(low, 16))
