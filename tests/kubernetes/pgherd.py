"""The command line on Kubernetes, run as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as data."""
        return json.loads(self.out)


def pgherd(
    *arguments: str, stdin: str | None = None, timeout: float = 300.0, check: bool = True, **environment: str
) -> Done:
    """Run ``kubectl pgherd`` with these arguments.

    :raises AssertionError: it failed, or said something like a traceback
    """
    command = [sys.executable, "-c", "from pgherd.cli.entry import kubectl_main; kubectl_main()", *arguments]
    done = subprocess.run(
        command,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )
    found = Done(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or found.code == 0, f"pgherd {' '.join(arguments)}: {found}"
    return found
