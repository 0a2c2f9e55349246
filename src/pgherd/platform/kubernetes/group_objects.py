"""What one group needs besides pods: a name for each member, its configuration, a disruption budget. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.model.spec import PostgresCluster
from pgherd.platform.kubernetes import first_parameters, names, patroni_files, pods


def group_objects(
    cluster: PostgresCluster,
    group: int,
    *,
    namespace: str,
    replicas: int,
    image: str,
    server_major: int,
    dcs_config: Mapping[str, Any],
    epoch: int,
    volumes: int | None = None,
    first: str = "",
    repository: str | None = None,
) -> list[dict[str, Any]]:
    """Everything of one group, in the order in which it is needed.

    :param replicas: how many members there should be
    :param dcs_config: Patroni's dynamic configuration, used when the group is founded
    :param epoch: whose place in Patroni's store the group has, and whose volumes
    :param volumes: whose volumes, if they are of another one: the group was rebuilt
    :param first: what asks about a new cluster's parameters, if it is new
    :param repository: the claim of a volume that members have their repository on
    """
    name, labels = (
        names.group_object(cluster.metadata.name, group),
        names.labels(cluster.metadata.name, group),
    )
    labels = {**cluster.metadata.labels, **labels}
    return [
        headless_service(cluster, group, labels),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": labels},
            "data": patroni_files.files(cluster, group, dcs_config, namespace, server_major, epoch)
            | first_parameters.files(first),
        },
        disruption_budget(cluster, group, labels),
        pods.stateful_set(
            cluster,
            group,
            namespace=namespace,
            replicas=replicas,
            image=image,
            files=patroni_files.lasting(cluster, group, namespace, server_major, epoch),
            epoch=epoch,
            volumes=epoch if volumes is None else volumes,
            marks=first_parameters.marks(first),
            repository=repository,
        ),
    ]


def headless_service(cluster: PostgresCluster, group: int, labels: dict[str, str]) -> dict[str, Any]:
    """Gives each member its stable name, from the moment it has an address."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": names.group_object(cluster.metadata.name, group), "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(cluster.metadata.name, group),
            "ports": [
                {"name": "postgres", "port": names.POSTGRES_PORT, "targetPort": "postgres"},
                {"name": "patroni", "port": names.REST_PORT, "targetPort": "patroni"},
            ],
        },
    }


def disruption_budget(cluster: PostgresCluster, group: int, labels: dict[str, str]) -> dict[str, Any]:
    """Whoever drains nodes takes one member of a group at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": names.group_object(cluster.metadata.name, group), "labels": labels},
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector(cluster.metadata.name, group)},
        },
    }
