"""Where one group is rebuilt while the rest of its cluster goes on: in a pod on a new volume of its first member.

The pod is of the same kind as those in which a whole cluster is restored (``stands``). What is known of the repair, and
which volumes are in force, is in the ConfigMap that stays with them (``notes``); what follows from it is in
:mod:`~pgherd.platform.kubernetes.rebuilt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.faults import crash_point
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Member, group_name
from pgherd.platform.base import CALLED_OFF
from pgherd.platform.bench import Bench, LastWords
from pgherd.platform.kubernetes import epochs, names, patroni_files, pods, rebuilt, views
from pgherd.platform.kubernetes.api import CLUSTER, CONFIG_MAP, POD, STATEFUL_SET, VOLUME_CLAIM, Object
from pgherd.platform.kubernetes.machines import PodMachine
from pgherd.platform.kubernetes.notes import Notes
from pgherd.platform.kubernetes.rebuilt import Record
from pgherd.platform.kubernetes.restore_pods import Source
from pgherd.platform.kubernetes.stands import StandMachines, Stands, waited_for
from pgherd.platform.machine import Machine, Machines

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

_ANYTHING = f"ls -A {patroni_files.DATA_PATH} 2> /dev/null | head -n 1"


class PodBench(Bench):
    """See :class:`~pgherd.platform.base.Bench`."""

    def __init__(self, platform: KeepsBackups, cluster: str, group: int) -> None:
        self._platform, self._cluster, self._group = platform, cluster, group
        self._first = Member(cluster, group, 0)
        self._stands = Stands(platform, cluster, self._source)
        self._notes = Notes(platform, cluster)

    def heed(self, stopping: Callable[[], bool]) -> None:
        self._stands.stopping = stopping

    @property
    def _title(self) -> str:
        return group_name(self._group)

    # what is known

    def _base(self, *, asked: bool = False) -> int:
        return epochs.current(self._notes.state(asked=asked))

    def _record(self, *, asked: bool = False) -> Record:
        records = self._notes.repairs(asked=asked)
        return records.get(self._base(asked=asked), {}).get(self._group, Record())

    def _change(self, change: Callable[[Record, int, Object | None], Record]) -> None:
        """Write down what is new of this group.

        :param change: from what is known, and the cluster's epoch
        """

        def changed(records: rebuilt.Records, there: Object | None) -> rebuilt.Records:
            base = epochs.current(self._notes.state_in(there))
            known = records.get(base, {}).get(self._group, Record())
            return rebuilt.with_record(records, base, self._group, change(known, base, there))

        if self._platform.look_up(CLUSTER, self._cluster) is None:
            return  # not beside a deletion that has just removed it
        self._stands.require_own()
        self._notes.change_repairs(changed)

    def _wish(self) -> rebuilt.Wish | None:
        return rebuilt.wish_of(self._platform.look_up(CLUSTER, self._cluster), self._group)

    @property
    def unwanted(self) -> bool:
        record, asked = self._record(), self.read("wish") or {}
        return record.may_be_called_off and (asked.get("id") != record.id or CALLED_OFF in asked)

    @property
    def asked(self) -> str | None:
        wish = self._wish()
        return wish.id if wish is not None else None

    @property
    def refused(self) -> str:
        record, wish = self._record(), self._wish()
        if wish is None or wish.confirmed or wish.id == record.id:
            return ""
        kept = self.kept
        return rebuilt.refused(
            self._cluster,
            self._group,
            record,
            wish,
            obstacle=self._obstacle(wish),
            kept=[kept] if kept is not None else [],
        )

    def _obstacle(self, wish: rebuilt.Wish) -> str:
        name = self._cluster
        if wish.id in rebuilt.ids(self._notes.repairs(), self._group):
            return f"there was a repair {wish.id} of {self._title}: another one needs an id of its own"
        if not self._platform.counts_on(name, self._group):
            return f"{name} has no {self._title}"
        if epochs.is_under_way(self._notes.state()):
            return f"{name} is being restored in place: 'pgherd status {name}' shows how far it is"
        if self._platform.declaration(name).cluster.spec.backup is None:
            return (
                f"{name} has no backups to rebuild {self._title} from: bring the volumes of its members back"
            )
        return ""

    @property
    def busy(self) -> str:
        """Why the cluster can't be restored in place meanwhile; empty: it can."""
        record, wish = self._record(), self._wish()
        is_new = wish is not None and not wish.confirmed and wish.id != record.id and not self.refused
        if not (record.is_open or is_new):
            return ""
        name = self._cluster
        return f"{self._title} of {name} is being rebuilt: 'pgherd status {name}' shows how far it is"

    def read(self, what: str) -> dict[str, Any] | None:
        record = self._record()
        if what == "wish":
            return rebuilt.wanted(record, self._wish(), self.refused)
        return dict(record.state) if record.state is not None else None

    def write(self, what: str, value: Mapping[str, Any]) -> None:
        if what != "state":
            raise ValueError(f"{what} is asked for by an annotation")
        wish = self._wish()
        accepts = wish is not None and wish.id == value["id"] and wish.accept

        def told(known: Record, base: int, there: Object | None) -> Record:
            if known.id == value["id"]:
                return known.told(value, accept=accepts)
            if epochs.is_under_way(self._notes.state_in(there)):
                raise Unavailable(f"{self._cluster} is being restored in place")
            if value["id"] in rebuilt.ids(self._notes.repairs_in(there), self._group):
                raise Cancelled(f"the repair {value['id']} of {self._title} has begun before")
            return known.begun(rebuilt.Wish(str(value["id"]), accepts), self._new_epoch(there), value)

        self._change(told)

    def _new_epoch(self, there: Object | None) -> int:
        """One that nobody has used."""
        found = self._platform.api.list(VOLUME_CLAIM, self._platform.namespace)
        claims = (names.claim_of(self._cluster, each["metadata"]["name"]) for each in found)
        state = self._notes.state_in(there) or {}
        return 1 + max(
            epochs.FIRST,
            int(state.get("epoch") or 0),
            *(claim[1] for claim in claims if claim is not None),
            *rebuilt.numbers(self._notes.repairs_in(there)),
        )

    # where it is made

    def folder(self) -> Path:
        return Path(patroni_files.VOLUME_PATH)

    @property
    def data(self) -> Path:
        return self.folder() / patroni_files.UNFINISHED

    def machine(self) -> Machine:
        return self._machine()

    def _machine(self) -> PodMachine:
        def begin() -> None:
            # What was given up meanwhile must not leave a volume behind that nobody knows.
            if self._record(asked=True).made != made:
                raise Cancelled(f"this repair of {self._title} was given up")

        made = self._made()
        return self._stands.machine(self._first, made, begin)

    def _source(self) -> Source | None:
        """The cluster's backups, until it is known what of the group is in them."""
        backup = self._declared().spec.backup
        if backup is None or "judged" in (self._record().state or {}).get("steps", ()):
            return None
        return Source(self._cluster, backup.repository)

    def _made(self) -> int:
        record = self._record()
        if record.made is None:
            record = self._record(asked=True)
        if record.made is None:
            raise PgherdError(f"nothing is being made for {self._title} of {self._cluster}")
        return record.made

    def machines(self) -> Machines:
        processes = self._platform.processes(self._cluster)
        return _RepairMachines(self._platform, self._cluster, processes, group=self._group)

    def rest(self) -> None:
        record = self._record(asked=True)
        if record.made is not None:
            self._stands.end(self._first, record.made)

    def end_processes(self) -> None:
        made = self._record().made
        machine = self._stands.standing(self._first, made) if made is not None else None
        if machine is not None:
            machine.end_in(self.data)

    def renew(self, state: Mapping[str, Any]) -> None:
        lost = self._made()

        def renewed(known: Record, base: int, there: Object | None) -> Record:
            if (known.id, known.made) != (state["id"], lost):
                return known  # it was given up, or has another place by now
            return known.renewed(self._new_epoch(there), state)

        self._change(renewed)

    def drop(self) -> None:
        self._change(lambda known, base, there: known.abandoned())

    # what is lost

    def last_words(self) -> LastWords:
        """How a server ended is known only of a stopped cluster: Kubernetes may end and start pods by itself."""
        endings = self._platform.endings(self._cluster, self._group)
        members = {
            each.name for each in (*self._declared_members(), *self._claims(self._own()), *self._members())
        }
        store = names.store_object(self._declared(), self._group, "leader", self._base())
        found = self._platform.api.get(CONFIG_MAP, self._platform.namespace, store)
        told = ((found or {}).get("metadata", {}).get("annotations") or {}).get("optime", "")
        return LastWords(
            {name: endings.get(name) for name in sorted({*members, *endings})},
            int(told) if told.isdecimal() else None,
            self._left(),
        )

    def _declared_members(self) -> list[Member]:
        standbys = pods.group_spec(self._declared(), self._group).standbys
        return [Member(self._cluster, self._group, ordinal) for ordinal in range(standbys + 1)]

    def _declared(self) -> PostgresCluster:
        return self._platform.declaration(self._cluster).cluster

    def _left(self) -> list[str]:
        """Volumes on which something may be: of which nobody can say that they are empty."""
        running = {pod["metadata"]["name"]: pod for pod in self._pods()}
        return sorted(
            claim["metadata"]["name"]
            for member, claim in self._claims(self._own()).items()
            if not self._is_empty(claim, running.get(member.name))
        )

    def _is_empty(self, claim: Object, pod: Object | None) -> bool:
        if (claim.get("status") or {}).get("phase") == "Pending":
            return True  # there never was a volume
        if pod is None or not views.is_running(pod) or "deletionTimestamp" in pod["metadata"]:
            return False
        major = self._platform.major(self._cluster)
        machine = PodMachine(self._platform.reach, str(pod["metadata"]["name"]), major)
        try:
            return not machine.shell(_ANYTHING).strip()
        except Unavailable:
            raise
        except PgherdError:
            return False

    def _own(self) -> int:
        record = self._record(asked=True)
        return self._base(asked=True) if record.own is None else record.own

    def _claims(self, epoch: int) -> dict[Member, Object]:
        """The group's volume claims of an epoch; asked, and by name."""
        found = self._platform.api.list(VOLUME_CLAIM, self._platform.namespace)
        claims = views.claims_by_member(self._cluster, found, lambda group: epoch)
        return {member: claim for member, claim in claims.items() if member.group == self._group}

    def _pods(self) -> list[Object]:
        """The group's members' pods; asked, and by name."""
        found = self._platform.api.list(POD, self._platform.namespace)
        return [pod for pod in found if self._is_member(pod["metadata"]["name"])]

    def _members(self) -> list[Member]:
        found = (names.member_of(self._cluster, pod["metadata"]["name"]) for pod in self._pods())
        return [member for member in found if member is not None]

    def _is_member(self, name: str) -> bool:
        member = names.member_of(self._cluster, name)
        return member is not None and member.group == self._group

    # into its place

    def is_quiet(self) -> bool:
        """Nothing runs of the group, or could begin to; asked."""
        platform = self._platform
        made_of = platform.api.get(STATEFUL_SET, platform.namespace, self._first.scope)
        return made_of is None and not self._pods()

    @property
    def lingering(self) -> str:
        return "; ".join(map(self._why_it_is_there, self._pods()))

    def _why_it_is_there(self, pod: Object) -> str:
        text, node = f"{pod['metadata']['name']} has not ended yet", self._platform.silent_node(pod)
        if node is None:
            return text
        return f"{text}: its node {node} does not report; delete the node or declare fencing"

    def set_aside(self) -> None:
        """Nothing is moved: the new volumes have names of their own."""
        if not self.is_quiet():
            raise Unavailable(f"a member of {self._title} of {self._cluster} has not ended yet")
        for claim in self._claims(self._own()).values():
            self._mark(claim, "true")

    @property
    def in_force(self) -> bool:
        return self._record(asked=True).in_force

    def put_back(self) -> None:
        if self.in_force:
            return
        for claim in self._claims(self._own()).values():
            self._mark(claim, None)

    def _mark(self, claim: Object, kept: str | None) -> None:
        if (claim["metadata"].get("labels") or {}).get(names.KEPT_LABEL) != kept:
            patch = {"metadata": {"labels": {names.KEPT_LABEL: kept}}}
            platform = self._platform
            platform.api.merge(VOLUME_CLAIM, platform.namespace, claim["metadata"]["name"], patch)

    def place(self, prepare: Callable[[Machine, Path], None]) -> None:
        if not self.is_quiet():
            raise Unavailable(f"a member of {self._title} of {self._cluster} has not ended yet")
        if not self.in_force:
            machine = self._machine()
            prepare(machine, self.data)
            self._stands.place(machine, self.data)
            crash_point("repair:whole")
            self.rest()
            self._change(lambda known, base, there: known.placed(base))
            crash_point("repair:in-force")
        # Of the data that are lost: it would decide who of the new members may lead.
        with waited_for():
            self._platform.forget_store(self._declared(), self._group, self._base())

    # ends

    @property
    def kept(self) -> str | None:
        kept = self._record().kept
        if kept is None:
            return None
        found = views.claims_by_member(
            self._cluster, self._platform.claims(self._cluster), lambda group: kept
        )
        own = sorted(
            claim["metadata"]["name"] for member, claim in found.items() if member.group == self._group
        )
        return ", ".join(own) or None

    def clear(self) -> None:
        self._change(lambda known, base, there: known.forgotten())

    def tidy(self) -> None:
        """What was kept goes once that is confirmed, and so does what was made and is in nobody's place.

        What was asked for goes with its end: what is known of that counts until the next restore in place only.
        """
        record, wish = self._record(), self._wish()
        if rebuilt.is_confirmed(record, wish):
            self.clear()
            crash_point("repair:confirmed")
            record = self._record()
        if record.to_go(self._base()):
            self._clear_away()
        elif not record.is_open:
            self._stands.unequip()
        if wish is not None and rebuilt.is_answered(record, wish):
            self._platform.withdraw_repair(self._cluster, self._group, wish)

    def _clear_away(self) -> None:
        record, base = self._record(asked=True), self._base(asked=True)
        gone = [epoch for epoch in record.to_go(base) if not self._discard(epoch)]
        crash_point("repair:discarded")
        if gone:
            self._change(lambda known, base, there: known.removed(gone))

    def _discard(self, epoch: int) -> bool:
        """Remove an epoch's volumes of the group, and the pod that works there; whether any is still there."""
        platform = self._platform
        pods, claims = self._stands.left(self._first, epoch), self._claims(epoch)
        for pod in pods:
            platform.end_pod(pod)
        for claim in claims.values():
            if "deletionTimestamp" not in claim["metadata"]:
                platform.api.delete_this(VOLUME_CLAIM, platform.namespace, claim)
        return bool(pods or claims)


@dataclass(frozen=True)
class _RepairMachines(StandMachines):
    """The pod of one bench, whichever group is asked for."""

    group: int = 0

    def first(self, member: Member) -> Machine:
        return PodBench(self.platform, self.cluster, self.group).machine()
