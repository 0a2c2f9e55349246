"""A shard group moves while people read, write and change definitions, and nobody notices more than a moment's wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgherd.engine.base import ShardGroupId
from pgherd.engine.fdw import move_catalog
from pgherd.engine.fdw.cleanup import clean_up
from pgherd.engine.fdw.move import move_shard_group, preflight
from pgherd.errors import BadInput, Unavailable
from pgherd.postgres.connections import Connection
from tests.support.moves import (
    GROUP,
    Control,
    leftovers,
    load,
    make_tables,
    move,
    percentile,
    place_of,
    settle,
)
from tests.support.servers import Herd, running_herd

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("move"), segments=2, shard_count=4) as herd:
        make_tables(herd)
        yield herd


@pytest.fixture(autouse=True)
def nothing_is_left(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(move_catalog, "GRACE", "200 milliseconds")
    yield
    settle(herd)
    assert leftovers(herd) == {}


def key_in(connection: Connection, table: str, index: int) -> int:
    """A fresh key whose row falls into the shard with this index."""
    row = connection.execute(
        "SELECT k FROM generate_series(1000000, 1001000) k"
        " WHERE satisfies_hash_partition(%s::regclass, 4, %s, k::bigint)"
        f" AND NOT EXISTS (SELECT FROM {table} WHERE id = k) LIMIT 1".encode(),
        [table, index],
    ).fetchone()
    assert row is not None
    return int(row[0])


def in_background(act: object) -> threading.Thread:
    assert callable(act)
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def wait_until(condition: object, seconds: float = 15) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_moving_under_writers_loses_and_doubles_nothing_and_makes_them_wait_only_a_moment(herd: Herd) -> None:
    with load(herd, writers=6, readers=2) as running:
        for index in (0, 1, 2, 3, 0, 1):
            move(herd, group=ShardGroupId(1, index))
            clean_up(herd.databases)
    assert max(running.stalls) < 1.0
    assert percentile(running.stalls, 0.99) < 0.3
    assert max(running.reads) < 0.5


def test_all_colocated_tables_move_together(herd: Herd) -> None:
    target = 3 - place_of(herd)
    move(herd, target=target)
    with herd.superuser() as connection:
        servers = connection.execute(
            "SELECT DISTINCT f.srvname::text FROM pgherd.shard s"
            " JOIN pg_class c ON c.relname = s.name AND c.relkind = 'f'"
            " JOIN pg_foreign_table t ON t.ftrelid = c.oid JOIN pg_foreign_server f ON f.oid = t.ftserver"
            " WHERE s.index = 0"
        ).fetchall()
    assert servers == [(f"segment_{target}",)]


def test_moving_to_where_it_is_does_nothing(herd: Herd) -> None:
    control = Control()
    move(herd, control, target=place_of(herd))
    assert control.names == []


def test_what_does_not_exist_can_not_be_moved(herd: Herd) -> None:
    with pytest.raises(BadInput, match="no shard group 1/77"):
        move_shard_group(herd.databases, 1, ShardGroupId(1, 77), 1, Control())
    with pytest.raises(BadInput, match="segment 9 is not admitted"):
        move_shard_group(herd.databases, 1, GROUP, 9, Control())


def test_two_moves_of_one_group_exclude_each_other(herd: Herd) -> None:
    def second() -> None:
        with pytest.raises(Unavailable, match="already"):
            move_shard_group(herd.databases, 1, GROUP, 1, Control())

    move(herd, Control(copied=second))


def test_cleaning_up_leaves_a_running_move_alone(herd: Herd) -> None:
    move(
        herd, Control(subscribed=lambda: clean_up(herd.databases), attached=lambda: clean_up(herd.databases))
    )


def test_prepared_statements_follow_the_shard(herd: Herd) -> None:
    with herd.connect() as connection:
        key = key_in(connection, "kept", 0)
        connection.execute("PREPARE put (bigint) AS INSERT INTO kept VALUES ($1, 1)")
        connection.execute("PREPARE add (bigint) AS UPDATE kept SET v = v + 1 WHERE id = $1")
        connection.execute("PREPARE get (bigint) AS SELECT v FROM kept WHERE id = $1")
        connection.execute(f"EXECUTE put ({key})".encode())
        for _ in range(8):  # enough for generic plans
            connection.execute(f"EXECUTE add ({key})".encode())
            connection.execute(f"EXECUTE get ({key})".encode())
        move(herd)
        connection.execute(f"EXECUTE add ({key})".encode())
        assert connection.execute(f"EXECUTE get ({key})".encode()).fetchone() == (10,)
        move(herd)
        assert connection.execute(f"EXECUTE get ({key})".encode()).fetchone() == (10,)


def test_a_blocking_move_needs_no_replication(herd: Herd) -> None:
    with load(herd) as running:
        control = move(herd, blocking=True)
        move(herd, blocking=True)
    assert "slot" not in control.names
    assert "copied" in control.names
    assert running.acknowledged > 20


def test_copy_and_truncate_during_a_move_arrive(herd: Herd) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE bin (id bigint PRIMARY KEY, v int)")
        connection.execute("SELECT create_distributed_table('bin', 'id', colocate_with => 'kept')")
        connection.execute("INSERT INTO bin SELECT g, 1 FROM generate_series(1, 500) g")

        def replace() -> None:
            connection.execute("TRUNCATE bin")
            with connection.cursor().copy("COPY bin FROM STDIN") as copy:
                for n in range(300):
                    copy.write_row((n, 2))

        move(herd, Control(slot=replace))
        assert connection.execute("SELECT count(*), sum(v) FROM bin").fetchone() == (300, 600)
        move(herd, Control(copied=replace))
        assert connection.execute("SELECT count(*), sum(v) FROM bin").fetchone() == (300, 600)
        connection.execute("DROP TABLE bin")


def test_every_kind_of_column_survives(herd: Herd) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('low', 'high')")
        connection.execute(
            "CREATE TABLE wide (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gone int, a int DEFAULT 7,"
            " twice int GENERATED ALWAYS AS (a * 2) STORED, m mood, ms mood[], j json, t text[], n numeric, b bytea,"
            ' z timestamptz, "od d""" text CHECK (length("od d""") < 9))'
        )
        connection.execute("SELECT create_distributed_table('wide', 'id', colocate_with => 'kept')")
        connection.execute("ALTER TABLE wide DROP COLUMN gone")
        connection.execute("ALTER TABLE wide ADD COLUMN late int DEFAULT 5")
        connection.execute("CREATE INDEX ON wide (a)")
        fill = (
            "INSERT INTO wide (a, m, ms, j, t, n, b, z, \"od d\"\"\") SELECT g, 'high', '{low,high}', '{\"a\": 1}',"
            " '{x,NULL}', g / 7.0, decode(md5(g::text), 'hex'), now(), 'x' FROM generate_series(1, 200) g"
        )
        connection.execute(fill)
        digest = "SELECT count(*), md5(string_agg(w::text, '' ORDER BY id)) FROM wide w"
        before = connection.execute(digest).fetchone()
        for index in range(4):
            move(herd, group=ShardGroupId(1, index))
        assert connection.execute(digest).fetchone() == before
        move(herd, Control(copied=lambda: connection.execute(fill)))
        assert connection.execute("SELECT count(*), count(late), sum(twice) FROM wide").fetchone() == (
            400,
            400,
            80400,
        )
        connection.execute("DROP TABLE wide")


def test_every_kind_of_index_arrives_ready_made(herd: Herd) -> None:
    with herd.connect() as connection:
        connection.execute(
            "CREATE TABLE sought (id bigint, a int, b text, c tsvector, UNIQUE (id, a) INCLUDE (b) DEFERRABLE,"
            " PRIMARY KEY (id))"
        )
        connection.execute("CREATE UNIQUE INDEX ON sought (id, b) NULLS NOT DISTINCT WITH (fillfactor = 70)")
        connection.execute("SELECT create_distributed_table('sought', 'id', colocate_with => 'kept')")
        for index in (
            'INDEX "we ird USING" ON sought USING gin (c)',
            'INDEX ON sought (lower(b) COLLATE "C" text_pattern_ops DESC NULLS LAST) WHERE a > 3',
            "INDEX ON sought USING hash (a)",
            "INDEX ON sought USING brin (a)",
        ):
            connection.execute(f"CREATE {index}".encode())
        connection.execute(
            "INSERT INTO sought SELECT g, g, g, to_tsvector(g::text) FROM generate_series(1, 99) g"
        )
    definitions = indexes_on(herd, place_of(herd), "sought")
    assert len(definitions) == 7
    move(herd)
    assert indexes_on(herd, place_of(herd), "sought") == definitions
    with herd.connect() as connection:
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO sought SELECT * FROM sought")
        connection.execute("DROP TABLE sought")


def indexes_on(herd: Herd, segment: int, table: str) -> list[tuple[str, str | None, bool]]:
    """What follows the name of each index of the table's first leaf, its constraint, whether its twin has it too."""
    with herd.connect(segment) as connection:
        return connection.execute(
            "SELECT regexp_replace(pg_get_indexdef(i.indexrelid), '^.* ON [^ ]* (?=USING)', ''),"
            " pg_get_constraintdef(k.oid), h.inhparent IS NOT NULL"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid"
            " LEFT JOIN pg_inherits h ON h.inhrelid = i.indexrelid"
            " WHERE c.relname LIKE %s AND c.relkind = 'r' AND c.relname ="
            " (SELECT min(relname::text) FROM pg_class WHERE relname LIKE %s AND relkind = 'r') ORDER BY 1, 2",
            [f"{table}\\_%"] * 2,
        ).fetchall()


def test_definitions_wait_for_the_move_and_then_change(herd: Herd) -> None:
    done = threading.Event()
    waited: list[bool] = []

    def alter() -> None:
        with herd.connect() as connection:
            connection.execute("ALTER TABLE kept ADD COLUMN extra int DEFAULT 3")
        done.set()

    def begin() -> None:
        in_background(alter)
        with herd.superuser() as connection:
            wait_until(lambda: is_waiting(connection))

    move(herd, Control(copied=begin, attached=lambda: waited.append(not done.is_set())))
    assert waited == [True]
    assert done.wait(10)
    with herd.connect() as connection:
        move(herd)
        assert connection.execute("SELECT count(*) FROM kept WHERE extra = 3 AND id < 0").fetchone() == (
            2000,
        )
        connection.execute("ALTER TABLE kept DROP COLUMN extra")


def is_waiting(connection: Connection) -> bool:
    """Whether somebody waits for moves to end."""
    return (
        connection.execute(
            "SELECT FROM pg_locks WHERE relation = 'pgherd.ddl_barrier'::regclass AND NOT granted"
        ).fetchone()
        is not None
    )


def test_a_move_gives_way_to_definitions_that_hold_what_it_needs(herd: Herd) -> None:
    writing, altered = threading.Event(), threading.Event()

    def write_then_alter() -> None:
        with herd.connect(autocommit=False) as connection:
            connection.execute("INSERT INTO kept VALUES (%s, 0)", [key_in(connection, "kept", 0)])
            writing.set()
            with herd.superuser() as watcher:
                wait_until(lambda: holds_barrier(watcher))
            connection.execute(
                "ALTER TABLE kept ADD COLUMN squeezed int"
            )  # waits for the move, which waits for us
            connection.commit()
        altered.set()

    control = Control(created=lambda: (in_background(write_then_alter), writing.wait(10)))
    move(herd, control)
    assert altered.wait(10)
    assert any("giving way" in message for message in control.messages)
    with herd.connect() as connection:
        connection.execute("ALTER TABLE kept DROP COLUMN squeezed")


def holds_barrier(connection: Connection) -> bool:
    """Whether a move keeps definitions from changing."""
    return (
        connection.execute(
            "SELECT FROM pg_locks WHERE relation = 'pgherd.ddl_barrier'::regclass AND granted AND mode = 'ShareLock'"
        ).fetchone()
        is not None
    )


def test_a_long_writer_delays_the_move_but_nobody_else(herd: Herd) -> None:
    stalls: list[float] = []

    def others_write() -> None:
        with herd.connect() as other:
            for _ in range(60):
                began = time.monotonic()
                other.execute("UPDATE kept SET v = v WHERE id = -1")
                stalls.append(time.monotonic() - began)
                time.sleep(0.02)
        blocker.commit()

    with herd.connect(autocommit=False) as blocker:
        key = key_in(blocker, "loose", 0)
        blocker.commit()

        def hold() -> None:
            blocker.execute("INSERT INTO loose VALUES (%s, 1, 'long')", [key])
            in_background(others_write)

        control = move(herd, Control(subscribed=hold))
    assert max(stalls) < 0.5
    assert any("in a transaction since" in message for message in control.messages)
    with herd.connect() as connection:
        assert connection.execute("DELETE FROM loose WHERE id = %s", [key]).rowcount == 1


def test_an_open_write_transaction_on_the_source_is_named_while_the_move_waits_for_it(herd: Herd) -> None:
    source = place_of(herd)
    with herd.connect(source, autocommit=False) as writer:
        writer.execute("SELECT pg_current_xact_id()")
        control = Control()
        thread = in_background(lambda: move(herd, control))
        wait_until(lambda: any(str(writer.info.backend_pid) in message for message in control.messages))
        writer.commit()
        thread.join(20)
    assert place_of(herd) != source


def test_a_reader_that_was_there_first_finishes_on_the_old_copy(herd: Herd) -> None:
    with herd.connect(autocommit=False) as reader:
        cursor = psycopg.ServerCursor(reader, "slow")
        cursor.itersize = 1
        cursor.execute("SELECT id FROM kept WHERE id < 0")
        first = cursor.fetchone()
        source = place_of(herd)
        move(herd)
        assert clean_up(herd.databases) > 0
        assert len([first, *cursor.fetchall()]) == 2000
        with herd.superuser(source) as connection:
            kept = connection.execute(
                "SELECT count(*) FROM pg_class WHERE relname LIKE 'kept\\_%' AND relkind = 'r'"
            )
            assert kept.fetchone() is not None
        reader.rollback()
    settle(herd)


def test_a_transaction_older_than_the_arrival_is_told_to_try_again_instead_of_missing_rows(
    herd: Herd,
) -> None:
    source = place_of(herd)
    target = 3 - source
    with herd.superuser() as connection:
        elsewhere = connection.execute(
            "SELECT index FROM pgherd.shard_group WHERE group_id = %s LIMIT 1", [target]
        ).fetchone()
    if elsewhere is None:
        move(herd, group=ShardGroupId(1, 1), target=target)
        elsewhere = (1,)
    with herd.connect(autocommit=False) as straddler:
        here = key_in(straddler, "kept", 0)
        straddler.execute("INSERT INTO kept VALUES (%s, 1)", [here])
        straddler.commit()
        straddler.execute("SELECT FROM kept WHERE id = %s", [key_in(straddler, "kept", elsewhere[0])])
        move(herd)
        with pytest.raises(psycopg.errors.SerializationFailure, match="moved here since"):
            straddler.execute("UPDATE kept SET v = 2 WHERE id = %s", [here])
        straddler.rollback()
        assert straddler.execute("UPDATE kept SET v = 2 WHERE id = %s", [here]).rowcount == 1
        straddler.commit()


def test_the_old_copy_refuses_writes(herd: Herd) -> None:
    source = place_of(herd)
    move(herd)
    with herd.superuser(source) as connection:
        name = connection.execute(
            "SELECT c.relname::text FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid"
            " WHERE relnamespace = 'pgherd_shards'::regnamespace AND relkind = 'r' AND i.inhrelid IS NULL LIMIT 1"
        ).fetchone()
        assert name is not None
        with pytest.raises(psycopg.errors.SerializationFailure, match="has moved"):
            connection.execute(f"DELETE FROM pgherd_shards.{name[0]}".encode())


def test_tables_that_can_not_be_compared_row_by_row_are_refused_before_anything_starts(herd: Herd) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE papers (id bigint, body json)")
        connection.execute("CREATE TABLE sums (id bigint, twice bigint GENERATED ALWAYS AS (id * 2) STORED)")
        connection.execute("CREATE TABLE plain (id bigint, body jsonb, t text[])")
        for table in ("papers", "sums", "plain"):
            connection.execute("SELECT create_distributed_table(%s, 'id', colocate_with => 'kept')", [table])
        groups = [ShardGroupId(1, index) for index in range(4)]
        problems = preflight(herd.databases, groups)
        assert len(problems) == 2
        assert "table public.papers has no primary key and the column body of type json" in problems[0]
        assert "table public.sums has no primary key and the generated column twice" in problems[1]
        assert preflight(herd.databases, groups, blocking=True) == []
        connection.execute("INSERT INTO papers SELECT g, '{}' FROM generate_series(1, 50) g")
        move(herd, blocking=True)
        assert connection.execute("SELECT count(*) FROM papers").fetchone() == (50,)
        connection.execute("DROP TABLE papers; DROP TABLE sums; DROP TABLE plain")


def test_servers_that_lack_what_replication_needs_are_named(herd: Herd) -> None:
    with herd.superuser(1) as connection:
        connection.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'stuck'")
        try:
            assert any(
                "prepared transaction stuck" in problem for problem in preflight(herd.databases, [GROUP])
            )
        finally:
            connection.execute("ROLLBACK PREPARED 'stuck'")
    assert preflight(herd.databases, [GROUP]) == []


def test_a_group_without_tables_moves(herd: Herd) -> None:
    with herd.connect() as connection:
        connection.execute("CREATE TABLE alone (id uuid PRIMARY KEY)")
        connection.execute("SELECT create_distributed_table('alone', 'id')")
        connection.execute("DROP TABLE alone")
        row = connection.execute("SELECT max(id) FROM pgherd.colocation").fetchone()
    assert row is not None
    move(herd, group=ShardGroupId(row[0], 0))


def test_the_writers_of_this_file_would_notice_a_lost_row(herd: Herd) -> None:
    with load(herd, writers=2, readers=0) as running:
        wait_until(lambda: running.acknowledged > 60)
    with herd.connect() as connection:
        victim = connection.execute(
            "DELETE FROM kept WHERE id = (SELECT max(id) FROM kept WHERE id < 1000000)"
        )
        assert victim.rowcount == 1
    with pytest.raises(AssertionError, match="none of"):
        running.verify()
