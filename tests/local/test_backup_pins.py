"""What is being restored is left by retention, whoever reads and whoever keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup.records import now
from tests.support.contents import make_items
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.repositories import (
    await_first_backup,
    await_point_after,
    backups,
    condition,
    points,
    with_backups,
)
from tests.support.throttle import throttled

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

SHAPE: dict[str, Any] = {"segments": 1, "standbys": 0, "shards": 2}
KEPT = ", retention: {full: 1, days: 0}"


def there(home: Home) -> list[str]:
    return [str(each["id"]) for each in backups(home)]


def back_up(home: Home, *stays: str) -> str:
    """A full backup, and the retention after it, of which these are left."""
    home.run("backup", "shop", timeout=300)
    newest = there(home)[-1]
    wait_for(lambda: there(home) == [*stays, newest], f"{stays} stay and nothing else goes on", 60, every=0.5)
    return newest


def told(home: Home) -> list[dict[str, Any]]:
    """Who reads, as the status says."""
    return list(home.status()["backups"].get("readers", ()))


def pins(repository: Path) -> list[Path]:
    return sorted((repository / "shop" / "pins").glob("*.json"))


def test_what_another_home_restores_stays_until_that_is_done_though_it_was_killed_meanwhile(
    tmp_path: Path,
) -> None:
    throttle = throttled(tmp_path / "bin")
    lean = tmp_path / "lean.yaml"
    lean.write_text(declaration(name="any", **SHAPE))
    with (
        temporary_home() as source,
        temporary_home({"PGHERD_BIN_DIR": str(throttle.directory)}) as other,
    ):
        repository = source.path.parent / "repository"
        source.up(with_backups(repository, extra=KEPT, **SHAPE), timeout=300)
        with source.connect() as connection:
            make_items(connection, 1000)
        first = str(await_first_backup(source)["id"])
        point = await_point_after(source, now())
        before = source.query("SELECT count(*), sum(id)::bigint FROM item")
        throttle.on()
        given = ("--repository", str(repository), "--point", point["name"], "-f", str(lean))
        other.run("restore", "shop", "copy", *given, "--no-wait", timeout=120)
        [pin] = wait_for(lambda: pins(repository), "it is written down what is read", 60)
        source.query("DELETE FROM item WHERE id > 500 RETURNING 1")

        # Its copy stands still. What nobody reads goes.
        second = back_up(source, first)
        third = back_up(source, first)
        assert second not in there(source)
        assert point["name"] in {each["name"] for each in points(source)}
        [reader] = wait_for(lambda: told(source), "the status says who reads", 30)
        assert (reader["backups"], reader["reader"].split(" at ")[0]) == ([first], "restore of copy")
        assert condition(source, "BackupsHealthy")["status"] == "True"

        supervisor = other.supervisor()
        assert supervisor is not None
        supervisor.kill()
        supervisor.wait(10)
        known = json.loads(pin.read_text())
        fourth = back_up(source, first)
        assert third not in there(source)
        other.run("start", "copy", "--no-wait")
        wait_for(lambda: json.loads(pin.read_text())["since"] > known["since"], "it is taken over", 60)
        assert pins(repository) == [pin]
        throttle.off()
        other.wait_phase("Running", "copy", timeout=200)
        assert other.query("SELECT count(*), sum(id)::bigint FROM item", "copy") == before
        assert pins(repository) == []
        wait_for(lambda: there(source) == [fourth], "what was read goes", 120, every=1)
        assert point["name"] not in {each["name"] for each in points(source)}
        wait_for(lambda: not told(source), "nobody reads", 30)
