"""The Kubernetes API as this package uses it: objects are plain data, applied as a whole, under one field manager.

A thin layer over lightkube. Errors come out as pgherd's own: what the API server refuses is a
:class:`~pgherd.errors.PgherdError` that says what and why, a server that does not answer is
:class:`~pgherd.errors.Unavailable`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from lightkube import ApiError, Client
from lightkube.core.resource import ApiInfo
from lightkube.core.selector import build_selector
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericNamespacedResource,
    GenericNamespacedStatus,
    create_api_info,
)
from lightkube.types import CascadeType, PatchType

from pgherd.errors import PgherdError, Unavailable
from pgherd.model.backup_kinds import BACKUP as BACKUP_KIND
from pgherd.model.backup_kinds import SCHEDULE as SCHEDULE_KIND
from pgherd.model.spec import KIND
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.advice import advised
from pgherd.platform.kubernetes.crd import BACKUPS, GROUP, PLURAL, SCHEDULES, VERSION

Object = dict[str, Any]
ALL_NAMESPACES = "*"
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 15.0
"""so much later than it should have ended a silent stream is given up"""


@dataclass(frozen=True)
class Kind:
    """One kind of namespaced object."""

    group: str
    version: str
    name: str
    plural: str

    @property
    def api_version(self) -> str:
        """``apps/v1``"""
        return f"{self.group}/{self.version}" if self.group else self.version


CLUSTER = Kind(GROUP, VERSION, KIND, PLURAL)
POD = Kind("", "v1", "Pod", "pods")
SERVICE = Kind("", "v1", "Service", "services")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
SECRET = Kind("", "v1", "Secret", "secrets")
EVENT = Kind("", "v1", "Event", "events")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
VOLUME_CLAIM = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
STATEFUL_SET = Kind("apps", "v1", "StatefulSet", "statefulsets")
DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
BACKUP = Kind(GROUP, VERSION, BACKUP_KIND, BACKUPS)
SCHEDULE = Kind(GROUP, VERSION, SCHEDULE_KIND, SCHEDULES)
ROLE = Kind("rbac.authorization.k8s.io", "v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")

MANAGED = (
    SERVICE_ACCOUNT,
    ROLE,
    ROLE_BINDING,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    CONFIG_MAP,
    DISRUPTION_BUDGET,
    STATEFUL_SET,
)
"""Kinds of which a cluster has objects that pgherd applies."""

_KINDS = {
    (kind.api_version, kind.name): kind
    for kind in (*MANAGED, CLUSTER, BACKUP, SCHEDULE, POD, EVENT, LEASE, VOLUME_CLAIM)
}


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """The kind of a rendered object."""
    return _KINDS[obj["apiVersion"], obj["kind"]]


_resources: dict[Kind, Any] = {}


def resource(kind: Kind) -> Any:
    """lightkube's class for a kind, with plain data as objects."""
    if kind not in _resources:
        info = create_api_info(kind.group, kind.version, kind.name, kind.plural)
        _resources[kind] = type(kind.name, (GenericNamespacedResource,), {"_api_info": info})
    return _resources[kind]


def _status_of(kind: Kind) -> Any:
    info = create_api_info(kind.group, kind.version, kind.name, kind.plural)
    return type(
        f"{kind.name}Status",
        (GenericNamespacedStatus,),
        {
            "_api_info": ApiInfo(
                resource=info.resource,
                parent=info.resource,
                plural=kind.plural,
                verbs=["get", "patch", "put"],
                action="status",
            )
        },
    )


_STATUSES = {kind: _status_of(kind) for kind in (CLUSTER, BACKUP, SCHEDULE)}


def complete(kind: Kind, obj: Mapping[str, Any]) -> Object:
    """An object with its kind, which lists leave out."""
    return {**obj, "apiVersion": kind.api_version, "kind": kind.name}


def _global(name: str, plural: str) -> Any:
    info = create_api_info("", "v1", name, plural)
    return type(name, (GenericGlobalResource,), {"_api_info": info})


_NODE = _global("Node", "nodes")
_VOLUME = _global("PersistentVolume", "persistentvolumes")


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of the API into pgherd's own.

    :param what: goes on after "could not"
    """
    try:
        yield
    except ApiError as error:
        if error.status.code in (429, 500, 502, 503, 504):
            raise Unavailable(f"could not {what}: {error.status.message}") from error
        raise PgherdError(f"could not {what}: {advised(error.status.message or '')}") from error
    except (httpx2.HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"could not {what}: the Kubernetes API server does not answer: {reason}") from error


def is_conflict(error: PgherdError) -> bool:
    """Whether a change was refused because somebody else's came first."""
    return isinstance(error.__cause__, ApiError) and error.__cause__.status.code == 409


def _refused(answer: httpx2.Response) -> None:
    """Raise what the API server said, if it refused.

    :raises ApiError: with its words
    :raises httpx2.HTTPError: somebody else answered
    """
    if answer.is_error and "json" in answer.headers.get("Content-Type", ""):
        raise ApiError(request=answer.request, response=answer)
    answer.raise_for_status()


class Api:
    """Calls to one Kubernetes cluster. Safe to share between threads."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or None if there is none.

        :raises PgherdError: it could not be asked
        """
        with explained(f"read {kind.name} {name}"):
            try:
                return dict(self.client.get(resource(kind), name, namespace=namespace))
            except ApiError as error:
                if error.status.code == 404:
                    return None
                raise

    def node(self, name: str) -> Object | None:
        """A node, or None if there is none.

        :raises PgherdError: it could not be asked
        """
        return self._get_global(_NODE, f"node {name}", name)

    def volume(self, name: str) -> Object | None:
        """A PersistentVolume, or None if there is none.

        :raises PgherdError: it could not be asked
        """
        return self._get_global(_VOLUME, f"volume {name}", name) if name else None

    def _get_global(self, kind: Any, what: str, name: str) -> Object | None:
        with explained(f"read {what}"):
            try:
                return dict(self.client.get(kind, name))
            except ApiError as error:
                if error.status.code == 404:
                    return None
                raise

    def nodes(self, labels: Mapping[str, str]) -> list[Object]:
        """Nodes with these labels.

        :raises PgherdError: they could not be asked
        """
        with explained("list nodes"):
            return [dict(each) for each in self.client.list(_NODE, labels=dict(labels))]

    def merge_node(self, name: str, patch: Mapping[str, Any]) -> None:
        """Change some fields of a node (None removes one).

        :raises PgherdError: refused
        """
        with explained(f"change Node {name}"):
            manager = names.FIELD_MANAGER
            self.client.patch(_NODE, name, dict(patch), patch_type=PatchType.MERGE, field_manager=manager)

    def warnings(self, namespace: str, about: str) -> Sequence[Object]:
        """Warnings about an object of this name.

        :raises PgherdError: they could not be asked
        """
        with explained(f"list events of {about}"):
            fields: dict[str, Any] = {"involvedObject.name": about, "type": "Warning"}
            found = self.client.list(resource(EVENT), namespace=namespace, fields=fields)
            return [dict(each) for each in found]

    def list(self, kind: Kind, namespace: str, labels: Mapping[str, str] | None = None) -> list[Object]:
        """All objects of a kind with these labels.

        :raises PgherdError: they could not be asked
        """
        with explained(f"list {kind.plural}"):
            found = self.client.list(resource(kind), namespace=namespace, labels=dict(labels or {}))
            return [complete(kind, each) for each in found]

    def watch(
        self, kind: Kind, namespace: str, labels: Mapping[str, Any] | None, version: str, seconds: int
    ) -> Iterator[tuple[str, Object]]:
        """Changes after a version, as ``(type, object)``, from one stream.

        :param seconds: how long the stream lasts; a connection that says nothing for longer is given up, for the other
            end may be gone without a word
        :raises PgherdError: the version is too old to go on from
        :raises ApiError: refused
        :raises httpx2.HTTPError: the connection broke, or nothing was heard
        """
        requests = self.client._client
        asked: dict[str, Any] = {
            "timeoutSeconds": seconds,
            "resourceVersion": version,
            "allowWatchBookmarks": True,
            "labelSelector": build_selector(dict(labels)) if labels else None,
        }
        wanted = requests.prepare_request(
            "list", res=resource(kind), namespace=namespace, watch=True, params=asked
        )
        limits = httpx2.Timeout(CONNECT_SECONDS, read=seconds + SILENT_SECONDS)
        with requests._client.stream(
            wanted.method, wanted.url, params=wanted.params, timeout=limits
        ) as answer:
            if answer.is_error:
                answer.read()
                _refused(answer)
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise PgherdError(f"could not watch {kind.plural}: {event['object'].get('message')}")
                yield event["type"], event["object"]

    def apply(self, namespace: str, obj: Mapping[str, Any]) -> Object:
        """Make an object, or bring what pgherd says of it up to date; fields of others stay as they are.

        :raises PgherdError: refused
        """
        kind, name = kind_of(obj), obj["metadata"]["name"]
        with explained(f"apply {kind.name} {name}"):
            applied = self.client.patch(
                resource(kind),
                name,
                dict(obj),
                namespace=namespace,
                patch_type=PatchType.APPLY,
                field_manager=names.FIELD_MANAGER,
                force=True,
            )
            return dict(applied)

    def create(self, namespace: str, obj: Mapping[str, Any]) -> Object | None:
        """Make an object; None if there is one of this name already.

        :raises PgherdError: refused
        """
        kind, name = kind_of(obj), obj["metadata"].get("name", obj["metadata"].get("generateName"))
        with explained(f"create {kind.name} {name}"):
            try:
                made = resource(kind)({**obj, "metadata": {**obj["metadata"], "namespace": namespace}})
                return dict(self.client.create(made, namespace=namespace))
            except ApiError as error:
                if error.status.code == 409:
                    return None
                raise

    def merge(self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]) -> Object | None:
        """Change some fields of an object (None removes one); None if it is gone.

        :raises PgherdError: refused
        """
        with explained(f"change {kind.name} {name}"):
            try:
                return dict(
                    self.client.patch(
                        resource(kind),
                        name,
                        dict(patch),
                        namespace=namespace,
                        patch_type=PatchType.MERGE,
                        field_manager=names.FIELD_MANAGER,
                    )
                )
            except ApiError as error:
                if error.status.code == 404:
                    return None
                raise

    def write_status(
        self, namespace: str, name: str, status: Mapping[str, Any], kind: Kind = CLUSTER
    ) -> None:
        """Replace the status of one of our resources; no-op if it is gone.

        :raises PgherdError: refused
        """
        # A JSON patch replaces as a whole: what a merge leaves out would stay.
        patch = [{"op": "add", "path": "/status", "value": json.loads(json.dumps(status))}]
        with explained(f"write the status of {name}"):
            try:
                self.client.patch(
                    _STATUSES[kind],
                    name,
                    patch,
                    namespace=namespace,
                    patch_type=PatchType.JSON,
                    field_manager=names.FIELD_MANAGER,
                )
            except ApiError as error:
                if error.status.code != 404:
                    raise

    def delete_this(
        self, kind: Kind, namespace: str, obj: Mapping[str, Any], *, grace: int | None = None
    ) -> None:
        """Remove this very object, not one that has its name by now; no-op if it is gone.

        :param grace: as for :meth:`delete`
        :raises PgherdError: refused
        """
        name, requests = obj["metadata"]["name"], self.client._client
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": obj["metadata"]["uid"]},
            "propagationPolicy": CascadeType.BACKGROUND.value,
        }
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        with explained(f"delete {kind.name} {name}"):
            wanted = requests.prepare_request("delete", res=resource(kind), name=name, namespace=namespace)
            answer = requests._client.request("DELETE", wanted.url, json=options)
            # 409: another one has its name.
            if answer.status_code not in (404, 409):
                _refused(answer)

    def delete(
        self, kind: Kind, namespace: str, name: str, *, orphan: bool = False, grace: int | None = None
    ) -> None:
        """Remove an object; no-op if it is gone.

        :param orphan: leave what it owns
        :param grace: seconds that a pod gets, instead of its own; 0 forgets it at once, whatever its node does
        :raises PgherdError: refused
        """
        cascade = CascadeType.ORPHAN if orphan else CascadeType.BACKGROUND
        with explained(f"delete {kind.name} {name}"):
            try:
                self.client.delete(
                    resource(kind), name, namespace=namespace, cascade=cascade, grace_period=grace
                )
            except ApiError as error:
                if error.status.code != 404:
                    raise
