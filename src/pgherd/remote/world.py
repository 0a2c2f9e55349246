"""A cluster's databases and Patronis, reached from outside through tunnels to its pods."""

from __future__ import annotations

from typing import Any

from lightkube.resources.core_v1 import Pod

from pgherd.errors import Unavailable
from pgherd.model.topology import group_name
from pgherd.remote import objects
from pgherd.remote.api import Api


def primary_pod(api: Api, name: str, group: int) -> str:
    """The pod of a group's primary, as its Patroni labelled it.

    :raises Unavailable: there is none right now
    """
    labels: dict[str, Any] = {
        objects.CLUSTER: name,
        objects.GROUP: group_name(group),
        objects.ROLE: objects.PRIMARY,
    }
    with api.asking():
        pods = list(api.client.list(Pod, namespace=api.namespace, labels=labels))
    running = [pod for pod in pods if pod.status and pod.status.phase == "Running" and pod.metadata]
    if not running:
        raise Unavailable(
            f"{group_name(group)} of {name} has no primary right now: see 'pgherd status {name}'"
        )
    return str(running[0].metadata.name)  # type: ignore[union-attr]
