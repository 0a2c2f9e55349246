"""The pods that hold repositories' volumes for the operator (``volumes``): made when somebody asks, and let go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pgherd.errors import NoSuchCluster, PgherdError, Refused, Unavailable, Withheld
from pgherd.model.spec import PostgresCluster
from pgherd.platform.kubernetes import names, views, volumes
from pgherd.platform.kubernetes.api import POD, STATEFUL_SET, VOLUME_CLAIM, Object
from pgherd.platform.kubernetes.cluster_objects import service_account
from pgherd.platform.kubernetes.ensure import owned
from pgherd.platform.kubernetes.events import Hints
from pgherd.platform.kubernetes.machines import PodMachine, wait_until

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

CLAIM_SECONDS = 5.0
"""how long the look at somebody's claim is good"""
START_SECONDS = 20.0
"""how long a pod may take to run until somebody is told why it does not"""


class Holders:
    """Those of one namespace. Safe to share between threads."""

    def __init__(self, platform: KeepsBackups) -> None:
        self._platform = platform
        self._claims: dict[str, tuple[Object | None, float]] = {}
        self._hints: Hints | None = None

    def claim_to_mount(self, cluster: PostgresCluster, group: int) -> str | None:
        """The claim that a group's members are to name; None: none, or it can't be used.

        :raises PgherdError: nobody can tell: what is named now stays
        """
        backup = cluster.spec.backup
        claim = volumes.claim_of(backup.repository) if backup is not None else None
        if claim is None:
            return None
        found = self._claim(claim)
        # Were a claim that is being deleted let go, what is on it would be gone at once.
        stays = volumes.is_going(found) and claim in self._named(cluster.metadata.name, group)
        return claim if stays or volumes.is_usable(found) else None

    def _named(self, cluster: str, group: int) -> set[str]:
        """The claims that a group has, or would have."""
        made_of = self._platform.look_up(STATEFUL_SET, names.group_object(cluster, group))
        specs = [made_of["spec"]["template"]["spec"]] if made_of is not None else []
        # A StatefulSet is away for a moment when it is made anew around its pods, or after a member was stopped.
        for pod in self._platform.pods(cluster):
            member = names.member_of(cluster, pod["metadata"]["name"])
            if member is not None and member.group == group:
                specs.append(pod["spec"])
        return {claim for spec in specs for claim in volumes.mounted(spec)}

    def is_usable(self, claim: str) -> bool:
        """Whether a pod that names a claim starts."""
        return volumes.is_usable(self._claim(claim))

    def require_usable(self, claim: str) -> None:
        """The same; asked.

        :raises Unavailable: it does not start yet, and why
        """
        self._claims.pop(claim, None)
        found = self._claim(claim)
        if not volumes.is_usable(found):
            problem = volumes.problem(claim, self._platform.namespace, found)
            raise Unavailable(
                problem
                or f"{volumes.WHERE}: PersistentVolumeClaim {claim} is not bound yet: it is waited for"
            )

    def require(self, claim: str) -> None:
        """:raises Refused: a claim can't be used, and why"""
        if problem := volumes.problem(claim, self._platform.namespace, self._claim(claim)):
            raise Refused(problem)

    def machine(self, cluster: str, claim: str) -> PodMachine:
        """The pod that holds a claim for a cluster; it is made if it is not there.

        :raises NoSuchCluster: that is being deleted
        :raises Refused: the claim can't be used
        :raises Withheld: the pod does not run yet, and why
        """
        self.require(claim)
        platform, name = self._platform, volumes.holder_name(cluster, claim)
        pod, owner = platform.look_up(POD, name), platform.resource_of(cluster)
        if pod is None or not self._serves(pod) or not _goes_with(pod, owner):
            try:
                wait_until(
                    lambda: self._is_set_up(cluster, claim), lambda: self._why_not(name, claim), START_SECONDS
                )
            except NoSuchCluster:
                raise
            except PgherdError as error:
                raise Withheld(str(error)) from error
        return PodMachine(platform.reach, name, platform.major(cluster))

    def tidy(self, cluster: str) -> None:
        """Let those go that have ended."""
        platform = self._platform
        for pod in platform.pods(cluster):
            if volumes.HOLDER_LABEL in pod["metadata"]["labels"] and volumes.has_ended(pod):
                platform.api.delete_this(POD, platform.namespace, pod)

    def _claim(self, name: str) -> Object | None:
        """It is somebody's own, and not watched."""
        known = self._claims.get(name)
        if known is None or time.monotonic() - known[1] > CLAIM_SECONDS:
            platform = self._platform
            known = (platform.api.get(VOLUME_CLAIM, platform.namespace, name), time.monotonic())
            self._claims[name] = known
        return known[0]

    def _pod(self, name: str) -> Object | None:
        return self._platform.api.get(POD, self._platform.namespace, name)

    def _serves(self, pod: Object) -> bool:
        return (
            views.is_running(pod)
            and "deletionTimestamp" not in pod["metadata"]
            and self._platform.silent_node(pod) is None
        )

    def _is_set_up(self, cluster: str, claim: str) -> bool:
        """Whether the pod runs; it is made if it is not there, and let go if it is of no use any more."""
        platform, name = self._platform, volumes.holder_name(cluster, claim)
        owner = platform.resource_of(cluster)
        if "deletionTimestamp" in owner["metadata"]:
            raise NoSuchCluster(f"{cluster} is being deleted")
        declared, pod = platform.declaration(cluster).cluster, self._pod(name)
        wanted = volumes.holder_pod(declared, claim, platform.image_of(declared))
        if pod is None:
            labels = {**declared.metadata.labels, **names.labels(cluster)}
            platform.put_owned(cluster, service_account(cluster, labels))
            platform.api.create(platform.namespace, owned(wanted, owner))
            return False
        if self._serves(pod) and _goes_with(pod, owner):
            return True
        if self._is_of_no_use(pod, wanted, owner):
            platform.end_pod(pod)
        return False

    def _is_of_no_use(self, pod: Object, wanted: Object, owner: Object) -> bool:
        """It will never run, or ran for another cluster of this name, or where nobody hears it."""
        return (
            volumes.has_ended(pod)
            or "deletionTimestamp" in pod["metadata"]
            or not _goes_with(pod, owner)
            or self._platform.silent_node(pod) is not None
            or (not views.is_running(pod) and views.template_of(pod) != views.template_of(wanted))
        )

    def _why_not(self, name: str, claim: str) -> str:
        try:
            pod, found = self._pod(name), self._claim(claim)
        except Unavailable as error:
            return f"{name} does not run yet: {error}"
        said = ""
        if pod is not None:
            node = self._platform.silent_node(pod)
            said = f"its node {node} does not report" if node else self._said(pod)
        unbound = "" if volumes.is_usable(found) else f"PersistentVolumeClaim {claim} is not bound yet; "
        return f"{volumes.WHERE}: {unbound}{name} does not run yet: {said or 'it is being made'}"

    def _said(self, pod: Object) -> str:
        """A volume that can't be mounted is told by an event only."""
        if self._hints is None:
            self._hints = Hints(self._platform.api, self._platform.namespace)
        told = self._hints.of(pod["metadata"]["name"], pod["metadata"].get("uid", ""))
        return told or views.why_not(pod)


def _goes_with(pod: Object, owner: Object) -> bool:
    owners = {each.get("uid") for each in pod["metadata"].get("ownerReferences") or []}
    return owner["metadata"]["uid"] in owners
