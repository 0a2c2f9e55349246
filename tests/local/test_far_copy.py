"""A running cluster copied straight into the places of another one's members, as on Kubernetes; here, folders."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgherd.backup.far_copy import FarCopy, FarMethod, Place
from pgherd.backup.private_server import PrivateServer, is_paused_or_open
from pgherd.backup.records import Point
from pgherd.engine.registry import make_engine
from pgherd.errors import BadInput
from pgherd.model.spec import VolumeSpec, with_segment_count
from pgherd.model.topology import SUPERUSER
from pgherd.platform.local import files
from pgherd.platform.local.machine import LocalMachine
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.machine import Machine, Machines
from pgherd.postgres.connections import Databases
from pgherd.reconcile import observe
from tests.support.engines import engine
from tests.support.home import declaration, programs, temporary_home
from tests.support.money import SUM, await_transfers, make_tables, movers

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

GROUPS = (0, 1)


class Folders(Machines):
    """Places on this machine."""

    processes = 1

    def __init__(self, machine: LocalMachine, folder: Path) -> None:
        self.folder, self._machine = folder, machine

    def at(self, host: str) -> Machine:
        return self._machine

    def of(self, group: int | None) -> Machine:
        return self._machine

    def end_strays(self, group: int, argument: str) -> None:
        self._machine.end_strays(argument)

    def equip(self, files_wanted: Mapping[str, str]) -> None:
        for name, text in files_wanted.items():
            files.write(self.folder / name, text)

    def holder(self, volume: VolumeSpec) -> Machine:
        return self._machine


def held(databases: Databases) -> list[str]:
    """Slots that live as long as a session, and sessions of who copies."""
    found: list[str] = []
    for group in GROUPS:
        for read_only in (False, True):
            with databases.connect(group, database=SUPERUSER, read_only=read_only) as connection:
                rows = connection.execute(
                    "SELECT slot_name FROM pg_replication_slots WHERE temporary UNION ALL"
                    " SELECT application_name FROM pg_stat_activity WHERE application_name ~ 'pgherd_copy'"
                ).fetchall()
            found += [row[0] for row in rows]
    return found


def test_a_busy_cluster_is_copied_up_to_one_point_and_its_log_is_held_no_longer_than_that() -> None:
    with temporary_home() as home:
        home.up(declaration(segments=1, standbys=1), timeout=300)
        with home.connect() as connection:
            make_tables(connection)
        platform = LocalPlatform(home.path, programs().directory)
        world = observe.connect(platform, "shop", make_engine)
        machine = LocalMachine(platform.programs())
        root = home.path / "copies"

        def place(group: int) -> Place:
            return Place(machine, root / f"{group}" / "data", root / f"{group}" / "received")

        method = FarMethod(place, "shop")
        cluster = platform.declaration("shop").cluster

        def copy(wanted: int) -> FarCopy:
            declared = with_segment_count(cluster, wanted)
            folders = Folders(machine, root / "keys")
            return FarCopy(world.engine, world.databases, method, lambda: False, folders, place, declared)

        told: dict[int, tuple[int, int]] = {}
        with movers(home.dsn()) as ledger:
            await_transfers(ledger, 20)
            with pytest.raises(BadInput, match=r"spec\.segments\.count: must be 1"):
                copy(2).make("shop", lambda *_: None)
            began = datetime.now(UTC)
            made = copy(1).make("shop", lambda group, done, total: told.update({group: (done, total)}))
            await_transfers(ledger, 5)
        assert not ledger.errors
        assert sorted(told) == sorted(GROUPS)
        assert all(0 < done <= total for done, total in told.values())
        assert made.archived
        assert datetime.fromisoformat(made.time) > began
        assert held(world.databases) == []
        for group in GROUPS:
            moved = replayed(method, place(group), group, made, root)
            assert moved == (SUM if group else 0), (
                "with one segment the point is one of its transactions' ends"
            )


def replayed(method: FarMethod, place: Place, group: int, point: Point, root: Path) -> int:
    """How much money there is where a group's server waits at the point."""
    method.restore(["live"], group, place.data, lambda done, total: None, lambda: False)
    server = PrivateServer(place.machine, place.data, root / f"{group}", root / f"{group}.log")
    at = point.groups[group]
    place.machine.write(place.data / "recovery.signal", "")
    server.start(
        {
            **{name: str(value) for name, value in server.controlled().settings.items()},
            "restore_command": method.restore_command(group, at.system),
            "recovery_target_name": point.name,
            "recovery_target_timeline": str(at.timeline),
            "recovery_target_action": "pause",
        }
    )
    try:
        server.wait(is_paused_or_open, lambda: False)
        assert f'restore point "{point.name}"' in server.said()
        with server.connect("app") as connection:
            tables = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^account'"
            ).fetchall()
            sums = [connection.execute(f"SELECT sum(balance) FROM {name}").fetchone() for (name,) in tables]
        return sum(int(row[0] or 0) for row in sums if row is not None)
    finally:
        server.stop()
