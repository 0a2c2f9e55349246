"""``python -m pgherd.supervisor HOME [BIN_DIR]``: the daemon. People don't call this, the client does."""

from __future__ import annotations

import sys
from pathlib import Path

from pgherd.supervisor.daemon import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
