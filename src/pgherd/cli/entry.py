"""The program ``pgherd``: a Ctrl-C while the command line itself is still being loaded is an ordinary one, too."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """``pgherd``: load the command line, run it and exit."""
    _run("pgherd", sys.argv[1:])


def kubectl_main() -> None:
    """``kubectl pgherd``: the same, on Kubernetes unless told otherwise."""
    _run("kubectl pgherd", ["--platform", "kubernetes", *sys.argv[1:]])


def _run(program: str, arguments: list[str]) -> None:
    try:
        from pgherd.cli.main import main as run

        run(arguments, program)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
