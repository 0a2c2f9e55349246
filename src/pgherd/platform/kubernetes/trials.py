"""Could a member run in what is declared now? A pod of no consequence finds out before the member's own goes. Pure.

It has the new image, node selector, tolerations and rights, asks the member's node for what the new resources are more
than the old ones, looks for the programs that it would need, and ends. A member alone has nobody who could take its
place, and its volume may be bound to its node: it is moved by way of a standby, not by a guess. A standby that is
declared to move elsewhere, or that never ran in what it has, is its own trial.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pgherd.model.spec import PostgresCluster, parse_bytes, parse_cpu
from pgherd.model.topology import Member
from pgherd.platform.base import MemberView
from pgherd.platform.kubernetes import names, patroni_files, views
from pgherd.platform.kubernetes.advice import advised

Object = Mapping[str, Any]

TRIAL_LABEL = f"{names.DOMAIN}/trial"
"""on a trial: the member for which it is made"""
MARK = f"{names.DOMAIN}/trial-of"
"""annotation of a trial: what is tried where"""
MEMORY_LIMIT = "64Mi"
"""of the trial itself"""

NOT_THERE = 2
ELSEWHERE = "standbys, which may run elsewhere"

SCRIPT = f"""\
for file in @FILES@; do
    if [ ! -e "$file" ]; then
        echo "this image can not run a member: it has no $file" > /dev/termination-log
        exit {NOT_THERE}
    fi
done
command -v patroni > /dev/null || {{ echo "this image has no patroni" > /dev/termination-log; exit {NOT_THERE}; }}
"""


def trial_name(member: Member) -> str:
    """Name of the pod that tries for this member."""
    return f"{member.name}-trial"


def find(member: Member, pods: Sequence[Object]) -> tuple[Object | None, Object | None]:
    """The member's own pod, and its trial, among these."""
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    return by_name.get(member.name), by_name.get(trial_name(member))


def mark(pod: Object, template: Object) -> str:
    """What is tried, and where: another template or another node needs another trial."""
    return f"{views.template_of(template)} on {pod['spec'].get('nodeName')}"


def is_over(pods: Sequence[Object], trial: Object, templates: Mapping[str, Object]) -> bool:
    """Whether a trial's answer is of no use any more.

    :param templates: by StatefulSet
    """
    member = str(trial["metadata"]["labels"][TRIAL_LABEL])
    pod = next((pod for pod in pods if pod["metadata"]["name"] == member), None)
    template = templates.get(member.rpartition("-")[0])
    if pod is None or template is None or views.template_of(pod) == views.template_of(template):
        return True
    failed = (trial.get("status") or {}).get("phase") == "Failed" and _exit_code(trial) not in (0, NOT_THERE)
    return failed or _mark_of(trial) != mark(pod, template)


def _mark_of(trial: Object) -> str | None:
    found = (trial["metadata"].get("annotations") or {}).get(MARK)
    return str(found) if found else None


def verdict(
    pod: Object | None, template: Object, trial: Object | None, *, alone: bool
) -> tuple[bool | None, str]:
    """Whether the member could run as declared (None: nobody knows yet), and what stands in the way.

    :param alone: the group has no other member
    """
    if pod is None or not _has_run(pod):
        return True, ""
    if not alone and (pod["spec"].get("nodeSelector") or {}) != (template["spec"].get("nodeSelector") or {}):
        return True, ""
    if trial is None or _mark_of(trial) != mark(pod, template):
        return None, ""
    code = _exit_code(trial)
    if code == 0:
        return True, ""
    return (False if code == NOT_THERE else None), _complaint(trial, str(pod["spec"].get("nodeName")))


def _exit_code(trial: Object) -> int | None:
    """How it ended; None while it has not, and when its node turned it away: it has found out nothing then."""
    for status in views.container_statuses(trial):
        if ended := (status.get("state") or {}).get("terminated"):
            return int(ended.get("exitCode", -1))
    return None


def _complaint(trial: Object, node: str) -> str:
    said = views.why_not(trial)
    if said.partition(":")[0] in ("ContainerCreating", "PodInitializing"):
        return ""
    if lacking := re.search(r"Insufficient \S+", said):
        return f"{lacking[0].rstrip(',.')} on its node {node}: declare smaller resources, or {ELSEWHERE}"
    if said.startswith("Unschedulable"):
        why = "nodeSelector or tolerations leave it out, or it is cordoned"
        return f"its node {node} takes no such pod, {why}: change that, or declare {ELSEWHERE}"
    return advised(said)


def _has_run(pod: Object) -> bool:
    """It ran, as it is: what keeps it from running now may pass."""
    return any(
        not {"running", "terminated"}.isdisjoint(status.get("state") or {})
        or "terminated" in (status.get("lastState") or {})
        for status in views.container_statuses(pod)
    )


def trial_pod(
    cluster: PostgresCluster, member: Member, pod: Object, template: Object, major: int
) -> dict[str, Any]:
    """The trial.

    :param pod: the member's own, which goes on
    :param template: what it is to be replaced by
    :param major: PostgreSQL's version in the new image
    """
    spec = template["spec"]
    old, container = (
        next(each for each in made["containers"] if each["name"] == names.CONTAINER)
        for made in (pod["spec"], spec)
    )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": trial_name(member),
            "labels": {**names.labels(cluster.metadata.name), TRIAL_LABEL: member.name},
            "annotations": {MARK: mark(pod, template)},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **{key: spec[key] for key in ("securityContext", "nodeSelector", "tolerations") if key in spec},
            "affinity": _on_node(pod["spec"]["nodeName"]),
            "containers": [
                {
                    "name": names.CONTAINER,
                    "image": container["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/bin/sh", "-c", script(cluster, major)],
                    "resources": _more(old.get("resources") or {}, container.get("resources") or {}),
                    "securityContext": container["securityContext"],
                }
            ],
        },
    }


def script(cluster: PostgresCluster, major: int) -> str:
    """What the trial looks for."""
    program = f"/usr/lib/postgresql/{major}/bin/postgres"
    return SCRIPT.replace("@FILES@", " ".join([program, *patroni_files.required_files(cluster, major)]))


def _on_node(node: str) -> dict[str, Any]:
    here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [here]}}}


def _more(old: Object, new: Object) -> dict[str, Any]:
    """What the new pod asks of the node beyond what its predecessor leaves there."""
    before, after = old.get("requests") or {}, new.get("requests") or {}
    cpu = parse_cpu(str(after.get("cpu", "0"))) - parse_cpu(str(before.get("cpu", "0")))
    memory = parse_bytes(str(after.get("memory", "0"))) - parse_bytes(str(before.get("memory", "0")))
    requests = {"cpu": f"{max(cpu, 1)}m", "memory": str(max(memory, 1))}
    return {"requests": requests, "limits": {"memory": str(max(memory, parse_bytes(MEMORY_LIMIT)))}}


def with_verdict(
    view: MemberView,
    found: Mapping[str, MemberView],
    pods: Sequence[Object],
    templates: Mapping[str, Object],
) -> MemberView:
    """What a trial said of an outdated member."""
    template = templates.get(view.member.scope)
    if not view.outdated or template is None:
        return view
    pod, trial = find(view.member, pods)
    alone = sum(1 for other in found.values() if other.member.group == view.member.group) == 1
    tried, obstacle = verdict(pod, template, trial, alone=alone)
    return replace(view, tried=tried, obstacle=obstacle)
