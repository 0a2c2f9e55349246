"""What tables held at a restore point: rows and a hash of them, for each place where a table has rows.

Nobody can stop the writers for as long as counting takes, and a snapshot is not a place in the log. So two snapshots
are taken of every group, one right before the point is made and one right after, and all counting is done in them
later, beside the writers:

* Only rows of transactions that had ended before the first snapshot (``horizon``) are looked at: nobody can add any.
* They are counted in both snapshots, by buckets of pages. A bucket that has as many in the second as in the first lost
  none in between: it has exactly these rows at the point, which lies between the two. Their hash is what the restored
  cluster must have.
* Buckets that were written to in these milliseconds are ``touched``: for them only the fewest and the most rows that
  there can be are known.
* A commit is in the log a moment before it can be seen (it may wait for a standby in between). Transactions that were
  open right after the point, and in the second snapshot still, are ``pending``: where the restored cluster says that
  one of them has committed, rows that are missing may be its work, and nothing can be said.

It works because a restored database has the same rows in the same pages as the one that was backed up, with the same
transaction numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from types import TracebackType
from typing import Any

import psycopg
from psycopg import IsolationLevel

from pgherd.engine.base import Engine, Piece, TableLayout
from pgherd.errors import BadInput, PgherdError
from pgherd.model.topology import group_name
from pgherd.operations import copy_rows
from pgherd.postgres.connections import Connection, Databases

BUCKETS = 64
"""of a table's pages: what is written to while a point is made spoils the comparison of that part alone"""
PARALLEL = 4
"""groups at a time"""
_ROUND = 1 << 32
"""transaction numbers in rows begin anew there"""

_COUNT = """
SELECT ((ctid::text::point)[0]::bigint %% {buckets})::int, count(*), {hash}
  FROM {relation}
 WHERE mod(xmin::text::bigint - %(horizon)s + {round}, {round}) >= %(window)s
 GROUP BY 1
"""
_HASH = "sum(hashtextextended(ROW({columns})::text, 0)::numeric)"
_SNAPSHOT = """
SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
       ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) x)
  FROM pg_current_snapshot() s
"""
_OPEN = """
SELECT transactionid::text::bigint FROM pg_locks
 WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
"""
"""what every transaction with a number holds until its end can be seen; asked of the server, not of a snapshot"""
_COMMITTED = """
SELECT count(*) FROM unnest(%s::bigint[]) x
 WHERE CASE WHEN x < pg_snapshot_xmax(pg_current_snapshot())::text::bigint
            THEN pg_xact_status(x::text::xid8) = 'committed' END
"""
SETTLE_SECONDS = 0.05
"""after the point: commits that were on their way by then can be seen"""

Buckets = dict[int, tuple[int, Decimal]]
"""rows and the sum of their hashes, by bucket"""
Tell = Callable[[str, int, int], None]
"""told what is done, how much of it is done, and in all"""


@dataclass(frozen=True)
class Print:
    """What one place held at the point."""

    table: str
    group: int
    relation: str
    horizon: int
    """only rows of transactions before this one are meant"""
    rows: int
    """in the buckets that were left alone"""
    hash: str
    """the sum of their hashes"""
    touched: tuple[tuple[int, int, int], ...] = ()
    """bucket, and the fewest and the most rows that it can have had"""
    pending: tuple[int, ...] = ()
    """transactions of the group that were open at the point and some time after"""

    def as_json(self) -> dict[str, Any]:
        """For :func:`print_from`."""
        return asdict(self)


def print_from(raw: Mapping[str, Any]) -> Print:
    """The inverse of ``Print.as_json``.

    :raises ValueError, TypeError, LookupError: it is none
    """
    touched = tuple((int(a), int(b), int(c)) for a, b, c in raw["touched"])
    return Print(**{**raw, "touched": touched, "pending": tuple(map(int, raw["pending"]))})


def named(layout: Sequence[TableLayout], names: Sequence[str]) -> list[TableLayout]:
    """The tables that are meant, each once.

    :raises BadInput: with every name that is none, or several
    """
    found: dict[str, TableLayout] = {}
    problems = []
    for name in names:
        meant = [table for table in layout if name in _ways(table.name)]
        if len(meant) == 1:
            found[meant[0].name] = meant[0]
        elif meant:
            problems.append(f"table {name}: there are several, name its schema")
        else:
            problems.append(f"table {name}: there is none of this name")
    if problems:
        raise BadInput(*problems)
    return list(found.values())


def _ways(name: str) -> set[str]:
    """How people may write it: with or without its schema, with or without quotes."""
    bare = name.partition(".")[2] if not name.startswith('"') else name[name.find('".') + 2 :]
    return {name, bare, *(each.replace('"', "") for each in (name, bare))}


class Snapshots:
    """A context around a point's making; afterwards :meth:`prints` says what was there at the point.

    :param tables: those that are looked at
    """

    def __init__(self, databases: Databases, tables: Sequence[TableLayout]) -> None:
        self._tables = tables
        self._stack = ExitStack()
        groups = sorted({piece.group for table in tables for piece in table.pieces})
        self._pool = ThreadPoolExecutor(max_workers=max(len(groups), 1))
        with copy_rows.session(databases) as connection:
            self._columns = copy_rows.columns(connection, tables)
        try:
            self._before, self._after = (
                {group: self._stack.enter_context(_reader(databases, group)) for group in groups}
                for _ in range(2)
            )
        except BaseException:
            self.close()
            raise
        self._horizons: dict[int, int] = {}
        self._windows: dict[Connection, int] = {}
        self._pending: dict[int, tuple[int, ...]] = {}

    def __enter__(self) -> Snapshots:
        for group, (oldest, upcoming, _) in self._take(self._before).items():
            self._horizons[group] = oldest
            self._windows[self._before[group]] = upcoming - oldest
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        running = dict(zip(self._before, self._pool.map(_open, self._before.values()), strict=True))
        time.sleep(SETTLE_SECONDS)
        for group, (_, upcoming, unseen) in self._take(self._after).items():
            horizon = self._horizons[group]
            self._windows[self._after[group]] = upcoming - horizon
            known = (_whole(each, horizon) for each in running[group])
            self._pending[group] = tuple(each for each in known if each >= upcoming or each in unseen)

    def _take(self, sessions: Mapping[int, Connection]) -> dict[int, tuple[int, int, list[int]]]:
        def take(session: Connection) -> tuple[int, int, list[int]]:
            row = session.execute(_SNAPSHOT).fetchone()
            assert row is not None
            return int(row[0]), int(row[1]), row[2]

        return dict(zip(sessions, self._pool.map(take, sessions.values()), strict=True))

    def close(self) -> None:
        """Let the snapshots go."""
        self._stack.close()
        self._pool.shutdown()

    def prints(self, tell: Tell) -> list[Print]:
        """All prints; reads every row twice.

        :raises PgherdError: a table can't be read
        """
        pieces = [(table, piece) for table in self._tables for piece in table.pieces]
        return [made for made in _each(pieces, self._print, "counting rows", tell) if made is not None]

    def _print(self, table: TableLayout, piece: Piece) -> Print | None:
        before, after = self._before[piece.group], self._after[piece.group]
        horizon, columns = self._horizons[piece.group], self._columns[table.name]
        first = _count(before, piece, (), horizon, self._windows[before])
        second = _count(after, piece, columns, horizon, self._windows[after])
        if first is None or second is None:
            return None
        made = _settled(table.name, piece, horizon, first, second)
        return replace(made, pending=self._pending[piece.group])


def _open(session: Connection) -> list[int]:
    return [row[0] for row in session.execute(_OPEN).fetchall()]


def _whole(short: int, near: int) -> int:
    """A transaction's number as locks and rows show it, with the rounds that it lacks."""
    return near + (short - near + _ROUND // 2) % _ROUND - _ROUND // 2


def _settled(table: str, piece: Piece, horizon: int, first: Buckets, second: Buckets) -> Print:
    none = (0, Decimal(0))
    alone = [second[bucket] for bucket in second if second[bucket][0] == first.get(bucket, none)[0]]
    touched = tuple(
        (bucket, second.get(bucket, none)[0], count)
        for bucket, (count, _) in sorted(first.items())
        if second.get(bucket, none)[0] != count
    )
    rows, total = sum(count for count, _ in alone), sum((each for _, each in alone), Decimal(0))
    return Print(table, piece.group, piece.relation, horizon, rows, str(total), touched)


def _reader(databases: Databases, group: int) -> Connection:
    session = copy_rows.session(databases, group, autocommit=False)
    session.isolation_level = IsolationLevel.REPEATABLE_READ
    session.read_only = True
    return session


def _each(
    pieces: Sequence[tuple[TableLayout, Piece]],
    do: Callable[[TableLayout, Piece], Print | None],
    doing: str,
    tell: Tell,
) -> Iterator[Print | None]:
    """Group by group side by side, each one's places one after the other: a session does one thing at a time."""
    by_group: dict[int, list[tuple[TableLayout, Piece]]] = {}
    for table, piece in pieces:
        by_group.setdefault(piece.group, []).append((table, piece))
    done = 0

    def of_group(group: int) -> list[Print | None]:
        nonlocal done
        made = []
        for table, piece in by_group[group]:
            made.append(do(table, piece))
            done += 1
            tell(doing, done, len(pieces))
        return made

    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        for made in list(pool.map(of_group, by_group)):
            yield from made


def _count(
    session: Connection, piece: Piece, columns: Sequence[str], horizon: int, window: int
) -> Buckets | None:
    """Rows by bucket, and with ``columns`` their hashes; None: it is not there (any more)."""
    shown = _HASH.format(columns=", ".join(columns)) if columns else "0"
    parts = {"hash": shown, "relation": piece.relation}
    quoted = {name: part.replace("%", "%%") for name, part in parts.items()}
    query = _COUNT.format(buckets=BUCKETS, round=_ROUND, **quoted)
    try:
        with session.transaction():
            rows = session.execute(query.encode(), {"horizon": horizon % _ROUND, "window": window}).fetchall()
    except psycopg.errors.UndefinedTable:
        return None
    except psycopg.Error as error:
        raise PgherdError(f"{piece.relation} on {group_name(piece.group)} can't be read: {error}") from error
    return {bucket: (count, Decimal(total or 0)) for bucket, count, total in rows}


# the other side


@dataclass(frozen=True)
class Outcome:
    """What came back, of what was there."""

    rows: int
    """that are exactly as they were"""
    touched: int
    """that were written to while the point was made, at most: only their number was looked at"""
    moved: int
    """places that were elsewhere at the point; not looked at"""
    unclear: int
    """places of which nothing can be said, because of transactions that committed just then"""
    problems: tuple[str, ...]


def compare(databases: Databases, engine: Engine, prints: Sequence[Print], tell: Tell) -> Outcome:
    """Look at a restored cluster.

    :raises PgherdError: a table can't be read
    """
    tables = {table.name: table for table in engine.layout()}
    with copy_rows.session(databases) as connection:
        columns = copy_rows.columns(connection, list(tables.values()))
    done = 0

    def of_group(group: int) -> list[Outcome]:
        nonlocal done
        found = []
        with _reader(databases, group) as session:
            for each in prints:
                if each.group != group:
                    continue
                there = tables[each.table].pieces if each.table in tables else ()
                found.append(_judge(session, each, there, columns.get(each.table, ())))
                done += 1
                tell("comparing rows", done, len(prints))
        return found

    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        found = [
            each for group in pool.map(of_group, sorted({each.group for each in prints})) for each in group
        ]
    return Outcome(
        sum(each.rows for each in found),
        sum(each.touched for each in found),
        sum(each.moved for each in found),
        sum(each.unclear for each in found),
        tuple(problem for each in found for problem in each.problems),
    )


def _judge(session: Connection, wanted: Print, there: Sequence[Piece], columns: Sequence[str]) -> Outcome:
    if Piece(wanted.group, wanted.relation) not in there:
        if any(piece.relation == wanted.relation for piece in there):
            return Outcome(0, 0, 1, 0, ())
        return Outcome(0, 0, 0, 0, tuple(differences(wanted, None)))
    found = _found(session, wanted, columns)
    if not (wrong := differences(wanted, found)):
        return Outcome(wanted.rows, sum(most for _, _, most in wanted.touched), 0, 0, ())
    if _has_less(wanted, found) and _any_committed(session, wanted.pending):
        return Outcome(0, 0, 0, 1, ())
    return Outcome(0, 0, 0, 0, tuple(wrong))


def _has_less(wanted: Print, found: Buckets | None) -> bool:
    """Whether rows are missing and nothing else is wrong that can be seen."""
    most = wanted.rows + sum(each for *_, each in wanted.touched)
    return found is not None and sum(count for count, _ in found.values()) < most


def _any_committed(session: Connection, pending: Sequence[int]) -> bool:
    row = session.execute(_COMMITTED, [list(pending)]).fetchone()
    return row is not None and row[0] > 0


def _found(session: Connection, wanted: Print, columns: Sequence[str]) -> Buckets | None:
    row = session.execute(_SNAPSHOT).fetchone()
    assert row is not None
    piece = Piece(wanted.group, wanted.relation)
    return _count(session, piece, columns, wanted.horizon, max(int(row[1]) - wanted.horizon, 0))


def differences(wanted: Print, found: Buckets | None) -> list[str]:
    """What is not as it was, a line each."""
    where = f"{wanted.table}: {wanted.relation} on {group_name(wanted.group)}"
    if found is None:
        return [f"{where} is not there"]
    touched = {bucket for bucket, _, _ in wanted.touched}
    alone = [each for bucket, each in found.items() if bucket not in touched]
    rows, total = sum(count for count, _ in alone), sum((each for _, each in alone), Decimal(0))
    if rows != wanted.rows:
        return [f"{where} had {wanted.rows} rows and has {rows}"]
    if total != Decimal(wanted.hash):
        return [f"{where} has its {rows} rows, but not their contents"]
    for bucket, fewest, most in wanted.touched:
        count = found.get(bucket, (0, Decimal(0)))[0]
        if not fewest <= count <= most:
            return [f"{where} had {fewest} to {most} rows in a part that has {count}"]
    return []
