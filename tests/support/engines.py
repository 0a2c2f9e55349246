"""Tests that hold for every engine, run for each; where no server has Citus, its part is skipped and counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import home
from tests.support.citus import bin_dir, needs_citus


@pytest.fixture(scope="module", params=["fdw", pytest.param("citus", marks=needs_citus)])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine of every declaration and home that does not say otherwise, for the length of a module."""
    chosen = str(request.param)
    home.DEFAULTS["engine"] = chosen
    home.DEFAULTS["bin_dir"] = str(bin_dir()) if chosen == "citus" else ""
    yield chosen
    home.DEFAULTS.update(engine="fdw", bin_dir="")
