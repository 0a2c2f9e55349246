"""What can be done about a cluster, one thing at a time. Plain data: planned here, carried out by :mod:`act`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgherd.model.topology import Endpoints, Member, group_name


@dataclass(frozen=True)
class Step:
    """Something to do now. Steps of one plan don't depend on one another.

    ``str(step)`` is one sentence for the log and for events.
    """


@dataclass(frozen=True)
class StartMember(Step):
    """Bring a member to life."""

    member: Member

    def __str__(self) -> str:
        return f"start {self.member.name}"


@dataclass(frozen=True)
class StopMember(Step):
    """End a member's processes, keep its data."""

    member: Member

    def __str__(self) -> str:
        return f"stop {self.member.name}"


@dataclass(frozen=True)
class RemoveMember(Step):
    """Remove a member and its data."""

    member: Member

    def __str__(self) -> str:
        return f"remove {self.member.name} and its data"


@dataclass(frozen=True)
class Forget(Step):
    """The last act of a deletion."""

    purge: bool

    def __str__(self) -> str:
        return "forget the cluster and its data" if self.purge else "forget the cluster, keep its data"


@dataclass(frozen=True)
class ApplyConfig(Step):
    """Patch Patroni's dynamic configuration of a group."""

    group: int
    patch: Mapping[str, Any]

    def __str__(self) -> str:
        return f"change the configuration of {group_name(self.group)}: {', '.join(sorted(self.patch))}"


@dataclass(frozen=True)
class RestartMember(Step):
    """Restart PostgreSQL of a member whose parameters wait for it."""

    member: Member

    def __str__(self) -> str:
        return f"restart {self.member.name} so that changed parameters take effect"


@dataclass(frozen=True)
class RebuildMember(Step):
    """Build a member anew elsewhere that is lost with what it ran on."""

    member: Member

    def __str__(self) -> str:
        return f"rebuild {self.member.name} elsewhere, what it ran on is lost"


@dataclass(frozen=True)
class ReplaceMember(Step):
    """Put a member into what is declared now (image, resources, ...)."""

    member: Member

    def __str__(self) -> str:
        return f"replace {self.member.name}, what it runs in was declared anew"


@dataclass(frozen=True)
class TryMember(Step):
    """See whether a member could run in what is declared now, while it goes on in what it has."""

    member: Member

    def __str__(self) -> str:
        return f"try what {self.member.name} is declared to run in now"


@dataclass(frozen=True)
class Switchover(Step):
    """Let another member of the group lead, because the present primary has to go."""

    leader: Member
    candidate: Member

    def __str__(self) -> str:
        return f"switch over from {self.leader.name} to {self.candidate.name}"


@dataclass(frozen=True)
class Initialise(Step):
    """Prepare a group's primary for the engine."""

    group: int

    def __str__(self) -> str:
        return f"prepare the database of {group_name(self.group)}"


@dataclass(frozen=True)
class AdmitFirst(Step):
    """Let the first segments take part; later ones come by an expand operation."""

    groups: tuple[int, ...]

    def __str__(self) -> str:
        return f"admit {', '.join(group_name(group) for group in self.groups)}"


@dataclass(frozen=True)
class UpdateEndpoints(Step):
    """The coordinator must learn the members of a segment anew."""

    group: int
    endpoints: Endpoints

    def __str__(self) -> str:
        return f"tell the coordinator the members of {group_name(self.group)}"


@dataclass(frozen=True)
class RequestOperation(Step):
    """Write down a new operation."""

    kind: str
    from_segments: int
    to_segments: int

    def __str__(self) -> str:
        return f"{self.kind} from {self.from_segments} to {self.to_segments} segments"


@dataclass(frozen=True)
class RunOperation(Step):
    """Carry on the unfinished operation (no-op where it runs already)."""

    operation: int

    def __str__(self) -> str:
        return f"carry on operation {self.operation}"


@dataclass(frozen=True)
class Recover(Step):
    """Carry on making the cluster from a backup (no-op where that runs already)."""

    error: str | None = None
    """why it can't be done"""

    def __str__(self) -> str:
        return "make the cluster from its backup"


@dataclass(frozen=True)
class Rebuild(Step):
    """Carry on rebuilding a group from the backups (no-op where that runs already)."""

    group: int

    def __str__(self) -> str:
        return f"rebuild {group_name(self.group)} from the backups"


@dataclass(frozen=True)
class CleanUp(Step):
    """Carry out clean-up records that are due."""

    def __str__(self) -> str:
        return "clean up what moves left behind"


@dataclass(frozen=True)
class RecordMembers(Step):
    """Bring ``pgherd.segment_configuration`` up to date."""

    def __str__(self) -> str:
        return "record the members' roles"


#: Steps that are always there in a healthy cluster's life: they don't keep it from being Ready.
BACKGROUND = (CleanUp, RecordMembers)


def is_settled(steps: Sequence[Step]) -> bool:
    """Nothing left to do but housekeeping."""
    return all(isinstance(step, BACKGROUND) for step in steps)
