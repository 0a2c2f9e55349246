"""``pgherd check`` finds what is wrong with a Citus cluster, each thing by its name, and nothing else.

Damage is done as a superuser to the metadata or the node itself, and undone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgherd.engine.citus import checks
from pgherd.engine.registry import make_engine
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe
from tests.support.citus import citus_home, needs_citus, superuser
from tests.support.home import Home, declaration

pytestmark = needs_citus


@pytest.fixture(scope="module")
def herd() -> Iterator[Home]:
    with citus_home() as home:
        home.up(declaration(engine="citus", standbys=0, shards=4), timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute("CREATE TABLE kind (id int PRIMARY KEY)")
            connection.execute("SELECT create_reference_table('kind')")
        yield home


@pytest.fixture(autouse=True)
def _sound_before_and_after(herd: Home) -> Iterator[None]:
    assert findings(herd) == []
    yield
    assert findings(herd) == []


def findings(home: Home) -> list[dict[str, Any]]:
    found = home.run("check", "shop", "-o", "json", check=False)
    assert found.returncode in (0, 1), found.stderr
    return list(json.loads(found.stdout))


def the_only(home: Home, check: str) -> str:
    found = findings(home)
    assert [each["check"] for each in found] == [check], found
    assert found[0]["fix"]
    return str(found[0]["message"])


def one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_a_shard_where_none_should_be_and_one_that_is_lost(herd: Home) -> None:
    with superuser(herd) as desk, superuser(herd, "segment-1") as node:
        elsewhere = one(desk, "SELECT min(shard_id) FROM pgherd.shard_map WHERE group_id = 2")
        here = one(desk, "SELECT min(shard_id) FROM pgherd.shard_map WHERE group_id = 1")
        node.execute("SET citus.enable_ddl_propagation TO off; SET citus.override_table_visibility TO off")
        node.execute(f"CREATE TABLE public.item_{elsewhere} (id int)")
        assert f"segment-1 has the orphan public.item_{elsewhere} of shard {elsewhere}" in the_only(
            herd, "placements"
        )
        node.execute(f"DROP TABLE public.item_{elsewhere}")
        node.execute("SET citus.enable_manual_changes_to_shards TO on")
        node.execute(f"ALTER TABLE public.item_{here} RENAME TO lost")
        assert f"segment-1 lacks shard {here}" in the_only(herd, "placements")
        node.execute(f"ALTER TABLE public.lost RENAME TO item_{here}")


def test_metadata_that_differs_between_nodes(herd: Home) -> None:
    change = "UPDATE pg_dist_partition SET repmodel = '{}' WHERE logicalrelid = 'item'::regclass"
    with superuser(herd, "segment-2") as node:
        node.execute(change.format("c").encode())
        assert "segment-2 has another pg_dist_partition than the coordinator" in the_only(herd, "metadata")
        node.execute(change.format("s").encode())


def test_a_reference_table_without_its_copy(herd: Home) -> None:
    where = (
        " FROM pg_dist_placement WHERE groupid = 2"
        " AND shardid = (SELECT shardid FROM pg_dist_shard WHERE logicalrelid = 'kind'::regclass)"
    )
    with superuser(herd) as desk:
        row = one(desk, f"SELECT pg_dist_placement::text{where}")
        desk.execute(f"DELETE{where}".encode())
        found = {each["check"]: each["message"] for each in findings(herd)}
        desk.execute("INSERT INTO pg_dist_placement SELECT (%s::pg_dist_placement).*", [row])
    assert found["reference tables"] == "segment-2 has no copy of kind"


def test_a_segment_that_is_closed_to_new_shards(herd: Home) -> None:
    set_open = "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', {}) FROM pg_dist_node"
    with superuser(herd) as desk:
        desk.execute(f"{set_open.format('false')} WHERE groupid = 2".encode())
        message = the_only(herd, "registered")
        desk.execute(f"{set_open.format('true')} WHERE groupid = 2".encode())
    assert message == "segment-2 is closed to new shards"


def test_a_slot_that_a_move_left_behind(herd: Home) -> None:
    with superuser(herd, "segment-1") as node:
        node.execute("SELECT pg_create_logical_replication_slot('citus_shard_move_slot_1_2_3', 'pgoutput')")
        message = the_only(herd, "leftovers")
        node.execute("SELECT pg_drop_replication_slot('citus_shard_move_slot_1_2_3')")
    assert message == "segment-1 has the replication slot citus_shard_move_slot_1_2_3 of a move that is over"


def test_a_prepared_transaction_that_nobody_resolves(herd: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a coordinator that there is not: Citus leaves it alone. A minute is not waited for.
    monkeypatch.setattr(checks, "OLD", "interval '0'")
    with superuser(herd, "segment-1") as node:
        node.execute(
            "BEGIN; LOCK TABLE pg_dist_authinfo IN ACCESS SHARE MODE; PREPARE TRANSACTION 'citus_99_1_1_1'"
        )
        found = observe.connect(LocalPlatform(herd.path), "shop", make_engine).engine.check()
        node.execute("ROLLBACK PREPARED 'citus_99_1_1_1'")
    assert [each.message for each in found] == [
        "segment-1 has the prepared transaction citus_99_1_1_1 for more than a minute"
    ]


def test_an_upgrade_that_is_half_done_is_named_and_keeps_shards_where_they_are(herd: Home) -> None:
    with superuser(herd, "segment-2") as node:
        version = one(node, "SELECT extversion FROM pg_extension WHERE extname = 'citus'")
        node.execute("UPDATE pg_extension SET extversion = '13.2-1' WHERE extname = 'citus'")
        try:
            found = {(each["group"], each["check"]): each["message"] for each in findings(herd)}
            refused = herd.run("rebalance", "shop", check=False)
        finally:
            node.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'citus'", [version])
    assert (
        found["segment-2", "version"]
        == f"segment-2 has Citus 13.2-1 in the database, but {version} installed"
    )
    assert refused.returncode == 1
    assert "segment-2 has Citus 13.2-1 in the database" in refused.stdout + refused.stderr


def test_a_node_that_is_registered_where_no_member_is(herd: Home) -> None:
    with superuser(herd) as desk:
        desk.execute("UPDATE pgherd.segment_configuration SET port = port + 1 WHERE group_id = 1")
        message = the_only(herd, "registered")
        desk.execute("UPDATE pgherd.segment_configuration SET port = port - 1 WHERE group_id = 1")
    assert message.startswith("segment-1 is registered as 127.0.0.1:")
    assert message.endswith(", where no member of it is")
