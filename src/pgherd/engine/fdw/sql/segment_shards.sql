-- A segment's shards. A shard here is a leaf: a plain table pgherd_shards.<name> with the columns, constraints and
-- indexes of its twin (the partitioned table of the same name as on the coordinator), attached to it while the
-- placement says that the shard lives here. Idempotent: run at every start, by the superuser.
--
-- None of these functions is SECURITY DEFINER: each does exactly what its caller may do anyway, with a search_path
-- of its own. The owner role calls them through pgherd.exec and when it moves shards.

CREATE SCHEMA IF NOT EXISTS pgherd;
CREATE SCHEMA IF NOT EXISTS pgherd_shards;

DO $do$
BEGIN
    EXECUTE pg_catalog.format('GRANT USAGE, CREATE ON SCHEMA pgherd_shards TO %I', pg_catalog.current_database());
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA pgherd TO %I', pg_catalog.current_database());
END
$do$;

-- A row written on the source and seen on the target proves that everything committed before it has arrived.
CREATE TABLE IF NOT EXISTS pgherd.move_marker (
    move_id bigint NOT NULL,
    n       bigint NOT NULL,
    PRIMARY KEY (move_id, n)
);

-- The twin that a leaf is attached to (also while its detaching is not finished), or null.
CREATE OR REPLACE FUNCTION pgherd.shard_parent(shard name, OUT parent regclass, OUT detach_pending boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT i.inhparent::regclass, i.inhdetachpending
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE c.relname = shard AND c.relnamespace = 'pgherd_shards'::regnamespace
$$;

-- Makes the leaf of one hash bucket. Its CHECK keeps strays out while it is not attached, and spares ATTACH the scan.
CREATE OR REPLACE FUNCTION pgherd.create_leaf(twin regclass, shard name, modulus int, remainder int, indexes boolean)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    leaf  text := format('pgherd_shards.%I', shard);
    key   name;
    owner regrole;
BEGIN
    SELECT a.attname, c.relowner INTO STRICT key, owner
      FROM pg_partitioned_table p
      JOIN pg_class c ON c.oid = p.partrelid
      JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
     WHERE p.partrelid = twin;
    -- A partition takes over its parent's identity when it is attached, and may not have one of its own before.
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY %s, CONSTRAINT pgherd_placement '
                   'CHECK (satisfies_hash_partition(%s::oid, %s, %s, %I)))',
                   leaf, twin, CASE WHEN indexes THEN '' ELSE 'EXCLUDING INDEXES' END,
                   twin::oid, modulus, remainder, key);
    IF owner <> quote_ident(current_user)::regrole THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %s', leaf, owner);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION pgherd.create_shard(
    twin regclass, shard name, modulus int, remainder int, attach boolean)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
BEGIN
    PERFORM pgherd.create_leaf(twin, shard, modulus, remainder, true);
    IF attach THEN
        PERFORM pgherd.attach_shard(twin, shard, modulus, remainder);
    END IF;
END
$$;

-- Gives a leaf that was made without indexes, and has its rows by now, all that its twin has: twice as fast as filling
-- them row by row. ATTACH finds them and has nothing to build.
CREATE OR REPLACE FUNCTION pgherd.index_shard(twin regclass, shard name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    i      record;
    prefix text;
BEGIN
    FOR i IN SELECT x.indexrelid, x.indisunique, c.relname, k.oid AS con
               FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
               LEFT JOIN pg_constraint k ON k.conindid = x.indexrelid AND k.conrelid = x.indrelid
                                        AND k.contype IN ('p', 'u', 'x')
              WHERE x.indrelid = twin ORDER BY x.indexrelid
    LOOP
        IF i.con IS NOT NULL THEN
            EXECUTE format('ALTER TABLE pgherd_shards.%I ADD %s', shard, pg_get_constraintdef(i.con));
        ELSE
            prefix := format('CREATE %sINDEX %I ON ONLY %s ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
                             i.relname, twin);
            ASSERT starts_with(pg_get_indexdef(i.indexrelid), prefix);
            EXECUTE format('CREATE %sINDEX ON pgherd_shards.%I %s', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
                           shard, substr(pg_get_indexdef(i.indexrelid), length(prefix) + 1));
        END IF;
    END LOOP;
END
$$;

-- Makes a leaf visible through its twin. No-op if it is already.
CREATE OR REPLACE FUNCTION pgherd.attach_shard(twin regclass, shard name, modulus int, remainder int)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    parent  regclass;
    pending boolean;
BEGIN
    SELECT p.parent, p.detach_pending INTO parent, pending FROM pgherd.shard_parent(shard) p;
    IF parent = twin AND NOT pending THEN
        RETURN;
    ELSIF pending THEN
        EXECUTE format('ALTER TABLE %s DETACH PARTITION pgherd_shards.%I FINALIZE', parent, shard);
    END IF;
    EXECUTE format('DROP TRIGGER IF EXISTS pgherd_moved_away ON pgherd_shards.%I', shard);
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION pgherd_shards.%I FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
                   twin, shard, modulus, remainder);
END
$$;

-- Takes a leaf out of its twin; it keeps its rows and its CHECK. No-op if it is not attached (or not there at all).
-- Waits for everybody who uses the twin: a move uses DETACH CONCURRENTLY instead, which no function can.
CREATE OR REPLACE FUNCTION pgherd.detach_shard(twin regclass, shard name)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    parent  regclass;
    pending boolean;
BEGIN
    SELECT p.parent, p.detach_pending INTO parent, pending FROM pgherd.shard_parent(shard) p;
    IF parent = twin THEN
        EXECUTE format('ALTER TABLE %s DETACH PARTITION pgherd_shards.%I %s', twin, shard,
                       CASE WHEN pending THEN 'FINALIZE' ELSE '' END);
    END IF;
END
$$;

-- A copy that the placement has left takes no more writes, whoever still believes in it (a coordinator that was cut
-- off, a statement that named the shard itself).
CREATE OR REPLACE FUNCTION pgherd.refuse_write() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'shard % has moved to another segment', TG_TABLE_NAME
        USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
END
$$;

CREATE OR REPLACE FUNCTION pgherd.fence_shard(shard name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER pgherd_moved_away BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE '
                   'ON pgherd_shards.%I FOR EACH STATEMENT EXECUTE FUNCTION pgherd.refuse_write()', shard);
END
$$;

-- postgres_fdw gives each coordinator transaction one snapshot per segment, taken at its first statement there. A
-- transaction that read from this segment before a shard arrived would later find that shard empty: silently wrong.
-- So for a while after its arrival a shard is guarded: a snapshot that does not see the arrival is told to try again.
-- Returns 0 (which is no table's oid) if the caller's snapshot sees the arrival.
CREATE OR REPLACE FUNCTION pgherd.arrival_seen(arrival xid8) RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF arrival = pg_current_xact_id_if_assigned() OR pg_visible_in_snapshot(arrival, pg_current_snapshot()) THEN
        RETURN 0;
    END IF;
    RAISE EXCEPTION 'a shard has moved here since this transaction began'
        USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
END
$$;

-- Guards a shard against snapshots older than this transaction. A row filter alone would not do: it is not asked
-- where the old snapshot sees no row at all. Comparing a column with a stable function makes the planner evaluate it
-- too, for its estimate, so every statement on the shard is checked when it is planned.
CREATE OR REPLACE FUNCTION pgherd.guard_shard(shard name) RETURNS xid8
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    arrival xid8 := pg_current_xact_id();
BEGIN
    EXECUTE format('DROP POLICY IF EXISTS pgherd_arrival ON pgherd_shards.%I', shard);
    EXECUTE format('CREATE POLICY pgherd_arrival ON pgherd_shards.%I '
                   'USING (tableoid <> pgherd.arrival_seen(%L::xid8)) WITH CHECK (true)', shard, arrival);
    EXECUTE format('ALTER TABLE pgherd_shards.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', shard);
    RETURN arrival;
END
$$;

-- Takes the guard away, once no older snapshot is left. No-op without one, or without the shard.
CREATE OR REPLACE FUNCTION pgherd.unguard_shard(shard name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
BEGIN
    IF to_regclass(format('pgherd_shards.%I', shard)) IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('ALTER TABLE pgherd_shards.%I DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', shard);
    EXECUTE format('DROP POLICY IF EXISTS pgherd_arrival ON pgherd_shards.%I', shard);
END
$$;
