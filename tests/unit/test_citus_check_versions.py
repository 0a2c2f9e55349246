"""check and the versions of Citus: each node is asked once, and of one that is unfit nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pgherd.engine.citus import checks, nodes, versions
from pgherd.engine.citus.versions import Versions

GOOD, HALF, GONE = Versions("14.0-1", "14.0-1"), Versions("14.0-1", "13.2-1"), Versions("14.0-1", None)


class Nodes:
    """What each group's node says of its Citus; a connection is a group's number."""

    def __init__(self, **said: Versions) -> None:
        self.said = {0: GOOD, 1: GOOD, 2: GOOD} | {int(name[1:]): said[name] for name in said}
        self.asked: list[int] = []
        self.examined: list[int] = []

    @contextmanager
    def superuser(self, databases: Any, group: int = 0) -> Iterator[int]:
        yield group

    def of(self, connection: int) -> Versions:
        self.asked.append(connection)
        return self.said[connection]

    def examine(self, node: Any) -> Iterator[Any]:
        self.examined.append(node.group)
        return iter(())

    def check(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str]]:
        monkeypatch.setattr(checks, "superuser", self.superuser)
        monkeypatch.setattr(nodes, "segments", lambda databases: (1, 2))
        monkeypatch.setattr(checks, "_nodes", lambda desk, segments: iter(()))
        monkeypatch.setattr(versions, "of", self.of)
        monkeypatch.setattr(checks, "CHECKS", (self.examine,))
        found = checks.check(None)  # type: ignore[arg-type]
        return [(each.group, each.message, each.fix) for each in found]


def test_each_node_is_asked_for_its_versions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Nodes()
    assert there.check(monkeypatch) == []
    assert sorted(there.asked) == [0, 0, 1, 2], "of the coordinator's own by two sessions"
    assert there.examined == [0, 1, 2]


def test_of_a_node_that_is_unfit_that_is_told_with_the_way_out_and_nothing_else_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = Nodes(g1=HALF, g2=GONE)
    half, gone = there.check(monkeypatch)
    assert half == (
        1,
        "segment-1 has Citus 13.2-1 in the database, but 14.0-1 installed",
        "run ALTER EXTENSION citus UPDATE in its database",
    )
    assert gone[0] == 2
    assert "segment-2 has lost the extension citus" in gone[1]
    assert gone[2].startswith("run CREATE EXTENSION citus in its database")
    assert there.examined == [0]
