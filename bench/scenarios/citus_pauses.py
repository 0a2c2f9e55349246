"""A switchover and a restart of a segment's primary under 16 pgbench clients: how long the slowest statement took, and
how many failed."""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psycopg

from bench.scenarios.base import Lab, Result
from bench.support import Pgherd, RunError
from pgherd.platform.local import binaries

NAME = "pauses"
CLIENTS, SECONDS, ROWS = 16, 20, 10_000
SCRIPT = f"\\set id random(1, {ROWS})\nUPDATE counter SET n = n + 1 WHERE id = :id;\n"


def run(lab: Lab, runs: int) -> Result:
    """Each change ``runs`` times on one cluster."""
    result = Result()
    with lab.cluster(NAME, engine="citus") as pgherd:
        with closing(psycopg.connect(pgherd.dsn(NAME), autocommit=True)) as connection:
            connection.execute("CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL)")
            connection.execute("SELECT create_distributed_table('counter', 'id')")
            connection.execute(f"INSERT INTO counter SELECT g, 0 FROM generate_series(1, {ROWS}) g".encode())
        for change in ("switchover", "restart"):
            found = [_pause(pgherd, change) for _ in range(runs)]
            pauses, failed = [pause for pause, _ in found], sum(failed for _, failed in found)
            result.add(
                change,
                {"pauses_s": [round(pause, 2) for pause in pauses], "failed": failed},
                f"{change} of a segment's primary under {CLIENTS} clients",
                f"the slowest statement took {max(pauses):.2f} s, {failed} failed",
            )
            lab.say(" ".join(result.rows[-1]))
    return result


def _pause(pgherd: Pgherd, change: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory(prefix="pgherd-bench-") as folder:
        (Path(folder) / "script").write_text(SCRIPT)
        options = ["-n", "-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS), "-l", "-f", "script"]
        command = [str(binaries.find().program("pgbench")), *options, pgherd.dsn(NAME)]
        bench = subprocess.Popen(
            command, cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(3)
        pgherd(change, NAME, "--group", "segment-1")
        _, errors = bench.communicate(timeout=SECONDS + 120)
        logs = [line for log in Path(folder).glob("pgbench_log*") for line in log.read_text().splitlines()]
    if not logs:
        raise RunError(f"pgbench failed: {errors.strip().splitlines()[-1:]}")
    pgherd.await_running(NAME, 120)
    return max(int(line.split()[2]) for line in logs) / 1e6, errors.count("aborted")
