"""What Patroni is told follows from the declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pgherd.engine.base import Engine
from pgherd.engine.citus.engine import CitusEngine
from pgherd.engine.fdw.engine import FdwEngine
from pgherd.model.topology import Credentials, Endpoint, Member
from pgherd.patroni.config import config_patch, dynamic_config, initdb_options, member_config
from pgherd.platform.local.platform import LocalPlatform
from pgherd.postgres.connections import Databases
from pgherd.reconcile.observe import wanted_config
from tests.support.platform import cluster

CREDENTIALS = Credentials(superuser="s", replication="r", owner="o", rest="p")


def config(group: int = 0, engine: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    return dynamic_config(cluster(**fields), group, engine or {}, [])


def parameters(**fields: Any) -> dict[str, str]:
    found: dict[str, str] = config(**fields)["postgresql"]["parameters"]
    return found


@pytest.mark.parametrize(
    ("durability", "standbys", "mode"),
    [
        ("synchronous", 1, True),
        ("quorum", 2, "quorum"),
        ("asynchronous", 1, False),
        ("synchronous", 0, False),
        ("quorum", 0, False),
    ],
)
def test_durability_decides_the_synchronous_mode(durability: str, standbys: int, mode: object) -> None:
    assert config(durability=durability, standbys=standbys)["synchronous_mode"] == mode


def test_a_group_with_standbys_fails_over_at_once_and_a_member_alone_restarts_in_place() -> None:
    assert config(standbys=1)["primary_start_timeout"] == 0
    assert config(standbys=0)["primary_start_timeout"] > 0


def test_what_commits_in_two_phases_starts_again_in_place_before_anyone_takes_over() -> None:
    """A standby may lack what a session that lost its server has made known to other nodes."""

    def seconds(engine: Engine, standbys: int) -> int:
        here = LocalPlatform(Path("/nowhere"))
        return int(wanted_config(here, engine, cluster(standbys=standbys), 1)["primary_start_timeout"])

    databases = Databases("app", CREDENTIALS, dict)
    assert 0 < seconds(CitusEngine(databases), 1) < seconds(CitusEngine(databases), 0)
    assert seconds(FdwEngine(databases), 1) == 0


def test_each_kind_of_group_has_its_own_number_of_standbys() -> None:
    mixed = cluster(coordinator={"standbys": 0})
    modes = [dynamic_config(mixed, group, {}, [])["synchronous_mode"] for group in (0, 1)]
    assert modes == [False, True]


def test_timings_keep_patronis_rule() -> None:
    timings = config()
    assert timings["loop_wait"] + 2 * timings["retry_timeout"] <= timings["ttl"]


def test_the_lag_that_forbids_a_failover_is_bounded_in_every_mode() -> None:
    lags = [config(durability=mode)["maximum_lag_on_failover"] for mode in ("asynchronous", "synchronous")]
    assert 0 < lags[0] < lags[1] < 2**31


def test_patroni_never_drops_slots_of_moves() -> None:
    ignored = config(database="sales")["ignore_slots"]
    assert {"type": "logical", "plugin": "pgoutput", "database": "sales"} in ignored


def test_the_users_parameters_win_over_the_engines_and_these_over_the_defaults() -> None:
    user = {"work_mem": "7MB", "Statement_Timeout": 5000, "jit": False}
    found = parameters(postgres={"parameters": user}, engine={"work_mem": "1MB", "max_wal_senders": "50"})
    assert found["work_mem"] == "7MB"
    assert found["statement_timeout"] == "5000"
    assert found["jit"] == "off"
    assert found["max_wal_senders"] == "50"
    assert found["wal_level"] == "logical"


def test_the_engines_libraries_come_before_the_users() -> None:
    libraries = {"shared_preload_libraries": "pg_stat_statements, auto_explain"}
    found = dynamic_config(cluster(postgres={"parameters": libraries}), 0, {}, ["citus", "auto_explain"])
    assert (
        found["postgresql"]["parameters"]["shared_preload_libraries"]
        == "citus,auto_explain,pg_stat_statements"
    )


def test_no_line_of_the_users_can_lock_pgherd_out_and_all_of_them_come_before_the_defaults() -> None:
    lines = config(postgres={"hostBasedAuthentication": "# ours\nhost all all all reject\n\n"})["postgresql"][
        "pg_hba"
    ]
    assert lines[:3] == [
        "local replication replicator scram-sha-256",
        "host replication replicator 127.0.0.1/32 scram-sha-256",
        "host all postgres 127.0.0.1/32 scram-sha-256",
    ]
    assert lines[3] == "host all all all reject"
    assert lines[-1] == "host all all 127.0.0.1/32 scram-sha-256"
    assert all(line.split()[-1] in ("scram-sha-256", "reject") for line in lines)


def test_where_connections_are_encrypted_no_line_of_the_users_lets_plain_text_in() -> None:
    declared = cluster(postgres={"hostBasedAuthentication": "host all,replication all all \\\n trust\n"})
    lines = dynamic_config(declared, 0, {}, [], networks=["0.0.0.0/0", "::/0"], local=False, tls=True)[
        "postgresql"
    ]["pg_hba"]
    assert lines == [
        "local replication replicator scram-sha-256",
        "hostssl replication replicator 0.0.0.0/0 scram-sha-256",
        "hostssl all postgres 0.0.0.0/0 scram-sha-256",
        "hostssl replication replicator ::/0 scram-sha-256",
        "hostssl all postgres ::/0 scram-sha-256",
        "hostnossl all all all reject",
        "hostnossl replication all all reject",
        "host all,replication all all  trust",
        "local all all scram-sha-256",
        "hostssl all all 0.0.0.0/0 scram-sha-256",
        "hostssl all all ::/0 scram-sha-256",
    ]


def test_a_configuration_needs_no_patch_to_become_itself() -> None:
    assert config_patch(config(), config()) == {}


def test_a_patch_has_only_what_differs_and_removes_what_is_no_longer_wanted() -> None:
    now = config(postgres={"parameters": {"work_mem": "7MB", "jit": "off"}})
    wanted = config(postgres={"parameters": {"work_mem": "8MB"}}, durability="asynchronous")
    patch = config_patch(now, wanted)
    assert patch["postgresql"] == {"parameters": {"work_mem": "8MB", "jit": None}}
    assert patch["synchronous_mode"] is False
    assert "ttl" not in patch


def test_a_patch_leaves_patronis_own_keys_alone() -> None:
    now = {**config(), "pause": True, "slots": {"mine": {"type": "physical"}}}
    assert config_patch(now, config()) == {}


def test_a_patch_of_an_empty_configuration_is_all_of_it() -> None:
    assert config_patch({}, config()) == config()


def member(ordinal: int = 0, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "postgres": Endpoint("127.0.0.1", 1),
        "rest": Endpoint("127.0.0.1", 2),
        "data_dir": "/d",
        "bin_dir": "/b",
        "pgpass": "/p",
        "credentials": CREDENTIALS,
        "store": {"raft": {"partner_addrs": ["127.0.0.1:3"]}},
        "namespace": "/pgherd/x",
        "dcs_config": config(),
        "server_major": 18,
        **changes,
    }
    return member_config(cluster(), Member("shop", 1, ordinal), **arguments)


def test_a_members_file_names_it_and_its_group() -> None:
    found = member(1)
    assert (found["scope"], found["name"]) == ("shop-segment-1", "shop-segment-1-1")
    assert found["postgresql"]["listen"] == found["postgresql"]["connect_address"] == "127.0.0.1:1"
    assert found["restapi"]["authentication"] == {"username": "pgherd", "password": "p"}
    assert "self_addr" not in found["raft"]


def test_groups_that_know_of_one_another_share_a_scope() -> None:
    found = member(mpp={"citus": {"group": 1, "database": "app"}})
    assert (found["scope"], found["citus"]["group"]) == ("shop", 1)


def test_only_a_member_that_may_found_its_group_knows_how() -> None:
    assert member(may_found=True)["bootstrap"]["dcs"] == config()
    assert "bootstrap" not in member(may_found=False)


def test_a_members_file_survives_yaml() -> None:
    assert yaml.safe_load(yaml.safe_dump(member())) == member()


def test_addresses_of_the_sixth_version_get_brackets() -> None:
    assert member(postgres=Endpoint("::1", 1))["postgresql"]["listen"] == "[::1]:1"


@pytest.mark.parametrize(("major", "provider"), [(18, True), (17, True), (16, False)])
def test_the_builtin_collation_is_used_where_there_is_one(major: int, provider: bool) -> None:
    options = initdb_options(major)
    assert "data-checksums" in options
    assert ({"locale-provider": "builtin"} in options) == provider
