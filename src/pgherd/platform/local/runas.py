"""As whom members run. PostgreSQL refuses uid 0, so root's members run inside a user namespace.

There the process tree sees an ordinary uid while its files stay root's; nothing has to change its owner, and an
interpreter that only root can execute still works.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

from pgherd.errors import PgherdError

_NAMESPACE = ("--user", "--map-user=1000", "--map-group=1000", "--")


def prefix() -> tuple[str, ...]:
    """What to put before a member's command; empty for an ordinary user.

    :raises PgherdError: we are root and user namespaces are not allowed here
    """
    return () if os.geteuid() != 0 else _namespace()


@cache
def _namespace() -> tuple[str, ...]:
    unshare = shutil.which("unshare")
    command = (unshare or "unshare", *_NAMESPACE)
    reason = "there is no program unshare (package util-linux)"
    if unshare:
        probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if probe.returncode == 0:
            return command
        reason = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else "unshare failed"
    raise PgherdError(
        "PostgreSQL does not run as root, and no user namespace can be made here to stand in for an ordinary user"
        f" ({reason}): run pgherd as an ordinary user, or allow user namespaces"
    )
