-- What pgherd remembers of a Citus cluster besides Citus's own metadata; in the coordinator database, known to no other
-- node.

-- Segments that take part. Patroni registers a node as soon as its group has a primary, and goes on doing so while a
-- group is being removed: being in pg_dist_node says little.
CREATE TABLE IF NOT EXISTS pgherd.segment (
    group_id  int PRIMARY KEY,
    endpoints jsonb NOT NULL DEFAULT '[]'       -- [["host", port], ...] by ordinal, as it was last told
);

-- Groups that begin as a physical copy of a segment. The row goes in the transaction in which the group becomes a
-- segment, or with its last member.
CREATE TABLE IF NOT EXISTS pgherd.clone (
    group_id     int PRIMARY KEY,
    source_id    int    NOT NULL,
    operation_id bigint NOT NULL,
    state        text   NOT NULL,               -- copying | parting | undone
    failures     int    NOT NULL DEFAULT 0      -- attempts to make it a segment
);

-- Up to which value sequences gave numbers on segments that left, in the range of values that a group's number stands
-- for: a later segment of the same number begins behind it.
CREATE TABLE IF NOT EXISTS pgherd.numbered (
    group_id   int PRIMARY KEY,
    used_up_to bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS pgherd.settings (name text PRIMARY KEY, value text NOT NULL);

-- The copy of another cluster's database into this one, and which parts of it are here: each row is written in the
-- transaction that brings its rows.
CREATE TABLE IF NOT EXISTS pgherd.copy (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    source      text NOT NULL,                  -- the system identifier of its coordinator
    definitions text NOT NULL,                  -- their digest
    phase       text NOT NULL,                  -- rows | done
    begun_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at     timestamptz
);
CREATE TABLE IF NOT EXISTS pgherd.copy_piece (
    table_name text    NOT NULL,
    relation   text    NOT NULL,                -- what it is called at the source, wherever it is there
    row_count  bigint  NOT NULL,
    checksum   numeric NOT NULL,
    PRIMARY KEY (table_name, relation)
);

-- Every shard of a distributed table with what it moves with. A hash-distributed table's shards go by colocation and
-- hash range; tables of one shard (those of a distributed schema) all belong to one family, number 0, so that they are
-- spread evenly although each has a colocation of its own.
CREATE OR REPLACE VIEW pgherd.shard_map AS
SELECT CASE t.partmethod WHEN 'h' THEN t.colocationid ELSE 0 END AS colocation_id,
       CASE t.partmethod WHEN 'h'
            THEN row_number() OVER (PARTITION BY t.logicalrelid, p.groupid_rank ORDER BY s.shardminvalue::int)::int - 1
            ELSE t.colocationid END AS index,
       t.logicalrelid AS relation, s.shardid AS shard_id, p.groupid AS group_id
  FROM pg_catalog.pg_dist_partition t
  JOIN pg_catalog.pg_dist_shard s ON s.logicalrelid = t.logicalrelid
  JOIN (SELECT shardid, groupid, row_number() OVER (PARTITION BY shardid ORDER BY placementid) AS groupid_rank
          FROM pg_catalog.pg_dist_placement) p ON p.shardid = s.shardid
 WHERE t.partmethod = 'h' OR t.partmethod = 'n' AND t.repmodel = 's' AND t.colocationid > 0;

GRANT SELECT ON pgherd.segment, pgherd.shard_map TO PUBLIC;
