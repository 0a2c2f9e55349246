"""As whom members run. PostgreSQL refuses uid 0, so root's members must look like somebody else's.

Two ways, tried in this order, both without changing the owner of anything and with an interpreter that only root can
read:

* in a user namespace, where the process tree sees an ordinary uid while its files stay root's;
* where those are forbidden (many containers), as that uid, keeping of root's rights only that to read and write files.

The uid must have a name: initdb asks for it.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from functools import cache

from pgherd.errors import PgherdError

Prefix = tuple[str, ...]


def prefix() -> Prefix:
    """What to put before a member's command; empty for an ordinary user.

    :raises PgherdError: we are root and neither way works here
    """
    return () if os.geteuid() != 0 else _first_that_works()


@cache
def _first_that_works() -> Prefix:
    reasons = []
    for command in ways():
        reason = refusal(command)
        if reason is None:
            return command
        reasons.append(reason)
    raise PgherdError(
        "PostgreSQL does not run as root, and root can't start it as somebody else here"
        f" ({'; '.join(reasons)}): run pgherd as an ordinary user, or allow user namespaces"
    )


def ways() -> Iterator[Prefix]:
    """The commands to try, the best first."""
    uid, gid = _somebody()
    yield "unshare", "--user", f"--map-user={uid}", f"--map-group={gid}", "--"
    capability = "+dac_override"
    yield (
        *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
        *(f"--inh-caps={capability}", f"--ambient-caps={capability}", "--"),
    )


def refusal(command: Prefix) -> str | None:
    """Why a command can't be used here, or None if it can."""
    try:
        probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except OSError:
        return f"there is no program {command[0]} (package util-linux)"
    told = probe.stderr.strip().splitlines()
    return None if probe.returncode == 0 else told[-1] if told else f"{command[0]} failed"


def _somebody() -> tuple[int, int]:
    known = {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall() if entry.pw_uid != 0}
    for name in ("postgres", "nobody", *known):
        if name in known:
            return known[name]
    raise PgherdError("PostgreSQL does not run as root, and there is no other user on this machine: add one")
