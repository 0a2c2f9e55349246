"""Reference tables: every segment's copy equals the coordinator's rows, whoever writes and however it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgherd.postgres.connections import Connection
from tests.support.home import wait_for
from tests.support.servers import Herd, problems, rows, running_herd

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("herd"), segments=2, shard_count=4) as herd:
        yield herd


@pytest.fixture
def app(herd: Herd) -> Iterator[Connection]:
    with herd.connect() as connection:
        connection.execute("CREATE SCHEMA shop; SET search_path = shop")
        yield connection
        assert problems(herd) == []
        connection.execute("DROP SCHEMA shop CASCADE")


def test_values_of_every_type_arrive_unchanged(herd: Herd, app: Connection) -> None:
    app.execute("""
        CREATE TYPE mood AS ENUM ('sad', 'it''s fine');
        CREATE TABLE r (
            a text, b timestamptz, c bytea, d numeric, e float8, m mood, PRIMARY KEY (a, b, c, d, e, m),
            f interval, g jsonb, h int[], i date, j uuid, k boolean, l float4, n "char", o tsrange, p inet, q time,
            t text GENERATED ALWAYS AS (upper(a)) STORED, u int GENERATED ALWAYS AS IDENTITY, v text[]
        );
        SELECT create_reference_table('r');
        SET timezone = 'Asia/Kolkata'; SET datestyle = 'German'; SET intervalstyle = 'sql_standard';
        SET bytea_output = 'escape'; SET extra_float_digits = -10;
        INSERT INTO r (a, b, c, d, e, m, f, g, h, i, j, k, l, n, o, p, q, v) VALUES
            (E'it''s "x" \\\\ %s \\n', timestamptz '2024-02-28 12:00:00.123456+00', decode('00ff5c27', 'hex'),
             1e-30, 1.0 / 3, 'it''s fine', interval '1 year -3 days 04:05:06.789', '{"a": [null, 1e400]}', '{1,NULL}',
             'infinity', gen_random_uuid(), NULL, 1.0 / 3, '\\200', '[2024-01-01,)', '::1/64', '24:00',
             '{"NULL",NULL,""}'),
            ('', '-infinity', '', 'NaN', 'NaN', 'sad', NULL, 'null', '{}', '0044-03-15 BC', NULL, true, '-Infinity',
             NULL, 'empty', NULL, NULL, NULL);
    """)  # fmt: skip
    assert problems(herd) == []
    app.execute("UPDATE r SET i = NULL, d = d + 1, c = c || c")
    assert problems(herd) == []
    assert app.execute("DELETE FROM r").rowcount == 2


WRITES: dict[str, Callable[[Connection, int], object]] = {
    "insert": lambda c, i: c.execute("INSERT INTO r VALUES (%s, 0)", [1000 + i]),
    "update": lambda c, i: c.execute("UPDATE r SET n = n + 1 WHERE k <= 5"),
    "delete and insert": lambda c, i: c.execute("DELETE FROM r WHERE k = 7; INSERT INTO r VALUES (7, 0)"),
    "upsert": lambda c, i: c.execute("INSERT INTO r VALUES (8, 0) ON CONFLICT (k) DO UPDATE SET n = r.n + 1"),
    "swap keys": lambda c, i: c.execute("UPDATE r SET k = -k WHERE abs(k) = 9"),
}


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_concurrent_writers_leave_equal_copies(herd: Herd, app: Connection, isolation: str) -> None:
    app.execute(
        "CREATE TABLE r (k int PRIMARY KEY, n int); INSERT INTO r SELECT i, 0 FROM generate_series(1, 20) i"
    )
    app.execute("SELECT create_reference_table('r')")
    refused: list[str] = []

    def write(kind: str) -> None:
        with herd.connect() as connection:
            connection.execute("SET search_path = shop")
            connection.execute(f"SET default_transaction_isolation = '{isolation}'".encode())
            for i in range(15):
                try:
                    with connection.transaction(force_rollback=i % 5 == 4):
                        connection.execute("SELECT count(*) FROM r")
                        WRITES[kind](connection, i)
                except (psycopg.errors.SerializationFailure, psycopg.errors.UniqueViolation) as error:
                    refused.append(f"{kind}: {error}")

    writers = [threading.Thread(target=write, args=[kind]) for kind in WRITES]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert problems(herd) == []
    if isolation == "read committed":
        assert rows(app, "SELECT count(*) FROM r WHERE k >= 1000") == [12]


def test_a_serializable_writer_that_is_too_late_fails_before_segments_commit(
    herd: Herd, app: Connection
) -> None:
    app.execute("CREATE TABLE one (k int PRIMARY KEY); CREATE TABLE two (k int PRIMARY KEY)")
    app.execute("SELECT create_reference_table('one'), create_reference_table('two')")
    begin = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    with herd.connect(autocommit=False) as early, herd.connect(autocommit=False) as late:
        early.execute(begin)
        late.execute(begin)
        # Each reads what the other writes: there is no order of the two in which both see nothing.
        early.execute("INSERT INTO shop.one SELECT count(*) FROM shop.two")
        assert rows(late, "SELECT count(*) FROM shop.one") == [0]
        with ThreadPoolExecutor() as pool:
            written = pool.submit(late.execute, "INSERT INTO shop.two VALUES (0)")
            waiting = f"SELECT cardinality(pg_blocking_pids({late.info.backend_pid})) > 0"
            wait_for(lambda: written.done() or rows(app, waiting) == [True], "it waits")
            early.commit()
            with pytest.raises(psycopg.errors.SerializationFailure):
                written.result()
        late.rollback()
        assert problems(herd) == []
        late.execute(begin)
        late.execute("INSERT INTO shop.two SELECT count(*) FROM shop.one")
        late.commit()
    assert rows(app, "SELECT k FROM two") == [1]


def test_a_segment_that_comes_has_all_rows_and_later_writes(herd: Herd, app: Connection) -> None:
    app.execute(
        "CREATE TABLE r (k int PRIMARY KEY, n int); INSERT INTO r SELECT i, 0 FROM generate_series(1, 50) i"
    )
    app.execute(
        "CREATE TABLE d (k int); SELECT create_reference_table('r'), create_distributed_table('d', 'k')"
    )
    with herd.connect(autocommit=False) as old, herd.connect(autocommit=False) as waiting:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM shop.r")
        waiting.execute("UPDATE shop.r SET n = 1 WHERE k = 1")
        admitted = threading.Thread(target=herd.add_segment)
        admitted.start()
        waiting.execute("UPDATE shop.r SET n = 2 WHERE k = 2")
        waiting.commit()
        admitted.join()
        # what an old snapshot would not tell the new segment, it must not tell anybody
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.execute("UPDATE shop.r SET n = 3 WHERE k = 3")
    app.execute("UPDATE r SET n = 4 WHERE k = 4; INSERT INTO d SELECT i FROM generate_series(1, 100) i")
    assert problems(herd) == []
    assert rows(app, 'SELECT count(*) FROM pgherd_segment_3."shop.r"') == [50]
    herd.engine.retire(3)
    app.execute("UPDATE r SET n = 5; ALTER TABLE d ADD COLUMN x int")
    herd.engine.admit(3, herd.addresses()[3])
    assert problems(herd) == []
    herd.engine.retire(3)
    herd.servers.pop(3).stop()


def test_a_write_without_a_segment_fails_as_a_whole(herd: Herd, app: Connection) -> None:
    app.execute(
        "CREATE TABLE r (k int PRIMARY KEY); SELECT create_reference_table('r'); INSERT INTO r VALUES (1)"
    )
    herd.kill9(2)
    with pytest.raises(psycopg.OperationalError):
        app.execute("INSERT INTO r VALUES (2)")
    assert rows(app, "SELECT * FROM r") == [1]
    herd.start(2)
    app.execute("INSERT INTO r VALUES (2)")


def test_a_copy_that_was_changed_behind_our_back_is_found_and_made_anew(herd: Herd, app: Connection) -> None:
    app.execute(
        "CREATE TABLE r (k int PRIMARY KEY, n int); SELECT create_reference_table('r'); INSERT INTO r"
        " VALUES (1, 1), (2, 2)"
    )
    with herd.connect(2) as segment:
        segment.execute("UPDATE shop.r SET n = 7 WHERE k = 1")
        assert [(f.group, f.check) for f in herd.engine.check()] == [(2, "copies")]
        segment.execute("DELETE FROM shop.r WHERE k = 1")
    with pytest.raises(psycopg.errors.SerializationFailure):
        app.execute("DELETE FROM r")
    [finding] = herd.engine.check()
    app.execute(finding.fix.encode())
    assert problems(herd) == []
    app.execute("DELETE FROM r")


def test_triggers_and_foreign_keys_of_reference_tables_work(herd: Herd, app: Connection) -> None:
    app.execute("""
        CREATE TABLE r (k int PRIMARY KEY, n int);
        CREATE TABLE s (k int PRIMARY KEY, r int REFERENCES r ON DELETE CASCADE ON UPDATE CASCADE);
        SELECT create_reference_table('r'), create_reference_table('s');
        CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n := NEW.n * 2; RETURN NEW; END';
        CREATE TRIGGER twice BEFORE INSERT ON r FOR EACH ROW EXECUTE FUNCTION twice();
        INSERT INTO r VALUES (1, 1), (2, 2); INSERT INTO s SELECT i, 1 + i % 2 FROM generate_series(1, 10) i;
        UPDATE r SET k = 5 WHERE k = 1;
        DELETE FROM r WHERE k = 2;
    """)
    assert rows(app, "SELECT k, n FROM r") == [(5, 2)]
    assert rows(app, "SELECT count(*) FROM s") == [5]
    assert problems(herd) == []
    app.execute("TRUNCATE r CASCADE")
    with herd.superuser() as superuser:
        superuser.execute("SET session_replication_role = replica; INSERT INTO shop.r VALUES (9, 9)")


def test_large_changes_travel_in_batches(herd: Herd, app: Connection) -> None:
    app.execute("CREATE TABLE r (k int PRIMARY KEY, t text); SELECT create_reference_table('r')")
    app.execute("INSERT INTO r SELECT i, repeat('x', 100) FROM generate_series(1, 12000) i")
    app.execute("UPDATE r SET t = k::text; DELETE FROM r WHERE k % 2 = 0")
    assert rows(app, "SELECT count(*) FROM r") == [6000]
