-- What may be distributed, and how it is refused: one function per question, each raises with SQLSTATE and hint.

-- Functions that touch what the owner role may have put traps into (its tables' expressions, triggers, foreign tables)
-- must not do so with more rights than that role has. Whatever calls them changes the role first.
CREATE OR REPLACE FUNCTION pgherd.require_owner_role() RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    IF current_user NOT IN (@owner_literal@, @agent_literal@) THEN
        RAISE EXCEPTION 'only the owner role may do this' USING ERRCODE = '42501';
    END IF;
END $$;

-- The relation as people write it.
CREATE OR REPLACE FUNCTION pgherd.label(relation regclass) RETURNS text LANGUAGE sql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT CASE WHEN n.nspname = 'public' THEN quote_ident(c.relname) ELSE format('%I.%I', n.nspname, c.relname) END
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;

CREATE OR REPLACE FUNCTION pgherd.refuse(message text, detail text DEFAULT NULL, hint text DEFAULT NULL,
                                         code text DEFAULT '0A000') RETURNS void LANGUAGE plpgsql
SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    IF detail IS NULL AND hint IS NULL THEN
        RAISE EXCEPTION '%', message USING ERRCODE = code;
    ELSIF detail IS NULL THEN
        RAISE EXCEPTION '%', message USING ERRCODE = code, HINT = hint;
    ELSIF hint IS NULL THEN
        RAISE EXCEPTION '%', message USING ERRCODE = code, DETAIL = detail;
    END IF;
    RAISE EXCEPTION '%', message USING ERRCODE = code, DETAIL = detail, HINT = hint;
END $$;

-- A plain, permanent table of the owner role's own that nothing of ours covers yet.
CREATE OR REPLACE FUNCTION pgherd.require_plain_table(relation regclass) RETURNS void LANGUAGE plpgsql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    c     record;
    label text := pgherd.label(relation);
BEGIN
    SELECT k.*, n.nspname INTO c FROM pg_class k JOIN pg_namespace n ON n.oid = k.relnamespace WHERE k.oid = relation;
    IF c.oid IS NULL THEN
        PERFORM pgherd.refuse(format('there is no table %s', coalesce(relation::oid::text, 'NULL')), NULL,
            'Name the table: SELECT create_distributed_table(''items'', ''id'');', '42P01');
    ELSIF EXISTS (SELECT FROM pgherd.distributed_table d WHERE d.relation = require_plain_table.relation) THEN
        PERFORM pgherd.refuse(format('table %s is already distributed', label), NULL,
            'SELECT * FROM citus_tables shows how; undistribute_table() makes it a plain table again.', '42P16');
    ELSIF c.relkind NOT IN ('r', 'p') THEN
        PERFORM pgherd.refuse(format('%s is not a table', label), NULL, NULL, '42809');
    ELSIF c.nspname IN ('pg_catalog', 'information_schema', 'pgherd', 'pgherd_shards')
       OR c.nspname LIKE 'pgherd\_segment\_%' OR c.nspname LIKE 'pg\_toast%' THEN
        PERFORM pgherd.refuse(format('%s belongs to the system', label), NULL, NULL, '42501');
    ELSIF c.relowner <> '@owner@'::regrole THEN
        PERFORM pgherd.refuse(format('table %s belongs to %s', label, c.relowner::regrole), 'A distributed table belongs to '
            'the database''s owner role, as which segments are reached.', format('ALTER TABLE %s OWNER TO %I;', label,
            @owner_literal@) || ' then GRANT to others what they need.', '42501');
    ELSIF c.relpersistence <> 'p' THEN
        PERFORM pgherd.refuse(format('table %s is temporary or unlogged', label), NULL,
            'Only ordinary tables can be distributed (ALTER TABLE ... SET LOGGED).');
    ELSIF c.relkind = 'p' OR c.relispartition THEN
        PERFORM pgherd.refuse(format('table %s is partitioned, or a partition', label), NULL,
            'Shards are the partitions of a distributed table; put the rows into a plain table first.');
    ELSIF c.reloftype <> 0 OR EXISTS (SELECT FROM pg_inherits WHERE relation IN (inhparent, inhrelid)) THEN
        PERFORM pgherd.refuse(format('table %s uses inheritance', label), NULL, 'ALTER TABLE ... NO INHERIT first.');
    END IF;
END $$;

-- Segments have PostgreSQL's own types, functions and collations, and the enums that we create there; nothing else.
CREATE OR REPLACE FUNCTION pgherd.require_portable(relation regclass) RETURNS void LANGUAGE plpgsql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT a.attname, format_type(a.atttypid, NULL) AS type INTO bad
      FROM pg_attribute a
      JOIN pg_type t ON t.oid = a.atttypid
      LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typlen = -1
     WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
       AND coalesce(e.oid, t.oid) >= 16384 AND coalesce(e.typtype, t.typtype) <> 'e'
     LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('column %I has type %s', bad.attname, bad.type),
            'Segments have PostgreSQL''s own types and enums; no domains, composite types or types of extensions.',
            'Use the base type, or jsonb.');
    END IF;
    SELECT a.attname, c.collname INTO bad FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation
     WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND c.oid >= 16384 AND c.collnamespace <>
           'pg_catalog'::regnamespace LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('column %I has the collation %I', bad.attname, bad.collname),
            'Segments have the collations that initdb makes.', 'Use one of schema pg_catalog.');
    END IF;
    SELECT pg_describe_object(d.classid, d.objid, 0) AS what,
           pg_describe_object(d.refclassid, d.refobjid, 0) AS uses INTO bad
      FROM pg_depend d
     WHERE d.refobjid >= 16384 AND d.refclassid <> 'pg_class'::regclass
       AND NOT (d.refclassid = 'pg_constraint'::regclass
                AND EXISTS (SELECT FROM pg_constraint WHERE oid = d.refobjid AND conrelid = relation))
       AND NOT (d.refclassid = 'pg_type'::regclass AND EXISTS (
                SELECT FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typlen = -1
                 WHERE t.oid = d.refobjid AND (coalesce(e.typtype, t.typtype) = 'e' OR t.typrelid = relation)))
       AND ((d.classid = 'pg_constraint'::regclass
             AND d.objid IN (SELECT oid FROM pg_constraint WHERE conrelid = relation AND contype <> 'f'))
         OR (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT indexrelid FROM pg_index WHERE indrelid = relation))
         OR (d.classid = 'pg_attrdef'::regclass
             AND d.objid IN (SELECT f.oid FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid
                             AND a.attnum = f.adnum WHERE f.adrelid = relation AND a.attgenerated <> '')))
     LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('%s uses %s', bad.what, bad.uses), 'Segments have PostgreSQL''s own functions, types and operators only.',
            'Take it off the table, or compute the value in the application.');
    END IF;
END $$;

-- The table gets a new oid when it is distributed, so nothing may hang on the present one.
CREATE OR REPLACE FUNCTION pgherd.require_no_dependants(relation regclass) RETURNS void LANGUAGE plpgsql STABLE
SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    label text := pgherd.label(relation);
    c     pg_class%ROWTYPE;
    found_name text;
BEGIN
    SELECT * INTO c FROM pg_class WHERE oid = relation;
    SELECT conname INTO found_name FROM pg_constraint
     WHERE contype = 'f' AND relation IN (conrelid, confrelid) LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('table %s has the foreign key %I', label, found_name),
            'PostgreSQL has no foreign keys from or to tables with foreign partitions.',
            'Drop it (ALTER TABLE ... DROP CONSTRAINT), or make both tables reference tables.');
    END IF;
    SELECT tgname INTO found_name FROM pg_trigger
     WHERE tgrelid = relation AND NOT tgisinternal AND tgname NOT LIKE 'pgherd\_%' LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('table %s has the trigger %I', label, found_name), NULL,
            'Drop it first; create it again afterwards if row by row writes are fast enough.');
    END IF;
    IF c.relrowsecurity OR c.relforcerowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = relation) THEN
        PERFORM pgherd.refuse(format('table %s has row level security', label), NULL,
            'PostgreSQL does not check policies for rows that go to foreign partitions. Use views WITH CHECK OPTION.');
    ELSIF EXISTS (SELECT FROM pg_rewrite WHERE ev_class = relation) THEN
        PERFORM pgherd.refuse(format('table %s has rules', label), NULL, 'Drop them first.');
    ELSIF EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = relation) THEN
        PERFORM pgherd.refuse(format('table %s is in a publication', label), NULL, 'Its rows will live on segments; '
            'take it out (ALTER PUBLICATION ... DROP TABLE).');
    END IF;
    SELECT pg_describe_object(d.classid, d.objid, 0) INTO found_name
      FROM pg_depend d
     WHERE d.deptype = 'n'
       AND ((d.refclassid = 'pg_class'::regclass AND d.refobjid = relation)
            OR (d.refclassid = 'pg_type'::regclass AND d.refobjid IN
                (c.reltype, (SELECT typarray FROM pg_type WHERE oid = c.reltype))))
       AND NOT (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT indexrelid FROM pg_index WHERE indrelid = relation))
       AND NOT (d.classid = 'pg_constraint'::regclass
                AND d.objid IN (SELECT oid FROM pg_constraint WHERE conrelid = relation))
       AND NOT (d.classid = 'pg_attrdef'::regclass AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = relation))
       AND NOT (d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT oid FROM pg_trigger WHERE tgrelid = relation))
     LIMIT 1;
    IF FOUND THEN
        PERFORM pgherd.refuse(format('table %s is used by %s', label, regexp_replace(found_name, '^rule .* on ', '')),
            'Distributing a table makes a new one in its place.', 'Drop what uses it first, create it again afterwards.');
    END IF;
END $$;

-- Returns the key's column. Its hash must come out the same on every server, for ever.
CREATE OR REPLACE FUNCTION pgherd.require_key(relation regclass, column_name text) RETURNS pg_attribute LANGUAGE plpgsql
STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    a pg_attribute%ROWTYPE;
    t pg_type%ROWTYPE;
BEGIN
    SELECT * INTO a FROM pg_attribute
     WHERE attrelid = relation AND attname = column_name AND attnum > 0 AND NOT attisdropped;
    IF NOT FOUND THEN
        PERFORM pgherd.refuse(format('column "%s" of table %s does not exist', coalesce(column_name, 'NULL'), pgherd.label(relation)),
            NULL, NULL, '42703');
    ELSIF a.attgenerated <> '' THEN
        PERFORM pgherd.refuse(format('column %I is generated', column_name), NULL,
            'PostgreSQL cannot partition by a generated column; choose another.');
    END IF;
    SELECT * INTO t FROM pg_type WHERE oid = a.atttypid;
    IF t.oid >= 16384 OR t.typtype <> 'b' OR t.typcategory = 'A' OR t.typname LIKE 'reg%' THEN
        PERFORM pgherd.refuse(format('column %I has type %s, which cannot be a distribution key', column_name,
            format_type(a.atttypid, NULL)), 'Its hash may differ from server to server.',
            'Integers, text, uuid, dates and bytea can.');
    ELSIF NOT EXISTS (SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'hash'
                       WHERE o.opcdefault AND (o.opcintype = t.oid
                          OR EXISTS (SELECT FROM pg_cast WHERE castsource = t.oid AND casttarget = o.opcintype
                                                           AND castmethod = 'b' AND castcontext = 'i'))) THEN
        PERFORM pgherd.refuse(format('type %s has no hash function', format_type(a.atttypid, NULL)), NULL,
            'Choose another distribution column.', '42704');
    ELSIF EXISTS (SELECT FROM pg_collation WHERE oid = a.attcollation AND NOT collisdeterministic) THEN
        PERFORM pgherd.refuse(format('column %I has a nondeterministic collation', column_name), NULL,
            'The distribution key needs a deterministic one.');
    END IF;
    RETURN a;
END $$;

-- Uniqueness is enforced within a segment, so it must include what decides the segment.
CREATE OR REPLACE FUNCTION pgherd.require_key_in_unique(relation regclass, key smallint) RETURNS void LANGUAGE plpgsql
STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT x.relname, k.condeferred, k.contype INTO bad
      FROM pg_index i
      JOIN pg_class x ON x.oid = i.indexrelid
      LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
     WHERE i.indrelid = relation AND (i.indisunique OR i.indisexclusion)
       AND (k.condeferred OR key <> ALL ((i.indkey::smallint[])[0:i.indnkeyatts - 1]))
     LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    ELSIF bad.condeferred THEN
        PERFORM pgherd.refuse(format('constraint %I is INITIALLY DEFERRED', bad.relname),
            'It would fail when some segments have committed.', 'Make it INITIALLY IMMEDIATE.');
    END IF;
    PERFORM pgherd.refuse(format('the distribution column is not part of %s %I of table %s',
        CASE bad.contype WHEN 'p' THEN 'the primary key' WHEN 'u' THEN 'the unique constraint'
        WHEN 'x' THEN 'the exclusion constraint' ELSE 'the unique index' END, bad.relname, pgherd.label(relation)),
        'Each segment can only guarantee uniqueness among its own rows.',
        'Add the distribution column to it, drop it, or distribute by one of its columns.', '42P16');
END $$;
