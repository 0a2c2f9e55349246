"""The pods in which members' data are put together (``restore_pods``): made, waited for, used, and let go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.model.spec import VolumeSpec
from pgherd.model.topology import COORDINATOR, Member
from pgherd.platform.kubernetes import epochs, names, patroni_files, restore_pods, views, volumes
from pgherd.platform.kubernetes.api import CLUSTER, POD, SECRET, VOLUME_CLAIM, Object
from pgherd.platform.kubernetes.cluster_objects import service_account
from pgherd.platform.kubernetes.ensure import owned
from pgherd.platform.kubernetes.machines import End, PodMachine, wait_until
from pgherd.platform.kubernetes.notes import Notes
from pgherd.platform.kubernetes.places import Places
from pgherd.platform.kubernetes.restore_pods import Source
from pgherd.platform.machine import Machine, Machines

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

START_SECONDS = 60.0
"""how long a pod may take to run until somebody is told why it does not"""

_PLACE = f"""\
set -e
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
touch {patroni_files.VOLUME_PATH}/{patroni_files.UNTRIED}
sync -f "$1"
mv -T "$1" {patroni_files.DATA_PATH}
touch {patroni_files.VOLUME_PATH}/founded
sync -f .
"""


class Stands:
    """Those of one cluster.

    :param source: tells what must be read there; None: nothing (any more)
    :ivar stopping: whether to wait for nothing any more
    """

    def __init__(self, platform: KeepsBackups, cluster: str, source: Callable[[], Source | None]) -> None:
        self._platform, self._cluster, self._source = platform, cluster, source
        self.stopping: Callable[[], bool] = lambda: False
        self._uid = self._uid_now()
        self._places = Places(platform, cluster)

    def _uid_now(self) -> str | None:
        found = self._platform.look_up(CLUSTER, self._cluster)
        return str(found["metadata"]["uid"]) if found is not None else None

    def require_own(self) -> None:
        """:raises Cancelled: another cluster has this one's name by now, and what is there is that one's"""
        if self._uid is not None and self._uid_now() not in (self._uid, None):
            raise Cancelled(f"{self._cluster} is another cluster by now")

    def machine(self, member: Member, epoch: int, begin: Callable[[], None]) -> PodMachine:
        """The one on a member's volume of an epoch; it is made if it is not there.

        :param begin: called before the volume is claimed
        :raises Unavailable: it does not run yet, and why
        :raises Lost: nor will it ever: its volume can't be used any more
        """
        self.require_own()
        name = restore_pods.restore_pod_name(member, epoch)

        def why_not() -> str:
            pod, claim = self._pod(name), self._places.claim(member, epoch)
            if claim is not None and "deletionTimestamp" in claim["metadata"]:
                return f"{name} does not run yet: volume {claim['metadata']['name']} has not gone, a pod may use it"
            if pod is not None and (node := self._platform.silent_node(pod)) is not None:
                return f"{name} does not run yet: its node {node} does not report"
            return f"{name} does not run yet: {(pod and views.why_not(pod)) or 'it is being made'}"

        with waited_for():
            wait_until(lambda: self._is_set_up(member, epoch, begin), why_not, START_SECONDS, self.stopping)
            return self._at(name)

    def standing(self, member: Member, epoch: int) -> PodMachine | None:
        """The same, if it runs."""
        self.require_own()
        name = restore_pods.restore_pod_name(member, epoch)
        return self._at(name) if self._runs(name) else None

    def place(self, machine: PodMachine, data: Path) -> None:
        """Make finished data in a pod the member's; no-op if that was done before."""
        machine.shell(_PLACE, str(data))

    def left(self, member: Member | None = None, epoch: int | None = None) -> list[Object]:
        """Pods that are there; asked.

        :param member: of this one only
        :param epoch: and on its volume of this epoch
        """
        found = self._platform.api.list(POD, self._platform.namespace, names.selector(self._cluster))
        made = restore_pods.pods_of(self._cluster, found)
        wanted = None if member is None or epoch is None else restore_pods.restore_pod_name(member, epoch)
        return [
            pod
            for pod in found
            if (name := pod["metadata"]["name"]) in made
            and member in (None, made[name])
            and wanted in (None, name)
        ]

    def end(self, member: Member | None = None, epoch: int | None = None) -> None:
        """Let them go, and wait for their end.

        :raises Unavailable: they are still going
        """
        self.require_own()

        def are_gone() -> bool:
            for pod in self.left(member, epoch):
                self._platform.end_pod(pod)
            return not self.left(member, epoch)

        def waits() -> str:
            left = self.left(member, epoch)
            return f"{', '.join(pod['metadata']['name'] for pod in left)} has not ended yet"

        try:
            wait_until(are_gone, waits, START_SECONDS, self.stopping)
        finally:
            if member is None:
                self._platform.unequip(self._cluster, names.recovery_secret(self._cluster))
            else:
                self.unequip(member.group)

    def unequip(self, group: int | None = None) -> None:
        """Take the repository's keys away, unless somebody is at work with them, or may be in a moment.

        :param group: one that needs them no more, whatever is written down of its repair
        """
        platform, secret = self._platform, names.recovery_secret(self._cluster)
        if platform.look_up(SECRET, secret) is None or self._is_at_work(group) or self.left():
            return
        platform.unequip(self._cluster, secret)

    def _is_at_work(self, but: int | None) -> bool:
        """Whether anything of the cluster is being made from a backup, but for this group."""
        notes = Notes(self._platform, self._cluster)
        state = notes.state(asked=True)
        if state is not None and epochs.is_being_made(state):
            return True
        # Keys are brought before there is a pod: what a group needs another one needs, too.
        records = notes.repairs(asked=True).get(epochs.current(state), {})
        return any(record.is_at_work for group, record in records.items() if group != but)

    def _is_set_up(self, member: Member, epoch: int, begin: Callable[[], None]) -> bool:
        """Whether its pod runs; it is made if it is not there, and let go if it is of no use any more."""
        name = restore_pods.restore_pod_name(member, epoch)
        pod, claim = self._pod(name), self._places.claim(member, epoch)
        # Whoever used a volume that is being removed would keep it from that.
        going = claim is not None and "deletionTimestamp" in claim["metadata"]
        if pod is None:
            if not going:
                self._make(member, epoch, begin)
            return False
        if claim is not None and not going and self._is_own(pod):
            # Before anything is done there: once the pod is gone nobody else knows where its volume was used.
            self._places.note(claim, pod)
        source = self._source()
        if going or self._is_of_no_use(pod) or (source is not None and not source.is_read_in(pod)):
            self._platform.end_pod(pod)
            return False
        if claim is not None:
            self._places.require(member, claim, pod)
        return views.is_running(pod)

    def _is_of_no_use(self, pod: Object) -> bool:
        return "deletionTimestamp" in pod["metadata"] or not self._is_own(pod) or self._places.is_dead(pod)

    def discard(self, member: Member, epoch: int) -> None:
        """Remove what was made on a member's volume, which is in nobody's place, with its pod. Returns at once."""
        self.require_own()
        self._places.discard(member, epoch)

    def _is_own(self, pod: Object) -> bool:
        """Whether it goes when this cluster goes, and not with one that had its name."""
        owners = {each.get("uid") for each in pod["metadata"].get("ownerReferences") or []}
        return self._uid_now() in owners

    def _at(self, pod: str) -> PodMachine:
        end = End(self._platform, pod, lambda: self._pod(pod))
        return PodMachine(self._platform.reach, pod, self._platform.major(self._cluster), end)

    def _make(self, member: Member, epoch: int, begin: Callable[[], None]) -> None:
        platform = self._platform
        owner = platform.resource_of(self._cluster)
        cluster = platform.declaration(self._cluster).cluster
        labels = {**cluster.metadata.labels, **names.labels(self._cluster)}
        platform.put_owned(self._cluster, service_account(self._cluster, labels))
        source = self._source()
        if source is not None and source.claim is not None:
            # Not left out: what can't be read looks like what is not there.
            platform.holders.require_usable(source.claim)
        claim = names.volume_claim(member, epoch)
        if platform.api.get(VOLUME_CLAIM, platform.namespace, claim) is None:
            begin()
            platform.api.create(platform.namespace, restore_pods.member_claim(cluster, member, epoch))
        claims = volumes.claims_to_restore(cluster, source.repository if source is not None else None)
        read = [each for each in claims if platform.holders.is_usable(each)]
        pod = restore_pods.restore_pod(cluster, member, platform.image_of(cluster), epoch, read, source)
        platform.api.create(platform.namespace, owned(pod, owner))

    def _pod(self, name: str) -> Object | None:
        return self._platform.api.get(POD, self._platform.namespace, name)

    def _runs(self, name: str) -> bool:
        pod = self._pod(name)
        return pod is not None and views.is_running(pod) and not self._is_of_no_use(pod)


@dataclass(frozen=True)
class StandMachines(Machines, ABC):
    """The pods of one cluster's making, or of one group's."""

    platform: KeepsBackups
    cluster: str
    processes: int = 1
    folder: Path = field(default=Path(patroni_files.RECOVERY_DIRECTORY))

    @abstractmethod
    def first(self, member: Member) -> Machine:
        """That on the volume of a group's first member."""

    def at(self, host: str) -> Machine:
        raise Unavailable(f"{host} does not run yet: {self.cluster} is being made")

    def of(self, group: int | None) -> Machine:
        return self.first(Member(self.cluster, COORDINATOR if group is None else group, 0))

    def end_strays(self, group: int, argument: str) -> None:
        self.of(group).end_strays(argument)

    def equip(self, files: Mapping[str, str]) -> None:
        with waited_for():
            self.platform.equip(self.cluster, names.recovery_secret(self.cluster), files)

    def holder(self, volume: VolumeSpec) -> Machine:
        return self.platform.holders.machine(self.cluster, volume.claim_name)


@contextmanager
def waited_for() -> Iterator[None]:
    """What is refused now (a quota, a declaration that makes no sense) may be mended: nothing is known to be wrong
    with what is restored."""
    try:
        yield
    except (Cancelled, Unavailable):
        raise
    except PgherdError as error:
        raise Unavailable(str(error)) from error
