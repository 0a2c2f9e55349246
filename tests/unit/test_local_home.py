"""What a home writes down: declarations, ports, groups, logs; without any process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgherd.errors import BadInput, NoSuchCluster, PgherdError
from pgherd.model.topology import Member
from pgherd.patroni.config import REMEMBERED
from pgherd.platform.local import binaries, hindrances, logs, ports, processes
from pgherd.platform.local.founding import Foundings
from pgherd.platform.local.layout import Layout, parse_member
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.local.ports import PortBook
from pgherd.supervisor import daemon
from tests.support.platform import cluster

FIRST, SECOND = Member("shop", 0, 0), Member("shop", 0, 1)


@pytest.fixture
def platform(tmp_path: Path) -> LocalPlatform:
    return LocalPlatform(tmp_path / "home")


class TestDeclarations:
    """Declarations on disk."""

    def test_a_declaration_is_read_back_as_it_was(self, platform: LocalPlatform) -> None:
        wanted = cluster(postgres={"parameters": {"work_mem": "8MB"}}, expansion={"paused": True})
        platform.declare(wanted)
        other = LocalPlatform(platform.home)
        assert other.clusters() == ["shop"]
        assert other.declaration("shop").cluster == wanted

    def test_each_change_raises_the_generation_and_no_change_does_not(self, platform: LocalPlatform) -> None:
        platform.declare(cluster())
        platform.declare(cluster())
        assert platform.declaration("shop").generation == 1
        platform.declare(cluster(segments=2))
        platform.set_stopped("shop", True)
        platform.set_stopped("shop", True)
        declared = platform.declaration("shop")
        assert (declared.generation, declared.stopped, declared.deleting) == (3, True, False)
        platform.declare(cluster(segments=3))
        assert platform.declaration("shop").stopped

    def test_what_was_once_to_be_purged_stays_so(self, platform: LocalPlatform) -> None:
        platform.declare(cluster())
        platform.set_deleting("shop", purge=True)
        platform.set_deleting("shop", purge=False)
        assert platform.declaration("shop").purge

    def test_an_unknown_name_lists_the_known_ones(self, platform: LocalPlatform) -> None:
        with pytest.raises(NoSuchCluster, match="there is none"):
            platform.declaration("shop")
        assert not platform.home.exists()
        platform.declare(cluster("shed"))
        for ask in (
            platform.declaration,
            platform.credentials,
            lambda name: platform.set_stopped(name, True),
        ):
            with pytest.raises(NoSuchCluster, match=r"'shop'.*there are: shed"):
                ask("shop")

    def test_changes_made_at_once_are_not_lost(self, platform: LocalPlatform) -> None:
        platform.declare(cluster(shardCount=64))

        def change(number: int) -> None:
            other = LocalPlatform(platform.home)
            with other.locked():
                now = other.declaration("shop").cluster
                other.declare(cluster(segments=now.spec.segments.count + 1, shardCount=64))

        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(change, range(20)))
        declared = platform.declaration("shop")
        assert (declared.cluster.spec.segments.count, declared.generation) == (21, 21)

    def test_passwords_are_made_once(self, platform: LocalPlatform) -> None:
        platform.declare(cluster())
        with ThreadPoolExecutor(max_workers=8) as pool:
            others = [LocalPlatform(platform.home) for _ in range(8)]
            made = set(pool.map(lambda other: other.credentials("shop"), others))
        assert len(made) == 1
        assert len(set(vars(made.pop()).values())) == 4

    def test_another_version_of_postgres_is_refused(self, platform: LocalPlatform) -> None:
        with pytest.raises(BadInput, match=r"spec\.postgres\.version: 16 is not here"):
            platform.check_supported(cluster(postgres={"version": 16}))
        platform.check_supported(cluster(postgres={"version": binaries.find().major}))

    def test_the_name_of_the_stores_folder_is_refused(self, platform: LocalPlatform) -> None:
        with pytest.raises(BadInput, match=r"metadata\.name: raft is taken"):
            platform.check_supported(cluster("raft"))

    def test_a_status_that_was_cut_short_is_no_status(self, platform: LocalPlatform) -> None:
        platform.declare(cluster())
        assert platform.read_status("shop") is None
        platform.write_status("shop", {"phase": "Running"})
        assert platform.read_status("shop") == {"phase": "Running"}
        (platform.home / "shop" / "status.json").write_text("{")
        assert platform.read_status("shop") is None

    @pytest.mark.parametrize(
        "text", ["[]", "{}", '{"phase": 3}', '{"phase": "", "generation": 1, "conditions": [{}]}']
    )
    def test_a_status_without_sense_is_no_status(self, platform: LocalPlatform, text: str) -> None:
        platform.declare(cluster())
        (platform.home / "shop" / "status.json").write_text(text)
        assert platform.read_status("shop") is None

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"owner": "x"}', "[" * 100_000])
    def test_damaged_passwords_are_one_clear_line(self, platform: LocalPlatform, text: str) -> None:
        platform.declare(cluster())
        (platform.home / "shop" / "credentials.json").write_text(text)
        with pytest.raises(PgherdError, match=r"credentials\.json is damaged"):
            platform.credentials("shop")

    def test_a_full_disk_is_named_before_anything_starts(
        self, platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout = Layout(platform.home).member(FIRST)
        monkeypatch.setattr(hindrances, "free_bytes", lambda layout: 5 << 20)
        with pytest.raises(PgherdError, match=r"only 5 MiB are free .* make room"):
            hindrances.require_room(FIRST, layout)

    def test_a_home_without_rights_is_one_clear_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PgherdError, match="could not"):
            LocalPlatform(tmp_path / "file" / "home").declare(cluster())

    def test_a_cluster_that_never_ran_goes_with_its_home(self, platform: LocalPlatform) -> None:
        platform.declare(cluster())
        platform.credentials("shop")
        assert platform.close_if_empty() is False
        platform.forget("shop", purge=False)
        assert platform.close_if_empty() is True
        assert not platform.home.exists()

    def test_a_removal_that_was_cut_short_is_finished(self, platform: LocalPlatform) -> None:
        platform.declare(cluster())
        kept = platform.home / "shop" / "members" / "shop-coordinator-0" / "data" / "base"
        kept.mkdir(parents=True)
        for place in ("", "shop", "shop/members", "shop/members/shop-coordinator-0", "shop/repairs"):
            (platform.home / place / ".removed.data.1234" / "base").mkdir(parents=True)
        daemon._sweep(platform.home)
        assert not list(platform.home.rglob(".removed*"))
        assert kept.is_dir()


class TestPorts:
    """Ports are picked once."""

    @pytest.fixture
    def book(self, tmp_path: Path) -> PortBook:
        return PortBook(tmp_path / "ports.json")

    def test_ports_are_kept_and_never_given_twice(self, book: PortBook, tmp_path: Path) -> None:
        picked = [book.reserve("shop", f"m{n}", "postgres", "rest") for n in range(20)]
        assert [
            PortBook(tmp_path / "ports.json").reserve("shop", f"m{n}", "postgres", "rest") for n in range(20)
        ] == picked
        assert len({port for each in picked for port in each.values()}) == 40

    def test_ports_are_below_those_of_outgoing_connections(self, book: PortBook) -> None:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert all(20000 <= port < lowest for port in book.reserve("shop", "m", "postgres", "rest").values())

    def test_released_ports_are_forgotten(self, book: PortBook) -> None:
        book.reserve("shop", "m", "postgres")
        book.reserve("shop", "n", "postgres")
        book.release("shop", "m")
        assert set(book.of_cluster("shop")) == {"n"}
        book.release("shop")
        assert book.of_cluster("shop") == {}

    def test_a_port_that_somebody_listens_on_is_not_free_and_has_a_name(self, book: PortBook) -> None:
        port = book.reserve("shop", "m", "postgres")["postgres"]
        with socket.create_server(("127.0.0.1", port)):
            assert not ports.is_free(port)
            assert f"process {os.getpid()}" in str(processes.listener(port))
        assert ports.is_free(port)

    def test_connections_that_only_wait_to_be_forgotten_do_not_take_a_port(self, book: PortBook) -> None:
        port = book.reserve("shop", "m", "postgres")["postgres"]
        with socket.create_server(("127.0.0.1", port)) as server:
            client = socket.create_connection(("127.0.0.1", port))
            accepted, _ = server.accept()
            accepted.close()
            client.close()
        assert ports.is_free(port)


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("shop-coordinator-0", Member("shop", 0, 0)),
        ("shop-segment-12-3", Member("shop", 12, 3)),
        ("shop-segment-0-1", None),
        ("shop-segment-1-x", None),
        ("shop-segment-1-01", None),
        ("shed-coordinator-0", None),
        (".removed.shop-coordinator-0.ab12", None),
    ],
)
def test_members_are_told_by_their_names(name: str, member: Member | None) -> None:
    assert parse_member("shop", name) == member


class TestFounding:
    """When a group's beginning is started over, and when never."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return World(tmp_path)

    def test_members_that_start_together_share_a_place(self, world: World) -> None:
        place = world.start(FIRST)
        assert world.start(SECOND) == place
        assert world.wiped == []

    def test_all_dead_before_anything_was_made_starts_over_in_a_new_place(self, world: World) -> None:
        place = world.start(FIRST)
        world.start(SECOND)
        world.make(FIRST, "PG_VERSION", "base/1/1259", "base/5/1259")
        world.running.clear()
        assert world.start(FIRST) != place
        assert world.wiped == [FIRST]

    def test_a_dead_founder_is_not_waited_for(self, world: World) -> None:
        place = world.start(FIRST)
        world.start(SECOND)
        world.running.remove(FIRST)
        assert world.start(FIRST) != place

    def test_a_dead_waiter_does_not_disturb_the_founder(self, world: World) -> None:
        place = world.start(FIRST)
        world.start(SECOND)
        world.make(FIRST, "PG_VERSION")
        world.running.remove(SECOND)
        assert world.start(SECOND) == place
        assert world.wiped == []

    @pytest.mark.parametrize(
        "thing", ["base/16384/1259", "base/5/16385", "base/5/16385_fsm", "pg_tblspc/16390"]
    )
    def test_whatever_somebody_made_is_never_removed(self, world: World, thing: str) -> None:
        place = world.start(FIRST)
        world.make(FIRST, "PG_VERSION", "global/pg_control", thing)
        world.running.clear()
        assert world.start(FIRST) == place
        world.empty(FIRST)
        world.running.clear()
        assert world.start(FIRST) == place
        assert world.wiped == []

    def test_half_a_copy_is_removed(self, world: World) -> None:
        world.start(FIRST)
        world.make(FIRST, "PG_VERSION", "global/pg_control", "base/16384/1259")
        world.start(SECOND)
        world.make(SECOND, "PG_VERSION", "backup_label", "base/16384/1259")
        world.running.remove(SECOND)
        world.start(SECOND)
        assert world.wiped == [SECOND]

    def test_a_whole_copy_is_kept(self, world: World) -> None:
        world.start(FIRST)
        world.make(FIRST, "PG_VERSION", "global/pg_control", "base/16384/1259")
        world.start(SECOND)
        world.make(SECOND, "PG_VERSION", "backup_label", "global/pg_control")
        world.running.remove(SECOND)
        world.start(SECOND)
        assert world.wiped == []

    def test_damage_is_left_for_people_to_look_at(self, world: World) -> None:
        world.start(FIRST)
        world.make(FIRST, "PG_VERSION", "base/16384/1259")
        world.running.clear()
        world.start(FIRST)
        assert world.wiped == []

    def test_a_lost_record_is_read_back_from_the_configurations(self, world: World) -> None:
        place = world.start(FIRST)
        world.make(FIRST, "PG_VERSION", "global/pg_control", "base/16384/1259")
        world.configure(FIRST, place)
        world.start(SECOND)
        world.configure(SECOND, "/pgherd/old")
        world.running.remove(SECOND)
        world.layout.groups("shop").unlink()
        assert world.start(SECOND) == place, "it would lead in a place of its own"
        assert world.wiped == []

    @pytest.mark.parametrize("text", ['{"coordinator": "x"}', '{"coordinator": {}}', "[]", ""])
    def test_a_damaged_record_is_one_clear_line(self, world: World, text: str) -> None:
        world.start(FIRST)
        world.layout.groups("shop").write_text(text)
        with pytest.raises(PgherdError, match=r"groups\.json is damaged"):
            world.start(SECOND)

    def test_a_group_that_is_gone_gets_a_new_place(self, world: World) -> None:
        place = world.start(FIRST)
        world.foundings.forget(FIRST)
        world.running.clear()
        assert world.start(FIRST) != place

    def test_what_patroni_was_told_of_a_source_does_not_come_with_its_copy(self, world: World) -> None:
        world.start(FIRST)
        world.make(FIRST, "global/pg_control", "base/5/16384", REMEMBERED)
        remembered = world.layout.member(FIRST).data / REMEMBERED
        world.running.clear()
        world.foundings.note_users_data([[FIRST]])
        world.foundings.admit(FIRST, [FIRST])
        assert remembered.exists(), "a group of its own goes on by what it was told"
        world.foundings.admit(FIRST, [FIRST], as_copy=True)
        assert not remembered.exists()
        world.foundings.admit(FIRST, [FIRST], as_copy=True)

    def test_groups_that_share_a_place_have_their_part_erased_instead(self, world: World) -> None:
        erased: list[str] = []
        place = world.foundings.admit(FIRST, [FIRST], erased.append)
        other = Member(FIRST.cluster, FIRST.group + 1, 0)
        assert world.foundings.admit(other, [other], erased.append) == place
        assert erased == []
        # Everything was killed before anybody had data: what the founder noted in the store has to go.
        assert world.foundings.admit(FIRST, [FIRST], erased.append) == place
        assert erased == [place]
        # The group is gone for good: a successor of the same number must find nothing.
        world.foundings.forget(other, erased.append)
        assert erased == [place, place]


class World:
    """A home whose processes are only pretended."""

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home)
        self.running: set[Member] = set()
        self.wiped: list[Member] = []
        self.foundings = Foundings(self.layout, self.running.__contains__, self._wipe)

    def start(self, member: Member) -> str:
        place = self.foundings.admit(member, [FIRST, SECOND])
        self.running.add(member)
        return place

    def configure(self, member: Member, namespace: str) -> None:
        """Write what a member was started with."""
        config = self.layout.member(member).config
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(f"namespace: {namespace}\n")

    def make(self, member: Member, *names: str) -> None:
        for name in names:
            path = self.layout.member(member).data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def empty(self, member: Member) -> None:
        data = self.layout.member(member).data
        for path in sorted(data.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def _wipe(self, member: Member) -> None:
        self.wiped.append(member)
        self.running.discard(member)
        self.empty(member)


class TestLogs:
    """Log files."""

    def test_lines_of_several_logs_come_by_time_and_belongings_stay_together(self, tmp_path: Path) -> None:
        a, b = tmp_path / "a.log", tmp_path / "b.log"
        a.write_text("2026-11-21 03:00:00,100 one\n  more of one\n2026-11-21 03:00:02.000 UTC three\n")
        b.write_text("no time at first\n2026-11-21 03:00:01.000 UTC two\n")
        found = list(logs.lines([("a ", a), ("b ", b), ("c ", tmp_path / "none")], follow=False))
        assert [line.split()[-1] for line in found] == ["first", "one", "one", "two", "three"]
        assert found[2] == "a   more of one"

    def test_following_sees_new_lines_and_a_rotated_log(self, tmp_path: Path) -> None:
        path = tmp_path / "a.log"
        path.write_text("old\n")
        stream = logs.lines([("", path)], follow=True)
        assert next(stream) == "old"
        later = threading.Timer(0.1, lambda: append(path, "half a"))
        later.start()
        later.join()
        append(path, " line\n")
        assert next(stream) == "half a line"
        path.write_text("new\n")
        assert next(stream) == "new"

    def test_a_log_that_is_too_large_moves_aside_under_its_writer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "MAX_BYTES", 10)
        path = tmp_path / "a.log"
        with path.open("a") as writer:
            writer.write("a long first line\n")
            writer.flush()
            logs.rotate(path)
            writer.write("second\n")
        assert path.read_text() == "second\n"
        assert (tmp_path / "a.log.1").read_text() == "a long first line\n"
        logs.remove(path)
        assert list(tmp_path.iterdir()) == []


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


class TestBinaries:
    """PostgreSQL's programs."""

    def test_the_wheels_are_found_without_its_code(self) -> None:
        found = binaries.find()
        assert found.program("psql").exists()
        assert found.major >= 18

    def test_a_directory_without_them_is_one_clear_line(self, tmp_path: Path) -> None:
        with pytest.raises(PgherdError, match=r"there is no initdb, .*postgres in .*--bin-dir"):
            binaries.find(tmp_path)

    @pytest.mark.parametrize(
        ("broken", "told"),
        [
            ("echo no libpq.so.5 >&2; exit 127", r"initdb does not run \(no libpq.so.5\): name"),
            ("echo 'initdb (PostgreSQL) 9.6'", r"has postgres \d+\.\d+ and initdb 9\.6"),
        ],
    )
    def test_a_directory_whose_programs_do_not_run_or_fit_is_refused(
        self, tmp_path: Path, broken: str, told: str
    ) -> None:
        for name in binaries.NEEDED:
            (tmp_path / name).symlink_to(binaries.find().directory / name)
        (tmp_path / "initdb").unlink()
        (tmp_path / "initdb").write_text(f"#!/bin/sh\n{broken}\n")
        (tmp_path / "initdb").chmod(0o755)
        with pytest.raises(PgherdError, match=told):
            binaries.find(tmp_path)

    def test_a_program_that_is_not_there_is_named(self) -> None:
        with pytest.raises(PgherdError, match="no program pg_nothing"):
            binaries.find().program("pg_nothing")

    def test_the_environment_names_a_directory(self, tmp_path: Path) -> None:
        code = "from pgherd.platform.local import binaries; binaries.find()"
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PGHERD_BIN_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert str(tmp_path) in answer.stderr
