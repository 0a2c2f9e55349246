"""The engine for production: the Citus extension, its nodes kept by Patroni's Citus support.

This class is thin. Citus does the work; what is ours is who takes part (``nodes``), which shards move when (the planner
and the operations; one move is ``move``), and what is looked after (``cleanup``, ``checks``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pgherd.engine.base import Clone, Engine, Finding, MoveControl, ShardGroup, ShardGroupId, TableLayout
from pgherd.engine.citus import (
    checks,
    cleanup,
    clone,
    clone_name,
    install,
    layout,
    move,
    nodes,
    preflight,
    restore_point,
    restored,
    shards,
    versions,
)
from pgherd.engine.citus.session import superuser
from pgherd.model.topology import COORDINATOR, Endpoints
from pgherd.postgres.connections import Databases

_PARAMETERS: Mapping[str, str | int | bool] = {
    "wal_level": "logical",
    # A move takes a slot, a sender and a worker for each owner of tables, besides the standbys'.
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_logical_replication_workers": 20,
    "max_worker_processes": 48,
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
    # A session whose client was killed must not carry a move on unseen.
    "client_connection_check_interval": "1s",
    "citus.node_connection_timeout": "5s",
    # What a failover left prepared holds locks until it is resolved.
    "citus.recover_2pc_interval": "5s",
    "citus.defer_shard_delete_interval": "5s",
    "citus.shard_replication_factor": 1,
}

_KEEPALIVES = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}


class CitusEngine(Engine):
    """See :class:`~pgherd.engine.base.Engine`.

    :param databases: how to reach the groups
    """

    name = "citus"
    # A session that waits for its standby when its server is killed commits its part on this disk only, and then what
    # it has prepared on other nodes. Only this disk can tell: a standby that took over would make that a half.
    restart_seconds = 60
    alone_options = "-c citus.enable_ddl_propagation=off"

    def __init__(self, databases: Databases) -> None:
        self.databases = databases

    def preload_libraries(self) -> Sequence[str]:
        return ("citus",)

    def parameters(self, group: int, shard_count: int) -> Mapping[str, str | int | bool]:
        # max_prepared_transactions is Patroni's: twice max_connections, unless the user says something else.
        return {
            **_PARAMETERS,
            "citus.node_conninfo": self._node_conninfo(),
            "citus.shard_count": shard_count,
            "max_locks_per_transaction": max(256, 4 * shard_count),
        }

    def _node_conninfo(self) -> str:
        """How nodes reach one another: as we reach them."""
        encryption = {"sslmode": "prefer", **self.databases.options}
        return " ".join(f"{name}={value}" for name, value in {**encryption, **_KEEPALIVES}.items())

    @classmethod
    def patroni_section(cls, database: str, group: int) -> Mapping[str, Any]:
        return {"citus": {"group": group, "database": database}}

    def is_initialised(self, group: int) -> bool:
        if not install.is_installed(self.databases, group):
            return False
        if group != COORDINATOR:
            return True
        with superuser(self.databases) as connection:
            return not nodes.unfenced(connection)

    def unfit(self) -> Sequence[str]:
        return versions.unfit(self.databases)

    def initialise_coordinator(self, shard_count: int) -> None:
        install.install(self.databases, COORDINATOR)
        nodes.fence(self.databases)

    def initialise_segment(self, group: int) -> None:
        install.install(self.databases, group)

    def admit(self, group: int, endpoints: Endpoints) -> None:
        nodes.admit(self.databases, group, endpoints)

    def update_endpoints(self, group: int, endpoints: Endpoints) -> None:
        nodes.update_endpoints(self.databases, group, endpoints)

    def retire(self, group: int) -> None:
        # One that was split off just now recovers nothing until this is done; and it has to, before it goes.
        clone.own_sequences(self.databases, group)
        nodes.retire(self.databases, group)

    def segments(self) -> Sequence[int]:
        return nodes.segments(self.databases)

    def endpoints(self) -> Mapping[int, Endpoints]:
        return nodes.endpoints(self.databases)

    def steer(self, retiring: Collection[int]) -> None:
        nodes.steer(self.databases, retiring)

    def shard_groups(self) -> Sequence[ShardGroup]:
        return shards.shard_groups(self.databases)

    def preflight(
        self, groups: Sequence[ShardGroupId], *, blocking: bool = False, retiring: Collection[int] = ()
    ) -> Sequence[str]:
        return preflight.preflight(self.databases, groups, blocking=blocking, retiring=retiring)

    def alone(self) -> Callable[[ShardGroupId], object]:
        return move.alone(self.databases)

    def move(
        self,
        operation: int,
        group: ShardGroupId,
        target: int,
        control: MoveControl,
        *,
        blocking: bool = False,
    ) -> None:
        move.move(self.databases, operation, group, target, control, blocking=blocking)

    def clone_problems(self) -> Sequence[str]:
        return clone.problems(self.databases)

    def clones(self) -> Mapping[int, Clone]:
        return clone.clones(self.databases)

    def clone_parameters(self) -> Mapping[int, Mapping[str, str]]:
        return clone_name.parameters(self.databases)

    def begin_clone(self, operation: int, group: int, source: int) -> bool:
        return clone.begin(self.databases, operation, group, source)

    def is_copied(self, group: int) -> str | None:
        return clone.what_is_missing(self.databases, group)

    def hold_clone(self, group: int) -> None:
        clone.hold(self.databases, group)

    def split(self, operation: int, group: int, source: int, control: MoveControl) -> None:
        clone.split(self.databases, operation, group, source, control)

    def finish_split(self) -> None:
        clone.own_sequences(self.databases)

    def forget_clones(self) -> int:
        return clone.remove_undone(self.databases)

    def clean_up(self, operation: int | None = None) -> int:
        remaining = cleanup.clean_up(self.databases, operation)
        if operation is None:
            remaining += nodes.remove_retired(self.databases) + clone.remove_undone(self.databases)
        return remaining

    def create_restore_point(
        self, name: str, measured: Callable[[float], None] = lambda seconds: None
    ) -> Mapping[int, str]:
        return restore_point.create_restore_point(self.databases, name, measured)

    def settle_restored(self, endpoints: Mapping[int, Endpoints]) -> Sequence[str]:
        return restored.settle(self.databases, endpoints)

    def settle_rebuilt(self, group: int, rebuilt: Databases, *, lossy: bool) -> Sequence[str]:
        return restored.settle_rebuilt(self.databases, group, rebuilt, lossy=lossy)

    def layout(self) -> Sequence[TableLayout]:
        return layout.layout(self.databases)

    def check(self) -> Sequence[Finding]:
        return checks.check(self.databases)
