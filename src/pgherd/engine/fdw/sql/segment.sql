-- What a segment needs so that the coordinator can reach it. Run as superuser, idempotent.

CREATE SCHEMA IF NOT EXISTS pgherd;
GRANT USAGE ON SCHEMA pgherd TO PUBLIC;
CREATE SCHEMA IF NOT EXISTS pgherd_shards;
GRANT USAGE, CREATE ON SCHEMA pgherd_shards TO @owner@;

-- The coordinator's way to run any SQL inside postgres_fdw's own remote transaction: an INSERT into this view is
-- the execution, so it commits and rolls back with the coordinator's transaction and sees that transaction's rows.
CREATE OR REPLACE VIEW pgherd.exec AS
SELECT NULL::text AS sql,
       NULL::text AS search_path,   -- for the time of the statement; null: pg_catalog alone
       NULL::text AS wants,         -- 'value': the first column of the first row; 'any': that or a command tag
       NULL::text AS result
 WHERE false;

CREATE OR REPLACE FUNCTION pgherd.run_exec() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    outer_path text := pg_catalog.current_setting('search_path');
    touched    bigint;
BEGIN
    PERFORM pg_catalog.set_config('search_path', coalesce(NEW.search_path, 'pg_catalog, pg_temp'), true);
    CASE NEW.wants
    WHEN 'value' THEN
        EXECUTE NEW.sql INTO NEW.result;
    WHEN 'any' THEN
        BEGIN
            EXECUTE NEW.sql INTO NEW.result;
        EXCEPTION WHEN syntax_error THEN    -- also what PL/pgSQL says of commands that return nothing
            EXECUTE NEW.sql;
            GET DIAGNOSTICS touched = ROW_COUNT;
            NEW.result := pg_catalog.upper(pg_catalog.substring(NEW.sql, '^\s*(\w+)'));
            IF NEW.result IN ('INSERT', 'UPDATE', 'DELETE', 'MERGE') THEN
                NEW.result := NEW.result || ' ' || touched;
            ELSE
                NEW.result := pg_catalog.upper(pg_catalog.regexp_replace(
                    pg_catalog.substring(NEW.sql, '^\s*(\w+(\s+\w+)?)'), '\s+', ' '));
            END IF;
        END;
    ELSE
        EXECUTE NEW.sql;
    END CASE;
    PERFORM pg_catalog.set_config('search_path', outer_path, true);
    RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER run_exec INSTEAD OF INSERT ON pgherd.exec FOR EACH ROW EXECUTE FUNCTION pgherd.run_exec();
GRANT SELECT, INSERT ON pgherd.exec TO @owner@;

-- Sizes of everything of ours, for citus_shards.
CREATE OR REPLACE VIEW pgherd.relation_size AS
SELECT n.nspname AS schema_name, c.relname AS name, pg_catalog.pg_total_relation_size(c.oid) AS bytes
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgherd');
GRANT SELECT ON pgherd.relation_size TO @owner@;

-- The rows of the query that the coordinator left in a setting: a relation, so that all segments are read at once.
CREATE OR REPLACE FUNCTION pgherd.run_query() RETURNS SETOF jsonb LANGUAGE plpgsql AS $$
DECLARE
    outer_path text := pg_catalog.current_setting('search_path');
BEGIN
    PERFORM pg_catalog.set_config('search_path', pg_catalog.current_setting('pgherd.query_path'), true);
    RETURN QUERY EXECUTE pg_catalog.format('SELECT pg_catalog.to_jsonb(q) FROM (%s) q',
                                           pg_catalog.current_setting('pgherd.query'));
    PERFORM pg_catalog.set_config('search_path', outer_path, true);
END $$;
CREATE OR REPLACE VIEW pgherd.query AS SELECT q AS "row" FROM pgherd.run_query() q;
GRANT SELECT ON pgherd.query TO @owner@;
