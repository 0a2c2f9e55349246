"""Wishes that can't be, and ends at bad moments: one clear line, and nothing half-made is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.home import Home, declaration, temporary_home, wait_for

pytestmark = pytest.mark.local

ONE = declaration(segments=1, standbys=0, shards=4)


@pytest.fixture
def home() -> Iterator[Home]:
    with temporary_home() as found:
        yield found


def test_a_deletion_that_was_cut_short_is_finished_by_whatever_is_asked_next(home: Home) -> None:
    home.up(ONE)
    supervisor = home.supervisor()
    assert supervisor is not None
    supervisor.suspend()
    home.run("delete", "shop", "--purge", "--yes", "--no-wait")
    refused = home.run("start", "shop", check=False)
    assert (refused.returncode, "shop is being deleted" in refused.stderr) == (2, True)
    supervisor.kill()
    supervisor.wait(10)
    assert home.up(ONE, check=False).returncode == 2
    wait_for(lambda: not home.path.exists() and not home.processes(), "nothing is left", 30)


def test_a_supervisor_whose_lock_file_was_removed_leaves_to_the_next_one(home: Home) -> None:
    home.up(ONE)
    first = home.supervisor()
    assert first is not None
    (home.path / "supervisor.lock").unlink()
    home.run("start", "shop")
    first.wait(30)
    wait_for(lambda: len(home.running("pgherd.supervisor")) == 1, "one supervisor is there", 10)
