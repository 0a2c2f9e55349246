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
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pgherd.backup import listing, maker, registry, restoring
from pgherd.backup import schedule as rules
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import Held, NotOurs
from pgherd.backup.records import Backup
from pgherd.backup.scheduling import see_to_backup
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, one_line
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec import BackupSpec
from pgherd.operator.drills import Drills
from pgherd.platform.kubernetes import names, volumes
from pgherd.platform.kubernetes.api import BACKUP, CONFIG_MAP, SCHEDULE, Kind, Object
from pgherd.platform.kubernetes.ensure import owned
from pgherd.platform.kubernetes.keeping import schedule_of
from pgherd.platform.kubernetes.platform import KubernetesPlatform

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
LIST_EVERY = 3
"""looks between two lists"""
MAX_LIST = 400_000
"""bytes of a list; what is older is left out. All lists are in one ConfigMap, which holds 1 MiB"""
MAX_BACKUPS = 300_000
"""the same of backups"""
LASTING_SECONDS = 10.0
"""how long nothing may come of a look until those are told who were told something better before"""
MAX_DRILLS = 100_000
"""the same of drills"""
QUIET_LOOKS = 30
"""at a stopped cluster's volume, until that is let be: what was under way ends meanwhile, and is listed"""
REST_SECONDS = 3600.0
"""between looks at a stopped cluster's volume, of which nobody asks anything: far more than ``IDLE_SECONDS``, for each
of them keeps the pod that holds it"""
JOIN_SECONDS = 15.0
"""how long the end waits for a drill to come to a place from which it can go on"""
DONE, FAILED, EXPIRED, WAITING = "Done", "Failed", "Expired", "Waiting"
UNREADABLE = "Unreadable"
"""it is there, but its record is damaged or gone: nobody can tell what it holds until that is put back"""
ENDED = (DONE, FAILED, EXPIRED, UNREADABLE)


class Desk(threading.Thread):
    """See the module. Ends with ``stop`` only: that a cluster is not seen may mean that it is not seen yet."""

    def __init__(self, platform: KubernetesPlatform, name: str, stop: threading.Event) -> None:
        super().__init__(name=f"desk-{name}", daemon=True)
        self._platform, self._cluster, self._stop_asked = platform, name, stop
        self._complaint = ""
        self._idle_since: float | None = None
        self._list_trouble = ""
        self._looks = 0
        self._quiet_looks = 0
        self._looked_at: tuple[BackupSpec, float] | None = None
        self._drills = Drills(platform, name, stop)

    def run(self) -> None:
        """Looks, until the end."""
        self._look_on()
        self._drills.join(JOIN_SECONDS)

    def is_at_rest(self) -> bool:
        """Whether neither it nor a drill is at work."""
        return not self.is_alive() and not self._drills.is_at_work()

    def _look_on(self) -> None:
        while not self._stop_asked.is_set():
            try:
                self._look_and_tell()
            except Exception as error:  # the thread must outlive whatever one look ran into
                self._complain(f"what is asked for can't be answered: {one_line(error)}")
            self._stop_asked.wait(LOOK_SECONDS)

    def _look_and_tell(self) -> None:
        """Whoever asked for a backup and waits is told why nothing comes of it."""
        try:
            idle = self.look()
            self._complaint = ""
        except NoSuchCluster:  # nor is there a repository; ``strays`` tells it
            self._complaint = ""
            return
        except PgherdError as error:
            idle = one_line(error)
            self._complain(idle)
        except Exception as error:
            logger.exception("%s: a look at its backups failed", self._cluster)
            idle = self._complaint = f"a look at its backups met what nobody expected: {error!r}"
        if not idle:
            self._idle_since = None
            return
        self._idle_since = self._idle_since or time.monotonic()
        self._hold(idle, is_lasting=time.monotonic() - self._idle_since >= LASTING_SECONDS)

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            logger.warning("%s: backups: %s", self._cluster, text)
        self._complaint = text

    def _hold(self, reason: str, *, is_lasting: bool) -> None:
        for kind in (BACKUP, SCHEDULE):
            for resource in self._platform.declared(kind, self._cluster):
                said = held(kind, resource, reason)
                if said is not None and (is_lasting or not resource.get("status")):
                    self._say(kind, resource, said)

    def look(self) -> str:
        """Do what is to be done now.

        :return: why that is nothing; empty: it was done
        :raises PgherdError: the repository or the API server does not answer, or refuses
        """
        platform, name = self._platform, self._cluster
        declaration = platform.declaration(name)
        cluster = declaration.cluster
        if declaration.deleting:
            return f"{name} is being deleted"
        if cluster.spec.backup is None:
            self._drills.look(backups=False)
            return f"{name} has no backups: spec.backup says where they should go"
        if restoring.state(platform, cluster) is not None:
            return f"{name} is being made from a backup"
        # First: what is left of a drill goes, whether the repository answers or not.
        self._drills.look(backups=True)
        is_quiet = declaration.stopped and self._is_quiet(cluster.spec.backup)
        if is_quiet and self._rests(cluster.spec.backup):
            return ""
        method = registry.make_method(platform, cluster)
        self._found(method)
        self._require_own(method)
        found = method.repository.held()
        known = {each.id: each for each in found.backups}
        if not declaration.stopped:
            self._schedules(method)
        self._requests(method, known, found, may_begin=not declaration.stopped)
        self._looks += 1
        if self._looks % LIST_EVERY == 1:
            self._try_to_list(method, known)
        self._quiet_looks = self._quiet_looks + 1 if is_quiet and not self._list_trouble else 0
        self._looked_at = cluster.spec.backup, time.monotonic()
        return ""

    def _is_quiet(self, declared: BackupSpec) -> bool:
        """Whether a stopped cluster's repository is on a volume, and nobody asks for anything that is in it."""
        if volumes.claim_of(declared.repository) is None or self._drills.is_going_on():
            return False
        asked = self._platform.declared(BACKUP, self._cluster)
        return not any(
            not (each.get("status") or {}).get("phase") and "deletionTimestamp" not in each["metadata"]
            for each in asked
        )

    def _rests(self, declared: BackupSpec) -> bool:
        """Whether it is known how things stand there: all was looked at, the list among it, and not long ago."""
        known, at = self._looked_at or (None, 0.0)
        is_over = self._quiet_looks >= QUIET_LOOKS and time.monotonic() - at >= REST_SECONDS
        if known != declared or is_over:
            self._quiet_looks = 0
        return self._quiet_looks >= QUIET_LOOKS

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

    def _require_own(self, method: BackupMethod) -> None:
        """Nothing of another cluster's is offered or asked for, and our members leave it alone.

        :raises PgherdError: it is another's, or nobody knows yet
        """
        try:
            method.repository.require_own()
        except NotOurs:
            if self._listed():
                self._publish({"backups": "[]", "restorePoints": "[]"})
            self._platform.unequip(self._cluster, names.backup_secret(self._cluster))
            self._platform.forget_owner(self._cluster)
            raise

    # backups

    def _requests(
        self, method: BackupMethod, known: dict[str, Backup], there: Held, *, may_begin: bool
    ) -> None:
        found = self._platform.declared(BACKUP, self._cluster)
        for resource in sorted(found, key=lambda each: str(each["metadata"].get("creationTimestamp"))):
            name = resource["metadata"]["name"]
            before = resource.get("status") or {}
            if before.get("phase") == FAILED or "deletionTimestamp" in resource["metadata"]:
                continue
            if before.get("phase") in (DONE, EXPIRED, UNREADABLE) and name not in known:
                self._say(BACKUP, resource, {**before, **_without_record(name, there, before)})
                continue
            if before.get("phase") == DONE:
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
            nonlocal standing, resource
            standing = changed
            shown = rules.described(schedule, changed, None, now)
            told = {key: shown[key] for key in ("nextAt", "lastBackup", "skipped", "problem")}
            said = {**told, "standing": changed.as_json()}
            self._say(SCHEDULE, resource, said)
            resource = {**resource, "status": said}

        # The whole of it, whatever has changed: a problem that has passed goes, too.
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

    def _say(self, kind: Kind, resource: Object, status: Mapping[str, Any]) -> None:
        if _given(resource.get("status") or {}) != _given(status):
            self._platform.say(kind, resource, status)

    # the list

    def trouble(self) -> str:
        """What has kept it from its work for some time, for the cluster's status; empty: nothing."""
        lasting = self._idle_since is not None and time.monotonic() - self._idle_since >= LASTING_SECONDS
        return (self._complaint if lasting else "") or self._list_trouble

    def _try_to_list(self, method: BackupMethod, known: Mapping[str, Backup]) -> None:
        """Whoever waits for a backup need not wait for the list."""
        try:
            self._list(method, known)
            self._list_trouble = ""
        except PgherdError as error:
            text = f"the list of backups and restore points is not up to date: {one_line(error)}"
            if text != self._list_trouble:
                logger.warning("%s: %s", self._cluster, text)
            self._list_trouble = text

    def _list(self, method: BackupMethod, known: Mapping[str, Backup]) -> None:
        states = {row["name"]: row["state"] for row in listing.restore_points(method)}
        points = [
            {**point.as_json(), "state": states.get(point.name, "")} for point in method.repository.points()
        ]
        rows, since = listed_points(points, MAX_LIST)
        self._publish(
            {
                "repository": method.location,
                "backups": newest([listing.described(each) for each in known.values()], MAX_BACKUPS),
                "restorePoints": rows,
                "restorePointsSince": since,
                "drills": newest(list(self._drills.remembered(method)), MAX_DRILLS),
            }
        )

    def _listed(self) -> dict[str, str]:
        found = self._platform.look_up(CONFIG_MAP, names.backups_list(self._cluster))
        return dict((found or {}).get("data") or {})

    def _publish(self, data: Mapping[str, str]) -> None:
        if self._listed() != data:
            metadata = {"name": names.backups_list(self._cluster), "labels": names.labels(self._cluster)}
            made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
            # A look that a silent repository held up may end after the cluster: then nobody else would remove it.
            self._platform.put(owned(made, self._platform.resource_of(self._cluster)))


def _without_record(name: str, there: Held, before: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a backup that was made and can't be found."""
    if name in there.unread:
        record = f"{there.location}/backups/{name}/backup.json"
        complaint = (
            there.complaints().get(name) or f"backup {name} has no record: put {record} back from a copy"
        )
        return {"phase": UNREADABLE, "message": complaint}
    # Or the repository is not the one in which it was made; it may be again.
    return {"phase": EXPIRED, **({"message": ""} if before.get("phase") == UNREADABLE else {})}


def _given(value: Any) -> Any:
    """Without what says nothing, which need not have been kept."""
    if not isinstance(value, Mapping):
        return value
    return {name: _given(each) for name, each in value.items() if each is not None}


def held(kind: Kind, resource: Object, reason: str) -> dict[str, Any] | None:
    """The status of a backup or of a schedule of which nothing comes now; None: it has ended, or is to go."""
    before = resource.get("status") or {}
    if "deletionTimestamp" in resource["metadata"]:
        return None
    if kind == SCHEDULE:
        return {**before, "problem": reason}
    if before.get("phase") in ENDED:
        return None
    pace = {"bytesPerSecond": None, "etaSeconds": None} if before.get("etaSeconds") is not None else {}
    return {**before, **pace, "phase": WAITING, "message": reason}


def newest(rows: list[dict[str, Any]], limit: int) -> str:
    """The last rows as JSON, as many as so many bytes hold."""
    texts = [_text(row) for row in rows]
    return f"[{','.join(texts[each] for each in sorted(_last(texts, range(len(texts)), limit)))}]"


def listed_points(rows: list[dict[str, Any]], limit: int) -> tuple[str, str]:
    """Restore points as JSON, as many as so many bytes hold: the newest that close a backup, in half of it, whatever
    has passed since, then the newest of all others.

    :return: with the time from which on none is left out; empty: none is
    """
    texts = [_text(row) for row in rows]
    kept = _last(texts, [each for each, row in enumerate(rows) if row.get("backup")], limit // 2)
    left = limit - sum(len(texts[each]) + 1 for each in kept)
    kept |= _last(texts, [each for each in range(len(rows)) if each not in kept], left)
    whole = next((each for each in reversed(range(len(rows))) if each not in kept), -1) + 1
    since = "" if whole == 0 else str(rows[min(whole, len(rows) - 1)]["time"])
    return f"[{','.join(texts[each] for each in sorted(kept))}]", since


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"))


def _last(texts: Sequence[str], among: Sequence[int], limit: int) -> set[int]:
    """The last of these as many as so many bytes hold, commas and brackets included."""
    found, size = set(), 2
    for each in reversed(among):
        size += len(texts[each]) + 1
        if size > limit:
            break
        found.add(each)
    return found


def status_of(backup: Backup) -> dict[str, Any]:
    """The status of a ``PostgresBackup``."""
    rate, left = backup.pace
    shown = listing.described(backup)
    return {
        **shown,
        "phase": str(shown["phase"]).capitalize(),
        "message": backup.message or backup.error or "",
        "bytesDone": backup.bytes_done,
        "bytesTotal": backup.bytes_total,
        "bytesPerSecond": rate,
        "etaSeconds": left,
    }
