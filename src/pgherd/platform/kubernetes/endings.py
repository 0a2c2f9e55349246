"""How members' servers ended: the only proof that nothing was written after a certain place in a group's log. Pure.

A server that is shut down writes a last checkpoint and says so in its control file. The container says that on with its
last words, which Kubernetes reports; the operator writes them down once no member of the cluster is left and nobody but
itself can start one, and forgets them before it does: volumes may be lost, and what was on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pgherd.platform.bench import Ending
from pgherd.platform.kubernetes import names, patroni_files
from pgherd.platform.local.endings import parse_control

Object = Mapping[str, Any]
KEY = "endings.json"
Endings = Mapping[int, Mapping[str, Ending]]
"""by group, and by member"""


def of_pod(pod: Object) -> Ending | None:
    """How the server of a pod ended that was told to end; None: nobody knows."""
    if "deletionTimestamp" not in pod["metadata"]:
        return None
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        said = ((status.get("state") or {}).get("terminated") or {}).get("message") or ""
        if status.get("name") == names.CONTAINER and said.startswith(patroni_files.LAST_WORDS):
            try:
                return parse_control(said.removeprefix(patroni_files.LAST_WORDS))
            except (KeyError, ValueError):
                return None
    return None


def of_pods(cluster: str, pods: Sequence[Object]) -> Endings:
    """The same of all members of which it is known."""
    found: dict[int, dict[str, Ending]] = {}
    for pod in pods:
        member, ending = names.member_of(cluster, pod["metadata"]["name"]), of_pod(pod)
        if member is not None and ending is not None:
            found.setdefault(member.group, {})[member.name] = ending
    return found


def read(config_map: Object | None) -> Endings:
    """What was written down; what can't be read proves nothing."""
    try:
        raw = json.loads(((config_map or {}).get("data") or {})[KEY])
        return {
            int(group): {name: Ending(**each) for name, each in members.items()}
            for group, members in raw.items()
        }
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def config_map(cluster: str, endings: Endings) -> dict[str, Any]:
    """Where it is written down."""
    raw = {
        str(group): {name: asdict(each) for name, each in members.items()}
        for group, members in endings.items()
        if members
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.endings(cluster), "labels": names.labels(cluster)},
        "data": {KEY: json.dumps(raw)},
    }
