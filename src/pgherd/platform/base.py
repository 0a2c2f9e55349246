"""A platform is where members run: processes on one machine, or pods.

It keeps declarations, starts and stops members and tells what it sees. It never decides: what should run is the
planner's business, who leads is Patroni's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Credentials, Endpoint, Member
from pgherd.patroni.config import LOOPBACK
from pgherd.platform.bench import Bench
from pgherd.platform.machine import Machine, Machines

DONE, FAILED, REVERTED = "done", "failed", "reverted"
"""phases in which the making of a cluster from a backup has ended; the last one: it is as it was before"""
ENDED = (DONE, REVERTED)
"""those of them in which there is a whole cluster"""
NO_WAY_BACK = "noWayBack"
"""in the state of a restore in place: why it can't be taken back, and so goes on whatever happens"""
DOUBT, PLACING = "in doubt", "placing"
"""phases of a repair: nobody is at work until somebody accepts a loss; no member of its group may run"""
REPAIR_ENDED = (DONE, FAILED)
"""those in which it has come to its end"""
CALLED_OFF = "calledOff"
"""in what a repair is asked to do: nobody wants it any more"""


class Lost(Unavailable):
    """What was made of a group is lost with its place, and is to be made anew in another one."""

    def __init__(self, text: str, group: int) -> None:
        super().__init__(text)
        self.group = group


class NothingBefore(PgherdError):
    """A restore in place can't be taken back: what the cluster was before is gone."""


@dataclass(frozen=True)
class Declaration:
    """What was asked for: the cluster as declared, and whether it should be there at all."""

    cluster: PostgresCluster
    stopped: bool = False
    """``pgherd stop``: processes gone, data kept"""
    deleting: bool = False
    """``pgherd delete``: the platform removes the cluster"""
    purge: bool = False
    """with ``deleting``: the data too"""
    generation: int = 0
    """grows with every change of the declaration"""
    problems: Sequence[str] = ()
    """why what was declared last can't be; ``cluster`` is then what was accepted before"""

    @property
    def is_winding_down(self) -> bool:
        """It is to stop or to go: no member is to run."""
        return self.stopped or self.deleting


@dataclass(frozen=True)
class MemberView:
    """What the platform sees of one member (Patroni's and PostgreSQL's own view is asked separately)."""

    member: Member
    running: bool
    """its Patroni is running"""
    has_data: bool
    """there is a data directory"""
    postgres: Endpoint
    rest: Endpoint
    """Patroni's REST API"""
    lost: float | None = None
    """seconds since what it runs on fell silent; None: it reports"""
    note: str = ""
    """why it does not run, where the platform knows"""
    outdated: bool = False
    """what it runs in (image, resources, ...) is not as declared any more: it has to be replaced"""
    tried: bool | None = None
    """of an outdated one: whether it could run in what is declared now; None: nobody knows yet"""
    obstacle: str = ""
    """why it could not, or not yet"""
    doomed: str = ""
    """why its data go when what it runs in ends; empty: they stay"""


@dataclass(frozen=True)
class Owner:
    """Who a cluster is among all that may write to one store: the database system alone is also that of a cluster
    restored from it.

    :param id: as no other cluster is called; empty: the platform knows its clusters apart by themselves
    :param takes_over: the id of a cluster that is gone for good, whose repository this one goes on with
    :param hint: what to do about a repository that is another's, which stands for ``{owner}``
    """

    id: str = ""
    takes_over: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Programs:
    """PostgreSQL's programs, and how to run them as members run.

    :param find: the path of one of them
    :param prefix: what to put before a command
    :param major: PostgreSQL's major version
    """

    find: Callable[[str], Path]
    prefix: Sequence[str]
    major: int


class Workshop(ABC):
    """Where the data of a new cluster's first members are put together, before anybody can connect to them."""

    @abstractmethod
    def folder(self, member: Member) -> Path:
        """A member's folder: what is made in it is removed with the member."""

    @abstractmethod
    def log(self, member: Member) -> Path:
        """Where servers in it say what they do."""

    @abstractmethod
    def machine(self, member: Member) -> Machine:
        """Where that is.

        :raises Unavailable: it can't be used yet
        :raises Lost: nor will it ever be
        """

    def discard(self, member: Member) -> None:
        """Remove what was made of a member, and its place. No-op where places are not lost."""
        return

    def heed(self, stopping: Callable[[], bool]) -> None:
        """Wait for nothing any more once this says so."""
        return

    def standing(self, member: Member) -> Machine | None:
        """The same, if it can be used as it is; None: something would have to be made, or waited for."""
        return self.machine(member)

    def machines(self) -> Machines | None:
        """All of them; None: this machine."""
        return None

    def is_trial(self) -> bool:
        """Whether the cluster is a drill's scratch: what is made of the backup is examined, page by page."""
        return False

    @abstractmethod
    def scratch(self) -> Path:
        """A folder of the cluster's for what is needed only meanwhile; it need not be there."""

    @abstractmethod
    def reserve(self, members: Sequence[Member]) -> Mapping[str, Endpoint]:
        """Where these members will listen, by name; from now on they are the cluster's."""

    @abstractmethod
    def place(self, member: Member, data: Path) -> None:
        """Make a finished data directory in :meth:`folder` its group's first member's own; no-op if that was done."""

    def close(self) -> None:
        """What was needed only to make the data goes; members may start now.

        :raises Unavailable: it is still going
        """
        return

    @abstractmethod
    def set_aside(self) -> None:
        """Take all members' data out of their places, as a whole; no-op if that was done before."""

    @abstractmethod
    def put_back(self) -> Mapping[str, Any]:
        """Undo :meth:`set_aside`, whatever was made in the places meanwhile; no-op if nothing is aside.

        :return: what is to be written down with that, in the state in which it is in force
        :raises NothingBefore: somebody removed what was set aside; what was made is left as it is
        """

    @property
    @abstractmethod
    def kept(self) -> Sequence[str]:
        """What a restore in place that is done has set aside, until it is confirmed."""

    @property
    def asked(self) -> str | None:
        """Which restore in place was asked for last, where that is known by a name of its own."""
        return None

    @property
    def refused(self) -> str:
        """Why that one is not made; empty: it is, or none is asked for."""
        return ""

    @property
    def pending(self) -> Mapping[str, Any] | None:
        """What one that is asked for begins with; None: it has begun, is refused, or none is asked for."""
        return None

    def decide(self, pending: Mapping[str, Any], problem: str = "") -> bool:
        """Begin that one, or write down why it is refused; False: something else is asked for by now."""
        return False

    @abstractmethod
    def end_processes(self, member: Member, data: Path) -> None:
        """End every PostgreSQL process that works on an unfinished data directory."""

    @abstractmethod
    def read_state(self) -> dict[str, Any] | None:
        """What was written last of how far the work is."""

    @abstractmethod
    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write down how far the work is, durably."""


class Platform(ABC):
    """Where members run. One instance serves every cluster of one home or namespace."""

    name: str
    networks: Sequence[str] = LOOPBACK
    """from where members and clients connect (passwords in any case)"""
    calm_seconds: float = 1.0
    """pause between two looks at a cluster that is as declared; a new revision ends it early"""
    tls: bool = False
    """connections over the network are encrypted"""
    shared_machine: bool = True
    """members share one machine: small buffers, whatever was declared"""

    @property
    def parameters(self) -> Mapping[str, str]:
        """PostgreSQL parameters that suit where members run, below the engine's and the user's own."""
        return {}

    # declarations

    @abstractmethod
    def clusters(self) -> Sequence[str]:
        """Names of all clusters, sorted."""

    @abstractmethod
    def declaration(self, name: str) -> Declaration:
        """What was asked for.

        :raises NoSuchCluster: there is none of this name
        """

    def generation(self, name: str) -> int:
        """Which change of the declaration is the last one, whether it makes sense or not.

        :raises NoSuchCluster: there is none of this name
        """
        return self.declaration(name).generation

    def deletion(self, name: str) -> bool | None:
        """Whether the cluster is to be deleted, even if nothing else of its declaration makes sense.

        :return: None: it is not; else whether its data go, too
        """
        declaration = self.declaration(name)
        return declaration.purge if declaration.deleting else None

    def revision(self, name: str) -> object:
        """Something that differs whenever there is a reason to look at the cluster at once. Cheap.

        :raises NoSuchCluster: there is none of this name
        """
        return self.declaration(name).generation

    @abstractmethod
    def declare(self, cluster: PostgresCluster) -> None:
        """Create a cluster or change its declaration. Returns once the wish is durable, not once it is fulfilled."""

    @abstractmethod
    def declare_segments(self, name: str, count: int) -> None:
        """Declare another number of segments."""

    @abstractmethod
    def set_stopped(self, name: str, stopped: bool) -> None:
        """Ask for the members to be gone (data kept), or back."""

    @abstractmethod
    def set_deleting(self, name: str, *, purge: bool) -> None:
        """Ask for the cluster to be removed; with ``purge`` its data too."""

    @abstractmethod
    def forget(self, name: str, *, purge: bool) -> None:
        """Last act of a deletion, when all members are gone: remove what the platform holds of the cluster."""

    @abstractmethod
    def credentials(self, name: str) -> Credentials:
        """The cluster's passwords, made at the first call."""

    @abstractmethod
    def read_status(self, name: str) -> dict[str, Any] | None:
        """The status written last, or None."""

    @abstractmethod
    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        """Publish the status (atomically)."""

    # members

    @abstractmethod
    def members(self, name: str) -> Mapping[str, MemberView]:
        """Every member that exists in any form (a process, a data directory, a reserved port), by member name."""

    @abstractmethod
    def start_member(self, cluster: PostgresCluster, member: Member, dcs_config: Mapping[str, Any]) -> None:
        """Bring a member to life; no-op if it runs. Returns without waiting for it to be ready.

        :param dcs_config: Patroni's dynamic configuration, used if this member bootstraps its group
        """

    @abstractmethod
    def stop_member(self, member: Member) -> None:
        """End a member's processes (PostgreSQL by a fast shutdown), bounded in time; no-op if it is not running."""

    @abstractmethod
    def remove_member(self, member: Member) -> None:
        """Stop a member and remove its data and whatever was reserved for it."""

    def try_member(self, cluster: PostgresCluster, member: Member) -> None:
        """Begin to find out whether an outdated member could run in what is declared now (its view's ``tried``).

        The member goes on meanwhile. No-op if that is under way. Returns at once.
        """
        return

    def replace_member(self, member: Member) -> None:
        """Begin to put an outdated member into what is declared now; its data stay. Returns at once."""
        self.stop_member(member)

    def rebuild_member(self, member: Member) -> None:
        """Begin to build a lost member anew elsewhere, without what it had. Returns at once."""
        self.remove_member(member)

    def has_stopped(self, name: str) -> None:
        """All members of a stopped cluster have ended: what has to be known of that is written down.

        :raises Unavailable: something has not ended yet
        """
        return

    def counts_on(self, name: str, group: int) -> bool | None:
        """Whether a cluster has a group, or is to have it; None: nobody has said yet which ones take part."""
        if group <= self.declaration(name).cluster.spec.segments.count:
            return True
        admitted = (self.read_status(name) or {}).get("admitted")
        return None if admitted is None else group in admitted

    def align(self, cluster: PostgresCluster, configs: Mapping[int, Mapping[str, Any] | None]) -> bool:
        """Bring what is around the members that are there into line with the declaration; cheap when it is.

        :param configs: Patroni's dynamic configuration of every group that should be; None: nobody can say now as what
            a member of it would begin, and what it would begin as stays
        :return: whether anything was changed
        """
        return False

    def announce(self, name: str, what: str, *, failed: bool = False) -> None:
        """Tell whoever follows the cluster what was decided, in one sentence."""
        return

    def connection_options(self, name: str) -> Mapping[str, str]:
        """libpq options of every connection to the cluster's members, besides addresses and passwords."""
        return {}

    def authority(self, name: str) -> str | None:
        """File of the certificate authority of the cluster's REST APIs; None where they are not encrypted."""
        return None

    def programs(self) -> Programs:
        """PostgreSQL's programs of this process's own machine.

        :raises BadInput: members run elsewhere
        """
        raise BadInput(f"backups are not available on {self.name} in this version")

    def machine(self) -> Machine:
        """This process's own machine.

        :raises BadInput: members run elsewhere
        """
        raise BadInput(f"this is not available on {self.name} in this version")

    def machines(self, name: str) -> Machines | None:
        """Where a cluster's members run; None: on this machine."""
        return None

    def secret(self, reference: str) -> Mapping[str, str]:
        """The keys and passphrases that a declaration refers to.

        :raises BadInput: they are not there, or not as they have to be
        """
        raise BadInput(f"secrets are not available on {self.name} in this version")

    def secret_stamp(self, reference: str | None) -> str:
        """Something that differs whenever these were changed; cheap."""
        return ""

    def owner(self, name: str) -> Owner:
        """Who a cluster is to a repository. It stays the same for as long as the cluster's data do.

        :raises NoSuchCluster: there is none of this name
        """
        return Owner()

    def workshop(self, name: str) -> Workshop:
        """Where a new cluster is put together from a backup.

        :raises BadInput: this platform can't do that
        """
        raise BadInput(f"restoring is not available on {self.name} in this version")

    def backup_folder(self, name: str) -> Path:
        """Where what a cluster's backups need on this machine is: configuration, locks. It goes with the cluster.

        :raises BadInput: this platform keeps nothing on this machine
        """
        raise BadInput(f"backups are not available on {self.name} in this version")

    def bench(self, name: str, group: int) -> Bench:
        """Where a group is rebuilt from the backups.

        :raises BadInput: this platform can't do that
        """
        raise BadInput(f"rebuilding a group is not available on {self.name} in this version")

    def benches(self, name: str) -> Mapping[int, Bench]:
        """Those at which a group is being rebuilt, or was last."""
        return {}

    def has_data_now(self, name: str) -> bool:
        """Whether any member has data: asked before a cluster is made from a backup, and not remembered.

        :raises Unavailable: what an earlier cluster of this name had is still being removed
        """
        return any(view.has_data for view in self.members(name).values())

    @property
    def keeps_backups(self) -> bool:
        """Whether ``spec.backup`` and ``spec.bootstrap`` can be followed here."""
        return False

    def schedules(self, name: str) -> Sequence[tuple[PostgresBackupSchedule, Mapping[str, Any] | None]]:
        """A cluster's schedules of backups, and how each stands as it was written down last."""
        return ()

    @abstractmethod
    def free_bytes(self, member: Member) -> int | None:
        """Free space where this member's data is, or None where it can't be known."""

    @abstractmethod
    def logs(self, name: str, member: str | None, *, follow: bool) -> Iterator[str]:
        """Log lines of one member or of all, each prefixed with the member's name in the latter case."""
