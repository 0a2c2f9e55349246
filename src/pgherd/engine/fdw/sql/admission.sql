-- A segment comes or goes. Run by pgherd as superuser, in one transaction.

-- Waits for DDL and moves under way and holds both off until the end of the transaction.
CREATE OR REPLACE FUNCTION pgherd.change_segments() RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE pgherd.ddl_barrier IN SHARE ROW EXCLUSIVE MODE;
    UPDATE pgherd.settings SET value = (value::bigint + 1)::text WHERE name = 'segments_epoch';
END $$;

-- Every table's definition, every reference table's rows. The segment has no shards yet: whatever of ours is there is
-- left from an earlier life and goes.
CREATE OR REPLACE FUNCTION pgherd.furnish_segment(segment int) RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off SET client_min_messages TO warning AS $$
DECLARE
    t pgherd.distributed_table%ROWTYPE;
BEGIN
    PERFORM pgherd.on_segment(segment, pgherd.sweep_ddl());
    FOR t IN SELECT * FROM pgherd.distributed_table ORDER BY relation LOOP
        IF t.kind = 'reference' THEN
            -- writers that wait here must see the new segment: see write_through() and segment_ids()
            PERFORM 1 FROM pgherd.distributed_table d WHERE d.relation = t.relation FOR UPDATE;
            PERFORM pgherd.make_copy(t, segment);
        ELSE
            PERFORM pgherd.on_segment(segment, pgherd.twin_ddl(t.shape, t.key_column));
            EXECUTE pgherd.segment_relation_ddl(t.shape, segment);
        END IF;
    END LOOP;
END $$;

-- Drops all shards and their twins, and what dropped tables left.
CREATE OR REPLACE FUNCTION pgherd.sweep_ddl() RETURNS text LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT $do$DO $sweep$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT DISTINCT i.inhparent::regclass AS name FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
              WHERE c.relnamespace = 'pgherd_shards'::regnamespace LOOP
        EXECUTE format('DROP TABLE %s CASCADE', t.name);
    END LOOP;
    FOR t IN SELECT c.oid::regclass AS name FROM pg_class c
              WHERE c.relnamespace = 'pgherd_shards'::regnamespace AND c.relkind = 'r' LOOP
        EXECUTE format('DROP TABLE %s CASCADE', t.name);
    END LOOP;
    FOR t IN SELECT n.nspname AS name FROM pg_namespace n WHERE n.nspname ~ '^pgherd_gone_[0-9]+$' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', t.name);
    END LOOP;
END $sweep$ $do$
$$;
