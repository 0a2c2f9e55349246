"""Places where a test may kill this process, to prove that being killed there does no harm.

A crash point is a no-op unless the environment variable ``PGHERD_CRASH_AT`` names it. Then the process sends itself
SIGKILL: no handler runs, nothing is flushed, exactly as if the machine's OOM killer had struck. The name goes
into the file ``PGHERD_CRASH_LOG`` first (one line, appended), so that a test can tell that the point was reached
and a restarted process does not die at the same point again.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def crash_point(name: str) -> None:
    """Die here by SIGKILL if the environment asks for it, once.

    :param name: ``<operation>:<step>:<moment>``, for example ``expand:move-3:switched``; the environment may name
        several, separated by commas
    """
    wanted = os.environ.get("PGHERD_CRASH_AT", "")
    if not wanted or name not in wanted.split(","):
        return
    log = Path(os.environ["PGHERD_CRASH_LOG"])
    if log.exists() and name in log.read_text().splitlines():
        return
    with log.open("a") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.kill(os.getpid(), signal.SIGKILL)
