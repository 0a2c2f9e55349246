"""A drill: the newest restore point is restored into a scratch cluster, which is examined and removed again.

Backups that nobody restores are hopes. A drill does all that a real restore does, in a cluster without standbys; then
it asks the scratch whether its catalogue and its segments agree, reads every table and index of every group for damage
(``pg_amcheck``; page checksums are verified on the way), and writes the result beside the backups. Where tables are
named it makes a point of its own, with what they held there (``operations.fingerprint``), and compares.

``drill.json`` says that a drill is going on and whose it is, from before the scratch is declared until it is removed.
Whoever finds one whose process is gone removes the scratch (``sweep``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from pgherd.backup import points, records, restore
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.registry import make_method
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, one_line
from pgherd.faults import crash_point
from pgherd.model import spec as declaration
from pgherd.model.spec import PostgresCluster
from pgherd.model.spec_models import MAX_NAME
from pgherd.model.topology import SUPERUSER, group_name
from pgherd.operations import fingerprint
from pgherd.operations.fingerprint import Print
from pgherd.platform.local import files, tools
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile.observe import World

if TYPE_CHECKING:
    from pgherd.supervisor.client import Client

SUFFIX = "-drill"
ARCHIVED_SECONDS = 300.0
"""how long a point may take to be archived"""
PAGE_BYTES = 8192
_QUIET = "-c event_triggers=off"
_PAGES = re.compile(r"(\d+)/\s*(\d+) pages")
Told = Callable[[str], None]
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Wish:
    """What kind of drill.

    :param keep: leave the scratch cluster there
    :param tables: those whose rows are compared with what they were at the point
    :param timeout: seconds for the restore
    :param told: told what is being done
    :param progress: fed with statuses while it goes on
    """

    keep: bool = False
    tables: Sequence[str] = ()
    timeout: float = 3600.0
    told: Told = lambda text: None
    progress: Progress | None = None


def drill(
    client: Client, platform: LocalPlatform, world: Callable[[str], World], name: str, wish: Wish
) -> dict[str, Any]:
    """Do it; returns the record.

    :param world: the way to a cluster's databases
    :raises BadInput: there is nothing to restore, there is no such table, another drill is going on, or the scratch's
        name is taken by something else
    """
    scratch = f"{name}{SUFFIX}"
    if len(scratch) > MAX_NAME:
        raise BadInput(f"{name}: its name is too long for a drill, the scratch cluster would be {scratch}")
    _check_free(client, name, scratch)
    _begin(platform, name, scratch)
    try:
        _clear(client, name, scratch)
        result = _Drill(client, platform, world, name, wish).run()
        remember(client, name, result)
        crash_point("drill:remembered")
    except Exception:  # not of an interruption: whoever is in a hurry leaves this to the supervisor
        _end(client, platform, name, scratch, keep=False)
        raise
    if not wish.keep:
        wish.told("removing it")
    _end(client, platform, name, scratch, keep=wish.keep)
    return result


class _Drill:
    """One drill, from the point to the verdict."""

    def __init__(
        self,
        client: Client,
        platform: LocalPlatform,
        world: Callable[[str], World],
        name: str,
        wish: Wish,
    ) -> None:
        self._client, self._platform, self._world = client, platform, world
        self._name, self._scratch, self._wish = name, f"{name}{SUFFIX}", wish
        self._problems: list[str] = []
        self._prints: list[Print] = []
        self._begun = time.monotonic()
        self._since = records.now()

    def run(self) -> dict[str, Any]:
        point = self._make_point() if self._wish.tables else None
        found = self._client.restore(self._name, self._scratch, restore_point=point, declared=self._lean())
        crash_point("drill:declared")
        compared = None
        try:
            self._told(f"restoring {found['restorePoint']} ({found['time']}) into {self._scratch}")
            self._client.wait(self._scratch, timeout=self._wish.timeout, progress=self._wish.progress)
            crash_point("drill:restored")
            compared = self._examine()
        except (PgherdError, psycopg.Error) as error:
            # A scratch that dies of what was restored, or can't be asked, is what a drill is there to find.
            self._problems.append(one_line(error) or type(error).__name__)
        return {
            "restorePoint": found["restorePoint"],
            "time": found["time"],
            "finishedAt": records.now(),
            "seconds": round(time.monotonic() - self._begun, 1),
            "passed": not self._problems,
            "problems": self._problems,
            "compared": compared,
        }

    def _told(self, text: str) -> None:
        self._since = records.now()
        self._wish.told(text)

    def _report(self, doing: str, done: int, total: int, *, unit: str = "") -> None:
        """What a bar shows: bytes where no unit is given."""
        if self._wish.progress is None:
            return
        amount: dict[str, Any] = {"movesDone": done, "movesTotal": total, "unit": unit}
        if not unit:
            rate, left = records.pace(self._since, done, total)
            amount = {"bytesDone": done, "bytesTotal": total, "bytesPerSecond": rate, "etaSeconds": left}
        operation = {"kind": "drill", "phase": doing, **amount}
        self._wish.progress({"name": self._scratch, "phase": "Examining", "operation": operation})

    # the point

    def _make_point(self) -> str:
        """A point with what the tables held; returns its name once it is archived."""
        world = self._world(self._name)
        tables = fingerprint.named(world.engine.layout(), self._wish.tables)
        method = make_method(self._platform, self._client.declared(self._name))
        method.repository.require()
        snapshots = fingerprint.Snapshots(world.databases, tables)
        try:
            self._told("making a point, and counting what is there")
            point = points.make(world.engine, world.databases, method, points.new_name("d"), around=snapshots)
            self._prints = snapshots.prints(
                lambda doing, done, total: self._report(doing, done, total, unit="places")
            )
        finally:
            snapshots.close()
        _keep_prints(method, point.name, self._prints)
        crash_point("drill:counted")
        self._await_archived(method, point, world)
        return point.name

    def _await_archived(self, method: BackupMethod, point: records.Point, world: World) -> None:
        deadline = time.monotonic() + ARCHIVED_SECONDS
        while (done := points.archived(method, point)) is None:
            if time.monotonic() > deadline:
                raise PgherdError(
                    f"{point.name} was not archived within {ARCHIVED_SECONDS:.0f} s: see 'pgherd status {self._name}'"
                )
            time.sleep(0.1)
        method.repository.remember_point(done)
        points.record(world.databases, done)

    def _lean(self) -> PostgresCluster:
        """The source's shape without standbys and without backups of its own."""
        raw = declaration.to_mapping(self._client.declared(self._name))
        spec = {key: value for key, value in raw["spec"].items() if key != "backup"}
        for group in ("coordinator", "segments"):
            spec[group] = {**spec[group], "standbys": 0}
        scratch = self._scratch
        return declaration.from_mapping({**raw, "metadata": {"name": scratch}, "spec": spec}, source=scratch)

    # the examination

    def _examine(self) -> dict[str, Any] | None:
        self._told("comparing its catalogue with its segments")
        found = self._client.check(self._scratch)
        self._problems += [f"{each.check}: {each.message}" for each in found]
        world = self._world(self._scratch)
        compared = self._compare(world) if self._prints else None
        self._told("reading every table and index")
        self._problems += _amcheck(
            world, lambda done, total: self._report("reading every table and index", done, total)
        )
        crash_point("drill:examined")
        return compared

    def _compare(self, world: World) -> dict[str, Any]:
        self._told("comparing rows")
        outcome = fingerprint.compare(
            world.databases,
            world.engine,
            self._prints,
            lambda doing, done, total: self._report(doing, done, total, unit="places"),
        )
        self._problems += outcome.problems
        return {
            "tables": sorted({each.table for each in self._prints}),
            "rows": outcome.rows,
            "rowsTouched": outcome.touched,
            "placesMoved": outcome.moved,
            "placesUnclear": outcome.unclear,
        }


def _amcheck(world: World, report: Callable[[int, int], None]) -> list[str]:
    """What ``pg_amcheck`` finds, a line for each group."""
    programs = world.platform.programs()
    found = []
    for group in sorted(world.databases.addresses()):
        parameters = world.databases.parameters(group, user=SUPERUSER)
        command: list[str | Path] = [
            programs.find("pg_amcheck"),
            *("--no-password", "--install-missing", "--progress", f"--host={parameters['host']}"),
            *(f"--port={parameters['port']}", f"--username={SUPERUSER}", parameters["dbname"]),
        ]
        environment = {"PGPASSWORD": parameters["password"]}
        if programs.major >= 17:
            environment["PGOPTIONS"] = _QUIET

        def watch(text: str) -> None:
            if amounts := _PAGES.findall(text):
                report(int(amounts[-1][0]) * PAGE_BYTES, int(amounts[-1][1]) * PAGE_BYTES)

        try:
            tools.run(command, environment=environment, stopping=lambda: False, watch=watch)
        except PgherdError as error:
            found.append(f"{group_name(group)}: {error}")
    return found


# the scratch


def _check_free(client: Client, name: str, scratch: str) -> None:
    try:
        bootstrap = client.declared(scratch).spec.bootstrap
    except NoSuchCluster:
        return
    if bootstrap is None or bootstrap.recovery is None or bootstrap.recovery.cluster != name:
        raise BadInput(f"{scratch} is a cluster of its own: a drill of {name} needs that name")


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
            _clear(client, name, f"{name}{SUFFIX}")
        files.remove(Layout(platform.home).drill(name))


# records


def _keep_prints(method: BackupMethod, point: str, prints: Sequence[Print]) -> None:
    """Write down what was at a point beside it; those of points that are gone go, too."""
    method.repository.remember_prints(point, [each.as_json() for each in prints])


def remember(client: Client, name: str, result: dict[str, Any]) -> None:
    """Write a drill down beside the backups."""
    client.repository(name).remember_drill(result)


def drills(client: Client, name: str) -> list[dict[str, Any]]:
    """The last drills, oldest first."""
    return client.repository(name).drills()


def last_end(kept: Catalogue) -> datetime | None:
    """When the last drill of a repository ended; None: there was none."""
    for each in reversed(kept.drills()):
        with suppress(LookupError, TypeError, ValueError):
            return records.moment(each["finishedAt"])
    return None


def is_possible(method: BackupMethod) -> bool:
    """Whether there is anything to restore."""
    return bool(restore.restorable(method))
