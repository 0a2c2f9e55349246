"""Where a cluster is put together from a backup: in pods on its members' volumes (``restore_pods``).

How far it is is written into a ConfigMap, which stays as long as the volumes do. A volume is claimed only after that,
so that whoever finds one knows what it is for. In place, the volumes are new ones, and the ConfigMap says which are the
cluster's own: see :mod:`~pgherd.platform.kubernetes.epochs`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.faults import crash_point
from pgherd.model.spec import RepositorySpec
from pgherd.model.topology import COORDINATOR, Endpoint, Member
from pgherd.platform import origin
from pgherd.platform.base import ENDED, FAILED, NothingBefore, Workshop
from pgherd.platform.kubernetes import drills, epochs, names, patroni_files, rebuilt, views, zone
from pgherd.platform.kubernetes.api import (
    CLUSTER,
    CONFIG_MAP,
    POD,
    STATEFUL_SET,
    VOLUME_CLAIM,
    Object,
)
from pgherd.platform.kubernetes.machines import PodMachine
from pgherd.platform.kubernetes.notes import Notes
from pgherd.platform.kubernetes.restore_pods import Source
from pgherd.platform.kubernetes.stands import StandMachines, Stands
from pgherd.platform.machine import Machine, Machines

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups


class PodWorkshop(Workshop):
    """See :class:`~pgherd.platform.base.Workshop`."""

    def __init__(self, platform: KeepsBackups, cluster: str) -> None:
        self._platform = platform
        self._cluster = cluster
        self._stands = Stands(platform, cluster, self._source)
        self._notes = Notes(platform, cluster)

    def heed(self, stopping: Callable[[], bool]) -> None:
        self._stands.stopping = stopping

    def folder(self, member: Member) -> Path:
        return Path(patroni_files.VOLUME_PATH)

    def log(self, member: Member) -> Path:
        return Path(patroni_files.VOLUME_PATH) / "restore.log"

    def scratch(self) -> Path:
        return (
            Path(tempfile.gettempdir())
            / f"pgherd-recovery.{self._platform.namespace}.{self._cluster}.scratch"
        )

    def is_trial(self) -> bool:
        resource = self._platform.look_up(CLUSTER, self._cluster)
        return resource is not None and drills.is_scratch({**resource, "kind": CLUSTER.name})

    def machines(self) -> Machines:
        processes = self._platform.processes(self._cluster)
        return _RestoreMachines(self._platform, self._cluster, processes)

    def machine(self, member: Member) -> Machine:
        return self._machine(member)

    def _machine(self, member: Member) -> PodMachine:
        state = self.read_state()
        if state is None or state.get("phase") in ENDED:
            raise PgherdError(f"{self._cluster} is not being made from a backup")
        epoch = epochs.current(state)
        cluster = self._platform.declaration(self._cluster).cluster
        return self._stands.machine(
            member, epoch, partial(self._platform.forget_store, cluster, member.group, epoch)
        )

    def _source(self) -> Source | None:
        """What is to be restored, until all of it was read."""
        state = self.read_state() or {}
        if "settled" in state.get("steps", ()):
            return None
        asked = origin.recovery(state)
        if asked is None:
            return None
        repository = RepositorySpec.model_validate(asked["repository"], by_alias=True, by_name=False)
        return Source(str(asked["cluster"]), repository)

    def standing(self, member: Member) -> Machine | None:
        return self._stands.standing(member, epochs.current(self.read_state()))

    def reserve(self, members: Sequence[Member]) -> Mapping[str, Endpoint]:
        ends = zone.of(self._platform.namespace)
        return {member.name: Endpoint(names.host(member, ends), names.POSTGRES_PORT) for member in members}

    def place(self, member: Member, data: Path) -> None:
        self._stands.place(self._machine(member), data)

    def discard(self, member: Member) -> None:
        state = self._notes.state(asked=True) or {}
        epoch = epochs.current(state)
        own = {state.get("kept"), *rebuilt.numbers(self._notes.repairs(asked=True))}
        if not epochs.is_being_made(state) or epoch in own:
            raise PgherdError(f"{self._cluster} is not being made from a backup: its volumes stay")
        self._stands.discard(member, epoch)

    def close(self) -> None:
        self._stands.end()

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
        """Volume claims that the cluster had in an epoch, those of groups that were rebuilt then among them; asked, and
        by name."""
        found = self._platform.api.list(VOLUME_CLAIM, self._platform.namespace)
        own = rebuilt.own(self._notes.repairs(asked=True), epoch)
        return views.claims_by_member(self._cluster, found, own.of)

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
        own = rebuilt.own(self._notes.repairs(), epoch)
        found = views.claims_by_member(self._cluster, self._platform.claims(self._cluster), own.of)
        return sorted(claim["metadata"]["name"] for claim in found.values())

    @property
    def asked(self) -> str | None:
        wish = self._wish()
        return wish.id if wish is not None else None

    @property
    def refused(self) -> str:
        return epochs.refused(self._cluster, self._notes.state(), self._wish(), self._busy())

    def _busy(self) -> str:
        """Why nothing can be restored in place meanwhile: a group is being rebuilt."""
        benches = self._platform.benches(self._cluster).values()
        return next((bench.busy for bench in benches if bench.busy), "")

    def _wish(self) -> epochs.Wish | None:
        wish = epochs.wish_of(self._platform.look_up(CLUSTER, self._cluster))
        return None if wish is None else epochs.judged(wish, self._notes.refusal())

    @property
    def pending(self) -> Mapping[str, Any] | None:
        # With every look, and hardly ever is there one.
        wish = self._wish()
        return None if wish is None else self._begun(self._notes.state(), wish, asked=False)

    def _begun(
        self, written: epochs.State | None, wish: epochs.Wish | None, *, asked: bool
    ) -> epochs.State | None:
        """What a wish begins with; None: nothing is asked for, or to be begun."""
        if wish is None or epochs.is_under_way(written):
            return None
        used = rebuilt.numbers(self._notes.repairs(asked=asked))
        state = epochs.with_wish(self._cluster, written, wish, self.epochs(), used=used, busy=self._busy())
        return state if epochs.is_under_way(state) else None

    def decide(self, pending: Mapping[str, Any], problem: str = "") -> bool:
        """What is asked for is asked anew: to look may have taken minutes.

        :raises Unavailable: what is written down was changed meanwhile
        """
        platform, name = self._platform, self._cluster
        written = self._notes.state(asked=True)
        wish = epochs.wish_of(platform.api.get(CLUSTER, platform.namespace, name))
        state = self._begun(written, epochs.judged(wish, self._notes.refusal(asked=True)), asked=True)
        if state is None or not epochs.is_same(state, pending):
            return False
        if problem:
            self._refuse(state, problem)
            return True

        def check(before: Mapping[str, Any] | None) -> None:
            if before != written:
                raise Unavailable(f"what is written down of {name} was changed by somebody else meanwhile")

        self._write(state, check)
        return True

    def _refuse(self, state: epochs.State, problem: str) -> None:
        counts, platform = state.get("segments") or {}, self._platform
        if platform.declaration(self._cluster).cluster.spec.segments.count == counts.get("at"):
            # First: once it is refused, what is declared counts, and data would be moved.
            platform.declare_segments(self._cluster, counts["before"])
            crash_point("in-place:segments-back")
        self._notes.write_refusal(epochs.refusal_of(state, problem))

    def tidy(self) -> None:
        """What was kept goes once that is confirmed, and what a restore made that was taken back."""
        state = self._notes.state()
        if state is None or not (self._is_to_go(state, self.kept) or state.get("discard")):
            return
        state = self._notes.state(asked=True)
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
            gone = epochs.discarded(state)
            base = epochs.current(state)
            self._notes.change_repairs(lambda records, there: rebuilt.without(records, gone, base))
            self.write_state({**state, "discard": []})

    def _is_to_go(self, state: Mapping[str, Any], kept: Collection[object]) -> bool:
        """Whether what was kept is confirmed, or is gone and nothing is left to confirm."""
        return epochs.is_confirmed(state, self._wish()) or (
            epochs.unconfirmed(state) is not None and not kept
        )

    def _discard(self, epoch: int) -> bool:
        """Remove an epoch's volumes, all that repairs have made in it, and its place in Patroni's store; whether any is
        still there."""
        platform, records = self._platform, self._notes.repairs(asked=True)
        claims = [
            claim
            for claim in platform.api.list(VOLUME_CLAIM, platform.namespace)
            if (own := names.claim_of(self._cluster, claim["metadata"]["name"])) is not None
            and own[1] in rebuilt.of_epoch(records, epoch, own[0].group)
        ]
        for claim in claims:
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
        machine = self._stands.standing(member, epochs.current(self.read_state()))
        if machine is not None:
            machine.end_in(data)

    def read_state(self) -> dict[str, Any] | None:
        return self.state_of(self._platform.look_up(CLUSTER, self._cluster))

    def state_of(self, resource: Object | None, *, asked: bool = False) -> dict[str, Any] | None:
        """What was written down last, or its end if nobody asks for it any more.

        :param resource: the cluster's
        :param asked: ask for it; else what is at hand will do
        """
        state = epochs.as_asked(self._notes.state(asked=asked), epochs.wish_of(resource))
        return dict(state) if state is not None else None

    def epochs(self) -> set[int]:
        """Of which there are volumes."""
        found = self._platform.claims(self._cluster)
        own = (names.claim_of(self._cluster, each["metadata"]["name"]) for each in found)
        return {claim[1] for claim in own if claim is not None}

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
        self._write(state, lambda before: None)

    def _write(
        self, state: Mapping[str, Any], check_before: Callable[[Mapping[str, Any] | None], None]
    ) -> None:
        if self._platform.look_up(CLUSTER, self._cluster) is None:
            return  # not beside a deletion that has just removed it
        self._stands.require_own()

        def check(there: Object | None) -> None:
            before = self._notes.state_in(there)
            check_before(before)
            if has_ended(before, state):
                raise Cancelled(
                    f"the restore of {self._cluster} has been brought to its end by somebody else"
                )
            if epochs.is_under_way(state) and not epochs.is_under_way(before):
                groups = self._notes.repairs_in(there).get(epochs.current(before), {})
                if any(record.is_open for record in groups.values()):
                    raise Cancelled(f"a group of {self._cluster} is being rebuilt")

        self._notes.write_state(state, check)


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


class _RestoreMachines(StandMachines):
    """The pods of one workshop."""

    def first(self, member: Member) -> Machine:
        return PodWorkshop(self.platform, self.cluster).machine(member)
