"""What the operator may do, and what people with a namespace's own roles may do with its clusters. Pure.

The operator can't hand out more than it has: what the pods' Roles grant (Patroni's store) is in here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgherd.platform.kubernetes.crd import BACKUPS, GROUP, PLURAL, SCHEDULES

Rule = dict[str, Any]

LOOK = ("get", "list", "watch")
KEEP = (*LOOK, "create", "patch", "delete")


def rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Rule:
    """One RBAC rule."""
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}


def cluster_rules() -> list[Rule]:
    """The operator's for what belongs to no namespace, all of it only to look at."""
    return [
        # Is a node gone or silent; which namespaces and definitions there are.
        rule("", ["namespaces", "nodes"], LOOK),
        # Where a member's volume can be used: nobody is sent where it can't follow.
        rule("", ["persistentvolumes"], ["get"]),
        rule("apiextensions.k8s.io", ["customresourcedefinitions"], LOOK),
    ]


def fencing_rules() -> list[Rule]:
    """The operator's where clusters are declared with ``fencing: out-of-service``: taint a node that is off."""
    return [rule("", ["nodes"], ["patch"])]


def operator_rules() -> list[Rule]:
    """The operator's in every namespace that has clusters."""
    return [
        # Made and deleted are only the scratch clusters of drills.
        rule(GROUP, [PLURAL], KEEP),
        rule(GROUP, [f"{PLURAL}/status"], ["patch"]),
        rule(GROUP, [BACKUPS, SCHEDULES], LOOK),
        rule(GROUP, [f"{BACKUPS}/status", f"{SCHEDULES}/status"], ["patch"]),
        # To be named as the owner of what goes with it.
        rule(GROUP, [f"{PLURAL}/finalizers"], ["update"]),
        # The objects of clusters; ConfigMaps are Patroni's store as well.
        rule("", ["configmaps"], [*KEEP, "update"]),
        rule("", ["secrets", "serviceaccounts", "services"], KEEP),
        # Made are only those of members that are restored before their StatefulSet is there.
        rule("", ["persistentvolumeclaims"], [*LOOK, "create", "patch", "delete"]),
        # Made are only those that try a changed image or place before a member has to, those in which data are
        # restored, and those that hold a volume with backups.
        rule("", ["pods"], [*LOOK, "create", "patch", "delete"]),
        # Backups are made where the data are; a restored server is asked before anybody else can reach it; members' own
        # PostgreSQL says what it takes of changed parameters.
        rule("", ["pods/exec", "pods/portforward"], ["create", "get"]),
        rule("apps", ["statefulsets"], KEEP),
        rule("policy", ["poddisruptionbudgets"], KEEP),
        rule("networking.k8s.io", ["networkpolicies"], KEEP),
        rule("rbac.authorization.k8s.io", ["roles", "rolebindings"], KEEP),
        # What it tells people.
        rule("", ["events"], ["create", "list", "patch"]),
    ]


def lease_rules() -> list[Rule]:
    """The operator's in its own namespace: the lease that keeps a second one from working beside it."""
    return [rule("coordination.k8s.io", ["leases"], ["create", "get", "patch"])]


def view_rules() -> list[Rule]:
    """Added to the built-in role ``view``: look at clusters."""
    kinds = (PLURAL, BACKUPS, SCHEDULES)
    return [rule(GROUP, [part for kind in kinds for part in (kind, f"{kind}/status")], LOOK)]


def edit_rules() -> list[Rule]:
    """Added to the built-in roles ``edit`` and ``admin``: have clusters."""
    return [
        rule(GROUP, [PLURAL, BACKUPS, SCHEDULES], [*KEEP, "update", "deletecollection"]),
        rule(GROUP, [f"{PLURAL}/scale"], ["get", "patch", "update"]),
    ]
