"""docs/engines.md promises that each difference between the engines is shown by a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "engines.md").read_text()


def test_every_test_that_the_table_of_differences_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert named - there == set()
    assert len(named) > 40


def test_every_row_of_the_table_of_differences_names_a_test() -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and line.count("|") == 4]
    titles = {"| | fdw engine | shown by |", "| | citus engine | shown by |"}
    assert [row for row in rows if row not in titles and "`test_" not in row.split("|")[3]] == []
