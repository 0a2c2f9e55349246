"""The custom resource definition: the declaration's models as Kubernetes wants to be told.

Everything about fields comes from :mod:`pgherd.model`; here is only what Kubernetes adds: names, the status and
scale subresources, the columns that ``kubectl get`` prints. Pure.
"""

from __future__ import annotations

from typing import Any

from pgherd.model.backup_kinds import BACKUP, SCHEDULE, PostgresBackup, PostgresBackupSchedule
from pgherd.model.spec import API_VERSION, KIND, crd_schema
from pgherd.model.spec_schema import kind_schema

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "postgresclusters"
BACKUPS, SCHEDULES = "postgresbackups", "postgresbackupschedules"
NAME = f"{PLURAL}.{GROUP}"

_READY = '.status.conditions[?(@.type=="Ready")].status'


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition, ready to be applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["pgc"],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }


def backup_crd() -> dict[str, Any]:
    """The definition of ``PostgresBackup``."""
    columns = [
        _column("Cluster", ".spec.cluster"),
        _column("Type", ".spec.type"),
        _column("Phase", ".status.phase"),
        _column("Restore Point", ".status.restorePoint"),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    schema = kind_schema(PostgresBackup, (("cluster",), ("type",)))
    return _small(BACKUP, BACKUPS, "pgb", schema, columns)


def schedule_crd() -> dict[str, Any]:
    """The definition of ``PostgresBackupSchedule``."""
    columns = [
        _column("Cluster", ".spec.cluster"),
        _column("Cron", ".spec.cron"),
        _column("Type", ".spec.type"),
        _column("Suspend", ".spec.suspend", kind="boolean"),
        _column("Next", ".status.nextAt"),
        _column("Drill", ".spec.drill.every"),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    schema = kind_schema(PostgresBackupSchedule, (("cluster",),))
    return _small(SCHEDULE, SCHEDULES, "pgbs", schema, columns)


def _small(
    kind: str, plural: str, short: str, schema: dict[str, Any], columns: list[dict[str, Any]]
) -> dict[str, Any]:
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _version() -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": crd_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.segments.count",
                "statusReplicasPath": ".status.segments",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            _column("Phase", ".status.phase"),
            _column("Segments", ".spec.segments.count", kind="integer"),
            _column("Ready", _READY),
            _column("Engine", ".status.engine"),
            # How long ago the operator looked last: what the other columns say may be older than that.
            _column("Seen", ".status.observedAt", kind="date"),
            _column("Age", ".metadata.creationTimestamp", kind="date"),
        ],
    }


def _column(name: str, path: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path}
