"""Backups and restores of one home's clusters, as the commands ask for them.

Of a cluster that is gone its repository still tells; then its path has to be named.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pgherd.backup import archive, choice, finding, listing, maker, planning, registry, restore
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import NotOurs, check_owner
from pgherd.backup.records import TYPES, Backup, BackupType, Point
from pgherd.errors import BadInput, NoSuchCluster, PgherdError
from pgherd.faults import crash_point
from pgherd.model import spec as declaration
from pgherd.model.spec import BackupSpec, PostgresCluster
from pgherd.model.topology import COORDINATOR
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.platform import LocalPlatform

POLL_SECONDS = 0.2
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Target:
    """What a restore leads to."""

    point: Point
    following: Point | None
    """the next point: what was committed between the two is not in the restored cluster"""
    cluster: PostgresCluster


def prepare(platform: LocalPlatform, cluster: PostgresCluster) -> None:
    """See to it that a declared repository is there and this cluster's.

    :raises BadInput: it is another cluster's
    :raises PgherdError: it can't be made
    """
    if cluster.spec.backup is None:
        return
    name = cluster.metadata.name
    method = registry.make_method(platform, cluster)
    method.check()
    repository = method.repository
    if repository.is_there():
        system = _coordinator_system(platform, name)
        check_owner(method.location, repository.refuse_anothers(), system, method.name)
    elif not _had(platform, cluster):
        # One that was there before and is away now is not made anew: its disk may not be mounted.
        repository.create(name)


def _had(platform: LocalPlatform, cluster: PostgresCluster) -> bool:
    try:
        before = platform.declaration(cluster.metadata.name).cluster.spec.backup
    except NoSuchCluster:
        return False
    wanted = cluster.spec.backup
    return before is not None and wanted is not None and before.repository == wanted.repository


def _coordinator_system(platform: LocalPlatform, name: str) -> str | None:
    layout = Layout(platform.home)
    for view in platform.members(name).values():
        if view.member.group == COORDINATOR and view.has_data:
            return archive.system_of(str(layout.member(view.member).data))
    return None


def method_of(platform: LocalPlatform, name: str, repository: str | None) -> BackupMethod:
    """The backups of a cluster, or of one that is gone.

    :param repository: the path as it was declared, or a file that says what ``spec.backup`` said
    :raises BadInput: none are declared, nothing is there, or it is another cluster's
    """
    if repository is not None:
        method = registry.open_method(platform, planning.repository(repository), name, _temporary())
        if not method.repository.is_there():
            raise BadInput(f"--repository {repository}: holds no backups of {name}")
        return method
    try:
        cluster = platform.declaration(name).cluster
    except NoSuchCluster as error:
        raise NoSuchCluster(f"{error}; if it is gone, name its repository with --repository") from None
    if cluster.spec.backup is None:
        raise BadInput(
            f"{name} has no backups: spec.backup says where they should go ('pgherd explain backup')"
        )
    method = registry.make_method(platform, cluster)
    _refuse_anothers(method)
    return method


def _refuse_anothers(method: BackupMethod) -> None:
    """Nothing is asked of another cluster's repository, and nothing of it is shown as this one's."""
    try:
        if not method.repository.is_own() and method.repository.is_there():
            method.repository.refuse_anothers()
    except NotOurs:
        raise
    except PgherdError:  # whoever asks it for something is told
        return


def declared_of(platform: LocalPlatform, name: str, repository: str | None) -> BackupSpec:
    """What is declared, or named, of the backups that :func:`method_of` gives."""
    declared = (
        platform.declaration(name).cluster.spec.backup
        if repository is None
        else planning.repository(repository)
    )
    assert declared is not None, "method_of has refused it"
    return declared


@cache
def _temporary() -> Path:
    """For this process's own looks into a repository that no cluster here has."""
    folder = Path(tempfile.mkdtemp(prefix="pgherd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def request(platform: LocalPlatform, name: str, kind: str, backup: str | None = None) -> str:
    """Ask for a backup; returns its id.

    :param backup: its id; no-op if it is there

    :raises BadInput: no such type, none are declared, another one is not done, or the cluster is stopped
    """
    if kind not in TYPES:
        raise BadInput(f"--type: must be one of {', '.join(TYPES)}, got {kind}")
    wanted: BackupType = kind
    method = method_of(platform, name, None)
    if platform.declaration(name).stopped:
        raise BadInput(f"{name} is stopped: 'pgherd start {name}' brings it back")
    check_type(platform, method, kind, "--type")
    return maker.request(method.repository, wanted, name=backup).id


def check_type(platform: LocalPlatform, method: BackupMethod, kind: str, what: str) -> None:
    """Refuse what this machine's PostgreSQL can't make.

    :param what: names the type in the message
    :raises BadInput: in one line
    """
    if kind != "full" and method.name == "native" and platform.programs().major < 17:
        raise BadInput(f"{what} {kind}: needs PostgreSQL 17 or later, {platform.programs().major} is here")


def wait(
    method: BackupMethod, name: str, backup: str, *, timeout: float, progress: Progress | None
) -> dict[str, Any]:
    """Until a backup has ended.

    :raises PgherdError: it failed, or time ran out
    """
    deadline = time.monotonic() + timeout
    while True:
        now = method.repository.backup(backup)
        if progress is not None:
            progress(_as_status(name, now))
        if now.phase == "failed":
            raise PgherdError(f"{name}: backup {backup} failed: {now.error}")
        if not now.is_open:
            return listing.described(now)
        if time.monotonic() > deadline:
            raise PgherdError(
                f"{name}: backup {backup} is not done after {timeout:.0f} s: {now.message or now.phase}"
            )
        time.sleep(POLL_SECONDS)


def _as_status(name: str, now: Backup) -> dict[str, Any]:
    rate, left = now.pace
    return {
        "name": name,
        "phase": "BackingUp",
        "operation": {
            "kind": f"{now.type} backup",
            "phase": now.phase,
            "bytesDone": now.bytes_done,
            "bytesTotal": now.bytes_total,
            "bytesPerSecond": rate,
            "etaSeconds": left,
            "message": now.message,
        },
    }


def plan(
    platform: LocalPlatform,
    source: str,
    target: str,
    *,
    repository: str | None = None,
    restore_point: str | None = None,
    moment: str | None = None,
    backup: str | None = None,
    inclusive: bool = True,
    declared: PostgresCluster | None = None,
    in_place: bool = False,
    as_clone: bool = False,
) -> Target:
    """What a restore would make; nothing is changed.

    :param in_place: ``target`` is there, and keeps its declaration
    :param as_clone: the new cluster has no backups of its own
    :param declared: what the new cluster should be; left out: what the source was
    :raises BadInput: there is no such point, or the new name is taken
    """
    if in_place:
        declared = platform.declaration(target).cluster
    else:
        _require_free(platform, target)
    method = method_of(platform, source, repository)
    method.check()
    from_there = registry.source_of(declared_of(platform, source, repository), source)
    wanted: dict[str, Any] = dict(from_there)
    wanted |= {
        key: value
        for key, value in (("restorePoint", restore_point), ("time", moment), ("backup", backup))
        if value is not None
    }
    if not inclusive:
        wanted["inclusive"] = False
    points = finding.restorable(method)
    point = finding.find_point(method, planning.wanted(wanted))
    exact = {**from_there, "restorePoint": point.name}
    shape = declaration.to_mapping(declared) if declared else dict(method.repository.identity().declared)
    if as_clone and shape:
        shape = {**shape, "spec": {key: value for key, value in shape["spec"].items() if key != "backup"}}
    cluster = planning.declared(
        shape, target, point, exact, own_segments=declared is not None and not in_place, kept=in_place
    )
    planning.check_fits(cluster, point)
    return Target(point, choice.after(points, point), cluster)


def restore_in_place(platform: LocalPlatform, name: str, target: Target) -> None:
    """Write the wish down; whoever carries it out declares what follows from it, if this process does not come to it.

    :raises BadInput: the last one has not been confirmed, or another is going on
    """
    workshop = platform.workshop(name)
    if Layout(platform.home).aside(name).exists():
        raise BadInput(
            f"what {name} was before its last restore is still kept: 'pgherd restore {name} --confirm' removes it"
        )
    if (workshop.read_state() or {}).get("phase") not in (
        None,
        restore.DONE,
        restore.REVERTED,
        restore.FAILED,
    ):
        raise BadInput(f"{name} is being restored already: 'pgherd status {name}' shows how far it is")
    before, at = platform.declaration(name).cluster.spec.segments.count, target.cluster.spec.segments.count
    counts = {"segments": {"before": before, "at": at}} if before != at else {}
    asked = declaration.to_mapping(target.cluster)["spec"]["bootstrap"]["recovery"]
    with platform.locked():
        earlier = workshop.read_state()
        # The wish comes first. With another number of segments alone data would be moved to meet it.
        workshop.write_state({**restore.IN_PLACE, "recovery": asked, **counts})
        crash_point("in-place:asked")
        try:
            platform.declare(target.cluster)
        except PgherdError:
            # Who is told that it failed does not expect it to be done; a state that has ended asks for nothing.
            workshop.write_state(earlier or {"phase": restore.REVERTED})
            raise
        # A generation of its own: what was seen before says nothing of this wish.
        platform.set_stopped(name, True)
        platform.set_stopped(name, False)


def outcome(platform: LocalPlatform, name: str) -> str | None:
    """Why the last restore in place was taken back; None: it was not."""
    state = platform.workshop(name).read_state() or {}
    return str(state.get("error")) if state.get("phase") == restore.REVERTED else None


def confirm(platform: LocalPlatform, name: str) -> None:
    """Remove what a restore in place kept.

    :raises BadInput: nothing is kept, or the restore is not done
    """
    platform.declaration(name)
    kept = Layout(platform.home).aside(name)
    if not kept.exists():
        files.sweep(kept.parent, kept.name)
        raise BadInput(f"{name}: nothing is kept from before a restore")
    if (platform.workshop(name).read_state() or {}).get("phase") != restore.DONE:
        raise BadInput(f"{name} is being restored: 'pgherd status {name}' shows how far it is")
    with platform.locked():
        files.hide(kept)
    # A whole cluster's data: nobody else of the home waits until they are gone.
    files.sweep(kept.parent, kept.name)


def plan_clone(platform: LocalPlatform, source: str, target: str) -> PostgresCluster:
    """The declaration of a clone; nothing is changed.

    :raises BadInput: the source can't be copied now, or the new name is taken
    """
    _require_free(platform, target)
    found = platform.declaration(source)
    if found.is_winding_down:
        raise BadInput(f"{source} is not running: 'pgherd start {source}' brings it back")
    shape = declaration.to_mapping(found.cluster)
    spec = {key: value for key, value in shape["spec"].items() if key != "backup"}
    spec = {**spec, "bootstrap": {"clone": {"cluster": source}}}
    raw = {**shape, "metadata": {**shape["metadata"], "name": target}, "spec": spec}
    return planning.like(raw, target)


def _require_free(platform: LocalPlatform, target: str) -> None:
    if target in platform.clusters() or platform.keeps(target):
        raise BadInput(f"{target} is here already: choose another name, or delete it first (with --purge)")
