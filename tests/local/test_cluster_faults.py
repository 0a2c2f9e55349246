"""Things die. Databases go on or come back, and no acknowledged row is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.writers import audit, make_table, writers

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(declaration())
        with home.connect() as connection:
            make_table(connection)
        yield home


@pytest.fixture(autouse=True)
def _healthy(home: Home) -> None:
    with home.connect() as connection:
        connection.execute("TRUNCATE ledger")


def patronis(home: Home) -> set[int]:
    return {process.pid for process in home.running("patroni.yml")}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("group", ["segment-1", "coordinator"])
def test_a_primary_killed_under_writers_loses_nothing(home: Home, engine: str, group: str) -> None:
    before = home.member(group, "primary")["name"]
    with writers(home.connect) as journal:
        wait_for(lambda: len(journal.acknowledged) > 50, "writers are at work")
        killed = home.postmaster(before)
        kill(killed)
        if engine == "citus":
            home.await_restart(group, before, killed, 40)
        else:
            home.await_another_primary(group, before, 40)
        done = len(journal.acknowledged)
        wait_for(lambda: len(journal.acknowledged) > done + 100, "writers go on", 40)
    home.wait_phase("Running")
    with home.connect() as connection:
        audit(connection, journal)


def test_killed_standbys_and_patronis_come_back(home: Home) -> None:
    standby = home.member("segment-2", "standby")["name"]
    kill(home.postmaster(standby))
    home.wait_phase("Running")
    before = patronis(home)
    with writers(home.connect) as journal:
        for pid in before:
            kill(pid)
        wait_for(
            lambda: len(patronis(home)) == len(before) and not patronis(home) & before,
            "all Patronis are new",
            60,
        )
        done = len(journal.acknowledged)
        wait_for(lambda: len(journal.acknowledged) > done + 50, "writers go on", 60)
    home.wait_phase("Running")
    with home.connect() as connection:
        audit(connection, journal)


def test_a_server_that_can_not_start_says_why_in_the_status(home: Home) -> None:
    standby = home.member("segment-2", "standby")["name"]
    settings = next(home.path.glob(f"*/members/{standby}/data")) / "postgresql.auto.conf"
    good = settings.read_text()
    settings.write_text(f"{good}this is no setting\n")
    kill(home.postmaster(standby))
    told = f"{standby} is [a-z]+ \\(its log says: FATAL: .*postgresql.auto.conf"
    wait_for(lambda: re.search(told, json.dumps(home.status()["conditions"])), "the status says why", 60)
    settings.write_text(good)
    home.wait_phase("Running")
    assert "its log says" not in json.dumps(home.status()["conditions"])


def listen_on(port: int) -> socket.socket | None:
    """Take a port; None while somebody has it."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_a_primary_whose_patroni_cannot_start_gives_way_to_its_standby(home: Home) -> None:
    """Left alone it would stay, writable in name, beside the one that is promoted: whoever found it would hang."""
    primary = home.member("segment-2", "primary")["name"]
    directory = home.path / "shop" / "members" / primary
    ports = json.loads((home.path / "ports.json").read_text())["shop"][primary]
    server = home.postmaster(primary)
    with writers(home.connect) as journal:
        for process in home.running(str(directory / "patroni.yml")):
            process.kill()
        with wait_for(lambda: listen_on(ports["rest"]), "its port was free", 20, every=0.001):
            wait_for(lambda: not psutil.pid_exists(server), "the server that nobody guards has ended", 60)
            wait_for(
                lambda: any(f"port {ports['rest']}" in error for error in home.status()["errors"]),
                "the status names the port",
                30,
            )
            done = len(journal.acknowledged)
            wait_for(lambda: len(journal.acknowledged) > done + 50, "writers go on", 60)
        home.wait_phase("Running")
    assert home.member("segment-2", "primary")["name"] != primary
    with home.connect() as connection:
        audit(connection, journal)


def test_a_user_who_locks_a_table_holds_up_neither_status_nor_repair(home: Home) -> None:
    standby = home.member("segment-1", "standby")["name"]
    killed = home.postmaster(standby)
    with home.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("TRUNCATE ledger")
        kill(killed)
        wait_for(
            lambda: (
                home.postmaster(standby) != killed
                and home.member("segment-1", "standby")["state"] == "running"
            ),
            "the standby is back",
            60,
        )


def test_the_store_killed_comes_back_and_databases_go_on(home: Home) -> None:
    raft = home.running("raft.yml")
    assert raft
    with writers(home.connect) as journal:
        wait_for(lambda: len(journal.acknowledged) > 20, "writers are at work")
        for process in raft:
            kill(process.pid)
        done = len(journal.acknowledged)
        wait_for(lambda: len(journal.acknowledged) > done + 100, "writers go on", 60)
    home.wait_phase("Running")
    with home.connect() as connection:
        audit(connection, journal)


def test_the_supervisor_killed_stops_nothing_and_its_successor_adopts(home: Home) -> None:
    members = patronis(home)
    supervisor = home.supervisor()
    assert supervisor is not None
    with writers(home.connect) as journal:
        kill(supervisor.pid)
        wait_for(
            lambda: not psutil.pid_exists(supervisor.pid) or home.supervisor() is None,
            "the supervisor is gone",
        )
        done = len(journal.acknowledged)
        wait_for(lambda: len(journal.acknowledged) > done + 50, "writers go on without it")
    home.up(declaration())
    assert home.supervisor() is not None
    assert patronis(home) == members
    with home.connect() as connection:
        audit(connection, journal)


def test_after_a_power_cut_start_brings_everything_back(home: Home) -> None:
    with writers(home.connect) as journal:
        wait_for(lambda: len(journal.acknowledged) > 100, "writers are at work")
        home.kill_all()
    home.run("start", "shop")
    home.wait_phase("Running")
    with home.connect() as connection:
        audit(connection, journal)


def test_a_power_cut_during_creation_is_no_harm() -> None:
    with temporary_home() as home:
        home.up(declaration(segments=1), "--no-wait")
        wait_for(
            lambda: list(home.path.glob("shop/members/*/data/PG_VERSION")),
            "a first data directory is there",
            30,
        )
        home.kill_all()
        home.run("start", "shop")
        home.wait_phase("Running")
        assert home.query("SELECT 1") == [(1,)]


def test_a_supervisor_of_another_version_is_replaced(home: Home) -> None:
    """After an upgrade of pgherd the next command starts its own supervisor; databases don't notice."""
    before, members = home.supervisor(), patronis(home)
    assert before is not None
    (home.path / "supervisor.lock").write_text(f"{before.pid} 0.0.1")
    home.up(declaration())
    after = home.supervisor()
    assert after is not None
    assert after.pid != before.pid
    assert patronis(home) == members
