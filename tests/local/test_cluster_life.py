"""The life of a whole cluster on one machine, as its owner lives it: by the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.contents import make_items
from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

MEMBERS = {f"shop-{group}-{n}" for group in ("coordinator", "segment-1", "segment-2") for n in (0, 1)}


@pytest.fixture(scope="module")
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(declaration())
        home.query("SELECT 1")
        with home.connect() as connection:
            make_items(connection, 500)
        yield home


def items(home: Home, name: str = "shop") -> tuple[int, int]:
    return home.query("SELECT count(*), sum(id)::bigint FROM item", name)[0]


def test_up_makes_what_was_declared(home: Home) -> None:
    status = home.status()
    assert status["phase"] == "Running"
    assert {m["name"] for group in status["groups"] for m in group["members"]} == MEMBERS
    assert sum(group["shards"] for group in status["groups"]) == 8
    assert status["operation"] is None


def test_up_again_changes_nothing(home: Home) -> None:
    before = {member: home.postmaster(member) for member in MEMBERS}
    home.up(declaration())
    assert {member: home.postmaster(member) for member in MEMBERS} == before


def test_rows_are_spread_over_the_segments(home: Home) -> None:
    counts = home.query("SELECT result FROM run_command_on_shards('item', 'SELECT count(*) FROM %s')")
    assert sum(int(row[0]) for row in counts) == 500
    assert all(int(row[0]) > 0 for row in counts)


def test_segment_configuration_shows_every_member(home: Home) -> None:
    def complete() -> bool:
        rows = home.query("SELECT member, role, mode, status FROM pgherd.segment_configuration")
        shown = {row[0]: row[1:] for row in rows}
        return (
            shown.keys() == MEMBERS
            and all(state[2] == "up" for state in shown.values())
            and sum(state[0] == "primary" for state in shown.values()) == 3
            and sum(state[1] == "synchronous" for state in shown.values()) == 3
        )

    wait_for(complete, "all members are shown, with one primary and one synchronous standby a group", 30)


def test_the_dsn_names_every_member_and_reads_go_to_a_standby(home: Home) -> None:
    assert home.dsn().count("127.0.0.1:") == 2
    with home.connect("shop", "--role", "ro") as connection:
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    assert row == (True,)
    with home.connect("shop", "--group", "segment-2") as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


def test_psql_runs_a_command(home: Home) -> None:
    assert home.run("psql", "shop", "--", "-Atc", "SELECT count(*) FROM item").stdout.strip() == "500"


def setting(home: Home, name: str) -> set[str]:
    values = set()
    for group in home.status()["groups"]:
        for member in group["members"]:
            dsn = psycopg.conninfo.make_conninfo(
                home.dsn(), host=member["host"], port=member["port"], target_session_attrs="any"
            )
            with psycopg.connect(dsn) as connection:
                row = connection.execute(f"SHOW {name}").fetchone()
                values.add(row[0] if row else "")
    return values


def test_changed_parameters_reach_every_member(home: Home) -> None:
    """One needs only a reload, the other a rolling restart."""
    home.up(declaration(extra="  postgres: {parameters: {work_mem: 7MB, max_connections: 210}}\n"))
    wait_for(lambda: setting(home, "work_mem") == {"7MB"}, "work_mem is everywhere", 90)
    wait_for(lambda: setting(home, "max_connections") == {"210"}, "max_connections is everywhere", 180)
    assert home.wait_phase("Running")["phase"] == "Running"
    home.up(declaration(extra="  postgres: {parameters: {max_connections: 190}}\n"))
    wait_for(lambda: setting(home, "max_connections") == {"190"}, "lowered everywhere", 180)
    wait_for(lambda: setting(home, "work_mem") != {"7MB"}, "work_mem is back to its default", 30)
    assert items(home) == (500, 125250)


WRONG_RULES = """\
  postgres:
    parameters: {max_connections: 230}
    hostBasedAuthentication: |
      host all app all scram-sha-256
      host all /^( all scram-sha-256
"""


def told_of_rules(home: Home) -> str:
    conditions = {each["type"]: each["message"] for each in home.status()["conditions"]}
    return str(conditions.get("AccessRulesUnread", ""))


def test_a_rule_that_no_server_can_read_is_told_and_nobody_restarts_until_it_is_right(home: Home) -> None:
    before = {member: home.postmaster(member) for member in MEMBERS}
    home.up(declaration(extra=WRONG_RULES))
    told = "line 2 (host all /^( all scram-sha-256) can't be read: invalid regular expression"
    wait_for(lambda: told in told_of_rules(home), "the status names the line", 30)
    time.sleep(10)
    assert home.status()["phase"] == "Running"
    assert {member: home.postmaster(member) for member in MEMBERS} == before
    home.up(declaration())
    wait_for(lambda: not told_of_rules(home), "it is told no more", 30)
    assert home.wait_phase("Running")["phase"] == "Running"
    assert items(home) == (500, 125250)


def test_standbys_go_and_come(home: Home) -> None:
    home.up(declaration(standbys=0))
    status = home.status()
    assert {m["name"] for group in status["groups"] for m in group["members"]} == {
        m for m in MEMBERS if m.endswith("0")
    }
    assert not (home.path / "shop" / "members" / "shop-segment-1-1").exists()
    home.up(declaration())
    assert {m["name"] for group in home.status()["groups"] for m in group["members"]} == MEMBERS
    assert items(home) == (500, 125250)


def test_switchover_and_restart(home: Home) -> None:
    before = home.member("segment-1", "primary")["name"]
    home.run("switchover", "shop", "--group", "segment-1")
    assert home.member("segment-1", "primary")["name"] != before
    assert items(home) == (500, 125250)
    home.run("restart", "shop", "--group", "segment-2")
    home.wait_phase("Running")
    assert items(home) == (500, 125250)


def test_check_finds_nothing_to_complain_about(home: Home) -> None:
    home.run("check", "shop")


def test_logs_of_a_member(home: Home) -> None:
    assert home.run("logs", "shop", "shop-coordinator-0").stdout


def test_stop_keeps_the_data_and_start_brings_it_back(home: Home) -> None:
    home.run("stop", "shop")
    assert home.status()["phase"] == "Stopped"
    wait_for(lambda: not home.processes(), "no process is left", 30)
    home.run("start", "shop")
    assert home.status()["phase"] == "Running"
    assert items(home) == (500, 125250)


def test_a_second_cluster_and_a_second_home_do_not_disturb(home: Home) -> None:
    home.up(declaration("other", segments=1, standbys=0))
    with temporary_home() as elsewhere:
        elsewhere.up(declaration(segments=1, standbys=0))
        assert json.loads(home.run("list", "-o", "json").stdout)
        elsewhere.run("delete", "shop", "--purge", "--yes")
        assert not elsewhere.path.exists()
    home.run("delete", "other", "--purge", "--yes")
    assert not (home.path / "other").exists()
    assert home.status()["phase"] == "Running"
    assert items(home) == (500, 125250)


def test_a_deleted_cluster_of_the_same_name_finds_its_data(home: Home) -> None:
    home.run("delete", "shop", "--yes")
    assert home.run("status", "shop", check=False).returncode == 2
    home.up(declaration())
    assert items(home) == (500, 125250)


def test_purge_leaves_nothing(home: Home) -> None:
    home.run("delete", "shop", "--purge", "--yes")
    wait_for(lambda: not home.processes(), "no process is left", 30)
    assert not home.path.exists()
