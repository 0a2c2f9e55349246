"""Comparing both sides of a copy."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgherd.engine.base import Piece, TableLayout
from pgherd.errors import PgherdError
from pgherd.operations import copy, copy_rows
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
