"""An engine makes many PostgreSQLs one database.

The core knows only this interface; it never asks which engine it is talking to. Everything an engine needs to know
between two calls is in the coordinator database (schema ``pgherd`` and the engine's own catalogue), so that a
failover of everything, or a kill -9 of the caller, loses nothing. All methods are idempotent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pgherd.model.topology import Endpoints
from pgherd.postgres.connections import Databases


@dataclass(frozen=True, order=True)
class ShardGroupId:
    """The shards of colocated tables with the same hash bucket: what moves as one."""

    colocation: int
    index: int

    def __str__(self) -> str:
        return f"{self.colocation}/{self.index}"


@dataclass(frozen=True)
class ShardGroup:
    """A shard group where it is now."""

    id: ShardGroupId
    segment: int
    bytes: int
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of a table that are in one place."""

    group: int
    relation: str
    """its name there, with its schema, quoted; after ONLY where other tables inherit from it"""


@dataclass(frozen=True)
class TableLayout:
    """One of the users' tables: how it is spread, and where its rows are."""

    name: str
    """with its schema, quoted"""
    kind: str
    """``distributed``, ``reference`` or ``local`` (on the coordinator only)"""
    key: str | None
    """the distribution column"""
    colocation: int | None
    pieces: tuple[Piece, ...]
    """every row is in exactly one of them"""
    constraints: tuple[str, ...] = ()
    """statements that make what its definition on the coordinator lacks"""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found wrong. ``fix`` says what to do."""

    group: int
    check: str
    message: str
    fix: str


@dataclass(frozen=True)
class Clone:
    """A group that begins as a physical copy of a segment, and takes no part yet."""

    source: int
    """the segment that it is copied from"""
    state: str
    """``copying``: it is, or follows as a standby; ``parting``: nobody but the engine may promote it now; ``undone``:
    it is given up, and everything of it goes"""


class MoveControl(Protocol):
    """What a move tells its operation, and asks it."""

    def report(self, message: str, bytes_done: int | None = None) -> None:
        """Say in one sentence what is happening, and how many bytes of this shard group are over."""

    def checkpoint(self, name: str) -> None:
        """A step was persisted.

        :raises Cancelled: the operation was cancelled or this process is asked to stop: undo the move, then let
            the exception pass
        """


class Engine(ABC):
    """Many databases as one. One instance serves one cluster; it holds no state of its own."""

    name: str
    restart_seconds: int = 0
    """how long a primary that crashed may take to come back where it is, before a standby takes over; 0: one takes
    over at once"""
    alone_options: str = ""
    """what a session says as it begins, in the form of ``PGOPTIONS``, that works on one server as if it were no part
    of a cluster"""

    def preload_libraries(self) -> Sequence[str]:
        """What every member needs in ``shared_preload_libraries``."""
        return ()

    def parameters(self, group: int, shard_count: int) -> Mapping[str, str | int | bool]:
        """PostgreSQL parameters that this engine needs in a group, below the user's own."""
        return {}

    @classmethod
    def patroni_section(cls, database: str, group: int) -> Mapping[str, Any]:
        """What Patroni is told so that groups know of one another, for example ``{"citus": {...}}``; empty: each
        group is a Patroni cluster of its own."""
        return {}

    @abstractmethod
    def is_initialised(self, group: int) -> bool:
        """Whether a group's primary has what :meth:`initialise_coordinator` or :meth:`initialise_segment` makes, as
        this version makes it.

        :raises Unavailable: the primary can't be asked
        """

    def unfit(self) -> Sequence[str]:
        """What keeps nodes from working as one although each answers (other versions of what the engine needs, or it
        is gone from one of them): a sentence each with the node and the way out; empty: nothing.

        :raises Unavailable: the coordinator can't be asked
        """
        return ()

    @abstractmethod
    def initialise_coordinator(self, shard_count: int) -> None:
        """Make the coordinator's primary ready: role and database, schema ``pgherd``, the SQL interface.

        Safe to call at every start: it brings the objects of an older version up to date.
        """

    @abstractmethod
    def initialise_segment(self, group: int) -> None:
        """Make a segment's primary ready to be admitted: role, database, what moves and checks need there."""

    @abstractmethod
    def admit(self, group: int, endpoints: Endpoints) -> None:
        """Let a segment take part: the coordinator knows it, it has every table's definition and a complete copy
        of every reference table. It holds no shards yet (unless it is among the first segments)."""

    @abstractmethod
    def update_endpoints(self, group: int, endpoints: Endpoints) -> None:
        """The members of an admitted segment changed (standbys came or went)."""

    @abstractmethod
    def retire(self, group: int) -> None:
        """The opposite of :meth:`admit`.

        :raises PgherdError: the segment still holds shards
        """

    @abstractmethod
    def segments(self) -> Sequence[int]:
        """The admitted segments' group ids, in order."""

    @abstractmethod
    def endpoints(self) -> Mapping[int, Endpoints]:
        """The endpoints that the catalogue holds for each admitted segment."""

    @abstractmethod
    def shard_groups(self) -> Sequence[ShardGroup]:
        """Every shard group with its place and size (bytes with indexes and TOAST, asked in one query a segment)."""

    def steer(self, retiring: Collection[int]) -> None:  # noqa: B027 (nothing to do is a right answer)
        """Where shards of tables made from now on go: to every admitted segment but those that are ``retiring``."""

    @abstractmethod
    def preflight(
        self, groups: Sequence[ShardGroupId], *, blocking: bool = False, retiring: Collection[int] = ()
    ) -> Sequence[str]:
        """What keeps these shard groups from being moved, one sentence each with the way out; empty: nothing.

        :param blocking: moved with writers kept out, so whatever concerns replication does not matter
        :param retiring: segments that are to hold nothing afterwards
        """

    def alone(self) -> Callable[[ShardGroupId], object]:
        """Of shard groups for which this gives the same, only one may move at a time."""
        return lambda group: group

    @abstractmethod
    def move(
        self,
        operation: int,
        group: ShardGroupId,
        target: int,
        control: MoveControl,
        *,
        blocking: bool = False,
    ) -> None:
        """Bring one shard group to ``target``, online unless ``blocking``.

        Returns at once if it is there already. Clean-up records are written before things are made. After it
        returns the new placement is committed; the source's copy may still exist, with a clean-up record.

        :param operation: id in ``pgherd.operations``, for the clean-up records
        :raises Cancelled: from ``control``; the move is undone
        :raises Unavailable: a server went away; undone as far as it could be, :meth:`clean_up` does the rest
        """

    # segments that are split in two; engines that can't have no clones

    def clone_problems(self) -> Sequence[str]:
        """What keeps segments from being split by a copy of their servers, one sentence each; empty: nothing."""
        return ("spec.expansion.mode: this engine has no clones: use online or blocking",)

    def clones(self) -> Mapping[int, Clone]:
        """The groups that begin as copies, until they are segments or gone."""
        return {}

    def clone_parameters(self) -> Mapping[int, Mapping[str, str]]:
        """PostgreSQL parameters, above all others, of the groups that begin as copies and of those that were until a
        moment ago: whose own servers do not know it for certain yet."""
        return {}

    def begin_clone(self, operation: int, group: int, source: int) -> bool:
        """Write down that ``group`` begins as a copy of ``source``, unless it is written, or it is a segment by now.

        :return: false: an earlier attempt's copy has to go first; ask again
        """
        raise NotImplementedError

    def is_copied(self, group: int) -> str | None:
        """None: the copy follows its source as a standby, up to the moment. Else what it is doing."""
        raise NotImplementedError

    def hold_clone(self, group: int) -> None:
        """Write down that the copy is about to become a segment: its Patroni has to keep its hands off."""
        raise NotImplementedError

    def split(self, operation: int, group: int, source: int, control: MoveControl) -> None:
        """Make the copy a segment and give it half of the source's shards; one transaction decides both.

        Returns at once if it is one already.

        :raises Unavailable: it could not be done now; nothing has changed, or the copy has to be made anew
        """
        raise NotImplementedError

    def finish_split(self) -> None:
        """What new segments have of their sources that only one of them may have is made their own; :meth:`clean_up`
        without an operation does this, too."""
        raise NotImplementedError

    def forget_clones(self) -> int:
        """Give up the copies that no operation is about, and forget those whose members are gone: until then nothing
        can be made in their place. :meth:`clean_up` without an operation does this, too.

        :return: how many remain
        """
        return 0

    @abstractmethod
    def clean_up(self, operation: int | None = None) -> int:
        """Carry out the clean-up records that are due (all, or those of one operation) and put right what a killed
        move left behind. Must not touch what a running move of this process uses.

        :return: how many records remain (a server is away, an old transaction still reads)
        """

    @abstractmethod
    def create_restore_point(
        self, name: str, measured: Callable[[float], None] = lambda seconds: None
    ) -> Mapping[int, str]:
        """A point at which all groups agree. Returns for each group an LSN that the point is at or before.

        :param measured: told for how many seconds commits were held off
        """

    @abstractmethod
    def settle_restored(self, endpoints: Mapping[int, Endpoints]) -> Sequence[str]:
        """Make a restored cluster one of its own: transactions that were half committed are ended as the commit records
        say, and whatever holds addresses or passwords gets those of this cluster.

        Asked before anybody can connect, of servers in which none of the engine's libraries is loaded and no trigger
        fires; they must not be made to connect to one another.

        :param endpoints: where each group's members will listen
        :return: what was done, a sentence each
        """

    def settle_rebuilt(self, group: int, rebuilt: Databases, *, lossy: bool) -> Sequence[str]:
        """End what was half committed in one group that was rebuilt from its log, as the running cluster's commit
        records say, before it takes part again.

        :param rebuilt: the way to the group's server, which nobody else reaches and which has none of the engine's
            libraries; the other groups are reached as ever
        :param lossy: the end of its log is missing: a commit record may be gone because its transaction had ended
        :return: what was done, a sentence each
        :raises Unavailable: another group has to be asked and does not answer
        """
        return ()

    @abstractmethod
    def layout(self) -> Sequence[TableLayout]:
        """The users' tables and where their rows are, in the order in which they were distributed."""

    @abstractmethod
    def check(self) -> Sequence[Finding]:
        """Compare catalogue and world: strays, missing or extra shards, definitions, reference copies, leftovers."""
