"""The users' tables and where their rows are: shards on segments, everything else on the coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgherd.engine.base import Piece, TableLayout
from pgherd.engine.fdw.install import superuser
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Databases

_TABLES = r"""
SELECT format('%I.%I', n.nspname, c.relname), CASE c.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END,
       coalesce(d.kind, 'local'), d.key_column::text, d.colocation_id,
       ARRAY(SELECT jsonb_build_array(g.group_id, format('pgherd_shards.%I', s.name))
               FROM pgherd.shard s JOIN pgherd.shard_group g ON g.colocation_id = d.colocation_id AND g.index = s.index
              WHERE s.relation = c.oid ORDER BY s.index),
       ARRAY(SELECT value FROM jsonb_each(d.shape -> 'constraints') WHERE d.kind = 'distributed' ORDER BY key)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pgherd.distributed_table d ON d.relation = c.oid
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname !~ '^(pg_|pgherd_segment_)' AND n.nspname NOT IN ('information_schema', 'pgherd', 'pgherd_shards')
   AND NOT EXISTS (SELECT FROM pg_depend p
                    WHERE p.objid = c.oid AND p.classid = 'pg_class'::regclass AND p.deptype = 'e')
 ORDER BY d.colocation_id, c.oid
"""


def layout(databases: Databases) -> Sequence[TableLayout]:
    """See :meth:`pgherd.engine.base.Engine.layout`."""
    with superuser(databases, COORDINATOR) as connection:
        rows = connection.execute(_TABLES.encode()).fetchall()
    return [
        TableLayout(
            name,
            kind,
            key,
            colocation,
            tuple(Piece(*piece) for piece in pieces) or (Piece(COORDINATOR, only + name),),
            tuple(_statement(name, entry) for entry in constraints),
        )
        for name, only, kind, key, colocation, pieces, constraints in rows
    ]


def _statement(table: str, entry: dict[str, Any]) -> str:
    name = '"' + entry["name"].replace('"', '""') + '"'
    if "index" in entry:
        return f"CREATE UNIQUE INDEX {name} ON {table} {entry['def']}"
    return f"ALTER TABLE {table} ADD CONSTRAINT {name} {entry['def']}"
