"""The program ``pgherd``: a Ctrl-C while the command line itself is still being loaded is an ordinary one, too."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Load the command line, run it and exit."""
    try:
        from pgherd.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def kubectl() -> None:
    """The program ``kubectl-pgherd``: kubectl's plugin ``kubectl pgherd``."""
    try:
        from pgherd.cli.main import kubectl_main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
