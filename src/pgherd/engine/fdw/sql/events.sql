-- The event triggers that make ordinary DDL work on distributed tables. They run as whoever gives the command, and do
-- what concerns the owner role's tables as the owner role. They stand aside while pgherd.propagate is
-- off, which is how this schema's own functions work on the same tables.

CREATE OR REPLACE FUNCTION pgherd.propagating() RETURNS boolean LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(current_setting('pgherd.propagate', true), '') <> 'off'
       AND EXISTS (SELECT FROM pgherd.distributed_table)
$$;

-- Before the command takes any lock: wait for the moves under way, so that DDL waits and never fails or deadlocks.
CREATE OR REPLACE FUNCTION pgherd.before_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    IF pgherd.propagating() THEN
        PERFORM pgherd.lock_ddl();
    END IF;
END $$;

-- Distributed tables that may have changed, given the oids that a command named or dropped.
CREATE OR REPLACE FUNCTION pgherd.tables_touched(ids oid[]) RETURNS SETOF regclass LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT d.relation FROM pgherd.distributed_table d
     WHERE EXISTS (SELECT FROM pg_class WHERE oid = d.relation)
       AND (d.relation = ANY (ids)
            OR d.shape -> 'indexes' ?| ids::text[]
            OR d.shape -> 'types' ?| ids::text[]
            OR (d.shape ->> 'schema_oid')::oid = ANY (ids)
            OR EXISTS (SELECT FROM pg_index WHERE indrelid = d.relation AND indexrelid = ANY (ids)))
     ORDER BY 1
$$;

-- New columns with a default: what to ask for the value that existing rows get. Refuses what has no one value.
CREATE OR REPLACE FUNCTION pgherd.new_defaults(relation regclass) RETURNS TABLE (num int, expression text)
LANGUAGE plpgsql STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    d record;
BEGIN
    FOR d IN SELECT a.attnum, a.attname, f.adbin, f.adrelid, f.oid
               FROM pgherd.distributed_table t
               JOIN pg_attribute a ON a.attrelid = t.relation
               JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
              WHERE t.relation = new_defaults.relation AND t.kind = 'distributed' AND a.attgenerated = '' AND NOT a.attisdropped
                AND NOT t.shape -> 'columns' ? a.attnum::text
    LOOP
        IF d.adbin::text ~ 'NEXTVALUEEXPR' OR EXISTS (
            SELECT FROM regexp_matches(d.adbin::text, ':(?:op)?funcid (\d+)', 'g') m
              JOIN pg_proc p ON p.oid = m[1]::oid WHERE p.provolatile = 'v') THEN
            PERFORM pgherd.refuse(format('cannot add column %I with a volatile default to distributed table %s', d.attname,
                pgherd.label(relation)), 'Rows on different segments would need different values.',
                'Add the column without a default, SET DEFAULT, and fill the existing rows by UPDATE.');
        END IF;
        num := d.attnum;
        expression := pg_get_expr(d.adbin, d.adrelid);
        RETURN NEXT;
    END LOOP;
END $$;

-- Does the work of pgherd.follow as the owner role. Harmless to call: it only ever brings segments in step with what
-- the caller was allowed to do on the coordinator.
CREATE OR REPLACE FUNCTION pgherd.follow_as_owner(relation regclass, defaults jsonb) RETURNS void LANGUAGE sql
SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS $$ SELECT pgherd.follow(relation, defaults) $$;
ALTER FUNCTION pgherd.follow_as_owner(regclass, jsonb) OWNER TO @agent@;

-- Runs as whoever gives the command, since it evaluates the defaults of new columns, which are that role's code.
CREATE OR REPLACE FUNCTION pgherd.follow_all(ids oid[]) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp SET datestyle TO 'ISO, YMD' SET intervalstyle TO postgres
SET bytea_output TO hex SET extra_float_digits TO 3 AS $$
DECLARE
    relation regclass;
    d        record;
    value    text;
    defaults jsonb;
BEGIN
    FOR relation IN SELECT * FROM pgherd.tables_touched(ids) LOOP
        defaults := '{}';
        FOR d IN SELECT * FROM pgherd.new_defaults(relation) LOOP
            EXECUTE format('SELECT (%s)::text', d.expression) INTO value;
            defaults := defaults || jsonb_build_object(d.num::text, value);
        END LOOP;
        PERFORM pgherd.follow_as_owner(relation, defaults);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION pgherd.after_ddl() RETURNS event_trigger LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    ids oid[];
    bad record;
BEGIN
    IF NOT pgherd.propagating() THEN
        RETURN;
    END IF;
    SELECT array_agg(objid) INTO ids FROM pg_event_trigger_ddl_commands() WHERE objid IS NOT NULL;
    SELECT c.relname INTO bad FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = ANY (ids) AND c.relkind = 'f'
       AND (n.nspname IN ('pgherd', 'pgherd_shards') OR n.nspname LIKE 'pgherd\_segment\_%') LIMIT 1;
    IF FOUND AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        PERFORM pgherd.refuse(format('%I cannot be altered by itself', bad.relname), NULL, 'Alter its table.');
    END IF;
    PERFORM pgherd.follow_all(ids || (SELECT array_agg(inhparent) FROM pg_inherits WHERE inhrelid = ANY (ids)));
END $$;

CREATE OR REPLACE FUNCTION pgherd.after_drop() RETURNS event_trigger LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    ids oid[];
BEGIN
    IF NOT pgherd.propagating() THEN
        RETURN;
    END IF;
    IF TG_TAG = 'DROP OWNED' THEN
        PERFORM pgherd.grant_rights();
    END IF;
    SELECT array_agg(objid) INTO ids FROM pg_event_trigger_dropped_objects();
    PERFORM pgherd.forget_dropped(ids, (SELECT array_agg(object_name) FROM pg_event_trigger_dropped_objects()
                                         WHERE schema_name = 'pgherd_shards' AND object_type = 'foreign table'));
    IF TG_TAG LIKE 'DROP %' THEN
        PERFORM pgherd.follow_all(ids || (SELECT array_agg(d.relation::oid) FROM pgherd.distributed_table d
            WHERE EXISTS (SELECT FROM pg_event_trigger_dropped_objects()
                           WHERE object_type = 'trigger' AND object_identity LIKE 'pgherd\_%')));
    END IF;
END $$;

-- Tables that are gone here go on the segments too. Given oids of tables that still exist it does nothing;
-- a shard whose table stays is refused.
CREATE OR REPLACE FUNCTION pgherd.forget_dropped(ids oid[], shards text[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off SET client_min_messages TO warning AS $$
DECLARE
    t   pgherd.distributed_table%ROWTYPE;
    bad record;
BEGIN
    PERFORM pgherd.require_owner_role();
    FOR t IN SELECT * FROM pgherd.distributed_table d WHERE d.relation = ANY (ids)
                AND NOT EXISTS (SELECT FROM pg_class WHERE oid = d.relation) ORDER BY d.relation LOOP
        PERFORM pgherd.drop_twins(t);
        PERFORM pgherd.forget_table(t.relation);
    END LOOP;
    SELECT s.name, s.relation INTO bad FROM pgherd.shard s WHERE s.name = ANY (shards) LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('shard %I cannot be dropped by itself', bad.name), NULL,
                              format('DROP TABLE %s drops all of its shards.', pgherd.label(bad.relation)));
    END IF;
END $$;

ALTER FUNCTION pgherd.forget_dropped(oid[], text[]) OWNER TO @agent@;

-- Takes a table out of the catalogue, and its colocation with the last table, unless somebody is joining it.
CREATE OR REPLACE FUNCTION pgherd.forget_table(relation regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM pgherd.distributed_table d WHERE d.relation = forget_table.relation;
    DELETE FROM pgherd.colocation c WHERE c.id IN (
        SELECT x.id FROM pgherd.colocation x
         WHERE NOT EXISTS (SELECT FROM pgherd.distributed_table d WHERE d.colocation_id = x.id)
           FOR UPDATE SKIP LOCKED);
END $$;

-- Takes the segments' tables and the per-segment relations of a table that is going or gone out of the way.
--
-- Nothing is dropped on a segment yet: its part of the transaction is committed first, and if the coordinator were lost
-- before its own commit, the table would still be there without its rows. So the tables go into a schema of their own,
-- named after the table's oid, and a clean-up record has them dropped after the commit.
CREATE OR REPLACE FUNCTION pgherd.drop_twins(t pgherd.distributed_table) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off SET client_min_messages TO warning AS $$
DECLARE
    segment int;
    twin    text := format('%I.%I', t.shape ->> 'schema', t.shape ->> 'name');
BEGIN
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        EXECUTE format('DROP FOREIGN TABLE IF EXISTS %I.%I', 'pgherd_segment_' || segment,
                       pgherd.segment_relation((t.shape ->> 'schema')::name, (t.shape ->> 'name')::name));
        PERFORM pgherd.on_segment(segment, format('CREATE SCHEMA IF NOT EXISTS %s; ALTER TABLE IF EXISTS %s SET SCHEMA %s',
                                                  'pgherd_gone_' || t.relation::oid, twin, 'pgherd_gone_' || t.relation::oid));
        PERFORM pgherd.schedule_drop(segment, t.relation);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION pgherd.refuse_key_update() RETURNS trigger LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pgherd.refuse(format('the distribution column of %s cannot be updated', pgherd.label(TG_RELID)),
        'The row would belong to another shard.', 'DELETE the row and INSERT it again, in one transaction.');
END $$;

DO $$
BEGIN
    DROP EVENT TRIGGER IF EXISTS pgherd_before_ddl;
    CREATE EVENT TRIGGER pgherd_before_ddl ON ddl_command_start
        WHEN TAG IN ('ALTER TABLE', 'ALTER INDEX', 'ALTER SCHEMA', 'ALTER TYPE', 'CREATE INDEX', 'DROP TABLE', 'DROP INDEX',
                     'DROP SCHEMA', 'DROP OWNED', 'DROP TYPE', 'DROP TRIGGER', 'DROP EXTENSION', 'DROP FOREIGN TABLE',
                     'DROP SERVER')
        EXECUTE FUNCTION pgherd.before_ddl();
    DROP EVENT TRIGGER IF EXISTS pgherd_after_ddl;
    CREATE EVENT TRIGGER pgherd_after_ddl ON ddl_command_end
        WHEN TAG IN ('ALTER TABLE', 'ALTER INDEX', 'ALTER SCHEMA', 'ALTER TYPE', 'CREATE INDEX', 'ALTER FOREIGN TABLE',
                     'ALTER TRIGGER', 'CREATE TRIGGER', 'CREATE TABLE', 'CREATE FOREIGN TABLE')
        EXECUTE FUNCTION pgherd.after_ddl();
    DROP EVENT TRIGGER IF EXISTS pgherd_after_drop;
    CREATE EVENT TRIGGER pgherd_after_drop ON sql_drop EXECUTE FUNCTION pgherd.after_drop();
END $$;
SELECT pgherd.grant_rights();
