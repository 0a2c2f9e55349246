"""docs/status.md tells all that a status can say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pgherd.reconcile import status
from pgherd.reconcile.plan import plan
from tests.support.looks import look

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "status.md").read_text()
TOLD = set(re.findall(r"[\w]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
"""the words that stand there as code"""


def test_each_phase_condition_and_reason_is_told() -> None:
    code = ast.parse(Path(status.__file__).read_text())
    texts = {
        node.value
        for node in ast.walk(code)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    words = {text for text in texts if re.fullmatch(r"([A-Z][a-z]+)+", text)} - {"True", "False"}
    assert len(words) > 30
    assert words - TOLD == set()


def test_each_field_is_told() -> None:
    seen = look()
    told = status.build(seen, plan(seen), now="2026-01-01T00:00:00.000+00:00")
    group = told["groups"][0]
    fields = {*told, *group, *group["members"][0]} - {"name"}
    assert fields - TOLD == set()


@pytest.mark.parametrize(
    "relation",
    ["segment_configuration", "operations", "operation_steps", "operation_progress", "restore_points"],
)
def test_each_relation_that_everybody_may_read_is_told(relation: str) -> None:
    definitions = (ROOT / "src/pgherd/engine/catalog.sql").read_text()
    assert f"pgherd.{relation}" in definitions.partition("GRANT SELECT ON")[2]
    assert f"`pgherd.{relation}`" in PAGE


def test_the_columns_that_are_told_of_members_are_there() -> None:
    definitions = (ROOT / "src/pgherd/engine/catalog.sql").read_text()
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `pgherd.segment_configuration`")]
    body = definitions.partition("pgherd.segment_configuration (")[2].partition(");")[0]
    columns = set(re.findall(r"^    (\w+) ", body, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", row)) - {"up", "down"} == columns - {"member"}
