"""A process of its own that moves one shard group, so that it can be killed.

``python -m tests.support.move_child JSON``. Its checkpoints are crash points named ``move:<checkpoint>``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw.move import move_shard_group
from pgherd.faults import crash_point
from pgherd.model.topology import Endpoint
from pgherd.postgres.connections import Databases
from tests.support.servers import CREDENTIALS, Herd

ROOT = Path(__file__).parents[2]


class Control:
    """A move's control whose checkpoints are crash points."""

    def report(self, message: str, bytes_done: int | None = None) -> None:
        print(message, flush=True)

    def checkpoint(self, name: str) -> None:
        crash_point(f"move:{name}")


def run_killed_at(herd: Herd, group: ShardGroupId, target: int, moment: str, scratch: Path) -> None:
    """Move in a child process that is killed by SIGKILL at a checkpoint."""
    order = {
        "addresses": {g: [[e.host, e.port] for e in endpoints] for g, endpoints in herd.addresses().items()},
        "database": herd.databases.database,
        "colocation": group.colocation,
        "index": group.index,
        "target": target,
    }
    log = scratch / f"crash-{moment}"
    log.unlink(missing_ok=True)
    child = subprocess.run(
        [sys.executable, "-m", "tests.support.move_child", json.dumps(order)],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PGHERD_CRASH_AT": f"move:{moment}", "PGHERD_CRASH_LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == -9, f"killed at {moment}? {child.returncode}\n{child.stdout}\n{child.stderr}"


def main() -> None:
    order = json.loads(sys.argv[1])
    addresses = {
        int(g): [Endpoint(host, port) for host, port in endpoints]
        for g, endpoints in order["addresses"].items()
    }
    databases = Databases(order["database"], CREDENTIALS, lambda: addresses)
    move_shard_group(
        databases, 1, ShardGroupId(order["colocation"], order["index"]), order["target"], Control()
    )


if __name__ == "__main__":
    main()
