"""Operations on a herd of plain servers: what the supervisor gives a runner, and a process that can be killed.

``python -m tests.support.operations JSON`` carries one operation on; its crash points are the operation's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pgherd.engine.fdw.engine import FdwEngine
from pgherd.model.spec import ClusterSpec
from pgherd.model.topology import Endpoint
from pgherd.operations import store
from pgherd.operations.journal import Step
from pgherd.operations.runner import Context, Runner
from pgherd.postgres.connections import Databases
from tests.support.servers import CREDENTIALS, Herd

ROOT = Path(__file__).parents[2]


@dataclass
class World:
    """What an operation is told of the world; change it while the operation runs."""

    herd: Herd
    segments: int
    expansion: dict[str, Any] = field(default_factory=dict)
    ready: set[int] | None = None
    free: dict[int, int] = field(default_factory=dict)
    now: datetime = field(default_factory=datetime.now)
    stop: threading.Event = field(default_factory=threading.Event)

    def spec(self) -> ClusterSpec:
        return ClusterSpec.model_validate({"segments": {"count": self.segments}, "expansion": self.expansion})

    def context(self) -> Context:
        return Context(
            engine=self.herd.engine,
            databases=self.herd.databases,
            spec=self.spec,
            segment_ready=lambda group: group in (self.herd.servers if self.ready is None else self.ready),
            complete=lambda group: False,
            held=lambda group: False,
            free_bytes=self._free_bytes,
            endpoints=lambda group: self.herd.addresses()[group],
            archived=lambda: (),
            now=lambda: self.now,
            stop=self.stop,
        )

    def _free_bytes(self, group: int) -> int | None:
        return self.free.get(group)

    def request(self, kind: str) -> int:
        """Write down an operation towards what is declared."""
        present = len(self.herd.engine.segments())
        if kind == "rebalance":
            return store.request(self.herd.databases, kind)
        return store.request(self.herd.databases, kind, from_segments=present, to_segments=self.segments)

    def run(self, operation: int) -> str:
        """Carry it on until it ends; returns the phase."""
        return Runner(self.context()).run(operation)

    def scale(self, segments: int) -> None:
        """To so many segments, without any fault."""
        self.segments, present = segments, len(self.herd.engine.segments())
        if segments != present:
            assert self.run(self.request("expand" if segments > present else "shrink")) == "done"


def background(world: World, operation: int) -> tuple[threading.Thread, list[str]]:
    """Run it in a thread; the list has the phase once it has ended."""
    phases: list[str] = []
    thread = threading.Thread(target=lambda: phases.append(world.run(operation)), daemon=True)
    thread.start()
    return thread, phases


def steps(herd: Herd, operation: int, kind: str | None = None) -> list[Step]:
    """The rows of its steps."""
    with herd.superuser() as connection:
        rows = connection.execute(
            "SELECT step, kind, detail, state, message, bytes_total FROM pgherd.operation_steps"
            " WHERE operation_id = %s ORDER BY step",
            [operation],
        ).fetchall()
    return [step for row in rows if (step := Step(*row)) and kind in (None, step.kind)]


def per_segment(herd: Herd) -> Mapping[int, int]:
    """How many shard groups each segment holds."""
    counts = dict.fromkeys(herd.engine.segments(), 0)
    for group in herd.engine.shard_groups():
        counts[group.segment] += 1
    return counts


def run_killed_at(world: World, operation: int, moments: Sequence[str], scratch: Path) -> list[str]:
    """Run it in a child process that is killed once at each of these moments, and started again each time.

    :return: the moments that were reached, in order
    """
    addresses = {g: [[e.host, e.port] for e in each] for g, each in world.herd.addresses().items()}
    order = {
        "addresses": addresses,
        "segments": world.segments,
        "database": world.herd.databases.database,
        "operation": operation,
    }
    log = scratch / "crashes"
    for _ in range(len(moments) + 1):
        child = subprocess.run(
            [sys.executable, "-m", "tests.support.operations", json.dumps(order)],
            check=False,
            cwd=ROOT,
            env=os.environ | {"PGHERD_CRASH_AT": ",".join(moments), "PGHERD_CRASH_LOG": str(log)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        if child.returncode == 0:
            break
        assert child.returncode == -9, f"{child.returncode}\n{child.stdout}\n{child.stderr}"
    else:
        raise AssertionError("it did not end")
    return log.read_text().splitlines() if log.exists() else []


class _Elsewhere:
    """What a child process knows of the herd."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.servers = {
            int(g): [Endpoint(host, port) for host, port in each] for g, each in order["addresses"].items()
        }
        self.databases = Databases(order["database"], CREDENTIALS, self.addresses)
        self.engine = FdwEngine(self.databases)

    def addresses(self) -> Mapping[int, list[Endpoint]]:
        return self.servers


def main() -> None:
    order = json.loads(sys.argv[1])
    world = World(_Elsewhere(order), order["segments"])  # type: ignore[arg-type]
    print(world.run(order["operation"]))


if __name__ == "__main__":
    main()
