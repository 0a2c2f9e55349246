"""Where the volumes of a pod can be used: they may be bound to a node or to a zone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes.api import VOLUME_CLAIM, Api

Object = Mapping[str, Any]


def volume_reach(api: Api, namespace: str, pod: Object) -> list[dict[str, Any]]:
    """Node selector terms of which a node has to meet one for a pod to have its volumes there; none: any node will do.

    :raises PgherdError: nobody knows where a volume can be used
    """
    bounds = []
    for each in pod["spec"].get("volumes") or []:
        if claim := each.get("persistentVolumeClaim"):
            bounds.append(_terms(api, namespace, claim["claimName"]))
    return [_both(chosen) for chosen in itertools.product(*filter(None, bounds)) if chosen]


def _terms(api: Api, namespace: str, name: str) -> list[Object]:
    claim = api.get(VOLUME_CLAIM, namespace, name) or {}
    volume = api.volume((claim.get("spec") or {}).get("volumeName") or "")
    if volume is None:
        raise PgherdError(f"the volume of claim {name} is not there: nobody knows where it can be used")
    required = (volume["spec"].get("nodeAffinity") or {}).get("required") or {}
    return list(required.get("nodeSelectorTerms") or [])


def _both(terms: tuple[Object, ...]) -> dict[str, Any]:
    """All of what several terms ask of a node."""
    asked = ("matchExpressions", "matchFields")
    found = {key: [each for term in terms for each in term.get(key) or []] for key in asked}
    return {key: each for key, each in found.items() if each}
