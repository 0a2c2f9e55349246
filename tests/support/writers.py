"""Writers and readers that keep a journal, and the audit that no acknowledged row was lost or doubled."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

#: SQLSTATEs after which the same transaction may simply be tried again: serialisation failures and deadlocks, server
#: shutting down or starting, read-only (a primary that has just been demoted), lock timeout on a segment.
RETRY = {
    "40001",
    "40P01",
    "57P01",
    "57P02",
    "57P03",
    "25006",
    "55P03",
    "08000",
    "08001",
    "08003",
    "08006",
    "53300",
}


@dataclass
class Journal:
    """What writers were told."""

    acknowledged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """the connection broke during the commit: the row may be there or not"""
    errors: list[str] = field(default_factory=list)
    """what a reconnect and a retry don't explain"""
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(when, seconds) of each acknowledged write, retries included"""


def make_table(connection: psycopg.Connection[Any], name: str = "ledger") -> None:
    """A distributed table for :func:`writers`."""
    connection.execute(
        f"CREATE TABLE {name} (id uuid PRIMARY KEY, writer int NOT NULL, n int NOT NULL, note text)"
    )
    connection.execute(f"SELECT create_distributed_table('{name}', 'id')")


def any_key() -> str:
    """A key of whatever shard."""
    return str(uuid.uuid4())


class KeysOn:
    """Draws keys of one segment's shards only: an outage of that segment then shows in every write.

    :param segment: its name, as it is part of its members' host names
    """

    BATCH = 2000

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], segment: str, table: str = "ledger"
    ) -> None:
        self._connect = connect
        self._table = table
        self._guard = threading.Lock()
        with connect() as connection:
            rows = connection.execute(
                "SELECT shardid FROM citus_shards WHERE table_name = %s::regclass AND nodename ~ %s",
                [table, rf"{segment}(\D|$)"],
            ).fetchall()
        self._shards = [row[0] for row in rows]
        assert self._shards, f"no shard of {table} is on {segment}"
        self._drawn: list[str] = []

    def __call__(self) -> str:
        with self._guard:
            while not self._drawn:
                self._drawn = self._draw()
            return self._drawn.pop()

    def _draw(self) -> list[str]:
        query = (
            "SELECT key::text FROM (SELECT gen_random_uuid() AS key FROM generate_series(1, %s)) AS drawn"
            " WHERE get_shard_id_for_distribution_column(%s::regclass, key) = ANY (%s)"
        )
        try:
            with self._connect() as connection:
                return [row[0] for row in connection.execute(query, [self.BATCH, self._table, self._shards])]
        except psycopg.Error:  # the coordinator is away; writers would wait for it as well
            time.sleep(0.05)
            return []


@contextmanager
def writers(
    connect: Callable[[], psycopg.Connection[Any]],
    count: int = 3,
    table: str = "ledger",
    make_key: Callable[[], str] = any_key,
) -> Iterator[Journal]:
    """Insert rows in ``count`` threads until the block ends; acknowledged rows go into the journal."""
    journal, stop = Journal(), threading.Event()
    threads = [
        threading.Thread(target=_write, args=(connect, number, table, make_key, journal, stop), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield journal
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def _write(
    connect: Callable[[], psycopg.Connection[Any]],
    number: int,
    table: str,
    make_key: Callable[[], str],
    journal: Journal,
    stop: threading.Event,
) -> None:
    connection: psycopg.Connection[Any] | None = None
    for n in itertools.count():
        if stop.is_set():
            break
        key, began = make_key(), time.monotonic()
        while not stop.is_set():
            try:
                connection = connection or connect()
                connection.execute(f"INSERT INTO {table} VALUES (%s, %s, %s, 'x')", [key, number, n])
            except psycopg.Error as error:
                connection = _after(error, connection, key, journal)
                time.sleep(0.05)
                if key in journal.unknown:
                    break  # never write an uncertain row again: that might double it
            else:
                journal.acknowledged.append(key)
                journal.latencies.append((began, time.monotonic() - began))
                break
        time.sleep(0.002)
    if connection is not None:
        connection.close()


def _after(
    error: psycopg.Error, connection: psycopg.Connection[Any] | None, key: str, journal: Journal
) -> psycopg.Connection[Any] | None:
    """What a broken write means. Returns the connection if it can still be used."""
    if connection is None:
        return None
    if connection.closed or connection.broken:
        journal.unknown.append(key)
        return None
    if error.sqlstate not in RETRY and not isinstance(error, psycopg.OperationalError):
        journal.errors.append(f"{error.sqlstate}: {error}")
    connection.close()
    # The coordinator says that the statement failed; a segment may still have committed its part.
    journal.unknown.append(key)
    return None


def audit(connection: psycopg.Connection[Any], journal: Journal, table: str = "ledger") -> None:
    """Every acknowledged row is there, nothing twice, nothing from nowhere, no unexplained error."""
    rows = [str(row[0]) for row in connection.execute(f"SELECT id FROM {table}")]
    missing = set(journal.acknowledged) - set(rows)
    strangers = set(rows) - set(journal.acknowledged) - set(journal.unknown)
    assert not missing, f"{len(missing)} acknowledged rows are lost, for example {sorted(missing)[:3]}"
    assert len(rows) == len(set(rows)), f"{len(rows) - len(set(rows))} rows are doubled"
    assert not strangers, f"{len(strangers)} rows that nobody wrote"
    assert not journal.errors, journal.errors[:5]
