"""What is written down of a restore point."""

from __future__ import annotations

import sqlite3
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from pgherd.backup import points


def test_a_points_placement_is_another_one_after_each_move_and_each_split() -> None:
    there = sqlite3.connect(":memory:")
    there.execute("ATTACH ':memory:' AS pgherd")
    there.execute("CREATE TABLE pgherd.operation_steps (kind text, state text)")
    databases: Any = SimpleNamespace(connect=lambda group: nullcontext(there))
    seen = [points._placement(databases)]
    for kind, state in (("move", "done"), ("move", "running"), ("split", "done"), ("clean-up", "done")):
        there.execute("INSERT INTO pgherd.operation_steps VALUES (?, ?)", [kind, state])
        seen.append(points._placement(databases))
    assert seen == [0, 1, 1, 2, 2]
