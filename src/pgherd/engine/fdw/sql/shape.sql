-- The shape of a table: its definition as data. A DDL command is propagated by comparing the shape that the catalogue
-- shows now with the shape that segments have (pgherd.distributed_table.shape) and sending the difference. Things are
-- recognised by what never changes: columns by number, constraints, indexes, types by oid.
--
--   {"schema", "schema_oid", "name",
--    "columns":     {attnum: {name, type, collation, not_null, generated, expression, expression_oid}},
--    "checks":      {oid: {name, def}},
--    "indexes":     {oid: {name, unique, def}}            def: all that follows the table's name
--    "constraints": {oid or name: {name, def, index}}     primary keys and the like; index: def is an index's
--    "types":       {oid: {schema, name, labels}}}        enum types of the columns
--
-- A reference table's unique constraints are found by oid in the coordinator's catalogue. A distributed table's exist
-- on segments only, so they are known by name and kept in the stored shape alone.

CREATE OR REPLACE FUNCTION pgherd.columns_of(relation regclass) RETURNS jsonb LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(a.attnum, jsonb_strip_nulls(jsonb_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'collation', CASE WHEN a.attcollation NOT IN (0, t.typcollation)
                          THEN (SELECT format('%I.%I', n.nspname, c.collname) FROM pg_collation c
                                  JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation) END,
        'not_null', a.attnotnull,
        'identity', nullif(a.attidentity::text, ''),
        'generated', nullif(a.attgenerated::text, ''),
        'expression', CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END,
        'expression_oid', CASE WHEN a.attgenerated <> '' THEN d.oid END))), '{}')
      FROM pg_attribute a
      JOIN pg_type t ON t.oid = a.atttypid
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- What stands behind the table's name in CREATE INDEX; the same whatever index and table are called.
CREATE OR REPLACE FUNCTION pgherd.index_definition(index regclass) RETURNS text LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT substr(pg_get_indexdef(index), 1 + length(format('CREATE %sINDEX %I ON %s%I.%I ',
                  CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, x.relname,
                  CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname)))
      FROM pg_index i
      JOIN pg_class x ON x.oid = i.indexrelid
      JOIN pg_class c ON c.oid = i.indrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE i.indexrelid = index
$$;

CREATE OR REPLACE FUNCTION pgherd.enums_of(relation regclass) RETURNS jsonb LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(t.oid, jsonb_build_object(
        'schema', n.nspname, 'name', t.typname,
        'labels', (SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
        'label_oids', (SELECT jsonb_object_agg(e.oid, e.enumlabel) FROM pg_enum e WHERE e.enumtypid = t.oid))), '{}')
      FROM pg_type t
      JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE t.typtype = 'e' AND t.oid IN (
           SELECT CASE WHEN b.typelem <> 0 AND b.typlen = -1 THEN b.typelem ELSE b.oid END
             FROM pg_attribute a JOIN pg_type b ON b.oid = a.atttypid
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped)
$$;

-- Constraints that are backed by an index.
CREATE OR REPLACE FUNCTION pgherd.index_constraints_of(relation regclass) RETURNS jsonb LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(oid, jsonb_build_object('name', conname, 'def', pg_get_constraintdef(oid))), '{}')
      FROM pg_constraint WHERE conrelid = relation AND contype IN ('p', 'u', 'x')
$$;

CREATE OR REPLACE FUNCTION pgherd.shape_of(relation regclass) RETURNS jsonb LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'schema', n.nspname, 'schema_oid', n.oid, 'name', c.relname,
        'columns', pgherd.columns_of(relation),
        'checks', (SELECT coalesce(jsonb_object_agg(oid, jsonb_build_object(
                          'name', conname, 'def', pg_get_constraintdef(oid))), '{}')
                     FROM pg_constraint WHERE conrelid = relation AND contype = 'c'),
        'indexes', (SELECT coalesce(jsonb_object_agg(i.indexrelid, jsonb_build_object(
                          'name', x.relname, 'unique', i.indisunique,
                          'def', pgherd.index_definition(i.indexrelid))), '{}')
                      FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                     WHERE i.indrelid = relation
                       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid
                                                                     AND k.conrelid = relation)),
        'constraints', pgherd.index_constraints_of(relation),
        'types', pgherd.enums_of(relation))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = relation
$$;

-- Primary key, unique and exclusion constraints and unique indexes by name, as a distributed table's shape keeps them.
CREATE OR REPLACE FUNCTION pgherd.unique_things_of(relation regclass) RETURNS jsonb LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(x.relname, CASE WHEN k.oid IS NULL
               THEN jsonb_build_object('name', x.relname, 'def', pgherd.index_definition(i.indexrelid), 'index', true)
               ELSE jsonb_build_object('name', x.relname, 'def', pg_get_constraintdef(k.oid)) END), '{}')
      FROM pg_index i
      JOIN pg_class x ON x.oid = i.indexrelid
      LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x') AND k.conrelid = relation
     WHERE i.indrelid = relation AND (i.indisunique OR i.indisexclusion) AND i.indisvalid
$$;

-- One column as CREATE TABLE and ADD COLUMN want it.
CREATE OR REPLACE FUNCTION pgherd.column_ddl(col jsonb, for_segment boolean, default_value text DEFAULT NULL)
RETURNS text LANGUAGE sql IMMUTABLE SET search_path TO pg_catalog, pg_temp AS $$
    SELECT format('%I %s', col ->> 'name', col ->> 'type')
        || coalesce(' COLLATE ' || (col ->> 'collation'), '')
        || CASE WHEN col ? 'generated' THEN format(' GENERATED ALWAYS AS (%s) %s', col ->> 'expression',
                     CASE col ->> 'generated' WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)
                WHEN default_value IS NOT NULL THEN format(' DEFAULT %L::%s', default_value, col ->> 'type')
                ELSE '' END
        || CASE WHEN for_segment AND (col ->> 'not_null')::boolean THEN ' NOT NULL' ELSE '' END
$$;

CREATE OR REPLACE FUNCTION pgherd.columns_ddl(shape jsonb, for_segment boolean) RETURNS text LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(string_agg(pgherd.column_ddl(c.value, for_segment), ', ' ORDER BY c.key::int), '')
      FROM jsonb_each(shape -> 'columns') c
$$;

-- A type of this name with other labels is left over from a table that is gone, or going: it goes, or makes room.
CREATE OR REPLACE FUNCTION pgherd.enum_ddl(type jsonb) RETURNS text LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT format('CREATE SCHEMA IF NOT EXISTS %I; DO %L;', type ->> 'schema', format(
               'DECLARE there regtype := pg_catalog.to_regtype(%L); BEGIN '
               'IF there IS NOT NULL AND %L::text[] = (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) '
               'FROM pg_catalog.pg_enum e WHERE e.enumtypid = there) THEN RETURN; END IF; '
               'BEGIN DROP TYPE IF EXISTS %s; EXCEPTION WHEN dependent_objects_still_exist THEN '
               'EXECUTE pg_catalog.format(''ALTER TYPE %%s RENAME TO pgherd_old_%%s'', there, there::oid); END; '
               'CREATE TYPE %s AS ENUM (%s); END',
               t.name, t.labels, t.name, t.name, (SELECT string_agg(quote_literal(l), ', ' ORDER BY o)
                                                     FROM unnest(t.labels) WITH ORDINALITY u(l, o))))
      FROM (SELECT format('%I.%I', type ->> 'schema', type ->> 'name'),
                   ARRAY(SELECT jsonb_array_elements_text(type -> 'labels'))) t(name, labels)
$$;

-- The script that makes a table's twin (or reference copy) on a segment. A table of that name that the coordinator
-- does not know is what a crash between two commits left there: it goes first.
CREATE OR REPLACE FUNCTION pgherd.twin_ddl(shape jsonb, key_column name) RETURNS text LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT concat_ws(E';\n',
        format('CREATE SCHEMA IF NOT EXISTS %I', shape ->> 'schema'),
        (SELECT string_agg(rtrim(pgherd.enum_ddl(t.value), ';'), E';\n') FROM jsonb_each(shape -> 'types') t),
        format('DROP TABLE IF EXISTS %s CASCADE', q.twin),
        format('CREATE TABLE %s (%s)%s', q.twin, pgherd.columns_ddl(shape, true),
               CASE WHEN key_column IS NOT NULL THEN format(' PARTITION BY HASH (%I)', key_column) ELSE '' END),
        (SELECT string_agg(format('ALTER TABLE %s ADD CONSTRAINT %I %s', q.twin, c.value ->> 'name', c.value ->> 'def'),
                           E';\n' ORDER BY c.key::oid) FROM jsonb_each(shape -> 'checks') c),
        (SELECT string_agg(format('ALTER TABLE %s ADD CONSTRAINT %I %s', q.twin, c.value ->> 'name', c.value ->> 'def'), E';\n')
           FROM jsonb_each(shape -> 'constraints') c WHERE NOT c.value ? 'index'),
        (SELECT string_agg(format('CREATE UNIQUE INDEX %I ON %s %s', c.value ->> 'name', q.twin, c.value ->> 'def'), E';\n')
           FROM jsonb_each(shape -> 'constraints') c WHERE c.value ? 'index'),
        (SELECT string_agg(format('CREATE %sINDEX %I ON %s %s', CASE WHEN (i.value ->> 'unique')::boolean THEN 'UNIQUE '
                                  ELSE '' END, i.value ->> 'name', q.twin, i.value ->> 'def'), E';\n' ORDER BY i.key::oid)
           FROM jsonb_each(shape -> 'indexes') i))
      FROM (SELECT format('%I.%I', shape ->> 'schema', shape ->> 'name')) q(twin)
$$;

-- Entries of two shapes that are the same thing: under one key, or (recreated by PostgreSQL, as when a column's type
-- changes) equal in all but the key.
CREATE OR REPLACE FUNCTION pgherd.paired(was jsonb, now jsonb) RETURNS TABLE (key text, o jsonb, n jsonb) LANGUAGE sql
IMMUTABLE SET search_path TO pg_catalog, pg_temp AS $$
    SELECT o.key, o.value, n.value FROM jsonb_each(was) o
      LEFT JOIN jsonb_each(now) n
             ON n.key = o.key OR (n.value = o.value AND NOT now ? o.key AND NOT was ? n.key)
    UNION ALL
    SELECT n.key, NULL, n.value FROM jsonb_each(now) n
     WHERE NOT was ? n.key
       AND NOT EXISTS (SELECT FROM jsonb_each(was) o WHERE n.value = o.value AND NOT now ? o.key)
$$;
