-- What only the fdw engine has: which segments take part, what is distributed how, and where each shard group is.

CREATE TABLE IF NOT EXISTS pgherd.settings (
    name  text PRIMARY KEY,                     -- 'shard_count'
    value text NOT NULL
);

CREATE TABLE IF NOT EXISTS pgherd.segment (
    group_id     int  PRIMARY KEY,
    server_name  name NOT NULL UNIQUE,          -- foreign server 'segment_N'
    admitted_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Tables that hash alike: same key type, same shard count, same placement.
CREATE TABLE IF NOT EXISTS pgherd.colocation (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard_count  int NOT NULL,
    key_type     regtype NOT NULL,
    is_default   boolean NOT NULL               -- joined without being named, as colocate_with => 'default'
);

-- The placement. One row here is what a move changes.
CREATE TABLE IF NOT EXISTS pgherd.shard_group (
    colocation_id int NOT NULL REFERENCES pgherd.colocation ON DELETE CASCADE,
    index         int NOT NULL,                 -- remainder of the hash partition
    group_id      int NOT NULL REFERENCES pgherd.segment,
    PRIMARY KEY (colocation_id, index)
);

CREATE TABLE IF NOT EXISTS pgherd.distributed_table (
    relation      regclass PRIMARY KEY,
    kind          text NOT NULL CHECK (kind IN ('distributed', 'reference')),
    key_column    name,                         -- null for reference tables
    colocation_id int REFERENCES pgherd.colocation,
    shape         jsonb NOT NULL DEFAULT '{}'   -- the definition the segments have, for the DDL differ
);

CREATE SEQUENCE IF NOT EXISTS pgherd.shard_id_seq START 102008;

CREATE TABLE IF NOT EXISTS pgherd.shard (
    shard_id      bigint PRIMARY KEY,
    relation      regclass NOT NULL REFERENCES pgherd.distributed_table ON DELETE CASCADE,
    index         int  NOT NULL,
    name          name NOT NULL UNIQUE,         -- in schema pgherd_shards, on the coordinator (foreign) and its segment
    UNIQUE (relation, index)
);

-- Locked ROW EXCLUSIVE by DDL on distributed tables (compatible with itself) and SHARE by a move (likewise), so that
-- each waits for the other and neither fails. Never holds a row.
CREATE TABLE IF NOT EXISTS pgherd.ddl_barrier ();

-- One row, which every SERIALIZABLE writer of reference tables changes: of two at a time the later one fails at its
-- statement. PostgreSQL would find some of their conflicts at the commit only, after the segments have committed.
CREATE TABLE IF NOT EXISTS pgherd.serializable_turn (
    taken bigint NOT NULL
);
INSERT INTO pgherd.serializable_turn SELECT 0 WHERE NOT EXISTS (SELECT FROM pgherd.serializable_turn);
