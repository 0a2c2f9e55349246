"""What a cluster needs once: Services for clients, rights for its pods, the Secret for applications. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from pgherd.model.spec import PostgresCluster, dump
from pgherd.model.topology import COORDINATOR, Credentials
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.certificates import CA_CERTIFICATE, Authority

ACCEPTED_KEY = "cluster.yaml"


def cluster_objects(
    cluster: PostgresCluster, namespace: str, credentials: Credentials, authority: Authority
) -> list[dict[str, Any]]:
    """Everything of a cluster that does not belong to one group, in the order in which it is needed."""
    name = cluster.metadata.name
    labels = {**cluster.metadata.labels, **names.labels(name)}
    return [
        service_account(name, labels),
        role(name, labels),
        role_binding(name, namespace, labels),
        network_policy(name, labels),
        service(name, name, "primary", labels),
        service(name, f"{name}-ro", "replica", labels),
        owner_secret(cluster, namespace, credentials, authority, labels),
        accepted(cluster, labels),
        public_authority(name, authority, labels),
    ]


def accepted(cluster: PostgresCluster, labels: dict[str, str]) -> dict[str, Any]:
    """What was declared and made sense: a later mistake leaves the cluster as it says here."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.accepted(cluster.metadata.name), "labels": labels},
        "data": {ACCEPTED_KEY: dump(cluster)},
    }


def service(cluster: str, name: str, role_label: str, labels: dict[str, str]) -> dict[str, Any]:
    """A Service over the coordinator's members of one role."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "selector": {**names.selector(cluster, COORDINATOR), names.ROLE_LABEL: role_label},
            "ports": [{"name": "postgres", "port": names.POSTGRES_PORT, "targetPort": "postgres"}],
        },
    }


def service_account(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Who the cluster's pods are."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": labels},
    }


def role(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """What Patroni uses: its own pod's labels and annotations, and its store in config maps."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name, "labels": labels},
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "verbs": ["create", "get", "list", "patch", "update", "watch"],
            },
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "patch", "watch"]},
        ],
    }


def role_binding(name: str, namespace: str, labels: dict[str, str]) -> dict[str, Any]:
    """Gives the pods their role."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "labels": labels},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }


def network_policy(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """PostgreSQL for everyone (passwords decide), Patroni's REST API for the cluster's pods and the operator."""
    operator = {"matchLabels": {"app.kubernetes.io/name": "pgherd-operator"}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "podSelector": {"matchLabels": names.selector(name)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": names.POSTGRES_PORT}]},
                {
                    "ports": [{"protocol": "TCP", "port": names.REST_PORT}],
                    "from": [
                        {"podSelector": {"matchLabels": names.selector(name)}},
                        {"namespaceSelector": {}, "podSelector": operator},
                    ],
                },
            ],
        },
    }


def owner_secret(
    cluster: PostgresCluster,
    namespace: str,
    credentials: Credentials,
    authority: Authority,
    labels: dict[str, str],
) -> dict[str, Any]:
    """What an application needs to connect."""
    name, database = cluster.metadata.name, cluster.spec.database
    host = f"{name}.{namespace}.svc"
    password = quote(credentials.owner, safe="")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": names.owner_secret(name), "labels": labels},
        "data": encoded(
            {
                "username": database,
                "password": credentials.owner,
                "database": database,
                "host": host,
                "port": str(names.POSTGRES_PORT),
                "uri": f"postgresql://{database}:{password}@{host}:{names.POSTGRES_PORT}/{database}"
                "?sslmode=require",
                "ca.crt": authority.certificate,
            }
        ),
    }


def credentials_secret(cluster: str, credentials: Credentials) -> dict[str, Any]:
    """pgherd's own passwords; it outlives the cluster as long as its volumes do."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": names.credentials_secret(cluster), "labels": names.labels(cluster)},
        "data": encoded(asdict(credentials)),
    }


def authority_secret(cluster: str, authority: Authority) -> dict[str, Any]:
    """The certificate authority; it outlives the cluster as the passwords do."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": names.authority_secret(cluster), "labels": names.labels(cluster)},
        "data": encoded(authority.values()),
    }


def files_secret(cluster: str, name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Files that only the cluster's pods may read."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "labels": names.labels(cluster)},
        "data": encoded(files),
    }


def tls_secret(cluster: str, group: int, values: Mapping[str, str]) -> dict[str, Any]:
    """A group's certificate."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": names.tls_secret(cluster, group), "labels": names.labels(cluster, group)},
        "data": encoded(values),
    }


def public_authority(name: str, authority: Authority, labels: dict[str, str]) -> dict[str, Any]:
    """What clients need to know whom they talk to."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.authority_secret(name), "labels": labels},
        "data": {CA_CERTIFICATE: authority.certificate},
    }


def encoded(values: Mapping[str, str]) -> dict[str, str]:
    """A Secret's data."""
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`encoded` was given."""
    return {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}
