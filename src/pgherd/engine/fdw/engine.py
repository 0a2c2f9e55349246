"""The engine that needs nothing but core PostgreSQL: hash partitions of the coordinator's tables are foreign tables on
the segments.

This class is thin. What must happen inside one database transaction is SQL (``sql/``, functions of schema ``pgherd``);
what spans several connections is a module of its own: moving shards (``move``), clean-up (``cleanup``), admission
(``segments``), checking (``checks``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pgherd.engine.base import Engine, Finding, MoveControl, ShardGroup, ShardGroupId, TableLayout
from pgherd.engine.fdw import checks, cleanup, install, layout, move, restore_point, segments
from pgherd.model.topology import COORDINATOR, Endpoints
from pgherd.postgres.connections import Databases


class FdwEngine(Engine):
    """See :class:`~pgherd.engine.base.Engine`.

    :param databases: how to reach the groups
    """

    name = "fdw"

    def __init__(self, databases: Databases) -> None:
        self.databases = databases

    def parameters(self, group: int, shard_count: int) -> Mapping[str, str | int | bool]:
        if group == COORDINATOR:
            return {
                "enable_partitionwise_join": True,
                # foreign scans cost much by the planner's units, but there is nothing in them to compile
                "jit": False,
                # one lock for each shard that a statement touches
                "max_locks_per_transaction": max(256, 4 * shard_count),
            }
        return {
            "wal_level": "logical",
            "max_replication_slots": 40,
            "max_wal_senders": 40,
            "max_logical_replication_workers": 20,
            "max_worker_processes": 40,
            "max_locks_per_transaction": 256,
            "wal_retrieve_retry_interval": "100ms",
            "wal_receiver_status_interval": "1s",
        }

    def is_initialised(self, group: int) -> bool:
        return install.is_installed(self.databases, group)

    def initialise_coordinator(self, shard_count: int) -> None:
        if install.install(self.databases, COORDINATOR):
            segments.reopen(self.databases)
        with self.databases.connect(COORDINATOR) as connection:
            connection.execute(
                "INSERT INTO pgherd.settings VALUES ('shard_count', %s)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE settings.value <> excluded.value",
                [str(shard_count)],
            )

    def initialise_segment(self, group: int) -> None:
        install.install(self.databases, group)

    def admit(self, group: int, endpoints: Endpoints) -> None:
        segments.admit(self.databases, group, endpoints)

    def update_endpoints(self, group: int, endpoints: Endpoints) -> None:
        segments.update_endpoints(self.databases, group, endpoints)

    def retire(self, group: int) -> None:
        segments.retire(self.databases, group)

    def segments(self) -> Sequence[int]:
        return tuple(self.endpoints())

    def endpoints(self) -> Mapping[int, Endpoints]:
        return segments.endpoints(self.databases)

    def shard_groups(self) -> Sequence[ShardGroup]:
        return segments.shard_groups(self.databases)

    def preflight(
        self, groups: Sequence[ShardGroupId], *, blocking: bool = False, retiring: Collection[int] = ()
    ) -> Sequence[str]:
        return move.preflight(self.databases, groups, blocking=blocking)

    def move(
        self,
        operation: int,
        group: ShardGroupId,
        target: int,
        control: MoveControl,
        *,
        blocking: bool = False,
    ) -> None:
        move.move_shard_group(self.databases, operation, group, target, control, blocking=blocking)

    def clean_up(self, operation: int | None = None) -> int:
        remaining = cleanup.clean_up(self.databases, operation)
        return remaining + (segments.drop_gone_tables(self.databases) if operation is None else 0)

    def create_restore_point(
        self, name: str, measured: Callable[[float], None] = lambda seconds: None
    ) -> Mapping[int, str]:
        return restore_point.create_restore_point(self.databases, name, measured)

    def settle_restored(self, endpoints: Mapping[int, Endpoints]) -> Sequence[str]:
        return segments.settle_restored(self.databases, endpoints)

    def layout(self) -> Sequence[TableLayout]:
        return layout.layout(self.databases)

    def check(self) -> Sequence[Finding]:
        return checks.check(self.databases)
