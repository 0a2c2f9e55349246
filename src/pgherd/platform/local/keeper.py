"""``python -m pgherd.platform.local.keeper CONFIG``: starts a member's Patroni and buries the member's dead.

Patroni starts PostgreSQL detached, so a dead server is its next living ancestor's to bury; until then it is a zombie,
which Patroni takes for a running server. The machine's init may take seconds for that, and in many containers process 1
never does it. The keeper is that ancestor: it waits for whatever dies below it and ends when nothing is left. It holds
no state and decides nothing; without it everything goes on.
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


if __name__ == "__main__":
    main(os.path.join(sys.argv[1], "patroni.yml"))
