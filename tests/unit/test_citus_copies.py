"""Reference tables whose copies differ: told, unless it is only for as long as somebody writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgherd.engine.base import Finding
from pgherd.engine.citus import checks, copies

SAME, OTHER = (2, "17"), (1, "4")
COPY = "public.kind_102008"
TOLD = "has other rows of reference table public.kind than the coordinator"


class _Node:
    """Counts as it is told to, the last of it from then on.

    :param prepared: the table to which something was written that is prepared there, and not committed yet
    """

    def __init__(self, *counts: tuple[int, str], prepared: str = "", busy: bool = False) -> None:
        self.counts, self.prepared, self.busy = list(counts), prepared, busy
        self.asked: list[str] = []
        self._answer: tuple[Any, ...] | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def execute(self, query: Any, values: Any = None) -> _Node:
        text = query.decode() if isinstance(query, bytes) else query.as_string()
        self.asked.append(text)
        if text.startswith("LOCK") and self.busy:
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        if "pg_prepared_xacts" in text:
            self._answer = () if self.prepared and (not values or self.prepared in values) else None
        elif "count(*)" in text:
            self._answer = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._answer

    @property
    def locked(self) -> bool:
        return any(each.startswith("LOCK TABLE public.kind IN SHARE MODE") for each in self.asked)


def difference(desk: _Node, here: _Node) -> str | None:
    return copies.difference(desk, here, "public.kind", COPY)  # type: ignore[arg-type]


def test_a_copy_that_has_other_rows_is_told() -> None:
    assert difference(_Node(SAME), _Node(OTHER)) == TOLD


def test_writers_of_copies_that_are_the_same_are_not_held_up() -> None:
    desk = _Node(SAME)
    assert difference(desk, _Node(SAME)) is None
    assert not desk.locked


def test_copies_that_differ_only_while_somebody_writes_are_the_same() -> None:
    desk = _Node(SAME)
    assert difference(desk, _Node(OTHER, SAME)) is None
    assert desk.locked


@pytest.mark.parametrize("where", ["desk", "here"])
def test_what_is_prepared_and_on_its_way_is_no_difference(where: str) -> None:
    desk = _Node(SAME, prepared=COPY if where == "desk" else "")
    here = _Node(OTHER, prepared=COPY if where == "here" else "")
    assert difference(desk, here) is None


def test_what_is_prepared_for_other_tables_hides_no_difference() -> None:
    """Where many write something is at any moment."""
    assert difference(_Node(SAME, prepared="public.item_102009"), _Node(OTHER)) == TOLD


def test_what_ends_between_two_looks_is_no_difference() -> None:
    """What was prepared when the rows were counted may have ended when it is asked for."""

    class Ending(_Node):
        def execute(self, query: Any, values: Any = None) -> _Node:
            found = super().execute(query, values)
            self.prepared = COPY if sum("count(*)" in each for each in self.asked) < 2 else ""
            return found

    assert difference(_Node(SAME), Ending(OTHER)) is None


def test_copies_whose_writers_never_pause_are_told_as_not_compared() -> None:
    told = difference(_Node(SAME, busy=True), _Node(OTHER))
    assert told is not None
    assert told.startswith("can't be compared with the coordinator in reference table public.kind: ")


def test_check_names_the_node_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "tables", lambda desk, group: [("public.kind", COPY)])
    node = checks._Node(2, _Node(OTHER), _Node(SAME))  # type: ignore[arg-type]
    [found] = [each for check in checks.CHECKS if "copies" in check.__name__ for each in check(node)]
    assert found == Finding(
        2,
        "copies",
        f"segment-2 {TOLD}",
        "SELECT undistribute_table('public.kind'), then create_reference_table('public.kind'): the coordinator's rows"
        " stay; drop foreign keys from and to it before, and make them anew after that",
    )
