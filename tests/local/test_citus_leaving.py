"""Segments that leave a Citus cluster: nothing goes with them that is nowhere else. Plain servers, no Patroni."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

from pgherd.engine.citus import checks, nodes, numbering
from pgherd.errors import PgherdError, Unavailable
from tests.support.citus import needs_citus
from tests.support.citus_servers import CitusHerd, running_citus_herd
from tests.support.servers import rows

pytestmark = needs_citus

CLEANUP = (
    "INSERT INTO pg_dist_cleanup (record_id, operation_id, object_type, object_name, node_group_id, policy_type)"
    " VALUES (1000000, 1000000, 1, 'public.item_999999', %s, 1)"
)


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CitusHerd]:
    with running_citus_herd(tmp_path_factory.mktemp("citus")) as running:
        yield running


@pytest.fixture
def leaving(herd: CitusHerd) -> int:
    """A segment without shards."""
    return herd.add_segment()


def test_a_table_that_nothing_moves_keeps_its_segment(herd: CitusHerd, leaving: int) -> None:
    with herd.superuser() as desk:
        desk.execute("CREATE TABLE log (id bigint); SELECT create_distributed_table('log', 'id', 'append')")
        for _ in range(9):
            desk.execute("SELECT master_create_empty_shard('log')")
        try:
            [problem] = herd.engine.preflight([], retiring=[leaving])
            assert f"segment-{leaving} has the only copy of some of its shards" in problem
            assert "SELECT undistribute_table('public.log')" in problem
            assert herd.engine.preflight([]) == []
            with pytest.raises(
                PgherdError, match=r"table public\.log is distributed in a way that can't be moved"
            ):
                herd.engine.retire(leaving)
            assert leaving in herd.engine.segments()
            assert not [each for each in herd.engine.check() if each.check == "metadata"]
            # Whatever is declared next: who holds the only copy of something counts.
            desk.execute("DELETE FROM pgherd.segment WHERE group_id = %s", [leaving])
            assert leaving in herd.engine.segments()
        finally:
            desk.execute("DROP TABLE log")


def test_what_citus_meant_to_drop_on_a_segment_goes_with_it(herd: CitusHerd, leaving: int) -> None:
    herd.engine.retire(leaving)
    herd.servers.pop(leaving).stop()
    with herd.superuser() as desk:
        desk.execute(CLEANUP, [leaving])
        assert herd.engine.clean_up() == 0
        assert rows(desk, "SELECT count(*) FROM pg_dist_cleanup") == [0]
        assert rows(desk, f"SELECT count(*) FROM pg_dist_node WHERE groupid = {leaving}") == [0]


def test_a_record_of_a_segment_that_is_gone_is_found(herd: CitusHerd) -> None:
    with herd.superuser() as desk:
        desk.execute(CLEANUP, [77])
        try:
            found = [each for each in herd.engine.check() if "segment-77" in each.message]
        finally:
            desk.execute("DELETE FROM pg_dist_cleanup WHERE node_group_id = 77")
    assert [(each.group, each.check) for each in found] == [(0, "leftovers")]
    assert "DELETE FROM pg_dist_cleanup WHERE node_group_id = 77" in found[0].fix


def test_a_segment_ends_what_began_there_before_it_leaves(herd: CitusHerd, leaving: int) -> None:
    gid = f"citus_{leaving}_1_1_1"
    with herd.superuser(1) as elsewhere, herd.superuser(leaving) as origin:
        elsewhere.execute("SET citus.enable_ddl_propagation TO off")
        elsewhere.execute("CREATE TABLE part (id int)")
        elsewhere.execute(f"BEGIN; INSERT INTO part VALUES (1); PREPARE TRANSACTION '{gid}'".encode())
        # The decision; without it the part would be undone.
        origin.execute("INSERT INTO pg_dist_transaction (groupid, gid) VALUES (1, %s)", [gid])
        herd.engine.retire(leaving)
        assert rows(elsewhere, "SELECT count(*) FROM pg_prepared_xacts") == [0]
        assert rows(elsewhere, "SELECT id FROM part") == [1]


def test_a_segment_that_can_not_end_what_began_there_stays(
    herd: CitusHerd, leaving: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "DECIDED_SECONDS", 0.0)
    gid = f"citus_{leaving}_1_1_3"
    with herd.superuser(1) as elsewhere, herd.superuser(leaving) as origin:
        origin.execute("ALTER SYSTEM SET citus.recover_2pc_interval = -1")
        origin.execute("SELECT pg_reload_conf()")
        elsewhere.execute(
            f"BEGIN; LOCK TABLE pg_dist_authinfo IN ACCESS SHARE MODE; PREPARE TRANSACTION '{gid}'".encode()
        )
        with pytest.raises(
            Unavailable, match=f"segment-1 has prepared transactions that began on segment-{leaving}"
        ):
            herd.engine.retire(leaving)
        with herd.superuser() as desk:
            query = f"SELECT count(*) FROM pgherd.segment WHERE group_id = {leaving}"
            assert rows(desk, query) == [1], "it still counts, whatever becomes of the operation"
        elsewhere.execute(f"ROLLBACK PREPARED '{gid}'".encode())
    herd.engine.retire(leaving)


def test_the_way_out_of_an_old_prepared_transaction_names_the_node_that_can(herd: CitusHerd) -> None:
    with pytest.MonkeyPatch.context() as patch, herd.superuser(1) as elsewhere:
        patch.setattr(checks, "OLD", "interval '0 seconds'")
        for origin, way_out in ((2, "on segment-2"), (99, "segment-99, where it began, is gone")):
            gid = f"citus_{origin}_1_1_2"
            elsewhere.execute(
                "BEGIN; LOCK TABLE pg_dist_authinfo IN ACCESS SHARE MODE;"
                f" PREPARE TRANSACTION '{gid}'".encode()
            )
            found = [each for each in herd.engine.check() if each.check == "prepared"]
            with suppress(psycopg.errors.UndefinedObject):  # its origin's daemon may have ended it by now
                elsewhere.execute(f"ROLLBACK PREPARED '{gid}'".encode())
            assert [way_out in each.fix for each in found] == [True], found


NUMBERED = '"Sale"."Item %"'


def gives_numbers(herd: CitusHerd, group: int) -> None:
    with herd.superuser(group) as node:
        node.execute(f"INSERT INTO {NUMBERED} (note) SELECT 'n' || g FROM generate_series(1, 20) g".encode())


def test_a_segment_whose_number_comes_back_gives_no_value_twice(herd: CitusHerd, leaving: int) -> None:
    herd.engine.steer([leaving])
    with herd.superuser() as desk:
        desk.execute(f'CREATE SCHEMA "Sale"; CREATE TABLE {NUMBERED} (id bigserial, note text)'.encode())
        desk.execute(f"SELECT create_distributed_table('{NUMBERED}', 'note')".encode())
        try:
            gives_numbers(herd, leaving)
            herd.engine.retire(leaving)
            herd.servers.pop(leaving).stop()
            herd.engine.clean_up()
            assert herd.add_segment() == leaving
            gives_numbers(herd, leaving)
            assert rows(desk, f"SELECT count(*), count(DISTINCT id) FROM {NUMBERED}") == [(40, 40)]
            # A segment that was split off has its source's range first.
            source, behind = numbering.range_of(1), numbering.used(desk, leaving)
            assert behind is not None
            with herd.superuser(leaving) as node:
                node.execute("SET citus.enable_ddl_propagation TO off")
                node.execute(
                    f'CREATE SEQUENCE "Sale".copied MINVALUE {source[0]} MAXVALUE {source[1]}'.encode()
                )
                numbering.begin_anew(herd.databases, desk, leaving, 1)
                assert rows(node, """SELECT nextval('"Sale".copied')""") == [behind + 1]
                node.execute('DROP SEQUENCE "Sale".copied')
        finally:
            desk.execute('DROP SCHEMA "Sale" CASCADE')
