-- DDL on distributed and reference tables: the difference between the shape that segments have and the shape that the
-- coordinator's catalogue shows now, sent to all segments in the same transaction.

-- The foreign table that shows a whole segment's part of a table.
CREATE OR REPLACE FUNCTION pgherd.segment_relation_ddl(shape jsonb, segment int) RETURNS text LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT format('CREATE FOREIGN TABLE %I.%I (%s) SERVER %I OPTIONS (schema_name %L, table_name %L)',
                  'pgherd_segment_' || segment, pgherd.segment_relation((shape ->> 'schema')::name, (shape ->> 'name')::name),
                  pgherd.columns_ddl(shape, false), 'segment_' || segment, shape ->> 'schema', shape ->> 'name')
$$;

-- An enum type that came, moved, was renamed or got or renamed labels.
CREATE OR REPLACE FUNCTION pgherd.enum_changes(was jsonb, now jsonb) RETURNS text LANGUAGE plpgsql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    script text[];
    label  record;
BEGIN
    IF was IS NULL THEN
        RETURN pgherd.enum_ddl(now);
    END IF;
    -- Several tables may use the type: only the first one's command finds it under its old name.
    IF was ->> 'schema' <> now ->> 'schema' OR was ->> 'name' <> now ->> 'name' THEN
        script := script || format('DO %L', format(
            'BEGIN IF to_regtype(%L) IS NOT NULL AND to_regtype(%L) IS NULL THEN CREATE SCHEMA IF NOT EXISTS %I; '
            'ALTER TYPE %I.%I SET SCHEMA %I; ALTER TYPE %I.%I RENAME TO %I; END IF; END',
            format('%I.%I', was ->> 'schema', was ->> 'name'), format('%I.%I', now ->> 'schema', now ->> 'name'),
            now ->> 'schema', was ->> 'schema', was ->> 'name', now ->> 'schema',
            now ->> 'schema', was ->> 'name', now ->> 'name'));
    END IF;
    FOR label IN SELECT o.value AS old, n.value AS new FROM jsonb_each_text(was -> 'label_oids') o
                   JOIN jsonb_each_text(now -> 'label_oids') n ON n.key = o.key AND n.value <> o.value LOOP
        script := script || format('DO %L', format('BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_enum WHERE '
            'enumtypid = %L::regtype AND enumlabel = %L) THEN ALTER TYPE %I.%I RENAME VALUE %L TO %L; END IF; END',
            format('%I.%I', now ->> 'schema', now ->> 'name'), label.old, now ->> 'schema', now ->> 'name',
            label.old, label.new));
    END LOOP;
    FOR label IN SELECT l AS new, lag(l) OVER (ORDER BY o) AS before, lead(l) OVER (ORDER BY o) AS after
                   FROM jsonb_array_elements_text(now -> 'labels') WITH ORDINALITY e(l, o) ORDER BY o LOOP
        CONTINUE WHEN EXISTS (SELECT FROM jsonb_each_text(now -> 'label_oids') n
                               WHERE n.value = label.new AND was -> 'label_oids' ? n.key);
        script := script || format('ALTER TYPE %I.%I ADD VALUE IF NOT EXISTS %L %s', now ->> 'schema', now ->> 'name',
            label.new, CASE WHEN label.before IS NOT NULL THEN format('AFTER %L', label.before)
                            ELSE format('BEFORE %L', label.after) END);
    END LOOP;
    RETURN array_to_string(script, E';\n');
END $$;

-- The difference as commands. scope 'segment': SQL for the segments; 'both': the tail of ALTER TABLE for the segments'
-- tables and for the per-segment foreign tables; 'relation': only the latter.
CREATE OR REPLACE FUNCTION pgherd.shape_changes(was jsonb, now jsonb, defaults jsonb)
RETURNS TABLE (phase int, scope text, command text) LANGUAGE sql STABLE SET search_path TO pg_catalog, pg_temp AS $$
    WITH target AS (SELECT format('%I.%I', now ->> 'schema', now ->> 'name') AS name),
    columns AS (SELECT key AS num, o, n FROM pgherd.paired(was -> 'columns', now -> 'columns')),
    checks AS (SELECT * FROM pgherd.paired(was -> 'checks', now -> 'checks')),
    indexes AS (SELECT * FROM pgherd.paired(was -> 'indexes', now -> 'indexes')),
    constraints AS (SELECT * FROM pgherd.paired(was -> 'constraints', now -> 'constraints'))
    -- the table itself: into its schema, then its name
    SELECT 1, 'segment', format('CREATE SCHEMA IF NOT EXISTS %I; ALTER TABLE %I.%I SET SCHEMA %I', now ->> 'schema',
                                was ->> 'schema', was ->> 'name', now ->> 'schema')
     WHERE was ->> 'schema' <> now ->> 'schema'
    UNION ALL
    SELECT 2, 'segment', format('ALTER TABLE %I.%I RENAME TO %I', now ->> 'schema', was ->> 'name', now ->> 'name')
     WHERE was ->> 'name' <> now ->> 'name'
    -- types
    UNION ALL
    SELECT 3, 'segment', pgherd.enum_changes(o.value, n.value)
      FROM jsonb_each(now -> 'types') n LEFT JOIN jsonb_each(was -> 'types') o ON o.key = n.key
     WHERE o.value IS DISTINCT FROM n.value
    -- what goes, goes first
    UNION ALL
    SELECT 4, 'segment', format('ALTER TABLE %s DROP CONSTRAINT %I', target.name, o ->> 'name') FROM checks, target
     WHERE n IS NULL
    UNION ALL
    SELECT 4, 'segment', CASE WHEN o ? 'index' THEN format('DROP INDEX %I.%I', now ->> 'schema', o ->> 'name')
                              ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', target.name, o ->> 'name') END
      FROM constraints, target WHERE n IS NULL
    UNION ALL
    SELECT 4, 'segment', format('DROP INDEX IF EXISTS %I.%I', now ->> 'schema', o ->> 'name') FROM indexes WHERE n IS NULL
    UNION ALL
    SELECT 5, 'both', format('DROP COLUMN IF EXISTS %I', o ->> 'name') FROM columns WHERE n IS NULL
    -- columns
    UNION ALL
    SELECT 6, 'both', format('RENAME COLUMN %I TO %I', o ->> 'name', n ->> 'name') FROM columns
     WHERE o ->> 'name' <> n ->> 'name'
    UNION ALL
    SELECT 7, 'both', format('ALTER COLUMN %I TYPE %s%s', n ->> 'name', n ->> 'type',
                             coalesce(' COLLATE ' || (n ->> 'collation'), ''))
      FROM columns WHERE o ->> 'type' <> n ->> 'type' OR o ->> 'collation' IS DISTINCT FROM n ->> 'collation' AND o IS NOT NULL
        AND n IS NOT NULL
    UNION ALL
    SELECT 8, 'both', format('ALTER COLUMN %I %s', n ->> 'name',
                             CASE WHEN n ? 'generated' THEN format('SET EXPRESSION AS (%s)', n ->> 'expression')
                                  ELSE 'DROP EXPRESSION' END)
      FROM columns WHERE n IS NOT NULL AND o ->> 'expression_oid' IS DISTINCT FROM n ->> 'expression_oid'
        AND o ? 'generated' AND o ->> 'type' = n ->> 'type'
    UNION ALL
    SELECT 9, 'segment', format('ALTER TABLE %s ADD COLUMN %s', target.name,
                                pgherd.column_ddl(n, true, defaults ->> num))
           || CASE WHEN defaults ? num THEN format('; ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', target.name,
                                                         n ->> 'name') ELSE '' END
      FROM columns, target WHERE o IS NULL
    UNION ALL
    SELECT 9, 'relation', 'ADD COLUMN ' || pgherd.column_ddl(n, false) FROM columns WHERE o IS NULL
    UNION ALL
    SELECT 10, 'segment', format('ALTER TABLE %s ALTER COLUMN %I %s NOT NULL', target.name, n ->> 'name',
                                 CASE WHEN (n ->> 'not_null')::boolean THEN 'SET' ELSE 'DROP' END)
      FROM columns, target WHERE o ->> 'not_null' <> n ->> 'not_null'
    -- what comes
    UNION ALL
    SELECT 11, 'segment', format('ALTER TABLE %s ADD CONSTRAINT %I %s', target.name, n ->> 'name', n ->> 'def')
      FROM checks, target WHERE o IS NULL
    UNION ALL
    SELECT 11, 'segment', format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', target.name, o ->> 'name', n ->> 'name')
      FROM checks, target WHERE o ->> 'name' <> n ->> 'name'
    UNION ALL
    SELECT 12, 'segment', format('ALTER TABLE %s VALIDATE CONSTRAINT %I', target.name, n ->> 'name')
      FROM checks, target WHERE o ->> 'def' LIKE '% NOT VALID' AND n ->> 'def' NOT LIKE '% NOT VALID'
    UNION ALL
    SELECT 13, 'segment', CASE WHEN n ? 'index' THEN format('CREATE UNIQUE INDEX %I ON %s %s', n ->> 'name', target.name,
                                                           n ->> 'def')
                               ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', target.name, n ->> 'name', n ->> 'def') END
      FROM constraints, target WHERE o IS NULL
    UNION ALL
    SELECT 13, 'segment', format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', target.name, o ->> 'name', n ->> 'name')
      FROM constraints, target WHERE o ->> 'name' <> n ->> 'name'
    UNION ALL
    SELECT 13, 'segment', format('CREATE %sINDEX %I ON %s %s', CASE WHEN (n ->> 'unique')::boolean THEN 'UNIQUE ' ELSE '' END,
                                 n ->> 'name', target.name, n ->> 'def')
      FROM indexes, target WHERE o IS NULL
    UNION ALL
    SELECT 13, 'segment', format('ALTER INDEX %I.%I RENAME TO %I', now ->> 'schema', o ->> 'name', n ->> 'name')
      FROM indexes WHERE o ->> 'name' <> n ->> 'name'
$$;

-- Changes that PostgreSQL lets pass on the coordinator and that must not be.
CREATE OR REPLACE FUNCTION pgherd.require_possible(t pgherd.distributed_table, now jsonb, defaults jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    label text := pgherd.label(t.relation);
    c     pg_class%ROWTYPE;
    bad   record;
BEGIN
    PERFORM pgherd.require_portable(t.relation);
    SELECT * INTO c FROM pg_class WHERE oid = t.relation;
    IF c.relowner <> '@owner@'::regrole THEN
        PERFORM pgherd.refuse(format('the owner of %s cannot change', label), NULL,
            'A distributed table belongs to the database''s owner role; use GRANT.');
    ELSIF c.relpersistence <> 'p' THEN
        PERFORM pgherd.refuse(format('%s cannot become unlogged', label));
    ELSIF t.kind = 'reference' AND EXISTS (SELECT FROM pg_inherits WHERE t.relation IN (inhparent, inhrelid)) THEN
        PERFORM pgherd.refuse(format('reference table %s cannot use inheritance', label));
    END IF;
    SELECT n.value ->> 'name' AS name INTO bad FROM jsonb_each(now -> 'columns') n
     WHERE n.value ? 'identity' AND NOT t.shape -> 'columns' ? n.key LIMIT 1;
    IF FOUND AND t.kind = 'distributed' THEN
        PERFORM pgherd.refuse(format('cannot add identity column %I to distributed table %s', bad.name, label), NULL,
            'Add a plain column, fill it by UPDATE, then SET NOT NULL and SET DEFAULT nextval(...).');
    END IF;
    IF t.kind = 'reference' THEN
        IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = t.relation AND contype = 'p') THEN
            PERFORM pgherd.refuse(format('reference table %s needs its primary key', label), NULL,
                'undistribute_table() first, or replace the key within one ALTER TABLE command.');
        ELSIF (SELECT count(*) FROM pg_trigger WHERE tgrelid = t.relation AND tgname LIKE 'pgherd\_%'
                AND tgenabled = 'A') <> (SELECT count(*) FROM pgherd.reference_triggers()) THEN
            PERFORM pgherd.refuse(format('the triggers pgherd_* of %s must stay as they are', label), NULL,
                'They write to the segments'' copies.');
        END IF;
        RETURN;
    END IF;
    IF c.relrowsecurity THEN
        PERFORM pgherd.refuse(format('distributed table %s cannot have row level security', label), 'PostgreSQL does not '
            'check policies for rows that go to foreign partitions.', 'Use views WITH CHECK OPTION.');
    ELSIF (SELECT count(*) FROM pg_inherits WHERE inhparent = t.relation)
       <> (SELECT count(*) FROM pgherd.shard s WHERE s.relation = t.relation) THEN
        PERFORM pgherd.refuse(format('the shards of %s cannot be attached or detached', label), NULL,
            'undistribute_table() makes it a plain table.');
    ELSIF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = t.relation AND tgname = 'pgherd_key' AND tgenabled = 'O') THEN
        PERFORM pgherd.refuse(format('trigger pgherd_key of %s must stay as it is', label), NULL,
            'It keeps rows from being changed to belong elsewhere.');
    ELSIF EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND t.relation IN (conrelid, confrelid)) THEN
        PERFORM pgherd.refuse(format('distributed table %s cannot have foreign keys', label), NULL,
            'Reference tables can have them among each other.');
    END IF;
END $$;

CREATE OR REPLACE FUNCTION pgherd.constraints_on_segments(shape jsonb) RETURNS jsonb LANGUAGE sql
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT pgherd.on_segment(min(s), format('SELECT pgherd.unique_things_of(%L)',
                                            format('%I.%I', shape ->> 'schema', shape ->> 'name')), 'value')::jsonb
      FROM pgherd.segment_ids() s
$$;

-- Whether a command gave a plain table's rows values that only it knows (USING, a volatile default, an identity), so
-- that the copies of a reference table cannot follow by the same command and are made anew.
CREATE OR REPLACE FUNCTION pgherd.rows_rewritten(was jsonb, now jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM pgherd.paired(was -> 'columns', now -> 'columns') c
         WHERE n IS NOT NULL AND (o IS NULL OR (o ->> 'type', o ->> 'collation', o ->> 'expression_oid')
                                  IS DISTINCT FROM (n ->> 'type', n ->> 'collation', n ->> 'expression_oid')))
$$;

CREATE OR REPLACE FUNCTION pgherd.refill_copy(relation regclass, shape jsonb, segment int) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pgherd.on_segment(segment, pgherd.twin_ddl(shape, NULL));
    EXECUTE pgherd.insert_copy_ddl(relation, shape, relation::text, segment);
END $$;

CREATE OR REPLACE FUNCTION pgherd.insert_copy_ddl(relation regclass, shape jsonb, source text, segment int) RETURNS text
LANGUAGE sql STABLE SET search_path TO pg_catalog, pg_temp AS $$
    SELECT format('INSERT INTO %I.%I (%s) SELECT %s FROM %s', 'pgherd_segment_' || segment,
                  pgherd.segment_relation((shape ->> 'schema')::name, (shape ->> 'name')::name), columns, columns, source)
      FROM (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) AS columns FROM pg_attribute
             WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped AND attgenerated = '') c
$$;

-- Brings the segments' tables in step with the coordinator's.
--
-- defaults: for each new column with a default the value that rows of now get, by column number, as text
CREATE OR REPLACE FUNCTION pgherd.follow(relation regclass, defaults jsonb DEFAULT '{}') RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off SET client_min_messages TO warning AS $$
DECLARE
    t       pgherd.distributed_table%ROWTYPE;
    now     jsonb := pgherd.shape_of(relation);
    change  record;
    segment int;
    script  text := '';
    rewrite boolean;
BEGIN
    PERFORM pgherd.require_owner_role();
    SELECT * INTO t FROM pgherd.distributed_table d WHERE d.relation = follow.relation FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF t.kind = 'distributed' THEN
        now := now || jsonb_build_object('constraints', t.shape -> 'constraints');
    END IF;
    PERFORM pgherd.require_possible(t, now, defaults);
    IF now = t.shape THEN
        RETURN;
    END IF;
    PERFORM pgherd.rename_segment_relations(t.shape, now);
    FOR change IN SELECT * FROM pgherd.shape_changes(t.shape, now, defaults) WHERE command <> '' ORDER BY phase LOOP
        IF change.scope <> 'relation' THEN
            script := script || CASE change.scope WHEN 'both' THEN format('ALTER TABLE %I.%I ', now ->> 'schema',
                                now ->> 'name') ELSE '' END || change.command || E';\n';
        END IF;
        IF change.scope <> 'segment' THEN
            FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
                EXECUTE format('ALTER FOREIGN TABLE %I.%I %s', 'pgherd_segment_' || segment,
                    pgherd.segment_relation((now ->> 'schema')::name, (now ->> 'name')::name), change.command);
            END LOOP;
        END IF;
    END LOOP;
    rewrite := t.kind = 'reference' AND pgherd.rows_rewritten(t.shape, now);
    IF rewrite THEN
        FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
            PERFORM pgherd.refill_copy(relation, now, segment);
        END LOOP;
    ELSIF script <> '' THEN
        PERFORM pgherd.on_all_segments(script);
        IF t.kind = 'distributed' THEN      -- what only segments have may have followed a column
            now := now || jsonb_build_object('constraints', pgherd.constraints_on_segments(now));
        END IF;
    END IF;
    UPDATE pgherd.distributed_table d
       SET shape = now,
           key_column = (SELECT attname FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid
                            AND a.attnum = p.partattrs[0] WHERE p.partrelid = follow.relation)
     WHERE d.relation = follow.relation;
END $$;

CREATE OR REPLACE FUNCTION pgherd.rename_segment_relations(was jsonb, now jsonb) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    segment int;
    was_name name := pgherd.segment_relation((was ->> 'schema')::name, (was ->> 'name')::name);
    now_name name := pgherd.segment_relation((now ->> 'schema')::name, (now ->> 'name')::name);
BEGIN
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        IF was_name <> now_name THEN
            EXECUTE format('ALTER FOREIGN TABLE %I.%I RENAME TO %I', 'pgherd_segment_' || segment, was_name, now_name);
        END IF;
        IF was ->> 'schema' <> now ->> 'schema' OR was ->> 'name' <> now ->> 'name' THEN
            EXECUTE format('ALTER FOREIGN TABLE %I.%I OPTIONS (SET schema_name %L, SET table_name %L)',
                           'pgherd_segment_' || segment, now_name, now ->> 'schema', now ->> 'name');
        END IF;
    END LOOP;
END $$;
