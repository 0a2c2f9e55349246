"""``python -m pgherd.platform.local.keeper DIRECTORY``: starts a member's Patroni and buries the member's dead.

Patroni starts PostgreSQL detached, so a dead server is its next living ancestor's to bury; until then it is a zombie,
which Patroni takes for a running server. The machine's init may take seconds for that, and in many containers process 1
never does it. The keeper is that ancestor: it waits for whatever dies below it and ends when nothing is left. It holds
no state and decides nothing; without it everything goes on.

It also inherits the sessions of a server that was killed. Most end by themselves, but one that computes notices
nothing, and as long as it has the old shared memory no server starts on these data: the keeper ends it. When the last
of them is gone it wakes Patroni, which looks for its server once a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

PR_SET_CHILD_SUBREAPER = 36
NOTHING = '{"nothing": null}'
"""takes away from Patroni's configuration what none has; it looks at its server all the same"""
_WAKE_SECONDS = 3.0


def main(directory: str) -> None:
    """Start the Patroni of this member's directory, wait for everything that dies, end with the last one."""
    config = os.path.join(directory, "patroni.yml")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    patroni = subprocess.Popen([sys.executable, "-P", "-m", "patroni", config])
    signal.signal(signal.SIGTERM, lambda number, frame: patroni.send_signal(number))
    crashed = False
    while True:
        try:
            pid, _ = os.wait()
        except ChildProcessError:
            return
        crashed = crashed or pid == _noted_server(directory)
        if not _end_orphans() and crashed:
            crashed = False
            # Beside: the dead wait for nobody.
            threading.Thread(target=_wake, args=(config,), daemon=True).start()


def _noted_server(directory: str) -> int | None:
    """The server that last wrote its number beside the data. Who ends by itself removes that."""
    try:
        with open(os.path.join(directory, "data", "postmaster.pid")) as file:
            return int(file.readline())
    except (OSError, ValueError):
        return None


def _end_orphans() -> bool:
    """SIGKILL for what is left of a server that died: only then its children are ours. False: nothing is."""
    orphans = [pid for pid in _children() if _is_of_a_server(pid)]
    for pid in orphans:
        # Nobody else can have this number by now: we are who has to bury it.
        os.kill(pid, signal.SIGKILL)
    return bool(orphans)


def _wake(config: str) -> None:
    """Have Patroni look at its server now: it does whenever its configuration is written, also if nothing changes."""
    # Who never needs them does without: there is a keeper for each member.
    import base64
    import http.client

    import yaml

    with suppress(OSError, http.client.HTTPException):  # then it looks within a second
        with open(config) as file:
            rest = yaml.safe_load(file)["restapi"]
        host, _, port = rest["connect_address"].rpartition(":")
        known = rest["authentication"]
        secret = base64.b64encode(f"{known['username']}:{known['password']}".encode()).decode()
        connection = http.client.HTTPConnection(host, int(port), timeout=_WAKE_SECONDS)
        connection.request("PATCH", "/config", NOTHING, {"Authorization": f"Basic {secret}"})
        connection.getresponse().read()


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
    main(sys.argv[1])
