"""``pgherd check`` finds what is wrong with a Citus cluster, each thing by its name, and nothing else.

Damage is done as a superuser to the metadata or the node itself, and undone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgherd.engine.citus import checks
from pgherd.engine.registry import make_engine
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe
from tests.support.citus import Programs, citus_home, needs_citus, superuser
from tests.support.home import Home, declaration, wait_for

pytestmark = needs_citus


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("citus"))


@pytest.fixture(scope="module")
def herd(programs: Programs) -> Iterator[Home]:
    with citus_home({"PGHERD_BIN_DIR": str(programs.directory)}) as home:
        home.up(declaration(engine="citus", standbys=0, shards=4), timeout=300)
        with home.connect() as connection:
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute("CREATE TABLE kind (id int PRIMARY KEY)")
            connection.execute("SELECT create_reference_table('kind')")
        yield home


@pytest.fixture(autouse=True)
def _sound_before_and_after(herd: Home) -> Iterator[None]:
    sound(herd)
    yield
    sound(herd)


def sound(home: Home) -> None:
    wait_for(lambda: findings(home) == [], f"nothing is wrong: {findings(home)}", 60, every=0.5)


def findings(home: Home) -> list[dict[str, Any]]:
    found = home.run("check", "shop", "-o", "json", check=False)
    assert found.returncode in (0, 1), found.stderr
    assert found.stdout, found.stderr
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


def test_objects_and_schemas_that_differ_between_nodes(herd: Home) -> None:
    with superuser(herd) as desk, superuser(herd, "segment-2") as node:
        desk.execute("CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n'")
        desk.execute("SELECT create_distributed_function('twice(int)'); CREATE SCHEMA tenant")
        desk.execute("SELECT citus_schema_distribute('tenant')")
        sound(herd)
        for table, key in (
            ("pg_dist_object", "objid = 'twice(int)'::regprocedure"),
            ("pg_dist_schema", "true"),
        ):
            row = one(node, f"SELECT {table}::text FROM {table} WHERE {key}")
            node.execute(f"DELETE FROM {table} WHERE {key}".encode())
            message = the_only(herd, "metadata")
            node.execute(f"INSERT INTO {table} SELECT (%s::{table}).*".encode(), [row])
            assert message == f"segment-2 has another {table} than the coordinator"
        desk.execute("DROP FUNCTION twice(int); DROP SCHEMA tenant")


def test_a_table_that_is_called_like_a_shard_and_is_none(herd: Home) -> None:
    with superuser(herd, "segment-1") as node:
        node.execute("SET citus.enable_ddl_propagation TO off; CREATE TABLE public.item_999999999 (id int)")
        message = the_only(herd, "placements")
        node.execute("DROP TABLE public.item_999999999")
    assert message == "segment-1 has the orphan public.item_999999999, which is no shard of any table"


def test_a_placement_that_is_invalid(herd: Home) -> None:
    with superuser(herd) as desk:
        shard = one(desk, "SELECT min(shard_id) FROM pgherd.shard_map WHERE group_id = 1")
        change = f"UPDATE pg_dist_placement SET shardstate = {{}} WHERE shardid = {shard}"
        desk.execute(change.format(4).encode())
        found = {each["message"] for each in findings(herd)}
        desk.execute(change.format(1).encode())
    assert f"segment-1 has an invalid placement of shard {shard}" in found


def test_functions_that_an_owner_makes_are_not_run_by_our_superuser(herd: Home) -> None:
    made = ("citus_version() RETURNS text", "starts_with(name, text) RETURNS boolean")
    with herd.connect() as owner:
        for each in made:
            owner.execute(
                f"CREATE FUNCTION public.{each} LANGUAGE plpgsql AS 'BEGIN RAISE ''ran''; END'".encode()
            )
        assert findings(herd) == []
        for each in made:
            owner.execute(f"DROP FUNCTION public.{each.partition(' RETURNS')[0]}".encode())


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
    assert found["reference tables"] == "segment-2 has no copy of public.kind"


def test_a_reference_table_whose_copy_has_other_rows(herd: Home) -> None:
    with superuser(herd, "segment-2") as node:
        copy = one(
            node,
            "SELECT shard_name('kind', shardid) FROM pg_dist_shard WHERE logicalrelid = 'kind'::regclass",
        )
        node.execute("SET citus.enable_manual_changes_to_shards TO on")
        node.execute(f"INSERT INTO {copy} VALUES (99)".encode())
        # What is on its way to another table hides nothing.
        node.execute(
            "BEGIN; LOCK TABLE pg_dist_authinfo IN ACCESS SHARE MODE; PREPARE TRANSACTION 'citus_99_1_1_2'"
        )
        try:
            message = the_only(herd, "copies")
        finally:
            node.execute("ROLLBACK PREPARED 'citus_99_1_1_2'")
        fix = findings(herd)[0]["fix"]
    assert message == "segment-2 has other rows of reference table public.kind than the coordinator"
    with superuser(herd) as desk:
        for each in fix.removeprefix("SELECT ").partition(":")[0].split(", then "):
            desk.execute(f"SELECT {each}".encode())
    sound(herd)
    with herd.connect("shop", "--group", "segment-2") as connection:
        assert one(connection, "SELECT count(*) FROM kind WHERE id = 99") == 0


def test_copies_of_a_reference_table_that_is_written_to_are_the_same(herd: Home) -> None:
    stop = threading.Event()

    def write() -> None:
        with herd.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO kind VALUES (100)")
                connection.execute("DELETE FROM kind WHERE id = 100")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            assert list(observe.connect(LocalPlatform(herd.path), "shop", make_engine).engine.check()) == []
    finally:
        stop.set()
        writer.join(30)


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


# nodes that differ: a condition, a line, and nothing is started


def unfit(home: Home) -> str | None:
    conditions = home.status()["conditions"]
    return next((each["message"] for each in conditions if each["type"] == "EngineUnfit"), None)


@contextmanager
def extension(home: Home, group: str, change: str, undo: str) -> Iterator[None]:
    """A node's extension is changed in its catalogue, and put right again."""
    with superuser(home, group) as node:
        node.execute(f"UPDATE pg_extension SET {change}".encode())
        try:
            yield
        finally:
            node.execute(f"UPDATE pg_extension SET {undo}".encode())


def refuses_to_grow(home: Home, message: str) -> None:
    """A condition with the node's name, an expansion that ends with it, and not a member of the new group."""
    wait_for(lambda: message in (unfit(home) or ""), f"the status says: {message}", 30)
    wait_for(lambda: message in (home.path / "shop" / "status.json").read_text(), "the supervisor saw it", 30)
    refused = home.run("scale", "shop", "--segments", "3", check=False)
    assert refused.returncode == 1
    assert message in refused.stdout + refused.stderr
    wait_for(
        lambda: (
            (last := home.status()["lastOperation"] or {}).get("phase") == "failed"
            and message in last["error"]
        ),
        "the expansion has ended with it",
        60,
    )
    assert not list((home.path / "shop" / "members").glob("shop-segment-3-*/data"))
    home.run("scale", "shop", "--segments", "2", "--no-wait")


def test_an_upgrade_that_is_half_done_is_named_and_keeps_shards_where_they_are(herd: Home) -> None:
    with superuser(herd, "segment-2") as node:
        version = one(node, "SELECT extversion FROM pg_extension WHERE extname = 'citus'")
    change, undo = (f"extversion = '{each}' WHERE extname = 'citus'" for each in ("13.0-1", version))
    with extension(herd, "segment-2", change, undo):
        found = {(each["group"], each["check"]): each for each in findings(herd)}
        refuses_to_grow(
            herd, f"segment-2 has Citus 13.0-1 in the database, but {version} installed: run ALTER"
        )
    assert (
        found["segment-2", "version"]["message"]
        == f"segment-2 has Citus 13.0-1 in the database, but {version} installed"
    )
    assert "ALTER EXTENSION citus UPDATE" in found["segment-2", "version"]["fix"]
    wait_for(lambda: unfit(herd) is None, "nothing is told any more", 30)


def test_a_node_that_lost_the_extension_is_named_and_nothing_empty_takes_its_place(herd: Home) -> None:
    change, undo = "extname = 'gone' WHERE extname = 'citus'", "extname = 'citus' WHERE extname = 'gone'"
    with extension(herd, "segment-2", change, undo):
        refuses_to_grow(herd, "segment-2 has lost the extension citus")
        assert "segment-2 has lost the extension citus" in the_only(herd, "version")
        wait_for(
            lambda: any("segment-2 has lost the extension" in each for each in herd.status()["errors"]),
            "it is not made anew",
            30,
        )
    herd.wait_phase("Running")
    wait_for(lambda: unfit(herd) is None and not herd.status()["errors"], "nothing is told any more", 30)


def test_no_member_starts_where_citus_is_not_installed_any_more(herd: Home, programs: Programs) -> None:
    herd.run("stop", "shop")
    programs.tell(None)
    herd.run("start", "shop", "--no-wait")
    told = "shop-segment-1-0 can't run: spec.engine: citus is not in the PostgreSQL"
    wait_for(
        lambda: any(told in each for each in herd.status()["errors"]),
        "it is told of each member",
        60,
        every=0.5,
    )
    assert not herd.running("patroni.yml")
    programs.tell_the_truth()
    herd.run("start", "shop")


def test_a_node_that_is_registered_where_no_member_is(herd: Home) -> None:
    with superuser(herd) as desk:
        desk.execute("UPDATE pgherd.segment_configuration SET port = port + 1 WHERE group_id = 1")
        message = the_only(herd, "registered")
        desk.execute("UPDATE pgherd.segment_configuration SET port = port - 1 WHERE group_id = 1")
    assert message.startswith("segment-1 is registered as 127.0.0.1:")
    assert message.endswith(", where no member of it is")
