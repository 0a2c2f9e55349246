"""The supervisor killed by SIGKILL after every persisted step of an operation on a Citus cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.operations.runner import crash_points
from tests.support.citus import SEEN_BY_CHANCE, citus_home, needs_citus
from tests.support.home import declaration
from tests.support.writers import audit, make_table, writers

pytestmark = needs_citus

ROWS = 3000


@pytest.mark.parametrize(("kind", "before", "after"), [("expand", 2, 3), ("shrink", 3, 2)])
def test_a_supervisor_killed_after_every_step_leaves_a_whole_citus_cluster(
    tmp_path: Path, kind: str, before: int, after: int
) -> None:
    log = tmp_path / "crashes"
    with citus_home({"PGHERD_CRASH_AT": ",".join(crash_points(kind)), "PGHERD_CRASH_LOG": str(log)}) as home:
        home.up(declaration(engine="citus", segments=before, standbys=0), timeout=300)
        with home.connect() as connection:
            make_table(connection)
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute(f"INSERT INTO item SELECT g, 'n' || g FROM generate_series(1, {ROWS}) g")
        with writers(home.connect, 2) as journal:
            home.run("scale", "shop", "--segments", str(after), timeout=400)
        home.wait_phase("Running", timeout=120)
        must = {point for point in crash_points(kind) if point.split(":")[2] not in SEEN_BY_CHANCE}
        assert must <= set(log.read_text().split())
        assert home.query("SELECT count(*), sum(id)::bigint FROM item") == [(ROWS, ROWS * (ROWS + 1) // 2)]
        assert len(home.status()["groups"]) == after + 1
        with home.connect() as connection:
            audit(connection, journal)
        done = home.run("check", "shop", check=False)
        assert done.stdout.strip().endswith("nothing found wrong"), done.stdout
