"""Two homes, a name and a path: their clusters do not mix their backups, though their databases are the same system."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.backup.records import now
from tests.support.engines import engine
from tests.support.home import Home, temporary_home, wait_for
from tests.support.repositories import (
    await_first_backup,
    await_point_after,
    condition,
    restorable,
    with_backups,
)

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]


def health(home: Home) -> dict[str, Any]:
    return condition(home, "BackupsHealthy", "twin")


def test_clusters_of_one_name_restored_in_two_homes_do_not_mix_their_backups() -> None:
    with temporary_home() as first, temporary_home() as second:
        path = first.path.parent / "repository"
        first.up(with_backups(path, segments=1, standbys=0), timeout=300)
        await_first_backup(first)
        point = await_point_after(first, now())
        for home in (first, second):
            given = ("restore", "shop", "twin", "--repository", str(path), "--point", point["name"])
            home.run(*given, "--no-wait", timeout=120)
        for home in (first, second):
            home.wait_phase("Running", "twin", timeout=300)
        known = wait_for(
            lambda: (
                (found := [health(home)["status"] for home in (first, second)]).count("True") == 1 and found
            ),
            "one of them has the repository",
            120,
            every=1,
        )
        winner, other = (first, second) if known[0] == "True" else (second, first)
        told = wait_for(
            lambda: "holds the backups of another cluster" in (text := health(other)["message"]) and text,
            "the other one is told",
            60,
            every=1,
        )
        assert "name another path" in told
        with other.connect("twin") as connection:
            connection.execute("CREATE TABLE mine AS SELECT generate_series(1, 1000) AS id")
        with winner.connect("twin") as connection:
            connection.execute("CREATE TABLE theirs AS SELECT generate_series(1, 2000) AS id")
        made = await_point_after(winner, now(), "twin")
        for command in ("backup", "backups", "restore-points"):
            refused = other.run(command, "twin", check=False)
            assert refused.returncode == 2, refused
            assert "holds the backups of another cluster" in refused.stderr
        winner.run("restore", "twin", "proof", "--point", made["name"], timeout=400)
        assert winner.query("SELECT count(*) FROM theirs", "proof") == [(2000,)]
        assert health(winner)["status"] == "True"
        # A place of its own, and it has backups, too.
        elsewhere = other.path.parent / "elsewhere"
        other.up(with_backups(elsewhere, name="twin", segments=1, standbys=0), timeout=300)
        await_first_backup(other, "twin")
        wait_for(lambda: restorable(other, name="twin"), "it has a point", 120, every=1)
        wait_for(lambda: health(other)["status"] == "True", "it is well", 60, every=1)
