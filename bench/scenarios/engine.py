"""The engine ``fdw`` beside one plain PostgreSQL of the same programs and settings, in the same run.

The cluster has no standbys here, because the plain PostgreSQL has none: only the engine differs. Each query is asked
of both in turn, so that a noisy minute hits both; numbers are medians, and what counts is their ratio. The plain
server is asked with its default parallelism.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

import psycopg

from bench.scenarios.base import SAME_SETTINGS, Lab, Result
from bench.support import Connection, RunError, percentile, timed
from pgherd.platform.local import binaries

NAME = "engine"
ROWS = 1_000_000
CUSTOMERS = 100_000
CLIENTS = 8
BLOCK = 1000
PGBENCH_SECONDS = 5

SCHEMA = """
CREATE TABLE region (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE customer (id int PRIMARY KEY, region int NOT NULL, name text NOT NULL);
CREATE TABLE sale (customer int, id bigint, amount int NOT NULL, kind int NOT NULL, note text NOT NULL,
                   PRIMARY KEY (customer, id));
"""
DISTRIBUTION = """
SELECT create_reference_table('region');
SELECT create_distributed_table('customer', 'id');
SELECT create_distributed_table('sale', 'customer', colocate_with => 'customer');
"""

QUERIES = {
    "count": ("count(*)", "SELECT count(*) FROM sale"),
    "group_by_key": (
        "group by the key",
        "SELECT count(*), max(total) FROM (SELECT customer, sum(amount) AS total FROM sale GROUP BY customer) s",
    ),
    "group_by_non_key": (
        "group by a non-key, 1000 groups",
        "SELECT kind, count(*), avg(amount), max(amount) FROM sale GROUP BY kind",
    ),
    "colocated_join": (
        "colocated join, filtered",
        "SELECT c.region, count(*), sum(s.amount) FROM sale s JOIN customer c ON c.id = s.customer"
        " WHERE s.kind < 100 GROUP BY c.region",
    ),
    "reference_join": (
        "join with a reference table",
        "SELECT r.name, count(*) FROM customer c JOIN region r ON r.id = c.region GROUP BY r.name",
    ),
}

TRANSACTIONS = {
    "key_read": (
        f"one row read by key, {CLIENTS} clients",
        f"\\set k random(1, {CUSTOMERS})\nSELECT name FROM customer WHERE id = :k;\n",
    ),
    "key_write": (
        f"one row written by key, {CLIENTS} clients",
        f"\\set k random(1, {CUSTOMERS})\nUPDATE customer SET region = region WHERE id = :k;\n",
    ),
}


def run(lab: Lab, runs: int) -> Result:
    """Load once, ask ``runs`` times."""
    result = Result()
    with (
        lab.cluster(NAME, standbys=0) as pgherd,
        closing(psycopg.connect(pgherd.dsn(NAME), autocommit=True)) as cluster,
        lab.plain(_settings(cluster)) as server,
        closing(server.connect()) as plain,
    ):
        cluster.execute((SCHEMA + DISTRIBUTION).encode())
        plain.execute(SCHEMA.encode())
        _cargo()
        seconds = [timed(lambda c=connection: _load(c))[0] for connection in (cluster, plain)]  # type: ignore[misc]
        _add(result, "copy", "COPY of 1.1 M rows", *seconds)
        for connection in (cluster, plain):
            connection.execute("ANALYZE")
        for key, (what, query) in QUERIES.items():
            _ask(result, key, what, query, cluster, plain, runs)
            lab.say(" ".join(result.rows[-1]))
        for key, (what, script) in TRANSACTIONS.items():
            path = lab.directory / f"{key}.pgbench"
            path.write_text(script)
            _transactions(result, key, what, path, (pgherd.dsn(NAME), plain.info.dsn), max(1, runs // 2))
            lab.say(" ".join(result.rows[-1]))
    return result


def _settings(connection: Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY (%s)", (list(SAME_SETTINGS),)
    )
    return dict(rows.fetchall())


@cache
def _cargo() -> Mapping[str, Sequence[str]]:
    """Blocks of COPY data by table, made before any clock runs."""
    lines: Mapping[str, tuple[int, Callable[[int], str]]] = {
        "region": (50, lambda n: f"{n}\tregion {n}\n"),
        "customer": (CUSTOMERS, lambda n: f"{n + 1}\t{n % 50}\tcustomer {n + 1}\n"),
        "sale": (ROWS, _sale),
    }
    return {
        table: ["".join(map(line, range(at, min(at + BLOCK, rows)))) for at in range(0, rows, BLOCK)]
        for table, (rows, line) in lines.items()
    }


def _sale(n: int) -> str:
    return f"{n * 7919 % CUSTOMERS + 1}\t{n}\t{n % 997}\t{n % 1000}\tnote of sale {n}\n"


def _load(connection: Connection) -> None:
    for table, blocks in _cargo().items():
        with connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
            for block in blocks:
                copy.write(block)


def _ask(
    result: Result, key: str, what: str, query: str, cluster: Connection, plain: Connection, runs: int
) -> None:
    seconds: dict[Connection, list[float]] = {cluster: [], plain: []}
    answers = {}
    for _ in range(runs + 1):  # the first of each warms the caches
        for connection, found in seconds.items():
            took, rows = timed(lambda c=connection: c.execute(query.encode()).fetchall())  # type: ignore[misc]
            found.append(took)
            answers[connection] = sorted(rows)
    if answers[cluster] != answers[plain]:
        raise RunError(f"{what}: the two answers differ")
    _add(result, key, what, percentile(seconds[cluster][1:], 50), percentile(seconds[plain][1:], 50))


def _add(result: Result, key: str, what: str, cluster: float, plain: float) -> None:
    result.add(
        key,
        {"fdw_ms": cluster * 1000, "plain_ms": plain * 1000, "ratio": cluster / plain},
        what,
        f"{cluster * 1000:.0f} ms, plain {plain * 1000:.0f} ms: {cluster / plain:.1f} x",
    )


def _transactions(
    result: Result, key: str, what: str, script: Path, dsns: tuple[str, str], runs: int
) -> None:
    rates = [[_pgbench(script, dsn) for dsn in dsns] for _ in range(runs)]
    cluster, plain = (percentile(list(column), 50) for column in zip(*rates, strict=True))
    result.add(
        key,
        {"fdw_tps": cluster, "plain_tps": plain, "ratio": plain / cluster},
        what,
        f"{cluster:.0f}/s, plain {plain:.0f}/s: {plain / cluster:.1f} x",
    )


def _pgbench(script: Path, dsn: str) -> float:
    """Transactions per second."""
    program = binaries.find().program("pgbench")
    options = [
        "-n",
        "-M",
        "prepared",
        "-c",
        str(CLIENTS),
        "-j",
        "2",
        "-T",
        str(PGBENCH_SECONDS),
        "-f",
        str(script),
    ]
    done = subprocess.run([program, *options, dsn], check=False, capture_output=True, text=True, timeout=120)
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise RunError(f"pgbench failed: {done.stderr.strip().splitlines()[-1:]}")
