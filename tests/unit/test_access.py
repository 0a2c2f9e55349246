"""Declared pg_hba lines that only running servers can find wrong."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pgherd.errors import Unavailable
from pgherd.reconcile import access

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherd.postgres.connections import Databases

LINES = "# ours\nhost all app all scram-sha-256\nhost  all /^( all scram-sha-256\n"
WRONG = "host  all /^( all scram-sha-256"
ERROR = 'invalid regular expression "^(": parentheses () not balanced'
TOLD = (
    f"spec.postgres.hostBasedAuthentication: line 3 ({WRONG}) can't be read: {ERROR}: correct it, until then members go"
    " on with the rules that they had, and none of them could start again"
)


def databases(answers: dict[int, list[Any] | Exception]) -> Databases:
    """Primaries that say this of their pg_hba files."""

    @contextmanager
    def connect(group: int) -> Iterator[Any]:
        answer = answers[group]
        if isinstance(answer, Exception):
            raise answer
        yield SimpleNamespace(execute=lambda query: SimpleNamespace(fetchall=lambda: answer))

    return cast("Databases", SimpleNamespace(connect=connect))


def test_a_line_that_servers_can_not_read_is_told_once_with_its_number_and_the_way_out() -> None:
    rows = [(9, ERROR, WRONG)]
    assert access.unread(databases({0: rows, 1: rows, 2: []}), LINES, [0, 1, 2]) == [TOLD]


def test_a_line_that_is_not_declared_is_told_by_its_place() -> None:
    [told] = access.unread(databases({0: [(2, "no", "nonsense")]}), LINES, [0]) or []
    assert "line 2 of the servers' pg_hba.conf (nonsense) can't be read: no" in told
    assert access.problem(LINES, None, None, "no such file").startswith(
        "spec.postgres.hostBasedAuthentication"
    )


@pytest.mark.parametrize(
    ("answers", "told"),
    [({0: Unavailable("away"), 1: []}, []), ({0: Unavailable("away")}, None), ({}, None)],
    ids=["one answers", "none does", "nobody to ask"],
)
def test_what_nobody_can_say_is_not_taken_for_right(answers: dict[int, Any], told: list[str] | None) -> None:
    assert access.unread(databases(answers), LINES, list(answers)) == told


def test_nobody_is_asked_where_no_line_is_declared() -> None:
    assert access.unread(databases({}), " \n", [0]) == []
