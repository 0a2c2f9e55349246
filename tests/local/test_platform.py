"""The local platform with real members: they come up, die, come back, and leave nothing behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from pgherd.errors import PgherdError
from pgherd.model.topology import Member
from pgherd.platform.local import raft, runas
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.local.processes import is_alive
from tests.support.platform import (
    Group,
    arguments,
    cluster,
    end_everything,
    kill_everything,
    local_platform,
    processes_of,
    purge,
    wait_for,
)

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """A primary and a standby that the tests of this module share; each leaves both running."""
    with local_platform() as platform:
        yield Group(platform, cluster()).up()


@pytest.fixture
def ready(group: Group) -> Group:
    group.wait_ready()
    return group


def system_identifier(group: Group) -> str:
    return str(group.wait_query("SELECT system_identifier FROM pg_control_system()")[0][0])


def make_table(group: Group, name: str, rows: int = 100) -> None:
    with group.connect() as connection:
        connection.execute(f"CREATE TABLE {name} AS SELECT generate_series(1, {rows}) AS id")


def all_reach_the_store(group: Group) -> bool:
    """Each member connects to a new store by itself, within seconds; a change through each of them proves it."""
    try:
        for member in group.members:
            rest = group.view(member).rest
            group.patroni.patch_config(rest, {"maximum_lag_on_syncnode": time.monotonic_ns()})
            group.patroni.patch_config(rest, {"maximum_lag_on_syncnode": None})
    except PgherdError:
        return False
    return True


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class TestRunning:
    """A group that is up."""

    def test_the_first_member_leads_and_the_second_streams_synchronously(self, group: Group) -> None:
        first, second = (group.statuses()[member] for member in group.members)
        assert first is not None
        assert second is not None
        assert first.leader
        assert first.role == "primary"
        assert second.streaming
        assert second.sync_standby
        assert second.lsn == first.lsn
        assert [down.name for down in first.downstreams if down.synchronous] == [second.name]

    def test_the_store_knows_both(self, ready: Group) -> None:
        view = ready.patroni.cluster_view(ready.view(ready.leader()).rest)
        assert view.leader == ready.leader().name
        assert {member.name: member.endpoint for member in view.members} == {
            member.name: ready.view(member).postgres for member in ready.members
        }

    def test_a_wrong_password_is_refused(self, ready: Group) -> None:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ready.connect(password="wrong")

    def test_changing_a_configuration_needs_the_password(self, ready: Group) -> None:
        stranger = type(ready.patroni)("wrong")
        with pytest.raises(PgherdError, match="HTTP 401"):
            stranger.patch_config(ready.view(ready.leader()).rest, {"ttl": 30})

    def test_passwords_are_readable_by_the_owner_only(self, group: Group) -> None:
        directory = group.platform.home / "shop"
        secret = [directory / "credentials.json", *directory.glob("members/*/patroni.yml")]
        secret.append(group.platform.home / "raft" / "raft.yml")
        assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}

    def test_data_has_checksums_and_one_collation_everywhere(self, ready: Group) -> None:
        assert ready.query("SHOW data_checksums") == [("on",)]
        assert ready.query("SELECT datlocale FROM pg_database WHERE datname = 'template1'") == [("C.UTF-8",)]

    def test_no_socket_file_is_made(self, group: Group) -> None:
        files = [path for path in group.platform.home.rglob("*") if path.is_socket()]
        assert files == []

    def test_the_log_has_the_words_of_patroni_and_postgres(self, ready: Group) -> None:
        lines = list(ready.platform.logs("shop", ready.members[0].name, follow=False))
        assert any("initialized a new cluster" in line for line in lines)
        assert any("database system is ready to accept connections" in line for line in lines)
        both = list(ready.platform.logs("shop", None, follow=False))
        assert {line.split(" ")[0] for line in both} == {member.name for member in ready.members}

    def test_a_parameter_change_reaches_all_and_a_restart_applies_it(self, ready: Group) -> None:
        leader = ready.leader()
        rest = ready.view(leader).rest
        ready.patroni.patch_config(
            rest, {"postgresql": {"parameters": {"work_mem": "5MB", "max_connections": "210"}}}
        )
        wait_for(lambda: ready.query("SHOW work_mem") == [("5MB",)], "work_mem to be reloaded", 15)

        def pending() -> bool:
            return all(status and status.pending_restart for status in ready.statuses().values())

        wait_for(pending, "a pending restart everywhere", 15)
        for member in (ready.standby(), leader):
            ready.patroni.restart(ready.view(member).rest, only_if_pending=True)
            ready.wait_ready()
        assert ready.query("SHOW max_connections") == [("210",)]
        assert ready.leader() == leader
        ready.patroni.restart(rest, only_if_pending=True)
        assert ready.leader() == leader

    def test_a_switchover_makes_the_standby_lead(self, ready: Group) -> None:
        leader, standby = ready.leader(), ready.standby()
        ready.patroni.switchover(ready.view(leader).rest, leader.name, standby.name)
        assert ready.leader() == standby
        ready.wait_ready()

    def test_a_switchover_to_nobody_is_refused_with_the_reason(self, ready: Group) -> None:
        with pytest.raises(PgherdError, match="candidate"):
            ready.patroni.switchover(
                ready.view(ready.leader()).rest, ready.leader().name, "shop-coordinator-7"
            )


class TestDying:
    """A group whose processes are killed."""

    def test_a_killed_server_is_replaced_within_seconds_and_returns(self, ready: Group) -> None:
        leader, standby = ready.leader(), ready.standby()
        make_table(ready, "killed_server")
        killed = ready.postmaster_pid(leader)
        kill(killed)
        began = time.monotonic()
        assert ready.wait_query("SELECT count(*) FROM killed_server WHERE NOT pg_is_in_recovery()") == [
            (100,)
        ]
        assert time.monotonic() - began < 10
        assert ready.leader() == standby
        ready.wait_ready()
        assert ready.postmaster_pid(leader) != killed

    def test_a_killed_server_is_no_zombie_for_long(self, ready: Group) -> None:
        server = psutil.Process(ready.postmaster_pid(ready.standby()))
        server.kill()
        wait_for(lambda: not server.is_running(), "the dead server to be buried", 1.0, every=0.01)
        ready.wait_ready()

    def test_a_killed_patroni_leaves_its_server_serving_and_the_next_one_adopts_it(
        self, ready: Group
    ) -> None:
        leader = ready.leader()
        server = ready.postmaster_pid(leader)
        kill(ready.patroni_pid(leader))
        wait_for(lambda: not ready.view(leader).running, "Patroni to be seen dead", 5)
        assert ready.query("SELECT 1") == [(1,)]
        ready.start(leader)
        ready.wait_ready()
        assert ready.postmaster_pid(leader) == server
        assert ready.leader() == leader

    def test_stop_ends_a_server_whose_patroni_was_killed(self, ready: Group) -> None:
        standby = ready.standby()
        kill(ready.patroni_pid(standby))
        ready.platform.stop_member(standby)
        assert processes_of(ready.directory(standby)) == []
        assert not (ready.directory(standby) / "data" / "postmaster.pid").exists()
        ready.start(standby)
        ready.wait_ready()

    def test_stop_ends_a_patroni_that_hangs(self, ready: Group) -> None:
        standby = ready.standby()
        os.kill(ready.patroni_pid(standby), signal.SIGSTOP)
        ready.platform.stop_member(standby)
        assert processes_of(ready.directory(standby)) == []
        ready.start(standby)
        ready.wait_ready()

    def test_another_platform_object_sees_and_keeps_what_runs(self, ready: Group) -> None:
        servers = {member: ready.postmaster_pid(member) for member in ready.members}
        other = Group(LocalPlatform(ready.platform.home), ready.cluster)
        assert all(view.running and view.has_data for view in other.platform.members("shop").values())
        other.start()
        assert {member: other.postmaster_pid(member) for member in other.members} == servers
        assert other.platform.members("shop") == ready.platform.members("shop")

    def test_nobody_is_demoted_while_the_store_is_away(self, ready: Group) -> None:
        leader = ready.leader()
        server = ready.postmaster_pid(leader)
        make_table(ready, "storeless", 1)
        failures: list[psycopg.Error] = []
        stop = threading.Event()

        def write() -> None:
            with ready.connect() as connection:
                while not stop.wait(0.05):
                    try:
                        connection.execute("INSERT INTO storeless VALUES (2)")
                    except psycopg.Error as error:
                        failures.append(error)
                        return

        writer = threading.Thread(target=write)
        writer.start()
        controller = next(
            process
            for process in processes_of(ready.platform.home)
            if "patroni_raft_controller" in " ".join(arguments(process))
        )
        kill(controller.pid)
        # Longer than retry_timeout: every member has noticed.
        wait_for(lambda: "failsafe mode" in ready.tail(), "failsafe mode", 30)
        ready.platform.ensure_store()
        wait_for(lambda: all_reach_the_store(ready), "the store to be back", 30)
        stop.set()
        writer.join()
        assert failures == []
        assert ready.leader() == leader
        assert ready.postmaster_pid(leader) == server

    def test_a_primary_that_crashes_right_after_the_store_did_comes_back_or_is_replaced(
        self, ready: Group
    ) -> None:
        make_table(ready, "double_fault")
        kill(ready.postmaster_pid(ready.leader()))
        # Standbys believe in a primary that failsafe mode kept for another 20 s (ttl).
        assert ready.wait_query("SELECT count(*) FROM double_fault WHERE NOT pg_is_in_recovery()") == [(100,)]
        ready.wait_ready()

    def test_a_reboot_keeps_data_identity_and_ports(self, ready: Group) -> None:
        make_table(ready, "rebooted")
        identifier, endpoints = system_identifier(ready), ready.endpoints()
        kill_everything(ready.platform.home)
        assert not any(view.running for view in ready.platform.members("shop").values())
        ready.start()
        assert ready.wait_query("SELECT count(*) FROM rebooted") == [(100,)]
        ready.wait_ready()
        assert system_identifier(ready) == identifier
        assert ready.endpoints() == endpoints

    def test_a_port_taken_by_another_program_is_named(self, ready: Group) -> None:
        standby = ready.standby()
        ready.platform.stop_member(standby)
        port = ready.view(standby).postgres.port
        with socket.create_server(("127.0.0.1", port)):
            with pytest.raises(PgherdError) as caught:
                ready.start(standby)
            for word in (str(port), standby.name, f"process {os.getpid()}"):
                assert word in str(caught.value)
        ready.start(standby)
        ready.wait_ready()


def test_two_clusters_share_a_store_and_one_can_go_without_a_trace() -> None:
    with local_platform() as platform:
        shop, shed = (
            Group(platform, cluster("shop", standbys=0)),
            Group(platform, cluster("shed", standbys=0)),
        )
        shop.start()
        shed.start()
        shop.wait_ready()
        shed.wait_ready()
        assert system_identifier(shop) != system_identifier(shed)
        ports = [view.postgres.port for view in platform.members("shop").values()]
        assert purge(platform, shop) is False
        assert platform.clusters() == ["shed"]
        assert not (platform.home / "shop").exists()
        assert all(port_is_free(port) for port in ports)
        assert shed.query("SELECT 1") == [(1,)]
        # The same name again is a new cluster, whatever the store remembers of the old one.
        again = Group(platform, shop.cluster).up()
        assert again.leader() == again.members[0]
        home = platform.home
        assert purge(platform, again, shed) is True
        assert not home.exists()
        assert processes_of(home) == []


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_deleted_cluster_that_was_not_purged_is_adopted_by_its_name() -> None:
    with local_platform() as platform:
        group = Group(platform, cluster()).up()
        make_table(group, "kept")
        identifier, endpoints = system_identifier(group), group.endpoints()
        group.stop()
        platform.set_deleting("shop", purge=False)
        platform.forget("shop", purge=False)
        assert platform.close_if_empty() is False
        assert platform.clusters() == []
        assert processes_of(platform.home) == []
        again = Group(LocalPlatform(platform.home), cluster())
        again.start()
        assert again.wait_query("SELECT count(*) FROM kept") == [(100,)]
        again.wait_ready()
        assert system_identifier(again) == identifier
        assert again.endpoints() == endpoints


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("initdb", id="while the first member makes its database"),
        pytest.param("clone", id="while the second member copies"),
        pytest.param("postmaster.pid", id="when the first server has just started"),
    ],
)
def test_a_founding_that_was_cut_short_is_started_over(moment: str) -> None:
    with local_platform() as platform:
        group = Group(platform, cluster())
        group.start()
        first, second = (group.directory(member) for member in group.members)
        reached = {
            "initdb": first / "data" / "PG_VERSION",
            "clone": second / "data" / "backup_label",
            "postmaster.pid": first / "data" / "postmaster.pid",
        }[moment]
        wait_for(reached.exists, f"{reached.name} to appear: {group.tail()}", 30, every=0.001)
        kill_everything(platform.home)
        group.start()
        group.wait_ready()
        assert group.query("SELECT 1") == [(1,)]


def test_a_founder_that_dies_alone_does_not_leave_the_others_waiting() -> None:
    with local_platform() as platform:
        group = Group(platform, cluster())
        group.start()
        first = group.members[0]
        wait_for((group.directory(first) / "data" / "PG_VERSION").exists, "initdb to begin", 30, every=0.001)
        kill_everything(group.directory(first))
        wait_for(lambda: not group.view(first).running, "the founder to be seen dead", 5)

        def heal() -> bool:
            for member in group.members:
                group.start(member)
            return group.is_ready()

        wait_for(heal, f"the group to be founded after all: {group.tail()}", 60, every=0.5)


@pytest.mark.parametrize("first", ["CREATE DATABASE app", "CREATE TABLE precious ()"])
def test_a_group_in_which_something_was_made_is_never_started_over(first: str) -> None:
    with local_platform() as platform:
        group = Group(platform, cluster(standbys=0)).up()
        group.query_nothing(first)
        identifier = system_identifier(group)
        kill_everything(platform.home)
        group.start()
        assert system_identifier(group) == identifier


def test_a_standby_that_is_removed_and_added_again_is_cloned_anew() -> None:
    with local_platform() as platform:
        group = Group(platform, cluster()).up()
        make_table(group, "cloned")
        standby = group.standby()
        platform.remove_member(standby)
        assert standby.name not in platform.members("shop")
        assert not group.directory(standby).exists()
        assert not list((platform.home / "shop" / "log").glob(f"{standby.name}*"))
        assert group.wait_query("SELECT count(*) FROM cloned") == [(100,)]
        group.start(standby)
        group.wait_ready()


def test_a_member_alone_restarts_in_place() -> None:
    with local_platform() as platform:
        group = Group(platform, cluster(standbys=0)).up()
        make_table(group, "alone")
        only = group.members[0]
        kill(group.postmaster_pid(only))
        assert group.wait_query("SELECT count(*) FROM alone") == [(100,)]
        assert group.leader() == only


def test_a_start_killed_at_any_time_leaves_at_most_one_patroni() -> None:
    with local_platform() as platform:
        group = Group(platform, cluster(standbys=0))
        starters = [threading.Thread(target=group.start) for _ in range(4)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
        group.wait_ready()
        directory = group.directory(group.members[0])
        patronis = [p for p in processes_of(directory) if arguments(p)[-1] == str(directory / "patroni.yml")]
        assert len(patronis) == 1
        assert is_alive(patronis[0])


def test_a_home_with_a_long_name_with_spaces_works(tmp_path: Path) -> None:
    home = tmp_path / ("a home with spaces and a quite long name " * 3).strip() / "home"
    platform = LocalPlatform(home)
    try:
        group = Group(platform, cluster()).up()
        assert len(str(group.directory(Member("shop", 0, 0)))) > 107
        assert purge(platform, group)
    finally:
        end_everything(home)


def test_root_has_two_ways_to_run_members_and_both_work(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        assert runas.prefix() == ()
        return
    for way in runas.ways():
        assert runas.refusal(way) is None
        with monkeypatch.context() as patch, local_platform() as platform:
            patch.setattr(runas, "prefix", lambda way=way: way)
            group = Group(platform, cluster(standbys=0)).up()
            only = group.members[0]
            kill(group.postmaster_pid(only))
            assert group.wait_query("SELECT 1 WHERE NOT pg_is_in_recovery()") == [(1,)]
            assert purge(platform, group)


@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_a_store_that_lost_everything_is_filled_again_by_its_members(damage: str) -> None:
    with local_platform() as platform:
        group = Group(platform, cluster()).up()
        make_table(group, "storeless")
        identifier = system_identifier(group)
        kill_everything(platform.home)
        for log in (platform.home / "raft" / "data").iterdir():
            if damage == "emptied":
                log.write_bytes(b"")
            else:
                log.unlink()
        group.start()
        assert group.wait_query("SELECT count(*) FROM storeless") == [(100,)]
        group.wait_ready()
        assert system_identifier(group) == identifier


@pytest.mark.parametrize("nonsense", [b"\xff" * 4096, random.Random(1).randbytes(4096)], ids=["one", "noise"])
def test_a_damaged_store_says_so(nonsense: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft, "READY_SECONDS", 2.0)
    with local_platform() as platform:
        platform.ensure_store()
        platform.stop_store()
        for log in (platform.home / "raft" / "data").glob("*.journal"):
            log.write_bytes(nonsense)

        def complaint() -> str | None:
            try:
                platform.ensure_store()
            except PgherdError as error:
                return str(error)
            return None

        assert "damaged" in wait_for(complaint, "a complaint about the store", 20)
