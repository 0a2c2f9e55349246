"""A platform is where members run: processes on one machine, or pods.

It keeps declarations, starts and stops members and tells what it sees. It never decides: what should run is the
planner's business, who leads is Patroni's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Credentials, Endpoint, Member
from pgherd.patroni.config import LOOPBACK


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

    def align(self, cluster: PostgresCluster, configs: Mapping[int, Mapping[str, Any]]) -> bool:
        """Bring what is around the members that are there into line with the declaration; cheap when it is.

        :param configs: Patroni's dynamic configuration of every group that should be
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

    @abstractmethod
    def free_bytes(self, member: Member) -> int | None:
        """Free space where this member's data is, or None where it can't be known."""

    @abstractmethod
    def logs(self, name: str, member: str | None, *, follow: bool) -> Iterator[str]:
        """Log lines of one member or of all, each prefixed with the member's name in the latter case."""
