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
TOLD = "has other rows of reference table public.kind than the coordinator"


class _Node:
    """Counts as it is told to, the last of it from then on.

    :param prepared: whether it holds what was prepared and is not committed yet
    """

    def __init__(self, *counts: tuple[int, str], prepared: bool = False, busy: bool = False) -> None:
        self.counts, self.prepared, self.busy = list(counts), prepared, busy
        self.asked: list[str] = []
        self._answer: tuple[Any, ...] | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def execute(self, query: Any) -> _Node:
        text = query.decode() if isinstance(query, bytes) else query.as_string()
        self.asked.append(text)
        if text.startswith("LOCK") and self.busy:
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        if "pg_prepared_xacts" in text:
            self._answer = () if self.prepared else None
        elif "count(*)" in text:
            self._answer = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._answer

    @property
    def locked(self) -> bool:
        return any(each.startswith("LOCK TABLE public.kind IN SHARE MODE") for each in self.asked)


def difference(desk: _Node, here: _Node) -> str | None:
    return copies.difference(desk, here, "public.kind", "public.kind_102008")  # type: ignore[arg-type]


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
    desk, here = _Node(SAME, prepared=where == "desk"), _Node(OTHER, prepared=where == "here")
    assert difference(desk, here) is None


def test_copies_whose_writers_never_pause_are_told_as_not_compared() -> None:
    told = difference(_Node(SAME, busy=True), _Node(OTHER))
    assert told is not None
    assert told.startswith("can't be compared with the coordinator in reference table public.kind: ")


def test_check_names_the_node_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "tables", lambda desk, group: [("public.kind", "public.kind_102008")])
    node = checks._Node(2, _Node(OTHER), _Node(SAME))  # type: ignore[arg-type]
    [found] = [each for check in checks.CHECKS if "copies" in check.__name__ for each in check(node)]
    assert found == Finding(
        2,
        "copies",
        f"segment-2 {TOLD}",
        "SELECT undistribute_table('public.kind', cascade_via_foreign_keys => true), then"
        " create_reference_table('public.kind'): the coordinator's rows stay",
    )
