"""The rebuilding of groups beside a cluster's reconcile loop: a thread for each."""

from __future__ import annotations

import logging
import threading

import psycopg

from pgherd.backup.base import BackupMethod
from pgherd.backup.registry import make_method, open_method
from pgherd.backup.repair import Repair, Site
from pgherd.errors import NoSuchCluster, PgherdError
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import group_name
from pgherd.operations import store
from pgherd.platform.base import Platform
from pgherd.platform.bench import Bench
from pgherd.reconcile import fulfilment
from pgherd.reconcile.observe import World

logger = logging.getLogger(__name__)


class Repairs:
    """Those of one cluster.

    :param stop: set when this process is to end
    """

    def __init__(self, platform: Platform, name: str, stop: threading.Event) -> None:
        self._platform = platform
        self._name = name
        self._stop = stop
        self._running: dict[int, threading.Thread] = {}

    def threads(self) -> list[threading.Thread]:
        """Those that may run."""
        return list(self._running.values())

    def carry_on(self, world: World, group: int) -> None:
        """See to it that a group is being rebuilt; returns at once."""
        known = self._running.get(group)
        if known is not None and known.is_alive():
            return
        repair = Repair(self._site(world, group))
        logger.info("%s: carry on rebuilding group %s from the backups", self._name, group)

        def run() -> None:
            try:
                repair.run()
            except (PgherdError, psycopg.Error):  # written down where it matters, or to be carried on
                return
            except Exception:
                logger.exception("%s: a repair was interrupted", self._name)

        self._running[group] = threading.Thread(target=run, name=f"repair-{self._name}-{group}", daemon=True)
        self._running[group].start()

    def _site(self, world: World, group: int) -> Site:
        platform, name = self._platform, self._name
        bench = platform.bench(name, group)
        return Site(
            name=name,
            group=group,
            bench=bench,
            method=_method(platform, platform.declaration(name).cluster, group, bench),
            engine=world.engine,
            databases=world.databases,
            has_primary=lambda: has_primary(world, group),
            is_retired=lambda: self._is_retired(group),
            down_since=self._down_since,
            call_off=lambda: call_off(world),
            stopping=lambda: self._stopping() or bench.unwanted,
        )

    def _down_since(self) -> str | None:
        """Since when the cluster is not what it should be."""
        found = fulfilment.conditions(self._platform.read_status(self._name)).get("Ready")
        return str(found["lastTransitionTime"]) if found and found["status"] == "False" else None

    def _is_retired(self, group: int) -> bool:
        try:
            return self._platform.counts_on(self._name, group) is False
        except PgherdError:
            return False  # nobody knows

    def _stopping(self) -> bool:
        if self._stop.is_set():
            return True
        try:
            declaration = self._platform.declaration(self._name)
        except NoSuchCluster:
            return True
        return declaration.is_winding_down


def _method(platform: Platform, cluster: PostgresCluster, group: int, bench: Bench) -> BackupMethod:
    """The cluster's own backups, for who works at a bench."""
    machines, declared, name = bench.machines(), cluster.spec.backup, cluster.metadata.name
    if machines is None or declared is None:
        return make_method(platform, cluster)
    folder = platform.backup_folder(name) / f"repair-{group_name(group)}"
    return open_method(platform, declared, name, folder, machines, own=True)


def has_primary(world: World, group: int) -> bool:
    """Whether a member of a group leads and takes writes, as its Patroni says."""
    for view in world.platform.members(world.name).values():
        if view.member.group == group and view.running:
            answer = world.patroni.member_status(view.rest)
            if (
                answer is not None
                and answer.leader
                and answer.role == "primary"
                and answer.state == "running"
            ):
                return True
    return False


def call_off(world: World) -> str | None:
    """Call a change of the cluster off that is under way: what it copied may hang on what is lost."""
    running = store.current(world.databases)
    if running is None:
        return None
    store.request_cancel(world.databases, running.id)
    return f"the {running.kind} that was under way is called off"
