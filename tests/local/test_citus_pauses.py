"""What clients of a Citus cluster notice of a planned change at a segment: a pause, no error."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.citus import bin_dir, citus_home, needs_citus
from tests.support.home import Home, declaration

pytestmark = needs_citus

CLIENTS, SECONDS, ROWS = 16, 20, 1000
MOST_SECONDS = 10.0
"""of one statement, on however busy a machine; what was measured is printed"""
SCRIPT = f"\\set id random(1, {ROWS})\nUPDATE counter SET n = n + 1 WHERE id = :id;\n"


@pytest.fixture(scope="module")
def herd() -> Iterator[Home]:
    with citus_home() as home:
        home.up(declaration(engine="citus"), timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL)")
            connection.execute("SELECT create_distributed_table('counter', 'id')")
        yield home


@pytest.mark.parametrize("command", [("switchover",), ("restart",)])
def test_clients_wait_while_a_segment_s_primary_changes_and_none_fails(
    herd: Home, tmp_path: Path, command: tuple[str, ...]
) -> None:
    herd.wait_phase("Running", timeout=120)
    with herd.connect() as connection:
        connection.execute("TRUNCATE counter")
        connection.execute(f"INSERT INTO counter SELECT g, 0 FROM generate_series(1, {ROWS}) g")
    (tmp_path / "script").write_text(SCRIPT)
    options = ["-n", "-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS), "-l", "-f", "script"]
    bench = subprocess.Popen(
        [f"{bin_dir()}/pgbench", *options, herd.dsn()],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(3)
    herd.run(*command, "shop", "--group", "segment-1")
    _out, errors = bench.communicate(timeout=SECONDS + 60)
    assert bench.returncode == 0, errors
    assert "aborted" not in errors
    latencies = [
        int(line.split()[2]) / 1e6
        for log in tmp_path.glob("pgbench_log*")
        for line in log.read_text().splitlines()
    ]
    print(f"{command[0]}: {len(latencies)} statements, the slowest took {max(latencies):.2f} s, none failed")
    assert max(latencies) < MOST_SECONDS
    # Each acknowledged statement counted once.
    assert herd.query("SELECT sum(n)::bigint FROM counter") == [(len(latencies),)]
