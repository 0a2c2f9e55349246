"""Expansion 2 -> 4 and shrinking 4 -> 2 under 8 writers with the engine citus, and the same expansion by Citus's own
``citus_rebalance_start`` with its defaults, in the same run.

A rate is the bytes of the shards that moved, by the time from the first move's beginning to the last one's end.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import psycopg

from bench.scenarios.base import Lab, Result
from bench.scenarios.citus import superuser
from bench.scenarios.moves import rate, refusals
from bench.support import Connection, Pgherd, RunError, await_true
from bench.workload import Workload, audit, stalls

NAME = "moves"
WRITERS, PAUSE_SECONDS, ROWS, PARALLEL = 8, 0.005, 400_000, 4
CARGO = f"""
CREATE TABLE cargo (id bigint PRIMARY KEY, amount int NOT NULL, note text NOT NULL);
SELECT create_distributed_table('cargo', 'id', colocate_with => 'none');
INSERT INTO cargo SELECT n, n % 1000, repeat(md5(n::text), 5) FROM generate_series(1, {ROWS}) n;
"""


def run(lab: Lab, runs: int) -> Result:
    """``runs`` rounds, each of a fresh cluster; the numbers are of the one with the median ratio."""
    found = [_round(lab) for _ in range(runs)]
    middle = sorted(found, key=lambda one: float(one["ratio"]))[(len(found) - 1) // 2]
    result = Result({"runs": found})
    for change in ("expand", "shrink"):
        one = middle[change]
        result.rows.append(
            (
                f"{change} under {WRITERS} writers",
                f"{one['moves']} moves, {one['mb']:.0f} MB at {one['mb_s']:.1f} MB/s; writers stalled p99"
                f" {one['stall_p99_ms']:.0f}, max {one['stall_max_ms']:.0f} ms, {one['errors']} errors,"
                f" {one['retries']} retries",
            )
        )
    result.rows += [
        ("lost, doubled rows", f"{middle['lost']}, {middle['doubled']} of {middle['writes']} writes"),
        (
            "the same by citus_rebalance_start",
            f"{middle['citus']['mb']:.0f} MB at {middle['citus']['mb_s']:.1f} MB/s:"
            f" we are {middle['ratio']:.2f} x as fast",
        ),
    ]
    return result


def _round(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with lab.cluster(NAME, engine="citus", standbys=0, parallel_moves=PARALLEL) as pgherd:
        dsn = pgherd.dsn(NAME)
        workload = Workload(dsn, WRITERS, PAUSE_SECONDS)
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            connection.execute(CARGO.encode())
            workload.prepare(connection)
            workload.start()
            try:
                quiet = time.monotonic()
                time.sleep(8)
                for change, segments in (("expand", "4"), ("shrink", "2")):
                    begun = time.monotonic()
                    pgherd("scale", NAME, "--segments", segments, timeout=1800)
                    found[change] = _noticed(workload, quiet, begun) | rate(connection)
                    lab.say(f"{change}: {found[change]}")
                found["citus"] = _by_citus(pgherd, connection)
            finally:
                workload.stop()
            kept = audit(connection, workload.journal.writes)
    found |= {"writes": kept.acknowledged, "lost": kept.lost, "doubled": kept.duplicated}
    found["ratio"] = found["expand"]["mb_s"] / found["citus"]["mb_s"]
    lab.say(f"{found['ratio']:.2f} x as fast as citus_rebalance_start: {found['citus']}")
    return found


def _noticed(workload: Workload, quiet: float, begun: float) -> dict[str, Any]:
    journal, ended = workload.journal, time.monotonic()
    writes = stalls(journal.between(begun, ended), journal.between(quiet, quiet + 8))
    return {
        "seconds": ended - begun,
        "normal_ms": writes.normal,
        "stall_p99_ms": writes.p99,
        "stall_max_ms": writes.max,
        **refusals(workload, begun, ended),
    }


def _by_citus(pgherd: Pgherd, connection: Connection) -> dict[str, Any]:
    """The new segments are there and empty, our own moves held back: Citus fills them."""
    pgherd("pause", NAME)
    pgherd("scale", NAME, "--segments", "4", "--no-wait")

    def waiting() -> bool:
        row = connection.execute(
            "SELECT phase FROM pgherd.operations WHERE finished_at IS NULL AND kind = 'expand'"
        ).fetchone()
        return row == ("paused",)

    await_true(waiting, 300, "the new segments to be admitted")
    with closing(superuser(pgherd, NAME)) as desk:
        before = _places(desk)
        begun = time.monotonic()
        desk.execute("SELECT citus_rebalance_start()")
        await_true(lambda: _is_over(desk), 1800, "citus_rebalance_start to end", every=0.2)
        seconds = time.monotonic() - begun
        after = _places(desk)
    moved = [size for shard, (node, size) in after.items() if before[shard][0] != node]
    megabytes = sum(moved) / 1e6
    return {"moves": len(moved), "mb": megabytes, "move_s": seconds, "mb_s": megabytes / seconds}


def _is_over(desk: Connection) -> bool:
    row = desk.execute("SELECT state::text FROM citus_rebalance_status()").fetchone()
    if row is not None and row[0] in ("failed", "cancelled"):
        raise RunError(f"citus_rebalance_start {row[0]}")
    return row is None or row[0] == "finished"


def _places(desk: Connection) -> dict[int, tuple[int, int]]:
    rows = desk.execute(
        "SELECT m.shard_id, m.group_id, coalesce(max(z.size), 0)::bigint FROM pgherd.shard_map m"
        " LEFT JOIN citus_shard_sizes() z USING (shard_id) GROUP BY 1, 2"
    ).fetchall()
    return {shard: (group, size) for shard, group, size in rows}
