"""What the objects of a cluster are called, and how they are labelled. Pure.

Everything of one cluster starts with its name; ``NAME-coordinator`` and ``NAME-segment-N`` are what one group needs.
Patroni adds ``-leader``, ``-config``, ``-sync`` and ``-failover`` for its own store: to the group's name, or where the
engine has it know all groups of a cluster (one scope) to ``NAME-GROUPID``.

A restore in place gives the members new volumes and the groups a new place in Patroni's store, and leaves the old ones
as they are. So the names of both have the number of the cluster's *epoch* in them
(:mod:`~pgherd.platform.kubernetes.epochs`), unless it is the first one, 0. The repair of a group gives that group's
members new volumes, too (:mod:`~pgherd.platform.kubernetes.rebuilt`).
"""

from __future__ import annotations

from pgherd.engine import registry
from pgherd.model.spec import API_VERSION, PostgresCluster
from pgherd.model.topology import Member, group_id, group_name

DOMAIN = API_VERSION.split("/")[0]
FIELD_MANAGER = "pgherd"
FINALIZER = f"{DOMAIN}/cluster"

CLUSTER_LABEL = f"{DOMAIN}/cluster"
GROUP_LABEL = f"{DOMAIN}/group"
SCOPE_LABEL = f"{DOMAIN}/scope"
ROLE_LABEL = f"{DOMAIN}/role"
MANAGED_BY = "app.kubernetes.io/managed-by"

STOPPED_ANNOTATION = f"{DOMAIN}/stopped"
RESTORE_ANNOTATION = f"{DOMAIN}/restore-in-place"
"""on a cluster: the restore in place that is asked for, or confirmed, as JSON"""
REPAIR_ANNOTATION = f"{DOMAIN}/repair-"
"""on a cluster, with a group's name behind it: the repair of that group that is asked for, or confirmed, as JSON"""
KEPT_LABEL = f"{DOMAIN}/kept"
"""on volume claims: they are what the cluster was before a restore in place, or a group before its repair"""
TAKES_OVER_ANNOTATION = f"{DOMAIN}/takes-over"
"""on a cluster that was restored: the cluster, gone for good, with whose repository it goes on"""
TEMPLATE_ANNOTATION = f"{DOMAIN}/template"
"""on pods: of which template they were made"""

POSTGRES_PORT = 5432
REST_PORT = 8008
VOLUME = "data"
CONTAINER = "postgres"
"""the container of a pod that is the member; others may have added more"""


def labels(cluster: str, group: int | None = None) -> dict[str, str]:
    """Labels of every object of a cluster, or of one of its groups."""
    common = {
        "app.kubernetes.io/name": "postgresql",
        "app.kubernetes.io/instance": cluster,
        MANAGED_BY: "pgherd",
        CLUSTER_LABEL: cluster,
    }
    return common if group is None else {**common, GROUP_LABEL: group_name(group)}


def selector(cluster: str, group: int | None = None) -> dict[str, str]:
    """Labels by which a cluster's (or a group's) pods are found."""
    found = {CLUSTER_LABEL: cluster}
    return found if group is None else {**found, GROUP_LABEL: group_name(group)}


def group_object(cluster: str, group: int) -> str:
    """Name of the StatefulSet, headless Service, disruption budget and ConfigMap of a group."""
    return f"{cluster}-{group_name(group)}"


def scope(cluster: PostgresCluster, group: int, epoch: int) -> str:
    """The Patroni scope of a group: its own, or the one that all groups of its cluster share."""
    name = cluster.metadata.name
    common = name if registry.patroni_section(cluster, group) else group_object(name, group)
    return f"{common}.{epoch}" if epoch else common


def epoch_of_scope(scope: str) -> int:
    """Of which epoch a scope is; no cluster's name has a dot in it."""
    epoch = scope.partition(".")[2]
    return int(epoch) if epoch.isdecimal() else 0


def store_object(cluster: PostgresCluster, group: int, part: str, epoch: int) -> str:
    """Name of one of Patroni's own config maps of a group.

    :param part: ``leader``, ``config``, ``sync`` or ``failover``
    """
    own = scope(cluster, group, epoch)
    return f"{own}-{group}-{part}" if registry.patroni_section(cluster, group) else f"{own}-{part}"


def store_labels(cluster: PostgresCluster, group: int) -> dict[str, str]:
    """By which Patroni tells the groups of one scope apart; empty where each has a scope of its own."""
    section = registry.patroni_section(cluster, group)
    return {f"{kind}-group": str(values["group"]) for kind, values in section.items()}


def volume(epoch: int) -> str:
    """What a StatefulSet calls its members' volumes."""
    return f"{VOLUME}{epoch}" if epoch else VOLUME


def volume_claim(member: Member, epoch: int) -> str:
    """Name of the claim of a member's volume, as its StatefulSet makes it."""
    return f"{volume(epoch)}-{member.name}"


def host(member: Member, zone: str) -> str:
    """The stable name under which a member is reached from everywhere in the Kubernetes cluster.

    :param zone: how the names of its namespace's Services end (:mod:`~pgherd.platform.kubernetes.zone`)
    """
    return f"{member.name}.{member.scope}.{zone}"


def credentials_secret(cluster: str) -> str:
    """Name of the Secret that holds pgherd's own passwords."""
    return f"{cluster}-credentials"


def accepted(cluster: str) -> str:
    """Name of the ConfigMap that holds the declaration that was accepted last."""
    return cluster


def authority_secret(cluster: str) -> str:
    """Name of the Secret with the cluster's certificate authority."""
    return f"{cluster}-ca"


def tls_secret(cluster: str, group: int) -> str:
    """Name of the Secret with a group's certificate."""
    return f"{group_object(cluster, group)}-tls"


def authority_file(cluster: str, namespace: str) -> str:
    """Where the certificate authority is found: at the same place by members and by the operator.

    A subscription's connection string is made by the operator and used by a member.
    """
    # Neither name may have a dot in it.
    return f"/tmp/pgherd.{namespace}.{cluster}.ca.crt"


def backup_secret(cluster: str) -> str:
    """Name of the Secret with what members need for archiving. No cluster's name has a dot in it."""
    return f"{cluster}.backup"


def recovery_secret(cluster: str) -> str:
    """Name of the Secret with what is needed to make the cluster from a backup."""
    return f"{cluster}.recovery"


def recovery_state(cluster: str) -> str:
    """Name of the ConfigMap that says how far the cluster's making from a backup is."""
    return f"{cluster}.recovery"


def backups_list(cluster: str) -> str:
    """Name of the ConfigMap that lists the cluster's backups and restore points."""
    return f"{cluster}.backups"


def repository_owner(cluster: str) -> str:
    """Name of the ConfigMap that says who the cluster is to a repository. It stays with the volumes."""
    return f"{cluster}.owner"


def drill_state(cluster: str) -> str:
    """Name of the ConfigMap that says how far the cluster's drill is."""
    return f"{cluster}.drill"


def owner_secret(cluster: str) -> str:
    """Name of the Secret for applications."""
    return f"{cluster}-owner"


def endings(cluster: str) -> str:
    """Name of the ConfigMap that says how members' servers ended when the cluster was stopped."""
    return f"{cluster}.endings"


def repair_annotation(group: int) -> str:
    """The annotation that asks for a group's repair."""
    return f"{REPAIR_ANNOTATION}{group_name(group)}"


def group_of(cluster: str, name: str) -> int | None:
    """The group that :func:`group_object` names so; None if it is none's."""
    own = f"{cluster}-"
    try:
        return group_id(name.removeprefix(own)) if name.startswith(own) else None
    except ValueError:
        return None


def member_of(cluster: str, name: str) -> Member | None:
    """The member whose pod is called so; None if it is none's.

    By its name, which nobody can change, not by labels, which anybody can.
    """
    scope, _, ordinal = name.rpartition("-")
    group = group_of(cluster, scope)
    if group is None or not ordinal.isdecimal():
        return None
    member = Member(cluster, group, int(ordinal))
    return member if name == member.name else None


def claim_of(cluster: str, name: str) -> tuple[Member, int] | None:
    """The member and the epoch whose volume claim is called so; None if it is nobody's."""
    kind, _, rest = name.partition("-")
    number = kind.removeprefix(VOLUME)
    member = member_of(cluster, rest)
    if member is None or not kind.startswith(VOLUME) or not (number.isdecimal() or not number):
        return None
    epoch = int(number or 0)
    return (member, epoch) if name == volume_claim(member, epoch) else None


def pod_labels(cluster: PostgresCluster, group: int, epoch: int) -> dict[str, str]:
    """Labels by which a member's pod is found, by us and by Patroni."""
    return {
        **labels(cluster.metadata.name, group),
        SCOPE_LABEL: scope(cluster, group, epoch),
        **store_labels(cluster, group),
    }
