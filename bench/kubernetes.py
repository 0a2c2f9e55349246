"""pgherd on Kubernetes, in numbers: ``python -m bench.kubernetes [--only ready|pod|node|moves|operator] [--runs N]``.

Runs in the lab (it kills containers and nodes), with an operator of its own that is installed and taken away again;
images are built and loaded as the tests do it. Prints one JSON line for each measurement and writes all of them to
``build/bench/kubernetes.json``. An outage is the longest time between two acknowledgements of three writers, who
write only to the segment that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kubernetes import conftest
from tests.kubernetes.kube import ROOT, Cluster, Namespace, lab
from tests.kubernetes.test_failures import kill_container, segment_of
from tests.kubernetes.writer import writers

from bench import operator as cost

GROUPS = ("coordinator", "segment-1")
Numbers = dict[str, Any]


class Bench:
    """Where everything is measured."""

    def __init__(self, namespace: Namespace, runs: int) -> None:
        self.namespace = namespace
        self.runs = runs

    @contextmanager
    def cluster(self, name: str, **declared: Any) -> Iterator[tuple[Cluster, float]]:
        """A cluster that runs, and how long that took from its declaration on."""
        cluster = Cluster(self.namespace, name)
        began = time.monotonic()
        cluster.apply(**declared)
        try:
            cluster.wait_phase("Running", timeout=180)
            yield cluster, time.monotonic() - began
        finally:
            cluster.purge()

    def ready(self) -> Numbers:
        """From ``kubectl apply`` to Running."""
        found: Numbers = {}
        for segments in (1, 2):
            took = []
            for _ in range(3):
                with self.cluster("ready", segments=segments) as (_, seconds):
                    took.append(seconds)
            found[f"{segments}_segments_seconds"] = spread(took)
        return found

    def pod(self) -> Numbers:
        """A primary's container is killed -9."""
        return self._outages(lambda cluster, group: kill_container(cluster, str(cluster.leader(group))))

    def node(self) -> Numbers:
        """A primary's node is killed."""
        return self._outages(None)

    def _outages(self, kill: Callable[[Cluster, str], None] | None) -> Numbers:
        found: Numbers = {}
        with self.cluster("outage") as (cluster, _):
            for group in GROUPS:
                found[f"{group}_seconds"] = spread(
                    [self._outage(cluster, group, kill) for _ in range(self.runs)]
                )
        return found

    def _outage(self, cluster: Cluster, group: str, kill: Callable[[Cluster, str], None] | None) -> float:
        node = cluster.node_of(str(cluster.leader(group)))
        with writers(cluster, avoid=None if kill else node, segment=segment_of(group)) as at_work:
            if kill is not None:
                kill(cluster, group)
                at_work.go_on(200)
            else:
                lab("kill-node", node.removeprefix("node"))
                try:
                    at_work.go_on(300, timeout=120)
                finally:
                    lab("mend", node.removeprefix("node"))
            cluster.wait_phase("Running", timeout=240)
            return float(at_work.finish()["gaps"][0])

    def moves(self) -> Numbers:
        """What writers notice of data that moves, 2 to 4 segments and back; milliseconds."""
        with self.cluster("moves") as (cluster, _), writers(cluster, count=8) as at_work:
            at_work.mark("quiet")
            at_work.go_on(2000)
            found: Numbers = {}
            for name, count in (("grow", 4), ("shrink", 2)):
                at_work.mark(name)
                began = time.monotonic()
                cluster.namespace.kubectl("scale", f"pgc/{cluster.name}", f"--replicas={count}")
                cluster.wait_phase("Running", timeout=400)
                found[f"{name}_seconds"] = round(time.monotonic() - began, 1)
            final = at_work.finish()
            return {**found, **final["spans"], "errors": len(final["errors"]), "unknown": final["unknown"]}

    def operator(self) -> Numbers:
        """The control loop's cost."""
        rows = []
        name = f"{self.namespace.name}-system"
        try:
            rows = [cost.measure(self.namespace.name, name, count) for count in (1, 20, 100)]
        finally:
            cost.kubectl("-n", self.namespace.name, "delete", "pgc", "--all", "--timeout=600s")
        return {"clusters": rows}


def spread(values: list[float]) -> Numbers:
    """Median, 95th percentile and maximum."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return {"runs": len(ordered), "p50": at(0.5), "p95": at(0.95), "max": round(ordered[-1], 1)}


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.kubernetes", description=__doc__.splitlines()[0])
    names = ("ready", "pod", "node", "moves", "operator")
    parser.add_argument("--only", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--runs", type=int, default=10, help="how often a container or a node is killed")
    arguments = parser.parse_args()
    if not conftest.use_lab():
        print("bench.kubernetes: it kills nodes: only in the lab, so leave KUBECONFIG out", file=sys.stderr)
        return 2
    report = ROOT / "build" / "bench" / "kubernetes.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Numbers] = {"machine": {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}}
    conftest.load_images()
    with conftest.installed() as namespace:
        bench = Bench(namespace, arguments.runs)
        for name in arguments.only or names:
            found[name] = getattr(bench, name)()
            print(json.dumps({name: found[name]}), flush=True)
            Path(report).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
