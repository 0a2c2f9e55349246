"""Clusters with backups, driven by the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psycopg

from pgherd.backup.records import now
from tests.support.home import Home, declaration, wait_for


def restores(usual: int) -> int:
    """How many points are restored where money moved; ``make test-points`` wants more of them."""
    return int(os.environ.get("PGHERD_RESTORES", usual))


def write_seconds(usual: float) -> float:
    """How long money moves for that, a point each second."""
    return float(os.environ.get("PGHERD_WRITE_SECONDS", usual))


def with_backups(repository: Path, *, every: str = "1s", extra: str = "", **shape: Any) -> str:
    """A declaration with backups."""
    backup = f"  backup: {{repository: {{path: {repository}}}, restorePointEvery: {every}{extra}}}\n"
    return declaration(extra=backup, **shape)


def points(home: Home, *arguments: str, name: str = "shop") -> list[dict[str, Any]]:
    """``pgherd restore-points -o json``."""
    return list(json.loads(home.run("restore-points", name, *arguments, "-o", "json").stdout))


def restorable(home: Home, *arguments: str, name: str = "shop") -> list[dict[str, Any]]:
    """Those that can be restored."""
    return [point for point in points(home, *arguments, name=name) if point["restorable"]]


def backups(home: Home, *arguments: str, name: str = "shop") -> list[dict[str, Any]]:
    """``pgherd backups -o json``."""
    return list(json.loads(home.run("backups", name, *arguments, "-o", "json").stdout))


def await_first_backup(home: Home, name: str = "shop") -> dict[str, Any]:
    """The backup that is made by itself."""

    def done() -> dict[str, Any] | None:
        found = backups(home, name=name)
        return found[0] if found and found[0]["phase"] == "done" else None

    return dict(wait_for(done, "the first backup is done", 120, every=0.5))


def await_point_after(home: Home, time: str, name: str = "shop") -> dict[str, Any]:
    """The first restorable point that holds all that is there now, and is later than ``time``."""
    after = max(time, now())
    with home.connect(name) as connection:
        stir(connection)

    def there() -> dict[str, Any] | None:
        return next((point for point in restorable(home, name=name) if point["began"] > after), None)

    return dict(wait_for(there, f"a point after {after} can be restored", 90, every=0.5))


def stir(connection: psycopg.Connection[Any]) -> None:
    """A change of nothing: no point is made of a cluster at rest."""
    connection.execute("SELECT pg_current_xact_id()")


def assert_sound(home: Home, name: str) -> None:
    """``pgherd check`` finds nothing wrong; a busy machine's server that does not answer in time is asked again."""

    def sound() -> bool:
        done = home.run("check", name, check=False)
        others = [line for line in done.stdout.splitlines() if "can't be reached" not in line]
        assert done.returncode == 0 or len(others) == 1, done.stdout + done.stderr
        return done.returncode == 0

    wait_for(sound, f"{name} answers", 90, every=1)


def condition(home: Home, kind: str, name: str = "shop") -> dict[str, Any]:
    """A condition of the status; empty if there is none of this kind."""
    found = {each["type"]: each for each in home.status(name)["conditions"]}
    return dict(found.get(kind, {}))
