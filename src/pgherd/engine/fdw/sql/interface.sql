-- The subset of Citus's SQL interface that applications use, under its names and found whatever the search_path is.

CREATE OR REPLACE FUNCTION pgherd.table_or_refuse(relation regclass) RETURNS pgherd.distributed_table LANGUAGE plpgsql
STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    t pgherd.distributed_table%ROWTYPE;
BEGIN
    SELECT * INTO t FROM pgherd.distributed_table d WHERE d.relation = table_or_refuse.relation;
    IF NOT FOUND THEN
        PERFORM pgherd.refuse(format('table %s is not distributed', coalesce(pgherd.label(relation), 'NULL')), NULL,
            'SELECT create_distributed_table(...) or create_reference_table(...) first.', '42809');
    END IF;
    RETURN t;
END $$;

CREATE OR REPLACE FUNCTION pg_catalog.undistribute_table(table_name regclass, cascade_via_foreign_keys boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off
SET client_min_messages TO warning AS $$
DECLARE
    t       pgherd.distributed_table%ROWTYPE;
    trigger record;
BEGIN
    PERFORM pgherd.lock_ddl();
    t := pgherd.table_or_refuse(table_name);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_name);
    IF t.kind = 'reference' THEN
        FOR trigger IN SELECT * FROM pgherd.reference_triggers() LOOP
            EXECUTE format('DROP TRIGGER %I ON %s', trigger.name, table_name);
        END LOOP;
        PERFORM pgherd.drop_twins(t);
        PERFORM pgherd.forget_table(table_name);
    ELSE
        PERFORM pgherd.require_no_dependants(table_name);
        PERFORM pgherd.make_plain(t);
    END IF;
END $$;

-- The way back: a plain table takes the rows, the place and the name.
CREATE OR REPLACE FUNCTION pgherd.make_plain(t pgherd.distributed_table) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    label   text := t.relation::text;
    entry   jsonb;
BEGIN
    PERFORM pgherd.set_aside(t.relation);
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES)', label, t.relation);
    PERFORM pgherd.copy_rows(t.relation, label::regclass);
    PERFORM pgherd.hand_over(t.relation, label::regclass);
    PERFORM pgherd.drop_twins(t);
    PERFORM pgherd.forget_table(t.relation);
    EXECUTE format('DROP TABLE %s', t.relation);
    FOR entry IN SELECT value FROM jsonb_each(t.shape -> 'constraints') LOOP
        EXECUTE CASE WHEN entry ? 'index' THEN format('CREATE UNIQUE INDEX %I ON %s %s', entry ->> 'name', label, entry ->> 'def')
                     ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', label, entry ->> 'name', entry ->> 'def') END;
    END LOOP;
    FOR entry IN SELECT value FROM jsonb_each(t.shape -> 'indexes') LOOP
        EXECUTE format('CREATE INDEX %I ON %s %s', entry ->> 'name', label, entry ->> 'def');
    END LOOP;
END $$;

-- Where a segment's primary is. The reconcile loop knows; until it has written that down, the first address will do.
CREATE OR REPLACE VIEW pgherd.segment_address AS
SELECT s.group_id,
       coalesce(m.host, split_part(max(o.option_value) FILTER (WHERE o.option_name = 'host'), ',', 1)) AS nodename,
       coalesce(m.port, split_part(max(o.option_value) FILTER (WHERE o.option_name = 'port'), ',', 1)::int) AS nodeport
  FROM pgherd.segment s
  JOIN pg_catalog.pg_foreign_server f ON f.srvname = s.server_name
 CROSS JOIN LATERAL pg_options_to_table(f.srvoptions) o
  LEFT JOIN LATERAL (SELECT c.host, c.port FROM pgherd.segment_configuration c
                      WHERE c.group_id = s.group_id AND c.role = 'primary' AND c.status = 'up' LIMIT 1) m ON true
 GROUP BY s.group_id, m.host, m.port;
GRANT SELECT ON pgherd.segment_address TO PUBLIC;

-- Sizes as the segments tell them; a segment that is away tells nothing.
CREATE OR REPLACE FUNCTION pgherd.shard_sizes() RETURNS TABLE (group_id int, schema_name name, name name, bytes bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    segment int;
BEGIN
    FOR segment IN SELECT s.group_id FROM pgherd.segment s ORDER BY 1 LOOP
        BEGIN
            RETURN QUERY EXECUTE format('SELECT %s, r.schema_name, r.name, r.bytes FROM pgherd.%I r', segment,
                                        'relation_size_' || segment);
        EXCEPTION WHEN connection_exception OR fdw_error THEN
            NULL;
        END;
    END LOOP;
END $$;

SET LOCAL allow_system_table_mods = on;

CREATE OR REPLACE VIEW pg_catalog.citus_shards AS
SELECT s.relation AS table_name, s.shard_id AS shardid, format('pgherd_shards.%I', s.name) AS shard_name,
       d.kind AS citus_table_type, d.colocation_id, a.nodename, a.nodeport, z.bytes AS shard_size
  FROM pgherd.shard s
  JOIN pgherd.distributed_table d ON d.relation = s.relation
  JOIN pgherd.shard_group g ON g.colocation_id = d.colocation_id AND g.index = s.index
  LEFT JOIN pgherd.segment_address a ON a.group_id = g.group_id
  LEFT JOIN pgherd.shard_sizes() z ON z.group_id = g.group_id AND z.schema_name = 'pgherd_shards' AND z.name = s.name;

CREATE OR REPLACE VIEW pg_catalog.citus_tables AS
SELECT d.relation AS table_name, d.kind AS citus_table_type, coalesce(d.key_column::text, '<none>') AS distribution_column,
       d.colocation_id,
       pg_size_pretty(CASE WHEN d.kind = 'reference' THEN pg_total_relation_size(d.relation)
                           ELSE (SELECT coalesce(sum(x.shard_size), 0)::bigint FROM pg_catalog.citus_shards x
                                  WHERE x.table_name = d.relation) END) AS table_size,
       CASE WHEN d.kind = 'reference' THEN 1 ELSE (SELECT count(*) FROM pgherd.shard s WHERE s.relation = d.relation) END
           AS shard_count,
       pg_get_userbyid(c.relowner) AS table_owner, 'heap'::text AS access_method
  FROM pgherd.distributed_table d JOIN pg_catalog.pg_class c ON c.oid = d.relation;

SET LOCAL allow_system_table_mods = off;
GRANT SELECT ON pg_catalog.citus_shards, pg_catalog.citus_tables TO PUBLIC;

-- Which shard holds the rows with this key. Two forms: an untyped literal is text.
CREATE OR REPLACE FUNCTION pgherd.shard_of(table_name regclass, distribution_value text) RETURNS bigint LANGUAGE plpgsql
STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    t    pgherd.distributed_table%ROWTYPE := pgherd.table_or_refuse(table_name);
    id   bigint;
    type text;
BEGIN
    IF t.kind = 'reference' THEN
        PERFORM pgherd.refuse(format('%s is a reference table', pgherd.label(table_name)), NULL,
                              'It has no distribution column.', '42809');
    END IF;
    SELECT format_type(atttypid, -1) INTO type    -- not NULL: bpchar would become char(1)
      FROM pg_attribute WHERE attrelid = table_name AND attname = t.key_column;
    EXECUTE format('SELECT s.shard_id FROM pgherd.shard s JOIN pgherd.colocation c ON c.id = $1 WHERE s.relation = $2 AND '
                   'satisfies_hash_partition(%s::oid, c.shard_count, s.index, $3::%s)', table_name::oid, type)
       INTO id USING t.colocation_id, table_name, distribution_value;
    RETURN id;
END $$;

CREATE OR REPLACE FUNCTION pg_catalog.get_shard_id_for_distribution_column(table_name regclass, distribution_value text)
RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT pgherd.shard_of(table_name, distribution_value) $$;

CREATE OR REPLACE FUNCTION pg_catalog.get_shard_id_for_distribution_column(table_name regclass, distribution_value anyelement)
RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT pgherd.shard_of(table_name, distribution_value::text) $$;

-- Runs a command on a segment and says how it went; what it did stays or goes with the present transaction.
CREATE OR REPLACE FUNCTION pgherd.try_on_segment(segment int, command text, OUT success boolean, OUT result text)
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_catalog.has_table_privilege(pg_catalog.format('pgherd.exec_%s', segment), 'INSERT') THEN
        PERFORM pgherd.refuse('only the owner of the database may run commands on segments', NULL, NULL, '42501');
    END IF;
    success := true;
    result := pgherd.on_segment(segment, command, 'any', pg_catalog.current_setting('search_path'));
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE = '42501' AND SQLERRM LIKE 'only the owner of the database%' THEN
        RAISE;
    END IF;
    success := false;
    result := 'ERROR:  ' || SQLERRM;
END $$;

CREATE OR REPLACE FUNCTION pg_catalog.run_command_on_workers(
    command text, parallel boolean DEFAULT true, OUT nodename text, OUT nodeport int, OUT success boolean, OUT result text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    segment pg_catalog.int4;
BEGIN
    FOR segment, nodename, nodeport IN SELECT a.group_id, a.nodename, a.nodeport FROM pgherd.segment_address a ORDER BY 1 LOOP
        SELECT r.success, r.result INTO success, result FROM pgherd.try_on_segment(segment, command) r;
        RETURN NEXT;
    END LOOP;
END $$;

-- %s in the command stands for the shard's name.
CREATE OR REPLACE FUNCTION pg_catalog.run_command_on_shards(
    table_name regclass, command text, parallel boolean DEFAULT true,
    OUT shardid bigint, OUT success boolean, OUT result text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    t pgherd.distributed_table%ROWTYPE := pgherd.table_or_refuse(table_name);
    s record;
BEGIN
    FOR s IN SELECT p.shard_id, g.group_id, pg_catalog.format('pgherd_shards.%I', p.name) AS name
               FROM pgherd.shard p JOIN pgherd.shard_group g ON g.colocation_id = t.colocation_id AND g.index = p.index
              WHERE p.relation = t.relation
             UNION ALL
             SELECT NULL, x.group_id, pg_catalog.format('%I.%I', t.shape ->> 'schema', t.shape ->> 'name')
               FROM pgherd.segment x WHERE t.kind = 'reference'
              ORDER BY 1, 2
    LOOP
        shardid := s.shard_id;
        SELECT r.success, r.result INTO success, result
          FROM pgherd.try_on_segment(s.group_id, pg_catalog.replace(command, '%s', s.name)) r;
        RETURN NEXT;
    END LOOP;
END $$;
