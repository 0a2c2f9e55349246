-- What checks and per-segment queries ask a segment. Run as superuser, idempotent.

-- Whether queries of this transaction see exactly these shards through their twins. (Not by level: a shard whose
-- detaching is not finished has level 0, and may still be seen.)
CREATE OR REPLACE FUNCTION pgherd.shows_shards(twins text[], shards text[]) RETURNS boolean LANGUAGE sql VOLATILE
SET search_path TO pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (SELECT FROM (SELECT unnest(shards) AS name) wanted FULL JOIN (
                           SELECT (parse_ident(p.relid::text))[2] AS name
                             FROM unnest(twins) t, pg_partition_tree(t::regclass) p WHERE p.relid <> t::regclass) seen
                                      USING (name) WHERE wanted.name IS NULL OR seen.name IS NULL)
$$;

-- Every leaf: its twin (null: not attached), whether its CHECK is in force.
CREATE OR REPLACE VIEW pgherd.leaves AS
SELECT c.relname AS name, i.inhparent::regclass::text AS twin,
       EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.conname = 'pgherd_placement'
                                                       AND k.convalidated) AS checked
  FROM pg_catalog.pg_class c
  LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid AND NOT i.inhdetachpending
 WHERE c.relkind = 'r' AND c.relnamespace = 'pgherd_shards'::regnamespace;
GRANT SELECT ON pgherd.leaves TO @owner@;

-- Rows of the attached leaves that hash elsewhere: (leaf, rows). Reads everything; run as the owner role.
CREATE OR REPLACE FUNCTION pgherd.strays(shard name, twin regclass, modulus int, remainder int) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    key name;
    n   bigint;
BEGIN
    SELECT a.attname INTO STRICT key FROM pg_partitioned_table p
      JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0] WHERE p.partrelid = twin;
    EXECUTE format('SELECT count(*) FROM pgherd_shards.%I WHERE NOT satisfies_hash_partition(%s::oid, %s, %s, %I)',
                   shard, twin::oid, modulus, remainder, key) INTO n;
    RETURN n;
END $$;
