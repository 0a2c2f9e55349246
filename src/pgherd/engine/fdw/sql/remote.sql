-- Coordinator: talking to segments inside the present transaction, and the locks that order DDL and moves.

GRANT SELECT ON pgherd.settings, pgherd.segment, pgherd.colocation, pgherd.shard_group, pgherd.distributed_table,
                pgherd.shard TO PUBLIC;
CREATE SCHEMA IF NOT EXISTS pgherd_shards;

-- 'segments_epoch' changes whenever a segment is admitted or retired; see pgherd.segment_ids().
INSERT INTO pgherd.settings VALUES ('segments_epoch', '0') ON CONFLICT DO NOTHING;

-- Gives the owner role, and the agent that acts for it, all that this schema's functions ask for. Again whenever a
-- segment was admitted, and after a DROP OWNED, which takes it away.
CREATE OR REPLACE FUNCTION pgherd.grant_rights() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp SET client_min_messages TO error AS $$
DECLARE
    command text;
BEGIN
    GRANT INSERT, UPDATE, DELETE ON pgherd.colocation, pgherd.shard_group, pgherd.distributed_table, pgherd.shard
       TO @owner@, @agent@;
    GRANT SELECT, UPDATE ON pgherd.serializable_turn TO @owner@, @agent@;
    GRANT USAGE, CREATE ON SCHEMA pgherd_shards TO @owner@, @agent@;
    GRANT EXECUTE ON FUNCTION pgherd.lock_ddl(), pgherd.next_shard_id(), pgherd.schedule_drop(int, oid) TO @owner@, @agent@;
    FOR command IN
        SELECT format('GRANT USAGE ON FOREIGN SERVER %I', srvname) FROM pg_foreign_server WHERE srvname ~ '^segment_[0-9]+$'
        UNION ALL
        SELECT format('GRANT SELECT, INSERT ON pgherd.%I', relname) FROM pg_class
         WHERE relnamespace = 'pgherd'::regnamespace AND relname ~ '^exec_[0-9]+$'
        UNION ALL
        SELECT format('GRANT SELECT ON pgherd.%I', relname) FROM pg_class
         WHERE relnamespace = 'pgherd'::regnamespace AND relname ~ '^query_[0-9]+$'
        UNION ALL
        SELECT format('GRANT USAGE, CREATE ON SCHEMA %I', nspname) FROM pg_namespace WHERE nspname ~ '^pgherd_segment_[0-9]+$'
    LOOP
        EXECUTE command || $g$ TO @owner@, @agent@$g$;
    END LOOP;
END $$;

-- The admitted segments, for a writer that must reach all of them: a transaction whose snapshot is older than the
-- last admission would silently leave the new segment out, so it fails with 40001 instead.
CREATE OR REPLACE FUNCTION pgherd.segment_ids() RETURNS SETOF int LANGUAGE plpgsql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM 1 FROM pgherd.settings WHERE name = 'segments_epoch' FOR SHARE;
    END IF;
    RETURN QUERY SELECT group_id FROM pgherd.segment ORDER BY group_id;
END $$;

CREATE OR REPLACE FUNCTION pgherd.next_shard_id() RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp AS $$ SELECT nextval('pgherd.shard_id_seq') $$;
REVOKE EXECUTE ON FUNCTION pgherd.next_shard_id() FROM PUBLIC;

-- What a dropped table had on a segment goes after the commit: see pgherd.drop_twins().
CREATE OR REPLACE FUNCTION pgherd.schedule_drop(segment int, relation oid) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp AS $$
    INSERT INTO pgherd.cleanup (group_id, kind, name) VALUES (segment, 'table', 'pgherd_gone_' || relation)
$$;
REVOKE EXECUTE ON FUNCTION pgherd.schedule_drop(int, oid) FROM PUBLIC;

-- Runs SQL on one segment, as the owner role, inside this transaction.
CREATE OR REPLACE FUNCTION pgherd.on_segment(segment int, sql text, wants text DEFAULT NULL, path text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    answer text;
BEGIN
    EXECUTE format('INSERT INTO pgherd.%I (sql, wants, search_path) VALUES ($1, $2, $3) RETURNING result',
                   'exec_' || segment) INTO answer USING sql, wants, path;
    RETURN answer;
END $$;

CREATE OR REPLACE FUNCTION pgherd.on_all_segments(sql text) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    segment int;
BEGIN
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        PERFORM pgherd.on_segment(segment, sql);
    END LOOP;
END $$;

-- First statement of everything that changes definitions: waits for the moves under way, holds off new ones.
CREATE OR REPLACE FUNCTION pgherd.lock_ddl() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE pgherd.ddl_barrier IN ROW EXCLUSIVE MODE;
END $$;
REVOKE EXECUTE ON FUNCTION pgherd.lock_ddl() FROM PUBLIC;

-- PostgreSQL's name rule: cut the front so that the end survives, in bytes, never inside a character.
CREATE OR REPLACE FUNCTION pgherd.name_with_suffix(front text, tail text) RETURNS name LANGUAGE plpgsql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    WHILE octet_length(front) + octet_length(tail) > 63 LOOP
        front := left(front, -1);
    END LOOP;
    RETURN (front || tail)::name;
END $$;

-- The name of a table's per-segment relations, in the schemas pgherd_segment_N.
CREATE OR REPLACE FUNCTION pgherd.segment_relation(schema name, relation name) RETURNS name LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT CASE WHEN schema = 'public' THEN relation
                WHEN octet_length(schema || '.' || relation) <= 63 THEN (schema || '.' || relation)::name
                ELSE pgherd.name_with_suffix(schema || '.' || relation, '_' || left(md5(schema || '.' || relation), 8)) END
$$;
