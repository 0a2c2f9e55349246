"""Writers that keep a journal of what was acknowledged, and a reader, while a cluster is hurt and changed.

The data: `account` (one row per key, with a counter) and `entry` (one row per write), colocated by key. Each
transaction inserts one entry with an id that is never used again and adds one to the key's counter; both rows are on
one segment, so the transaction is atomic there. Afterwards every acknowledged entry must be present exactly once, and
every counter must equal the number of its entries.

What a writer does when a transaction fails is what a careful application does: it connects again, looks whether the
row is there (a commit whose outcome is unknown may have happened) and, if not, repeats the whole transaction. An error
counts as *explained* if that is the documented answer to it: a lost connection, a server shutting down or starting,
a primary that became a standby, a serialization failure, a deadlock.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import errors

from bench.support import Connection, RunError, await_true, percentile

KEYS_PER_WRITER = 64
RETRY_SECONDS = 0.02
GIVE_UP_SECONDS = 90

LAST_PROCESSES_SECONDS = 1.0
"""for how long after its postmaster's death a server's sessions may go on"""

SCHEMA = """
CREATE TABLE account (key int PRIMARY KEY, entries bigint NOT NULL DEFAULT 0);
CREATE TABLE entry (key int NOT NULL, id bigint NOT NULL, note text NOT NULL, PRIMARY KEY (key, id));
SELECT create_distributed_table('account', 'key');
SELECT create_distributed_table('entry', 'key', colocate_with => 'account');
"""


@dataclass(frozen=True)
class Write:
    """One acknowledged transaction; times are ``time.monotonic()``, in seconds."""

    key: int
    id: int
    begun: float
    ended: float
    attempts: int
    connected: float
    """when the connection that brought it to its end was made"""

    @property
    def milliseconds(self) -> float:
        """from its first begin to its acknowledgement, with all retries"""
        return (self.ended - self.begun) * 1000


@dataclass(frozen=True)
class Refusal:
    """One error that reached a writer or reader."""

    at: float
    message: str
    explained: bool


@dataclass
class Journal:
    """What happened. Threads only append, so it can be read at any time."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Write] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def between(self, begun: float, ended: float) -> list[Write]:
        """Writes that were under way in a period."""
        return [write for write in list(self.writes) if write.ended >= begun and write.begun <= ended]

    def reads_between(self, begun: float, ended: float) -> list[Write]:
        """Reads that were under way in a period."""
        return [read for read in list(self.reads) if read.ended >= begun and read.begun <= ended]

    def refused_between(self, begun: float, ended: float) -> list[Refusal]:
        """Errors in a period."""
        return [refusal for refusal in list(self.refusals) if begun <= refusal.at <= ended]

    def unexplained(self) -> list[Refusal]:
        """Errors that a reconnect and a retry do not explain."""
        return [refusal for refusal in list(self.refusals) if not refusal.explained]

    def first_write_since(
        self, begun: float, keys: Collection[int], within: float, *, reconnected: bool = False
    ) -> float:
        """Seconds from ``begun`` to the acknowledgement of the first write to one of ``keys`` that began later.

        Writes that had begun before count too if they were retried: their waiting is what is being measured.

        :param reconnected: it must have come over a connection that was made later, too
        :raises RunError: there was none in time
        """
        found: list[float] = []

        def look() -> bool:
            found[:] = [
                write.ended
                for write in self.between(begun, float("inf"))
                if write.key in keys
                and write.ended > begun
                and (write.begun >= begun or write.attempts > 1)
                and (write.connected >= begun or not reconnected)
            ]
            return bool(found)

        await_true(look, within, "a write after a failover", every=0.01)
        return min(found) - begun

    def served_again_after(self, killed: float, keys: Collection[int]) -> float:
        """Seconds from ``killed`` to the end of the longest silence about ``keys`` that began then, or a moment later.

        A killed server's last processes may still acknowledge what comes to them: the first write is not the answer.
        Called once the group is whole again.
        """
        acknowledged = sorted(
            each.ended for each in list(self.writes) if each.key in keys and each.ended > killed
        )
        silences = zip([killed, *acknowledged], acknowledged, strict=False)
        _, end = max(
            (silence for silence in silences if silence[0] - killed <= LAST_PROCESSES_SECONDS),
            key=lambda silence: silence[1] - silence[0],
        )
        return end - killed


def is_explained(error: psycopg.Error) -> bool:
    """Whether connecting again and trying again is the documented answer to an error."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] == "08" or state[:4] == "57P0" or state in ("40001", "40P01", "25006", "HV00N")


class _Client(threading.Thread):
    """A thread with a connection that it renews whenever it breaks."""

    def __init__(self, dsn: str, journal: Journal, stopping: threading.Event, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._dsn = dsn
        self._journal = journal
        self._stopping = stopping
        self._connection: Connection | None = None
        self._connected = 0.0

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=2, application_name=self.name
            )
            self._connected = time.monotonic()
        return self._connection

    def _refused(self, error: psycopg.Error, explained: bool) -> None:
        message = (
            f"{error.sqlstate or 'connection'}: {str(error).strip().splitlines()[0] if str(error) else '?'}"
        )
        self._journal.refusals.append(Refusal(time.monotonic(), message, explained))
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        time.sleep(RETRY_SECONDS)

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Writer(_Client):
    """Writes until it is told to stop; what it has begun it brings to an end first."""

    def __init__(
        self, number: int, dsn: str, journal: Journal, stopping: threading.Event, pause_seconds: float
    ) -> None:
        super().__init__(dsn, journal, stopping, f"writer-{number}")
        self._number = number
        self._pause = pause_seconds
        self._keys = keys_of(number)
        self._random = random.Random(number)
        self.gave_up = False

    def run(self) -> None:
        """Thread body."""
        sequence = 0
        while not self._stopping.is_set() and not self.gave_up:
            sequence += 1
            self._write(self._random.choice(self._keys), self._number * 1_000_000_000 + sequence)
            if self._pause:
                self._stopping.wait(self._pause)
        self._leave()

    def _write(self, key: int, id: int) -> None:
        begun = time.monotonic()
        attempts = 0
        while time.monotonic() - begun < GIVE_UP_SECONDS:
            attempts += 1
            try:
                connection = self._connect()
                if attempts == 1 or not self._is_there(connection, key, id):
                    self._transaction(connection, key, id)
            except errors.UniqueViolation as error:
                # on a retry: the attempt before was still being committed when we looked; look again
                self._refused(error, explained=attempts > 1)
            except psycopg.Error as error:
                self._refused(error, is_explained(error))
            else:
                self._journal.writes.append(
                    Write(key, id, begun, time.monotonic(), attempts, self._connected)
                )
                return
        self.gave_up = True

    @staticmethod
    def _is_there(connection: Connection, key: int, id: int) -> bool:
        query = "SELECT FROM entry WHERE key = %s AND id = %s"
        return connection.execute(query, (key, id)).fetchone() is not None

    @staticmethod
    def _transaction(connection: Connection, key: int, id: int) -> None:
        with connection.transaction():
            connection.execute("INSERT INTO entry VALUES (%s, %s, %s)", (key, id, f"entry {id}"))
            connection.execute("UPDATE account SET entries = entries + 1 WHERE key = %s", (key,))


class Reader(_Client):
    """Reads one counter after another."""

    def __init__(self, writers: int, dsn: str, journal: Journal, stopping: threading.Event) -> None:
        super().__init__(dsn, journal, stopping, "reader")
        self._keys = all_keys(writers)
        self._random = random.Random(0)

    def run(self) -> None:
        """Thread body."""
        while not self._stopping.wait(0.01):
            key = self._random.choice(self._keys)
            begun, attempts = time.monotonic(), 0
            while not self._stopping.is_set():
                attempts += 1
                try:
                    self._connect().execute("SELECT entries FROM account WHERE key = %s", (key,)).fetchone()
                except psycopg.Error as error:
                    self._refused(error, is_explained(error))
                else:
                    self._journal.reads.append(
                        Write(key, 0, begun, time.monotonic(), attempts, self._connected)
                    )
                    break
        self._leave()


def keys_of(writer: int) -> list[int]:
    """Each writer has keys of its own: writers never wait for each other's rows."""
    return list(range(writer * KEYS_PER_WRITER, (writer + 1) * KEYS_PER_WRITER))


def all_keys(writers: int) -> list[int]:
    """The keys of all writers."""
    return [key for writer in range(writers) for key in keys_of(writer)]


class Workload:
    """Writers and a reader, from :meth:`start` to :meth:`stop`.

    :param pause_seconds: how long each writer waits between two transactions
    """

    def __init__(self, dsn: str, writers: int, pause_seconds: float) -> None:
        self.journal = Journal()
        self.keys = all_keys(writers)
        self._dsn = dsn
        self._stopping = threading.Event()
        self._writers = [Writer(n, dsn, self.journal, self._stopping, pause_seconds) for n in range(writers)]
        self._reader = Reader(writers, dsn, self.journal, self._stopping)

    def prepare(self, connection: Connection) -> None:
        """Make the tables."""
        connection.execute(SCHEMA)
        with connection.cursor() as cursor, cursor.copy("COPY account (key) FROM STDIN") as copy:
            for key in self.keys:
                copy.write_row((key,))

    def start(self) -> None:
        """Let them run."""
        for thread in (*self._writers, self._reader):
            thread.start()

    def stop(self, within: float = GIVE_UP_SECONDS) -> None:
        """Let every writer finish what it has begun.

        :raises RunError: one could not
        """
        self._stopping.set()
        deadline = time.monotonic() + within
        for thread in (*self._writers, self._reader):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if any(writer.gave_up or writer.is_alive() for writer in self._writers):
            last = self.journal.refusals[-1].message if self.journal.refusals else "no error was seen"
            raise RunError(f"a write could not be brought to its end: {last}")

    def keys_on(self, connection: Connection, segment: str) -> list[int]:
        """The keys whose rows are on a segment (``segment-1``), as the catalogue says."""
        query = """
            SELECT k.key FROM unnest(%s::int[]) AS k (key)
              JOIN citus_shards s ON s.shardid = get_shard_id_for_distribution_column('entry', k.key)
             WHERE s.table_name = 'entry'::regclass
               AND EXISTS (SELECT FROM pgherd.segment_configuration c
                            WHERE c.group_name = %s AND c.port = s.nodeport)
        """
        rows = connection.execute(query, (self.keys, segment)).fetchall()
        if not rows:
            raise RunError(f"none of the writers' keys is on {segment}")
        return [key for (key,) in rows]


@dataclass(frozen=True)
class Stalls:
    """How much longer than normal something took, in milliseconds."""

    p50: float
    p99: float
    max: float
    normal: float
    """the median of a quiet period"""
    count: int


def stalls(writes: Iterable[Write], quiet: Iterable[Write]) -> Stalls:
    """The time that each write took above the median of the quiet ones; 0 for those that were faster."""
    normal = percentile([write.milliseconds for write in quiet], 50)
    longer = [max(0.0, write.milliseconds - normal) for write in writes]
    return Stalls(
        percentile(longer, 50), percentile(longer, 99), max(longer, default=0.0), normal, len(longer)
    )


@dataclass(frozen=True)
class Audit:
    """What the tables hold, against what was acknowledged."""

    acknowledged: int
    lost: int
    duplicated: int
    unacknowledged: int
    """rows that nobody was promised: 0 once all writers have finished"""
    wrong_counters: int

    @property
    def is_clean(self) -> bool:
        """Every promise kept, nothing twice."""
        return not (self.lost or self.duplicated or self.unacknowledged or self.wrong_counters)


def audit(connection: Connection, writes: Sequence[Write]) -> Audit:
    """Compare every entry and every counter with the journal."""
    present = Counter((key, id) for key, id in connection.execute("SELECT key, id FROM entry"))
    counters: dict[int, int] = dict(connection.execute("SELECT key, entries FROM account").fetchall())
    by_key = Counter(key for key, _ in present.elements())
    promised = {(write.key, write.id) for write in writes}
    return Audit(
        acknowledged=len(promised),
        lost=len(promised - present.keys()),
        duplicated=sum(count - 1 for count in present.values()),
        unacknowledged=len(present.keys() - promised),
        wrong_counters=sum(counters.get(key, 0) != by_key[key] for key in counters.keys() | by_key.keys()),
    )
