"""The values that nodes give to rows from sequences: each node has a range of its own, by its group's number.

To Citus a node's number is new each time. Ours come back: a segment that left and one that comes later have the same,
and so the same range. What the first one gave is in rows that live on elsewhere, so the second one begins behind that.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from pgherd.engine.citus.session import superuser, value
from pgherd.errors import Unavailable
from pgherd.postgres.connections import Connection, Databases

_BITS = 48
"""Citus gives each node's sequences the values from ``group << 48`` on"""
MARGIN = 1 << 32
"""values that clients of a segment may take between our look and its end, or in a part of its log that is lost"""
UNKNOWN = 1 << 40
"""values that a segment counts as having given which does not say how many: 256 such ones fit into a range"""

_GIVEN = "SELECT max(last_value) FROM pg_sequences WHERE min_value = %s AND max_value = %s"
_OURS = "SELECT schemaname, sequencename FROM pg_sequences WHERE min_value = %s AND max_value = %s"
_SKIP = """\
SELECT setval(format('%%I.%%I', schemaname, sequencename)::regclass, %(used)s) FROM pg_sequences
 WHERE min_value = %(first)s AND max_value = %(last)s AND (last_value IS NULL OR last_value < %(used)s)"""


_SKIP_LOST = """\
SELECT setval(format('%%I.%%I', schemaname, sequencename)::regclass,
              least(coalesce(last_value, %(first)s - 1) + %(margin)s, %(last)s))
  FROM pg_sequences WHERE min_value = %(first)s AND max_value = %(last)s"""


def range_of(group: int) -> tuple[int, int]:
    """The first and the last value."""
    first = (group << _BITS) + 1
    return first, first + (1 << _BITS)


def used(desk: Connection, group: int) -> int | None:
    """Up to which value segments of this number have given some that are not there any more; None: there were none."""
    found = value(desk, "SELECT used_up_to FROM pgherd.numbered WHERE group_id = %s", [group])
    return None if found is None else int(found)


def given(databases: Databases, group: int) -> int | None:
    """The greatest value that a segment's sequences have given by now; None: it does not say."""
    first, last = range_of(group)
    try:
        with superuser(databases, group) as node:
            return int(value(node, _GIVEN, [first, last]) or first - 1)
    except (Unavailable, psycopg.OperationalError):
        return None


def note_used(desk: Connection, group: int, last_given: int | None) -> None:
    """Remember what a segment has given that leaves; once, in the transaction by which it leaves.

    :param last_given: from :func:`given`, a moment ago
    """
    first, last = range_of(group)
    before = used(desk, group) or first - 1
    up_to = before + UNKNOWN if last_given is None else max(before, last_given + MARGIN)
    desk.execute(
        "INSERT INTO pgherd.numbered VALUES (%s, %s)"
        " ON CONFLICT (group_id) DO UPDATE SET used_up_to = excluded.used_up_to",
        [group, min(up_to, last)],
    )


def skip_used(databases: Databases, desk: Connection, group: int) -> None:
    """Let the sequences of a segment that takes part from now on begin behind what earlier ones of its number gave.

    :raises Unavailable: it can't be reached
    """
    first, last = range_of(group)
    if (behind := used(desk, group)) is not None:
        with superuser(databases, group) as node:
            node.execute(_SKIP.encode(), {"first": first, "last": last, "used": behind})


def skip_lost(node: Connection, group: int) -> None:
    """Let a segment's sequences go on behind what they gave in a part of its log that is lost: rows that have such
    values may be on other nodes. May be done again."""
    first, last = range_of(group)
    node.execute(_SKIP_LOST.encode(), {"first": first, "last": last, "margin": MARGIN})


def begin_anew(databases: Databases, desk: Connection, group: int, source: int) -> None:
    """Give a segment its own range where its sequences, which are a copy's, have their source's.

    :raises Unavailable: it can't be reached
    """
    first, last = range_of(group)
    begin = min((used(desk, group) or first - 1) + 1, last)
    with superuser(databases, group) as node:
        node.execute("SET citus.enable_ddl_propagation TO off")
        for schema, name in node.execute(_OURS.encode(), range_of(source)).fetchall():
            node.execute(
                sql.SQL("ALTER SEQUENCE {} MINVALUE {} MAXVALUE {} START {} RESTART WITH {}").format(
                    sql.Identifier(schema, name), *(sql.Literal(each) for each in (first, last, first, begin))
                )
            )
