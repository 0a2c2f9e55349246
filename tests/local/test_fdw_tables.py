"""Making tables distributed and plain again: what goes over, what is refused, that nothing is half made."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgherd.postgres.connections import Connection
from tests.support.servers import Herd, problems, rows, running_herd

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("herd"), segments=2, shard_count=8) as herd:
        with herd.superuser() as superuser:
            superuser.execute("CREATE ROLE reader LOGIN PASSWORD 'owner-secret'; CREATE ROLE stranger")
        yield herd


@pytest.fixture
def app(herd: Herd) -> Iterator[Connection]:
    with herd.connect() as connection:
        connection.execute("CREATE SCHEMA shop; SET search_path = shop, public")
        yield connection
        connection.rollback()
        assert problems(herd) == []
        connection.execute("DROP SCHEMA shop CASCADE")
        assert rows(connection, "SELECT count(*) FROM pgherd.colocation") == [0]


KEYS = {
    "int2": "i::int2",
    "int4": "i",
    "int8": "i * 10000000000",
    "text": "'k' || i",
    "varchar(10)": "'k' || i",
    "char(6)": "'k' || i",
    "uuid": "md5(i::text)::uuid",
    "date": "date '2024-01-01' + i",
    "timestamptz": "timestamptz '2024-01-01 00:00:00.123456+02' + i * interval '1 second'",
    "timestamp": "timestamp '2024-01-01' + i * interval '1 second'",
    "bytea": "decode(md5(i::text), 'hex')",
    "numeric": "i / 7.0",
    "boolean": "i % 2 = 0",
    "float8": "i / 7.0",
    "interval": "i * interval '1 hour'",
    "inet": "inet '10.0.0.0' + i",
}


@pytest.mark.parametrize("key_type", KEYS)
def test_a_key_of_this_type_finds_its_rows(herd: Herd, app: Connection, key_type: str) -> None:
    app.execute(f"CREATE TABLE t (k {key_type}, n int); CREATE TABLE plain (k {key_type}, n int)".encode())
    app.execute(f"INSERT INTO plain SELECT {KEYS[key_type]}, i FROM generate_series(1, 100) i".encode())
    app.execute("INSERT INTO plain VALUES (NULL, 0); INSERT INTO t SELECT * FROM plain WHERE n < 50")
    app.execute("SELECT create_distributed_table('t', 'k')")
    app.execute("INSERT INTO t SELECT * FROM plain WHERE n >= 50")
    assert rows(app, "TABLE t EXCEPT ALL TABLE plain") == []
    assert rows(app, "TABLE plain EXCEPT ALL TABLE t") == []
    app.execute("SET plan_cache_mode = force_generic_plan")
    for key, shard in rows(
        app, "SELECT k, get_shard_id_for_distribution_column('t', k) FROM plain WHERE n % 20 = 0"
    ):
        by_key = "k IS NULL AND %s::text IS NULL" if key is None else "k = %s"
        ours = rows(app, f"SELECT n FROM t WHERE {by_key} ORDER BY n", key)
        assert ours == rows(app, f"SELECT n FROM plain WHERE {by_key} ORDER BY n", key)
        where = f"SELECT shardid FROM run_command_on_shards('t', $$SELECT n FROM %s WHERE n = {ours[0]}$$)"
        held = set(rows(app, where + " WHERE result IS NOT NULL"))
        assert held == {shard}


def test_everything_a_table_has_goes_over_and_comes_back(herd: Herd, app: Connection) -> None:
    app.execute("""
        CREATE TABLE t (
            id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5),
            k text COLLATE "C" NOT NULL,
            s serial,
            gone int,
            d timestamptz DEFAULT now(),
            g int GENERATED ALWAYS AS (s * 2) STORED,
            v int GENERATED ALWAYS AS (s * 3) VIRTUAL,
            j jsonb DEFAULT '{}',
            a int[] CHECK (array_length(a, 1) < 4),
            PRIMARY KEY (k, id),
            CONSTRAINT one_s UNIQUE (s, k),
            CONSTRAINT sane CHECK (s > 0 AND k <> 'bad')
        );
        ALTER TABLE t DROP COLUMN gone;
        CREATE INDEX by_d ON t (d DESC) INCLUDE (s);
        CREATE UNIQUE INDEX some_j ON t (k, (j ->> 'x')) WHERE s > 10;
        COMMENT ON TABLE t IS 'the table'; COMMENT ON COLUMN t.k IS 'the key';
        GRANT SELECT, INSERT (k, a) ON t TO reader; GRANT UPDATE ON t TO reader WITH GRANT OPTION;
        INSERT INTO t (k, a) SELECT 'k' || i, ARRAY[i] FROM generate_series(1, 300) i;
    """)
    queries = {
        "rows": "SELECT id, k, s, d, g, v, j, a FROM t ORDER BY s",
        "columns": "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,"
        " pg_get_expr(adbin, adrelid), attcollation, col_description(attrelid, attnum), attacl::text FROM"
        " pg_attribute"
        " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = 't'::regclass AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum",
        "rights": "SELECT a::text FROM pg_class, unnest(relacl) a WHERE oid = 't'::regclass ORDER BY 1",
        "checks": "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid ="
        " 't'::regclass AND contype"
        " IN ('c', 'n') ORDER BY 1",
        "comment": "SELECT obj_description('t'::regclass)",
        "sequences": "SELECT pg_get_serial_sequence('t', 'id'), pg_get_serial_sequence('t', 's')",
        "owner": "SELECT tableowner FROM pg_tables WHERE tablename = 't'",
    }
    unique = (
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 't'::regclass AND contype IN ('p', 'u')"
    )
    indexes = (
        "SELECT indexname, regexp_replace(indexdef, 'ONLY ', '') FROM pg_indexes"
        " WHERE tablename = 't' ORDER BY 1"
    )
    before = {name: rows(app, query) for name, query in queries.items()}
    unique_before, indexes_before = rows(app, unique), rows(app, indexes)

    app.execute("SELECT create_distributed_table('t', 'k')")
    assert {name: rows(app, query) for name, query in queries.items()} == before
    assert problems(herd) == []
    assert rows(app, "INSERT INTO t (k) VALUES ('x') RETURNING id, s, g, v, a") == [
        (1600, 301, 602, 903, None)
    ]
    for statement in (
        "INSERT INTO t (id, k) OVERRIDING SYSTEM VALUE VALUES (1600, 'x')",
        "INSERT INTO t (k, s) VALUES ('x', 301)",
    ):
        with pytest.raises(psycopg.errors.UniqueViolation):
            app.execute(statement.encode())
    with pytest.raises(psycopg.errors.CheckViolation):
        app.execute("INSERT INTO t (k) VALUES ('bad')")
    app.execute("DELETE FROM t WHERE k = 'x'")

    app.execute("SELECT undistribute_table('t')")
    assert {name: rows(app, query) for name, query in queries.items()} == before
    assert (rows(app, unique), rows(app, indexes)) == (unique_before, indexes_before)
    assert rows(app, "SELECT relkind::text FROM pg_class WHERE oid = 't'::regclass") == ["r"]
    app.execute("SELECT create_distributed_table('t', 'k', colocate_with => 'none')")
    assert {name: rows(app, query) for name, query in queries.items()} == before


def test_names_of_every_kind_work(herd: Herd, app: Connection) -> None:
    long = "é" * 31
    for name in ('"Odd ""Name"" %s"', '"select"', f'"{long}"', "\"100% 'quoted' \\back\""):
        app.execute(
            f"CREATE TABLE {name} (\"Key 'x' %\" int PRIMARY KEY, {long} int CHECK ({long} > 0))".encode()
        )
        app.execute(f'CREATE INDEX "Ind ex %s" ON {name} ({long})'.encode())
        app.execute("SELECT create_distributed_table(%s, %s)", [name, "Key 'x' %"])
        app.execute(f"INSERT INTO {name} SELECT i, i FROM generate_series(1, 50) i".encode())
        app.execute(f"ALTER TABLE {name} ADD COLUMN \"a b\" text DEFAULT 'it''s'".encode())
        assert rows(app, f'SELECT count(*), max("a b") FROM {name}') == [(50, "it's")]
        assert problems(herd) == []
        app.execute(f"DROP TABLE {name}".encode())


SETUP = "CREATE TABLE t (k int, n int, PRIMARY KEY (k, n))"
REFUSED = {
    "no such column": ("SELECT create_distributed_table('t', 'nope')", "42703"),
    "no such table": ("SELECT create_distributed_table('nope', 'k')", "42P01"),
    "no table at all": ("SELECT create_distributed_table(NULL, NULL)", "42P01"),
    "no reference table at all": ("SELECT create_reference_table(NULL)", "42P01"),
    "a number of no table": ("SELECT create_distributed_table(99999::regclass, 'k')", "42P01"),
    "no column at all": ("SELECT create_distributed_table('t', NULL)", "42703"),
    "a view": ("CREATE VIEW v AS SELECT 1 AS k; SELECT create_distributed_table('v', 'k')", "42809"),
    "a sequence": ("CREATE SEQUENCE s; SELECT create_distributed_table('s', 'k')", "42809"),
    "a system table": ("SELECT create_distributed_table('pg_class', 'oid')", "42501"),
    "our own table": ("SELECT create_reference_table('pgherd.settings')", "42501"),
    "twice": ("SELECT create_distributed_table('t', 'k'); SELECT create_distributed_table('t', 'k')", "42P16"),
    "both kinds": ("SELECT create_distributed_table('t', 'k'); SELECT create_reference_table('t')", "42P16"),
    "a shard": (
        "SELECT create_distributed_table('t', 'k');"
        "DO $$ BEGIN PERFORM create_distributed_table(('pgherd_shards.' || quote_ident(min(name)))::regclass, 'k')"
        " FROM pgherd.shard; END $$",
        "42809",
    ),
    "key not in the primary key": ("CREATE TABLE u (k int, n int PRIMARY KEY); SELECT"
                                   " create_distributed_table('u', 'k')", "42P16"),
    "key not in a unique constraint": ("CREATE TABLE u (k int, n int UNIQUE); SELECT"
                                       " create_distributed_table('u', 'k')", "42P16"),
    "key not in a unique index": (
        "CREATE TABLE u (k int, n int); CREATE UNIQUE INDEX ON u (n) INCLUDE (k); SELECT"
        " create_distributed_table('u', 'k')",
        "42P16",
    ),
    "deferred": (
        "CREATE TABLE u (k int PRIMARY KEY INITIALLY DEFERRED); SELECT create_distributed_table('u', 'k')",
        "0A000",
    ),
    "temporary": ("CREATE TEMP TABLE u (k int); SELECT create_distributed_table('u', 'k')", "0A000"),
    "unlogged": ("CREATE UNLOGGED TABLE u (k int); SELECT create_distributed_table('u', 'k')", "0A000"),
    "partitioned": ("CREATE TABLE u (k int) PARTITION BY HASH (k); SELECT create_distributed_table('u',"
                    " 'k')", "0A000"),
    "a partition": (
        "CREATE TABLE u (k int) PARTITION BY LIST (k); CREATE TABLE u1 PARTITION OF u DEFAULT; SELECT"
        " create_distributed_table('u1', 'k')",
        "0A000",
    ),
    "inherited": ("CREATE TABLE u () INHERITS (t); SELECT create_distributed_table('t', 'k')", "0A000"),
    "inheriting": ("CREATE TABLE u () INHERITS (t); SELECT create_distributed_table('u', 'k')", "0A000"),
    "json key": ("CREATE TABLE u (k json); SELECT create_distributed_table('u', 'k')", "42704"),
    "point key": ("CREATE TABLE u (k point); SELECT create_distributed_table('u', 'k')", "42704"),
    "array key": ("CREATE TABLE u (k int[]); SELECT create_distributed_table('u', 'k')", "0A000"),
    "enum key": ("CREATE TYPE e AS ENUM ('a'); CREATE TABLE u (k e); SELECT create_distributed_table('u',"
                 " 'k')", "0A000"),
    "regclass key": ("CREATE TABLE u (k regclass); SELECT create_distributed_table('u', 'k')", "0A000"),
    "domain key": ("CREATE DOMAIN d AS int; CREATE TABLE u (k d); SELECT create_distributed_table('u',"
                   " 'k')", "0A000"),
    "generated key": (
        "CREATE TABLE u (n int, k int GENERATED ALWAYS AS (n) STORED); SELECT create_distributed_table('u', 'k')",
        "0A000",
    ),
    "composite column": ("CREATE TYPE c AS (x int); CREATE TABLE u (k int, c c); SELECT"
                         " create_distributed_table('u', 'k')", "0A000"),
    "foreign key from it": (
        "CREATE TABLE u (k int, n int, FOREIGN KEY (k, n) REFERENCES t); SELECT create_distributed_table('u', 'k')",
        "0A000",
    ),
    "foreign key to it": (
        "CREATE TABLE u (k int, n int, FOREIGN KEY (k, n) REFERENCES t); SELECT create_distributed_table('t', 'k')",
        "0A000",
    ),
    "a trigger": (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); SELECT"
        " create_distributed_table('t', 'k')",
        "0A000",
    ),
    "a rule": ("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING; SELECT create_distributed_table('t',"
               " 'k')", "0A000"),
    "a policy": ("ALTER TABLE t ENABLE ROW LEVEL SECURITY; SELECT create_distributed_table('t', 'k')", "0A000"),
    "a view on it": ("CREATE VIEW v AS SELECT * FROM t; SELECT create_distributed_table('t', 'k')", "0A000"),
    "a function on it": (
        "CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM t; END; SELECT"
        " create_distributed_table('t', 'k')",
        "0A000",
    ),
    "a column of its row type": ("CREATE TABLE u (x t); SELECT create_distributed_table('t', 'k')", "0A000"),
    "a publication": ("CREATE PUBLICATION p FOR TABLE t; SELECT create_distributed_table('t', 'k')", "0A000"),
    "a check with a user's function": (
        "CREATE FUNCTION f(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';"
        "CREATE TABLE u (k int CHECK (f(k))); SELECT create_distributed_table('u', 'k')",
        "0A000",
    ),
    "no primary key for a reference table": ("CREATE TABLE u (k int); SELECT create_reference_table('u')", "0A000"),
    "colocation with nothing": ("SELECT create_distributed_table('t', 'k', colocate_with => 'nope')", "42P01"),
    "colocation with a plain table": ("CREATE TABLE u (k int); SELECT create_distributed_table('t', 'k',"
                                      " colocate_with => 'u')", "42809"),
    "colocation of other types": (
        "CREATE TABLE u (k text); SELECT create_distributed_table('u', 'k'); SELECT"
        " create_distributed_table('t', 'k', colocate_with => 'u')",
        "42804",
    ),
    "no shards": ("SELECT create_distributed_table('t', 'k', shard_count => 0)", "22023"),
    "by range": ("SELECT create_distributed_table('t', 'k', 'range')", "0A000"),
    "undistributing a plain table": ("SELECT undistribute_table('t')", "42809"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_distributed_is_refused(app: Connection, kind: str) -> None:
    commands, state = REFUSED[kind]
    app.execute(SETUP)
    with pytest.raises(psycopg.Error) as refused, app.transaction():
        app.execute(commands.encode())
    assert refused.value.sqlstate == state, refused.value
    if state == "0A000":
        assert refused.value.diag.message_hint
    assert rows(app, "SELECT table_name FROM citus_tables") == []


def as_reader(herd: Herd) -> Connection:
    conninfo = make_conninfo(herd.databases.conninfo(0), user="reader", password="owner-secret")
    return psycopg.connect(conninfo, autocommit=True)


def test_only_the_owner_role_may_distribute(herd: Herd, app: Connection) -> None:
    app.execute(SETUP)
    app.execute("GRANT ALL ON SCHEMA shop TO reader, stranger; GRANT ALL ON t TO reader")
    with herd.superuser() as superuser:
        superuser.execute(
            "SET ROLE stranger; CREATE TABLE shop.s (k int); RESET ROLE; CREATE TABLE shop.p (k int)"
        )
        for name in ("s", "p"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="belongs to"):
                superuser.execute(f"SELECT create_distributed_table('shop.{name}', 'k')".encode())
        superuser.execute("SELECT create_distributed_table('shop.t', 'k')")
        superuser.execute("DROP TABLE shop.s, shop.p")
    with as_reader(herd) as reader:
        for call in (
            "SELECT create_reference_table('shop.t')",
            "SELECT undistribute_table('shop.t')",
            "SELECT pgherd.add_constraint('shop.t', 'UNIQUE (k)')",
            "SELECT pgherd.analyze('shop.t')",
            "SELECT * FROM run_command_on_workers('SELECT 1')",
            "SELECT * FROM run_command_on_shards('shop.t', 'DROP TABLE %s')",
            "SELECT pgherd.on_segment(1, 'SELECT 1')",
            "SELECT * FROM pgherd.on_segments('SELECT 1')",
            "INSERT INTO pgherd.exec_1 (sql) VALUES ('SELECT 1')",
            "SELECT pgherd.lock_ddl()",
            "SELECT pgherd.place_shard_group(1, 1, 1)",
            "SELECT pgherd.change_segments()",
            'SELECT * FROM pgherd_segment_1."shop.t"',
            "CREATE FOREIGN TABLE shop.steal (k int) SERVER segment_1 OPTIONS (schema_name 'shop', table_name 't')",
            "UPDATE pgherd.shard_group SET group_id = 1",
            "DELETE FROM pgherd.distributed_table",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), reader.transaction():
                reader.execute(call.encode())


def test_others_use_a_table_as_they_were_granted(herd: Herd, app: Connection) -> None:
    app.execute(
        f"{SETUP}; SELECT create_distributed_table('t', 'k'); CREATE TABLE r (k int PRIMARY KEY, n int)"
    )
    app.execute("SELECT create_reference_table('r'); GRANT USAGE ON SCHEMA shop TO reader")
    app.execute("GRANT SELECT (k), INSERT ON t TO reader; GRANT SELECT, INSERT, UPDATE ON r TO reader")
    with as_reader(herd) as reader:
        reader.execute(
            "INSERT INTO shop.t VALUES (1, 2); INSERT INTO shop.r VALUES (1, 1); UPDATE shop.r SET n = 5"
        )
        assert rows(reader, "SELECT t.k, r.n FROM shop.t JOIN shop.r USING (k)") == [(1, 5)]
        for denied in (
            "SELECT n FROM shop.t",
            "DELETE FROM shop.t",
            "DELETE FROM shop.r",
            "ALTER TABLE shop.t ADD x int",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(denied.encode())
    assert rows(app, "SELECT * FROM pgherd.on_segments('SELECT * FROM shop.r') ORDER BY 1") == [
        (1, {"k": 1, "n": 5}),
        (2, {"k": 1, "n": 5}),
    ]


def test_a_rolled_back_distribution_leaves_the_table_as_it_was(herd: Herd, app: Connection) -> None:
    app.execute(
        f"{SETUP}; INSERT INTO t SELECT i, i FROM generate_series(1, 100) i; CREATE TABLE r (k int PRIMARY KEY)"
    )
    oid = rows(app, "SELECT 't'::regclass::oid")
    with app.transaction(force_rollback=True):
        app.execute("SELECT create_distributed_table('t', 'k'), create_reference_table('r')")
        app.execute("INSERT INTO t SELECT i, i FROM generate_series(101, 200) i; INSERT INTO r VALUES (1)")
        assert rows(app, "SELECT count(*) FROM t") == [200]
        with app.transaction(force_rollback=True):
            app.execute("ALTER TABLE t ADD COLUMN x int; SELECT undistribute_table('t')")
        assert rows(app, "SELECT count(*) FROM t") == [200]
    assert rows(app, "SELECT 't'::regclass::oid") == oid
    assert rows(app, "SELECT count(*) FROM t") == [100]
    for group in (1, 2):
        with herd.superuser(group) as segment:
            assert (
                rows(segment, "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('shop')")
                == []
            )


def test_rows_that_break_nothing_here_but_there_fail_as_a_whole(app: Connection) -> None:
    app.execute("CREATE TABLE t (k int, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i")
    app.execute("SELECT create_distributed_table('t', 'k')")
    with pytest.raises(psycopg.errors.NotNullViolation), app.transaction():
        app.execute("INSERT INTO t VALUES (1, NULL); ALTER TABLE t ALTER COLUMN n SET NOT NULL")
    assert rows(app, "SELECT count(*) FROM t") == [100]


def test_storage_parameters_are_not_kept(herd: Herd, app: Connection) -> None:
    app.execute("CREATE TABLE t (k int) WITH (fillfactor = 50); SELECT create_distributed_table('t', 'k')")
    with herd.superuser(1) as segment:
        assert set(
            rows(
                segment, "SELECT reloptions FROM pg_class WHERE relnamespace = 'pgherd_shards'::regnamespace"
            )
        ) == {None}


def test_maintenance_goes_to_the_shards(app: Connection) -> None:
    app.execute(f"{SETUP}; CREATE INDEX i ON t (n); SELECT create_distributed_table('t', 'k')")
    app.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i")
    app.execute("VACUUM ANALYZE t")
    app.execute("REINDEX TABLE t")
    assert rows(app, "SELECT reltuples FROM pg_class WHERE oid = 't'::regclass") == [1000]
    files = (
        "SELECT result FROM run_command_on_shards('t', 'SELECT pg_relation_filenode(indexrelid) FROM pg_index"
    )
    files += " WHERE indrelid = ''%s''::regclass ORDER BY 1 LIMIT 1') ORDER BY shardid"
    before = rows(app, files)
    assert rows(
        app, "SELECT DISTINCT success, result FROM run_command_on_shards('t', 'REINDEX TABLE %s')"
    ) == [(True, "REINDEX TABLE")]
    assert not set(before) & set(rows(app, files))
    app.execute("SELECT pgherd.analyze('t')")


def test_the_interface_needs_a_caller_of_its_own(app: Connection) -> None:
    app.execute(f"""{SETUP};
        CREATE FUNCTION definer() RETURNS void LANGUAGE sql SECURITY DEFINER
            AS $$SELECT create_distributed_table('shop.t', 'k')$$;
        CREATE FUNCTION invoker() RETURNS void LANGUAGE sql AS $$SELECT create_distributed_table('shop.t', 'k')$$;
    """)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="role"):
        app.execute("SELECT definer()")
    app.execute("SELECT invoker()")


def test_colocated_tables_share_their_places(app: Connection) -> None:
    for name, options in {
        "a": "",
        "b": "",
        "c": ", colocate_with => 'none'",
        "d": ", colocate_with => 'c'",
        "e": ", 'c'",
        "f": ", shard_count => 3",
        "g": ", 'hash', 'f'",
    }.items():
        app.execute(
            f"CREATE TABLE {name} (k int); SELECT create_distributed_table('{name}', 'k'{options})".encode()
        )
    groups = dict(rows(app, "SELECT table_name::text, colocation_id FROM citus_tables"))
    assert groups["a"] == groups["b"]
    assert groups["c"] == groups["d"] == groups["e"]
    assert groups["f"] == groups["g"]
    assert len(set(groups.values())) == 3
    assert rows(app, "SELECT table_name::text, count(*) FROM citus_shards GROUP BY 1 ORDER BY 1")[-3:] == [
        ("e", 8), ("f", 3), ("g", 3),
    ]  # fmt: skip


def test_the_views_show_what_citus_shows(herd: Herd, app: Connection) -> None:
    app.execute(f"{SETUP}; INSERT INTO t SELECT i, i FROM generate_series(1, 10000) i")
    app.execute(
        "CREATE TABLE r (k int PRIMARY KEY); SELECT create_distributed_table('t', 'k'), create_reference_table('r')"
    )
    app.execute("SET search_path = shop")
    assert rows(
        app, "SELECT table_name::text, citus_table_type, distribution_column, shard_count, table_owner, access_method"
        " FROM citus_tables ORDER BY 1",
    ) == [("r", "reference", "<none>", 1, "app", "heap"), ("t", "distributed", "k", 8, "app", "heap")]  # fmt: skip
    shards = app.execute("SELECT * FROM citus_shards ORDER BY shardid")
    assert [column.name for column in shards.description or ()] == [
        "table_name", "shardid", "shard_name", "citus_table_type", "colocation_id", "nodename", "nodeport",
        "shard_size",
    ]  # fmt: skip
    found = shards.fetchall()
    assert {row[6] for row in found} == {herd.servers[1].port, herd.servers[2].port}
    assert all(row[7] > 8192 for row in found)
    counts = rows(app, "SELECT result::int FROM run_command_on_shards('t', 'SELECT count(*) FROM %s')")
    assert sum(counts) == 10000
    assert len(counts) == 8
    workers = rows(app, "SELECT * FROM run_command_on_workers('SELECT count(*) FROM r') ORDER BY nodeport")
    assert [(row[2], row[3]) for row in workers] == [(True, "0"), (True, "0")]
    broken = rows(app, "SELECT success, result FROM run_command_on_workers('SELECT count(*) FROM nope')")
    assert broken == [(False, 'ERROR:  relation "nope" does not exist')] * 2
    assert (
        rows(app, "SELECT result FROM run_command_on_workers('CREATE TABLE x (a int)')")
        == ["CREATE TABLE"] * 2
    )
    assert (
        rows(app, "SELECT result FROM run_command_on_workers('INSERT INTO x VALUES (1), (2)')")
        == ["INSERT 2"] * 2
    )
    app.execute("SELECT run_command_on_workers('DROP TABLE x')")
    assert rows(
        app,
        "SELECT get_shard_id_for_distribution_column('t', 5) = get_shard_id_for_distribution_column('t', '5')",
    ) == [True]
