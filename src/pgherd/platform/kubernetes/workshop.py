"""Where a cluster is put together from a backup: in pods on its members' volumes (``restore_pods``).

How far it is is written into a ConfigMap, which stays as long as the volumes do. A volume is claimed only after that,
so that whoever finds one knows what it is for. In place, the volumes are new ones, and the ConfigMap says which are the
cluster's own: see :mod:`~pgherd.platform.kubernetes.epochs`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.faults import crash_point
from pgherd.model.topology import COORDINATOR, Endpoint, Member
from pgherd.platform.base import ENDED, FAILED, NothingBefore, Workshop
from pgherd.platform.kubernetes import epochs, names, patroni_files, restore_pods, views, zone
from pgherd.platform.kubernetes.api import (
    CLUSTER,
    CONFIG_MAP,
    POD,
    STATEFUL_SET,
    VOLUME_CLAIM,
    Object,
    is_conflict,
)
from pgherd.platform.kubernetes.cluster_objects import service_account
from pgherd.platform.kubernetes.ensure import owned
from pgherd.platform.kubernetes.machines import PodMachine, wait_until
from pgherd.platform.machine import Machine, Machines

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

START_SECONDS = 60.0
"""how long a pod may take to run until somebody is told why it does not"""
STATE_KEY = "state.json"

_PLACE = f"""\
if [ ! -d "$1" ]; then
    # Placed before, or on a volume that is another one by now.
    [ -s {patroni_files.DATA_PATH}/global/pg_control ] && exit 0
    echo "there are no restored data in $1" >&2
    exit 1
fi
cd "$1"
rm -f patroni.dynamic.json backup_manifest postmaster.opts backup_label.old
cd ..
rm -rf spool
sync -f "$1"
mv -T "$1" {patroni_files.DATA_PATH}
touch {patroni_files.VOLUME_PATH}/founded
sync -f .
"""


class PodWorkshop(Workshop):
    """See :class:`~pgherd.platform.base.Workshop`."""

    def __init__(self, platform: KeepsBackups, cluster: str) -> None:
        self._platform = platform
        self._cluster = cluster
        self._stopping: Callable[[], bool] = lambda: False
        self._uid = self._uid_now()

    def heed(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping

    def _uid_now(self) -> str | None:
        found = self._platform.look_up(CLUSTER, self._cluster)
        return str(found["metadata"]["uid"]) if found is not None else None

    def _require_own(self) -> None:
        """:raises Cancelled: another cluster has this one's name by now, and what is there is that one's"""
        if self._uid is not None and self._uid_now() not in (self._uid, None):
            raise Cancelled(f"{self._cluster} is another cluster by now")

    def folder(self, member: Member) -> Path:
        return Path(patroni_files.VOLUME_PATH)

    def log(self, member: Member) -> Path:
        return Path(patroni_files.VOLUME_PATH) / "restore.log"

    def scratch(self) -> Path:
        return (
            Path(tempfile.gettempdir())
            / f"pgherd-recovery.{self._platform.namespace}.{self._cluster}.scratch"
        )

    def machines(self) -> Machines:
        return _RestoreMachines(self._platform, self._cluster, self._platform.processes(self._cluster))

    def machine(self, member: Member) -> Machine:
        state = self.read_state()
        if state is None or state.get("phase") in ENDED:
            raise PgherdError(f"{self._cluster} is not being made from a backup")
        self._require_own()
        epoch = epochs.current(state)
        name = restore_pods.restore_pod_name(member, epoch)

        def why_not() -> str:
            pod = self._pod(name)
            return f"{name} does not run yet: {(pod and views.why_not(pod)) or 'it is being made'}"

        with _waited_for():
            wait_until(lambda: self._is_set_up(member, epoch), why_not, START_SECONDS, self._stopping)
            return self._at(name)

    def standing(self, member: Member) -> Machine | None:
        self._require_own()
        name = restore_pods.restore_pod_name(member, epochs.current(self.read_state()))
        return self._at(name) if self._runs(name) else None

    def _is_set_up(self, member: Member, epoch: int) -> bool:
        """Whether its pod runs; it is made if it is not there, and let go if it is of no use any more."""
        name = restore_pods.restore_pod_name(member, epoch)
        pod = self._pod(name)
        if pod is None:
            self._make(member, epoch)
        elif "deletionTimestamp" in pod["metadata"] or not self._is_own(pod):
            self._platform.end_pod(pod)
        return self._runs(name)

    def _is_own(self, pod: Object) -> bool:
        """Whether it goes when this cluster goes, and not with one that had its name."""
        owners = {each.get("uid") for each in pod["metadata"].get("ownerReferences") or []}
        return self._uid_now() in owners

    def _at(self, pod: str) -> PodMachine:
        return PodMachine(self._platform.reach, pod, self._platform.major(self._cluster))

    def _make(self, member: Member, epoch: int) -> None:
        platform = self._platform
        owner = platform.resource_of(self._cluster)
        cluster = platform.declaration(self._cluster).cluster
        labels = {**cluster.metadata.labels, **names.labels(self._cluster)}
        platform.put_owned(self._cluster, service_account(self._cluster, labels))
        claim = names.volume_claim(member, epoch)
        if platform.api.get(VOLUME_CLAIM, platform.namespace, claim) is None:
            platform.forget_store(cluster, member.group, epoch)
            platform.api.create(platform.namespace, restore_pods.member_claim(cluster, member, epoch))
        pod = restore_pods.restore_pod(cluster, member, platform.image_of(cluster), epoch)
        platform.api.create(platform.namespace, owned(pod, owner))

    def _pod(self, name: str) -> Object | None:
        return self._platform.api.get(POD, self._platform.namespace, name)

    def _runs(self, name: str) -> bool:
        pod = self._pod(name)
        return (
            pod is not None
            and views.is_running(pod)
            and "deletionTimestamp" not in pod["metadata"]
            and self._is_own(pod)
        )

    def reserve(self, members: Sequence[Member]) -> Mapping[str, Endpoint]:
        ends = zone.of(self._platform.namespace)
        return {member.name: Endpoint(names.host(member, ends), names.POSTGRES_PORT) for member in members}

    def place(self, member: Member, data: Path) -> None:
        machine = self.machine(member)
        assert isinstance(machine, PodMachine)
        machine.shell(f"set -e\n{_PLACE}", str(data))

    def close(self) -> None:
        platform, cluster = self._platform, self._cluster
        self._require_own()

        def left() -> list[Object]:
            found = platform.api.list(POD, platform.namespace, names.selector(cluster))
            made = restore_pods.pods_of(cluster, found)
            return [pod for pod in found if pod["metadata"]["name"] in made]

        def are_gone() -> bool:
            for pod in left():
                platform.end_pod(pod)
            return not left()

        def waits() -> str:
            return f"{', '.join(pod['metadata']['name'] for pod in left())} has not ended yet"

        try:
            wait_until(are_gone, waits, START_SECONDS, self._stopping)
        finally:
            platform.unequip(cluster, names.recovery_secret(cluster))

    # in place

    def set_aside(self) -> None:
        """Nothing is moved: the new volumes have names of their own. But nobody may use the old ones any more."""
        state = self.read_state() or {}
        if left := self._left():
            raise Unavailable(f"{', '.join(left)} has not ended yet")
        for claim in self._claims(int(state["kept"])).values():
            self._mark(claim, "true")

    def _left(self) -> list[str]:
        """What runs of the cluster, or could begin to; asked, and by name."""
        platform, name = self._platform, self._cluster
        pods = [each["metadata"]["name"] for each in platform.api.list(POD, platform.namespace)]
        sets = platform.api.list(STATEFUL_SET, platform.namespace)
        members = [each for each in pods if names.member_of(name, each) is not None]
        beginning = [each["metadata"]["name"] for each in sets if each["spec"].get("replicas")]
        return members + [each for each in beginning if names.group_of(name, each) is not None]

    def put_back(self) -> Mapping[str, Any]:
        state = self.read_state() or {}
        kept = self._claims(int(state["kept"]))
        if not any(member.group == COORDINATOR for member in kept):
            raise NothingBefore(f"the volumes that {self._cluster} had before are gone")
        self.close()
        for claim in kept.values():
            self._mark(claim, None)
        return {"discard": [*epochs.discarded(state), epochs.current(state)]}

    def _claims(self, epoch: int) -> dict[Member, Object]:
        """Volume claims of an epoch; asked, and by name."""
        found = self._platform.api.list(VOLUME_CLAIM, self._platform.namespace)
        return views.claims_by_member(self._cluster, found, epoch)

    def _mark(self, claim: Object, kept: str | None) -> None:
        if (claim["metadata"].get("labels") or {}).get(names.KEPT_LABEL) != kept:
            patch = {"metadata": {"labels": {names.KEPT_LABEL: kept}}}
            platform = self._platform
            platform.api.merge(VOLUME_CLAIM, platform.namespace, claim["metadata"]["name"], patch)

    @property
    def kept(self) -> Sequence[str]:
        epoch = epochs.unconfirmed(self.read_state())
        if epoch is None:
            return []
        found = views.claims_by_member(self._cluster, self._platform.claims(self._cluster), epoch)
        return sorted(claim["metadata"]["name"] for claim in found.values())

    @property
    def asked(self) -> str | None:
        wish = self._wish()
        return wish.id if wish is not None else None

    @property
    def refused(self) -> str:
        return epochs.refused(self._cluster, self._written(asked=False), self._wish())

    def _wish(self) -> epochs.Wish | None:
        return epochs.wish_of(self._platform.look_up(CLUSTER, self._cluster))

    def tidy(self) -> None:
        """What was kept goes once that is confirmed, and what a restore made that was taken back."""
        state = self._written(asked=False)
        if state is None or not (self._is_to_go(state, self.kept) or state.get("discard")):
            return
        state = self._written(asked=True)
        if state is None or epochs.is_under_way(state):
            return
        unconfirmed = epochs.unconfirmed(state)
        if unconfirmed is not None and self._is_to_go(state, self._claims(unconfirmed)):
            state = epochs.confirmed(state)
            self.write_state(state)
            crash_point("restore:confirmed")
        left = [epoch for epoch in epochs.discarded(state) if self._discard(epoch)]
        crash_point("restore:discarded")
        if not left and state.get("discard"):
            self.write_state({**state, "discard": []})

    def _is_to_go(self, state: Mapping[str, Any], kept: Collection[object]) -> bool:
        """Whether what was kept is confirmed, or is gone and nothing is left to confirm."""
        return epochs.is_confirmed(state, self._wish()) or (
            epochs.unconfirmed(state) is not None and not kept
        )

    def _discard(self, epoch: int) -> bool:
        """Remove an epoch's volumes and its place in Patroni's store; whether any is still there."""
        platform = self._platform
        claims = self._claims(epoch)
        for claim in claims.values():
            if "deletionTimestamp" not in claim["metadata"]:
                platform.api.delete_this(VOLUME_CLAIM, platform.namespace, claim)
        stores = self._stores(epoch)
        for store in stores:
            platform.api.delete(CONFIG_MAP, platform.namespace, store)
        return bool(claims or stores)

    def _stores(self, epoch: int) -> list[str]:
        found = self._platform.api.list(CONFIG_MAP, self._platform.namespace, names.selector(self._cluster))
        scopes = (
            (each["metadata"]["name"], each["metadata"]["labels"].get(names.SCOPE_LABEL)) for each in found
        )
        return [name for name, scope in scopes if scope is not None and names.epoch_of_scope(scope) == epoch]

    # how far it is

    def end_processes(self, member: Member, data: Path) -> None:
        self._require_own()
        name = restore_pods.restore_pod_name(member, epochs.current(self.read_state()))
        if self._runs(name):
            self._at(name).end_in(data)

    def read_state(self) -> dict[str, Any] | None:
        return self.state_of(self._platform.look_up(CLUSTER, self._cluster))

    def state_of(self, resource: Object | None, *, asked: bool = False) -> dict[str, Any] | None:
        """What was written down last, and what follows from what is asked for now.

        :param resource: the cluster's
        :param asked: ask for it; else what is at hand will do
        """
        written, wish = self._written(asked=asked), epochs.wish_of(resource)
        there = self.epochs() if wish is not None else ()
        state = epochs.with_wish(self._cluster, written, wish, there)
        return dict(state) if state is not None else None

    def epochs(self) -> set[int]:
        """Of which there are volumes."""
        found = self._platform.claims(self._cluster)
        own = (names.claim_of(self._cluster, each["metadata"]["name"]) for each in found)
        return {claim[1] for claim in own if claim is not None}

    def _written(self, *, asked: bool) -> dict[str, Any] | None:
        platform, name = self._platform, names.recovery_state(self._cluster)
        if asked:
            return self._parsed(platform.api.get(CONFIG_MAP, platform.namespace, name))
        return self._parsed(platform.look_up(CONFIG_MAP, name))

    def _parsed(self, found: Object | None) -> dict[str, Any] | None:
        try:
            state = json.loads(((found or {}).get("data") or {}).get(STATE_KEY, "null"))
        except ValueError:
            raise PgherdError(
                f"ConfigMap {names.recovery_state(self._cluster)} is damaged: nobody can tell any more how far the "
                f"making of {self._cluster} from a backup is, or which volumes are its own; bring it back from a copy, "
                "or delete the cluster"
            ) from None
        return state if isinstance(state, dict) else None

    def let_go(self, *, has_data: bool) -> None:
        """Its cluster goes. What is remembered beside its volumes is what the next one of its name needs to know.

        :param has_data: whether volumes stay
        """
        if not has_data:
            name = names.recovery_state(self._cluster)
            self._platform.api.delete(CONFIG_MAP, self._platform.namespace, name)
        elif _has_failed_early(self.read_state() or {}):
            # There is nothing in them: the next one tries again, and does not fail with the words of this one.
            self.write_state({"phase": "requested"})

    def write_state(self, state: Mapping[str, Any]) -> None:
        platform = self._platform
        if platform.look_up(CLUSTER, self._cluster) is None:
            return  # not beside a deletion that has just removed it
        self._require_own()
        name = names.recovery_state(self._cluster)
        there = platform.api.get(CONFIG_MAP, platform.namespace, name)
        if has_ended(self._parsed(there), state):
            raise Cancelled(f"the restore of {self._cluster} has been brought to its end by somebody else")
        metadata = {"name": name, "labels": names.labels(self._cluster)}
        if there is not None:
            # A write that hung for long must not undo what others wrote since: it decides which volumes are in force.
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
        data = {STATE_KEY: json.dumps(dict(state))}
        try:
            platform.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        except PgherdError as error:
            if is_conflict(error):
                raise Unavailable(f"ConfigMap {name} was changed by somebody else meanwhile") from error
            raise


def has_ended(there: Mapping[str, Any] | None, state: Mapping[str, Any]) -> bool:
    """Whether this restore is at its end by what is written down, and would not be by what is to be written."""
    if there is None or there.get("phase") not in ENDED or state.get("phase") in ENDED:
        return False
    key = "id" if state.get("inPlace") else "startedAt"
    return state.get(key) is not None and state.get(key) == there.get(key)


def _has_failed_early(state: Mapping[str, Any]) -> bool:
    return (
        state.get("phase") == FAILED and not state.get("inPlace") and "settled" not in state.get("steps", ())
    )


@dataclass(frozen=True)
class _RestoreMachines(Machines):
    """The pods of one workshop."""

    platform: KeepsBackups
    cluster: str
    processes: int = 1
    folder: Path = field(default=Path(patroni_files.RECOVERY_DIRECTORY))

    def at(self, host: str) -> Machine:
        raise Unavailable(f"{host} does not run yet: {self.cluster} is being made")

    def of(self, group: int | None) -> Machine:
        first = Member(self.cluster, COORDINATOR if group is None else group, 0)
        return PodWorkshop(self.platform, self.cluster).machine(first)

    def end_strays(self, group: int, argument: str) -> None:
        self.of(group).end_strays(argument)

    def equip(self, files: Mapping[str, str]) -> None:
        with _waited_for():
            self.platform.equip(self.cluster, names.recovery_secret(self.cluster), files)


@contextmanager
def _waited_for() -> Iterator[None]:
    """What is refused now (a quota, a declaration that makes no sense) may be mended: nothing is known to be wrong
    with what is restored."""
    try:
        yield
    except (Cancelled, Unavailable):
        raise
    except PgherdError as error:
        raise Unavailable(str(error)) from error
