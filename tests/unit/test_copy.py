"""Comparing both sides of a copy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgherd.engine.base import Piece, TableLayout
from pgherd.errors import BadInput, PgherdError
from pgherd.operations import copy, copy_definitions, copy_rows
from pgherd.operations.copy_definitions import Definitions
from pgherd.operations.copy_rows import Total, differences


def total(rows: int, checksum: int = 0) -> Total:
    return Total(rows, Decimal(checksum))


def test_totals_of_pieces_add_up_whatever_their_order() -> None:
    pieces = [total(1, 5), total(2, -7), total(0)]
    assert sum(pieces, Total()) == sum(reversed(pieces), Total()) == total(3, -2)


def test_equal_tables_have_no_difference() -> None:
    assert differences({"a": total(3, 9), "empty": total(0)}, {"a": total(3, 9), "more": total(1)}) == []


def test_each_difference_is_named_with_its_table() -> None:
    expected = {"lost": total(3, 9), "doubled": total(3, 9), "changed": total(3, 9), "gone": total(1, 1)}
    found = {"lost": total(2, 4), "doubled": total(6, 18), "changed": total(3, 8)}
    assert differences(expected, found) == [
        "lost: 3 rows at the source, 2 at the destination",
        "doubled: 3 rows at the source, 6 at the destination",
        "changed: 3 rows on both sides, but their checksums differ",
        "gone: 1 rows at the source, 0 at the destination",
    ]


# tables that come while others are copied


class Frozen:
    """A session that hears of another table each time it can't lock."""

    def __init__(self, fails: Sequence[Exception]) -> None:
        self.fails = list(fails)
        self.locked: list[str] = []

    def __enter__(self) -> Frozen:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def transaction(self) -> Frozen:
        return self

    def execute(self, query: Any) -> None:
        text = query.decode() if isinstance(query, bytes) else query
        if text.startswith("LOCK TABLE") and "EXCLUSIVE MODE" in text:
            if self.fails:
                raise self.fails.pop(0)
            self.locked.append(text)

    def rollback(self) -> None:
        pass


def table(name: str, kind: str = "local") -> TableLayout:
    return TableLayout(name, kind, None, None, (Piece(0, name),))


def side(name: str, *layouts: Sequence[TableLayout]) -> Any:
    """A cluster that has these tables at the first look, and so on."""
    looks = list(layouts)
    layout = lambda: looks.pop(0) if len(looks) > 1 else looks[0]  # noqa: E731
    return SimpleNamespace(name=name, databases=None, engine=SimpleNamespace(layout=layout))


@pytest.mark.parametrize("busy", [psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable])
def test_the_tables_that_are_copied_are_those_that_are_locked(
    busy: type[psycopg.Error], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Frozen([busy()])
    monkeypatch.setattr(copy_rows, "session", lambda *of, **how: session)
    monkeypatch.setattr("pgherd.operations.copy.time.sleep", lambda seconds: None)
    old, new = [table("a")], [table("a"), table("b", "distributed")]
    with copy._frozen(side("laptop", old, new, old), lambda *told: None) as (_, tables):
        assert tables == new
    assert session.locked == ["LOCK TABLE a, ONLY b IN EXCLUSIVE MODE"]


def run(source: Any) -> copy._Copy:
    frozen = SimpleNamespace(execute=lambda *of: SimpleNamespace(fetchall=list))
    return copy._Copy(source, side("production", []), None, frozen, [table("a")], None, 2)  # type: ignore[arg-type]


def test_a_table_that_was_made_meanwhile_is_told_before_anything_counts_as_copied() -> None:
    run(side("laptop", [table("a")]))._require_no_more("do this")
    with pytest.raises(PgherdError, match=r"^b: made in laptop while it was copied: do this$"):
        run(side("laptop", [table("a"), table("b")]))._require_no_more("do this")


def test_a_copy_beside_which_a_table_was_made_is_not_done() -> None:
    later = run(side("laptop", [table("a"), table("b")]))
    with pytest.raises(PgherdError, match="b: made in laptop while it was copied: drop it there and run"):
        later._compare({})


# going on with what was killed


class Desk:
    """The destination's coordinator: what it is told, and what it says."""

    connection = None

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.told: list[str] = []

    def transaction(self) -> Any:
        return self

    def __enter__(self) -> Desk:
        self.told.append("BEGIN")
        return self

    def __exit__(self, *error: object) -> None:
        self.told.append("ROLLBACK" if error[0] else "COMMIT")

    def execute(self, query: Any, values: Any = None) -> Any:
        text = query.decode() if isinstance(query, bytes) else query
        self.told.append(text)
        rows: list[Any] = next((rows for part, rows in self.answers.items() if part in text), [])
        return SimpleNamespace(fetchall=lambda: rows, fetchone=lambda: rows[0] if rows else None, rowcount=0)


def going_on(desk: Desk, *tables: TableLayout, there: Sequence[TableLayout] = ()) -> copy._Copy:
    frozen: Any = Desk(pg_control_system=[("1",)])
    source, destination = side("laptop", list(tables)), side("production", list(there))
    destination.databases = SimpleNamespace(owner="app")
    return copy._Copy(source, destination, desk, frozen, tables, lambda *told: None, 2)  # type: ignore[arg-type]


DEFINITIONS = Definitions(
    [], "", "CREATE INDEX i ON a (x);\nALTER TABLE a ADD FOREIGN KEY (x) REFERENCES b;\n"
)


def test_constraints_and_triggers_are_made_in_the_transaction_that_ends_the_copy() -> None:
    desk = Desk()
    going_on(desk, table("a"))._finish(DEFINITIONS)
    told = [each for each in desk.told if not each.startswith("SET LOCAL")]
    assert [each.split()[0] for each in told] == ["BEGIN", "CREATE", "ALTER", "UPDATE", "COMMIT"]
    assert "phase = 'done'" in told[3]


def test_rows_are_compared_before_anything_is_made_that_acts_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    it = going_on(Desk(), table("a"))
    monkeypatch.setattr("pgherd.operations.copy.copy_definitions.read", lambda *of: DEFINITIONS)
    monkeypatch.setattr(copy_rows, "sequences", lambda *of: 0)
    monkeypatch.setattr(it, "_is_begun", lambda *of: True)
    monkeypatch.setattr(it, "_rows", lambda: {})
    monkeypatch.setattr(it, "_compare", lambda sent: done.append("compare"))
    monkeypatch.setattr(it, "_finish", lambda definitions: done.append("finish"))
    it.run(None)  # type: ignore[arg-type]
    assert done == ["compare", "finish"]


def test_a_source_that_got_a_table_meanwhile_ends_no_copy() -> None:
    desk = Desk()
    it = going_on(desk, table("a"))
    it._source = side("laptop", [table("a"), table("b")])
    with pytest.raises(PgherdError, match="b: made in laptop while it was copied"):
        it._finish(DEFINITIONS)
    assert desk.told[-1] == "ROLLBACK"


def test_a_copy_with_constraints_that_an_earlier_version_made_is_refused_with_the_way_out() -> None:
    desk = Desk(**{"FROM pgherd.copy": [("1", DEFINITIONS.digest, "compare")]})
    with pytest.raises(
        BadInput, match="another version of pgherd began: to copy anew, delete production and create"
    ):
        going_on(desk, table("a"))._is_begun(DEFINITIONS)


def changed(desk: Desk, monkeypatch: pytest.MonkeyPatch, there: Total, layout: TableLayout) -> copy._Copy:
    """A copy of a table with other rows at the source now than were copied, and these at the destination."""
    monkeypatch.setattr(
        copy_rows, "total", lambda databases, piece, listed: total(9) if databases is None else there
    )
    it = going_on(desk, table("a"), there=[layout])
    it._columns = {"a": ["x"]}
    return it


NOTED = [("a", "a", 2, Decimal(7)), ("b", "b", 5, Decimal(1))]


@pytest.mark.parametrize("there", [total(2, 7), total(0)])
def test_a_table_that_changed_at_the_source_is_emptied_alone_and_under_a_lock(
    there: Total, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(copy_piece=NOTED)
    it = changed(desk, monkeypatch, there, TableLayout("a", "local", None, None, (Piece(0, "ONLY a"),)))
    assert it._still_right({("a", "a"): total(2, 7)}) == {}
    assert desk.told == [
        "BEGIN",
        "LOCK TABLE ONLY a IN EXCLUSIVE MODE",
        "SELECT table_name, relation, row_count, checksum FROM pgherd.copy_piece",
        "DELETE FROM pgherd.copy_piece WHERE table_name = %s",
        "TRUNCATE ONLY a",
        "COMMIT",
    ]


@pytest.mark.parametrize("there", [total(3, 8), total(2, 8), total(1, 3)])
def test_a_table_to_which_somebody_else_wrote_is_not_emptied(
    there: Total, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(copy_piece=NOTED)
    it = changed(desk, monkeypatch, there, TableLayout("a", "distributed", "x", 1, (Piece(1, "a_102008"),)))
    with pytest.raises(
        BadInput, match=r"^a of production has other rows than were copied, somebody else wrote"
    ):
        it._still_right({("a", "a"): total(2, 7)})
    assert not [each for each in desk.told if each.startswith(("DELETE", "TRUNCATE"))]


def test_a_changed_table_that_is_gone_from_the_destination_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    it = changed(Desk(), monkeypatch, total(0), table("b"))
    with pytest.raises(BadInput, match=r"^a is gone from production: to copy anew, delete"):
        it._still_right({("a", "a"): total(2, 7)})


@pytest.mark.parametrize(("noted", "fits"), [(total(9), True), (total(8), False)])
def test_a_part_that_an_attempt_killed_before_ended_after_all_counts_only_if_it_is_what_the_source_has(
    noted: Total, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(SELECT=[("a", "a", noted.rows, noted.checksum)])
    monkeypatch.setattr(copy_rows, "total", lambda *of: total(9))
    monkeypatch.setattr(copy_rows, "session", lambda *of: desk)
    with (
        nullcontext() if fits else pytest.raises(PgherdError, match="a changed since it was copied: run the")
    ):
        brought = copy_rows.copy(None, None, table("a"), Piece(0, "a"), ["x"], Event())  # type: ignore[arg-type]
        assert brought == total(9)


# a disk that is full


def test_a_full_disk_is_no_server_that_is_away_and_nobody_fills_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = psycopg.errors.DiskFull('could not extend file "base/5/1": No space left on device')
    tried: list[str] = []

    def bring(*of: Any) -> Total:
        tried.append("a")
        raise full

    monkeypatch.setattr(copy_rows, "copy", bring)
    monkeypatch.setattr(copy, "PAUSE_SECONDS", 0.0)
    it = going_on(Desk(), table("a"), there=[])
    it._columns = {"a": ["x"]}
    with pytest.raises(psycopg.errors.DiskFull):
        it._piece(table("a"), Piece(0, "a"))
    assert tried == ["a"]

    def alone(destination: copy.Side) -> Any:
        raise full

    monkeypatch.setattr(copy, "_alone", alone)
    monkeypatch.setattr("pgherd.operations.copy.store.current", lambda databases: None)

    def ready(name: str, engine: str) -> copy.Side:
        ready: Any = SimpleNamespace(name=engine, is_initialised=lambda group: True)
        return copy.Side(name, None, ready)  # type: ignore[arg-type]

    with pytest.raises(
        PgherdError, match=r"^a disk is full \(.*No space left.*\): make room there, and run the"
    ):
        copy.copy(ready("laptop", "fdw"), ready("production", "citus"), Path("pg_dump"), lambda *told: None)


# what the destination would refuse


def test_rows_without_a_distribution_key_are_told_with_their_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def session(databases: None, group: int) -> Any:
        desk = Desk(**{"a_2": [(True,)], "a_1": [(False,)]})
        desk.told = asked
        return desk

    monkeypatch.setattr(copy_rows, "session", session)
    tables = [
        TableLayout("a", "distributed", "x y", 1, (Piece(1, "a_1"), Piece(2, "a_2"))),
        TableLayout("b", "distributed", "x", 1, (Piece(1, "a_1"),)),
        TableLayout("c", "reference", None, None, (Piece(0, "a_2"),)),
    ]
    assert copy_rows.without_key(None, tables) == [  # type: ignore[arg-type]
        "a has rows without a value in x y, its distribution column: give them one, or delete them"
    ]
    assert 'SELECT EXISTS (SELECT FROM a_2 WHERE "x y" IS NULL)' in asked


def test_what_citus_makes_on_no_reference_table_is_told_before_rows_are_copied() -> None:
    source: Any = Desk(
        pg_trigger=[("note", "a", "distributed"), ("note", "r", "reference")],
        pg_constraint=[("r_local_fkey", "r", "local")],
    )
    destination: Any = Desk()
    assert copy_definitions.problems(source, destination, DEFINITIONS) == [
        "trigger note on a can't be on a distributed table there: drop it",
        "trigger note on r can't be on a reference table there: drop it",
        "foreign key r_local_fkey from the reference table r to local can't CASCADE or SET there: make local a"
        " reference table, too, or make the key anew with NO ACTION",
    ]
