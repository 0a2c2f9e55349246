"""The users' tables and where their rows are: placements on nodes, everything else on the coordinator."""

from __future__ import annotations

from collections.abc import Sequence

from pgherd.engine.base import Piece, TableLayout
from pgherd.engine.citus.session import superuser
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Databases

SHARD = "CASE WHEN n.nspname <> 'public' OR starts_with(f.name, 'public.') THEN f.name ELSE 'public.' || f.name END"
"""a shard's whole name, where ``f`` has what Citus says and ``n`` its schema: it tells public before 13.1 only"""
# A table that is called like a shard is a user's all the same, unless Citus says that it is the shard: that it keeps it
# here, or has yet to drop it here.
_TABLES = r"""
SELECT format('%I.%I', n.nspname, c.relname), CASE c.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END,
       CASE WHEN t.partmethod = 'n' AND t.repmodel = 't' THEN 'reference'
            WHEN t.partmethod = 'h' OR t.colocationid > 0 THEN 'distributed' ELSE 'local' END,
       CASE t.partmethod WHEN 'h' THEN column_to_column_name(t.logicalrelid, t.partkey) END, t.colocationid,
       ARRAY(SELECT jsonb_build_array(p.groupid, @NAME@)
               FROM pg_dist_shard s CROSS JOIN LATERAL shard_name(s.logicalrelid, s.shardid) f (name)
               JOIN LATERAL (SELECT groupid FROM pg_dist_placement p WHERE p.shardid = s.shardid
                              ORDER BY groupid LIMIT 1) p ON true
              WHERE s.logicalrelid = c.oid ORDER BY s.shardid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_dist_partition t ON t.logicalrelid = c.oid
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgherd', 'citus', 'citus_internal',
                                                 'columnar', 'columnar_internal')
   AND NOT EXISTS (SELECT FROM pg_depend p
                    WHERE p.objid = c.oid AND p.classid = 'pg_class'::regclass AND p.deptype = 'e')
   AND NOT EXISTS (SELECT FROM pg_dist_shard s JOIN pg_dist_placement p ON p.shardid = s.shardid AND p.groupid = 0
                    CROSS JOIN LATERAL shard_name(s.logicalrelid, s.shardid) f (name)
                    WHERE s.shardid = substring(c.relname FROM '_(\d{1,18})$')::bigint
                      AND c.oid = to_regclass(@NAME@))
   AND NOT EXISTS (SELECT FROM pg_dist_cleanup o
                    WHERE o.object_type = 1 AND o.node_group_id = 0 AND c.oid = to_regclass(o.object_name))
 ORDER BY t.colocationid, c.oid
""".replace("@NAME@", SHARD)


def layout(databases: Databases) -> Sequence[TableLayout]:
    """See :meth:`pgherd.engine.base.Engine.layout`."""
    with superuser(databases) as connection:
        rows = connection.execute(_TABLES.encode()).fetchall()
    return [
        TableLayout(
            name,
            kind,
            key,
            colocation,
            tuple(Piece(*piece) for piece in pieces) or (Piece(COORDINATOR, only + name),),
        )
        for name, only, kind, key, colocation, pieces in rows
    ]
