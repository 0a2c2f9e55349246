"""Could a member run in what is declared now? A pod of no consequence finds out before the member's own goes. Pure.

It has the new image, node selector, tolerations and rights, the members' account and labels, keeps the distance from
the other members of its group that is declared, looks for the programs and libraries that it would need, and ends. It
begins on the member's own node, which it asks for what the new resources are more than the old ones: what the member
has there comes free when it goes.
If that node takes no such pod, a second one asks all others to which the member's volume can follow, for everything.
What a member can't have is its trial's to find out: a standby that waits for a node protects nobody.

A member alone has nobody who could take its place, and is not sent elsewhere: it is moved by way of a standby. One that
never ran in what it has needs no trial.
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pgherd.model.spec import PostgresCluster, parse_bytes, parse_cpu
from pgherd.model.topology import Member
from pgherd.platform.base import MemberView
from pgherd.platform.kubernetes import first_parameters, names, patroni_files, views, volumes
from pgherd.platform.kubernetes import pods as member_pods
from pgherd.platform.kubernetes.advice import advised

Object = Mapping[str, Any]

TRIAL_LABEL = f"{names.DOMAIN}/trial"
"""on a trial: the member for which it is made"""
MARK = f"{names.DOMAIN}/trial-of"
"""annotation of a trial: what is tried for whom"""
POD_NAME = "statefulset.kubernetes.io/pod-name"
"""label that Kubernetes puts on the pods of a StatefulSet"""
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
MEMORY_LIMIT = "64Mi"
"""of the trial itself"""

NOT_THERE = 2
WITH_STANDBYS = "standbys, which may run elsewhere"
BOUND = (
    "its volume is bound to where it is: to have it elsewhere, declare one more standby, "
    "then delete this one's volume claim and pod"
)

SCRIPT = f"""\
for file in @FILES@; do
    if [ ! -e "$file" ]; then
        echo "this image can not run a member: it has no $file" > /dev/termination-log
        exit {NOT_THERE}
    fi
done
command -v patroni > /dev/null || {{ echo "this image has no patroni" > /dev/termination-log; exit {NOT_THERE}; }}
"""


class Where(enum.Enum):
    """On which nodes a trial may start."""

    HERE = "-trial"
    """on the member's own"""
    ELSEWHERE = "-trial-elsewhere"
    """wherever the member may go with its volume"""


@dataclass(frozen=True)
class Case:
    """A member, and what was found out for it.

    :param pod: its own
    :param others: the pods of its group's other members
    :param crowded: a member of the cluster finds no place, so that none is to be taken for a trial
    :param made: its trials
    """

    member: Member
    template: Object
    pod: Object | None
    others: Sequence[Object]
    crowded: bool
    made: Mapping[Where, Object]

    @property
    def apart(self) -> list[str]:
        """Other members that demand a distance until they are replaced themselves, which is not declared any more."""
        if _required(self.template):
            return []
        return sorted(other["metadata"]["name"] for other in self.others if _shuns(other, self.template))

    def mark(self, where: Where) -> str:
        """What a trial tries: another template, another node of the member's, other neighbours need another one."""
        node = self.pod["spec"].get("nodeName") if self.pod is not None else None
        apart = f" apart from {', '.join(self.apart)}" if where is Where.ELSEWHERE and self.apart else ""
        return f"{views.template_of(self.template)} on {node}{apart}"

    def valid(self, where: Where) -> Object | None:
        """The trial there, if it tries just this."""
        trial = self.made.get(where)
        return trial if trial is not None and _mark_of(trial) == self.mark(where) else None


def names_of(member: Member) -> list[str]:
    """Names of the pods that may be trying for this member."""
    return [trial_name(member, where) for where in Where]


def trial_name(member: Member, where: Where = Where.HERE) -> str:
    """Name of the pod that tries for this member."""
    return f"{member.name}{where.value}"


def case(member: Member, pods: Sequence[Object], template: Object) -> Case:
    """That of a member among the pods of its cluster.

    :param template: what its pod is to be made of
    """
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    members = {
        found: pod for name, pod in by_name.items() if (found := names.member_of(member.cluster, name))
    }
    return Case(
        member,
        template,
        by_name.get(member.name),
        [pod for found, pod in members.items() if found.group == member.group and found != member],
        any(views.finds_no_place(pod) for pod in members.values()),
        {where: by_name[name] for where in Where if (name := trial_name(member, where)) in by_name},
    )


def is_over(pods: Sequence[Object], trial: Object, templates: Mapping[str, Object], asked: str) -> bool:
    """Whether a trial's answer is of no use any more, or not worth the room that it takes.

    :param templates: by StatefulSet
    :param asked: the script as it would be now
    """
    labels = trial["metadata"]["labels"]
    member = names.member_of(str(labels.get(names.CLUSTER_LABEL)), str(labels[TRIAL_LABEL]))
    template = templates.get(member.scope) if member is not None else None
    if member is None or template is None:
        return True
    now = case(member, pods, template)
    where = next((each for each in Where if trial_name(member, each) == trial["metadata"]["name"]), None)
    if now.pod is None or where is None or views.template_of(now.pod) == views.template_of(template):
        return True
    failed = (trial.get("status") or {}).get("phase") == "Failed" and _exit_code(trial) not in (0, NOT_THERE)
    if failed or now.valid(where) is None or "deletionTimestamp" in trial["metadata"]:
        return True
    if _asked(trial) != asked:
        return True
    return where is Where.ELSEWHERE and (_is_in_the_way(now, trial) or _is_needless(now))


def _is_in_the_way(now: Case, trial: Object) -> bool:
    """It has a place and has not ended, for want of an image may be, and a member needs one."""
    return now.crowded and bool(trial["spec"].get("nodeName")) and _exit_code(trial) is None


def _is_needless(now: Case) -> bool:
    here = now.made.get(Where.HERE)
    return here is not None and not views.finds_no_place(here)


def _asked(trial: Object) -> object:
    return next(
        each["command"][-1] for each in trial["spec"]["containers"] if each["name"] == names.CONTAINER
    )


def _mark_of(trial: Object) -> str | None:
    found = (trial["metadata"].get("annotations") or {}).get(MARK)
    return str(found) if found else None


def due(now: Case) -> Where | None:
    """The trial that is to be made next."""
    if now.pod is None:
        return None
    if Where.HERE not in now.made:
        return Where.HERE
    here = now.valid(Where.HERE)
    wanted = here is not None and views.finds_no_place(here) and now.others and not now.crowded
    return Where.ELSEWHERE if wanted and Where.ELSEWHERE not in now.made else None


def verdict(now: Case) -> tuple[bool | None, str]:
    """Whether the member could run as declared (None: nobody knows yet), and what stands in the way."""
    if now.pod is None or not _has_run(now.pod) or first_parameters.is_refused(now.pod):
        return True, ""
    trial = now.valid(Where.HERE)
    moves = trial is not None and bool(now.others) and views.finds_no_place(trial)
    if moves:
        trial = now.valid(Where.ELSEWHERE)
    if trial is None:
        return None, ""
    code = _exit_code(trial)
    if code == 0:
        return True, ""
    said = _complaint(trial, None if moves else str(now.pod["spec"].get("nodeName")))
    return (False if code == NOT_THERE else None), said


def _exit_code(trial: Object) -> int | None:
    """How it ended; None while it has not, and when its node turned it away: it has found out nothing then."""
    for status in views.container_statuses(trial):
        if ended := (status.get("state") or {}).get("terminated"):
            return int(ended.get("exitCode", -1))
    return None


def _complaint(trial: Object, node: str | None) -> str:
    """What keeps a trial from its end.

    :param node: the only one on which it may start
    """
    said = views.why_not(trial)
    if said.partition(":")[0] in ("ContainerCreating", "PodInitializing"):
        return ""
    if not views.finds_no_place(trial):
        return advised(said)
    if node is None:
        bound = "nodeAffinity" in trial["spec"]["affinity"]
        words = advised(said.removeprefix("Unschedulable: "))
        return f"no node takes it, {words}" + (f"; {BOUND}" if bound else "")
    if lacking := re.search(r"Insufficient \S+", said):
        return f"{lacking[0].rstrip(',.')} on its node {node}: declare smaller resources, or {WITH_STANDBYS}"
    why = "nodeSelector or tolerations leave it out, or it is cordoned"
    return f"its node {node} takes no such pod, {why}: change that, or declare {WITH_STANDBYS}"


def _has_run(pod: Object) -> bool:
    """It ran, as it is: what keeps it from running now may pass."""
    return any(
        not {"running", "terminated"}.isdisjoint(status.get("state") or {})
        or "terminated" in (status.get("lastState") or {})
        for status in views.container_statuses(pod)
    )


def trial_pod(
    cluster: PostgresCluster, now: Case, where: Where, major: int, reach: Sequence[Object] = ()
) -> dict[str, Any]:
    """The trial.

    :param now: its member has a pod, which goes on
    :param major: PostgreSQL's version in the new image
    :param reach: terms of which a node has to meet one for the member's volume to be used there; none: any node will do
    """
    assert now.pod is not None
    spec = now.template["spec"]
    old, container = (
        next(each for each in made["containers"] if each["name"] == names.CONTAINER)
        for made in (now.pod["spec"], spec)
    )
    resources = container.get("resources") or {}
    # Of the member's account, for its pull secrets and what policies say of it.
    asked = ["serviceAccountName", "securityContext", "nodeSelector", "tolerations"]
    if where is Where.HERE:
        resources = _more(old.get("resources") or {}, resources)
        reach = [{"matchFields": [_is_node(now.pod["spec"]["nodeName"])]}]
    else:
        asked.append("topologySpreadConstraints")
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": trial_name(now.member, where),
            "labels": {
                **cluster.metadata.labels,
                **names.labels(cluster.metadata.name),
                TRIAL_LABEL: now.member.name,
            },
            "annotations": {MARK: now.mark(where)},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **{key: spec[key] for key in asked if key in spec},
            "affinity": {**_on_nodes(reach), **_distance(now, where)},
            "containers": [
                {
                    "name": names.CONTAINER,
                    "image": container["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/bin/sh", "-c", script(cluster, major)],
                    "resources": resources,
                    "securityContext": container["securityContext"],
                }
            ],
        },
    }
    if claims := volumes.mounted(spec):
        # Whether its node can have them is found out, too.
        made["spec"]["volumes"], made["spec"]["containers"][0]["volumeMounts"] = [], []
        member_pods.mount_claims(made["spec"], claims)
    return made


def script(cluster: PostgresCluster, major: int) -> str:
    """What the trial looks for."""
    program = f"/usr/lib/postgresql/{major}/bin/postgres"
    preloaded = patroni_files.preloaded(cluster.spec.postgres.parameters, major)
    files = [
        program,
        *patroni_files.required_files(cluster, major),
        *(f"{path}.so" for _, _, path in preloaded),
    ]
    return SCRIPT.replace("@FILES@", shlex.join(files))


def _is_node(name: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": "In", "values": [name]}


def _on_nodes(terms: Sequence[Object]) -> dict[str, Any]:
    if not terms:
        return {}
    required = {"nodeSelectorTerms": [dict(term) for term in terms]}
    return {"nodeAffinity": {_REQUIRED: required}}


def _distance(now: Case, where: Where) -> dict[str, Any]:
    """How far from whom the member has to be; not from itself, which still is where it is."""
    terms = [_but_for(now.member, term) for term in _required(now.template)]
    if where is Where.ELSEWHERE:
        # What a pod that is there demanded when it was made holds for whoever comes.
        terms += [
            {"topologyKey": term["topologyKey"], "labelSelector": _pod_name("In", other["metadata"]["name"])}
            for other in now.others
            if other["metadata"]["name"] in now.apart
            for term in _shuns(other, now.template)
        ]
    return {"podAntiAffinity": {_REQUIRED: terms}} if terms else {}


def _required(pod: Object) -> Sequence[Object]:
    """The distance that a pod demands, of those who have some labels."""
    found = ((pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}).get(_REQUIRED)
    return [term for term in found or () if (term.get("labelSelector") or {}).get("matchLabels")]


def _shuns(pod: Object, template: Object) -> list[Object]:
    """The distance that a pod demands of those that are made of this template."""
    labels = template["metadata"]["labels"].items()
    return [term for term in _required(pod) if term["labelSelector"]["matchLabels"].items() <= labels]


def _but_for(member: Member, term: Object) -> dict[str, Any]:
    return {**term, "labelSelector": {**term["labelSelector"], **_pod_name("NotIn", member.name)}}


def _pod_name(operator: str, name: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": POD_NAME, "operator": operator, "values": [name]}]}


def _more(old: Object, new: Object) -> dict[str, Any]:
    """What the new pod asks of the node beyond what its predecessor leaves there."""
    before, after = old.get("requests") or {}, new.get("requests") or {}
    cpu = parse_cpu(str(after.get("cpu", "0"))) - parse_cpu(str(before.get("cpu", "0")))
    memory = parse_bytes(str(after.get("memory", "0"))) - parse_bytes(str(before.get("memory", "0")))
    requests = {"cpu": f"{max(cpu, 1)}m", "memory": str(max(memory, 1))}
    return {"requests": requests, "limits": {"memory": str(max(memory, parse_bytes(MEMORY_LIMIT)))}}


def with_verdict(
    view: MemberView,
    pods: Sequence[Object],
    templates: Mapping[str, Object],
    hint: views.Hint = lambda name, uid: "",
) -> MemberView:
    """What a trial said of an outdated member.

    :param hint: the newest warning about an object, by name and uid
    """
    template = templates.get(view.member.scope)
    if not view.outdated or template is None:
        return view
    now = case(view.member, pods, template)
    tried, obstacle = verdict(now)
    if tried is None and not obstacle and (waiting := _without_volume(now)) is not None:
        obstacle = hint(waiting["metadata"]["name"], waiting["metadata"].get("uid", ""))
    return replace(view, tried=tried, obstacle=obstacle)


def _without_volume(now: Case) -> Object | None:
    """A trial that has a place, and does not start: the volume of the repository may not be had there."""
    for trial in filter(None, map(now.valid, Where)):
        if trial["spec"].get("nodeName") and volumes.mounted(trial["spec"]) and _exit_code(trial) is None:
            return trial
    return None
