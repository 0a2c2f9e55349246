"""What Citus has besides rows in heap tables, through an expansion and back: columnar tables, distributed functions,
distributed schemas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.citus import citus_home, needs_citus, superuser
from tests.support.home import Home, declaration, wait_for

pytestmark = needs_citus

ROWS = 2000


def declared(segments: int, mode: str) -> str:
    return declaration(
        engine="citus", segments=segments, standbys=0, shards=4, extra=f"  expansion: {{mode: {mode}}}\n"
    )


@pytest.fixture(scope="module")
def herd() -> Iterator[Home]:
    with citus_home() as home:
        home.up(declared(2, "online"), timeout=300)
        with superuser(home) as desk:
            desk.execute("CREATE EXTENSION IF NOT EXISTS citus_columnar")
        with home.connect() as connection:
            connection.execute("CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL)")
            connection.execute("SELECT create_distributed_table('counter', 'id')")
            connection.execute(f"INSERT INTO counter SELECT g, 0 FROM generate_series(1, {ROWS}) g")
            connection.execute(
                "CREATE FUNCTION bump(which int) RETURNS int LANGUAGE plpgsql AS"
                " 'DECLARE result int;"
                " BEGIN UPDATE public.counter SET n = n + 1 WHERE id = which RETURNING n INTO result;"
                " RETURN result; END'"
            )
            connection.execute(
                "SELECT create_distributed_function('bump(int)', 'which', colocate_with => 'counter')"
            )
            for tenant in range(5):
                connection.execute("SET citus.enable_schema_based_sharding TO on")
                connection.execute(f"CREATE SCHEMA tenant{tenant}")
                connection.execute(f"CREATE TABLE tenant{tenant}.note (id int PRIMARY KEY, text text)")
                connection.execute(
                    f"CREATE TABLE tenant{tenant}.tag (id int PRIMARY KEY, note int REFERENCES tenant{tenant}.note)"
                )
                connection.execute(
                    f"INSERT INTO tenant{tenant}.note SELECT g, 'x' FROM generate_series(1, {tenant + 1}) g"
                )
                connection.execute(f"INSERT INTO tenant{tenant}.tag SELECT id, id FROM tenant{tenant}.note")
        yield home


def bumped(home: Home, times: int) -> None:
    with home.connect() as connection:
        for number in range(1, 41):
            assert connection.execute("SELECT bump(%s)", [number]).fetchone() == (times,)


def tenants(home: Home) -> list[int]:
    joined = "SELECT count(*) FROM tenant{0}.note n JOIN tenant{0}.tag t ON t.note = n.id"
    return [home.query(joined.format(tenant))[0][0] for tenant in range(5)]


def sound(home: Home) -> None:
    done = home.run("check", "shop", check=False)
    assert done.stdout.strip().endswith("nothing found wrong"), done.stdout


def test_functions_and_schemas_are_where_their_rows_are_after_growing_and_shrinking(herd: Home) -> None:
    bumped(herd, 1)
    for segments in (4, 1, 2):
        herd.run("scale", "shop", "--segments", str(segments), timeout=400)
        bumped(herd, {4: 2, 1: 3, 2: 4}[segments])
        assert tenants(herd) == [1, 2, 3, 4, 5]
        places = herd.query(
            "SELECT index, count(DISTINCT group_id), count(*) FROM pgherd.shard_map WHERE colocation_id = 0 GROUP BY 1"
        )
        assert [tables for _index, where, tables in places if where == 1] == [2] * 5
        assert all(group["shards"] > 0 for group in herd.status()["groups"][1:])
    # Pushed to the node that has the row, there too.
    plan = "\n".join(row[0] for row in herd.query("EXPLAIN SELECT bump(1)"))
    assert "Result" in plan
    sound(herd)


def test_columnar_tables_are_named_before_and_moved_in_a_blocking_window(herd: Home) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE event (id int NOT NULL, at timestamptz, note text) USING columnar")
        connection.execute("SELECT create_distributed_table('event', 'id', colocate_with => 'none')")
        connection.execute(f"INSERT INTO event SELECT g, now(), 'n' || g FROM generate_series(1, {ROWS}) g")
    refused = herd.run("rebalance", "shop", check=False)
    assert refused.returncode == 1
    assert "event is columnar, which can't be moved while it is written to" in refused.stdout + refused.stderr
    for segments in (3, 2):
        herd.up(declared(segments, "blocking"), timeout=400)
        assert herd.query("SELECT count(*), sum(id)::bigint FROM event") == [(ROWS, ROWS * (ROWS + 1) // 2)]
    methods = herd.query(
        "SELECT DISTINCT result FROM run_command_on_shards('event',"
        " 'SELECT amname FROM pg_am a JOIN pg_class c ON c.relam = a.oid WHERE c.oid = ''%s''::regclass')"
    )
    assert methods == [("columnar",)]
    sound(herd)


def test_a_move_waits_for_whoever_makes_a_table_of_its_colocation(herd: Home) -> None:
    herd.up(declared(2, "online"), timeout=400)
    with herd.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS event")
    herd.run("pause", "shop")
    herd.run("scale", "shop", "--segments", "3", "--no-wait")

    def operation() -> dict[str, object]:
        return herd.status()["operation"] or {}

    wait_for(lambda: operation().get("phase") == "paused", "the new segment is admitted", 180)
    with herd.connect(autocommit=False) as maker:
        maker.execute("CREATE TABLE later (id int PRIMARY KEY)")
        maker.execute("SELECT create_distributed_table('later', 'id', colocate_with => 'counter')")
        herd.run("resume", "shop")
        # The first move may be of another colocation: its slot waits for whoever has written on the segment.
        pid = maker.info.backend_pid
        wait_for(
            lambda: (
                (now := operation()).get("phase") == "waiting"
                or f"waiting for process {pid} on coordinator" in str(now)
            ),
            "a move waits, and says for whom",
            120,
        )
        maker.commit()
    herd.wait_phase("Running", timeout=240)
    assert herd.status()["lastOperation"]["phase"] == "done"
    herd.run("scale", "shop", "--segments", "2", timeout=400)
    sound(herd)
