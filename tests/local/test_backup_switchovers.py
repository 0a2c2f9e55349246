"""Two standbys and more: both follow a promotion, and both go on archiving."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgherd.backup.gaps import file_name
from pgherd.backup.wal import SEGMENT_BYTES, parse_history
from pgherd.engine.registry import make_engine
from pgherd.model.topology import SUPERUSER
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.money import Ledger, audit, await_transfers, make_tables, movers
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    condition,
    restorable,
    with_backups,
)

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

SWITCHOVERS = 3
MEMBERS = 3
_STANDING = """
SELECT last_failed_wal FROM pg_stat_archiver
 WHERE last_failed_time > coalesce(last_archived_time, '-infinity')
   AND EXISTS (SELECT FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')
"""


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", segments=1, standbys=2), timeout=400)
        with home.connect() as connection:
            make_tables(connection)
        await_first_backup(home)
        yield home


def at_each_member(home: Home, group: int, statement: str) -> list[list[tuple[Any, ...]]]:
    databases = observe.connect(LocalPlatform(home.path), "shop", make_engine).databases
    found = []
    for member in databases.addresses()[group]:
        parameters = {
            **databases.parameters(group, database=SUPERUSER),
            **{"host": member.host, "port": str(member.port), "target_session_attrs": "any"},
        }
        with psycopg.connect(autocommit=True, **parameters) as connection:  # type: ignore[arg-type]
            done = connection.execute(statement)
            found.append(done.fetchall() if done.description else [])
    return found


def await_all(home: Home) -> None:
    def complete() -> bool:
        groups = {entry["name"]: entry for entry in home.status()["groups"]}
        roles = [each["role"] for each in groups["segment-1"]["members"] if each["state"] != "stopped"]
        return sorted(roles) == ["primary", "standby", "standby"]

    wait_for(complete, "all members are back", 120, every=0.5)
    wait_for(lambda: len(at_each_member(home, 1, "SELECT 1")) == MEMBERS, "they answer", 60, every=0.5)


def switch_over(home: Home, ledger: Ledger) -> None:
    """With files of the log that were used before: what lies behind the end of one is another's content then."""
    before = home.member("segment-1", "primary")["name"]
    await_transfers(ledger, 50)
    await_point_after(home, restorable(home)[-1]["time"])
    at_each_member(home, 1, "CHECKPOINT")
    home.run("switchover", "shop", "--group", "segment-1", timeout=120)
    home.await_another_primary("segment-1", before)
    await_all(home)
    await_transfers(ledger, 50)


def left_files(home: Home) -> set[Path]:
    """The files in which a member says that their timeline was left, as it has them archived."""
    found = set()
    for log in (home.path / "shop" / "members").glob("shop-segment-1-*/data/pg_wal"):
        for path in log.glob("*.history"):
            for timeline, lsn in parse_history(int(path.stem, 16), path.read_text()).left.items():
                if lsn % SEGMENT_BYTES:
                    found.add(log / "archive_status" / f"{file_name(timeline, lsn // SEGMENT_BYTES)}.done")
    return found


def test_after_switchovers_every_member_archives_and_points_can_be_restored(
    home: Home, tmp_path: Path
) -> None:
    with movers(home.dsn()) as ledger:
        for _ in range(SWITCHOVERS):
            switch_over(home, ledger)
    assert not ledger.errors, ledger.errors[:3]
    passed_over = [path for path in left_files(home) if path.exists()]
    assert passed_over, "PostgreSQL wanted such a file archived"
    archived = {
        path.name for path in (home.path.parent / "repository" / "shop" / "wal").glob("segment-1/*/*")
    }
    assert not archived & {path.stem for path in passed_over}

    last = max(ledger.acknowledged.values()).isoformat(timespec="milliseconds")
    target = await_point_after(home, last)
    wait_for(
        lambda: not any(at_each_member(home, 1, _STANDING)),
        "nobody is refused by the repository",
        90,
        every=1,
    )
    assert condition(home, "BackupsHealthy")["status"] == "True", condition(home, "BackupsHealthy")
    assert int(target["lsns"]["1"]["timeline"]) > SWITCHOVERS
    lean = tmp_path / "lean.yaml"
    lean.write_text(declaration(name="any", segments=1, standbys=0))
    inside = [point for point in restorable(home) if point["time"] < last][-1]
    for point, name in ((inside, "within"), (target, "then")):
        home.run("restore", "shop", name, "--point", point["name"], "-f", str(lean), timeout=400)
        with home.connect(name) as connection:
            until = datetime.fromisoformat(point["time"])
            known = restorable(home)
            before = [each for each in known if each["time"] < point["time"]][-1]
            audit(connection, ledger, since=datetime.fromisoformat(before["time"]), until=until)
        assert_sound(home, name)
        home.run("delete", name, "--purge", "--yes")


def test_a_standby_that_can_not_archive_is_told_of(home: Home) -> None:
    """Its log would grow until its disk is full, while its primary archives as if nothing were wrong."""
    standby = home.member("segment-1", "standby")["name"]
    log = home.path / "shop" / "members" / standby / "data" / "pg_wal"
    archived = (home.path.parent / "repository" / "shop" / "wal").glob("segment-1/*/*")
    name = min(path.name for path in archived if len(path.name) == 24)
    own, aside, ready = log / name, log / "aside", log / "archive_status" / f"{name}.ready"
    if own.exists():
        own.rename(aside)
    own.write_bytes(bytes([1]) * SEGMENT_BYTES)
    ready.touch()

    def told() -> str | None:
        at_each_member(home, 1, "SELECT pg_switch_wal() WHERE NOT pg_is_in_recovery()")
        found = condition(home, "BackupsHealthy")
        return str(found["message"]) if found["status"] == "False" else None

    try:
        message = wait_for(told, "the condition tells", 150, every=1)
        assert "a standby of segment-1 (127.0.0.1:" in message
        assert f"can't archive {name}" in message
    finally:
        ready.unlink(missing_ok=True)
        own.unlink()
        if aside.exists():
            aside.rename(own)
    wait_for(lambda: condition(home, "BackupsHealthy")["status"] == "True", "it is well again", 150, every=1)
