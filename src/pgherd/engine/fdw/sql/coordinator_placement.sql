-- The decision of a move: from the commit of this function's transaction on, a shard group lives on another segment.
-- Idempotent: run at every start, by the superuser.

-- The caller holds EXCLUSIVE locks on the group's tables, so that nobody writes; readers go on. A foreign table
-- can't be given another server by any command, so its catalogue row is changed; no lock that a reader would feel is
-- taken. Runs as a replica so that the DDL event triggers, which wait for moves, don't wait for this one.
CREATE OR REPLACE FUNCTION pgherd.place_shard_group(colocation int, index int, group_id int)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET allow_system_table_mods = on
SET session_replication_role = replica
AS $$
#variable_conflict use_column
DECLARE
    server oid;
    shard  record;
BEGIN
    SELECT f.oid INTO server
      FROM pgherd.segment s JOIN pg_foreign_server f ON f.srvname = s.server_name
     WHERE s.group_id = place_shard_group.group_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'segment % is not admitted', place_shard_group.group_id USING ERRCODE = 'undefined_object';
    END IF;

    UPDATE pgherd.shard_group g SET group_id = place_shard_group.group_id
     WHERE g.colocation_id = colocation AND g.index = place_shard_group.index;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no shard group %/%', colocation, place_shard_group.index
            USING ERRCODE = 'undefined_object';
    END IF;

    FOR shard IN
        SELECT c.oid, c.relname, a.attname, a.attstattarget, ft.ftserver
          FROM pgherd.shard s
          JOIN pgherd.distributed_table t ON t.relation = s.relation
          JOIN pg_class c ON c.relname = s.name AND c.relnamespace = 'pgherd_shards'::regnamespace
          JOIN pg_foreign_table ft ON ft.ftrelid = c.oid
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = t.key_column AND NOT a.attisdropped
         WHERE t.colocation_id = colocation AND s.index = place_shard_group.index
         ORDER BY s.shard_id
    LOOP
        UPDATE pg_foreign_table SET ftserver = server WHERE ftrelid = shard.oid;
        UPDATE pg_depend SET refobjid = server
         WHERE classid = 'pg_class'::regclass AND objid = shard.oid
           AND refclassid = 'pg_foreign_server'::regclass AND refobjid = shard.ftserver;
        -- Changes nothing, but makes every session look again before it uses a plan it has kept.
        EXECUTE format('ALTER FOREIGN TABLE pgherd_shards.%I ALTER COLUMN %I SET STATISTICS %s',
                       shard.relname, shard.attname, coalesce(shard.attstattarget, -1));
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION pgherd.place_shard_group(int, int, int) FROM PUBLIC;
