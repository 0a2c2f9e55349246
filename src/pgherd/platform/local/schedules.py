"""Schedules of backups on disk: ``HOME/CLUSTER/schedules/NAME.yaml`` as declared, ``NAME.json`` how it stands.

They are their cluster's: they go with its data, and come back with it. Writers hold the home's lock; readers need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgherd.errors import BadInput, PgherdError
from pgherd.model import spec_yaml
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.documents import schedule_from
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout


class Schedules:
    """The schedules of one home."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def of_cluster(self, cluster: str) -> list[PostgresBackupSchedule]:
        """A cluster's schedules, by name.

        :raises PgherdError: one can't be read
        """
        return [self._read(path) for path in sorted(self._layout.schedules(cluster).glob("*.yaml"))]

    def everything(self) -> list[PostgresBackupSchedule]:
        """All schedules of clusters that are declared, by name."""
        found = [each for cluster in self._layout.clusters() for each in self.of_cluster(cluster)]
        return sorted(found, key=lambda each: each.metadata.name)

    def find(self, name: str) -> PostgresBackupSchedule:
        """One schedule.

        :raises BadInput: there is none of this name
        """
        known = self.everything()
        for each in known:
            if each.metadata.name == name:
                return each
        names = ", ".join(each.metadata.name for each in known)
        raise BadInput(
            f"no schedule {name!r} in {self._layout.home}: "
            + (f"there are: {names}" if names else "there is none")
        )

    def put(self, schedule: PostgresBackupSchedule) -> None:
        """Write a schedule down.

        :raises BadInput: one of this name is another cluster's
        """
        name, cluster = schedule.metadata.name, schedule.spec.cluster
        for each in self.everything():
            if each.metadata.name == name and each.spec.cluster != cluster:
                raise BadInput(
                    f"spec.cluster: can't be changed: schedule {name} is of {each.spec.cluster}, got {cluster}"
                )
        value = schedule.model_dump(mode="json", by_alias=True, exclude_none=True)
        files.write(self._path(schedule), spec_yaml.write(value))

    def remove(self, schedule: PostgresBackupSchedule) -> None:
        """Remove a schedule; what it made stays."""
        files.remove(self._path(schedule))
        files.remove(self._path(schedule).with_suffix(".json"))

    def standing(self, schedule: PostgresBackupSchedule) -> dict[str, Any] | None:
        """How it stands, as it was written down last; None: nobody has, or it is damaged."""
        try:
            found: dict[str, Any] | None = files.read_json(self._path(schedule).with_suffix(".json"))
        except PgherdError:
            return None
        return found

    def write_standing(self, schedule: PostgresBackupSchedule, standing: Mapping[str, Any]) -> None:
        """Write down how it stands; no-op if the schedule is gone."""
        if self._path(schedule).exists():
            files.write_json(self._path(schedule).with_suffix(".json"), standing)

    def _path(self, schedule: PostgresBackupSchedule) -> Path:
        return self._layout.schedules(schedule.spec.cluster) / f"{schedule.metadata.name}.yaml"

    def _read(self, path: Path) -> PostgresBackupSchedule:
        with files.explained(f"read {path}"):
            text = path.read_text(encoding="utf-8")
        return schedule_from(spec_yaml.read(text, str(path)).value, source=str(path))
