"""What the operator's control loop costs: CPU and memory with N clusters, and how long a change takes to reach all.

``python -m bench.operator NAMESPACE OPERATOR_NAMESPACE [N ...]`` (default 1, 20 and 100), against a Kubernetes whose
processes this machine can see (the lab), in a namespace that an operator watches. Clusters have one segment, no
standbys, and a node selector that no node fulfils: their pods stay pending, so that only the loop counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


def declaration(name: str, work_mem: str) -> dict[str, Any]:
    """A cluster whose pods find no node."""
    group = {"standbys": 0, "nodeSelector": {"bench": "nowhere"}, "storage": {"size": "256Mi"}}
    return {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": name},
        "spec": {
            "engine": "fdw",
            "deletionPolicy": "Delete",
            "postgres": {"parameters": {"work_mem": work_mem}},
            "coordinator": group,
            "segments": {**group, "count": 1},
        },
    }


def at_work(pods: Sequence[Mapping[str, Any]], leases: Sequence[Mapping[str, Any]]) -> str:
    """The uid of the pod that works; another one waits for the lease.

    :raises SystemExit: nobody has the lease
    """
    holders = {str(lease["spec"].get("holderIdentity") or "") for lease in leases}
    for pod in pods:
        if pod["metadata"]["name"] in holders:
            return str(pod["metadata"]["uid"])
    raise SystemExit(f"no operator has the lease: {', '.join(sorted(holders)) or 'there is none'}")


def process_of(namespace: str) -> Path:
    """The operator's process, of the one that works."""
    pods = json.loads(kubectl("-n", namespace, "get", "pods", "-o", "json"))["items"]
    leases = json.loads(kubectl("-n", namespace, "get", "leases", "-o", "json"))["items"]
    uid = at_work(pods, leases)
    for process in Path("/proc").iterdir():
        try:
            ours = process.name.isdecimal() and uid in (process / "cgroup").read_text()
            if ours and "pgherd.operator" in (process / "cmdline").read_text():
                return process
        except OSError:
            continue
    raise SystemExit(f"the operator's process is not on this machine: {namespace}")


def cpu_seconds(process: Path) -> float:
    """CPU time so far."""
    fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def megabytes(process: Path) -> float:
    """Resident memory."""
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def apply(namespace: str, count: int, work_mem: str) -> None:
    """Declare all clusters."""
    items = [declaration(f"bench-{number}", work_mem) for number in range(count)]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    kubectl("-n", namespace, "apply", "--server-side", "-f", "-", stdin=listed)


def wait_told(namespace: str, count: int) -> float:
    """Seconds until the status of every cluster is about its last declaration."""
    began = time.monotonic()
    while time.monotonic() - began < 600:
        items = json.loads(kubectl("-n", namespace, "get", "pgc", "-o", "json"))["items"]
        told = sum(
            (each.get("status") or {}).get("generation") == each["metadata"]["generation"]
            and bool((each.get("status") or {}).get("groups"))
            for each in items
        )
        if told >= count:
            return time.monotonic() - began
        time.sleep(0.3)
    raise SystemExit("not all clusters were looked after within 10 minutes")


def measure(namespace: str, operator: str, count: int) -> dict[str, Any]:
    """One row of the report."""
    apply(namespace, count, "4MB")
    made = wait_told(namespace, count)
    time.sleep(20)
    process = process_of(operator)
    before = cpu_seconds(process)
    time.sleep(SECONDS)
    busy = (cpu_seconds(process) - before) / SECONDS
    apply(namespace, count, "5MB")
    changed = wait_told(namespace, count)
    return {
        "clusters": count,
        "madeSeconds": round(made, 1),
        "idleCores": round(busy, 3),
        "megabytes": round(megabytes(process)),
        "changedSeconds": round(changed, 1),
    }


def main() -> None:
    """Measure, print one JSON line for each number of clusters, leave nothing."""
    namespace, operator, *counts = sys.argv[1:]
    try:
        for count in map(int, counts or ["1", "20", "100"]):
            print(json.dumps(measure(namespace, operator, count)), flush=True)
    finally:
        kubectl("-n", namespace, "delete", "pgc", "-l", "!keep", "--timeout=600s")


if __name__ == "__main__":
    main()
