"""Rows of a copy: from each place where the source keeps some, through one COPY, to the destination.

The record of a piece is the first thing in the transaction that brings its rows: whoever tries a second time, after a
kill or a lost connection, waits for the first one's end and then finds it done, or free to be done again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from threading import Event

import psycopg
from psycopg import sql

from pgherd.engine.base import Piece, TableLayout
from pgherd.errors import PgherdError
from pgherd.model.topology import COORDINATOR
from pgherd.postgres.connections import Connection, Databases

SETTINGS = (
    "SET search_path TO pg_catalog, pg_temp; SET TimeZone TO 'UTC'; SET DateStyle TO 'ISO, YMD';"
    "SET IntervalStyle TO 'postgres'; SET extra_float_digits TO 1; SET bytea_output TO 'hex';"
    "SET statement_timeout TO 0;"
    "SET idle_in_transaction_session_timeout TO 0; SET row_security TO off; SET client_min_messages TO warning"
)
"""by which values have one text everywhere, and nothing ends us for being slow"""

OF_USERS = "{0} !~ '^(pg_|pgherd_segment_)' AND {0} NOT IN ('information_schema', 'pgherd', 'pgherd_shards')"
"""whether a schema, by its name, is one of the users'"""

_COLUMNS = """
SELECT format('%I.%I', n.nspname, c.relname), array_agg(quote_ident(a.attname) ORDER BY a.attnum)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 WHERE format('%I.%I', n.nspname, c.relname) = ANY (%s) GROUP BY c.oid, 1
"""


@dataclass(frozen=True)
class Total:
    """How many rows, and a sum over them that does not depend on their order."""

    rows: int = 0
    checksum: Decimal = Decimal(0)

    def __add__(self, other: Total) -> Total:
        return Total(self.rows + other.rows, self.checksum + other.checksum)


def session(databases: Databases, group: int = COORDINATOR, *, autocommit: bool = True) -> Connection:
    """A superuser's session in which values have one text everywhere.

    :raises Unavailable: the group's primary does not answer
    """
    connection = databases.connect(group, autocommit=True, application_name="pgherd copy")
    connection.execute(SETTINGS.encode())
    connection.autocommit = autocommit
    return connection


def columns(connection: Connection, tables: Sequence[TableLayout]) -> dict[str, list[str]]:
    """The columns of each table that have values of their own, quoted."""
    rows = connection.execute(
        _COLUMNS.encode().replace(b"%I.%I", b"%%I.%%I"), [[table.name for table in tables]]
    )
    return {name: [column for column in found if column] for name, found in rows.fetchall()}


def total(databases: Databases, piece: Piece, listed: Sequence[str]) -> Total:
    """What is in one place."""
    with session(databases, piece.group) as connection:
        query = (
            f"SELECT count(*), coalesce(sum(hashtextextended(ROW({', '.join(listed)})::text, 0)::numeric), 0)"
            f" FROM {piece.relation}"
        )
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return Total(int(row[0]), Decimal(row[1]))


def known(connection: Connection) -> dict[tuple[str, str], Total]:
    """The pieces that are at the destination."""
    rows = connection.execute(
        "SELECT table_name, relation, row_count, checksum FROM pgherd.copy_piece"
    ).fetchall()
    return {(table, relation): Total(count, checksum) for table, relation, count, checksum in rows}


def give_up(connection: Connection, databases: Databases, table: TableLayout, listed: Sequence[str]) -> bool:
    """Forget what was copied of a table that has changed at the source, and empty it.

    :param table: as it is at the destination
    :return: False: it has other rows than were copied, and is left as it is
    """
    itself = f"ONLY {table.name}"
    place = itself if any(piece.relation == itself for piece in table.pieces) else table.name
    with connection.transaction():
        # First of all: whoever was killed may still be writing there, and notes it when it ends.
        connection.execute(f"LOCK TABLE {place} IN EXCLUSIVE MODE".encode())
        noted = sum(
            (amount for (name, _), amount in known(connection).items() if name == table.name), Total()
        )
        there = sum((total(databases, piece, listed) for piece in table.pieces), Total())
        if there.rows and there != noted:
            return False
        connection.execute("DELETE FROM pgherd.copy_piece WHERE table_name = %s", [table.name])
        connection.execute(f"TRUNCATE {place}".encode())
    return True


def without_key(databases: Databases, tables: Sequence[TableLayout]) -> list[str]:
    """Distributed tables with rows that Citus has no place for, one line each."""
    return [
        f"{table.name} has rows without a value in {table.key}, its distribution column: give them one, or delete them"
        for table in tables
        if table.kind == "distributed" and any(_lacks_key(databases, table, piece) for piece in table.pieces)
    ]


def _lacks_key(databases: Databases, table: TableLayout, piece: Piece) -> bool:
    with session(databases, piece.group) as connection:
        key = sql.Identifier(str(table.key)).as_string(connection)
        query = f"SELECT EXISTS (SELECT FROM {piece.relation} WHERE {key} IS NULL)"
        return connection.execute(query.encode()).fetchone() == (True,)


def copy(
    source: Databases,
    destination: Databases,
    table: TableLayout,
    piece: Piece,
    listed: Sequence[str],
    abort: Event,
) -> Total:
    """Bring one piece over, unless it is there.

    :param abort: set when this is to be left off
    :raises Unavailable: a server went away; it is not known whether the piece is there
    :raises PgherdError: the destination refuses it, or it changed meanwhile
    """
    expected = total(source, piece, listed)
    with session(source, piece.group) as reader, session(destination) as writer, writer.transaction():
        if not _record(writer, table.name, piece.relation, expected):
            if known(writer).get((table.name, piece.relation)) != expected:
                raise PgherdError(f"{table.name} changed since it was copied: run the command again")
            return expected
        if not expected.rows:
            return expected
        out = f"COPY (SELECT {', '.join(listed)} FROM {piece.relation}) TO STDOUT"
        into = f"COPY {table.name} ({', '.join(listed)}) FROM STDIN"
        if _pipe(reader, out, writer, into, abort) != expected.rows:
            raise PgherdError(f"{table.name} changed while it was copied: run the command again")
    return expected


def _record(writer: Connection, table: str, relation: str, expected: Total) -> bool:
    done = writer.execute(
        "INSERT INTO pgherd.copy_piece VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [table, relation, expected.rows, expected.checksum],
    )
    return done.rowcount == 1


def _pipe(reader: Connection, out: str, writer: Connection, into: str, abort: Event) -> int:
    cursor = writer.cursor()
    with reader.cursor().copy(out.encode()) as reading, cursor.copy(into.encode()) as writing:
        for block in reading:
            if abort.is_set():
                raise PgherdError("the copy was called off")
            writing.write(block)
    return cursor.rowcount


def sequences(source: Connection, destination: Connection) -> int:
    """Let every sequence go on where the source's is; returns how many."""
    names = source.execute(
        "SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences"
        f" WHERE {OF_USERS.format('schemaname')} ORDER BY 1".encode()
    ).fetchall()
    for (name,) in names:
        row = source.execute(f"SELECT last_value, is_called FROM {name}".encode()).fetchone()
        assert row is not None
        destination.execute("SELECT setval(%s::regclass, %s, %s)", [name, *row])
    return len(names)


def differences(expected: Mapping[str, Total], found: Mapping[str, Total]) -> list[str]:
    """Tables whose rows are not the same, one line each."""
    lines = []
    for table, wanted in expected.items():
        there = found.get(table, Total())
        if there.rows != wanted.rows:
            lines.append(f"{table}: {wanted.rows} rows at the source, {there.rows} at the destination")
        elif there.checksum != wanted.checksum:
            lines.append(f"{table}: {wanted.rows} rows on both sides, but their checksums differ")
    return lines


def is_lost(error: BaseException) -> bool:
    """Whether a connection broke, rather than a server refused."""
    is_full = isinstance(error, psycopg.errors.DiskFull)  # each attempt would fill it anew
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not is_full
