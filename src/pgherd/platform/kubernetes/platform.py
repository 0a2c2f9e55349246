"""The Kubernetes platform: what :class:`~pgherd.platform.base.Platform` promises, by objects of one namespace."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pgherd.errors import NoSuchCluster, PgherdError
from pgherd.model.spec import PostgresCluster, to_mapping
from pgherd.model.topology import Credentials, Member
from pgherd.platform.base import Declaration, MemberView
from pgherd.platform.kubernetes import acceptance, drills, epochs, names, restore_pods, trials, views
from pgherd.platform.kubernetes.api import (
    CLUSTER,
    CONFIG_MAP,
    DISRUPTION_BUDGET,
    MANAGED,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    VOLUME_CLAIM,
    Api,
    Object,
)
from pgherd.platform.kubernetes.cache import Direct, Reader
from pgherd.platform.kubernetes.cluster_objects import cluster_objects
from pgherd.platform.kubernetes.ensure import Applier, all_done, owned
from pgherd.platform.kubernetes.events import Events, Hints
from pgherd.platform.kubernetes.fence import Fence
from pgherd.platform.kubernetes.first_parameters import questions
from pgherd.platform.kubernetes.group_objects import group_objects
from pgherd.platform.kubernetes.keeping import KeepsBackups, server_major
from pgherd.platform.kubernetes.nodes import Nodes
from pgherd.platform.kubernetes.opinions import Opinion, Opinions, Witnesses, ask
from pgherd.platform.kubernetes.reach import volume_reach
from pgherd.platform.kubernetes.trust import Trust
from pgherd.platform.kubernetes.upkeep import Upkeep
from pgherd.platform.kubernetes.wishes import is_purging, is_stopped, is_winding_down

logger = logging.getLogger(__name__)

DEFAULT_IMAGE = "localhost/pgherd-postgres:17"
STATUS_SECONDS = 30.0
"""how often a status that says nothing new is written all the same"""
PURGE_SECONDS = 5
"""how long a pod may take to end whose volume goes with it"""

NO_PASSWORDS = Credentials("", "", "", "")
ANYWHERE = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True)
class Defaults:
    """What the operator decides for all clusters.

    :param image: of members, unless the declaration names one
    """

    image: str = DEFAULT_IMAGE

    @classmethod
    def from_environment(cls) -> Defaults:
        """``PGHERD_POSTGRES_IMAGE``"""
        return cls(os.environ.get("PGHERD_POSTGRES_IMAGE") or DEFAULT_IMAGE)


class KubernetesPlatform(KeepsBackups):
    """The clusters of one namespace. Safe to share between threads.

    :param reader: where objects are looked up; left out: the API server is asked each time
    """

    name = "kubernetes"
    networks = ANYWHERE
    shared_machine = False
    tls = True
    calm_seconds = 5.0

    def __init__(
        self, api: Api, namespace: str, reader: Reader | None = None, defaults: Defaults | None = None
    ) -> None:
        super().__init__()
        self.api = api
        self.namespace = namespace
        self._reader: Reader = reader or Direct(api)
        self._defaults = defaults or Defaults.from_environment()
        self._applier = Applier(api, self._reader, self._put_back)
        self._events = Events(api)
        self._guard = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}
        self._parsed: dict[str, tuple[Any, Declaration]] = {}
        self._upkeep = Upkeep(
            api,
            namespace,
            self._reader,
            self._tell,
            silent_for=self.silent_for,
            rebuild=self.rebuild_member,
        )
        self._nodes = Nodes(api)
        self._fence = Fence(api)
        self._hints = Hints(api, namespace)
        self._trust = Trust(api, namespace, self._reader, announce=self._tell)
        self._written: dict[str, tuple[str, float]] = {}
        self._opinions = Opinions(partial(ask, self.reach))

    # declarations

    def clusters(self) -> Sequence[str]:
        """Names of all clusters, sorted."""
        return sorted(each["metadata"]["name"] for each in self.api.list(CLUSTER, self.namespace))

    def declaration(self, name: str) -> Declaration:
        """What was asked for.

        :raises NoSuchCluster: there is none of this name
        :raises BadInput: the resource holds what the schema can't refuse
        """
        return self._read(self.resource_of(name))

    def resource_of(self, name: str) -> Object:
        """The cluster's resource.

        :raises NoSuchCluster: there is none of this name
        """
        found = self._reader.get(CLUSTER, self.namespace, name)
        if found is None:
            raise NoSuchCluster(f"there is no cluster {name!r} in namespace {self.namespace}")
        return found

    def _read(self, found: Object) -> Declaration:
        metadata = found["metadata"]
        stopped = is_stopped(found)
        deleting = "deletionTimestamp" in metadata
        key = (metadata["uid"], metadata["generation"], stopped, deleting)
        known = self._parsed.get(metadata["name"])
        if known is not None and known[0] == key:
            return known[1]
        accepted = self._accepted(found, is_going=deleting)
        self._opinions.note(metadata["name"], accepted)
        declaration = Declaration(
            accepted.cluster,
            problems=accepted.problems,
            stopped=stopped,
            deleting=deleting,
            purge=is_purging(found),
            generation=metadata["generation"],
        )
        if stopped or not accepted.waits:
            self._parsed[metadata["name"]] = (key, declaration)
        return declaration

    def _accepted(self, found: Object, *, is_going: bool) -> Opinion:
        """What was declared, or if that can't be what was accepted last, and why.

        :raises BadInput: it can't be, and none was accepted before
        """
        name = found["metadata"]["name"]
        kept = self.kept_declaration(name)
        cluster, problems = acceptance.judge(found, kept)
        if problems and not self.api.list(VOLUME_CLAIM, self.namespace, names.selector(name)):
            cluster, problems = acceptance.judge(found, None)  # there are no data that it would have to fit
        elif not problems and not is_going and (before := acceptance.accepted_before(kept)) is not None:
            kinds = (POD, VOLUME_CLAIM, STATEFUL_SET)
            pods, claims, sets = (self._reader.of_cluster(kind, self.namespace, name) for kind in kinds)
            witnesses = Witnesses(pods, claims, views.templates(sets), self.image_of(cluster))
            return self._opinions.of(before, cluster, witnesses, server_major(cluster))
        return Opinion(cluster, problems)

    def kept_declaration(self, name: str) -> Object | None:
        """The config map with what was accepted last; asked for, as databases are made of what is said to fit it."""
        return self.api.get(CONFIG_MAP, self.namespace, names.accepted(name))

    def generation(self, name: str) -> int:
        """Which change of the declaration is the last one, whether it makes sense or not."""
        return int(self.resource_of(name)["metadata"]["generation"])

    def declare(self, cluster: PostgresCluster) -> None:
        """Create a cluster or change its declaration."""
        wanted = to_mapping(cluster)
        wanted["metadata"].pop("namespace", None)
        self.api.apply(self.namespace, wanted)

    def set_stopped(self, name: str, stopped: bool) -> None:
        """Ask for the members to be gone (data kept), or back."""
        patch = {"metadata": {"annotations": {names.STOPPED_ANNOTATION: "true" if stopped else None}}}
        if self.api.merge(CLUSTER, self.namespace, name, patch) is None:
            raise NoSuchCluster(f"there is no cluster {name!r} in namespace {self.namespace}")

    def set_deleting(self, name: str, *, purge: bool) -> None:
        """Ask for the cluster to be removed; with ``purge`` its data too."""
        self.resource_of(name)
        if purge:
            self.api.merge(CLUSTER, self.namespace, name, {"spec": {"deletionPolicy": "Delete"}})
        self.api.delete(CLUSTER, self.namespace, name)

    def forget(self, name: str, *, purge: bool) -> None:
        """Last act of a deletion, when all members are gone.

        Without ``purge`` what a new cluster of this name needs to find its data stays: the volumes, the passwords,
        Patroni's store, which knows who had everything that was acknowledged, and what was declared.

        :raises Unavailable: volumes that are to go are still in use
        """
        self.end_restore(name, purge=purge)
        kept = {
            (SECRET, names.credentials_secret(name)),
            (SECRET, names.authority_secret(name)),
            (CONFIG_MAP, names.accepted(name)),
            (CONFIG_MAP, names.recovery_state(name)),
            (CONFIG_MAP, names.repository_owner(name)),
        }
        for kind in reversed(MANAGED):
            for obj in self._reader.of_cluster(kind, self.namespace, name):
                if purge or (kind, obj["metadata"]["name"]) not in kept:
                    self.api.delete(kind, self.namespace, obj["metadata"]["name"])
        if purge:
            for obj in self.api.list(CONFIG_MAP, self.namespace, names.selector(name)):
                self.api.delete(CONFIG_MAP, self.namespace, obj["metadata"]["name"])
        self.leave(name)

    def leave(self, name: str) -> None:
        """Nothing is remembered of a cluster that is gone."""
        self._applier.forget(self.namespace, name)
        self._trust.forget(name)
        self._upkeep.forget(name)
        self._fence.forget(name)
        self._opinions.forget(name)
        for memory in (self._parsed, self._written, self._owners):
            memory.pop(name, None)
        with self._guard:
            self._locks.pop(name, None)

    def credentials(self, name: str) -> Credentials:
        """The cluster's passwords, made at the first call.

        :raises PgherdError: they were lost or damaged
        """
        try:
            return self._trust.credentials(name)
        except PgherdError:
            if not is_winding_down(self.resource_of(name)):
                raise
            return NO_PASSWORDS  # to stop or to go needs none

    def authority(self, name: str) -> str:
        """File of the cluster's own certificate authority.

        :raises PgherdError: it is damaged, or can't be made
        """
        try:
            return self._trust.authority_file(name)
        except PgherdError:
            if not is_winding_down(self.resource_of(name)):
                raise
            # As it was last, if at all: to stop or to go needs none, and where all goes none can be made any more.
            return names.authority_file(name, self.namespace)

    def connection_options(self, name: str) -> Mapping[str, str]:
        """Encrypted, to members whose names the cluster's own authority vouches for."""
        return {"sslmode": "verify-full", "sslrootcert": self.authority(name)}

    def read_status(self, name: str) -> dict[str, Any] | None:
        """The status written last, or None."""
        found = self._reader.get(CLUSTER, self.namespace, name)
        return views.sound_status((found or {}).get("status"))

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        """Publish the status. One that says nothing new is written now and then only."""
        full = {
            **status,
            "segments": sum(1 for group in status.get("groups", []) if group["id"]),
            "selector": f"{names.CLUSTER_LABEL}={name}",
        }
        news = json.dumps({**full, "observedAt": None}, sort_keys=True)
        said, at = self._written.get(name, ("", 0.0))
        if news == said and time.monotonic() - at < STATUS_SECONDS:
            return
        self.api.write_status(self.namespace, name, full)
        self._written[name] = (news, time.monotonic())

    # members

    def deletion(self, name: str) -> bool | None:
        """Whether the cluster is to be deleted, and its data with it."""
        found = self.resource_of(name)
        if "deletionTimestamp" not in found["metadata"]:
            return None
        return is_purging(found)

    def revision(self, name: str) -> object:
        """Grows with everything that is watched of the cluster and matters to it."""
        return self._reader.revision(self.namespace, name)

    def members(self, name: str) -> Mapping[str, MemberView]:
        """Every member that exists in any form (a pod, a volume), by member name."""
        resource = self._reader.get(CLUSTER, self.namespace, name)
        if resource is None:
            return {}
        winding_down = is_winding_down(resource)
        state = self.restored(name, resource, winding_down=winding_down)
        # Of what is put in place of these nothing may start before they are gone altogether.
        winding_down = winding_down or epochs.is_under_way(state)
        own, halted = self.own(name, state)
        sets = self._reader.of_cluster(STATEFUL_SET, self.namespace, name)
        pods_now = self._reader.of_cluster(POD, self.namespace, name)
        found = views.members(
            name,
            self.namespace,
            pods=pods_now,
            claims=self._reader.of_cluster(VOLUME_CLAIM, self.namespace, name),
            sets=sets,
            epoch=own.of,
            halted=halted,
            winding_down=winding_down,
            put_together=restore_pods.members_of(name, pods_now) if is_winding_down(resource) else (),
            templates=views.fingerprints(name, sets),
            hint=(lambda name, uid: "") if winding_down else self._hints.of,
            silent=self._nodes.silent({node for pod in pods_now if (node := views.doubtful_node(pod))}),
        )
        templates = views.templates(sets)
        said = self._hints.of
        return {each: trials.with_verdict(view, pods_now, templates, said) for each, view in found.items()}

    def start_member(self, cluster: PostgresCluster, member: Member, dcs_config: Mapping[str, Any]) -> None:
        """See to it that the member's group has everything, and enough replicas that it is among them."""
        with self._changing(member.cluster):
            own = self.settled(member.cluster, asked=True)
            self.require_not_halted(member)
            if not self._has_claims(member.cluster, member.group, own):
                self.require_never_founded(cluster, member.group, own.epoch)
                self.forget_store(cluster, member.group, own.epoch)
            self._ensure_cluster(cluster)
            replicas = max(self._replicas(member.cluster, member.group), member.ordinal + 1)
            self._ensure_group(cluster, member.group, replicas, dcs_config)

    def align(self, cluster: PostgresCluster, configs: Mapping[int, Mapping[str, Any] | None]) -> bool:
        """Bring what is around the members into line with the declaration; put back what somebody changed.

        :param configs: Patroni's dynamic configuration of each group that should be; None: nobody can say it now
        :return: whether anything was changed
        :raises PgherdError: something was refused, or waits; everything else was done
        """
        name = cluster.metadata.name
        with self._changing(name):
            halted = self.own(name, self.workshop(name).state_of(self.look_up(CLUSTER, name)))[1]
            present = [group for group in self._groups(name, configs) if group not in halted]
            chores = [partial(self._align_group, cluster, configs, group) for group in present]
            if present:
                chores.insert(0, partial(self._ensure_cluster, cluster))
            chores += [partial(self._end_trials, cluster), partial(self._remove_discarded, name)]
            if cluster.spec.fencing == "out-of-service":
                chores.append(partial(self._look_at_fence, name))
            changed = all_done(chores)
        if not changed:
            self._opinions.require_none_waits(name)
        return bool(changed)

    def _align_group(
        self, cluster: PostgresCluster, configs: Mapping[int, Mapping[str, Any] | None], group: int
    ) -> list[str]:
        name = cluster.metadata.name
        own = self.settled(name)
        if group not in configs:
            if not self._has_claims(name, group, own) and not self._has_pods(name, group):
                self._remove_group(cluster, group, own.epoch)
            return []
        replicas = self._replicas(name, group)
        config = configs[group]
        changed = [] if config is None else self._ensure_group(cluster, group, replicas, config)
        self._upkeep.group(cluster, group, replicas, own)
        return changed

    def _end_trials(self, cluster: PostgresCluster) -> list[str]:
        name, asked = cluster.metadata.name, trials.script(cluster, server_major(cluster))
        pods = self._reader.of_cluster(POD, self.namespace, name)
        templates = views.templates(self._reader.of_cluster(STATEFUL_SET, self.namespace, name))
        for pod in pods:
            is_trial = trials.TRIAL_LABEL in pod["metadata"]["labels"]
            if is_trial and trials.is_over(pods, pod, templates, asked):
                self.api.delete(POD, self.namespace, pod["metadata"]["name"], grace=0)
        return []

    def _remove_discarded(self, name: str) -> list[str]:
        self.holders.tidy(name)
        all_done([self.workshop(name).tidy, *(bench.tidy for bench in self.benches(name).values())])
        return []

    def _look_at_fence(self, name: str) -> list[str]:
        pods = self._reader.of_cluster(POD, self.namespace, name)
        self._fence.look(name, pods, lambda what: self.announce(name, what))
        return []

    def _changing(self, cluster: str) -> threading.RLock:
        """Held while what a cluster consists of is changed: its members are started side by side."""
        with self._guard:
            return self._locks.setdefault(cluster, threading.RLock())

    def stop_member(self, member: Member) -> None:
        """Ask a member's pod to go, and keep it from coming back. Returns at once."""
        self.api.delete(STATEFUL_SET, self.namespace, member.scope, orphan=True)
        for trial in trials.names_of(member):
            self.api.delete(POD, self.namespace, trial, grace=0)
        if is_winding_down(self.resource_of(member.cluster)):
            self.end_restore_pods(member.cluster, member)
        self._applier.removed(self.namespace, STATEFUL_SET, member.scope)
        # Whose data is destroyed anyway need not take its time for a last checkpoint.
        self._delete_pod(member, PURGE_SECONDS if self.deletion(member.cluster) else None)
        if self.resource_of(member.cluster)["spec"].get("fencing") == "out-of-service":
            # Before a restore in place all have to be gone, also those whose node is.
            self._look_at_fence(member.cluster)

    def try_member(self, cluster: PostgresCluster, member: Member) -> None:
        """Have a pod of no consequence start in what is declared now, where the member could."""
        made_of = self._reader.get(STATEFUL_SET, self.namespace, member.scope)
        if made_of is None:
            return
        pods = self._reader.of_cluster(POD, self.namespace, member.cluster)
        now = trials.case(member, pods, made_of["spec"]["template"])
        if now.pod is None or (where := trials.due(now)) is None:
            return
        bound = where is trials.Where.ELSEWHERE
        reach = volume_reach(self.api, self.namespace, now.pod) if bound else ()
        made = trials.trial_pod(cluster, now, where, server_major(cluster), reach)
        self.api.create(self.namespace, owned(made, self.resource_of(member.cluster)))

    def replace_member(self, member: Member) -> None:
        """Let a member's pod go, so that it comes back as declared."""
        self._delete_pod(member)

    def rebuild_member(self, member: Member) -> None:
        """Give a member that is lost with its node a new volume, and so a new place.

        Forgetting its pod also ends the rights of the old one, if it lives on a node that was only cut off: its
        token is bound to the pod that is gone, so that it can't touch Patroni's store any more.

        That it is lost was seen of a pod that may be gone by now: what took its place stays as it is.
        """
        seen = self._reader.get(POD, self.namespace, member.name)
        claim_name = names.volume_claim(member, self.settled(member.cluster, asked=True).of(member.group))
        claim = self.api.get(VOLUME_CLAIM, self.namespace, claim_name)
        pod = self.api.get(POD, self.namespace, member.name)
        if seen is None or pod is None or pod["metadata"]["uid"] != seen["metadata"]["uid"]:
            return
        if not self._nodes.silent({views.doubtful_node(pod) or ""}):
            return
        # The claim first: it goes when the pod has gone, so that whoever is killed in between does both again.
        if claim is not None:
            self.api.delete_this(VOLUME_CLAIM, self.namespace, claim)
        self.api.delete_this(POD, self.namespace, pod, grace=0)

    def _delete_pod(self, member: Member, grace: int | None = None) -> None:
        pod = self._reader.get(POD, self.namespace, member.name)
        if pod is None:
            self.api.delete(POD, self.namespace, member.name, grace=grace)
        elif "deletionTimestamp" not in pod["metadata"]:
            # The one that was seen, not one that took its place meanwhile.
            self.api.delete_this(POD, self.namespace, pod, grace=grace)

    def remove_member(self, member: Member) -> None:
        """Take a member out of its group, and its volume. Returns at once; both go when its pod has ended."""
        claim = names.volume_claim(member, self.settled(member.cluster, asked=True).of(member.group))
        with self._changing(member.cluster):
            if self._replicas(member.cluster, member.group) > member.ordinal:
                patch = {"spec": {"replicas": member.ordinal}}
                changed = self.api.merge(STATEFUL_SET, self.namespace, member.scope, patch)
                if changed is not None:
                    self._reader.put(STATEFUL_SET, changed)
        self.api.delete(VOLUME_CLAIM, self.namespace, claim)

    def announce(self, name: str, what: str, *, failed: bool = False) -> None:
        """Tell it as an Event of the cluster; the same one counts up."""
        found = self._reader.get(CLUSTER, self.namespace, name)
        if found is not None:
            # What goes wrong with a drill's scratch is told of the cluster whose backups it tries.
            self._events.tell(found, what, failed=failed and not drills.is_scratch(found))

    def _tell(self, name: str, what: str) -> None:
        """What was done without a step of the plan."""
        logger.info("%s: %s", name, what)
        self.announce(name, what)

    def free_bytes(self, member: Member) -> int | None:
        """Not known here: a volume's fill is known to its node only."""
        return None

    def logs(self, name: str, member: str | None, *, follow: bool) -> Iterator[str]:
        """Log lines of one member or, one after the other, of all."""
        wanted = [member] if member else sorted(self.members(name))
        for each in wanted:
            prefix = "" if member else f"{each}: "
            for line in self.api.client.log(each, namespace=self.namespace, follow=follow and bool(member)):
                yield prefix + line.rstrip("\n")

    # groups

    def _ensure_cluster(self, cluster: PostgresCluster) -> list[str]:
        name = cluster.metadata.name
        owner = self.resource_of(name)
        objects = cluster_objects(
            cluster, self.namespace, self.credentials(name), self._trust.authority(name)
        )
        # What was declared outlives the resource, as its volumes do: the next one must fit them.
        lasting = names.accepted(name)
        owned_ones = [
            obj if (obj["kind"], obj["metadata"]["name"]) == (CONFIG_MAP.name, lasting) else owned(obj, owner)
            for obj in objects
        ]
        if cluster.spec.backup is None:
            self.unequip(name, names.backup_secret(name))
        return self._applier.ensure(self.namespace, owned_ones)

    def _ensure_group(
        self, cluster: PostgresCluster, group: int, replicas: int, dcs_config: Mapping[str, Any]
    ) -> list[str]:
        owner, own = self.resource_of(cluster.metadata.name), self.settled(cluster.metadata.name)
        self.forget_endings(cluster.metadata.name, group)
        self._trust.ensure_certificate(cluster.metadata.name, group)
        objects = group_objects(
            cluster,
            group,
            namespace=self.namespace,
            replicas=replicas,
            image=self.image_of(cluster),
            server_major=server_major(cluster),
            dcs_config=dcs_config,
            epoch=own.epoch,
            volumes=own.of(group),
            first=questions(cluster, server_major(cluster), self.read_status(cluster.metadata.name)),
            repository=self.holders.claim_to_mount(cluster, group),
        )
        return self._applier.ensure(self.namespace, [owned(obj, owner) for obj in objects])

    def image_of(self, cluster: PostgresCluster) -> str:
        """What members run."""
        return cluster.spec.postgres.image or self._defaults.image

    def _put_back(self, obj: Mapping[str, Any], why: str) -> None:
        metadata = obj["metadata"]
        self._tell(
            metadata["labels"][names.CLUSTER_LABEL], f"restore {obj['kind']} {metadata['name']}: {why}"
        )

    def _groups(self, cluster: str, declared: Collection[int]) -> list[int]:
        """Groups of which something is there; of declared ones also what lost the label by which it is found."""
        sets = self._reader.of_cluster(STATEFUL_SET, self.namespace, cluster)
        found = {names.group_of(cluster, each["metadata"]["name"]) for each in sets}
        for group in declared:
            if self._reader.get(STATEFUL_SET, self.namespace, names.group_object(cluster, group)):
                found.add(group)
        # A StatefulSet may be away for a moment, to be made anew around its pods.
        found |= {member.group for member in self._with_pods(cluster)}
        return sorted(group for group in found if group is not None)

    def _with_pods(self, cluster: str) -> list[Member]:
        return _members(cluster, self._reader.of_cluster(POD, self.namespace, cluster))

    def _replicas(self, cluster: str, group: int) -> int:
        """How many members the group's StatefulSet has; while it is away as many as leave every pod where it is."""
        found = self._reader.get(STATEFUL_SET, self.namespace, names.group_object(cluster, group))
        if found is not None and "deletionTimestamp" not in found["metadata"]:
            return int(found["spec"].get("replicas") or 0)
        ordinals = (member.ordinal for member in self._with_pods(cluster) if member.group == group)
        return max(ordinals, default=-1) + 1

    def _has_claims(self, cluster: str, group: int, own: epochs.Own) -> bool:
        """Whether a group has claims: asked, not looked up, and by name, for a store is given up on it."""
        found = self.api.list(VOLUME_CLAIM, self.namespace)
        return any(member.group == group for member in views.claims_by_member(cluster, found, own.of))

    def _has_pods(self, cluster: str, group: int) -> bool:
        found = _members(cluster, self.api.list(POD, self.namespace))
        return any(member.group == group for member in found)

    def _remove_group(self, cluster: PostgresCluster, group: int, epoch: int) -> None:
        """Remove what a group without members has left."""
        name = names.group_object(cluster.metadata.name, group)
        for kind in (STATEFUL_SET, DISRUPTION_BUDGET, SERVICE, CONFIG_MAP):
            self.api.delete(kind, self.namespace, name)
            self._applier.removed(self.namespace, kind, name)
        self.api.delete(SECRET, self.namespace, names.tls_secret(cluster.metadata.name, group))
        self.forget_store(cluster, group, epoch)


def _members(cluster: str, objects: Sequence[Object]) -> list[Member]:
    """The members that pods are of."""
    found = (names.member_of(cluster, each["metadata"]["name"]) for each in objects)
    return [member for member in found if member is not None]
