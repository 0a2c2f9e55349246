"""``python -m pgherd.platform.local.keeper CONFIG``: starts a member's Patroni and buries the member's dead.

Patroni starts PostgreSQL detached, so a dead server is its next living ancestor's to bury; until then it is a zombie,
which Patroni takes for a running server. The machine's init may take seconds for that, and in many containers process 1
never does it. The keeper is that ancestor: it waits for whatever dies below it and ends when nothing is left. It holds
no state and decides nothing; without it everything goes on.

It also inherits the sessions of a server that was killed. Most end by themselves, but one that computes notices
nothing, and as long as it has the old shared memory no server starts on these data: the keeper ends it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main(config: str) -> None:
    """Start Patroni with this configuration file, wait for everything that dies, end with the last one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    patroni = subprocess.Popen([sys.executable, "-P", "-m", "patroni", config])
    signal.signal(signal.SIGTERM, lambda number, frame: patroni.send_signal(number))
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return
        _end_orphans()


def _end_orphans() -> None:
    """SIGKILL for what is left of a server that died: only then its children are ours."""
    for pid in _children():
        # Nobody else can have this number by now: we are who has to bury it.
        if _is_of_a_server(pid):
            os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _is_of_a_server(pid: int) -> bool:
    """A session or a worker of PostgreSQL (``postgres: SCOPE: checkpointer``), not a server itself. Its logger has no
    shared memory, and still has lines to write."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read().rstrip(b" \0")
    except OSError:
        return False
    return title.startswith(b"postgres: ") and not title.endswith(b": logger")


if __name__ == "__main__":
    main(os.path.join(sys.argv[1], "patroni.yml"))
