"""A database goes over from one cluster to another: definitions, distribution, rows, sequences.

The destination remembers how far it is (``pgherd.copy``, ``pgherd.copy_piece``), each step in the transaction that
does it, so a copy that was killed goes on where it was. While it runs the source's tables are locked against writers;
readers go on. A copy that goes on later looks whether what is there already is still what the source has, and does
anew what is not. Counts and checksums of all tables are compared before anything is made that acts on rows: until the
last transaction, which makes constraints and triggers and ends the copy, any table can be emptied and filled anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgherd.engine.base import Engine, Piece, TableLayout
from pgherd.errors import BadInput, PgherdError, Unavailable, one_line
from pgherd.faults import crash_point
from pgherd.model.topology import COORDINATOR
from pgherd.operations import copy_definitions, copy_rows, store
from pgherd.operations.copy_definitions import Definitions
from pgherd.operations.copy_rows import Total
from pgherd.postgres.connections import Connection, Databases, system_of

LOCK_MS = 500
"""how long writers at the source may queue behind one attempt to lock them out"""
LOCK_SECONDS = 60.0
ATTEMPTS = 6
"""how often one piece is tried while servers are away"""
PAUSE_SECONDS = 2.0
_ONE_AT_A_TIME = 0x636F7079


@dataclass(frozen=True)
class Side:
    """A cluster that takes part."""

    name: str
    databases: Databases
    engine: Engine


@dataclass(frozen=True)
class Summary:
    """What was copied."""

    tables: int
    rows: int
    sequences: int


Tell = Callable[[str, int, int], None]
"""told what is happening, and how many pieces of how many are over"""


def copy(source: Side, destination: Side, pg_dump: Path, tell: Tell, *, parallel: int = 2) -> Summary:
    """Copy everything, or go on with it.

    :param pg_dump: the program
    :raises BadInput: this can't be copied there
    :raises Unavailable: a server is away; worth another try
    :raises PgherdError: the destination refuses something, or what came over is not what was sent
    """
    require_engines(source, destination)
    for side in (source, destination):
        if not side.engine.is_initialised(COORDINATOR):
            raise Unavailable(f"{side.name} is not ready yet: 'pgherd status {side.name}' says why")
        if (running := store.current(side.databases)) is not None:
            raise BadInput(f"{side.name}: {running.kind} is running: wait for it, or cancel it")
    try:
        with _alone(destination) as desk, _frozen(source, tell) as (frozen, tables):
            return _Copy(source, destination, desk, frozen, tables, tell, parallel).run(pg_dump)
    except psycopg.errors.DiskFull as error:
        raise PgherdError(
            f"a disk is full ({one_line(error)}): make room there, and run the command again: it goes on"
        ) from error
    except (Unavailable, psycopg.OperationalError) as error:
        raise Unavailable(
            f"a server is away ({one_line(error)}): run the command again, it goes on"
        ) from error
    except psycopg.Error as error:
        raise PgherdError(f"{destination.name} refuses it: {one_line(error)}") from error


def require_engines(source: Side, destination: Side) -> None:
    """:raises BadInput: copies go from the engine fdw to the engine citus"""
    if source.name == destination.name:
        raise BadInput(f"{source.name} can't be copied onto itself: name another cluster")
    for side, engine in ((source, "fdw"), (destination, "citus")):
        if side.engine.name != engine:
            raise BadInput(
                f"{side.name} has the engine {side.engine.name}: copies go from an fdw cluster to a citus cluster"
            )


@contextmanager
def _alone(destination: Side) -> Iterator[Connection]:
    """A session at the destination's coordinator, one copy at a time."""
    with copy_rows.session(destination.databases) as desk:
        row = desk.execute("SELECT pg_try_advisory_lock(%s)", [_ONE_AT_A_TIME]).fetchone()
        if row != (True,):
            raise BadInput(f"another copy into {destination.name} is running: wait for it")
        yield desk


@contextmanager
def _frozen(source: Side, tell: Tell) -> Iterator[tuple[Connection, Sequence[TableLayout]]]:
    """A session at the source's coordinator that keeps writers and definitions at rest, and the tables for which it
    does."""
    with copy_rows.session(source.databases, autocommit=False) as connection:
        connection.execute("LOCK TABLE pgherd.ddl_barrier IN SHARE MODE")
        deadline = time.monotonic() + LOCK_SECONDS
        while (tables := source.engine.layout()) and not _locked(connection, tables):
            tell(f"waiting for writers of {source.name} to end their transactions", 0, 0)
            if time.monotonic() > deadline:
                raise PgherdError(
                    f"writers of {source.name} were never at rest within {LOCK_SECONDS:.0f} s: end transactions that"
                    " stay open, and run the command again"
                )
            time.sleep(0.2)
        connection.execute("SET LOCAL lock_timeout TO 0")
        yield connection, tables
        connection.rollback()


def _locked(connection: Connection, tables: Sequence[TableLayout]) -> bool:
    """Whether nobody can write to them any more; not if one is written to, or gone by now."""
    # A distributed table's shards are foreign tables, which can't be locked, nor written to but through it.
    names = [("ONLY " if each.kind == "distributed" else "") + each.name for each in tables]
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout TO {LOCK_MS}".encode())
            connection.execute(f"LOCK TABLE {', '.join(names)} IN EXCLUSIVE MODE".encode())
    except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
        return False
    return True


class _Copy:
    """One run of the command."""

    def __init__(
        self,
        source: Side,
        destination: Side,
        desk: Connection,
        frozen: Connection,
        tables: Sequence[TableLayout],
        tell: Tell,
        parallel: int,
    ) -> None:
        self._source = source
        self._destination = destination
        self._desk = desk
        self._frozen = frozen
        self._tell = tell
        self._parallel = parallel
        self._tables = tables
        self._abort = threading.Event()
        self._columns = copy_rows.columns(frozen, self._tables)

    def run(self, pg_dump: Path) -> Summary:
        definitions = copy_definitions.read(self._source.databases, self._frozen, self._tables, pg_dump)
        self._require_no_more("run the command again")
        if not self._is_begun(definitions):
            self._begin(definitions)
        sent = self._rows()
        made = copy_rows.sequences(self._frozen, self._desk)
        self._compare(sent)
        self._finish(definitions)
        return Summary(len(self._tables), sum(each.rows for each in sent.values()), made)

    def _require_no_more(self, way_out: str) -> None:
        """:raises PgherdError: the source has tables by now to which anybody can write, and which nobody copies"""
        known = {table.name for table in self._tables}
        if more := [table.name for table in self._source.engine.layout() if table.name not in known]:
            raise PgherdError(
                f"{', '.join(more)}: made in {self._source.name} while it was copied: {way_out}"
            )

    # definitions

    @property
    def _anew(self) -> str:
        return f"to copy anew, delete {self._destination.name} and create it again"

    def _is_begun(self, definitions: Definitions) -> bool:
        """Whether there is a copy to go on with; if not, nothing is in the way of one.

        :raises BadInput: the destination is not for this copy
        """
        there = self._destination.name
        row = self._desk.execute("SELECT source, definitions, phase FROM pgherd.copy").fetchone()
        if row is None:
            self._require_empty()
            problems = copy_definitions.problems(self._frozen, self._desk, definitions)
            problems += copy_rows.without_key(self._source.databases, self._tables)
            if problems:
                raise BadInput(*problems)
            return False
        source, digest, phase = row
        anew = self._anew
        if source != system_of(self._frozen):
            raise BadInput(f"{there} holds a copy of another cluster: {anew}")
        if phase == "done":
            raise BadInput(f"{there} holds a complete copy of {self._source.name} already: {anew}")
        if digest != definitions.digest:
            raise BadInput(f"definitions in {self._source.name} changed since the copy was begun: {anew}")
        if phase != "rows":
            raise BadInput(f"{there} holds a copy that another version of pgherd began: {anew}")
        return True

    def _require_empty(self) -> None:
        if others := self._destination.engine.layout():
            raise BadInput(
                f"{self._destination.name} is not empty, it has {others[0].name}: copies go into a new cluster"
            )

    def _begin(self, definitions: Definitions) -> None:
        self._tell("making types, tables and functions, and distributing", 0, 0)
        with self._desk.transaction():
            copy_definitions.make(self._desk, self._destination.databases.owner, definitions, self._tables)
            self._desk.execute(
                "INSERT INTO pgherd.copy (source, definitions, phase) VALUES (%s, %s, 'rows')",
                [system_of(self._frozen), definitions.digest],
            )
            crash_point("copy:definitions:made")
        crash_point("copy:definitions:done")

    def _finish(self, definitions: Definitions) -> None:
        """Make what acts on rows, and call the copy complete, at once: a copy that goes on never meets any of it."""
        self._tell("making indexes and constraints", 0, 0)
        with self._desk.transaction():
            copy_definitions.run(self._desk, self._destination.databases.owner, definitions.after)
            self._require_still_frozen()
            self._desk.execute("UPDATE pgherd.copy SET phase = 'done', done_at = clock_timestamp()")
            crash_point("copy:constraints:made")
        crash_point("copy:constraints:done")

    # rows

    def _rows(self) -> dict[str, Total]:
        """Bring every piece over; returns what the source has in each table."""
        known = self._still_right(copy_rows.known(self._desk))
        pieces = [(table, piece) for table in self._tables for piece in table.pieces]
        sent = {table.name: Total() for table in self._tables}
        for (name, _relation), amount in known.items():
            sent[name] += amount
        waiting = [each for each in pieces if (each[0].name, each[1].relation) not in known]
        done = len(pieces) - len(waiting)
        for table, amount in self._each(waiting):
            sent[table.name] += amount
            done += 1
            self._tell(f"{table.name}: {sent[table.name].rows:,} rows", done, len(pieces))
            crash_point(f"copy:piece-{done}:done")
        return sent

    def _still_right(self, known: Mapping[tuple[str, str], Total]) -> dict[tuple[str, str], Total]:
        """What an earlier run brought over, without the tables that were written to at the source since.

        :raises BadInput: such a table has other rows at the destination than were brought
        """
        if not known:
            return {}
        self._tell("looking whether what was copied before is still right", 0, 0)
        at = {(table.name, piece.relation): piece for table in self._tables for piece in table.pieces}
        changed = {
            name
            for (name, relation), amount in known.items()
            if (piece := at.get((name, relation))) is None or self._now(name, piece) != amount
        }
        there = self._destination
        tables = {table.name: table for table in there.engine.layout()} if changed else {}
        for name in sorted(changed):
            if name not in tables:
                raise BadInput(f"{name} is gone from {there.name}: {self._anew}")
            if not copy_rows.give_up(self._desk, there.databases, tables[name], self._columns[name]):
                raise BadInput(
                    f"{name} of {there.name} has other rows than were copied, somebody else wrote there: {self._anew}"
                )
        return {key: amount for key, amount in known.items() if key[0] not in changed}

    def _now(self, name: str, piece: Piece) -> Total:
        return copy_rows.total(self._source.databases, piece, self._columns[name])

    def _each(self, waiting: Sequence[tuple[TableLayout, Piece]]) -> Iterator[tuple[TableLayout, Total]]:
        """Several at a time, in order of the tables."""
        queue = list(reversed(waiting))
        with ThreadPoolExecutor(self._parallel, thread_name_prefix="copy") as pool:
            running: dict[Future[Total], TableLayout] = {}
            while queue or running:
                while queue and len(running) < self._parallel:
                    table, piece = queue.pop()
                    running[pool.submit(self._piece, table, piece)] = table
                try:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
                except BaseException:
                    self._abort.set()  # the others need not come to their ends
                    raise

    def _piece(self, table: TableLayout, piece: Piece) -> Total:
        listed = self._columns[table.name]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return copy_rows.copy(
                    self._source.databases, self._destination.databases, table, piece, listed, self._abort
                )
            except (Unavailable, psycopg.Error) as error:
                lost = isinstance(error, Unavailable) or copy_rows.is_lost(error)
                if not lost or attempt == ATTEMPTS:
                    raise
                if self._abort.wait(PAUSE_SECONDS):
                    raise
        raise AssertionError("unreachable")

    # the end

    def _compare(self, sent: Mapping[str, Total]) -> None:
        """:raises PgherdError: not everything is there as it was sent"""
        tables = self._destination.engine.layout()
        found: dict[str, Total] = {}
        pieces = sum(len(table.pieces) for table in tables)
        done = 0
        for table in tables:
            found[table.name] = Total()
            for piece in table.pieces:
                listed = self._columns.get(table.name, [])
                found[table.name] += copy_rows.total(self._destination.databases, piece, listed)
                done += 1
            self._tell(f"comparing {table.name}", done, pieces)
        if different := copy_rows.differences(sent, found):
            raise PgherdError("; ".join(different) + f": delete {self._destination.name} and copy anew")
        self._require_still_frozen()
        crash_point("copy:compare:done")

    def _require_still_frozen(self) -> None:
        """:raises PgherdError: the source has tables by now that nobody copies"""
        # Had the session been lost meanwhile, somebody might have written at the source.
        self._frozen.execute("SELECT 1")
        there = self._destination.name
        self._require_no_more(
            f"drop it there and run the command again, or delete {there}, create it again and copy anew"
        )
