"""Copying one leaf: a COPY pipe from the source server through this process to the target server.

Rows are not looked at: blocks of COPY data go from one socket to the other. The binary format is used where both
servers certainly agree on it (built-in types have the same oids everywhere, the user's own types do not), text
elsewhere. The target's leaf is truncated in the same transaction, so that a copy can be repeated and its rows
can be written frozen: nobody has to rewrite them later.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from psycopg import pq, sql

from pgherd.engine.fdw.move_catalog import Shard
from pgherd.errors import PgherdError
from pgherd.postgres.connections import Connection

BLOCK = 256 * 1024
"""bytes collected before they are handed on"""

REPORT_EVERY = 0.2
"""seconds between two reports (and between two questions whether to go on)"""

_FIRST_USER_OID = 16384

Progress = Callable[[int], None]
"""called with the bytes copied so far, a few times a second; may raise to stop the copy"""


@dataclass(frozen=True)
class Columns:
    """The columns of a leaf that carry data, and whether the binary format does for them."""

    names: tuple[str, ...]
    binary: bool


def leaf(shard: Shard) -> sql.Identifier:
    """The leaf's name, quoted."""
    return sql.Identifier("pgherd_shards", shard.name)


def columns_of(source: Connection, shard: Shard) -> Columns:
    """What to copy: generated columns are computed again, dropped ones are gone.

    Names, not positions: the leaves of one table may have their columns in different orders.
    """
    rows = source.execute(
        "SELECT a.attname, t.oid < %s AND t.typsend <> 0 AND t.typreceive <> 0"
        " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
        " ORDER BY a.attnum",
        [_FIRST_USER_OID, leaf(shard).as_string(source)],
    ).fetchall()
    return Columns(tuple(row[0] for row in rows), all(row[1] for row in rows))


def copy_leaf(source: Connection, target: Connection, shard: Shard, progress: Progress) -> int:
    """Copy all rows of one leaf, in a transaction of the target's; returns the bytes that went over.

    :param source: in the transaction whose snapshot is to be copied
    """
    columns = columns_of(source, shard)
    pattern = "COPY {leaf} ({columns}) {way} (FORMAT {format}{more})"

    def command(way: str, more: str) -> sql.Composed:
        return sql.SQL(pattern).format(
            leaf=leaf(shard),
            columns=sql.SQL(", ").join(map(sql.Identifier, columns.names)),
            way=sql.SQL(way),
            format=sql.SQL("binary" if columns.binary else "text"),
            more=sql.SQL(more),
        )

    done = 0
    with target.transaction(), target.cursor() as cursor:
        target.execute(sql.SQL("TRUNCATE {}").format(leaf(shard)))
        with cursor.copy(command("FROM STDIN", ", FREEZE")) as sink:
            for block in _blocks(source, command("TO STDOUT", "")):
                if block:
                    sink.write(block)
                    done += len(block)
                progress(done)
    return done


def _blocks(source: Connection, command: sql.Composed) -> Iterator[bytes]:
    """The data in blocks; an empty one whenever nothing came for a while.

    psycopg's own reader goes through several layers per row; this asks libpq directly.
    """
    pgconn = source.pgconn
    pgconn.send_query(command.as_bytes(source))
    while pgconn.flush() or pgconn.is_busy():
        yield from _wait(pgconn)
    first = pgconn.get_result()
    if first is None or first.status != pq.ExecStatus.COPY_OUT:
        raise PgherdError(f"copying from the source failed: {_message(pgconn, first)}")
    rows: list[bytes] = []
    size = 0
    while True:
        length, data = pgconn.get_copy_data(1)
        if length > 0:
            rows.append(bytes(data))
            size += length
        if size >= BLOCK or length < 0:
            yield b"".join(rows)
            rows.clear()
            size = 0
        if length == 0:
            yield from _wait(pgconn)
        elif length < 0:
            break
    while (last := pgconn.get_result()) is not None:
        if last.status != pq.ExecStatus.COMMAND_OK:
            raise PgherdError(f"copying from the source failed: {_message(pgconn, last)}")


def _wait(pgconn: pq.abc.PGconn) -> Iterator[bytes]:
    readable, _, _ = select.select([pgconn.socket], [], [], REPORT_EVERY)
    if not readable:
        yield b""
    pgconn.consume_input()


def _message(pgconn: pq.abc.PGconn, result: pq.abc.PGresult | None) -> str:
    text = result.error_message if result else pgconn.error_message
    return text.decode("utf-8", "replace").strip() or "no answer"


def throttled(report: Progress, check: Callable[[], None]) -> Progress:
    """A progress function that may be called all the time and acts a few times a second."""
    last = time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY:
            last = now
            check()
            report(done)

    return progress
