"""Scaling out by clone: a new segment begins as a standby of a present one and takes half of its shards.

What must hold whatever dies: every acknowledged row is there once, through whichever node it was written, and nothing
of a copy is left (slot, registration, pause, members).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.citus import citus_home, needs_citus, superuser
from tests.support.contents import make_items
from tests.support.home import Home, declaration, wait_for
from tests.support.writers import Journal, audit, make_table, writers

pytestmark = needs_citus

ROWS = 3000
MODE = "  expansion: {mode: clone}\n"


def declared(segments: int = 2, standbys: int = 0) -> str:
    return declaration(engine="citus", segments=segments, standbys=standbys, extra=MODE)


@contextmanager
def herd(segments: int = 2, standbys: int = 0, env: dict[str, str] | None = None) -> Iterator[Home]:
    with citus_home(env) as home:
        home.up(declared(segments, standbys), timeout=300)
        with home.connect() as connection:
            make_table(connection)
            make_items(connection, ROWS)
            connection.execute("CREATE TABLE kind (id int PRIMARY KEY, name text)")
            connection.execute("SELECT create_reference_table('kind')")
            connection.execute("INSERT INTO kind VALUES (1, 'one'), (2, 'two')")
            connection.execute("CREATE TABLE numbered (id bigserial PRIMARY KEY, note text)")
            connection.execute("SELECT create_distributed_table('numbered', 'id')")
        yield home


def whole(home: Home, segments: int) -> None:
    """Everything is there once and spread, and nothing of a copy is left."""
    status = home.wait_phase("Running", timeout=180)
    assert len(status["groups"]) == segments + 1
    assert all(group["shards"] for group in status["groups"][1:]), status["groups"]
    assert home.query("SELECT count(*), sum(id)::bigint FROM item") == [(ROWS, ROWS * (ROWS + 1) // 2)]
    for group in status["groups"][1:]:
        with home.connect("shop", "--group", group["name"]) as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (ROWS,)
            assert connection.execute("SELECT count(*) FROM kind").fetchone() == (2,)
        with superuser(home, group["name"]) as connection:
            slots = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ 'clone'")
            assert slots.fetchall() == []
    with superuser(home) as connection:
        for table in ("pgherd.clone", "pgherd.cleanup", "pg_dist_cleanup"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        query = "SELECT count(*) FROM pg_dist_node WHERE nodeisclone OR noderole = 'unavailable'"
        assert connection.execute(query).fetchone() == (0,)
    wait_for(
        lambda: home.run("check", "shop", check=False).stdout.strip().endswith("nothing found wrong"),
        f"a sound cluster: {home.run('check', 'shop', check=False).stdout}",
        60,
        every=1.0,
    )


def audited(home: Home, journal: Journal) -> None:
    journal.errors = [error for error in journal.errors if "postmaster was shut down" not in error]
    with home.connect() as connection:
        audit(connection, journal)


def scale(home: Home, segments: int) -> threading.Thread:
    thread = threading.Thread(
        target=home.run,
        args=("scale", "shop", "--segments", str(segments)),
        kwargs={"timeout": 400, "check": False},
    )
    thread.start()
    return thread


def phase_of_copy(home: Home) -> list[tuple[str]]:
    with superuser(home) as connection:
        return connection.execute("SELECT state FROM pgherd.clone").fetchall()


def test_two_segments_are_split_into_four_under_writers_of_every_node() -> None:
    with herd(standbys=1) as home:
        sessions = [
            home.dsn(),
            home.dsn("shop", "--group", "segment-1"),
            home.dsn("shop", "--group", "segment-2"),
        ]
        turns = iter(sessions * 100)
        with writers(lambda: psycopg.connect(next(turns), autocommit=True), 6) as journal:
            home.run("scale", "shop", "--segments", "4", timeout=500)
        pause = max(seconds for _, seconds in journal.latencies)
        print(
            f"{len(journal.acknowledged)} rows, longest write {pause:.1f} s, {len(journal.unknown)} unknown"
        )
        assert not journal.unknown, journal.errors[:3]
        audited(home, journal)
        whole(home, 4)
        last = home.status()["lastOperation"]
        assert last["message"] == "expanded to 4 segments: 2 of them split off from others"
        assert all(home.member(f"segment-{n}", "standby")["sync"] for n in (1, 2, 3, 4))
        _numbers_differ(home)
        # ... and back, by moves.
        home.run("scale", "shop", "--segments", "2", timeout=500)
        whole(home, 2)
        audited(home, journal)


def _numbers_differ(home: Home) -> None:
    """Each node numbers rows by itself: a copy must not go on where its source does."""
    for n in (1, 2, 3, 4):
        with home.connect("shop", "--group", f"segment-{n}") as connection:
            connection.execute("INSERT INTO numbered (note) SELECT 'x' FROM generate_series(1, 20)")
    assert home.query("SELECT count(*), count(DISTINCT id) FROM numbered") == [(80, 80)]


POINTS = [
    *(f"expand:{step}:{moment}" for step in ("check", "copies") for moment in ("started", "done")),
    *(f"expand:split:{moment}" for moment in ("started", "registered", "switched", "done")),
    "expand:clean-up:started",
    "expand:operation:done",
]


def test_a_supervisor_killed_after_every_step_leaves_a_whole_cluster(tmp_path: Path) -> None:
    log = tmp_path / "crashes"
    with herd(env={"PGHERD_CRASH_AT": ",".join(POINTS), "PGHERD_CRASH_LOG": str(log)}) as home:
        with writers(home.connect, 2) as journal:
            home.run("scale", "shop", "--segments", "3", timeout=500)
        whole(home, 3)
        assert set(POINTS) == set(log.read_text().split())
        audited(home, journal)


def test_a_supervisor_killed_while_the_split_runs_loses_nothing() -> None:
    with herd() as home:
        with writers(home.connect, 2) as journal:
            thread = scale(home, 3)
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgherd split 3'"
            with superuser(home) as watch:
                wait_for(
                    lambda: (watch.execute(query).fetchone() or (0,))[0], "the split runs", 200, every=0.01
                )
            daemon = home.supervisor()
            assert daemon is not None
            daemon.kill()
            home.up(declared(3), timeout=400)
            thread.join()
        whole(home, 3)
        audited(home, journal)


@pytest.mark.parametrize("group", ["segment-1", "coordinator"])
def test_a_primary_killed_while_a_segment_is_copied_loses_nothing(group: str) -> None:
    with herd(segments=1, standbys=1) as home:
        with writers(home.connect, 2) as journal:
            thread = scale(home, 2)
            wait_for(lambda: phase_of_copy(home), "a copy is begun", 60)
            os.kill(home.postmaster(home.member(group, "primary")["name"]), signal.SIGKILL)
            thread.join()
        whole(home, 2)
        audited(home, journal)


def test_a_copy_killed_while_it_is_split_off_is_made_anew() -> None:
    with herd() as home:
        with writers(home.connect, 2) as journal:
            thread = scale(home, 3)
            wait_for(lambda: phase_of_copy(home) == [("parting",)], "the split is near", 200, every=0.05)
            os.kill(home.postmaster("shop-segment-3-0"), signal.SIGKILL)
            thread.join()
        whole(home, 3)
        audited(home, journal)


def test_a_new_segment_killed_right_after_the_split_comes_back_as_a_segment() -> None:
    with herd() as home:
        with writers(home.connect, 2) as journal:
            thread = scale(home, 3)
            query = "SELECT 1 FROM pgherd.segment WHERE group_id = 3"
            with superuser(home) as watch:
                wait_for(lambda: watch.execute(query).fetchone(), "it is a segment", 200, every=0.01)
            os.kill(home.postmaster("shop-segment-3-0"), signal.SIGKILL)
            thread.join()
        whole(home, 3)
        audited(home, journal)


def test_a_cancelled_split_leaves_nothing_behind() -> None:
    with herd() as home:
        thread = scale(home, 4)
        wait_for(lambda: len(phase_of_copy(home)) == 2, "copies are begun", 60)
        home.run("cancel", "shop", timeout=200)
        thread.join()
        wait_for(lambda: len(home.status()["groups"]) == 3, "the copies are gone", 60)
        wait_for(lambda: not phase_of_copy(home), "nobody knows of them", 60)
        whole(home, 2)


def test_more_segments_than_can_be_split_off_is_said_with_the_way_out() -> None:
    with herd(segments=1) as home:
        done = home.run("scale", "shop", "--segments", "3", check=False, timeout=200)
        assert done.returncode == 1
        assert "from 1 at most 2 come in one go: scale to 2 first" in done.stdout + done.stderr
        home.run("scale", "shop", "--segments", "1", timeout=200)
        whole(home, 1)
