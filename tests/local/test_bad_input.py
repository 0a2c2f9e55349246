"""Wishes that can't be, and ends at bad moments: one clear line, and nothing half-made is left."""

from __future__ import annotations

import shutil
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


def test_a_home_removed_under_a_running_cluster_takes_everything_with_it(home: Home) -> None:
    home.up(ONE)

    def removed() -> bool:  # servers still make files in it
        shutil.rmtree(home.path, ignore_errors=True)
        return not home.path.exists()

    wait_for(removed, "the home is removed", 30)
    wait_for(lambda: not home.processes(), "nothing runs without its files", 60)
    assert not home.path.exists()


def test_lost_ports_are_found_in_the_configurations_and_nonsense_is_named(home: Home) -> None:
    home.up(ONE)
    book = home.path / "ports.json"
    before, address = book.read_text(), home.run("dsn", "shop").stdout
    book.write_text('{"shop": 3}')
    refused = home.run("status", "shop", check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert f"{book} is damaged" in refused.stderr
    book.unlink()
    assert home.run("dsn", "shop").stdout == address
    home.wait_phase("Running")
    home.run("stop", "shop")
    home.run("start", "shop")
    assert home.run("dsn", "shop").stdout == address
    assert sorted(book.read_text()) == sorted(before)


def test_lost_passwords_are_not_replaced_by_ones_that_no_database_knows(home: Home) -> None:
    home.up(ONE)
    kept = home.path / "shop" / "credentials.json"
    text = kept.read_text()
    kept.unlink()
    refused = home.run("status", "shop", check=False)
    assert (refused.returncode, f"{kept} is lost" in refused.stderr, kept.exists()) == (1, True, False)
    kept.write_text(text)
    home.wait_phase("Running")


def test_after_a_power_cut_start_does_not_believe_what_was_true_before(home: Home) -> None:
    home.up(ONE)
    home.kill_all()
    home.run("start", "shop")
    assert home.query("SELECT 1") == [(1,)]
