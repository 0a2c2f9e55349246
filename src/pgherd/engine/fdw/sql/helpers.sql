-- What core PostgreSQL cannot do through foreign partitions, as functions: unique constraints after the fact,
-- statistics on segments, aggregates that are computed where the rows are.

-- Adds PRIMARY KEY (...), UNIQUE (...) or EXCLUDE ... to a distributed table: on segments, each for its own rows, which
-- is the whole truth because the distribution column must be part of it.
CREATE OR REPLACE FUNCTION pgherd.add_constraint(table_name regclass, definition text, constraint_name name DEFAULT NULL)
RETURNS name LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off AS $$
DECLARE
    t     pgherd.distributed_table%ROWTYPE;
    made  jsonb;
    col   name;
BEGIN
    PERFORM pgherd.lock_ddl();
    t := pgherd.table_or_refuse(table_name);
    IF t.kind = 'reference' OR definition !~* '^\s*(primary\s+key|unique|exclude)\M' THEN
        PERFORM pgherd.refuse('pgherd.add_constraint adds PRIMARY KEY, UNIQUE and EXCLUDE to distributed tables', NULL,
                              'For everything else there is ALTER TABLE ... ADD CONSTRAINT.', '22023');
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_name);
    constraint_name := coalesce(constraint_name, pgherd.free_constraint_name(t,
        CASE WHEN definition ~* '^\s*primary' THEN '_pkey' WHEN definition ~* '^\s*unique' THEN '_key' ELSE '_excl' END));
    PERFORM pgherd.on_all_segments(format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', t.shape ->> 'schema', t.shape ->> 'name',
                                          constraint_name, definition));
    made := pgherd.on_segment((SELECT min(x) FROM pgherd.segment_ids() x), format(
        'SELECT json_build_object(''def'', pg_get_constraintdef(k.oid), ''deferred'', k.condeferred, ''columns'', '
        '(SELECT json_agg(a.attname) FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey))) '
        'FROM pg_constraint k WHERE k.conrelid = %L::regclass AND k.conname = %L',
        format('%I.%I', t.shape ->> 'schema', t.shape ->> 'name'), constraint_name), 'value');
    IF (made ->> 'deferred')::boolean THEN
        PERFORM pgherd.refuse('a constraint of a distributed table cannot be INITIALLY DEFERRED',
            'It would fail when some segments have committed.');
    END IF;
    UPDATE pgherd.distributed_table d
       SET shape = jsonb_set(d.shape, ARRAY['constraints', constraint_name::text],
                             jsonb_build_object('name', constraint_name, 'def', made ->> 'def'))
     WHERE d.relation = table_name;
    IF made ->> 'def' LIKE 'PRIMARY KEY%' THEN
        FOR col IN SELECT jsonb_array_elements_text(made -> 'columns') LOOP
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', table_name, col);
        END LOOP;
    END IF;
    PERFORM pgherd.follow(table_name);
    RETURN constraint_name;
END $$;

CREATE OR REPLACE FUNCTION pgherd.free_constraint_name(t pgherd.distributed_table, tail text) RETURNS name LANGUAGE plpgsql
STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    candidate name := pgherd.name_with_suffix(t.shape ->> 'name', tail);
    n         int := 0;
BEGIN
    WHILE t.shape -> 'constraints' ? candidate::text LOOP
        n := n + 1;
        candidate := pgherd.name_with_suffix(t.shape ->> 'name', tail || n);
    END LOOP;
    RETURN candidate;
END $$;

CREATE OR REPLACE FUNCTION pgherd.drop_constraint(table_name regclass, constraint_name name) RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off AS $$
DECLARE
    t pgherd.distributed_table%ROWTYPE;
BEGIN
    PERFORM pgherd.lock_ddl();
    t := pgherd.table_or_refuse(table_name);
    IF t.kind = 'reference' OR NOT t.shape -> 'constraints' ? constraint_name::text THEN
        PERFORM pgherd.refuse(format('constraint "%s" of distributed table %s does not exist', constraint_name,
            pgherd.label(table_name)), NULL, 'SELECT * FROM pgherd.constraints.', '42704');
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_name);
    PERFORM pgherd.on_all_segments(CASE WHEN t.shape #> ARRAY['constraints', constraint_name::text] ? 'index'
        THEN format('DROP INDEX %I.%I', t.shape ->> 'schema', constraint_name)
        ELSE format('ALTER TABLE %I.%I DROP CONSTRAINT %I', t.shape ->> 'schema', t.shape ->> 'name', constraint_name) END);
    UPDATE pgherd.distributed_table d SET shape = d.shape #- ARRAY['constraints', constraint_name::text]
     WHERE d.relation = table_name;
END $$;

-- The constraints and unique indexes that only segments have, since PostgreSQL allows none over foreign partitions.
CREATE OR REPLACE VIEW pgherd.constraints AS
SELECT d.relation AS table_name, c.key::name AS constraint_name,
       CASE WHEN c.value ? 'index' THEN 'UNIQUE INDEX ' ELSE '' END || (c.value ->> 'def') AS definition
  FROM pgherd.distributed_table d, jsonb_each(d.shape -> 'constraints') c
 WHERE d.kind = 'distributed';
GRANT SELECT ON pgherd.constraints TO PUBLIC;

-- ANALYZE on the segments (for the plans made there) and then on the coordinator, which takes a sample from each shard.
CREATE OR REPLACE FUNCTION pgherd.analyze(table_name regclass) RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    t       pgherd.distributed_table%ROWTYPE := pgherd.table_or_refuse(table_name);
    segment int;
BEGIN
    PERFORM pgherd.on_all_segments(format('ANALYZE %I.%I', t.shape ->> 'schema', t.shape ->> 'name'));
    EXECUTE format('ANALYZE %s', table_name);
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        EXECUTE format('ANALYZE %I.%I', 'pgherd_segment_' || segment,
                       pgherd.segment_relation((t.shape ->> 'schema')::name, (t.shape ->> 'name')::name));
    END LOOP;
END $$;

-- When a shard left its segment last. Its old copy is hidden from queries some milliseconds later.
CREATE OR REPLACE FUNCTION pgherd.last_departure() RETURNS timestamptz LANGUAGE sql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp AS $$ SELECT max(created_at) FROM pgherd.cleanup WHERE kind = 'shard' $$;

-- No shard changes its place before the end of the transaction, and each is seen on exactly one segment: what queries
-- of the per-segment relations must begin with. The cutover of a move locks every table of its colocation, so one lock
-- for each colocation is enough. A transaction that has looked at a segment while a shard was leaving it would go on
-- seeing that shard, so it waits before it looks, and gets 40001 if that was not long enough.
CREATE OR REPLACE FUNCTION pgherd.hold_placement() RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    relation regclass;
    segment  int;
    question text;
BEGIN
    FOR relation IN SELECT min(d.relation::oid) FROM pgherd.distributed_table d WHERE d.kind = 'distributed'
                     GROUP BY d.colocation_id ORDER BY 1 LOOP
        EXECUTE format('LOCK TABLE ONLY %s IN ROW SHARE MODE', relation);
    END LOOP;
    PERFORM pg_sleep(extract(epoch FROM pgherd.last_departure() + interval '0.15 seconds' - clock_timestamp()));
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        SELECT format('SELECT pgherd.shows_shards(%L, %L)',
                      (SELECT coalesce(array_agg(format('%I.%I', d.shape ->> 'schema', d.shape ->> 'name')), '{}')
                         FROM pgherd.distributed_table d WHERE d.kind = 'distributed'),
                      (SELECT coalesce(array_agg(s.name::text), '{}') FROM pgherd.shard s
                         JOIN pgherd.distributed_table d ON d.relation = s.relation
                         JOIN pgherd.shard_group g ON g.colocation_id = d.colocation_id AND g.index = s.index
                        WHERE g.group_id = segment)) INTO question;
        IF pgherd.on_segment(segment, question, 'value') <> 'true' THEN
            PERFORM pgherd.refuse(format('a shard is just leaving segment %s', segment), NULL,
                                  'Run the transaction again.', '40001');
        END IF;
    END LOOP;
END $$;

-- Runs a query on every segment at once, each over its own shards and its copies of the reference tables, and returns
-- all rows, as JSON. Joins with reference tables and of colocated tables by key come out right; nothing else does.
CREATE OR REPLACE FUNCTION pgherd.on_segments(query text) RETURNS TABLE (segment int, "row" jsonb) LANGUAGE plpgsql AS $$
DECLARE
    number pg_catalog.int4;
    parts  text[];
BEGIN
    PERFORM pgherd.hold_placement();
    FOR number IN SELECT * FROM pgherd.segment_ids() LOOP
        PERFORM pgherd.on_segment(number, pg_catalog.format(
            'SELECT pg_catalog.set_config(''pgherd.query'', %L, true), pg_catalog.set_config(''pgherd.query_path'', %L, true)',
            query, pg_catalog.current_setting('search_path')));
        parts := parts || pg_catalog.format('SELECT %s, r."row" FROM pgherd.%I r', number, 'query_' || number);
    END LOOP;
    RETURN QUERY EXECUTE coalesce(pg_catalog.array_to_string(parts, ' UNION ALL '), 'SELECT 0, NULL::jsonb WHERE false');
END $$;

-- Aggregates computed on the segments and merged here:
--
--   SELECT * FROM pgherd.aggregate('flights JOIN planes USING (tailnum)', ARRAY['count(*)', 'avg(distance)'],
--                                  ARRAY['manufacturer'], 'month = 1') AS a(manufacturer text, n bigint, mean numeric);
--
-- source: what stands after FROM; may join distributed tables with reference tables and, by key, with colocated ones
-- aggregates: count, sum, min, max, avg, bool_and, bool_or, every; FILTER is allowed, DISTINCT is not
-- group_by: expressions, the first columns of the result; filter: what stands after WHERE
CREATE OR REPLACE FUNCTION pgherd.aggregate(source text, aggregates text[], group_by text[] DEFAULT '{}',
                                            filter text DEFAULT NULL) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    item    text;
    m       text[];
    types   text[];
    partial text[];     -- select list on the segments
    fields  text[];     -- p1 type, p2 type ... of the partial results
    final   text[];     -- select list here
    keys    text[];
    n       pg_catalog.int4 := 0;
BEGIN
    EXECUTE pg_catalog.format('SELECT ARRAY[%s]::pg_catalog.text[] FROM %s WHERE false', pg_catalog.array_to_string(
        (SELECT pg_catalog.array_agg(pg_catalog.format('pg_catalog.pg_typeof((pg_catalog.array_agg(%s))[1])', g)) FROM
         pg_catalog.unnest(group_by) g) || (SELECT pg_catalog.array_agg(pg_catalog.format('pg_catalog.pg_typeof(%s)', a))
         FROM pg_catalog.unnest(aggregates) a), ', '), source) INTO types;
    FOREACH item IN ARRAY group_by LOOP
        n := n + 1;
        partial := partial || pg_catalog.format('%s AS p%s', item, n);
        fields := fields || pg_catalog.format('p%s %s', n, types[n]);
        final := final || pg_catalog.format('p%s', n);
        keys := keys || pg_catalog.format('p%s', n);
    END LOOP;
    FOREACH item IN ARRAY aggregates LOOP
        n := n + 1;
        m := pg_catalog.regexp_match(item, '^\s*(count|sum|min|max|avg|bool_and|bool_or|every)\s*(\(.*\))\s*$', 'i');
        IF m IS NULL OR m[2] ~* '^\(\s*distinct\M' THEN
            PERFORM pgherd.refuse(pg_catalog.format('%s cannot be merged from several segments', item), NULL,
                'count, sum, min, max, avg, bool_and, bool_or and every can, without DISTINCT. Write a plain query instead.');
        END IF;
        CASE pg_catalog.lower(m[1])
        WHEN 'avg' THEN
            partial := partial || pg_catalog.format('sum%s AS p%s, count%s AS c%s', m[2], n, m[2], n);
            fields := fields || pg_catalog.format('p%s %s, c%s pg_catalog.int8', n, types[n], n);
            final := final || pg_catalog.format('(sum(p%s) / nullif(sum(c%s), 0)::%s)::%s', n, n,
                CASE types[n] WHEN 'numeric' THEN 'pg_catalog.numeric' ELSE 'pg_catalog.float8' END, types[n]);
        WHEN 'count' THEN
            partial := partial || pg_catalog.format('%s AS p%s', item, n);
            fields := fields || pg_catalog.format('p%s pg_catalog.int8', n);
            final := final || pg_catalog.format('coalesce(sum(p%s), 0)::pg_catalog.int8', n);
        ELSE
            partial := partial || pg_catalog.format('%s AS p%s', item, n);
            fields := fields || pg_catalog.format('p%s %s', n, types[n]);
            final := final || pg_catalog.format('%s(p%s)::%s', m[1], n, types[n]);
        END CASE;
    END LOOP;
    RETURN QUERY EXECUTE pg_catalog.format(
        'SELECT %s FROM pgherd.on_segments(%L) s, pg_catalog.jsonb_to_record(s."row") AS p(%s) %s',
        pg_catalog.array_to_string(final, ', '),
        pg_catalog.format('SELECT %s FROM %s%s%s', pg_catalog.array_to_string(partial, ', '), source,
                          coalesce(' WHERE ' || filter, ''),
                          CASE WHEN keys IS NULL THEN ''
                               ELSE ' GROUP BY ' || pg_catalog.array_to_string(group_by, ', ') END),
        pg_catalog.array_to_string(fields, ', '),
        coalesce('GROUP BY ' || pg_catalog.array_to_string(keys, ', '), ''));
END $$;
