"""Nodes of Citus that differ: what the engine says of each, and what it leaves alone. Plain servers, no Patroni."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pgherd.errors import PgherdError
from tests.support.citus import Programs, citus_home, needs_citus
from tests.support.citus_servers import CitusHerd, running_citus_herd
from tests.support.home import declaration
from tests.support.servers import rows

pytestmark = needs_citus

ROWS = 200


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CitusHerd]:
    with running_citus_herd(tmp_path_factory.mktemp("citus")) as running:
        with running.connect() as connection:
            connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('item', 'id')")
            connection.execute(f"INSERT INTO item SELECT g, 'x' FROM generate_series(1, {ROWS}) g".encode())
        yield running


def installed(herd: CitusHerd) -> str:
    with herd.superuser() as desk:
        return str(rows(desk, "SELECT extversion FROM pg_extension WHERE extname = 'citus'")[0])


@contextmanager
def extension_of(herd: CitusHerd, group: int, version: str) -> Iterator[None]:
    """A node's extension counts as of another version meanwhile."""
    before = installed(herd)
    for now in (version, before):
        with herd.superuser(group) as node:
            node.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'citus'", [now])
        if now == version:
            yield


def test_nodes_of_one_version_are_fit(herd: CitusHerd) -> None:
    assert herd.engine.unfit() == []
    assert all(herd.engine.is_initialised(group) for group in (0, 1, 2))


@pytest.mark.parametrize(("group", "name"), [(0, "coordinator"), (2, "segment-2")])
def test_a_half_done_upgrade_names_its_node_and_the_way_out(herd: CitusHerd, group: int, name: str) -> None:
    version = installed(herd)
    with extension_of(herd, group, "13.0-1"):
        found = herd.engine.unfit()
    assert (
        f"{name} has Citus 13.0-1 in the database, but {version} installed: run ALTER EXTENSION" in found[0]
    )
    assert herd.engine.unfit() == []


def test_a_database_that_is_newer_than_what_is_installed_says_what_to_install(herd: CitusHerd) -> None:
    with extension_of(herd, 1, "99.0-1"):
        assert "segment-1 has Citus 99.0-1 in the database" in herd.engine.unfit()[0]
        assert herd.engine.unfit()[0].endswith("install Citus 99.0-1 there")


@pytest.mark.parametrize("type_", ["json", "point", "xml"])
def test_a_key_of_a_type_that_has_no_hash_is_refused_and_the_table_stays_as_it_is(
    herd: CitusHerd, type_: str
) -> None:
    with herd.connect() as connection:
        connection.execute(f"CREATE TABLE odd (id int, key {type_})".encode())
        connection.execute("INSERT INTO odd VALUES (1, NULL)")
        with pytest.raises(psycopg.Error, match=f"type {type_}"):
            connection.execute("SELECT create_distributed_table('odd', 'key')")
        assert rows(connection, "SELECT count(*) FROM odd") == [1]
        assert rows(connection, "SELECT count(*) FROM citus_tables WHERE table_name = 'odd'::regclass") == [0]
        connection.execute("DROP TABLE odd")


def test_a_pair_of_versions_that_citus_does_not_support_is_refused(tmp_path: Path) -> None:
    programs = Programs(tmp_path / "programs")
    programs.tell("12.1-1")
    with citus_home({"PGHERD_BIN_DIR": str(programs.directory)}) as home:
        done = home.up(declaration(engine="citus"), check=False)
        assert done.returncode == 2
        assert "Citus 12.1 is older than 13.0, the first that pgherd runs" in done.stderr
        assert "--bin-dir" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not home.path.exists() or not home.processes()


def test_a_segment_that_lost_the_extension_is_named_not_made_anew_and_comes_back_as_told(
    herd: CitusHerd,
) -> None:
    with herd.superuser(2) as node:
        node.execute("SET citus.enable_ddl_propagation TO off; SET client_min_messages TO error")
        node.execute("DROP EXTENSION citus CASCADE")
    told = "segment-2 has lost the extension citus, nothing empty is put in its place: "
    assert [each[: len(told)] for each in herd.engine.unfit()] == [told]
    assert not herd.engine.is_initialised(2)
    with pytest.raises(PgherdError, match="segment-2 has lost the extension citus"):
        herd.engine.initialise_segment(2)
    with herd.superuser(2) as node:
        assert rows(node, "SELECT count(*) FROM pg_extension WHERE extname = 'citus'") == [0]
    [finding] = [each for each in herd.engine.check() if each.check == "version"]
    assert (finding.group, finding.message.partition(",")[0]) == (2, "segment-2 has lost the extension citus")
    for group, statement in ((2, "CREATE EXTENSION citus"), (0, "SELECT start_metadata_sync_to_all_nodes()")):
        assert statement in finding.fix
        with herd.superuser(group) as node:
            node.execute(statement.encode())
        herd.engine.initialise_segment(2)
    assert herd.engine.unfit() == []
    assert [each.message for each in herd.engine.check()] == []
    with herd.connect(2) as connection:
        assert rows(connection, "SELECT count(*) FROM item") == [ROWS]


def test_a_coordinator_that_lost_the_extension_is_not_made_anew(herd: CitusHerd) -> None:
    with herd.superuser() as desk:
        desk.execute("SET citus.enable_ddl_propagation TO off; SET client_min_messages TO error")
        desk.execute("DROP EXTENSION citus CASCADE")
    assert "coordinator has lost the extension citus" in herd.engine.unfit()[0]
    with pytest.raises(PgherdError, match="coordinator has lost the extension citus"):
        herd.engine.initialise_coordinator(4)


def test_who_does_not_take_part_does_not_begin_to_because_its_members_are_told(herd: CitusHerd) -> None:
    """A round that was planned before a segment was retired may still tell its members."""
    herd.engine.update_endpoints(9, herd.addresses()[2])
    assert 9 not in herd.engine.endpoints()
