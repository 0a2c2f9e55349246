"""Schedules of backups where clusters run in Kubernetes: resources that the operator follows."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from lightkube.types import PatchType

from pgherd.backup import schedule as rules
from pgherd.errors import BadInput
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec import BackupSpec
from pgherd.platform.kubernetes.api import SCHEDULE, resource
from pgherd.platform.kubernetes.keeping import schedule_of
from pgherd.reconcile.drills import scratch_name
from pgherd.remote import objects
from pgherd.remote.api import FIELD_MANAGER, Api


class Schedules:
    """The commands' calls about schedules."""

    _api: Api

    def _get(self, name: str) -> dict[str, Any]:
        raise NotImplementedError

    def _require_backups(self, name: str) -> BackupSpec:
        raise NotImplementedError

    def _listed(self, name: str, what: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def declare_schedule(self, schedule: PostgresBackupSchedule) -> None:
        """Create or change a schedule.

        :raises BadInput: its cluster is not there or has no backups, or the schedule is of another cluster; or it wants
            drills, and the cluster's name is too long for them
        """
        if schedule.spec.drill is not None:
            scratch_name(schedule.spec.cluster)
        self._require_backups(schedule.spec.cluster)
        name = schedule.metadata.name
        value = schedule.model_dump(mode="json", by_alias=True, exclude_none=True)
        value["metadata"] = {"name": name}
        with self._api.asking():
            self._api.client.patch(
                resource(SCHEDULE),
                name,
                value,
                namespace=self._api.namespace,
                patch_type=PatchType.APPLY,
                field_manager=FIELD_MANAGER,
                force=True,
            )

    def schedules(self, cluster: str | None = None) -> list[dict[str, Any]]:
        """All schedules, or those of one cluster, by name, and what comes next."""
        if cluster is not None:
            self._get(cluster)
        with self._api.asking():
            found = [
                dict(each)
                for each in self._api.client.list(resource(SCHEDULE), namespace=self._api.namespace)
            ]
        now = datetime.now(UTC)
        rows = []
        for each in found:
            with suppress(BadInput):  # its status says what is wrong
                schedule = schedule_of(each)
                if cluster not in (None, schedule.spec.cluster):
                    continue
                standing = rules.standing_from((each.get("status") or {}).get("standing"))
                last = rules.last_end(self._listed(schedule.spec.cluster, "drills"))
                rows.append(rules.described(schedule, standing, last, now))
        return sorted(rows, key=lambda row: str(row["name"]))

    def suspend_schedule(self, name: str, suspend: bool) -> None:
        """Begin no more backups by this schedule, or again.

        :raises BadInput: there is none of this name
        """
        self._require_schedule(name)
        with self._api.asking():
            self._api.client.patch(
                resource(SCHEDULE),
                name,
                {"spec": {"suspend": suspend}},
                namespace=self._api.namespace,
                patch_type=PatchType.MERGE,
                field_manager=FIELD_MANAGER,
            )

    def delete_schedule(self, name: str) -> None:
        """Remove a schedule; what it made stays.

        :raises BadInput: there is none of this name
        """
        self._require_schedule(name)
        with self._api.asking():
            self._api.client.delete(resource(SCHEDULE), name, namespace=self._api.namespace)

    def _require_schedule(self, name: str) -> None:
        known = [str(row["name"]) for row in self.schedules()]
        if objects.could_be_name(name) and name in known:
            return
        raise BadInput(
            f"no schedule {name!r} in namespace {self._api.namespace}: "
            + (f"there are: {', '.join(known)}" if known else "there is none")
        )
