"""Installing the operator, and taking it away: the manifests against a real API."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource, create_api_info
from lightkube.models.core_v1 import ContainerStatus
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import Event, Node, Pod
from lightkube.resources.rbac_authorization_v1 import Role, RoleBinding
from lightkube.types import PatchType

from pgherd.deploy.manifests import (
    NAME,
    WATCHED,
    Manifest,
    Settings,
    definitions,
    fencing_roles,
    global_name,
    manifests,
    namespace,
    people_roles,
)
from pgherd.errors import BadInput, PgherdError, one_line
from pgherd.platform.kubernetes.fence import FENCED, OUT_OF_SERVICE
from pgherd.remote.api import Api, NotFound, NotInstalled, PostgresClusterResource

FIELD_MANAGER = "pgherd-install"
POLL_SECONDS = 0.5

Progress = Callable[[str], None]


def install(api: Api, settings: Settings, progress: Progress = lambda text: None) -> None:
    """Apply everything; what is there is brought up to date. Returns when the API server has it all.

    :raises BadInput: another operator looks after the same clusters
    :raises PgherdError: the API server refuses something
    """
    _require_alone(api, settings)
    if not settings.fencing:
        for manifest in fencing_roles(settings):
            _delete(api, manifest)
        _tell_of_fences(api, progress)
    for manifest in manifests(settings):
        # A namespace that is there belongs to somebody, who may not want our label on it.
        if manifest["kind"] != "Namespace" or not _exists(api, manifest):
            _apply(api, manifest)
        progress(f"{manifest['kind']} {manifest['metadata']['name']}")
        if manifest["kind"] == "CustomResourceDefinition":
            _await_definition(api, manifest["metadata"]["name"])


def _apply(api: Api, manifest: Manifest) -> None:
    with api.asking():
        api.client.patch(
            _resource(manifest),
            manifest["metadata"]["name"],
            manifest,
            patch_type=PatchType.APPLY,
            field_manager=FIELD_MANAGER,
            force=True,
            **_where(manifest),
        )


def _exists(api: Api, manifest: Manifest) -> bool:
    try:
        with api.asking():
            api.client.get(_resource(manifest), manifest["metadata"]["name"], **_where(manifest))
    except NotFound:
        return False
    return True


def _where(manifest: Manifest) -> dict[str, Any]:
    where = manifest["metadata"].get("namespace")
    return {"namespace": where} if where else {}


def _resource(manifest: Manifest) -> Any:
    group, _, version = manifest["apiVersion"].rpartition("/")
    kind = manifest["kind"]
    base = GenericNamespacedResource if manifest["metadata"].get("namespace") else GenericGlobalResource
    # Not the library's typed classes: they drop fields that they don't know.
    return type(kind, (base,), {"_api_info": create_api_info(group, version, kind, f"{kind.lower()}s")})


def _await_definition(api: Api, name: str, timeout: float = 30.0) -> None:
    """A definition is served a moment after it was taken."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with api.asking():
            found = api.client.get(CustomResourceDefinition, name)
        conditions = (found.status.conditions if found.status else None) or []
        if any(condition.type == "Established" and condition.status == "True" for condition in conditions):
            return
        time.sleep(0.1)
    raise PgherdError(f"the definition {name} was not taken into use within {timeout:.0f} s")


def wait_available(
    api: Api, settings: Settings, timeout: float, progress: Progress = lambda text: None
) -> None:
    """Until the operator that was installed runs and is ready.

    :raises PgherdError: time ran out; the message says what stands in the way
    """
    deadline, said = time.monotonic() + timeout, set[str]()
    while not _is_available(api, settings):
        obstacle = _obstacle(api, settings)
        if obstacle not in said:
            said.add(obstacle)
            progress(obstacle)
        if time.monotonic() > deadline:
            raise PgherdError(f"the operator is not available after {timeout:.0f} s: {obstacle}")
        time.sleep(POLL_SECONDS)


def _is_available(api: Api, settings: Settings) -> bool:
    with api.asking():
        found = api.client.get(Deployment, NAME, namespace=settings.namespace)
    status, wanted = found.status, found.spec.replicas if found.spec else 1
    if status is None or found.metadata is None:
        return False
    return (
        (status.observedGeneration or 0) >= (found.metadata.generation or 0)
        and (status.updatedReplicas or 0) == wanted
        and (status.availableReplicas or 0) == wanted
        and (status.replicas or 0) == wanted
    )


def _obstacle(api: Api, settings: Settings) -> str:
    """Why the operator's pod is not ready, in one line."""
    with api.asking():
        pods = list(
            api.client.list(Pod, namespace=settings.namespace, labels={"app.kubernetes.io/name": NAME})
        )
        if not pods:
            return _last_warning(api, settings) or "its pod has not been made yet"
        pod = max(pods, key=lambda each: str(each.metadata.creationTimestamp if each.metadata else ""))
    status = pod.status
    for container in (status.containerStatuses if status else None) or []:
        if trouble := _trouble(container, settings):
            return trouble
    for condition in (status.conditions if status else None) or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"no node takes its pod: {condition.message}"
    return "its pod is starting"


def _trouble(container: ContainerStatus, settings: Settings) -> str:
    """What keeps a container from running, if anything does, and what to do."""
    state, before = container.state, container.lastState
    waiting = state.waiting if state else None
    reason = (waiting.reason or "") if waiting else ""
    if "Image" in reason:
        return f"{reason}: its node has no image {container.image} and can't pull it; --image names another"
    ended = (state.terminated if state else None) or (before.terminated if before else None)
    if ended is not None:
        # No count of restarts: a text that changes would be said again and again.
        shown = f"'kubectl -n {settings.namespace} logs deploy/{NAME}' shows what it says"
        return f"its container ended with exit code {ended.exitCode}; {shown}"
    if waiting is None or reason in ("", "ContainerCreating", "PodInitializing"):
        return ""
    return one_line(f"{reason}: {waiting.message or container.image}")


def _last_warning(api: Api, settings: Settings) -> str:
    events = api.client.list(Event, namespace=settings.namespace, fields={"type": "Warning"})
    messages = [event.message or "" for event in events if event.involvedObject.kind == "ReplicaSet"]
    return one_line(messages[-1]) if messages else ""


def uninstall(
    api: Api, settings: Settings, *, even_with_clusters: bool, progress: Progress = lambda text: None
) -> list[str]:
    """Remove what :func:`install` made, last thing first; tells what was removed. The namespace stays, for it may hold
    what is not ours.

    :param even_with_clusters: leave clusters running with nobody to look after them; the definitions, without which the
        API server would delete them, then stay
    :raises BadInput: there are clusters
    """
    clusters = existing_clusters(api)
    if clusters and not even_with_clusters:
        raise BadInput(
            f"there are clusters: {', '.join(clusters)}; delete them first, or --keep-clusters leaves them running"
            " with nobody to look after them"
        )
    kept = [namespace(settings)]
    if others := other_installations(api, settings):
        progress(
            f"the definitions and the roles of people stay, for there are operators in: {', '.join(others)}"
        )
        kept += [*definitions(settings), *people_roles(settings)]
    elif clusters:
        kept += definitions(settings)
    removed = []
    for manifest in reversed(manifests(replace(settings, fencing=True))):
        if manifest not in kept and _delete(api, manifest):
            removed.append(f"{manifest['kind']} {manifest['metadata']['name']}")
    _tell_of_fences(api, progress)
    return removed + _remove_rights_in_namespaces(api, settings) + _remove_leases(api, settings)


def _tell_of_fences(api: Api, progress: Progress) -> None:
    """A fence keeps every pod off its node, and nobody takes it down any more. Who may not look is told nothing."""
    try:
        with api.asking():
            found = [
                each.metadata.name for each in api.client.list(Node, labels={FENCED: "true"}) if each.metadata
            ]
    except PgherdError:
        return
    for name in found:
        progress(
            f"node {name} stays fenced: once it is back, 'kubectl taint node {name} {OUT_OF_SERVICE['key']}-' and "
            f"'kubectl label node {name} {FENCED}-' let it work again"
        )


def _remove_leases(api: Api, settings: Settings) -> list[str]:
    """What the operator made for itself."""
    with api.asking():
        found = list(
            api.client.list(Lease, namespace=settings.namespace, labels={"app.kubernetes.io/name": NAME})
        )
    removed = []
    for each in found:
        with api.asking():
            api.client.delete(Lease, str(each.metadata.name), namespace=settings.namespace)  # type: ignore[union-attr]
        removed.append(f"Lease {each.metadata.name}")  # type: ignore[union-attr]
    return removed


def _remove_rights_in_namespaces(api: Api, settings: Settings) -> list[str]:
    """The Role of an operator for one namespace is there; which one it was, its name tells."""
    removed = []
    for kind in (RoleBinding, Role):
        with api.asking():
            found: list[Any] = list(
                api.client.list(kind, namespace="*", labels={"app.kubernetes.io/name": NAME})
            )
        for each in found:
            metadata = each.metadata
            if metadata is None or metadata.name != global_name(settings):
                continue
            with api.asking():
                api.client.delete(kind, str(metadata.name), namespace=metadata.namespace)
            removed.append(f"{kind.__name__} {metadata.name} in {metadata.namespace}")
    return removed


def existing_clusters(api: Api) -> list[str]:
    """``NAMESPACE/NAME`` of all clusters in all namespaces."""
    try:
        with api.asking():
            found = list(api.client.list(PostgresClusterResource, namespace="*"))
    except (NotInstalled, NotFound):
        return []
    return sorted(f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in found)


def other_installations(api: Api, settings: Settings) -> list[str]:
    """Namespaces of other operators in the same Kubernetes cluster."""
    return sorted(_others(api, settings))


def _others(api: Api, settings: Settings) -> dict[str, str]:
    """Where the other operators are, and the namespace that each looks after; empty: all."""
    with api.asking():
        found = list(api.client.list(Deployment, namespace="*", labels={"app.kubernetes.io/name": NAME}))
    there = {str(each.metadata.namespace): _watched(each) for each in found if each.metadata}
    return {namespace: watched for namespace, watched in there.items() if namespace != settings.namespace}


def _watched(deployment: Deployment) -> str:
    pod = deployment.spec.template.spec if deployment.spec else None
    variables = [each for container in (pod.containers if pod else ()) for each in container.env or ()]
    return next((each.value or "" for each in variables if each.name == WATCHED), "")


def _require_alone(api: Api, settings: Settings) -> None:
    """The lease that keeps two from working at once is of one installation.

    :raises BadInput: another operator looks after the same clusters
    """
    for other, watched in sorted(_others(api, settings).items()):
        if not watched or not settings.watch_namespace or watched == settings.watch_namespace:
            what = f"namespace {watched}" if watched else "all namespaces"
            raise BadInput(
                f"the operator in namespace {other} looks after {what}, and two would work on the same clusters at"
                f" once: bring that one up to date ('pgherd install -n {other}'), take it away ('pgherd uninstall -n"
                f" {other} --keep-clusters --yes'), or have each look after a namespace of its own"
                " (--watch-namespace)"
            )


def _delete(api: Api, manifest: Manifest) -> bool:
    try:
        with api.asking():
            api.client.delete(_resource(manifest), manifest["metadata"]["name"], **_where(manifest))
    except NotFound:
        return False
    return True
