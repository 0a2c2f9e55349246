"""The operator's objects, in the order in which they must be applied. Pure: from settings to plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pgherd import __version__
from pgherd.deploy import rbac
from pgherd.errors import BadInput
from pgherd.model import spec_yaml
from pgherd.platform.kubernetes.crd import backup_crd, crd, schedule_crd

Manifest = dict[str, Any]

NAME = "pgherd-operator"
NAMESPACE = "pgherd-system"
IMAGE = f"localhost/pgherd-operator:{__version__}"
POSTGRES_IMAGE = "localhost/pgherd-postgres:17"
PROBE_PORT = 8080
WATCHED = "PGHERD_WATCH_NAMESPACE"
"""the variable that tells the operator which namespace it looks after; empty: all"""
MAX_REPLICAS = 5
UID = 65532
"""the uid of the operator's process; the image asks for no particular one"""

SILENT_NODES = tuple(
    {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 20,
    }
    for taint in ("not-ready", "unreachable")
)
"""When its node falls silent the operator soon starts elsewhere, not after Kubernetes' five minutes: members that were
lost with the node wait for it."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Settings:
    """What may differ from one installation to the next."""

    namespace: str = NAMESPACE
    image: str = IMAGE
    postgres_image: str = POSTGRES_IMAGE
    """what the members of clusters run unless their declaration names another"""
    pull_policy: Any = "IfNotPresent"
    pull_secrets: Any = ()
    """``[{"name": SECRET}]``"""
    resources: Any = field(
        default_factory=lambda: {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "512Mi"},
        }
    )
    node_selector: Any = field(default_factory=dict)
    tolerations: Any = field(default_factory=lambda: list(SILENT_NODES))
    replicas: Any = 2
    """how many of its pods there are: one works, the others wait to take over within seconds"""
    managed_by: str = "pgherd"
    watch_namespace: str = ""
    """the only namespace whose clusters it looks after; empty: all"""
    fencing: bool = False
    """it may taint nodes that are off, for clusters with ``fencing: out-of-service``"""


def check(settings: Settings) -> None:
    """Refuse settings that the API server would refuse half-way through.

    :raises BadInput: with every problem
    """
    problems = []
    for option, value in (
        ("--namespace", settings.namespace),
        ("--watch-namespace", settings.watch_namespace or "all"),
    ):
        if not _LABEL.fullmatch(value):
            problems.append(f"{option}: {value!r} must be 1 to 63 lower-case letters, digits and hyphens")
    for option, value in (("--image", settings.image), ("--postgres-image", settings.postgres_image)):
        if not value or any(character.isspace() for character in value):
            problems.append(f"{option}: {value!r} must be the name of a container image")
    if not 1 <= settings.replicas <= MAX_REPLICAS:
        problems.append(f"--replicas: {settings.replicas} must be 1 to {MAX_REPLICAS}")
    if problems:
        raise BadInput(*problems)


def manifests(settings: Settings) -> list[Manifest]:
    """All objects of an installation, namespace first."""
    return [
        namespace(settings),
        *definitions(settings),
        account(settings),
        *operator_roles(settings),
        *(fencing_roles(settings) if settings.fencing else []),
        *people_roles(settings),
        operator(settings),
    ]


def to_yaml(objects: list[Manifest]) -> str:
    """As one YAML stream, for ``kubectl apply -f -``."""
    return "".join(f"---\n{spec_yaml.write(value)}" for value in objects)


def labels(settings: Settings) -> dict[str, str]:
    """On everything that is installed."""
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/component": "operator",
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/managed-by": settings.managed_by,
    }


def namespace(settings: Settings) -> Manifest:
    """The operator's own namespace: whatever runs in it has no privilege."""
    pod_security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": settings.namespace, "labels": {**labels(settings), **pod_security}},
    }


def definitions(settings: Settings) -> list[Manifest]:
    """The custom resource definitions."""
    found = [crd(), backup_crd(), schedule_crd()]
    return [{**made, "metadata": {**made["metadata"], "labels": labels(settings)}} for made in found]


def account(settings: Settings) -> Manifest:
    """Who the operator is."""
    return _named("v1", "ServiceAccount", settings, automountServiceAccountToken=False)


def people_roles(settings: Settings) -> list[Manifest]:
    """Additions to the roles that Kubernetes gives people in their namespaces."""
    return [
        _cluster_role("pgherd-view", settings, rbac.view_rules(), aggregate_to=("view", "edit", "admin")),
        _cluster_role("pgherd-edit", settings, rbac.edit_rules(), aggregate_to=("edit", "admin")),
    ]


def operator_roles(settings: Settings) -> list[Manifest]:
    """What the operator may do: everywhere, or in the one namespace that it looks after."""
    here, everywhere = rbac.operator_rules(), rbac.cluster_rules()
    if not settings.watch_namespace:
        return [
            _cluster_role(global_name(settings), settings, [*here, *everywhere]),
            _binding("ClusterRoleBinding", "ClusterRole", settings),
            *_lease_roles(settings),
        ]
    role = _cluster_role(global_name(settings), settings, here)
    role["kind"] = "Role"
    role["metadata"]["namespace"] = settings.watch_namespace
    binding = _binding("RoleBinding", "Role", settings)
    binding["metadata"]["namespace"] = settings.watch_namespace
    return [
        _cluster_role(global_name(settings), settings, everywhere),
        _binding("ClusterRoleBinding", "ClusterRole", settings),
        role,
        binding,
        *_lease_roles(settings),
    ]


def _lease_roles(settings: Settings) -> list[Manifest]:
    binding = _binding("RoleBinding", "Role", settings, NAME)
    binding["metadata"]["namespace"] = settings.namespace
    return [
        _named("rbac.authorization.k8s.io/v1", "Role", settings, rules=rbac.lease_rules()),
        binding,
    ]


def fencing_roles(settings: Settings) -> list[Manifest]:
    """What it may do to nodes besides."""
    name = f"{global_name(settings)}-fencing"
    return [
        _cluster_role(name, settings, rbac.fencing_rules()),
        _binding("ClusterRoleBinding", "ClusterRole", settings, name),
    ]


def global_name(settings: Settings) -> str:
    """Names without a namespace: several operators may share a cluster, each for a namespace of its own."""
    return f"{NAME}-{settings.namespace}"


def _binding(kind: str, role: str, settings: Settings, name: str = "") -> Manifest:
    name = name or global_name(settings)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels(settings)},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": settings.namespace}],
    }


def operator(settings: Settings) -> Manifest:
    """What runs."""
    spec = {
        "replicas": settings.replicas,
        # All old ones go first: one that waits would take over from the one that works, and go next. A lease keeps two
        # from acting.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": _selector(settings)},
        "template": {"metadata": {"labels": labels(settings)}, "spec": _pod(settings)},
    }
    return _named("apps/v1", "Deployment", settings, spec=spec)


def _selector(settings: Settings) -> dict[str, str]:
    return {key: labels(settings)[key] for key in ("app.kubernetes.io/name", "app.kubernetes.io/component")}


def _apart(settings: Settings) -> Manifest:
    """On different nodes, if there are several."""
    where = {
        "labelSelector": {"matchLabels": _selector(settings)},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": where}],
    }


def _named(api_version: str, kind: str, settings: Settings, **rest: Any) -> Manifest:
    metadata = {"name": NAME, "namespace": settings.namespace, "labels": labels(settings)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def _cluster_role(
    name: str, settings: Settings, rules: list[rbac.Rule], aggregate_to: tuple[str, ...] = ()
) -> Manifest:
    aggregation = {f"rbac.authorization.k8s.io/aggregate-to-{role}": "true" for role in aggregate_to}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {**labels(settings), **aggregation}},
        "rules": rules,
    }


def _pod(settings: Settings) -> Manifest:
    optional: Mapping[str, Any] = {
        "imagePullSecrets": settings.pull_secrets,
        "nodeSelector": settings.node_selector,
        "tolerations": settings.tolerations,
    }
    return {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 30,
        "affinity": {"podAntiAffinity": _apart(settings)},
        "containers": [_container(settings)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        **{
            key: value if isinstance(value, str) else _plain(value)
            for key, value in optional.items()
            if value
        },
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _container(settings: Settings) -> Manifest:
    probe = {"httpGet": {"path": "/healthz", "port": "probe"}, "timeoutSeconds": 5}
    return {
        "name": "operator",
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python3", "-m", "pgherd.operator"],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "PGHERD_POSTGRES_IMAGE", "value": settings.postgres_image},
            {"name": WATCHED, "value": settings.watch_namespace},
        ],
        "ports": [{"name": "probe", "containerPort": PROBE_PORT}],
        "readinessProbe": {**probe, "periodSeconds": 2},
        # Slow to judge: databases live without their operator, a restart helps only one that hangs.
        "livenessProbe": {**probe, "periodSeconds": 20, "failureThreshold": 5, "initialDelaySeconds": 20},
        "resources": settings.resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
