"""The custom resource definition: the declaration's models as Kubernetes wants to be told.

Everything about fields comes from :mod:`pgherd.model`; here is only what Kubernetes adds: names, the status and
scale subresources, the columns that ``kubectl get`` prints. Pure.
"""

from __future__ import annotations

from typing import Any

from pgherd.model.spec import API_VERSION, KIND, crd_schema

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "postgresclusters"
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
            _column("Age", ".metadata.creationTimestamp", kind="date"),
        ],
    }


def _column(name: str, path: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path}
