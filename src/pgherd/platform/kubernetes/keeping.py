"""What of the platform has to do with backups, and with what they are restored to: volumes, Patroni's store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import secrets
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightkube import Client

from pgherd.errors import BadInput, NoSuchCluster, PgherdError, Refused, Unavailable
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.documents import schedule_from
from pgherd.model.spec import IMAGE_MAJOR, PostgresCluster, parse_cpu
from pgherd.model.topology import COORDINATOR, Member
from pgherd.platform.base import Owner, Platform
from pgherd.platform.bench import Ending
from pgherd.platform.kubernetes import drills, endings, epochs, names, rebuilt, restore_pods, views, volumes
from pgherd.platform.kubernetes.api import (
    CLUSTER,
    CONFIG_MAP,
    POD,
    SCHEDULE,
    SECRET,
    STATEFUL_SET,
    VOLUME_CLAIM,
    Api,
    Kind,
    Object,
    complete,
    explained,
    is_conflict,
    kind_of,
)
from pgherd.platform.kubernetes.bench import PodBench
from pgherd.platform.kubernetes.cache import Reader
from pgherd.platform.kubernetes.cluster_objects import decoded, files_secret
from pgherd.platform.kubernetes.ensure import Applier, owned
from pgherd.platform.kubernetes.holders import Holders
from pgherd.platform.kubernetes.machines import MemberMachines, wait_until
from pgherd.platform.kubernetes.nodes import Nodes
from pgherd.platform.kubernetes.notes import Notes
from pgherd.platform.kubernetes.places import DEAD_SECONDS
from pgherd.platform.kubernetes.workshop import PodWorkshop
from pgherd.platform.machine import Machines

STORE_PARTS = ("leader", "config", "sync", "failover")
"""Patroni's own config maps of a group"""
SECRET_SECONDS = 10.0
"""how long the look at somebody's Secret is good"""
OWNER_KEY, RESOURCE_KEY = "owner", "resource"
"""in the ConfigMap that says who a cluster is: its id, and for which resource that was drawn"""
CLAIM_SECONDS = 20.0
"""how long a deletion waits for volumes before it says what it waits for"""
_MILLI = 1000


def _goes_on_where_it_was_restored_from(cluster: PostgresCluster) -> bool:
    """Whether its backups are to go where it came from itself: then it knows which timelines there are."""
    source = cluster.spec.bootstrap.recovery if cluster.spec.bootstrap is not None else None
    backup = cluster.spec.backup
    return (
        source is not None
        and backup is not None
        and (source.cluster, source.repository) == (cluster.metadata.name, backup.repository)
    )


@dataclass(frozen=True)
class Reached:
    """The API and a namespace of it, for tunnels and programs."""

    api: Api
    namespace: str

    @property
    def url(self) -> str:
        """The API server's."""
        return str(self.client.config.cluster.server)

    @property
    def client(self) -> Client:
        """Who asks."""
        return self.api.client

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Errors become our own."""
        with explained("reach a pod"):
            yield


def schedule_of(resource: Object) -> PostgresBackupSchedule:
    """The schedule that a resource declares.

    :raises BadInput: it makes no sense; the API server does not know what a cron line means
    """
    name = resource["metadata"]["name"]
    plain = {
        "apiVersion": SCHEDULE.api_version,
        "kind": SCHEDULE.name,
        "metadata": {"name": name},
        "spec": resource.get("spec") or {},
    }
    return schedule_from(plain, source=name)


def server_major(cluster: PostgresCluster) -> int:
    """PostgreSQL's version in the members' image."""
    return cluster.spec.postgres.version or IMAGE_MAJOR


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


class KeepsBackups(Platform):
    """See the module; the rest is :class:`~pgherd.platform.kubernetes.platform.KubernetesPlatform`."""

    api: Api
    namespace: str
    _reader: Reader
    _applier: Applier
    _nodes: Nodes

    def __init__(self) -> None:
        self._secrets: dict[str, tuple[Object | None, float]] = {}
        self._owners: dict[str, tuple[str, str]] = {}
        self._drawing = threading.Lock()
        self.holders = Holders(self)

    # what the rest knows

    @abstractmethod
    def resource_of(self, name: str) -> Object:
        """The cluster's resource."""

    @abstractmethod
    def image_of(self, cluster: PostgresCluster) -> str:
        """What members run."""

    # backups

    @property
    def keeps_backups(self) -> bool:
        return True

    @property
    def reach(self) -> Reached:
        """The way to pods."""
        return Reached(self.api, self.namespace)

    def machines(self, name: str) -> Machines:
        """The members' pods."""
        backup = self.declaration(name).cluster.spec.backup
        claim = volumes.claim_of(backup.repository) if backup is not None else None
        return MemberMachines(self, name, self.major(name), self.processes(name), claim)

    def major(self, name: str) -> int:
        """PostgreSQL's version there."""
        return server_major(self.declaration(name).cluster)

    def processes(self, name: str) -> int:
        """How many programs may copy side by side: as many as a segment has cores."""
        cores = self.declaration(name).cluster.spec.segments.resources.cpu
        return max(1, math.ceil(parse_cpu(str(cores or "1")) / _MILLI))

    def workshop(self, name: str) -> PodWorkshop:
        """Where a new cluster is put together from a backup."""
        return PodWorkshop(self, name)

    def has_data_now(self, name: str) -> bool:
        """See :class:`~pgherd.platform.base.Platform`; the API server is asked, for what is watched may be a moment
        old, and of a cluster that had this name."""
        claims = self._claims_now(name)
        if going := sorted(_name(claim) for claim in claims if "deletionTimestamp" in claim["metadata"]):
            raise Unavailable(
                f"{name} waits for the end of what had its name before: {', '.join(going)} is still in use"
            )
        state = names.recovery_state(name)
        now, known = self.api.get(CONFIG_MAP, self.namespace, state), self.look_up(CONFIG_MAP, state)
        if now is not None:
            self._reader.put(CONFIG_MAP, complete(CONFIG_MAP, now))
        elif known is not None:
            raise Unavailable(f"{name} waits for news of what had its name before: ConfigMap {state} is gone")
        return bool(claims)

    def _claims_now(self, name: str) -> list[Object]:
        """A cluster's volume claims, asked; also those that lost the label by which they are found."""
        return [
            claim
            for claim in self.api.list(VOLUME_CLAIM, self.namespace)
            if (claim["metadata"].get("labels") or {}).get(names.CLUSTER_LABEL) == name
            or names.claim_of(name, _name(claim)) is not None
        ]

    def end_pod(self, pod: Object) -> None:
        """Let a pod go in which a cluster is put together. Returns at once.

        One that its node does not end, because that is silent, is forgotten: programs in it end when they have heard
        nothing from us for a while, so that nobody writes to its volume any more.
        """
        if "deletionTimestamp" not in pod["metadata"]:
            self.api.delete_this(POD, self.namespace, pod)
            return
        if self.silent_for(views.doubtful_node(pod)) > DEAD_SECONDS:
            self.api.delete_this(POD, self.namespace, pod, grace=0)

    def silent_for(self, node: str | None) -> float:
        """Seconds since a node was given up; 0: it reports."""
        return self._nodes.silent({node}).get(node, 0.0) if node else 0.0

    def silent_node(self, pod: Object) -> str | None:
        """The node of a pod, if that does not report: nobody ends the pod there."""
        node = views.doubtful_node(pod)
        return node if node is not None and self._nodes.silent({node}) else None

    def end_restore_pods(self, name: str, member: Member | None = None) -> None:
        """Let the pods go in which a cluster is put together, or that of one member. Returns at once."""
        found = self.api.list(POD, self.namespace, names.selector(name))
        holding = restore_pods.pods_of(name, found)
        for pod in found:
            if _name(pod) in holding and member in (None, holding[_name(pod)]):
                self.end_pod(pod)

    def end_restore(self, name: str, *, purge: bool) -> None:
        """The cluster goes, and nobody makes it from a backup any more.

        :param purge: its volumes go, too
        :raises Unavailable: something still uses them
        """
        self.end_restore_pods(name)
        if purge:
            self._remove_claims(name)
        else:
            self.workshop(name).let_go(has_data=bool(self._claims_now(name)))

    def _remove_claims(self, name: str) -> None:
        """And wait for their end: who takes the name next must not take them for data."""
        for claim in self._claims_now(name):
            if "deletionTimestamp" not in claim["metadata"]:
                self.api.delete_this(VOLUME_CLAIM, self.namespace, claim)

        def left() -> str:
            return ", ".join(sorted(map(_name, self._claims_now(name))))

        wait_until(lambda: not left(), lambda: f"{left()} is still in use by a pod", CLAIM_SECONDS)

    def backup_folder(self, name: str) -> Path:
        """Nothing is kept in it."""
        return Path(tempfile.gettempdir()) / f"pgherd-backup.{self.namespace}.{name}"

    def owner(self, name: str) -> Owner:
        """Known by something drawn once that stays with the volumes: a resource that is deleted and made again over
        them means the same cluster, one that was restored under this name is another.

        :raises NoSuchCluster: there is none of this name, or it is being deleted
        """
        found = self.resource_of(name)
        metadata = found["metadata"]
        with self._drawing:
            uid, known = self._owners.get(name, ("", ""))
            if uid != metadata["uid"]:
                if "deletionTimestamp" in metadata:
                    raise NoSuchCluster(f"{name} is being deleted")
                known = self._drawn(name, metadata["uid"])
                self._owners[name] = (metadata["uid"], known)
        if not _goes_on_where_it_was_restored_from(self.declaration(name).cluster):
            return Owner(known, hint="name another place, such as a prefix of its own")
        told = (metadata.get("annotations") or {}).get(names.TAKES_OVER_ANNOTATION, "")
        return Owner(
            known,
            told,
            "name another place, such as a prefix of its own, or if that cluster is gone for good: kubectl "
            f"-n {self.namespace} annotate --overwrite pgc {name} {names.TAKES_OVER_ANNOTATION}={{owner}}",
        )

    def _has_volumes(self, name: str) -> bool:
        claims = self.api.list(VOLUME_CLAIM, self.namespace, names.selector(name))
        return any("deletionTimestamp" not in claim["metadata"] for claim in claims)

    def forget_owner(self, name: str) -> None:
        """Ask anew who it is: somebody may have put back what said so."""
        self._owners.pop(name, None)

    def _drawn(self, name: str, uid: str) -> str:
        """Asked for, not looked up: what is left over of a namesake whose volumes are gone must not be taken for it."""
        wanted = names.repository_owner(name)
        made = {
            "apiVersion": CONFIG_MAP.api_version,
            "kind": CONFIG_MAP.name,
            "metadata": {"name": wanted, "labels": names.labels(name)},
            "data": {OWNER_KEY: f"{self.namespace}/{name}/{secrets.token_hex(8)}", RESOURCE_KEY: uid},
        }
        found = self.api.get(CONFIG_MAP, self.namespace, wanted)
        if found is None:
            made_now = self.api.create(self.namespace, made)
            found = made_now or self.api.get(CONFIG_MAP, self.namespace, wanted)
        elif (found.get("data") or {}).get(RESOURCE_KEY, uid) != uid and not self._has_volumes(name):
            found = self.api.apply(self.namespace, made)
        if not (drawn := ((found or {}).get("data") or {}).get(OWNER_KEY)):
            raise Unavailable(f"ConfigMap {wanted} was removed, or does not say who the cluster is")
        return str(drawn)

    def secret(self, reference: str) -> Mapping[str, str]:
        """What a Secret of the namespace says."""
        found = self._secret(reference)
        where = f"Secret {reference} of namespace {self.namespace}"
        if found is None:
            raise Refused(f"spec.backup.secretRef: there is no {where}")
        try:
            return decoded(found)
        except ValueError:
            raise Refused(f"spec.backup.secretRef: {where} holds what is no text") from None

    def secret_stamp(self, reference: str | None) -> str:
        """Differs whenever what the Secret says was changed, a little later."""
        if reference is None:
            return ""
        found = self._secret(reference)
        if found is None:
            return "missing"
        # Not its version: a label, or a tool that writes the same keys again and again, changes nothing.
        data = json.dumps(found.get("data") or {}, sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()

    def _secret(self, reference: str) -> Object | None:
        """It is somebody's own, and not watched."""
        known = self._secrets.get(reference)
        if known is None or time.monotonic() - known[1] > SECRET_SECONDS:
            try:
                known = (self.api.get(SECRET, self.namespace, reference), time.monotonic())
            except Unavailable:
                if known is None:
                    raise
            self._secrets[reference] = known
        return known[0]

    def schedules(self, name: str) -> Sequence[tuple[PostgresBackupSchedule, Mapping[str, Any] | None]]:
        """A cluster's schedules, and how each stands."""
        found = []
        for each in self.declared(SCHEDULE, name):
            with contextlib.suppress(BadInput):  # its own status tells it
                found.append((schedule_of(each), (each.get("status") or {}).get("standing")))
        return found

    def declared(self, kind: Kind, name: str) -> list[Object]:
        """The backups, or the schedules, that people declared of a cluster."""
        return self._reader.of_cluster(kind, self.namespace, name)

    def say(self, kind: Kind, resource: Object, status: Mapping[str, Any]) -> None:
        """Tell in a resource what becomes of it."""
        name = resource["metadata"]["name"]
        self.api.write_status(self.namespace, name, status, kind)
        if (now := self.api.get(kind, self.namespace, name)) is not None:
            self._reader.put(kind, {**now, "apiVersion": kind.api_version, "kind": kind.name})

    # restoring in place

    def restored(self, name: str, resource: Object | None, *, winding_down: bool) -> epochs.State | None:
        """How its last restore in place stands: which volumes are the cluster's own.

        :param resource: the cluster's
        :raises PgherdError: nobody can tell any more
        """
        workshop = self.workshop(name)
        state = workshop.state_of(resource)
        if state is None and not winding_down and epochs.is_lost(self._unexplained(name, workshop)):
            raise PgherdError(
                f"ConfigMap {names.recovery_state(name)} is gone, which says which volumes are those of {name} "
                "since it was restored in place, or a group of it was repaired: bring it back (docs/backup.md says how)"
            )
        return state

    def _unexplained(self, name: str, workshop: PodWorkshop) -> set[int]:
        """Epochs of which there are volumes that no repair has made."""
        there = workshop.epochs()
        return there - rebuilt.numbers(Notes(self, name).repairs()) if epochs.is_lost(there) else there

    def settled_epoch(self, name: str, *, asked: bool = False) -> int:
        """The epoch whose place in Patroni's store the cluster has."""
        return self.settled(name, asked=asked).epoch

    def settled(self, name: str, *, asked: bool = False) -> epochs.Own:
        """Which volumes, and which place in Patroni's store, the cluster has.

        :param asked: ask for it; else what is at hand will do
        :raises Unavailable: it is being restored in place: nothing of it may start
        """
        resource = self.look_up(CLUSTER, name)
        state = self.restored(name, resource, winding_down=False)
        if asked:
            state = self.workshop(name).state_of(resource, asked=True)
        if epochs.is_under_way(state):
            raise Unavailable(f"{name} is being restored in place")
        return rebuilt.own(Notes(self, name).repairs(asked=asked), epochs.current(state))

    # repairs

    def own(self, name: str, state: epochs.State | None) -> tuple[epochs.Own, set[int]]:
        """Which volumes are the cluster's own, and groups of which nothing may run: others are put in their place.

        :param state: how its last restore in place stands
        """
        records, base = Notes(self, name).repairs(), epochs.current(state)
        return rebuilt.own(records, base), rebuilt.halted(records, base)

    def require_not_halted(self, member: Member) -> None:
        """:raises Unavailable: its group's volumes are being replaced"""
        notes = Notes(self, member.cluster)
        base = epochs.current(notes.state(asked=True))
        if member.group in rebuilt.halted(notes.repairs(asked=True), base):
            raise Unavailable(f"{member.name} waits: its group is being rebuilt")

    def has_stopped(self, name: str) -> None:
        """See :class:`~pgherd.platform.base.Platform`."""
        if self.declaration(name).cluster.spec.backup is None:
            return
        found = endings.of_pods(name, self._reader.last_of(self.namespace, name))
        wanted = names.endings(name)
        known = endings.read(self.look_up(CONFIG_MAP, wanted))
        news = {group: {**known.get(group, {}), **members} for group, members in found.items()}
        if not news or {**known, **news} == known:
            return
        if self._may_run(name):
            raise Unavailable(f"{name} may not have ended yet")
        self.put(owned(endings.config_map(name, {**known, **news}), self.resource_of(name)))

    def _may_run(self, name: str) -> bool:
        """Whether a member runs, or somebody could start one; asked, and by name."""
        pods = self.api.list(POD, self.namespace)
        sets = self.api.list(STATEFUL_SET, self.namespace)
        return any(names.member_of(name, _name(each)) is not None for each in pods) or any(
            names.group_of(name, _name(each)) is not None for each in sets
        )

    def endings(self, name: str, group: int) -> Mapping[str, Ending]:
        """How the servers of a group's members ended, of those of which it is known; asked."""
        found = self.api.get(CONFIG_MAP, self.namespace, names.endings(name))
        return endings.read(found).get(group, {})

    def forget_endings(self, name: str, group: int) -> None:
        """Members of a group may be started from now on."""
        known = endings.read(self.look_up(CONFIG_MAP, names.endings(name)))
        if group in known:
            left = {each: members for each, members in known.items() if each != group}
            self.put(owned(endings.config_map(name, left), self.resource_of(name)))

    def bench(self, name: str, group: int) -> PodBench:
        """Where a group is rebuilt from the backups."""
        return PodBench(self, name, group)

    def benches(self, name: str) -> Mapping[int, PodBench]:
        """Those of groups that are rebuilt or were, or are to be."""
        notes = Notes(self, name)
        known = notes.repairs().get(epochs.current(notes.state()), {})
        asked = rebuilt.asked_groups(self.look_up(CLUSTER, name))
        return {group: self.bench(name, group) for group in sorted({*known, *asked})}

    def withdraw_repair(self, name: str, group: int, wish: rebuilt.Wish) -> None:
        """What somebody asked for is done, unless he asks for something else by now, or confirms it."""
        found = self.api.get(CLUSTER, self.namespace, name)
        if found is None or rebuilt.wish_of(found, group) != wish:
            return
        version = found["metadata"]["resourceVersion"]
        gone = {names.repair_annotation(group): None}
        try:
            self._change(name, {"metadata": {"resourceVersion": version, "annotations": gone}})
        except PgherdError as error:
            if not is_conflict(error):  # the next look does it
                raise

    # Patroni's store

    def require_never_founded(self, cluster: PostgresCluster, group: int, epoch: int) -> None:
        """Refuse to begin a coordinator anew over segments that have data; who takes part only it could tell.

        :raises PgherdError: there was one, and its volumes are gone
        """
        name = cluster.metadata.name
        if group != COORDINATOR or not self.api.list(VOLUME_CLAIM, self.namespace, names.selector(name)):
            return
        store = names.store_object(cluster, group, "config", epoch)
        found = self.api.get(CONFIG_MAP, self.namespace, store)
        if ((found or {}).get("metadata", {}).get("annotations") or {}).get("initialize"):
            raise PgherdError(
                "the data of coordinator are gone while segments have theirs: bring its volumes back, or delete what is"
                f" left (pgherd delete {name} --purge); if there was nothing in it, kubectl delete configmap {store}"
            )

    def forget_store(self, cluster: PostgresCluster, group: int, epoch: int) -> None:
        """What Patroni wrote down of a group without any data: it would keep a new one from being founded."""
        for part in STORE_PARTS:
            self.api.delete(CONFIG_MAP, self.namespace, names.store_object(cluster, group, part, epoch))

    # drills

    def drill(self, name: str) -> drills.State | None:
        """How far a cluster's drill is, or what the last one found."""
        return drills.state_from(self._reader.get(CONFIG_MAP, self.namespace, names.drill_state(name)))

    def write_drill(self, name: str, state: drills.State) -> None:
        """Write that down.

        :raises NoSuchCluster: there is none of this name
        """
        self.put(drills.state_object(name, state, self.resource_of(name)))

    def withdraw_drill(self, name: str) -> None:
        """What somebody asked for is done."""
        self._change(name, {"metadata": {"annotations": {drills.ASK_ANNOTATION: None}}})

    def declare_segments(self, name: str, count: int) -> None:
        """Declare another number of segments."""
        self._change(name, {"spec": {"segments": {"count": count}}})

    def _change(self, name: str, patch: Mapping[str, Any]) -> None:
        changed = self.api.merge(CLUSTER, self.namespace, name, patch)
        if changed is not None:
            # The next look must know: a stream may say it too late.
            self._reader.put(CLUSTER, complete(CLUSTER, changed))

    def make_scratch(self, name: str, declared: Mapping[str, Any], drill: str) -> bool:
        """Declare the scratch of a drill; whether that was done: False, there is something of its name."""
        made = self.api.create(self.namespace, drills.scratch_object(declared, drill, self.resource_of(name)))
        if made is not None:
            self._reader.put(CLUSTER, complete(CLUSTER, made))
        return made is not None

    # objects

    def pods(self, name: str) -> list[Object]:
        """A cluster's pods."""
        return self._reader.of_cluster(POD, self.namespace, name)

    def claims(self, name: str) -> list[Object]:
        """Volume claims of a cluster, whatever they are kept for."""
        return self._reader.of_cluster(VOLUME_CLAIM, self.namespace, name)

    def look_up(self, kind: Kind, name: str) -> Object | None:
        """An object of ours."""
        return self._reader.get(kind, self.namespace, name)

    def put(self, obj: Mapping[str, Any]) -> None:
        """Make or replace an object of ours that outlives its cluster's resource."""
        self._reader.put(kind_of(obj), self.api.apply(self.namespace, obj))

    def put_new(self, obj: Mapping[str, Any]) -> bool:
        """Make such an object; whether that was done: False, there is one of its name."""
        made = self.api.create(self.namespace, obj)
        if made is not None:
            self._reader.put(kind_of(obj), complete(kind_of(obj), made))
        return made is not None

    def put_owned(self, name: str, obj: Mapping[str, Any]) -> None:
        """Make or replace an object that goes with its cluster's resource."""
        self._applier.ensure(self.namespace, [owned(obj, self.resource_of(name))])

    def equip(self, name: str, secret: str, files: Mapping[str, str]) -> None:
        """Bring files to a cluster's pods."""
        self.put_owned(name, files_secret(name, secret, files))

    def unequip(self, name: str, secret: str) -> None:
        """Take them away; no-op if they are not there."""
        if self._reader.get(SECRET, self.namespace, secret) is not None:
            self.api.delete(SECRET, self.namespace, secret)
            self._applier.removed(self.namespace, SECRET, secret)
