"""What only a drill finds: damage that a backup takes along unseen, and files of a repository that have changed.

That of pgBackRest is skipped, counted, where none is installed that knows the server's version (``PGHERD_PGBACKREST``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup.records import now
from tests.local.test_backup_pgbackrest import PASSPHRASE, REASON, with_pgbackrest, write_secret
from tests.support.citus import superuser
from tests.support.contents import make_items
from tests.support.engines import engine
from tests.support.home import Home, temporary_home, wait_for
from tests.support.repositories import await_first_backup, await_point_after, condition, with_backups

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

PAGE = 8192
ALL_BUT_ROWS = {"copies": True, "pages": True, "catalogue": True, "rows": False, "relations": True}


def last(home: Home) -> dict[str, Any]:
    """The last drill."""
    return dict(json.loads(home.run("drills", "shop", "-o", "json").stdout)[-1])


def done(drill: dict[str, Any]) -> dict[str, bool]:
    return {each["check"]: each["done"] for each in drill["checks"]}


def make_table(home: Home) -> None:
    with home.connect() as connection:
        make_items(connection, 2000)


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(with_backups(home.path.parent / "repository", standbys=0), timeout=300)
        make_table(home)
        await_first_backup(home)
        await_point_after(home, now())
        yield home


def test_a_drill_says_which_checks_it_made(home: Home) -> None:
    told = home.run("drill", "shop", timeout=600).stdout
    assert "was restored and is sound" in told
    assert "not checked" not in told
    drill = last(home)
    assert done(drill) == ALL_BUT_ROWS
    assert {each["check"]: each["by"] for each in drill["checks"]}["copies"] == "pg_verifybackup"
    assert not (home.path / "shop-drill").exists()


def test_a_page_that_a_backup_took_along_damaged_is_found_though_nobody_reads_it(home: Home) -> None:
    """It looks newer than any backup, so ``pg_basebackup`` passes over it; ``pg_amcheck`` knows no hash indexes."""
    with home.connect() as connection:
        connection.execute("CREATE TABLE local_only (id int)")
        connection.execute("INSERT INTO local_only SELECT generate_series(1, 2000)")
        connection.execute("CREATE INDEX unread ON local_only USING hash (id)")
    with superuser(home) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute(
            "SELECT current_setting('data_directory'), pg_relation_filepath('unread')"
        ).fetchone()
    assert row is not None
    file = Path(row[0]) / row[1]
    whole = file.read_bytes()
    try:
        damaged = (
            b"\xff\xff\x00\x00" + whole[PAGE + 4 : PAGE + 100] + b"damage" + whole[PAGE + 106 : 2 * PAGE]
        )
        file.write_bytes(whole[:PAGE] + damaged + whole[2 * PAGE :])
        home.run("backup", "shop", timeout=300)
        await_point_after(home, now())
        failed = home.run("drill", "shop", check=False, timeout=600)
    finally:
        file.write_bytes(whole)
    assert failed.returncode == 1, failed
    drill = last(home)
    assert f"coordinator: the page checksum of {row[1]}, page 1, is wrong" in drill["problems"], drill
    assert done(drill) == ALL_BUT_ROWS
    told = wait_for(
        lambda: (found := condition(home, "RestoreProven"))["status"] == "False" and found, "it is told", 60
    )
    assert row[1] in told["message"], told
    assert not (home.path / "shop-drill").exists()


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_pgbackrest_says_which_file_of_which_group_is_damaged() -> None:
    with temporary_home() as home:
        folder = home.path.parent
        secret = write_secret(folder / "keys.yaml", passphrase=PASSPHRASE)
        repository = {"path": str(folder / "repository")}
        home.up(with_pgbackrest(repository, secret, encrypt=True, standbys=0), timeout=300)
        make_table(home)
        await_first_backup(home)
        await_point_after(home, now())
        home.run("drill", "shop", timeout=600)
        drill = last(home)
        assert done(drill) == ALL_BUT_ROWS, drill
        assert {each["check"]: each["by"] for each in drill["checks"]}["copies"] == "pgbackrest verify"
        copies = folder / "repository" / "shop" / "pgbackrest" / "backup"
        victim = max(copies.glob("segment-1-*/*/bundle/*"), key=lambda path: path.stat().st_size)
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :])
        failed = home.run("drill", "shop", check=False, timeout=600)
        assert failed.returncode == 1, failed
        drill = last(home)
        assert any(
            text.startswith(f"segment-1: {victim.parts[-3]}/") and "has another checksum" in text
            for text in drill["problems"]
        ), drill
        made = done(drill)
        assert (made["copies"], made["pages"]) == (True, False), drill
        victim.write_bytes(whole)
        home.run("drill", "shop", timeout=600)
        assert last(home)["passed"]
