-- create_distributed_table and its inverse. A plain table is replaced by a hash-partitioned one of the same name whose
-- partitions are foreign tables; its rows move through those. One transaction from end to end, on all servers.
--
-- Everything here acts as the owner role (SET role, which a caller must be allowed to do): the table's own code
-- (defaults, generated columns, checks) never runs with more rights than its owner has.

-- Sequences, rights and comments go over from the table that is replaced to the one that replaces it.
CREATE OR REPLACE FUNCTION pgherd.hand_over(old regclass, new regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    s     record;
    value record;
BEGIN
    FOR s IN SELECT d.objid::regclass AS sequence, a.attname, d.deptype FROM pg_depend d
               JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
               JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
              WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                AND d.refobjid = old AND d.deptype IN ('a', 'i')
    LOOP
        IF s.deptype = 'a' THEN
            EXECUTE format('ALTER SEQUENCE %s OWNED BY %s.%I', s.sequence, new, s.attname);
        ELSE
            EXECUTE format('SELECT last_value, is_called FROM %s', s.sequence) INTO value;
            PERFORM setval(pg_get_serial_sequence(new::text, s.attname)::regclass, value.last_value, value.is_called);
        END IF;
    END LOOP;
    PERFORM pgherd.copy_rights(old, new);
    EXECUTE format('COMMENT ON TABLE %s IS %L', new, obj_description(old, 'pg_class'));
END $$;

CREATE OR REPLACE FUNCTION pgherd.copy_rights(old regclass, new regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    g record;
BEGIN
    FOR g IN SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = new LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', new, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END);
    END LOOP;
    FOR g IN SELECT a.*, '' AS columns FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
              WHERE c.oid = old
             UNION ALL
             SELECT a.*, format('(%I)', t.attname) FROM pg_attribute t, aclexplode(t.attacl) a
              WHERE t.attrelid = old AND t.attnum > 0 AND NOT t.attisdropped
    LOOP
        EXECUTE format('GRANT %s %s ON %s TO %s%s', g.privilege_type, g.columns, new,
                       CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END,
                       CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
END $$;

-- Puts the table aside under a name that nobody else has; its identity sequences too, so that their names are free.
CREATE OR REPLACE FUNCTION pgherd.set_aside(relation regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    sequence regclass;
BEGIN
    FOR sequence IN SELECT d.objid::regclass FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
                     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                       AND d.refobjid = relation AND d.deptype = 'i'
    LOOP
        EXECUTE format('ALTER SEQUENCE %s RENAME TO %I', sequence, 'pgherd_old_' || sequence::oid);
    END LOOP;
    EXECUTE format('ALTER TABLE %s RENAME TO %I', relation, 'pgherd_old_' || relation::oid);
END $$;

CREATE OR REPLACE FUNCTION pgherd.copy_rows(old regclass, new regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    columns text;
BEGIN
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns
      FROM pg_attribute WHERE attrelid = old AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
    EXECUTE format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s', new, columns, columns, old);
END $$;

-- The colocation that a new table joins; makes it, and its shard groups' places, if there is none.
CREATE OR REPLACE FUNCTION pgherd.colocation_for(key_type regtype, wish text, shards int) RETURNS int LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    id    int;
    other record;
    count int;
BEGIN
    SELECT count(*) INTO count FROM pgherd.segment_ids();
    IF count = 0 THEN
        PERFORM pgherd.refuse('there are no segments yet', NULL, 'Wait until the cluster is running.', '55000');
    END IF;
    IF wish NOT IN ('default', 'none') THEN
        SELECT d.colocation_id, c.key_type, d.kind, c.shard_count INTO other
          FROM pgherd.distributed_table d LEFT JOIN pgherd.colocation c ON c.id = d.colocation_id
         WHERE d.relation = wish::oid;
        IF NOT FOUND OR other.kind <> 'distributed' THEN
            PERFORM pgherd.refuse(format('%s is not a distributed table', wish::oid::regclass), NULL,
                'colocate_with names a distributed table, or is ''default'' or ''none''.', '42809');
        ELSIF other.key_type <> colocation_for.key_type THEN
            PERFORM pgherd.refuse(format('cannot colocate with %s', wish::oid::regclass), format('Its distribution column has type %s, '
                'this one has type %s.', other.key_type, colocation_for.key_type), NULL, '42804');
        ELSIF shards IS NOT NULL AND shards <> other.shard_count THEN
            PERFORM pgherd.refuse(format('%s has %s shards', wish::oid::regclass, other.shard_count), NULL,
                'Leave shard_count out: colocated tables have the same.', '22023');
        END IF;
        RETURN other.colocation_id;
    END IF;
    shards := coalesce(shards, (SELECT value::int FROM pgherd.settings WHERE name = 'shard_count'));
    IF shards NOT BETWEEN 1 AND 4096 THEN
        PERFORM pgherd.refuse(format('shard_count must be between 1 and 4096, got %s', shards), NULL, NULL, '22023');
    END IF;
    IF wish = 'default' THEN
        -- KEY SHARE: it may not be forgotten (pgherd.forget_table) before our table is in it. The advisory lock: one
        -- maker at a time, or two first tables would not share a colocation.
        FOR attempt IN 1..2 LOOP
            SELECT c.id INTO id FROM pgherd.colocation c
             WHERE c.is_default AND c.key_type = colocation_for.key_type AND c.shard_count = shards FOR KEY SHARE;
            IF FOUND THEN
                RETURN id;
            END IF;
            PERFORM pg_advisory_xact_lock(hashtext('pgherd.colocation'));
        END LOOP;
    END IF;
    INSERT INTO pgherd.colocation (shard_count, key_type, is_default) VALUES (shards, key_type, wish = 'default')
    RETURNING pgherd.colocation.id INTO id;
    INSERT INTO pgherd.shard_group (colocation_id, index, group_id)
    SELECT id, i, s.ids[1 + i % count]
      FROM generate_series(0, shards - 1) i, (SELECT array_agg(x) AS ids FROM pgherd.segment_ids() x) s;
    RETURN id;
END $$;

-- The twins with their leaves on all segments.
CREATE OR REPLACE FUNCTION pgherd.make_twins(relation regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    t       record;
    segment int;
    leaves  text;
BEGIN
    SELECT d.*, c.shard_count INTO t FROM pgherd.distributed_table d JOIN pgherd.colocation c ON c.id = d.colocation_id
     WHERE d.relation = make_twins.relation;
    FOR segment IN SELECT * FROM pgherd.segment_ids() LOOP
        PERFORM pgherd.on_segment(segment, pgherd.twin_ddl(t.shape, t.key_column));
        SELECT string_agg(format('pgherd.create_shard(%L, %L, %s, %s, true)',
                                 format('%I.%I', t.shape ->> 'schema', t.shape ->> 'name'), s.name, t.shard_count, s.index), ', ')
          INTO leaves
          FROM pgherd.shard s JOIN pgherd.shard_group g ON g.colocation_id = t.colocation_id AND g.index = s.index
         WHERE s.relation = t.relation AND g.group_id = segment;
        IF leaves IS NOT NULL THEN
            PERFORM pgherd.on_segment(segment, 'SELECT ' || leaves);
        END IF;
        EXECUTE pgherd.segment_relation_ddl(t.shape, segment);
    END LOOP;
END $$;

-- The foreign partitions on the coordinator.
CREATE OR REPLACE FUNCTION pgherd.make_partitions(parent regclass) RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    s record;
BEGIN
    FOR s IN SELECT p.name, p.index, c.shard_count, f.server_name
               FROM pgherd.shard p
               JOIN pgherd.distributed_table d ON d.relation = p.relation
               JOIN pgherd.colocation c ON c.id = d.colocation_id
               JOIN pgherd.shard_group g ON g.colocation_id = c.id AND g.index = p.index
               JOIN pgherd.segment f ON f.group_id = g.group_id
              WHERE p.relation = parent ORDER BY p.index
    LOOP
        EXECUTE format('CREATE FOREIGN TABLE pgherd_shards.%I PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s) '
                       'SERVER %I OPTIONS (schema_name %L, table_name %L)', s.name, parent, s.shard_count, s.index,
                       s.server_name, 'pgherd_shards', s.name);
    END LOOP;
END $$;

-- All of create_distributed_table between the checks and the rows.
CREATE OR REPLACE FUNCTION pgherd.make_distributed(old regclass, key name, colocation int) RETURNS regclass
LANGUAGE plpgsql SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    label   text := old::text;
    base    name;
    uniques jsonb := pgherd.unique_things_of(old);
    new     regclass;
BEGIN
    SELECT relname INTO base FROM pg_class WHERE oid = old;
    PERFORM pgherd.set_aside(old);
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES) PARTITION BY HASH (%I)', label, old, key);
    new := label::regclass;
    INSERT INTO pgherd.distributed_table (relation, kind, key_column, colocation_id, shape)
    VALUES (new, 'distributed', key, colocation, pgherd.shape_of(new) || jsonb_build_object('constraints', uniques));
    INSERT INTO pgherd.shard (shard_id, relation, index, name)
    SELECT n.id, new, g.index, pgherd.name_with_suffix(base, '_' || n.id)
      FROM (SELECT index FROM pgherd.shard_group WHERE colocation_id = colocation ORDER BY index) g,
           LATERAL (SELECT pgherd.next_shard_id() AS id WHERE g.index >= 0) n;
    PERFORM pgherd.make_twins(new);
    PERFORM pgherd.make_partitions(new);
    RETURN new;
END $$;

CREATE OR REPLACE FUNCTION pgherd.distribute(table_name regclass, distribution_column text, colocate_with text,
                                             shard_count int) RETURNS void LANGUAGE plpgsql
SET role TO @owner@ SET search_path TO pg_catalog, pg_temp SET pgherd.propagate TO off
SET client_min_messages TO warning AS $$
DECLARE
    key     pg_attribute%ROWTYPE;
    indexes text[];
    new     regclass;
    command text;
BEGIN
    PERFORM pgherd.lock_ddl();
    PERFORM pgherd.require_plain_table(table_name);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_name);
    key := pgherd.require_key(table_name, distribution_column);
    PERFORM pgherd.require_no_dependants(table_name);
    PERFORM pgherd.require_key_in_unique(table_name, key.attnum);
    PERFORM pgherd.require_portable(table_name);
    SELECT array_agg(format('CREATE INDEX %I ON %s %s', x.relname, table_name, pgherd.index_definition(i.indexrelid)))
      INTO indexes
      FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
     WHERE i.indrelid = table_name AND NOT i.indisunique AND NOT i.indisexclusion AND i.indisvalid;

    new := pgherd.make_distributed(table_name, key.attname,
                                   pgherd.colocation_for(key.atttypid, colocate_with, shard_count));
    PERFORM pgherd.copy_rows(table_name, new);
    PERFORM pgherd.hand_over(table_name, new);
    EXECUTE format('DROP TABLE %s', table_name);
    FOREACH command IN ARRAY coalesce(indexes, '{}') LOOP
        EXECUTE command;
    END LOOP;
    EXECUTE format('CREATE TRIGGER pgherd_key BEFORE UPDATE OF %I ON %s FOR EACH STATEMENT '
                   'EXECUTE FUNCTION pgherd.refuse_key_update()', key.attname, new);
    PERFORM pgherd.follow(new);
END $$;

-- A table's name is looked up with the caller's search_path, so this much happens before pgherd.distribute sets its own.
CREATE OR REPLACE FUNCTION pgherd.colocation_wish(distribution_type text, colocate_with text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
BEGIN     -- as the caller, who may have put anything into the search_path; it has no other rights here
    IF distribution_type NOT IN ('hash', 'append', 'range') AND colocate_with = 'default' THEN
        colocate_with := distribution_type;         -- the short form: (table, column, colocate_with)
    ELSIF distribution_type <> 'hash' THEN
        PERFORM pgherd.refuse(pg_catalog.format('tables cannot be distributed by %s', distribution_type), NULL,
                              'Only by hash.');
    END IF;
    RETURN CASE WHEN colocate_with IN ('default', 'none') THEN colocate_with
                ELSE colocate_with::pg_catalog.regclass::pg_catalog.oid::text END;
END $$;

CREATE OR REPLACE FUNCTION pg_catalog.create_distributed_table(
    table_name regclass, distribution_column text, distribution_type text DEFAULT 'hash',
    colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
    SELECT pgherd.distribute(table_name, distribution_column,
                             pgherd.colocation_wish(distribution_type, colocate_with), shard_count)
$$;
