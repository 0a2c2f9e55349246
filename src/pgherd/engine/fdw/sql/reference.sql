-- Reference tables: the rows stay on the coordinator, every segment has a complete copy. Statement triggers write each
-- change through in the same transaction. Writers to one table take turns, so that the copies see the changes in the
-- order in which they commit; and a copy that did not hold exactly the rows that were changed here fails the statement.

CREATE OR REPLACE FUNCTION pgherd.reference_triggers() RETURNS TABLE (name name, definition text) LANGUAGE sql IMMUTABLE
SET search_path TO pg_catalog, pg_temp AS $$
    VALUES ('pgherd_lock'::name, 'BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s'),
           ('pgherd_insert', 'AFTER INSERT ON %s REFERENCING NEW TABLE AS pgherd_new'),
           ('pgherd_update', 'AFTER UPDATE ON %s REFERENCING OLD TABLE AS pgherd_old NEW TABLE AS pgherd_new'),
           ('pgherd_delete', 'AFTER DELETE ON %s REFERENCING OLD TABLE AS pgherd_old'),
           ('pgherd_truncate', 'AFTER TRUNCATE ON %s')
$$;

CREATE OR REPLACE FUNCTION pgherd.primary_key(relation regclass) RETURNS text[] LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT array_agg(quote_ident(a.attname) ORDER BY k.ord)
      FROM pg_constraint c, unnest(c.conkey) WITH ORDINALITY k(num, ord), pg_attribute a
     WHERE c.conrelid = relation AND c.contype = 'p' AND a.attrelid = relation AND a.attnum = k.num
$$;

-- Writers take turns by a row lock and not by a stronger lock on the table, which two of them could deadlock on. A
-- transaction whose snapshot is older than the table's last change of shape gets 40001. Of SERIALIZABLE ones there is one
-- at a time among all tables: what one of them reads may be another's table.
--
-- The changed rows' keys travel as JSON, so that a segment deletes by its primary key in one statement. (The transition
-- tables can be named in this function only, not in one that it calls.)
CREATE OR REPLACE FUNCTION pgherd.write_through() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path TO pg_catalog, pg_temp SET datestyle TO 'ISO, YMD' SET intervalstyle TO postgres
SET bytea_output TO hex SET extra_float_digits TO 3 AS $$
DECLARE
    t       pgherd.distributed_table%ROWTYPE;
    batch   record;
    segment int;
BEGIN
    IF TG_WHEN = 'BEFORE' THEN
        IF current_setting('transaction_isolation') = 'serializable' THEN
            UPDATE pgherd.serializable_turn SET taken = taken + 1;
        END IF;
        PERFORM 1 FROM pgherd.distributed_table d WHERE d.relation = TG_RELID FOR NO KEY UPDATE;
        RETURN NULL;
    END IF;
    SELECT * INTO t FROM pgherd.distributed_table d WHERE d.relation = TG_RELID;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pgherd.truncate_copies(t);
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        FOR batch IN EXECUTE format(
            'SELECT json_agg(row_to_json(q)) AS keys, count(*) AS n FROM (SELECT %s, row_number() OVER () / 5000 AS '
            'pgherd_batch FROM pgherd_old) q GROUP BY pgherd_batch', array_to_string(pgherd.primary_key(TG_RELID), ', '))
        LOOP
            PERFORM pgherd.delete_copies(t, batch.keys, batch.n);
        END LOOP;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
            EXECUTE pgherd.insert_copy_ddl(TG_RELID, t.shape, 'pgherd_new', segment);
        END LOOP;
    END IF;
    RETURN NULL;
END $$;

-- Whoever writes, the copies are written with the rights of the tables' owner, no more.
ALTER FUNCTION pgherd.write_through() OWNER TO @agent@;

CREATE OR REPLACE FUNCTION pgherd.delete_copies(t pgherd.distributed_table, keys json, n bigint) RETURNS void
LANGUAGE plpgsql SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    segment int;
    gone    bigint;
    pairs   text := (SELECT string_agg(format('r.%s = k.%s', x, x), ' AND ') FROM unnest(pgherd.primary_key(t.relation)) x);
BEGIN
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        gone := pgherd.on_segment(segment, format(
            'WITH d AS (DELETE FROM %1$I.%2$I r USING json_populate_recordset(NULL::%1$I.%2$I, %3$L) k WHERE %4$s RETURNING 1)'
            ' SELECT count(*) FROM d', t.shape ->> 'schema', t.shape ->> 'name', keys, pairs), 'value')::bigint;
        IF gone <> n THEN
            PERFORM pgherd.refuse(format('could not serialize access to reference table %s', pgherd.label(t.relation)),
                format('Segment %s saw %s of %s rows.', segment, gone, n), 'Run the transaction again.', '40001');
        END IF;
    END LOOP;
END $$;

-- A remote TRUNCATE is not bound to a snapshot as DELETE is, so what it removes is not compared.
CREATE OR REPLACE FUNCTION pgherd.truncate_copies(t pgherd.distributed_table) RETURNS void LANGUAGE sql
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT pgherd.on_all_segments(format('TRUNCATE %I.%I', t.shape ->> 'schema', t.shape ->> 'name'))
$$;

CREATE OR REPLACE FUNCTION pgherd.require_reference_key(relation regclass) RETURNS void LANGUAGE plpgsql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = relation AND contype = 'p') THEN
        PERFORM pgherd.refuse(format('table %s has no primary key', pgherd.label(relation)),
            'Changes are written to the segments'' copies by primary key.', 'ALTER TABLE ... ADD PRIMARY KEY (...) first.');
    ELSIF EXISTS (SELECT FROM pg_constraint c, unnest(c.conkey) k JOIN pg_attribute a ON a.attnum = k
                   WHERE c.conrelid = relation AND c.contype = 'p' AND a.attrelid = relation AND a.atttypid >= 16384
                     AND NOT EXISTS (SELECT FROM pg_type WHERE oid = a.atttypid AND typtype = 'e')) THEN
        PERFORM pgherd.refuse(format('the primary key of %s has a type that is not PostgreSQL''s own',
                                     pgherd.label(relation)));
    END IF;
END $$;

CREATE OR REPLACE FUNCTION pg_catalog.create_reference_table(table_name regclass) RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off
SET client_min_messages TO warning AS $$
DECLARE
    t       pgherd.distributed_table%ROWTYPE;
    segment int;
    trigger record;
BEGIN
    PERFORM pgherd.lock_ddl();
    PERFORM pgherd.require_plain_table(table_name);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_name);
    PERFORM pgherd.require_reference_key(table_name);
    PERFORM pgherd.require_portable(table_name);
    INSERT INTO pgherd.distributed_table (relation, kind, shape)
    VALUES (table_name, 'reference', pgherd.shape_of(table_name)) RETURNING * INTO t;
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        PERFORM pgherd.make_copy(t, segment);
    END LOOP;
    FOR trigger IN SELECT * FROM pgherd.reference_triggers() LOOP
        EXECUTE format('CREATE TRIGGER %I %s FOR EACH STATEMENT EXECUTE FUNCTION pgherd.write_through()', trigger.name,
                       format(trigger.definition, table_name));
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', table_name, trigger.name);
    END LOOP;
END $$;

-- A segment's complete copy, with the per-segment relation that it is reached by.
CREATE OR REPLACE FUNCTION pgherd.make_copy(t pgherd.distributed_table, segment int) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE pgherd.segment_relation_ddl(t.shape, segment);
    PERFORM pgherd.refill_copy(t.relation, t.shape, segment);
END $$;
