"""What an operation is made of.

An operation is a *course*: a list of steps that are written down before the first is done, and one function for each
kind of step. Every such function may be called again after having been killed anywhere inside: it looks at the
world, does what is missing and says in one sentence what it did. Planning is a step too; the moves that it finds
become steps.

Three things can end a step early: the operation's end is wished for (`EndingError`), something has to come first
that nobody here can do (`NotNowError`: space on a disk, an open window), or a server is away (`Unavailable`). The
first ends the operation or leaves it to a successor, the other two are tried again.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from pgherd.engine.base import Engine
from pgherd.errors import PgherdError
from pgherd.faults import crash_point
from pgherd.model.placement import Item, Move
from pgherd.model.spec import ClusterSpec
from pgherd.model.topology import Endpoints, group_name
from pgherd.operations.journal import Journal, NewStep, Step
from pgherd.operations.store import OperationRow
from pgherd.operations.wishes import Wishes
from pgherd.postgres.connections import Databases

MOVE_MOMENTS = (
    "started", "recorded", "created", "slot", "copied", "subscribed", "caught-up", "attached", "switched", "detached",
    "cleaned", "done",
)  # fmt: skip
"""the moments of a move at which something was persisted"""


class NotNowError(PgherdError):
    """The step has to wait for something that is not in this operation's hands; it is tried again.

    :param phase: the operation's phase meanwhile: ``paused`` if somebody wanted it so, else ``waiting``
    """

    def __init__(self, reason: str, phase: str = "waiting") -> None:
        super().__init__(reason)
        self.phase = phase


@dataclass(frozen=True)
class Context:
    """What an operation needs from whoever runs it. All callables may be called from several threads."""

    engine: Engine
    databases: Databases
    spec: Callable[[], ClusterSpec]
    """the declaration as it is now"""
    segment_ready: Callable[[int], bool]
    """whether a group's members are up and initialised"""
    complete: Callable[[int], bool]
    """whether all members of a group that follows another one stream"""
    held: Callable[[int], bool]
    """whether the Patronis of a group that follows another one have paused"""
    free_bytes: Callable[[int], int | None]
    """free disk space of a group (the least of its members'), None where it can't be known"""
    endpoints: Callable[[int], Endpoints]
    """where a group's members listen"""
    archived: Callable[[], Collection[tuple[int, str]]]
    """group and database system of every log that the cluster's backups hold; asks the repository"""
    now: Callable[[], datetime]
    """local time, for the window"""
    stop: threading.Event
    """set when this process shuts down: leave the operation as it can be carried on"""


@dataclass(frozen=True)
class Work:
    """One operation being carried out."""

    context: Context
    row: OperationRow
    journal: Journal
    wishes: Wishes
    abort: threading.Event
    """set when running moves have to be called off because another one can't succeed"""

    @property
    def engine(self) -> Engine:
        return self.context.engine

    def items(self) -> list[Item]:
        """Every shard group, as planning sees it."""
        return [
            Item(group.id.colocation, group.id.index, group.segment, group.bytes)
            for group in self.engine.shard_groups()
        ]

    def reached(self, step: Step, moment: str) -> None:
        """Something was persisted: a place where a test may kill us. Named with and without the step's number."""
        crash_point(f"{self.row.kind}:{step.kind}:{moment}")
        crash_point(f"{self.row.kind}:{step.kind}-{step.step}:{moment}")


Doer = Callable[[Work, Step], str]
"""does a step and says in one sentence what it did"""


@dataclass(frozen=True)
class Planned:
    """What a planning step found."""

    message: str
    moves: Sequence[Move] = ()
    again: Sequence[str] = field(default_factory=tuple)
    """kinds of steps to be done (again) after these moves"""


Planner = Callable[[Work, Step], Planned]
"""does a step whose outcome are moves"""


class Course(ABC):
    """One kind of operation."""

    kind: ClassVar[str]
    doers: ClassVar[Mapping[str, Doer]]
    planners: ClassVar[Mapping[str, Planner]]

    @abstractmethod
    def head(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        """The steps before the moves."""

    @abstractmethod
    def tail(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        """The steps after the moves."""

    @abstractmethod
    def step_kinds(self) -> Sequence[str]:
        """All kinds of steps, in order of their first occurrence, without the moves."""

    def is_superseded(self, context: Context, row: OperationRow) -> bool:
        """Whether the declaration asks for something else by now."""
        return row.to_segments is not None and context.spec().segments.count != row.to_segments

    def summary(self, row: OperationRow, moves: int, splits: int = 0) -> str:
        """What the operation did, once it is done."""
        return f"{self.kind} done: {counted(moves)} moved"

    def crash_points(self) -> list[str]:
        """Names for ``PGHERD_CRASH_AT``: every moment of this kind of operation at which something is persisted.

        Each stands for its first occurrence. A single step is named with its number: ``expand:move-1003:copied``.
        """
        before = [
            f"{self.kind}:{step}:{moment}" for step in self.step_kinds() for moment in ("started", "done")
        ]
        return [
            *before,
            *(f"{self.kind}:move:{moment}" for moment in MOVE_MOMENTS),
            f"{self.kind}:operation:done",
        ]


def as_steps(moves: Sequence[Move]) -> list[NewStep]:
    """Moves, as they are written down."""
    return [
        NewStep(
            "move",
            {
                "colocation": move.colocation,
                "index": move.index,
                "source": move.source,
                "target": move.target,
            },
            move.bytes,
        )
        for move in moves
    ]


def counted(moves: int) -> str:
    """``1 shard group``, ``4 shard groups``"""
    return f"{moves} shard group{'' if moves == 1 else 's'}"


def names(groups: Sequence[int]) -> str:
    """``segment-3, segment-4``"""
    return ", ".join(group_name(group) for group in groups) or "none"
