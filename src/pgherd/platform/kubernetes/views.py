"""From pods, volume claims and StatefulSets to members. Pure.

A member exists if it has a pod or a volume claim. It runs if its container does; while the cluster is being wound down
also if anything could still bring it to life, so that it counts as gone only when it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pgherd.model.topology import Endpoint, Member
from pgherd.platform.base import MemberView
from pgherd.platform.kubernetes import first_parameters, names, patroni_files, zone
from pgherd.platform.kubernetes.advice import advised

Object = Mapping[str, Any]
AnObject = TypeVar("AnObject", bound=Object)
Hint = Callable[[str, str], str]
Epochs = Callable[[int], int]
"""of each group"""


def members(
    cluster: str,
    namespace: str,
    *,
    pods: Sequence[Object],
    claims: Sequence[Object],
    sets: Sequence[Object],
    winding_down: bool,
    templates: Mapping[int, str],
    silent: Mapping[str, float],
    hint: Hint = lambda name, uid: "",
    put_together: Collection[Member] = (),
    epoch: Epochs = lambda group: 0,
    halted: Collection[int] = (),
) -> dict[str, MemberView]:
    """Every member that exists in any form, by name.

    :param winding_down: the cluster was told to stop or to go, or is restored in place
    :param templates: fingerprint of the pod template of each group as it should be
    :param hint: the newest warning about an object, by name and uid
    :param put_together: members whose data are still being made, and must not be any longer
    :param silent: nodes that don't report any more, and for how many seconds
    :param epoch: whose volumes are a group's own
    :param halted: groups of which nothing may run: other volumes are put in the place of theirs
    """
    by_pod = {
        member: pod
        for pod in pods
        if (member := names.member_of(cluster, pod["metadata"]["name"])) is not None
    }
    by_claim = claims_by_member(cluster, claims, epoch)
    by_scope = {each["metadata"]["name"]: each for each in sets}
    expected = _expected(cluster, sets)
    return {
        member.name: _view(
            member,
            namespace,
            by_pod.get(member),
            by_claim.get(member),
            member in put_together
            or ((winding_down or member.group in halted) and (member in expected or member in by_pod)),
            templates.get(member.group),
            silent,
            lambda obj: hint(obj["metadata"]["name"], obj["metadata"].get("uid", "")) if obj else "",
            by_scope.get(member.scope),
        )
        for member in sorted({*by_pod, *by_claim, *expected, *put_together})
    }


def claims_by_member(cluster: str, claims: Sequence[AnObject], epoch: Epochs) -> dict[Member, AnObject]:
    """Whose volume claims of each group's epoch there are: by their names, which nobody can change."""
    found = {}
    for claim in claims:
        own = names.claim_of(cluster, claim["metadata"]["name"])
        if own is not None and own[1] == epoch(own[0].group):
            found[own[0]] = claim
    return found


def templates(sets: Sequence[AnObject]) -> dict[str, Any]:
    """What pods are to be made of, by StatefulSet."""
    return {each["metadata"]["name"]: each["spec"]["template"] for each in sets}


def fingerprints(cluster: str, sets: Sequence[AnObject]) -> dict[int, str]:
    """The fingerprint of the pod template of each group."""
    return {
        group: template_of(each["spec"]["template"]) or ""
        for each in sets
        if (group := names.group_of(cluster, each["metadata"]["name"])) is not None
    }


def _expected(cluster: str, sets: Sequence[Object]) -> set[Member]:
    """Members that a StatefulSet would bring (back) to life."""
    members = set()
    for each in sets:
        for ordinal in range((each.get("spec") or {}).get("replicas") or 0):
            if member := names.member_of(cluster, f"{each['metadata']['name']}-{ordinal}"):
                members.add(member)
    return members


def _view(
    member: Member,
    namespace: str,
    pod: Object | None,
    claim: Object | None,
    held: bool,
    template: str | None,
    silent: Mapping[str, float],
    complaint: Callable[[Object | None], str],
    group_set: Object | None,
) -> MemberView:
    node = (pod["spec"].get("nodeName") or "") if pod is not None else ""
    lost = silent.get(node)
    host = names.host(member, zone.of(namespace))
    address = ((pod or {}).get("status") or {}).get("podIP") or host
    return MemberView(
        member,
        running=held or (pod is not None and is_running(pod)),
        has_data=claim is not None,
        postgres=Endpoint(host, names.POSTGRES_PORT),
        rest=Endpoint(address, names.REST_PORT),
        note=advised(_note(pod, claim, group_set, lost, held, complaint)),
        lost=lost,
        outdated=pod is not None and _is_outdated(pod, template, group_set),
        doomed=_doomed(pod, claim),
    )


def _doomed(pod: Object | None, claim: Object | None) -> str:
    """A claim that somebody deleted stays, and what is on its volume, for as long as a pod has it."""
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return ""
    if claim is None or "deletionTimestamp" not in claim["metadata"]:
        return ""
    return f"its volume claim {claim['metadata']['name']} is being deleted"


def _is_outdated(pod: Object, template: str | None, group_set: Object | None) -> bool:
    made_of = ((group_set or {}).get("spec") or {}).get("template")
    if made_of is not None and first_parameters.is_overtaken(pod, made_of):
        return True
    return template is not None and template_of(pod) != template


def _note(
    pod: Object | None,
    claim: Object | None,
    group_set: Object | None,
    lost: float | None,
    held: bool,
    complaint: Callable[[Object | None], str],
) -> str:
    """Why it does not run, or has not ended, from the cause that is nearest."""
    if pod is None:
        return complaint(group_set)
    if lost is not None:
        node = pod["spec"].get("nodeName")
        return f"its node {node} does not report any more{_way_out(node) if held else ''}"
    if is_running(pod):
        return ""
    unbound = claim is not None and (claim.get("status") or {}).get("phase") == "Pending"
    return (complaint(claim) if unbound else "") or why_not(pod)


def _way_out(node: str) -> str:
    """What ends a pod on a silent node, for which something waits."""
    return (
        f": bring it back, or once it is switched off for sure delete it with 'kubectl delete node {node}',"
        " or declare fencing: out-of-service"
    )


def sound_status(status: Any) -> dict[str, Any] | None:
    """A status without what is not of its shape: whoever may write it may have written anything."""
    if not isinstance(status, dict):
        return None
    shapes = {"phase": str, "groups": list, "errors": list, "conditions": list}
    sound: dict[str, Any] = {
        key: value for key, value in status.items() if isinstance(value, shapes.get(key, object))
    }
    sound["conditions"] = [each for each in sound.get("conditions", []) if _is_condition(each)]
    return sound or None


def _is_condition(found: Any) -> bool:
    fields = ("type", "status", "reason", "message", "lastTransitionTime")
    return isinstance(found, dict) and all(isinstance(found.get(field), str) for field in fields)


def is_ready(found: Object) -> bool:
    """Whether a pod or a node is ready, as its kubelet reports."""
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def doubtful_node(pod: Object) -> str | None:
    """The node of a pod that is not ready: it is worth a look."""
    if is_ready(pod):
        return None
    node = pod["spec"].get("nodeName")
    return str(node) if node else None


def finds_no_place(pod: Object) -> bool:
    """Whether the scheduler knows no node for a pod."""
    return not pod["spec"].get("nodeName") and any(
        (each.get("type"), each.get("status"), each.get("reason"))
        == ("PodScheduled", "False", "Unschedulable")
        for each in (pod.get("status") or {}).get("conditions") or []
    )


def patroni_state(pod: Object) -> str:
    """What a pod's Patroni noted on it last: the state of its PostgreSQL."""
    note = (pod["metadata"].get("annotations") or {}).get("status") or "{}"
    try:
        return str(json.loads(note).get("state", ""))
    except (ValueError, AttributeError):
        return ""


def container_statuses(pod: Object) -> list[Object]:
    """Of the member's own container: what others have put beside it says nothing about the member."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return [status for status in statuses if status.get("name") == names.CONTAINER]


def ended_at(pod: Object) -> datetime | None:
    """When its container ended, as its node reports, unless it was started again.

    :return: to the second, as Kubernetes notes it: it ended up to a second later
    """
    for status in container_statuses(pod):
        state, last = status.get("state") or {}, status.get("lastState") or {}
        ended = state.get("terminated") or ("waiting" in state and last.get("terminated"))
        if ended and ended.get("finishedAt"):
            return datetime.fromisoformat(ended["finishedAt"])
    return None


def template_of(pod: Object) -> str | None:
    """The fingerprint of the template that a pod was made of."""
    found = (pod["metadata"].get("annotations") or {}).get(names.TEMPLATE_ANNOTATION)
    return str(found) if found else None


def is_running(pod: Object) -> bool:
    """Its container runs, as far as its node reports."""
    return any("running" in (status.get("state") or {}) for status in container_statuses(pod))


def _complaint(detail: Object) -> str:
    """What a container said last, unless that is how a server ended that was told to."""
    said = str(detail.get("message") or "").strip()
    return "" if said.startswith(patroni_files.LAST_WORDS) else said


def why_not(pod: Object) -> str:
    """Why a pod's container does not run, in Kubernetes' words."""
    status = pod.get("status") or {}
    for container in container_statuses(pod):
        state = container.get("state") or {}
        # What the container itself said last is worth more than that it is started over and over.
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if "waiting" in state and _complaint(ended):
            return _complaint(ended)
        for kind in ("waiting", "terminated"):
            if detail := state.get(kind):
                return ": ".join(filter(None, (detail.get("reason"), _complaint(detail))))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    return "deleted" if pod["metadata"].get("deletionTimestamp") else ""
