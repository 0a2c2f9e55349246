"""What the commands about backups do where clusters run in Kubernetes.

A wish is a resource, as everywhere; the operator makes the backup. What there is to look at the operator has listed in
a ConfigMap: a repository need not be reached from here.
"""

from __future__ import annotations

import json
import time as clock
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from lightkube.resources.core_v1 import ConfigMap

from pgherd.backup import choice, planning, records, registry, restoring
from pgherd.backup.records import TYPES, Point, moment
from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model import spec as declaration
from pgherd.model.backup_kinds import PostgresBackup
from pgherd.model.spec import BackupSpec, PostgresCluster, RecoverySpec
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import BACKUP, resource
from pgherd.platform.kubernetes.notes import STATE_KEY
from pgherd.remote import objects
from pgherd.remote.api import FIELD_MANAGER, Api, NotFound
from pgherd.remote.repairs import Repairs

POLL_SECONDS = 0.5
NAME_BYTES = 20
"""of a cluster's name, in the name of a backup that is made by hand"""


class Backups(Repairs):
    """The commands' calls; the rest of the client is :class:`pgherd.remote.client.KubernetesClient`."""

    _api: Api

    def _require_free(self, name: str) -> None:
        raise NotImplementedError

    def up(self, cluster: PostgresCluster) -> None:
        """Create or change a cluster."""
        raise NotImplementedError

    # making

    def backup(self, name: str, kind: str) -> str:
        """Ask for a backup; returns its id, to :meth:`wait_backup` for.

        :raises BadInput: no such type, none are declared, another one is not done, or the cluster is stopped
        """
        if kind not in TYPES:
            raise BadInput(f"--type: must be one of {', '.join(TYPES)}, got {kind}")
        self._require_backups(name)
        for known in self._listed(name, "backups"):
            if known["phase"] in records.OPEN_PHASES:
                raise BadInput(
                    f"backup {known['id']} is not done yet: 'pgherd backups {name}' shows how far it is"
                )
        stamp = f"{name[:NAME_BYTES].rstrip('-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        self._declare(stamp, {"cluster": name, "type": kind})
        return stamp

    def declare_backup(self, backup: PostgresBackup) -> str:
        """Ask for a backup of this name, unless it is there; returns its id.

        :raises BadInput: as :meth:`backup`, or it is there and of another type
        """
        self._require_backups(backup.spec.cluster)
        name = backup.metadata.name
        found = self._find_backup(name)
        if found is not None:
            spec = found["spec"]
            if spec.get("cluster") != backup.spec.cluster or spec.get("type", "full") != backup.spec.type:
                raise BadInput(
                    f"backup {name} is there already, of {spec.get('cluster')} and {spec.get('type', 'full')}: choose "
                    "another name"
                )
            return name
        self._declare(name, {"cluster": backup.spec.cluster, "type": backup.spec.type})
        return name

    def _declare(self, name: str, spec: Mapping[str, Any]) -> None:
        made = resource(BACKUP)(
            {
                "apiVersion": BACKUP.api_version,
                "kind": BACKUP.name,
                "metadata": {"name": name, "namespace": self._api.namespace},
                "spec": dict(spec),
            }
        )
        with self._api.asking():
            self._api.client.create(made, namespace=self._api.namespace, field_manager=FIELD_MANAGER)

    def _find_backup(self, name: str) -> dict[str, Any] | None:
        try:
            with self._api.asking():
                return dict(self._api.client.get(resource(BACKUP), name, namespace=self._api.namespace))
        except NotFound:
            return None

    def wait_backup(
        self,
        name: str,
        backup: str,
        *,
        timeout: float = 600.0,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Until a backup has ended.

        :raises PgherdError: it failed, or time ran out
        """
        deadline = clock.monotonic() + timeout
        while True:
            status = self._status_of(backup, deadline)
            phase = status.get("phase", "Requested")
            if progress is not None:
                progress(_as_status(name, status))
            if phase == "Failed":
                raise PgherdError(f"{name}: backup {backup} failed: {status.get('error')}")
            if phase == "Unreadable":
                raise PgherdError(f"{name}: {status.get('message')}")
            if phase in ("Done", "Expired"):
                return {**status, "phase": phase.lower()}
            if clock.monotonic() > deadline:
                doing = status.get("message") or (phase if status else objects.SILENCE)
                raise PgherdError(f"{name}: backup {backup} is not done after {timeout:.0f} s: {doing}")
            clock.sleep(POLL_SECONDS)

    def _status_of(self, backup: str, deadline: float) -> dict[str, Any]:
        while True:
            try:
                found = self._find_backup(backup)
            except Unavailable:  # the API is away for a while
                if clock.monotonic() > deadline:
                    raise
                clock.sleep(POLL_SECONDS)
                continue
            if found is None:
                raise PgherdError(
                    f"PostgresBackup {backup} was deleted; what was made of it may still be made"
                )
            return dict(found.get("status") or {})

    # looking

    def backups(self, name: str, repository: str | None = None) -> list[dict[str, Any]]:
        """Every backup of a cluster, oldest first, as its operator saw it last."""
        self._require_backups(name, repository, stopped=True)
        return self._listed(name, "backups")

    def restore_points(self, name: str, repository: str | None = None) -> list[dict[str, Any]]:
        """The restore points of a cluster, oldest first, as its operator saw them last."""
        self._require_backups(name, repository, stopped=True)
        return [_shown(row) for row in self._listed(name, "restorePoints")]

    def _require_backups(
        self, name: str, repository: str | None = None, *, stopped: bool = False
    ) -> BackupSpec:
        if repository is not None:
            raise BadInput(
                "--repository: on kubernetes only the operator need reach a repository, and lists what its clusters "
                "have: 'pgherd restore' takes it, with --time or --point"
            )
        found = self._get(name)
        declared = objects.cluster_of(found).spec.backup
        if declared is None:
            raise BadInput(
                f"{name} has no backups: spec.backup says where they should go ('pgherd explain backup')"
            )
        if not stopped and objects.is_stopped(found):
            raise BadInput(f"{name} is stopped: 'pgherd start {name}' brings it back")
        return declared

    def restore_points_since(self, name: str) -> str:
        """From which time on all are listed; empty: all are. Of older ones those are that close a backup."""
        return self._listed_since(name)

    def _listed(self, name: str, what: str) -> list[dict[str, Any]]:
        return list(json.loads(self._lists(name).get(what, "[]")))

    def _listed_since(self, name: str) -> str:
        return self._lists(name).get("restorePointsSince", "")

    def _lists(self, name: str) -> Mapping[str, str]:
        return self._config_map(names.backups_list(name))

    def _config_map(self, name: str) -> Mapping[str, str]:
        try:
            with self._api.asking():
                found = self._api.client.get(ConfigMap, name, namespace=self._api.namespace)
        except NotFound:
            return {}
        return dict(found.data or {})

    # restoring

    def restore(
        self,
        source: str,
        target: str,
        *,
        repository: str | None = None,
        restore_point: str | None = None,
        time: str | None = None,
        backup: str | None = None,
        inclusive: bool = True,
        declared: PostgresCluster | None = None,
        in_place: bool = False,
        as_clone: bool = False,
    ) -> dict[str, Any]:
        """Declare a new cluster made from backups, or ask for this one to be taken back; wait for it as for any other.

        :param repository: a file that says what ``spec.backup`` said, if the cluster is gone
        :param as_clone: without backups of its own
        :return: the point, its time and what follows; None where the operator has to find out what the point is
        :raises BadInput: there is no such point, or the new name is taken
        """
        asked = {"restorePoint": restore_point, "time": time, "backup": backup}
        wanted: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
        wanted |= {} if inclusive else {"inclusive": False}
        if repository is not None:
            if in_place:
                raise BadInput("--in-place takes a cluster back from its own backups: leave --repository out")
            self._restore_from(planning.repository(repository), source, target, wanted, declared)
            return {"restorePoint": None, "time": None, "following": None}
        kept = self._require_backups(source, stopped=True)
        if in_place:
            self.require_restorable(target)
        else:
            self._require_free(target)
        from_there = registry.source_of(kept, source)
        as_asked = {**from_there, **wanted}
        points = [
            _point(row) for row in self._listed(source, "restorePoints") if row["state"] == "restorable"
        ]
        point = _chosen(points, self._listed_since(source), planning.wanted(as_asked))
        if point is None and in_place:
            raise BadInput(
                f"--in-place: what was asked for is older than the points that are listed ('pgherd restore-points "
                f"{source}'): name one of these, such as the one that closes a backup, or restore into a new cluster"
            )
        shape = declaration.to_mapping(declared or objects.cluster_of(self._get(source)))
        if declared is None:
            # What tools noted on the source is not the new cluster's.
            shape["metadata"] = {"name": target}
        if as_clone:
            shape["spec"].pop("backup", None)
        recovery = as_asked if point is None else {**from_there, "restorePoint": point.name}
        cluster = planning.declared(
            shape,
            target,
            point,
            recovery,
            own_segments=declared is not None,
            platform="kubernetes",
            kept=in_place,
        )
        if point is None:
            self.up(cluster)
            return {"restorePoint": None, "time": None, "following": None}
        planning.check_fits(cluster, point)
        if in_place:
            self.ask_for_restore(target, recovery, cluster.spec.segments.count)
        else:
            self.up(cluster)
        following = choice.after(points, point)
        return {
            "restorePoint": point.name,
            "time": point.time,
            "following": following and {"name": following.name, "time": following.time},
        }

    def restored_point(self, name: str) -> dict[str, Any] | None:
        """The point that a cluster was made of, its time and what follows; None: nobody has written that down."""
        return restoring.made_of(
            json.loads(self._config_map(names.recovery_state(name)).get(STATE_KEY, "{}"))
        )

    def _restore_from(
        self,
        kept: BackupSpec,
        source: str,
        target: str,
        wanted: Mapping[str, Any],
        declared: PostgresCluster | None,
    ) -> None:
        """Declare a new cluster made from backups of one that is gone: the operator finds the point in the repository.

        :raises BadInput: nobody says what the new cluster should be, or its name is taken
        """
        self._require_free(target)
        if declared is None:
            raise BadInput(
                f"--repository: say with --file what {target} should be, with as many segments as {source} had: on "
                "kubernetes only the operator reaches the repository, which knows what it was"
            )
        recovery = {**registry.source_of(kept, source), **wanted}
        planning.wanted(recovery)
        shape = declaration.to_mapping(declared)
        self.up(planning.declared(shape, target, None, recovery, own_segments=True, platform="kubernetes"))

    def clone(self, source: str, target: str, at: str | None = None) -> dict[str, Any] | None:
        """Declare a new cluster that is what a restore point of another holds, or its newest one; without backups, what
        it is itself when it is copied.

        :return: as of :meth:`restore`; None: it is copied itself
        :raises BadInput: no such point, the source is stopped, or the new name is taken
        """
        if "/" in source:
            raise BadInput(f"{source}: a clone is made in the namespace of its source: name that one with -n")
        found = self._get(source)
        if objects.cluster_of(found).spec.backup is not None:
            return self.restore(source, target, restore_point=at, as_clone=True)
        if at is not None:
            raise BadInput(
                f"--at {at}: {source} has no backups, and so no restore points: leave --at out to have it copied as it "
                "is now"
            )
        if objects.is_stopped(found):
            raise BadInput(f"{source} is stopped: 'pgherd start {source}' brings it back")
        self._require_free(target)
        shape = declaration.to_mapping(objects.cluster_of(found))
        # What tools noted on the source is not the new cluster's.
        spec = {**shape["spec"], "bootstrap": {"clone": {"cluster": source}}}
        self.up(planning.like({**shape, "metadata": {"name": target}, "spec": spec}, target, "kubernetes"))
        return None


def _chosen(points: Sequence[Point], since: str, wanted: RecoverySpec) -> Point | None:
    """The point that is meant; None: one that is not listed may be, which the operator finds out in the repository.

    :param since: the list is whole from then on; empty: all of it is
    :raises BadInput: there is none
    """
    now = datetime.now(UTC)
    try:
        found = choice.resolve(
            points,
            now=now,
            restore_point=wanted.restore_point,
            time=wanted.time,
            backup=wanted.backup,
            inclusive=wanted.inclusive,
        )
    except BadInput:
        if not since or (wanted.time is not None and moment(wanted.time) > now):
            raise
        return None
    is_named = wanted.inclusive and (wanted.restore_point or wanted.backup) is not None
    return found if is_named or not since or moment(found.time) >= moment(since) else None


def _point(row: Mapping[str, Any]) -> Point:
    return records.point_from({key: value for key, value in row.items() if key != "state"})


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    groups = cast("Mapping[str, Mapping[str, Any]]", row["groups"])
    return {
        "name": row["name"],
        "time": row["time"],
        "began": row.get("began", ""),
        "state": row["state"],
        "archived": row["archived"],
        "restorable": row["state"] == "restorable",
        "groups": len(groups),
        "placement": row["placement"],
        "engine": row["engine"],
        "heldMs": row["held_ms"],
        "backup": row["backup"],
        "lsns": {group: {"lsn": at["lsn"], "timeline": at["timeline"]} for group, at in groups.items()},
    }


def _as_status(name: str, status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "phase": "BackingUp",
        "operation": {
            "kind": f"{status.get('type', '')} backup".strip(),
            "phase": str(status.get("phase", "requested")).lower(),
            "bytesDone": status.get("bytesDone", 0),
            "bytesTotal": status.get("bytesTotal", 0),
            "bytesPerSecond": status.get("bytesPerSecond"),
            "etaSeconds": status.get("etaSeconds"),
            "message": status.get("message", ""),
        },
    }
