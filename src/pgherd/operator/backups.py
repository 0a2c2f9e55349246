"""What people ask for and look at of one cluster's backups: a thread beside its loop.

Resources ``PostgresBackup`` become requests in the repository, of the same name, and show what becomes of them; the
cluster's keeper makes them. Schedules ask in the same way. What there is to restore, and what drills found, is listed
in a ConfigMap, for who may look at the namespace need not be able to reach the repository. Drills are made by
``operator.drills``.

All it knows is in the repository and in the resources; killed anywhere, the next one finds out where things stand.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pgherd.backup import listing, maker, records, registry, restoring
from pgherd.backup import schedule as rules
from pgherd.backup.base import BackupMethod
from pgherd.backup.records import Backup
from pgherd.backup.scheduling import see_to_backup
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, one_line
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.operator.drills import Drills
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import BACKUP, CONFIG_MAP, SCHEDULE, Object
from pgherd.platform.kubernetes.keeping import schedule_of
from pgherd.platform.kubernetes.platform import KubernetesPlatform

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
LIST_EVERY = 3
"""looks between two lists"""
MAX_LIST = 400_000
"""bytes of a list; what is older is left out"""
MAX_DRILLS = 100_000
"""the same of drills"""
JOIN_SECONDS = 15.0
"""how long the end waits for a drill to come to a place from which it can go on"""
DONE, FAILED, EXPIRED, WAITING = "Done", "Failed", "Expired", "Waiting"


class Desk(threading.Thread):
    """See the module. Ends with ``stop``, or when the cluster is gone."""

    def __init__(self, platform: KubernetesPlatform, name: str, stop: threading.Event) -> None:
        super().__init__(name=f"desk-{name}", daemon=True)
        self._platform, self._cluster, self._stop_asked = platform, name, stop
        self._complaint = ""
        self._looks = 0
        self._drills = Drills(platform, name, stop)

    def run(self) -> None:
        """Looks, until the end."""
        self._look_on()
        self._drills.join(JOIN_SECONDS)

    def _look_on(self) -> None:
        while not self._stop_asked.wait(LOOK_SECONDS):
            try:
                self.look()
                self._complaint = ""
            except NoSuchCluster:
                return
            except PgherdError as error:
                self._complain(one_line(error))
            except Exception as error:  # the thread must outlive whatever one look ran into
                logger.exception("%s: a look at its backups failed", self._cluster)
                self._complaint = repr(error)

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            logger.warning("%s: backups: %s", self._cluster, text)
        self._complaint = text

    def look(self) -> None:
        """Do what is to be done now.

        :raises PgherdError: the repository or the API server does not answer, or refuses
        """
        platform, name = self._platform, self._cluster
        declaration = platform.declaration(name)
        cluster = declaration.cluster
        if declaration.deleting:
            return
        if cluster.spec.backup is None:
            self._drills.look(backups=False)
            return
        if restoring.state(platform, cluster) is not None:
            return
        # First: what is left of a drill goes, whether the repository answers or not.
        self._drills.look(backups=True)
        method = registry.make_method(platform, cluster)
        self._found(method)
        known = {each.id: each for each in method.repository.backups()}
        if not declaration.stopped:
            self._schedules(method)
        self._requests(method, known, may_begin=not declaration.stopped)
        self._looks += 1
        if self._looks % LIST_EVERY == 1:
            self._list(method, known)

    # the repository

    def _found(self, method: BackupMethod) -> None:
        """Begin the repository. One that was there before and is gone is not begun anew: somebody removed it."""
        if method.repository.is_there():
            return
        if self._listed().get("repository") == method.location:
            method.repository.require()
        method.check()
        method.repository.create(self._cluster)
        self._platform.announce(self._cluster, f"begin the repository {method.location}")
        self._publish({**self._listed(), "repository": method.location})

    # backups

    def _requests(self, method: BackupMethod, known: dict[str, Backup], *, may_begin: bool) -> None:
        found = self._platform.declared(BACKUP, self._cluster)
        for resource in sorted(found, key=lambda each: str(each["metadata"].get("creationTimestamp"))):
            name = resource["metadata"]["name"]
            before = resource.get("status") or {}
            if before.get("phase") in (FAILED, EXPIRED) or "deletionTimestamp" in resource["metadata"]:
                continue
            if before.get("phase") == DONE:
                if name not in known:
                    self._say(BACKUP, resource, {**before, "phase": EXPIRED})
                continue
            self._say(BACKUP, resource, self._outcome(method, known, resource, may_begin=may_begin))

    def _outcome(
        self, method: BackupMethod, known: dict[str, Backup], resource: Object, *, may_begin: bool
    ) -> dict[str, Any]:
        """What becomes of a backup that was declared."""
        name, kind = resource["metadata"]["name"], resource["spec"].get("type", "full")
        if name in known:
            backup = known[name]
            if backup.type != kind:
                message = f"backup {name} is there already, and {backup.type}: choose another name"
                return {"phase": FAILED, "error": message, "message": message}
            return status_of(backup)
        if not may_begin:
            return {"phase": WAITING, "message": f"{self._cluster} is stopped"}
        if other := next((each.id for each in known.values() if each.is_open), None):
            return {"phase": WAITING, "message": f"waits for backup {other}"}
        try:
            known[name] = maker.request(method.repository, kind, name=name)
        except BadInput as error:  # the cluster's keeper was faster
            return {"phase": WAITING, "message": str(error)}
        return status_of(known[name])

    # schedules

    def _schedules(self, method: BackupMethod) -> None:
        now = datetime.now(UTC)
        for resource in self._platform.declared(SCHEDULE, self._cluster):
            if "deletionTimestamp" in resource["metadata"]:
                continue
            try:
                self._see_to(method, resource, schedule_of(resource), now)
            except BadInput as error:
                self._say(SCHEDULE, resource, {**(resource.get("status") or {}), "problem": str(error)})

    def _see_to(
        self, method: BackupMethod, resource: Object, schedule: PostgresBackupSchedule, now: datetime
    ) -> None:
        before = rules.standing_from((resource.get("status") or {}).get("standing"))
        standing = rules.adjusted(before, schedule, now)

        def write(changed: rules.Standing) -> None:
            nonlocal standing
            standing = changed
            shown = rules.described(schedule, changed, None, now)
            told = {key: shown[key] for key in ("nextAt", "lastBackup", "skipped", "problem")}
            self._say(SCHEDULE, resource, {**told, "standing": changed.as_json()})

        if standing != before:
            write(standing)
        try:
            see_to_backup(
                schedule,
                standing,
                now,
                repository=lambda: method.repository,
                request=lambda name: maker.request(method.repository, schedule.spec.type, name=name),
                write=write,
            )
            problem = self._drills.see_to(method, schedule, standing, now)
        except PgherdError as error:
            problem = one_line(error)
        if problem is not None and standing.problem != problem:
            write(replace(standing, problem=problem))

    def _say(self, kind: Any, resource: Object, status: Mapping[str, Any]) -> None:
        if (resource.get("status") or {}) != status:
            self._platform.say(kind, resource, status)

    # the list

    def _list(self, method: BackupMethod, known: Mapping[str, Backup]) -> None:
        states = {row["name"]: row["state"] for row in listing.restore_points(method)}
        points = [
            {**point.as_json(), "state": states.get(point.name, "")} for point in method.repository.points()
        ]
        self._publish(
            {
                "repository": method.location,
                "backups": json.dumps([listing.described(each) for each in known.values()][-200:]),
                "restorePoints": newest(points, MAX_LIST),
                "drills": newest(list(self._drills.remembered(method)), MAX_DRILLS),
            }
        )

    def _listed(self) -> dict[str, str]:
        found = self._platform.look_up(CONFIG_MAP, names.backups_list(self._cluster))
        return dict((found or {}).get("data") or {})

    def _publish(self, data: Mapping[str, str]) -> None:
        if self._listed() != data:
            metadata = {"name": names.backups_list(self._cluster), "labels": names.labels(self._cluster)}
            self._platform.put(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
            )


def newest(rows: list[dict[str, Any]], limit: int) -> str:
    """The last rows as JSON, as many as so many bytes hold."""
    texts, size = [], 2
    for row in reversed(rows):
        text = json.dumps(row, separators=(",", ":"))
        size += len(text) + 1
        if size > limit:
            break
        texts.append(text)
    return f"[{','.join(reversed(texts))}]"


def status_of(backup: Backup) -> dict[str, Any]:
    """The status of a ``PostgresBackup``."""
    rate, left = records.pace(backup.started_at, backup.bytes_done, backup.bytes_total)
    shown = listing.described(backup)
    return {
        **shown,
        "phase": str(shown["phase"]).capitalize(),
        "message": backup.message or backup.error or "",
        "bytesDone": backup.bytes_done,
        "bytesTotal": backup.bytes_total,
        "bytesPerSecond": rate if backup.is_open else None,
        "etaSeconds": left if backup.is_open else None,
    }
