-- The part of schema pgherd that is the same on every engine. It lives in the coordinator database, so it is
-- replicated to the standbys and survives a failover of everything. Idempotent: run at every start.

CREATE SCHEMA IF NOT EXISTS pgherd;
GRANT USAGE ON SCHEMA pgherd TO PUBLIC;

-- One row per member, kept by the reconcile loop.
CREATE TABLE IF NOT EXISTS pgherd.segment_configuration (
    member          text PRIMARY KEY,
    group_id        int  NOT NULL,
    group_name      text NOT NULL,
    role            text NOT NULL,              -- primary | standby | unknown
    preferred_role  text NOT NULL,              -- primary for ordinal 0, else standby
    mode            text NOT NULL,              -- synchronous | asynchronous | none (not replicating)
    status          text NOT NULL,              -- up | down
    host            text NOT NULL,
    port            int  NOT NULL
);

-- Long changes. A row is the whole truth about one: whoever finds it unfinished may carry it on.
CREATE TABLE IF NOT EXISTS pgherd.operations (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind             text  NOT NULL,            -- expand | shrink | rebalance | ...
    phase            text  NOT NULL DEFAULT 'requested',
        -- requested, preparing, moving, paused, waiting, finishing; ended: done, failed, cancelled, superseded
    from_segments    int,
    to_segments      int,
    parameters       jsonb NOT NULL DEFAULT '{}',
    message          text  NOT NULL DEFAULT '',
    error            text,
    cancel_requested boolean NOT NULL DEFAULT false,
    requested_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at       timestamptz,
    finished_at      timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS operations_one_at_a_time ON pgherd.operations ((true)) WHERE finished_at IS NULL;

CREATE TABLE IF NOT EXISTS pgherd.operation_steps (
    operation_id  bigint NOT NULL REFERENCES pgherd.operations ON DELETE CASCADE,
    step          int    NOT NULL,
    kind          text   NOT NULL,              -- members | admit | preflight | move | retire | clean-up ...
    detail        jsonb  NOT NULL DEFAULT '{}', -- move: {"colocation":1,"index":7,"source":1,"target":3}
    state         text   NOT NULL DEFAULT 'pending',  -- pending | running | done | skipped | undone | failed
    message       text   NOT NULL DEFAULT '',   -- one sentence: what it did, or is doing
    bytes_total   bigint NOT NULL DEFAULT 0,
    bytes_done    bigint NOT NULL DEFAULT 0,
    started_at    timestamptz,
    finished_at   timestamptz,
    PRIMARY KEY (operation_id, step)
);

CREATE OR REPLACE VIEW pgherd.operation_progress AS
SELECT o.id AS operation_id, o.kind, o.phase, o.message,
       m.moves_total, m.moves_done, m.bytes_total, m.bytes_done, m.bytes_per_second,
       CASE WHEN o.finished_at IS NULL AND m.bytes_per_second > 0
            THEN m.bytes_left / m.bytes_per_second END AS eta_seconds,
       o.started_at, o.finished_at
  FROM pgherd.operations o
 CROSS JOIN LATERAL (
       -- one row, whatever the number of moves: an aggregate without GROUP BY
       SELECT count(*) AS moves_total,
              count(*) FILTER (WHERE s.state = 'done') AS moves_done,
              coalesce(sum(s.bytes_total), 0)::bigint AS bytes_total,
              coalesce(sum(s.bytes_done), 0)::bigint AS bytes_done,
              coalesce(sum(greatest(s.bytes_total - s.bytes_done, 0))
                       FILTER (WHERE s.state IN ('pending', 'running')), 0)::bigint AS bytes_left,
              (sum(s.bytes_done) / greatest(extract(epoch FROM
                   coalesce(max(s.finished_at) FILTER (WHERE o.finished_at IS NOT NULL), clock_timestamp())
                   - min(s.started_at)), 0.001))::bigint AS bytes_per_second
         FROM pgherd.operation_steps s
        WHERE s.operation_id = o.id AND s.kind = 'move') m;

-- Things made elsewhere (slots, publications, shard copies), written down before they are made.
CREATE TABLE IF NOT EXISTS pgherd.cleanup (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    operation_id  bigint,
    group_id      int   NOT NULL,               -- where the thing is
    kind          text  NOT NULL,               -- slot | publication | subscription | shard | replica-identity ...
    name          text  NOT NULL,
    detail        jsonb NOT NULL DEFAULT '{}',
    not_before    timestamptz,                  -- deferred: an old reader may still use it
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Moments at which all groups agree, to which the cluster can be restored: one row per point and group. The repository of
-- the backups holds the same, for when the cluster is gone.
CREATE TABLE IF NOT EXISTS pgherd.restore_points (
    name       text NOT NULL,
    group_id   int  NOT NULL,
    lsn        pg_lsn NOT NULL,                 -- the point is at or before it in this group's log
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    timeline   int,
    engine     text,
    placement  bigint,                          -- how many moves of shards were done
    held_ms    float8,                          -- how long writers were kept out
    archived   boolean NOT NULL DEFAULT false,  -- every group's log up to it is in the repository
    PRIMARY KEY (name, group_id)
);

GRANT SELECT ON pgherd.restore_points, pgherd.segment_configuration, pgherd.operations, pgherd.operation_steps,
                pgherd.operation_progress TO PUBLIC;
