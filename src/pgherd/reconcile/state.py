"""What one look at the world saw. Plain data: the planner and the status are functions of it.

``None`` always means "could not be known", never "there is none": who plans must not take the one for the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgherd.engine.base import Clone
from pgherd.model.topology import COORDINATOR, Endpoints, Member
from pgherd.patroni.client import MemberStatus
from pgherd.platform.base import Declaration, MemberView


@dataclass(frozen=True)
class MemberState:
    """One member: what the platform sees, and what its Patroni says (None: no answer)."""

    view: MemberView
    patroni: MemberStatus | None = None

    @property
    def member(self) -> Member:
        """Who it is."""
        return self.view.member

    @property
    def is_running(self) -> bool:
        """Its PostgreSQL accepts connections, as its Patroni says."""
        return self.patroni is not None and self.patroni.state == "running"

    @property
    def may_have_data(self) -> bool:
        """Nobody knows that it has none: a volume may be new and empty, which its Patroni can tell."""
        if self.patroni is None or self.patroni.state in ("running", "starting", "creating"):
            return self.view.has_data
        return self.view.has_data and self.patroni.system_identifier is not None

    @property
    def is_primary(self) -> bool:
        """It holds its group's leader lock and takes writes, as its Patroni says."""
        return (
            self.is_running
            and self.patroni is not None
            and self.patroni.leader
            and self.patroni.role == "primary"
        )


@dataclass(frozen=True)
class Operation:
    """The last or present row of ``pgherd.operations``, as far as planning needs it."""

    id: int
    kind: str
    phase: str
    to_segments: int | None
    generation: int | None
    """the declaration's generation that asked for it"""
    finished: bool
    error: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """What the coordinator database knows."""

    segments: Sequence[int]
    endpoints: Mapping[int, Endpoints]
    operation: Operation | None = None
    """unfinished, else None"""
    last: Operation | None = None
    """ended last"""
    cleanup_due: int = 0
    """clean-up records waiting"""
    configuration: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """member name -> role, mode, status in ``pgherd.segment_configuration``"""
    clones: Mapping[int, Clone] = field(default_factory=dict)
    """groups that begin as a copy of a segment"""
    clone_parameters: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """PostgreSQL parameters, above all others, of groups that are copies or were until a moment ago"""


@dataclass(frozen=True)
class GroupSize:
    """How much a segment holds."""

    shards: int
    bytes: int


@dataclass(frozen=True)
class Observed:
    """One look at one cluster."""

    declaration: Declaration
    members: Mapping[str, MemberState]
    configs: Mapping[int, Mapping[str, Any] | None]
    """Patroni's dynamic configuration by group, None where nobody answered"""
    wanted_configs: Mapping[int, Mapping[str, Any]]
    """what it should be (rendered by the engine's and the user's parameters)"""
    catalogue: Catalogue | None
    """None: the coordinator's primary can't be asked, or is not initialised"""
    initialised: Mapping[int, bool]
    """groups whose primary could be asked: has the engine prepared them (this version)? Others are not in it."""
    sizes: Mapping[int, GroupSize] = field(default_factory=dict)
    operation_status: Mapping[str, Any] | None = None
    """``status.operation`` as the operation's store renders it"""
    last_operation_status: Mapping[str, Any] | None = None
    recovery: Mapping[str, Any] | None = None
    """how far the cluster's making from a backup is; None: it is not (any more) to be made from one"""
    restore: Mapping[str, Any] | None = None
    """how the last restore in place stands; None: there was none"""
    is_being_made: bool = False
    """whether somebody is at work on its making from a backup, wanted or not"""
    repairs: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """groups that are being rebuilt from the backups, or were: how far that is"""
    backups: Mapping[str, Any] | None = None
    """``status.backups``; None: none are declared"""
    unfit: Sequence[str] | None = None
    """what keeps nodes from working as one although each answers, a sentence each; None: nobody was asked, or
    could be"""
    unread: Sequence[str] | None = None
    """declared pg_hba lines that running servers can't read, a sentence each; None: nobody was asked, or could be"""
    unanswered: Mapping[str, float] = field(default_factory=dict)
    """members on silent places whose Patroni has not answered any look, for how many seconds"""
    copies: Collection[int] | None = None
    """without a catalogue, because nodes have to be prepared first: which groups begin as copies; None: nobody knows"""
    admitted_before: Sequence[int] = ()
    """segments that took part when that was last known, as the status says; empty: none ever did, or nobody knows"""

    def of_group(self, group: int) -> list[MemberState]:
        """The group's members, by ordinal."""
        return sorted(
            (state for state in self.members.values() if state.member.group == group),
            key=lambda s: s.member.ordinal,
        )

    def primary(self, group: int) -> MemberState | None:
        """The group's primary, if exactly one says so."""
        leaders = [state for state in self.of_group(group) if state.is_primary]
        return leaders[0] if len(leaders) == 1 else None

    def must_go_on(self, state: MemberState) -> bool:
        """Whether data would be lost with a member's end: they go with it, and nobody else leads its group."""
        primary = self.primary(state.member.group)
        return bool(state.view.doomed) and (primary is None or primary.member == state.member)

    def standbys_wanted(self, group: int) -> int:
        """How many standbys the declaration asks for in this group."""
        spec = self.declaration.cluster.spec
        return spec.coordinator.standbys if group == COORDINATOR else spec.segments.standbys

    def wanted_groups(self) -> list[int]:
        """Groups that must run: the declared ones, and those that may still hold data.

        A group beyond ``segments.count`` goes only once the catalogue itself says that it takes no part any more. Of a
        copy it says so by giving it up: until then somebody may be about to commit that it is a segment.
        """
        groups = {COORDINATOR, *range(1, self.declaration.cluster.spec.segments.count + 1)}
        if self.catalogue is None:
            groups.update(state.member.group for state in self.members.values())
        else:
            groups.update(self.catalogue.segments)
            if self.catalogue.operation is not None:
                groups.update(state.member.group for state in self.members.values())
            undone = {group for group, clone in self.catalogue.clones.items() if clone.state == "undone"}
            copies = self.catalogue.clones.keys() - undone
            groups |= {state.member.group for state in self.members.values()} & copies
            groups -= undone - set(self.catalogue.segments)
        return sorted(group for group in groups if not self.awaits_source(group))

    def awaits_source(self, group: int) -> bool:
        """Whether this group is to begin as a copy, and it is not (known to be) decided of which segment."""
        if self.declaration.cluster.spec.expansion.mode != "clone" or group == COORDINATOR:
            return False
        if any(state.view.has_data or state.view.running for state in self.of_group(group)):
            return False
        if self.catalogue is None:
            return any(state.view.has_data for state in self.of_group(COORDINATOR))
        known = {*self.catalogue.segments, *self.catalogue.clones}
        return bool(self.catalogue.segments) and group not in known

    def knows_beginning(self, group: int) -> bool:
        """Whether ``wanted_configs`` says as what a member of this group would begin.

        That a group is a copy only the catalogue tells, and whom it follows only its source's primary: begun by what
        is known without these, it would be an empty database.
        """
        if self.catalogue is None:
            if self.copies is not None:
                return group not in self.copies
            return group == COORDINATOR or not self.admitted_before or group in self.admitted_before
        clone = self.catalogue.clones.get(group)
        return clone is None or clone.state != "copying" or self.primary(clone.source) is not None

    def has_beginnings(self) -> bool:
        """Whether a declared group has no data on any member yet."""
        return any(
            not any(state.view.has_data for state in self.of_group(group))
            for group in range(1, self.declaration.cluster.spec.segments.count + 1)
        )

    def beginnings(self) -> dict[int, Mapping[str, Any] | None]:
        """What Patroni is told in each wanted group that begins; None: nobody knows it now."""
        return {
            group: self.wanted_configs[group] if self.knows_beginning(group) else None
            for group in self.wanted_groups()
        }

    def is_clone(self, group: int) -> bool:
        """Whether this group is a copy that takes no part yet."""
        return self.catalogue is not None and group in self.catalogue.clones

    def is_complete_copy(self, group: int) -> bool:
        """Whether all members that the group should have run: one follows the source, the others follow that one."""
        states = [state.patroni for state in self.of_group(group) if state.patroni and state.is_running]
        return len(states) > self.standbys_wanted(group) and all(state.streaming for state in states)

    def took_part(self, group: int) -> bool:
        """Whether the cluster counts on this group's data: as the catalogue says, or what is remembered of it."""
        if group == COORDINATOR:
            return bool(self.admitted_before)
        known = self.catalogue.segments if self.catalogue is not None else ()
        return group in (known or self.admitted_before)

    def without_data(self) -> list[int]:
        """Groups that the cluster counts on, and none of whose members has anything left."""
        emptied = [
            group
            for group in self.wanted_groups()
            if self.took_part(group) and not any(state.may_have_data for state in self.of_group(group))
        ]
        # A coordinator that knows of no segment where there were some was founded anew.
        forgot = self.catalogue is not None and not self.catalogue.segments and bool(self.admitted_before)
        return sorted({*emptied, *([COORDINATOR] if forgot else [])})

    def wanted_members(self) -> list[Member]:
        """Every member that must run."""
        name = self.declaration.cluster.metadata.name
        return [
            Member(name, group, ordinal)
            for group in self.wanted_groups()
            for ordinal in range(self.standbys_wanted(group) + 1)
        ]
