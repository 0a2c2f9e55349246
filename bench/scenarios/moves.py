"""An expansion from 2 to 4 segments under 8 writers: how long writers stall, and how fast data moves.

The rate stands beside that of one raw binary COPY pipe between the same two servers, into a table with the same
indexes; both count bytes with indexes. The pipe has nobody to disturb it and nothing to keep consistent, so it is an
upper bound for one mover.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import psycopg
from psycopg import sql

from bench.scenarios.base import Lab, Result
from bench.support import Connection, Pgherd, percentile, timed
from bench.workload import Workload, stalls

WRITERS = 8
PAUSE_SECONDS = 0.005
QUIET_SECONDS = 10.0
ROWS = 1_000_000
NAME = "moves"

CARGO = f"""
CREATE TABLE cargo (id bigint PRIMARY KEY, amount int NOT NULL, note text NOT NULL);
SELECT create_distributed_table('cargo', 'id');
INSERT INTO cargo SELECT n, n % 1000, repeat(md5(n::text), 5) FROM generate_series(1, {ROWS}) n;
"""


def run(lab: Lab, runs: int) -> Result:
    """``runs`` expansions, each of a fresh cluster; the numbers are of the run with the median duration."""
    found = [_expand(lab) for _ in range(runs)]
    middle = sorted(found, key=lambda one: float(one["seconds"]))[(len(found) - 1) // 2]
    result = Result({"runs": found})
    result.rows = [
        (
            "expand 2 -> 4 under 8 writers",
            f"{middle['moves']} moves, {middle['mb']:.0f} MB, {middle['seconds']:.1f} s",
        ),
        ("writers stalled", "p50 {p50:.1f}, p99 {p99:.1f}, max {max:.0f} ms".format(**middle["stall_ms"])),
        (
            "their normal latency",
            f"{middle['normal_ms']:.1f} ms, {middle['errors']} errors, {middle['retries']} retries",
        ),
        ("reader waited longer by", f"at most {middle['reader_stall_max_ms']:.0f} ms"),
        ("data moved at", f"{middle['mb_s']:.1f} MB/s; one raw COPY pipe {middle['pipe_mb_s']:.1f} MB/s"),
    ]
    return result


def _expand(lab: Lab) -> dict[str, Any]:
    with lab.cluster(NAME) as pgherd:
        dsn = pgherd.dsn(NAME)
        workload = Workload(dsn, WRITERS, PAUSE_SECONDS)
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            connection.execute(CARGO.encode())
            workload.prepare(connection)
            workload.start()
            try:
                quiet = time.monotonic()
                time.sleep(QUIET_SECONDS)
                begun = time.monotonic()
                pgherd("scale", NAME, "--segments", "4", timeout=1200)
                ended = time.monotonic()
            finally:
                workload.stop()
            found = _numbers(workload, quiet, begun, ended) | rate(connection)
            found["pipe_mb_s"] = _pipe(pgherd, connection)
    lab.say(f"expanded in {found['seconds']:.1f} s, {found['mb_s']:.1f} MB/s, writers {found['stall_ms']}")
    return found


def _numbers(workload: Workload, quiet: float, begun: float, ended: float) -> dict[str, Any]:
    journal = workload.journal
    writes = stalls(journal.between(begun, ended), journal.between(quiet, begun))
    reads = stalls(journal.reads_between(begun, ended), journal.reads_between(quiet, begun))
    return {
        "seconds": ended - begun,
        "stall_ms": {"p50": writes.p50, "p99": writes.p99, "max": writes.max},
        "normal_ms": writes.normal,
        "writes": writes.count,
        "reader_stall_max_ms": reads.max,
        **refusals(workload, begun, ended),
    }


def refusals(workload: Workload, begun: float, ended: float) -> dict[str, int]:
    """Statements that failed: those that a reconnect explains, and the others."""
    refused = workload.journal.refused_between(begun, ended)
    return {
        "errors": sum(not refusal.explained for refusal in refused),
        "retries": sum(refusal.explained for refusal in refused),
    }


def rate(connection: Connection) -> dict[str, Any]:
    """What the last operation moved: how many shard groups, MB, MB/s from the first move's begin to the last's end."""
    row = connection.execute("""
        SELECT count(*), coalesce(sum(bytes_done), 0)::float8 / 1e6,
               extract(epoch FROM max(finished_at) - min(started_at))::float8
          FROM pgherd.operation_steps
         WHERE kind = 'move' AND state = 'done' AND operation_id = (SELECT max(id) FROM pgherd.operations)
        """).fetchone()
    moves, megabytes, seconds = row or (0, 0.0, 0.0)
    mb_s = megabytes / seconds if seconds else 0.0
    return {"moves": moves, "mb": megabytes, "move_s": seconds, "mb_s": mb_s}


def _pipe(pgherd: Pgherd, coordinator: Connection) -> float:
    """MB/s of one shard through one COPY pipe from segment 1 to segment 3."""
    shard = coordinator.execute("""
        SELECT s.shard_name FROM citus_shards s JOIN pgherd.segment_configuration c ON c.port = s.nodeport
         WHERE s.table_name = 'cargo'::regclass AND c.group_name = 'segment-1' ORDER BY s.shardid LIMIT 1
        """).fetchone()
    assert shard is not None
    name = sql.SQL(shard[0])
    with (
        closing(psycopg.connect(pgherd.dsn(NAME, "segment-1"), autocommit=True)) as source,
        closing(psycopg.connect(pgherd.dsn(NAME, "segment-3"), autocommit=True)) as target,
    ):
        target.execute("CREATE TABLE public.bench_pipe (LIKE cargo INCLUDING ALL)")
        try:
            rates = []
            for _ in range(3):
                target.execute("TRUNCATE public.bench_pipe")
                seconds, _done = timed(lambda: _copy(source, target, name))
                (size,) = target.execute("SELECT pg_total_relation_size('public.bench_pipe')").fetchone() or (
                    0,
                )
                rates.append(size / 1e6 / seconds)
        finally:
            target.execute("DROP TABLE public.bench_pipe")
    return percentile(rates, 50)


def _copy(source: Connection, target: Connection, shard: sql.SQL) -> None:
    out = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(shard)
    with (
        source.cursor().copy(out) as reading,
        target.cursor().copy("COPY public.bench_pipe FROM STDIN (FORMAT binary)") as writing,
    ):
        for block in reading:
            writing.write(block)
