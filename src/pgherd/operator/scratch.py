"""Where drills are made on Kubernetes: a cluster of its own in the same namespace, kept by a loop like any other.

It is owned by the cluster whose backups are tried, and declared with ``deletionPolicy: Delete``: whoever removes either
of them, nothing is left of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pgherd.backup import finding, planning, registry
from pgherd.backup.base import BackupMethod
from pgherd.backup.records import Point
from pgherd.engine.registry import make_engine
from pgherd.errors import BadInput, Cancelled, NoSuchCluster, PgherdError, Unavailable
from pgherd.model.spec import PostgresCluster, to_mapping
from pgherd.model.topology import SUPERUSER
from pgherd.platform.kubernetes import drills, names, patroni_files
from pgherd.platform.kubernetes.api import CLUSTER, VOLUME_CLAIM, Object
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.reconcile import drills as drilling
from pgherd.reconcile import observe
from pgherd.reconcile.drills import Course, Ground, Wish
from pgherd.reconcile.fulfilment import is_fulfilled, time_is_up
from pgherd.reconcile.observe import World

LOOK_SECONDS = 1.0
SILENCE = "the operator has not looked at it yet"


class Scratch(Ground):
    """See :class:`~pgherd.reconcile.drills.Ground`.

    :param drill: whose it is
    :param wait: waits so many seconds
    :param stopping: whether this process is to leave the cluster alone
    :param write: writes down how far the drill is
    :raises BadInput: the cluster's name is too long for drills
    """

    def __init__(
        self,
        platform: KubernetesPlatform,
        name: str,
        drill: str,
        *,
        wait: Callable[[float], object],
        stopping: Callable[[], bool],
        write: Callable[[Course], None],
    ) -> None:
        self.name, self.scratch = name, drilling.scratch_name(name)
        self._platform, self._drill = platform, drill
        self._wait, self._stopping, self._write = wait, stopping, write

    def method(self) -> BackupMethod:
        return registry.make_method(self._platform, self._platform.declaration(self.name).cluster)

    def world(self, name: str) -> World:
        return observe.connect(self._platform, name, make_engine)

    def plan(self, point: str | None) -> tuple[str, str]:
        self._require_free()
        found = self._find(point)
        return found.name, found.time

    def declare(self, restore_point: str) -> None:
        found = self._resource()
        if found is not None and drills.is_scratch(found, self.name) and drills.is_of(found, self._drill):
            return
        self.clear()
        cluster = shape(
            self._platform.declaration(self.name).cluster, self._find(restore_point), self.scratch
        )
        if not self._platform.make_scratch(self.name, to_mapping(cluster), self._drill):
            raise Unavailable(f"{self.scratch} was declared by somebody else just now")

    def _find(self, point: str | None) -> Point:
        spec = self._platform.declaration(self.name).cluster.spec
        if spec.backup is None:
            raise BadInput(f"{self.name} has no backups any more")
        wanted = registry.source_of(spec.backup, self.name)
        if point is not None:
            wanted["restorePoint"] = point
        return finding.find_point(self.method(), planning.wanted(wanted))

    def wait(self, wish: Wish) -> None:
        deadline = time.monotonic() + wish.timeout
        while True:
            self.pause(LOOK_SECONDS)
            generation, now = self._generation(), self._platform.read_status(self.scratch)
            if is_fulfilled(self.scratch, now, generation, silence=SILENCE):
                return
            if time.monotonic() > deadline:
                raise PgherdError(time_is_up(self.scratch, now, generation, wish.timeout, SILENCE))

    def _generation(self) -> int:
        try:
            return self._platform.generation(self.scratch)
        except NoSuchCluster:
            # The news that its forerunner is gone may come late.
            found = self._resource()
            if found is None:
                raise
            return int(found["metadata"]["generation"])

    def restored(self) -> Mapping[str, Any]:
        # Asked: what is at hand may be older than the end of the restore.
        return self._platform.workshop(self.scratch).state_of(self._resource(), asked=True) or {}

    def is_to_stop(self) -> bool:
        return self._stopping()

    def amcheck(self, world: World, group: int, watch: Callable[[str], None]) -> None:
        (host, *_) = (each.host for each in world.databases.addresses()[group])
        machine = self._platform.machines(self.scratch).at(host)
        # The password is in the container's environment: what is run there has it.
        machine.run(
            [
                machine.program("pg_amcheck"),
                *(*drilling.AMCHECK, f"--host={patroni_files.SOCKET_PATH}", f"--username={SUPERUSER}"),
                world.databases.database,
            ],
            environment=drilling.amcheck_options(world.engine, machine.major),
            stopping=self._stopping,
            watch=watch,
        )

    def note(self, course: Course) -> None:
        self._write(course)

    def pause(self, seconds: float) -> None:
        if not self._stopping():
            self._wait(seconds)
        if self._stopping():
            raise Cancelled(f"the drill of {self.name} pauses")
        self.in_time()

    def rest(self, seconds: float) -> None:
        # A server that can't be asked because the API server is away is no finding.
        while True:
            self.pause(seconds)
            try:
                self._resource()
            except Unavailable:
                continue
            return

    # the resource

    def clear(self) -> None:
        """See to it that there is no scratch, nor anything of one.

        :raises BadInput: what has its name is no scratch
        :raises Cancelled: this process is to end
        """
        self.remove()
        while self._resource() is not None or self._volumes():
            self.pause(LOOK_SECONDS)
            self._require_free()  # somebody may have had its volumes kept

    def remove(self) -> None:
        """Have the scratch go. Returns at once.

        :raises BadInput: what has its name is no scratch
        """
        found = self._require_free()
        if found is not None and "deletionTimestamp" not in found["metadata"]:
            # This very one: what somebody may have put in its place is not ours.
            patch = {"metadata": {"uid": found["metadata"]["uid"]}, "spec": {"deletionPolicy": "Delete"}}
            self._platform.api.merge(CLUSTER, self._platform.namespace, self.scratch, patch)
            self._platform.api.delete_this(CLUSTER, self._platform.namespace, found)

    def _require_free(self) -> Object | None:
        found = self._resource()
        if found is not None and not drills.is_scratch(found, self.name):
            raise BadInput(f"{self.scratch} is a cluster of its own: a drill of {self.name} needs that name")
        if found is None and any("deletionTimestamp" not in each["metadata"] for each in self._volumes()):
            raise BadInput(
                f"the volumes of a cluster {self.scratch} that was deleted are kept, and a drill of {self.name} needs "
                f"that name: 'pgherd delete {self.scratch} --purge' removes them"
            )
        return found

    def _resource(self) -> Object | None:
        """Asked, not looked up: it is about what is made and removed."""
        found = self._platform.api.get(CLUSTER, self._platform.namespace, self.scratch)
        return None if found is None else {**found, "kind": CLUSTER.name}

    def _volumes(self) -> list[Object]:
        selector = names.selector(self.scratch)
        return self._platform.api.list(VOLUME_CLAIM, self._platform.namespace, selector)


def shape(cluster: PostgresCluster, point: Point, scratch: str) -> PostgresCluster:
    """What the scratch of a cluster is declared to be.

    :raises BadInput: this point can't be restored into such a cluster
    """
    assert cluster.spec.backup is not None, "asked only where backups are declared"
    raw = drilling.lean(cluster, scratch, deletionPolicy="Delete")
    recovery: dict[str, Any] = dict(registry.source_of(cluster.spec.backup, cluster.metadata.name))
    recovery["restorePoint"] = point.name
    found = planning.declared(raw, scratch, point, recovery, own_segments=False, platform="kubernetes")
    planning.check_fits(found, point)
    return found
