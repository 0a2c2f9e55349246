"""Drills on this machine: made by whoever asks for them, a command or the supervisor. What a drill is, ``reconcile``
says.

``drill.json`` says that a drill is going on and whose it is, from before the scratch is declared until it is removed.
Whoever finds one whose process is gone removes the scratch (``sweep``).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pgherd.backup import finding, records
from pgherd.backup.base import BackupMethod
from pgherd.backup.registry import make_method
from pgherd.errors import BadInput, NoSuchCluster, PgherdError
from pgherd.faults import crash_point
from pgherd.model import spec as declaration
from pgherd.model.topology import SUPERUSER
from pgherd.platform.local import files, tools
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import drills as drilling
from pgherd.reconcile.drills import Course, Drill, Ground, Wish
from pgherd.reconcile.observe import World
from pgherd.supervisor import backups

if TYPE_CHECKING:
    from pgherd.supervisor.client import Client


def drill(
    client: Client, platform: LocalPlatform, world: Callable[[str], World], name: str, wish: Wish
) -> dict[str, Any]:
    """Do it; returns the record.

    :param world: the way to a cluster's databases
    :raises BadInput: there is nothing to restore, there is no such table, another drill is going on, or the scratch's
        name is taken by something else
    """
    scratch = drilling.scratch_name(name)
    platform.declaration(name)  # nobody drills what is gone
    backups.method_of(platform, name, None)  # another cluster's repository is left alone
    _check_free(client, name, scratch)
    if platform.keeps(scratch) and not was_cut_short(platform, name):
        raise BadInput(
            f"the data of a cluster {scratch} that was deleted are kept, and a drill of {name} needs that name: "
            f"'pgherd delete {scratch} --purge' removes them"
        )
    _begin(platform, name, scratch)
    try:
        _clear(client, name, scratch)
        course = Course(secrets.token_hex(4), records.now())
        result = Drill(_Home(client, platform, world, name, scratch), wish, course).run()
        remember(client, name, result)
        crash_point("drill:remembered")
    except Exception:  # not of an interruption: whoever is in a hurry leaves this to the supervisor
        _end(client, platform, name, scratch, keep=False)
        raise
    if not wish.keep:
        wish.told("removing it")
    _end(client, platform, name, scratch, keep=wish.keep)
    return result


class _Home(Ground):
    """See :class:`~pgherd.reconcile.drills.Ground`."""

    def __init__(
        self, client: Client, platform: LocalPlatform, world: Callable[[str], World], name: str, scratch: str
    ) -> None:
        self.name, self.scratch = name, scratch
        self._client, self._platform, self._world = client, platform, world
        self._target: backups.Target | None = None

    def method(self) -> BackupMethod:
        return make_method(self._platform, self._client.declared(self.name))

    def world(self, name: str) -> World:
        return self._world(name)

    def plan(self, point: str | None) -> tuple[str, str]:
        shape = drilling.lean(self._client.declared(self.name), self.scratch)
        declared = declaration.from_mapping(shape, source=self.scratch)
        self._target = backups.plan(
            self._platform, self.name, self.scratch, restore_point=point, declared=declared
        )
        return self._target.point.name, self._target.point.time

    def declare(self, restore_point: str) -> None:
        assert self._target is not None, "planned by this process: what a killed one left is swept"
        self._client.up(self._target.cluster)

    def wait(self, wish: Wish) -> None:
        self._client.wait(self.scratch, timeout=wish.timeout, progress=wish.progress)

    def restored(self) -> Mapping[str, Any]:
        return self._platform.workshop(self.scratch).read_state() or {}

    def amcheck(self, world: World, group: int, watch: Callable[[str], None]) -> None:
        programs = world.platform.programs()
        parameters = world.databases.parameters(group, user=SUPERUSER)
        command: list[str | Path] = [
            programs.find("pg_amcheck"),
            *(*drilling.AMCHECK, f"--host={parameters['host']}", f"--port={parameters['port']}"),
            *(f"--username={SUPERUSER}", parameters["dbname"]),
        ]
        options = drilling.amcheck_options(world.engine, programs.major)
        environment = {"PGPASSWORD": parameters["password"], **options}
        tools.run(command, environment=environment, stopping=lambda: False, watch=watch)


# the scratch


def _check_free(client: Client, name: str, scratch: str) -> None:
    try:
        bootstrap = client.declared(scratch).spec.bootstrap
    except NoSuchCluster:
        return
    if bootstrap is None or bootstrap.recovery is None or bootstrap.recovery.cluster != name:
        raise BadInput(f"{scratch} is a cluster of its own: a drill of {name} needs that name")


def remove_scratch(client: Client, name: str) -> None:
    """Remove what a drill made of a cluster's backups; whatever waits for it ends.

    :raises BadInput: it is another cluster
    """
    _clear(client, name, drilling.scratch_name(name))


def _clear(client: Client, name: str, scratch: str) -> None:
    """Remove a scratch cluster, also one that a killed drill left."""
    _check_free(client, name, scratch)
    try:
        client.delete(scratch, purge=True)
    except NoSuchCluster:
        return
    client.wait_gone(scratch)


def _begin(platform: LocalPlatform, name: str, scratch: str) -> None:
    path = Layout(platform.home).drill(name)
    platform.declaration(name)
    with platform.locked():
        if is_going_on(platform, name):
            raise BadInput(f"a drill of {name} is going on: wait until it is done")
        me = psutil.Process()
        note = {"scratch": scratch, "pid": me.pid, "started": me.create_time(), "startedAt": records.now()}
        files.write_json(path, note)


def _end(client: Client, platform: LocalPlatform, name: str, scratch: str, *, keep: bool) -> None:
    path = Layout(platform.home).drill(name)
    try:
        if not keep:
            _clear(client, name, scratch)
    except PgherdError:
        # Nobody's drill: the supervisor tries again.
        files.write_json(path, {"scratch": scratch, "pid": 0})
        raise
    files.remove(path)


def is_going_on(platform: LocalPlatform, name: str) -> bool:
    """Whether a drill's process is there."""
    known = _record(platform, name)
    if known is None:
        return False
    try:
        return bool(psutil.Process(int(known["pid"])).create_time() == known["started"])
    except (psutil.Error, LookupError, TypeError, ValueError):
        return False


def was_cut_short(platform: LocalPlatform, name: str) -> bool:
    """Whether a drill's process ended in the middle of it."""
    return Layout(platform.home).drill(name).exists() and not is_going_on(platform, name)


def _record(platform: LocalPlatform, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = files.read_json(Layout(platform.home).drill(name))
    except PgherdError:
        return None
    return found


def sweep(client: Client, platform: LocalPlatform, name: str) -> None:
    """Remove what a drill left whose process is gone; no-op if there is nothing."""
    if was_cut_short(platform, name):
        with suppress(BadInput):  # the name is another cluster's by now
            _clear(client, name, f"{name}{drilling.SUFFIX}")
        # After that, for a share that hangs would keep the scratch running.
        with suppress(PgherdError):  # where there is no repository any more nobody reads it
            make_method(platform, client.declared(name)).end_verifying()
        files.remove(Layout(platform.home).drill(name))


# records


def remember(client: Client, name: str, result: dict[str, Any]) -> None:
    """Write a drill down beside the backups."""
    client.repository(name).remember_drill(result)


def drills(client: Client, name: str) -> list[dict[str, Any]]:
    """The last drills, oldest first."""
    return client.repository(name).drills()


def is_possible(method: BackupMethod) -> bool:
    """Whether there is anything to restore."""
    return bool(finding.restorable(method))
