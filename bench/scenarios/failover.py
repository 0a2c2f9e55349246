"""kill -9 of a primary's postmaster, to the end of the silence about what its group has.

Writers try again 20 ms after an error.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import psycopg

from bench.scenarios.base import Lab, Result
from bench.support import Pgherd, percentile
from bench.workload import Workload

WRITERS = 4
PAUSE_SECONDS = 0.01


def run(lab: Lab, runs: int, engine: str = "fdw") -> Result:
    """``runs`` crashes of each kind, one after the other on one cluster that heals in between."""
    result = Result()
    with lab.cluster("failover", engine=engine) as pgherd:
        dsn = pgherd.dsn("failover")
        workload = Workload(dsn, WRITERS, PAUSE_SECONDS)
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            workload.prepare(connection)
            keys = {"segment-1": workload.keys_on(connection, "segment-1"), "coordinator": workload.keys}
        workload.start()
        try:
            for group in keys:
                seconds = [crash(lab, pgherd, workload, group, set(keys[group])) for _ in range(runs)]
                _add(result, group, seconds)
        finally:
            workload.stop()
        result.numbers["unexplained_errors"] = len(workload.journal.unexplained())
    return result


def crash(lab: Lab, pgherd: Pgherd, workload: Workload, group: str, keys: set[int]) -> float:
    """One crash, and the wait until the group is whole again."""
    member = pgherd.primary("failover", group)
    postmaster = pgherd.postmaster("failover", member)
    killed = time.monotonic()
    os.kill(postmaster, signal.SIGKILL)
    workload.journal.first_write_since(killed, keys, 60, reconnected=group == "coordinator")
    pgherd.await_running("failover", 90)
    seconds = workload.journal.served_again_after(killed, keys)
    lab.say(
        f"{member}: served again after {seconds:.2f} s, whole again after {time.monotonic() - killed:.1f} s"
    )
    return seconds


def _add(result: Result, group: str, seconds: list[float]) -> None:
    p50, p95, worst = percentile(seconds, 50), percentile(seconds, 95), max(seconds)
    result.add(
        group,
        {"runs": [round(s, 3) for s in seconds], "p50_s": p50, "p95_s": p95, "max_s": worst},
        f"failover of {group}, {len(seconds)} crashes",
        f"p50 {p50:.2f}, p95 {p95:.2f}, max {worst:.2f} s",
    )
