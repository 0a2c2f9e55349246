"""Where a new cluster is put together from a backup: in pods on its members' volumes (``restore_pods``).

How far it is is written into a ConfigMap, which stays as long as the volumes do. A volume is claimed only after that,
so that whoever finds one knows what it is for.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable
from pgherd.model.topology import COORDINATOR, Endpoint, Member
from pgherd.platform.base import Workshop
from pgherd.platform.kubernetes import names, patroni_files, restore_pods, views
from pgherd.platform.kubernetes.api import CLUSTER, CONFIG_MAP, POD, VOLUME_CLAIM, Object
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
[ -d "$1" ] || exit 0
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
        platform = self._platform
        if self.read_state() is None:
            raise PgherdError(f"{self._cluster} is not being made from a backup")
        self._require_own()

        def why_not() -> str:
            pod = self._pod(member)
            name = restore_pods.restore_pod_name(member)
            return f"{name} does not run yet: {(pod and views.why_not(pod)) or 'it is being made'}"

        with _waited_for():
            wait_until(lambda: self._is_set_up(member), why_not, START_SECONDS, self._stopping)
            return self._at(member, platform.major(self._cluster))

    def standing(self, member: Member) -> Machine | None:
        self._require_own()
        return self._at(member, self._platform.major(self._cluster)) if self._runs(member) else None

    def _is_set_up(self, member: Member) -> bool:
        """Whether its pod runs; it is made if it is not there, and let go if it is of no use any more."""
        pod = self._pod(member)
        if pod is None:
            self._make(member)
        elif "deletionTimestamp" in pod["metadata"] or not self._is_own(pod):
            self._platform.end_pod(pod)
        return self._runs(member)

    def _is_own(self, pod: Object) -> bool:
        """Whether it goes when this cluster goes, and not with one that had its name."""
        owners = {each.get("uid") for each in pod["metadata"].get("ownerReferences") or []}
        return self._uid_now() in owners

    def _at(self, member: Member, major: int) -> PodMachine:
        return PodMachine(self._platform.reach, restore_pods.restore_pod_name(member), major)

    def _make(self, member: Member) -> None:
        platform = self._platform
        owner = platform.resource_of(self._cluster)
        cluster = platform.declaration(self._cluster).cluster
        labels = {**cluster.metadata.labels, **names.labels(self._cluster)}
        platform.put_owned(self._cluster, service_account(self._cluster, labels))
        if platform.api.get(VOLUME_CLAIM, platform.namespace, names.volume_claim(member)) is None:
            platform.forget_store(cluster, member.group)
            platform.api.create(platform.namespace, restore_pods.member_claim(cluster, member))
        pod = restore_pods.restore_pod(cluster, member, platform.image_of(cluster))
        platform.api.create(platform.namespace, owned(pod, owner))

    def _pod(self, member: Member) -> Object | None:
        return self._platform.api.get(POD, self._platform.namespace, restore_pods.restore_pod_name(member))

    def _runs(self, member: Member) -> bool:
        pod = self._pod(member)
        return (
            pod is not None
            and views.is_running(pod)
            and "deletionTimestamp" not in pod["metadata"]
            and self._is_own(pod)
        )

    def reserve(self, members: Sequence[Member]) -> Mapping[str, Endpoint]:
        namespace = self._platform.namespace
        return {
            member.name: Endpoint(names.host(member, namespace), names.POSTGRES_PORT) for member in members
        }

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

    def set_aside(self) -> None:
        raise _not_in_place()

    def put_back(self) -> None:
        raise _not_in_place()

    def end_processes(self, member: Member, data: Path) -> None:
        self._require_own()
        if self._runs(member):
            self._at(member, self._platform.major(self._cluster)).end_in(data)

    def read_state(self) -> dict[str, Any] | None:
        found = self._platform.look_up(CONFIG_MAP, names.recovery_state(self._cluster))
        try:
            state = json.loads(((found or {}).get("data") or {}).get(STATE_KEY, "null"))
        except ValueError:
            raise PgherdError(
                f"ConfigMap {names.recovery_state(self._cluster)} is damaged: nobody can tell any more how far "
                f"the making of {self._cluster} from a backup is; delete the cluster and begin anew"
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
        platform.put(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": names.recovery_state(self._cluster),
                    "labels": names.labels(self._cluster),
                },
                "data": {STATE_KEY: json.dumps(dict(state))},
            }
        )


def _has_failed_early(state: Mapping[str, Any]) -> bool:
    return (
        state.get("phase") == "failed"
        and not state.get("inPlace")
        and "settled" not in state.get("steps", ())
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


def _not_in_place() -> BadInput:
    return BadInput("restoring in place is not available on kubernetes in this version")
