"""The reference pages are what the program says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.cli.reference import pages

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", ["spec.md", "cli.md"])
def test_a_reference_page_is_current(name: str) -> None:
    current = (FOLDER / name).read_text()
    assert current == pages()[name], "run: python -m pgherd.cli.reference docs/reference"
