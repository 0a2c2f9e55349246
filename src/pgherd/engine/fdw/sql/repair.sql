-- Bringing a segment's tables back in step with the coordinator's, after a crash between two commits or after somebody
-- changed them there. The coordinator is right.

-- A shape with everything under its name, so that shapes of different servers can be compared.
CREATE OR REPLACE FUNCTION pgherd.named(shape jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT shape || jsonb_build_object(
        'columns', (SELECT coalesce(jsonb_object_agg(value ->> 'name',
                          value || jsonb_strip_nulls(jsonb_build_object('expression_oid', value -> 'expression'))), '{}')
                      FROM jsonb_each(shape -> 'columns')),
        'checks', (SELECT coalesce(jsonb_object_agg(value ->> 'name', value), '{}') FROM jsonb_each(shape -> 'checks')),
        'indexes', (SELECT coalesce(jsonb_object_agg(value ->> 'name', value), '{}') FROM (
                        SELECT value FROM jsonb_each(shape -> 'indexes')
                         UNION ALL
                        SELECT value - 'index' || '{"unique": true}' FROM jsonb_each(shape -> 'constraints')
                         WHERE value ? 'index') i),
        'constraints', (SELECT coalesce(jsonb_object_agg(value ->> 'name', value), '{}')
                          FROM jsonb_each(shape -> 'constraints') WHERE NOT value ? 'index'),
        'types', (SELECT coalesce(jsonb_object_agg(format('%I.%I', value ->> 'schema', value ->> 'name'),
                          value || jsonb_build_object('label_oids',
                              (SELECT jsonb_object_agg(l, l) FROM jsonb_array_elements_text(value -> 'labels') l))), '{}')
                    FROM jsonb_each(shape -> 'types')))
$$;

-- Things of one name that differ in substance are dropped and made again: as a difference they would look the same.
CREATE OR REPLACE FUNCTION pgherd.without_changed(present jsonb, wanted jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT jsonb_object_agg(section, (
               SELECT coalesce(jsonb_object_agg(CASE WHEN w.value IS DISTINCT FROM p.value AND w.value IS NOT NULL
                                                     THEN 'changed ' || p.key ELSE p.key END, p.value), '{}')
                 FROM jsonb_each(present -> section) p LEFT JOIN jsonb_each(wanted -> section) w ON w.key = p.key))
      FROM unnest(ARRAY['checks', 'indexes', 'constraints']) section
$$;

CREATE OR REPLACE FUNCTION pgherd.repair_table(table_name regclass) RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off
SET client_min_messages TO warning AS $$
DECLARE
    t       pgherd.distributed_table%ROWTYPE;
    segment int;
BEGIN
    PERFORM pgherd.lock_ddl();
    t := pgherd.table_or_refuse(table_name);
    EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', table_name);
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        EXECUTE format('DROP FOREIGN TABLE IF EXISTS %I.%I', 'pgherd_segment_' || segment,
                       pgherd.segment_relation((t.shape ->> 'schema')::name, (t.shape ->> 'name')::name));
        IF t.kind = 'reference' THEN
            PERFORM pgherd.make_copy(t, segment);
        ELSE
            PERFORM pgherd.repair_twin(t, segment);
            EXECUTE pgherd.segment_relation_ddl(t.shape, segment);
        END IF;
    END LOOP;
END $$;

-- One column too many beside one that is missing, of one type: it was renamed. Anything else of that kind is not for us
-- to decide, since a column's values are at stake. Returns the shape as it is then.
CREATE OR REPLACE FUNCTION pgherd.repair_renamed(t pgherd.distributed_table, segment int, present jsonb, wanted jsonb)
RETURNS jsonb LANGUAGE plpgsql SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    missing text[] := ARRAY(SELECT jsonb_object_keys(wanted -> 'columns') EXCEPT SELECT jsonb_object_keys(present -> 'columns'));
    extra   text[] := ARRAY(SELECT jsonb_object_keys(present -> 'columns') EXCEPT SELECT jsonb_object_keys(wanted -> 'columns'));
    twin    text := format('%I.%I', t.shape ->> 'schema', t.shape ->> 'name');
BEGIN
    IF missing = '{}' OR extra = '{}' THEN
        RETURN present;
    ELSIF cardinality(missing) > 1 OR cardinality(extra) > 1
       OR present #>> ARRAY['columns', extra[1], 'type'] <> wanted #>> ARRAY['columns', missing[1], 'type'] THEN
        PERFORM pgherd.refuse(format('table %s has other columns on segment %s', pgherd.label(t.relation), segment),
            format('Missing: %s. Too many: %s.', array_to_string(missing, ', '), array_to_string(extra, ', ')),
            'Rename, drop or add columns there by run_command_on_workers.', '55000');
    END IF;
    PERFORM pgherd.on_segment(segment, format('ALTER TABLE %s RENAME COLUMN %I TO %I', twin, extra[1], missing[1]));
    RETURN pgherd.named(pgherd.on_segment(segment, format('SELECT pgherd.shape_of(%L)', twin), 'value')::jsonb);
END $$;

CREATE OR REPLACE FUNCTION pgherd.repair_twin(t pgherd.distributed_table, segment int) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    twin    text := format('%I.%I', t.shape ->> 'schema', t.shape ->> 'name');
    gone    text := format('%I.%I', 'pgherd_gone_' || t.relation::oid, t.shape ->> 'name');
    wanted  jsonb := pgherd.named(t.shape);
    present jsonb;
    script  text;
BEGIN
    -- a DROP that the coordinator never committed
    PERFORM pgherd.on_segment(segment, format('DO %L', format(
        'BEGIN IF to_regclass(%L) IS NOT NULL THEN DROP TABLE IF EXISTS %s CASCADE; ALTER TABLE %s SET SCHEMA %I; END IF; END',
        gone, twin, gone, t.shape ->> 'schema')));
    present := pgherd.named(pgherd.on_segment(segment, format('SELECT pgherd.shape_of(to_regclass(%L))', twin), 'value')::jsonb);
    IF present IS NULL THEN
        IF EXISTS (SELECT FROM pgherd.shard s JOIN pgherd.shard_group g ON g.index = s.index
                    WHERE s.relation = t.relation AND g.colocation_id = t.colocation_id AND g.group_id = segment) THEN
            PERFORM pgherd.refuse(format('table %s and its shards are missing on segment %s', pgherd.label(t.relation),
                segment), NULL, 'Restore that segment from a backup.', '55000');
        END IF;
        PERFORM pgherd.on_segment(segment, pgherd.twin_ddl(t.shape, t.key_column));
        RETURN;
    END IF;
    present := pgherd.repair_renamed(t, segment, present, wanted);
    SELECT string_agg(CASE c.scope WHEN 'both' THEN format('ALTER TABLE %s ', twin) ELSE '' END || c.command, E';\n'
                      ORDER BY c.phase) INTO script
      FROM pgherd.shape_changes(present || pgherd.without_changed(present, wanted), wanted, '{}') c
     WHERE c.scope <> 'relation' AND c.command <> '';
    IF script IS NOT NULL THEN
        PERFORM pgherd.on_segment(segment, script);
    END IF;
END $$;
