"""The supervisor killed by SIGKILL after every persisted step of an operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgherd.operations.runner import crash_points
from tests.support.contents import contents, fill, nothing_is_left_over
from tests.support.home import Home, declaration, temporary_home
from tests.support.writers import audit, writers

pytestmark = pytest.mark.local


@contextmanager
def crashing(path: Path, kind: str) -> Iterator[tuple[Home, Path]]:
    """A home whose supervisor dies by SIGKILL after each persisted step of an operation, once at each."""
    log = path / "crashes"
    with temporary_home(
        {"PGHERD_CRASH_AT": ",".join(crash_points(kind)), "PGHERD_CRASH_LOG": str(log)}
    ) as home:
        yield home, log


@pytest.mark.parametrize(("kind", "before", "after"), [("expand", 2, 3), ("shrink", 3, 2)])
def test_the_supervisor_killed_after_every_step_loses_nothing(
    tmp_path: Path, kind: str, before: int, after: int
) -> None:
    with crashing(tmp_path, kind) as (home, log):
        home.up(declaration(segments=before, standbys=0, shards=8))
        fill(home)
        expected = contents(home)
        with writers(home.connect, 2) as journal:
            home.run("scale", "shop", "--segments", str(after), timeout=400)
        home.wait_phase("Running")
        assert set(log.read_text().split()) == set(crash_points(kind)), (
            "every point was reached, and died at, once"
        )
        assert contents(home) == expected
        with home.connect() as connection:
            audit(connection, journal)
        nothing_is_left_over(home)
