"""The supervisor killed by SIGKILL after every persisted step of an operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgherd.operations.runner import crash_points
from tests.support.citus import SEEN_BY_CHANCE
from tests.support.contents import contents, fill, nothing_is_left_over
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home
from tests.support.writers import audit, writers

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]


@contextmanager
def crashing(path: Path, kind: str) -> Iterator[tuple[Home, Path]]:
    """A home whose supervisor dies by SIGKILL after each persisted step of an operation, once at each."""
    log = path / "crashes"
    with temporary_home(
        {"PGHERD_CRASH_AT": ",".join(crash_points(kind)), "PGHERD_CRASH_LOG": str(log)}
    ) as home:
        yield home, log


def seen_by_chance(point: str) -> bool:
    """Whether Citus tells of this step only while somebody looks."""
    return point.split(":")[2] in SEEN_BY_CHANCE


@pytest.mark.parametrize(("kind", "before", "after"), [("expand", 2, 3), ("shrink", 3, 2)])
def test_the_supervisor_killed_after_every_step_loses_nothing(
    engine: str, tmp_path: Path, kind: str, before: int, after: int
) -> None:
    with crashing(tmp_path, kind) as (home, log):
        home.up(declaration(segments=before, standbys=0, shards=8), timeout=300)
        fill(home, engine)
        expected = contents(home)
        with writers(home.connect, 2) as journal:
            home.run("scale", "shop", "--segments", str(after), timeout=400)
        home.wait_phase("Running", timeout=120)
        died, points = set(log.read_text().split()), set(crash_points(kind))
        told = points if engine == "fdw" else {point for point in points if not seen_by_chance(point)}
        assert told <= died <= points, "every point was reached, and died at, once"
        assert contents(home) == expected
        with home.connect() as connection:
            audit(connection, journal)
        nothing_is_left_over(home)
