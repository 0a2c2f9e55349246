"""The look for the point of a restore in place, while members run and nothing is made yet.

Most of a repository is read by itself; for some of it pgBackRest is needed, which runs where members are, with the keys
that they have: those of their own repository. So of another one not everything can be seen before a restore has begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgherd.backup import finding, pins, planning, registry
from pgherd.backup.base import BackupMethod
from pgherd.backup.records import Point
from pgherd.errors import PgherdError, Unavailable, Withheld
from pgherd.model.spec import PostgresCluster, VolumeSpec
from pgherd.model.spec_backup import RecoverySpec
from pgherd.platform.base import Platform
from pgherd.platform.machine import Machine, Machines


class Unseen(PgherdError):
    """Whether there is such a point is seen only once the restore has begun."""


def look(platform: Platform, cluster: PostgresCluster, recovery: Mapping[str, Any]) -> None:
    """Whether a restore in place that is not begun has a point, and that fits. May take as long as a store is silent.

    :param cluster: with as many segments as it is to have
    :raises Withheld: its repository can't be asked, or retention is about to remove what would be read
    :raises BadInput: it makes no sense
    :raises Unseen: nobody can tell yet
    """
    wanted = planning.wanted(dict(recovery))
    method = _method(platform, cluster, wanted)
    point = finding.find_point(method, wanted)
    planning.check_fits(cluster, point)
    _require_left(method, point)


def _require_left(method: BackupMethod, point: Point) -> None:
    """Members run, and so does who keeps their repository: nothing is lost by waiting for him."""
    bases = finding.bases(method, point) or {}
    try:
        pins.require_left(method.repository, {each for copies in bases.values() for each in copies})
    except Unavailable as error:
        raise Withheld(str(error)) from error


def _method(platform: Platform, cluster: PostgresCluster, wanted: RecoverySpec) -> BackupMethod:
    if is_own(cluster, wanted):
        return registry.make_method(platform, cluster)
    workshop = platform.workshop(cluster.metadata.name)
    there = workshop.machines()
    machines = Nowhere(there) if there is not None else None
    return registry.open_method(platform, wanted, wanted.cluster, workshop.scratch(), machines)


def is_own(cluster: PostgresCluster, wanted: RecoverySpec) -> bool:
    """Whether it is where the cluster's backups are, with the keys that its members have."""
    own = cluster.spec.backup
    if own is None or wanted.cluster != cluster.metadata.name:
        return False
    return (wanted.method, wanted.repository, wanted.secret_ref, wanted.encrypt) == (
        own.method,
        own.repository,
        own.secret_ref,
        own.encrypt,
    )


@dataclass(frozen=True)
class Nowhere(Machines):
    """Where no program can be run that needs keys.

    :param volumes: who has volumes, which need none
    """

    volumes: Machines
    folder: Path = Path("/nowhere")
    processes: int = 1

    def at(self, host: str) -> Machine:
        return self.of(None)

    def of(self, group: int | None) -> Machine:
        raise Unseen("no member has the keys of this repository")

    def end_strays(self, group: int, argument: str) -> None:
        self.of(group)

    def equip(self, files: Mapping[str, str]) -> None:
        self.of(None)

    def holder(self, volume: VolumeSpec) -> Machine:
        return self.volumes.holder(volume)
