"""The engine as its caller sees it: installing, admitting, retiring, checking, restore points; and nobody gets more
rights than they have."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgherd.engine.base import Engine, Finding
from pgherd.engine.fdw import install
from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.topology import Endpoint
from pgherd.postgres.connections import Connection
from tests.support.servers import Herd, problems, rows, running_herd

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("herd"), segments=2, shard_count=4) as herd:
        yield herd


@pytest.fixture
def app(herd: Herd) -> Iterator[Connection]:
    """The owner's connection; there are tables d (distributed, 400 rows) and r (reference)."""
    with herd.connect() as connection:
        connection.execute(
            "CREATE TABLE d (k int, n int CHECK (n >= 0), PRIMARY KEY (k, n)); CREATE INDEX d_n ON d (n);"
            "CREATE TABLE r (k int PRIMARY KEY); INSERT INTO r VALUES (1), (2);"
            "INSERT INTO d SELECT i, i FROM generate_series(1, 400) i;"
            "SELECT create_distributed_table('d', 'k'), create_reference_table('r')"
        )
        yield connection
        connection.rollback()
        connection.execute("DROP TABLE IF EXISTS d, r")
        assert herd.engine.clean_up() == 0
        assert problems(herd) == []


def found(herd: Herd) -> list[tuple[int, str]]:
    return [(finding.group, finding.check) for finding in herd.engine.check()]


def a_leaf(herd: Herd, group: int) -> str:
    with herd.connect(group) as segment:
        return str(rows(segment, "SELECT min(name::text) FROM pgherd.leaves")[0])


def test_initialising_again_changes_nothing_and_brings_old_objects_up_to_date(
    herd: Herd, app: Connection
) -> None:
    engine: Engine = herd.engine
    for _ in range(2):
        engine.initialise_coordinator(4)
        engine.initialise_segment(1)
    with herd.superuser() as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("COMMENT ON SCHEMA pgherd IS 'installed by an older version'")
        superuser.execute(
            "DROP FOREIGN TABLE pgherd.query_1; ALTER SERVER segment_1 OPTIONS (DROP fdw_tuple_cost)"
        )
        superuser.execute("ALTER SERVER segment_1 OPTIONS (SET batch_size '7')")
    with herd.superuser(1) as segment:
        segment.execute("COMMENT ON SCHEMA pgherd IS NULL; DROP FUNCTION pgherd.shows_shards")
    engine.initialise_coordinator(16)
    engine.initialise_segment(1)
    assert rows(
        app, "SELECT sum((\"row\" ->> 'n')::int) FROM pgherd.on_segments('SELECT count(*) AS n FROM d')"
    ) == [400]
    assert rows(app, "SELECT value FROM pgherd.settings WHERE name = 'shard_count'") == ["16"]
    engine.initialise_coordinator(4)
    options = rows(app, "SELECT DISTINCT option_name || '=' || option_value FROM pg_foreign_server,"
                   " pg_options_to_table(srvoptions) WHERE option_name IN ('batch_size', 'fdw_tuple_cost')"
                   " ORDER BY 1")  # fmt: skip
    assert options == ["batch_size=500", "fdw_tuple_cost=1"]


@pytest.mark.parametrize("name", ["App-1", "o\"dd ' na\\me"])
def test_the_database_may_have_any_name(tmp_path: Path, name: str) -> None:
    herd = Herd(tmp_path, segments=1, shard_count=2, database=name)
    try:
        herd.up()
        with herd.connect() as app:
            app.execute("CREATE TABLE d (k int); SELECT create_distributed_table('d', 'k')")
            app.execute("INSERT INTO d SELECT generate_series(1, 10); ALTER TABLE d ADD COLUMN x int")
            assert rows(app, "SELECT count(*) FROM d") == [10]
        assert problems(herd) == []
    finally:
        herd.down()


def test_endpoints_are_what_was_admitted_or_updated(herd: Herd) -> None:
    engine = herd.engine
    there = herd.addresses()
    assert engine.segments() == (1, 2)
    assert engine.endpoints() == {1: there[1], 2: there[2]}
    engine.update_endpoints(1, [Endpoint("127.0.0.1", 1), *there[1]])
    assert engine.endpoints()[1] == [Endpoint("127.0.0.1", 1), *there[1]]
    engine.admit(1, there[1])
    assert engine.endpoints()[1] == there[1]
    with pytest.raises(PgherdError, match="not admitted"):
        engine.update_endpoints(9, there[1])


def test_a_segment_is_reached_through_whichever_member_answers(herd: Herd, app: Connection) -> None:
    herd.engine.update_endpoints(1, [Endpoint("127.0.0.1", 1), *herd.addresses()[1]])
    assert rows(app, "SELECT count(*) FROM d") == [400]
    herd.engine.update_endpoints(1, herd.addresses()[1])
    assert rows(app, "SELECT count(*) FROM d") == [400]


def test_a_segment_with_shards_cannot_be_retired(herd: Herd, app: Connection) -> None:
    with pytest.raises(PgherdError, match="segment-1 still holds 2 shard groups"):
        herd.engine.retire(1)
    assert herd.engine.segments() == (1, 2)
    assert problems(herd) == []


def test_shard_groups_have_places_tables_and_sizes(herd: Herd, app: Connection) -> None:
    groups = herd.engine.shard_groups()
    assert [group.id.index for group in groups] == [0, 1, 2, 3]
    assert [group.segment for group in groups] == [1, 2, 1, 2]
    assert all(group.bytes > 8192 and group.tables == ("public.d",) for group in groups)


def test_without_segments_nothing_can_be_distributed(herd: Herd) -> None:
    with herd.superuser() as superuser, superuser.transaction(force_rollback=True):
        superuser.execute("DELETE FROM pgherd.segment; SET ROLE app; CREATE TABLE x (k int)")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            superuser.execute("SELECT create_distributed_table('x', 'k')")


def test_a_segment_that_cannot_be_reached_is_not_half_admitted(herd: Herd) -> None:
    with pytest.raises(psycopg.Error):
        herd.engine.admit(7, [Endpoint("127.0.0.1", 1)])
    assert herd.engine.segments() == (1, 2)
    with herd.superuser() as superuser:
        assert rows(superuser, "SELECT count(*) FROM pg_foreign_server") == [2]
    with pytest.raises(Unavailable):
        herd.engine.initialise_segment(7)


def test_stray_rows_are_refused_and_found(herd: Herd, app: Connection) -> None:
    leaf = a_leaf(herd, 1)
    with herd.superuser(1) as segment:
        with pytest.raises(psycopg.errors.CheckViolation):
            segment.execute(
                f"INSERT INTO pgherd_shards.{leaf} SELECT i, 0 FROM generate_series(1, 50) i".encode()
            )
        segment.execute(f"ALTER TABLE pgherd_shards.{leaf} DROP CONSTRAINT pgherd_placement".encode())
        assert found(herd) == [(1, "shards")]
        parent = rows(
            segment,
            f"SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = 'pgherd_shards.{leaf}'::regclass",
        )[0]
        bound = rows(
            segment,
            f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = 'pgherd_shards.{leaf}'::regclass",
        )[0]
        segment.execute(f"ALTER TABLE {parent} DETACH PARTITION pgherd_shards.{leaf}".encode())
        segment.execute(
            f"INSERT INTO pgherd_shards.{leaf} SELECT i, 10000 FROM generate_series(1, 50) i".encode()
        )
        with pytest.raises(psycopg.errors.CheckViolation):
            segment.execute(f"ALTER TABLE {parent} ATTACH PARTITION pgherd_shards.{leaf} {bound}".encode())
        # only somebody who edits the system catalogue can get this far
        segment.execute(f"DELETE FROM pgherd_shards.{leaf} WHERE n = 10000".encode())
        segment.execute(f"ALTER TABLE {parent} ATTACH PARTITION pgherd_shards.{leaf} {bound}".encode())
        segment.execute(
            f"SET allow_system_table_mods = on; UPDATE pg_class SET relispartition = false WHERE oid ="
            f" 'pgherd_shards.{leaf}'::regclass".encode()
        )
        segment.execute(
            f"INSERT INTO pgherd_shards.{leaf} SELECT i, 10000 FROM generate_series(1, 50) i".encode()
        )
        segment.execute(
            f"UPDATE pg_class SET relispartition = true WHERE oid = 'pgherd_shards.{leaf}'::regclass".encode()
        )
    strays = [finding for finding in herd.engine.check() if finding.check == "strays"]
    assert len(strays) == 1
    assert "rows of public.d" in strays[0].message


DAMAGE = {
    "a leaf gone": (1, "DROP TABLE pgherd_shards.{leaf}", [(1, "shards")]),
    "a leaf detached": (1, "ALTER TABLE d DETACH PARTITION pgherd_shards.{leaf}", [(1, "shards")]),
    "a leaf too many": (1, "CREATE TABLE pgherd_shards.x (LIKE d)", [(1, "shards")]),
    "a column too many": (2, "ALTER TABLE d ADD COLUMN x int", [(2, "definitions")]),
    "a constraint gone": (2, "ALTER TABLE d DROP CONSTRAINT d_n_check", [(2, "definitions")]),
    "a primary key gone": (2, "ALTER TABLE d DROP CONSTRAINT d_pkey", [(2, "definitions")]),
    "an index gone": (2, "DROP INDEX d_n", [(2, "definitions")]),
    "a check changed": (
        2,
        "ALTER TABLE d DROP CONSTRAINT d_n_check; ALTER TABLE d ADD CONSTRAINT d_n_check CHECK (n > -5)",
        [(2, "definitions")],
    ),
    "an index changed": (2, "DROP INDEX d_n; CREATE INDEX d_n ON d (n DESC)", [(2, "definitions")]),
    "a column renamed": (2, "ALTER TABLE d RENAME n TO x", [(2, "definitions")] * 5),
    "a drop that was never committed": (
        1,
        "CREATE SCHEMA pgherd_gone_{oid} AUTHORIZATION app; ALTER TABLE d SET SCHEMA pgherd_gone_{oid}",
        [(1, "definitions")],
    ),
    "a type changed": (2, "ALTER TABLE d ALTER COLUMN n TYPE bigint", [(2, "definitions")]),
    "a table gone": (1, "DROP TABLE d CASCADE", [(1, "definitions"), (1, "shards"), (1, "shards")]),
    "a copy changed": (2, "INSERT INTO r VALUES (3)", [(2, "copies")]),
    "a copy gone": (2, "DROP TABLE r", [(2, "definitions"), (2, "copies")]),
    "a slot": (
        1,
        "SELECT pg_create_logical_replication_slot('pgherd_move_0', 'pgoutput')",
        [(1, "leftovers")],
    ),
    "a publication": (1, "CREATE PUBLICATION pgherd_move_0", [(1, "leftovers")]),
    "a subscription": (
        2,
        "CREATE SUBSCRIPTION pgherd_move_0 CONNECTION '' PUBLICATION p WITH (connect = false, slot_name = NONE)",
        [(2, "leftovers")],
    ),
    "another server": (
        0,
        "SET allow_system_table_mods = on; UPDATE pg_foreign_table SET ftserver = (SELECT oid FROM pg_foreign_server"
        " WHERE srvname = 'segment_2') WHERE ftrelid = 'pgherd_shards.{leaf}'::regclass",
        [(0, "placement")],
    ),
    "a placement that moved by itself": (
        0,
        "UPDATE pgherd.shard_group SET group_id = 2 WHERE index = 0",
        [(0, "placement"), (1, "shards"), (2, "shards")],
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_check_finds_what_is_wrong(herd: Herd, app: Connection, kind: str) -> None:
    group, command, expected = DAMAGE[kind]
    leaf = a_leaf(herd, 1)
    oid = rows(app, "SELECT 'd'::regclass::oid")[0]
    with herd.superuser(group) as server:
        server.execute(command.format(leaf=leaf, oid=oid).encode())
    findings = herd.engine.check()
    assert [(finding.group, finding.check) for finding in findings] == expected
    assert all(isinstance(finding, Finding) and finding.message and finding.fix for finding in findings)
    for fix in {finding.fix for finding in findings if finding.fix.startswith("SELECT")}:
        if kind != "a table gone":
            app.execute(fix.encode())
            assert problems(herd) == []
    with herd.superuser(group) as server:
        for undo in (
            "DROP TABLE IF EXISTS pgherd_shards.x",
            "DROP SUBSCRIPTION IF EXISTS pgherd_move_0",
            "DROP PUBLICATION IF EXISTS pgherd_move_0",
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots",
            f"DROP TABLE IF EXISTS pgherd_shards.{leaf}" if kind == "a leaf detached" else "",
        ):
            if group:
                server.execute(undo.encode())


def test_dropped_tables_keep_their_rows_on_segments_until_the_drop_is_committed(
    herd: Herd, app: Connection
) -> None:
    for command in ("DROP TABLE d", "SELECT undistribute_table('d')"):
        with app.transaction(force_rollback=True):
            app.execute(command.encode())
        assert rows(app, "SELECT count(*) FROM d") == [400]
    app.execute("SELECT undistribute_table('d')")
    with herd.superuser(1) as segment:
        gone = rows(segment, "SELECT oid::regclass::text FROM pg_class WHERE relname = 'd'")
        assert len(gone) == 1
        assert rows(segment, f"SELECT count(*) > 100 FROM {gone[0]}") == [True]
        assert problems(herd) == []
        herd.kill9(2)
        assert herd.engine.clean_up() == 1
        herd.start(2)
        assert herd.engine.clean_up() == 0
        assert rows(segment, "SELECT * FROM pgherd.leaves") == []
    assert rows(app, "SELECT count(*) FROM d") == [400]


def test_a_segment_that_is_away_is_a_finding(herd: Herd, app: Connection) -> None:
    herd.kill9(2)
    try:
        assert (2, "reachable") in found(herd)
        sizes = rows(app, "SELECT shard_size IS NULL FROM citus_shards ORDER BY shardid")
        assert sizes == [False, True, False, True]
    finally:
        herd.start(2)


def test_restore_points_never_catch_a_transaction_half_committed(herd: Herd, app: Connection) -> None:
    stop = threading.Event()

    def transfers() -> None:
        with herd.connect() as connection:
            while not stop.is_set():
                with connection.transaction():
                    connection.execute(
                        "INSERT INTO d SELECT i, 1000 + (random() * 1e9)::int FROM generate_series(1, 6) i"
                    )
                    connection.execute("INSERT INTO r SELECT max(k) + 1 FROM r")

    writer = threading.Thread(target=transfers)
    writer.start()
    try:
        points = [herd.engine.create_restore_point(f"point {n}") for n in range(3)]
    finally:
        stop.set()
        writer.join()
    assert [sorted(point) for point in points] == [[0, 1, 2]] * 3
    assert points[0][1] < points[1][1]
    for bad in ("", "x" * 64):
        with pytest.raises(BadInput):
            herd.engine.create_restore_point(bad)


def test_a_restore_point_waits_for_open_writers_without_blocking_others(herd: Herd, app: Connection) -> None:
    done: list[object] = []
    with herd.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO d VALUES (1, 5000)")
        waiting = threading.Thread(target=lambda: done.append(herd.engine.create_restore_point("later")))
        waiting.start()
        for n in range(20):
            app.execute("INSERT INTO d VALUES (2, %s)", [6000 + n])
        assert not done
        writer.commit()
    waiting.join()
    assert done


ESCALATIONS = [
    # a trap in whatever a privileged function may touch of the owner's
    "ALTER FOREIGN TABLE pgherd_segment_1.r ADD COLUMN x int GENERATED ALWAYS AS (public.trap(k)) STORED",
    "CREATE TRIGGER t BEFORE INSERT ON pgherd_segment_1.r FOR EACH STATEMENT EXECUTE FUNCTION public.trap_trigger()",
    "CREATE TRIGGER t BEFORE INSERT ON pgherd_segment_1.r FOR EACH ROW EXECUTE FUNCTION public.trap_trigger()",
    "ALTER TABLE r ADD CHECK (public.trap(1) > 0)",
    "ALTER TABLE r ADD COLUMN x int GENERATED ALWAYS AS (public.trap(1) + k) STORED",
    "ALTER TABLE d ADD CHECK (public.trap(1) > 0)",
    "CREATE INDEX ON d (public.trap(k))",
    "CREATE INDEX ON r ((k::public.trapped))",
    "CREATE TRIGGER t BEFORE INSERT ON d FOR EACH ROW EXECUTE FUNCTION public.trap_trigger()",
    # our own functions and tables
    "ALTER FUNCTION pgherd.write_through() SECURITY INVOKER",
    "ALTER FUNCTION pgherd.follow_as_owner(regclass, jsonb) SECURITY INVOKER SET search_path TO public",
    "ALTER FUNCTION pgherd.forget_dropped(oid[], text[]) SECURITY INVOKER SET search_path TO public",
    "CREATE OR REPLACE FUNCTION pgherd.write_through() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM"
    " public.trap(1); RETURN NULL; END'",
    "CREATE TRIGGER t BEFORE INSERT ON pgherd.cleanup FOR EACH ROW EXECUTE FUNCTION public.trap_trigger()",
    "CREATE TRIGGER t BEFORE UPDATE ON pgherd.distributed_table FOR EACH ROW EXECUTE FUNCTION public.trap_trigger()",
    "CREATE TRIGGER t BEFORE INSERT ON pgherd.exec_1 FOR EACH ROW EXECUTE FUNCTION public.trap_trigger()",
    "INSERT INTO pgherd.distributed_table (relation, kind) VALUES ('public.trap_view', 'reference')",
    "CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = bigint, PROCEDURE = public.trap_op)",
    "CREATE FUNCTION public.format(text, name, name) RETURNS text LANGUAGE sql AS 'SELECT public.trap(1)::text'",
    "CREATE FUNCTION public.count(int) RETURNS bigint LANGUAGE sql AS 'SELECT public.trap(1)'",
]  # fmt: skip

TRAPS = """
CREATE FUNCTION public.trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        EXECUTE 'ALTER ROLE app SUPERUSER';
    END IF;
    RETURN 1;
END $$;
CREATE FUNCTION public.trap_trigger() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM public.trap(1); IF TG_LEVEL = ''ROW'' THEN RETURN NEW; END IF; RETURN NULL; END';
CREATE FUNCTION public.trap_op(oid, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap(1) = 1';
CREATE DOMAIN public.trapped AS int CHECK (public.trap(1) = 1);
CREATE VIEW public.trap_view AS SELECT public.trap(1) AS k;
"""


def tried(*acts: Callable[[], object]) -> None:
    """Do all of them; a trap may well make one fail."""
    for act in acts:
        with contextlib.suppress(psycopg.Error, PgherdError):
            act()


def is_superuser(herd: Herd) -> bool:
    with herd.superuser() as superuser:
        query = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) 'app'::pg_catalog.name"
        return bool(rows(superuser, query)[0])


@pytest.mark.parametrize("trap", ESCALATIONS)
def test_the_owner_cannot_become_superuser(herd: Herd, app: Connection, trap: str) -> None:
    app.execute(TRAPS)
    for propagate in ("on", "off"):
        app.execute(f"SET pgherd.propagate = {propagate}".encode())
        tried(lambda: app.execute(trap.encode()))
    app.execute("SET pgherd.propagate = on")
    try:
        for use in USES:
            tried(lambda use=use: app.execute(use.encode()))  # type: ignore[misc]
        tried(
            herd.engine.check,
            herd.engine.shard_groups,
            lambda: herd.engine.create_restore_point("x"),
            lambda: herd.engine.admit(2, herd.addresses()[2]),
            lambda: herd.engine.retire(1),
            herd.engine.clean_up,
        )
        if (
            "public" in trap[:30] or "trap_view" in trap
        ):  # traps for whoever does not say which function is meant
            tried(herd.add_segment, lambda: install_again(herd))
        assert not is_superuser(herd)
    finally:
        disarm(herd, app)


USES = (
    "INSERT INTO r VALUES (10)",
    "INSERT INTO d VALUES (1000, 1)",
    "ALTER TABLE r ADD COLUMN y int DEFAULT 1",
    "ALTER TABLE d ADD COLUMN y int DEFAULT 1",
    "CREATE TABLE e (k int PRIMARY KEY); SELECT create_reference_table('e'); DROP TABLE e",
    "SELECT pgherd.repair_table('r'), pgherd.repair_table('d')",
    "SELECT * FROM citus_tables",
    "ANALYZE",
)


def install_again(herd: Herd) -> None:
    with herd.superuser() as superuser:
        superuser.execute("COMMENT ON SCHEMA pgherd IS 'old'")
    herd.engine.initialise_coordinator(4)


def disarm(herd: Herd, app: Connection) -> None:
    with herd.superuser() as superuser:
        superuser.execute("SET search_path TO pg_catalog; SET session_replication_role = replica")
        superuser.execute("ALTER ROLE app NOSUPERUSER; DROP VIEW public.trap_view CASCADE")
        superuser.execute(
            "DELETE FROM pgherd.distributed_table d WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = d.relation)"
        )
    install_again(herd)
    app.execute(
        "DROP TABLE d, r; DROP OPERATOR IF EXISTS public.= (oid, bigint); DROP DOMAIN trapped CASCADE"
    )
    app.execute(
        "DROP FUNCTION IF EXISTS public.trap(int), public.trap_trigger, public.trap_op,"
        " public.format(text, name, name), public.count(int) CASCADE"
    )
    if 3 in herd.servers:
        herd.engine.retire(3)
        herd.servers.pop(3).stop()


def test_dropping_the_public_schema_or_all_that_is_owned_leaves_a_working_herd(
    herd: Herd, app: Connection
) -> None:
    app.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert rows(app, "SELECT * FROM citus_tables") == []
    assert problems(herd) == []
    app.execute("CREATE TABLE d (k int); SELECT create_distributed_table('d', 'k'); INSERT INTO d VALUES (1)")
    app.execute("DROP OWNED BY app")
    assert problems(herd) == []
    herd.engine.initialise_coordinator(4)
    with herd.superuser() as superuser:
        superuser.execute("CREATE SCHEMA IF NOT EXISTS public AUTHORIZATION pg_database_owner")
    app.execute("CREATE TABLE d (k int); SELECT create_distributed_table('d', 'k'); INSERT INTO d VALUES (1)")


def test_the_scripts_name_every_file(herd: Herd) -> None:
    folder = Path(install.__file__).parent / "sql"
    named = {Path(name).name for name in install.COORDINATOR_FILES + install.SEGMENT_FILES}
    assert {file.name for file in folder.glob("*.sql")} <= named


class Quiet:
    """A move's control that lets everything pass."""

    def report(self, message: str, bytes_done: int | None = None) -> None:
        pass

    def checkpoint(self, name: str) -> None:
        pass


def test_per_segment_queries_see_every_row_once_while_shards_move(herd: Herd, app: Connection) -> None:
    stop = threading.Event()
    counts: list[int] = []
    retried: list[str] = []

    def count() -> None:
        with herd.connect() as connection:
            while not stop.is_set():
                try:
                    counts.append(
                        rows(
                            connection,
                            "SELECT * FROM pgherd.aggregate('d', ARRAY['count(*)']) AS a(n bigint)",
                        )[0]
                    )
                except psycopg.errors.SerializationFailure as error:
                    retried.append(str(error))

    reader = threading.Thread(target=count)
    reader.start()
    try:
        for target in (2, 1, 2, 1):
            for group in herd.engine.shard_groups():
                if group.id.index < 2:
                    herd.engine.move(1, group.id, target, Quiet())
    finally:
        stop.set()
        reader.join()
    assert set(counts) == {400}
    assert len(counts) > len(retried)
    while herd.engine.clean_up():
        stop.wait(0.1)
