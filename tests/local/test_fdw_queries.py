"""Reading and writing distributed tables gives what one plain PostgreSQL gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from pgherd.postgres.connections import Connection
from tests.support.servers import Herd, problems, rows, running_herd

pytestmark = pytest.mark.local

PLAIN = """
CREATE TABLE plain.customers (id int PRIMARY KEY, name text, country text);
CREATE TABLE plain.orders (customer int, id int, total numeric(10,2), day date, done boolean, weight float8,
                           PRIMARY KEY (customer, id));
CREATE TABLE plain.lines (customer int, id int, line int, code text, n bigint, PRIMARY KEY (customer, id, line));
CREATE TABLE plain.codes (code text PRIMARY KEY, label text);
INSERT INTO plain.customers SELECT i, 'name ' || i, (ARRAY['de','fr','it'])[1 + i % 3] FROM generate_series(1, 300) i;
INSERT INTO plain.orders SELECT 1 + i * 7 % 330, i, i * 1.37, date '2024-01-01' + i % 90, i % 4 = 0,
       nullif(i % 10, 0) / 3.0 FROM generate_series(1, 2000) i;
INSERT INTO plain.lines SELECT customer, id, l, 'c' || (id + l) % 12, id * l FROM plain.orders, generate_series(1, 2) l;
INSERT INTO plain.codes SELECT 'c' || i, 'label ' || i % 4 FROM generate_series(0, 9) i;
"""
TABLES = ("customers", "orders", "lines", "codes")


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("herd"), segments=2, shard_count=8) as herd:
        with herd.connect() as app:
            app.execute("CREATE SCHEMA plain")
            app.execute(PLAIN)
            for table in TABLES:
                app.execute(f"CREATE TABLE {table} (LIKE plain.{table} INCLUDING ALL)".encode())
                app.execute(f"INSERT INTO {table} TABLE plain.{table}".encode())
            app.execute("SELECT create_distributed_table('customers', 'id'), create_reference_table('codes')")
            app.execute("SELECT create_distributed_table('orders', 'customer')")
            app.execute("SELECT create_distributed_table('lines', 'customer', colocate_with => 'orders')")
            for table in TABLES:
                app.execute("SELECT pgherd.analyze(%s)", [table])
        yield herd


@pytest.fixture
def app(herd: Herd) -> Iterator[Connection]:
    with herd.connect() as connection:
        yield connection


def both(app: Connection, query: str) -> tuple[list[object], list[object]]:
    """The query's answer from the distributed tables and from the plain ones, sorted unless it orders its rows."""
    answers = []
    for path in ("public", "plain"):
        app.execute(f"SET search_path = {path}".encode())
        found = rows(app, query)
        answers.append(found if "ORDER BY" in query.rpartition(")")[2] else sorted(found, key=repr))
    app.execute("RESET search_path")
    return answers[0], answers[1]


QUERIES = [
    "SELECT count(*), sum(total), min(day), max(day), avg(total) FROM orders",
    "SELECT * FROM orders WHERE customer = 17",
    "SELECT * FROM orders WHERE customer IN (1, 2, 3) AND total > 100",
    "SELECT * FROM orders WHERE customer = 17 AND id = ANY (SELECT id FROM lines WHERE customer = 17)",
    "SELECT customer, count(*), sum(total) FROM orders GROUP BY customer",
    "SELECT day, count(*), count(DISTINCT customer) FROM orders GROUP BY day",
    "SELECT done, sum(total) FROM orders GROUP BY ROLLUP (done)",
    "SELECT country, count(*) FROM customers c JOIN orders o ON o.customer = c.id GROUP BY country",
    "SELECT o.customer, o.id, sum(n) FROM orders o JOIN lines l USING (customer, id) GROUP BY 1, 2 HAVING"
    " sum(n) > 4000",
    "SELECT o.customer, o.id, l.line FROM orders o LEFT JOIN lines l ON l.customer = o.customer AND l.id ="
    " o.id AND line = 9",
    "SELECT c.id, o.id FROM customers c LEFT JOIN orders o ON o.customer = c.id AND o.total < 30",
    "SELECT c.id, o.id FROM customers c RIGHT JOIN orders o ON o.customer = c.id WHERE o.total < 300",
    "SELECT c.id, o.id FROM customers c FULL JOIN orders o ON o.customer = c.id",
    "SELECT label, sum(n) FROM lines JOIN codes USING (code) GROUP BY label",
    "SELECT l.code, k.label FROM lines l LEFT JOIN codes k USING (code) WHERE l.customer < 20",
    "SELECT a.id, b.id FROM orders a JOIN orders b ON a.day = b.day AND a.id < b.id WHERE a.total < 40",
    "SELECT a.id, b.id FROM customers a, customers b WHERE a.id < 4 AND b.id < 4",
    "SELECT id FROM customers c WHERE EXISTS (SELECT FROM orders o WHERE o.customer = c.id AND total > 2500)",
    "SELECT id FROM customers c WHERE NOT EXISTS (SELECT FROM orders o WHERE o.customer = c.id)",
    "SELECT id FROM customers WHERE id NOT IN (SELECT customer FROM orders WHERE total > 50)",
    "SELECT id, (SELECT max(total) FROM orders o WHERE o.customer = c.id) FROM customers c",
    "SELECT customer, id, rank() OVER (PARTITION BY customer ORDER BY total) FROM orders WHERE day < '2024-01-20'",
    "SELECT * FROM orders ORDER BY total DESC, id LIMIT 10 OFFSET 5",
    "SELECT DISTINCT country FROM customers ORDER BY country",
    "WITH big AS (SELECT * FROM orders WHERE total > 2000) SELECT count(*) FROM big JOIN customers c ON"
    " c.id = customer",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 9) SELECT n, name FROM r JOIN"
    " customers ON id = n",
    "SELECT id FROM customers UNION SELECT customer FROM orders",
    "SELECT id FROM customers EXCEPT SELECT customer FROM orders",
    "SELECT * FROM customers c, LATERAL (SELECT id AS o FROM orders WHERE customer = c.id ORDER BY total LIMIT 1) x",
    "SELECT string_agg(name, ',' ORDER BY id) FROM customers WHERE id < 20",
    "SELECT count(*) FROM orders WHERE day = current_date OR lower(day::text) LIKE '2024-01-0%'",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY total) FROM orders",
    "SELECT tableoid IS NULL, count(*) FROM orders GROUP BY 1",
]


@pytest.mark.parametrize("query", QUERIES)
def test_answers_are_those_of_a_plain_table(app: Connection, query: str) -> None:
    ours, plain = both(app, query)
    assert ours == plain


@pytest.mark.parametrize(
    ("table", "aggregates", "group_by", "filter"),
    [
        ("orders", "count(*)|sum(total)|min(day)|max(weight)|avg(total)|avg(customer)|avg(weight)", "", None),
        ("orders", "bool_and(done)|bool_or(done)|every(total > 0)|count(weight)|sum(id)", "day|done", "total > 5"),
        ("lines JOIN codes USING (code)", "count(*)|sum(n)", "label", "n % 2 = 0"),
        ("orders JOIN lines USING (customer, id) LEFT JOIN codes USING (code)", "count(*)|avg(n)", "label|day", None),
        ("orders", "count(*) FILTER (WHERE done)|sum(weight)", "customer % 5", None),
        ("orders", "count(*)|sum(total)|avg(total)|bool_or(done)", "", "false"),
        ("orders", "count(*)", "day", "false"),
    ],
)  # fmt: skip
def test_aggregates_merged_from_segments_equal_plain_ones(
    app: Connection, table: str, aggregates: str, group_by: str, filter: str | None
) -> None:
    keys, calls = [key for key in group_by.split("|") if key], aggregates.split("|")
    app.execute("SET search_path = plain")
    plain_query = f"SELECT {', '.join(keys + calls)} FROM {table}" + (f" WHERE {filter}" if filter else "")
    plain = app.execute((plain_query + (f" GROUP BY {', '.join(keys)}" if keys else "")).encode())
    columns = ", ".join(
        f"c{i} {rows(app, 'SELECT format_type(%s, NULL)', column.type_code)[0]}"
        for i, column in enumerate(plain.description or ())
    )
    expected = plain.fetchall()
    app.execute("SET search_path = public")
    ours = app.execute(
        f"SELECT * FROM pgherd.aggregate(%s, %s, %s, %s) AS a({columns})".encode(),
        [table, calls, keys, filter],
    ).fetchall()
    assert sorted(map(rounded, ours), key=repr) == sorted(map(rounded, expected), key=repr)


def rounded(row: tuple[object, ...]) -> tuple[object, ...]:
    """Sums of floating point numbers depend on the order in which they are added."""
    return tuple(round(value, 6) if isinstance(value, float) else value for value in row)


def test_aggregates_that_cannot_be_merged_are_refused(app: Connection) -> None:
    for call in ("count(DISTINCT id)", "string_agg(name, ',')", "stddev(id)"):
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            app.execute("SELECT * FROM pgherd.aggregate('customers', ARRAY[%s]) AS a(x text)", [call])


def test_per_segment_relations_push_whole_aggregates_down(app: Connection) -> None:
    plan = "\n".join(
        rows(
            app,
            "EXPLAIN (VERBOSE, COSTS OFF) SELECT count(*) FROM pgherd_segment_1.lines JOIN pgherd_segment_1.codes"
            " USING (code) UNION ALL SELECT count(*) FROM pgherd_segment_2.lines JOIN"
            " pgherd_segment_2.codes USING (code)",
        )
    )
    assert plan.count("Async Foreign Scan") == 2
    assert "Remote SQL: SELECT count(*) FROM (public.lines" in plan
    with app.transaction():
        app.execute("SELECT pgherd.hold_placement()")
        both_parts = (
            "SELECT count(*) FROM (TABLE pgherd_segment_1.orders UNION ALL TABLE pgherd_segment_2.orders) o"
        )
        assert rows(app, both_parts) == [2000]


def test_queries_by_key_and_colocated_joins_go_to_segments(app: Connection) -> None:
    def plan(query: str) -> str:
        return "\n".join(rows(app, "EXPLAIN (VERBOSE, COSTS OFF) " + query))

    one = plan("SELECT * FROM orders WHERE customer = 17")
    assert one.count("Remote SQL") == 1
    assert "Append" not in one
    join = plan("SELECT o.id, l.line FROM orders o JOIN lines l USING (customer, id) WHERE o.total > 2000")
    assert join.count("Async Foreign Scan") == 8
    assert "Hash" not in join
    direct = plan("UPDATE orders SET done = true WHERE customer = 17 AND total > 3")
    assert "Remote SQL: UPDATE" in direct
    assert "SELECT" not in direct


def test_prepared_statements_of_every_kind(app: Connection) -> None:
    for mode in ("force_generic_plan", "force_custom_plan"):
        app.execute(f"SET plan_cache_mode = {mode}".encode())
        for customer in range(1, 12):
            ours = app.execute(
                "SELECT * FROM orders WHERE customer = %s ORDER BY id", [customer], prepare=True
            )
            plain = app.execute("SELECT * FROM plain.orders WHERE customer = %s ORDER BY id", [customer])
            assert ours.fetchall() == plain.fetchall()
        app.execute("UPDATE orders SET weight = weight WHERE customer = %s", [3], prepare=True)


WRITES = [
    "UPDATE orders SET total = total + 1 WHERE customer = 17",
    "UPDATE orders SET total = total * 2, done = NOT done WHERE day < '2024-01-15'",
    "UPDATE orders o SET total = l.n FROM lines l WHERE l.customer = o.customer AND l.id = o.id AND l.line = 1",
    "UPDATE orders SET weight = (SELECT count(*) FROM codes)",
    "UPDATE lines SET code = label FROM codes WHERE codes.code = lines.code AND lines.customer % 2 = 0",
    "UPDATE orders SET weight = random() * 0 WHERE random() >= 0",
    "DELETE FROM orders WHERE customer = 17",
    "DELETE FROM orders WHERE total > 1000",
    "DELETE FROM lines USING orders o WHERE o.customer = lines.customer AND o.id = lines.id AND o.done",
    "DELETE FROM lines WHERE code NOT IN (SELECT code FROM codes)",
    "INSERT INTO orders SELECT customer + 1000, id, total FROM orders WHERE customer < 50",
    "INSERT INTO orders (customer, id) VALUES (5000, 1), (5001, 2), (5002, 3)",
    "INSERT INTO orders SELECT * FROM orders WHERE customer = 3 ON CONFLICT DO NOTHING",
    "TRUNCATE orders",
    "TRUNCATE orders, lines, codes, customers",
    "WITH gone AS (DELETE FROM orders WHERE day > '2024-03-01' RETURNING *) INSERT INTO lines SELECT"
    " customer, id, 7 FROM gone",
    "UPDATE codes SET label = upper(label)",
    "UPDATE codes SET code = code || 'x' WHERE code < 'c5'",
    "DELETE FROM codes WHERE label = 'label 1'",
    "INSERT INTO codes VALUES ('c1', 'new'), ('z', 'z') ON CONFLICT (code) DO UPDATE SET label = excluded.label",
    "INSERT INTO codes SELECT country, 'x' FROM customers GROUP BY country",
    "MERGE INTO codes USING customers c ON c.country = code WHEN MATCHED THEN DELETE"
    " WHEN NOT MATCHED AND id < 4 THEN INSERT VALUES (country || id, name)",
]  # fmt: skip


@pytest.mark.parametrize("statement", WRITES)
def test_writes_do_what_they_do_to_plain_tables(herd: Herd, app: Connection, statement: str) -> None:
    with app.transaction(force_rollback=True):
        counts = []
        for path in ("public", "plain"):
            app.execute(f"SET LOCAL search_path = {path}".encode())
            counts.append(app.execute(statement.encode()).rowcount)
        assert counts[0] == counts[1]
        app.execute("RESET search_path")
        for table in TABLES:
            assert rows(app, f"SELECT * FROM {table} EXCEPT ALL SELECT * FROM plain.{table}") == []
            assert rows(app, f"SELECT * FROM plain.{table} EXCEPT ALL SELECT * FROM {table}") == []
        for segment in (1, 2):
            copy = f"pgherd_segment_{segment}.codes"
            assert (
                rows(
                    app,
                    f"(TABLE codes EXCEPT ALL TABLE {copy}) UNION ALL (TABLE {copy} EXCEPT ALL TABLE codes)",
                )
                == []
            )
    ours, plain = both(
        app,
        "SELECT (SELECT sum(total) FROM orders), (SELECT sum(n) FROM lines), (SELECT count(*) FROM codes)",
    )
    assert ours == plain


def test_returning_gives_the_written_rows(app: Connection) -> None:
    with app.transaction(force_rollback=True):
        assert rows(app, "INSERT INTO orders VALUES (9000, 1, 2) RETURNING customer, total, done") == [
            (9000, 2, None)
        ]
        assert rows(app, "UPDATE orders SET total = total + 1 WHERE customer = 9000 RETURNING total") == [3]
        assert rows(app, "DELETE FROM orders WHERE customer = 9000 RETURNING id") == [1]


def test_the_session_s_settings_decide_what_expressions_mean(app: Connection) -> None:
    """A segment has its own time zone, so nothing that depends on it may be computed there."""
    app.execute("SET timezone = 'Pacific/Auckland'; SET datestyle = 'German'; SET lc_numeric = 'C'")
    for query in (
        "SELECT (day::timestamptz + weight * interval '1 hour')::date AS d, count(*) FROM orders GROUP BY d"
        " ORDER BY d",
        "SELECT count(*) FROM orders WHERE day::timestamptz < '01.02.2024 10:00'",
        "SELECT count(*) FROM orders WHERE (day || '') LIKE '01.%'",
        "SELECT count(*) FROM orders WHERE date_trunc('month', day::timestamptz) = '01.02.2024'",
    ):
        ours, plain = both(app, query)
        assert ours == plain


def test_text_sorts_and_compares_by_its_column_s_collation(app: Connection) -> None:
    with app.transaction(force_rollback=True):
        app.execute('CREATE TABLE words (k text COLLATE "C", w text COLLATE "C.utf8")')
        app.execute("CREATE TABLE plain.words (LIKE words)")
        app.execute("INSERT INTO words SELECT chr(64 + i) || 'x', chr(120 - i) FROM generate_series(1, 50) i")
        app.execute("INSERT INTO plain.words TABLE words; SELECT create_distributed_table('words', 'k')")
        for query in (
            "SELECT * FROM words ORDER BY k LIMIT 20",
            "SELECT * FROM words WHERE w > 'X' ORDER BY w",
            "SELECT max(k), min(w) FROM words",
            'SELECT k FROM words WHERE k COLLATE "C.utf8" < w ORDER BY k',
        ):
            ours, plain = both(app, query)
            assert ours == plain


def test_a_table_can_be_locked_a_shard_by_itself_cannot(app: Connection) -> None:
    shard = rows(app, "SELECT min(shard_name) FROM citus_shards WHERE table_name = 'orders'::regclass")[0]
    with app.transaction():
        app.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
    with pytest.raises(psycopg.errors.WrongObjectType), app.transaction():
        app.execute(f"LOCK TABLE {shard}".encode())


def test_row_triggers_work_on_the_coordinator(app: Connection) -> None:
    with app.transaction(force_rollback=True):
        app.execute("""
            CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.weight := 42; RETURN NEW; END';
            CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION stamp();
            INSERT INTO orders VALUES (1, 99999, 1);
        """)
        assert rows(app, "SELECT weight FROM orders WHERE id = 99999") == [42]
        assert set(rows(app, "UPDATE orders SET total = 5 WHERE customer = 17 RETURNING weight")) == {42}


def test_row_level_security_is_refused_because_foreign_partitions_do_not_check_it(app: Connection) -> None:
    for table, possible in {"orders": False, "codes": True}.items():
        with app.transaction(force_rollback=True):
            app.execute(f"CREATE POLICY p ON {table} USING (true)".encode())
            if possible:
                app.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
                continue
            with pytest.raises(psycopg.errors.FeatureNotSupported), app.transaction():
                app.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
    with app.transaction(force_rollback=True):
        app.execute("CREATE VIEW mine AS SELECT * FROM orders WHERE customer = 17 WITH CHECK OPTION")
        app.execute("INSERT INTO mine VALUES (17, 99999)")
        with pytest.raises(psycopg.errors.WithCheckOptionViolation), app.transaction():
            app.execute("INSERT INTO mine VALUES (18, 99999)")


def test_identity_and_truncate_restart(app: Connection) -> None:
    with app.transaction(force_rollback=True):
        app.execute(
            "CREATE TABLE seq (k int, id int GENERATED ALWAYS AS IDENTITY); SELECT"
            " create_distributed_table('seq', 'k')"
        )
        app.execute("INSERT INTO seq SELECT i FROM generate_series(1, 10) i; TRUNCATE seq RESTART IDENTITY")
        assert rows(app, "INSERT INTO seq VALUES (5) RETURNING id") == [1]


def test_deadlocks_within_a_segment_are_seen_there(herd: Herd, app: Connection) -> None:
    outcomes: list[str] = []

    def updates(first: int, second: int, meet: threading.Barrier) -> None:
        with herd.connect(autocommit=False) as connection:
            try:
                connection.execute("UPDATE orders SET total = total WHERE customer = %s", [first])
                meet.wait(10)
                connection.execute("UPDATE orders SET total = total WHERE customer = %s", [second])
                outcomes.append("done")
            except psycopg.errors.DeadlockDetected:
                outcomes.append("deadlock")

    meet = threading.Barrier(2)
    same_shard = rows(app, "SELECT customer FROM orders GROUP BY 1 HAVING"
                           " get_shard_id_for_distribution_column('orders',"
                      " customer) = get_shard_id_for_distribution_column('orders', 17) ORDER BY 1"
                      " LIMIT 2")  # fmt: skip
    pairs = [same_shard, same_shard[::-1]]
    threads = [threading.Thread(target=updates, args=[*pair, meet]) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["deadlock", "done"]


def test_tablesample_reads_everything(app: Connection) -> None:
    """PostgreSQL does not sample foreign partitions; rather too many rows than an error."""
    assert rows(app, "SELECT count(*) FROM orders TABLESAMPLE SYSTEM (1)") == [2000]
    assert rows(app, "SELECT count(*) < 12 FROM codes TABLESAMPLE BERNOULLI (50)") == [True]


def test_the_key_of_a_row_cannot_change(app: Connection) -> None:
    for statement in (
        "UPDATE orders SET customer = 5 WHERE customer = 17",
        "UPDATE orders SET customer = customer",
        "UPDATE orders SET (id, customer) = (1, 2) WHERE false",
    ):
        with pytest.raises(psycopg.errors.FeatureNotSupported) as refused:
            app.execute(statement.encode())
        assert "DELETE" in (refused.value.diag.message_hint or "")


def test_what_foreign_partitions_cannot_is_refused(app: Connection) -> None:
    for statement in (
        "INSERT INTO orders VALUES (1, 1) ON CONFLICT (customer, id) DO NOTHING",
        "INSERT INTO orders VALUES (1, 1) ON CONFLICT (customer, id) DO UPDATE SET total = 1",
        "MERGE INTO orders USING customers c ON c.id = customer WHEN MATCHED THEN DELETE",
    ):
        with pytest.raises(psycopg.Error) as refused:
            app.execute(statement.encode())
        assert refused.value.sqlstate in ("42P10", "0A000")
    with app.transaction(force_rollback=True):
        app.execute("UPDATE orders SET total = 0 WHERE customer = 17")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            app.execute("PREPARE TRANSACTION 'x'")


def test_copy_in_and_out(app: Connection) -> None:
    with app.transaction(force_rollback=True):
        with app.cursor().copy("COPY orders (customer, id, total) FROM STDIN") as copy:
            for i in range(5000):
                copy.write_row((i, 100_000 + i, "1.50"))
        assert rows(app, "SELECT count(*), sum(total) FROM orders WHERE id >= 100000") == [(5000, 7500)]
        with app.cursor().copy("COPY (SELECT * FROM orders WHERE id >= 100000) TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 5000
        with pytest.raises(psycopg.errors.UniqueViolation), app.transaction():
            app.cursor().execute(
                "INSERT INTO orders (customer, id) SELECT i, 100000 + i FROM generate_series(0, 10) i"
            )
    with pytest.raises(psycopg.errors.WrongObjectType):
        app.execute("COPY orders TO STDOUT")


def test_savepoints_reach_segments(app: Connection) -> None:
    with app.transaction(force_rollback=True):
        app.execute("INSERT INTO orders VALUES (1, 90001)")
        with app.transaction(force_rollback=True):
            app.execute(
                "INSERT INTO orders VALUES (1, 90002); DELETE FROM codes; UPDATE orders SET total = 0"
            )
        with pytest.raises(psycopg.errors.UniqueViolation), app.transaction():
            app.execute("INSERT INTO orders VALUES (2, 90003), (1, 90001)")
        assert rows(app, "SELECT id FROM orders WHERE id > 90000") == [90001]
        assert rows(app, "SELECT count(*) FROM codes JOIN pgherd_segment_1.codes USING (code, label)") == [10]


def test_a_statement_that_fails_on_one_segment_changes_nothing_on_another(app: Connection) -> None:
    before = rows(app, "SELECT sum(id), count(*) FROM orders")
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.execute(
            "INSERT INTO orders SELECT customer, id FROM orders WHERE customer < 100 UNION ALL SELECT 5000,"
            " 1 ORDER BY 1 DESC"
        )
    assert rows(app, "SELECT sum(id), count(*) FROM orders") == before


def test_a_hot_row_must_be_tried_again(herd: Herd, app: Connection) -> None:
    app.execute("INSERT INTO orders VALUES (7777, 1, 0)")
    failures: list[str] = []

    def increments() -> None:
        with herd.connect() as connection:
            for _ in range(30):
                while True:
                    try:
                        connection.execute("UPDATE orders SET total = total + 1 WHERE customer = 7777")
                        break
                    except psycopg.errors.SerializationFailure as error:
                        failures.append(str(error.sqlstate))

    writers = [threading.Thread(target=increments) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert rows(app, "SELECT total FROM orders WHERE customer = 7777") == [120]
    assert set(failures) <= {"40001"}
    app.execute("DELETE FROM orders WHERE customer = 7777")


def test_a_locked_row_is_waited_for_even_with_nowait(herd: Herd, app: Connection) -> None:
    """FOR UPDATE reaches the segment, NOWAIT and SKIP LOCKED do not."""
    with app.transaction(force_rollback=True), herd.connect() as other:
        app.execute("SELECT * FROM orders WHERE customer = 17 FOR UPDATE")
        other.execute("SET statement_timeout = '200ms'")
        for wish in ("NOWAIT", "SKIP LOCKED"):
            with pytest.raises(psycopg.errors.QueryCanceled):
                other.execute(f"SELECT * FROM orders WHERE customer = 17 FOR UPDATE {wish}".encode())


def test_wait_for_a_row_on_a_segment_ends(herd: Herd, app: Connection) -> None:
    """Deadlocks across segments are seen by nobody, so a segment waits for a lock no longer than lock_timeout."""
    options = dict(rows(app, "SELECT o.* FROM pg_foreign_server, pg_options_to_table(srvoptions) o"))
    assert "lock_timeout=30s" in options["options"]


def test_a_session_has_one_connection_per_segment(herd: Herd, app: Connection) -> None:
    rows(app, "SELECT count(*) FROM orders JOIN customers ON name = day::text")
    pid = app.info.backend_pid
    for segment in (1, 2):
        with herd.superuser(segment) as server:
            found = rows(
                server, "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", f"pgherd/{pid}"
            )
        assert found == [1]


def test_a_session_survives_a_crash_of_a_segment(herd: Herd, app: Connection) -> None:
    assert rows(app, "SELECT count(*) FROM orders") == [2000]
    herd.kill9(1)
    with pytest.raises(psycopg.OperationalError):
        app.execute("SELECT count(*) FROM orders")
    herd.start(1)
    assert rows(app, "SELECT count(*) FROM orders") == [2000]


def test_nothing_is_out_of_place_in_the_end(herd: Herd) -> None:
    assert problems(herd) == []
