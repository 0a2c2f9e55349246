"""Shrink: the last segments give their shards to the others, and leave when they hold none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pgherd.errors import PgherdError
from pgherd.model.placement import Move, plan
from pgherd.model.topology import group_name
from pgherd.operations import steps
from pgherd.operations.base import Context, Course, Doer, Planned, Planner, Work, counted, names
from pgherd.operations.interrupted import left_unfinished
from pgherd.operations.journal import NewStep, Step
from pgherd.operations.store import OperationRow


def _moves(work: Work, retiring: Sequence[int]) -> Sequence[Move]:
    staying = {segment: 1.0 for segment in work.engine.segments() if segment not in retiring}
    if not staying:
        raise PgherdError("no segment would be left to hold the data")
    new = left_unfinished(work.context.databases, work.row.id) & set(staying)
    moves = plan(work.items(), staying, retiring=retiring, new=new)
    steps.require_space(work, moves)
    return moves


def _plan(work: Work, step: Step) -> Planned:
    retiring = step.detail["segments"]
    work.engine.steer(retiring)
    moves = _moves(work, retiring)
    return Planned(f"{counted(len(moves))} to leave {names(retiring)}", moves)


def _verify(work: Work, step: Step) -> Planned:
    """Nobody may have put a shard there meanwhile (a table created just now); if so, it moves too."""
    retiring = step.detail["segments"]
    late = [move for move in _moves(work, retiring) if move.source in retiring]
    if late:
        return Planned(f"{counted(len(late))} more to leave {names(retiring)}", late, again=("verify",))
    return Planned(f"no shards are left on {names(retiring)}")


def _retire(work: Work, step: Step) -> Planned:
    """The segment leaves, unless a table was created there at the last moment: then its shards move first."""
    segment = int(step.detail["segment"])
    late = [move for move in _moves(work, step.detail["segments"]) if move.source == segment]
    if late:
        return Planned(f"{counted(len(late))} more to leave {group_name(segment)}", late, again=("retire",))
    work.engine.retire(segment)
    return Planned(f"{group_name(segment)} takes no part any more")


class Shrink(Course):
    """From ``from_segments`` to ``to_segments``, which is less."""

    kind = "shrink"
    doers: ClassVar[Mapping[str, Doer]] = {"check": steps.check, "clean-up": steps.clean_up}
    planners: ClassVar[Mapping[str, Planner]] = {"plan": _plan, "verify": _verify, "retire": _retire}

    def step_kinds(self) -> Sequence[str]:
        return ("check", "plan", "verify", "clean-up", "retire")

    def head(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        retiring = self._retiring(context, row)
        return [NewStep("check", {"retiring": retiring}), NewStep("plan", {"segments": retiring})]

    def tail(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        retiring = self._retiring(context, row)
        return [
            NewStep("verify", {"segments": retiring}),
            NewStep("clean-up"),
            *(
                NewStep("retire", {"segment": segment, "segments": retiring})
                for segment in reversed(retiring)
            ),
        ]

    def _retiring(self, context: Context, row: OperationRow) -> list[int]:
        return [segment for segment in context.engine.segments() if segment > (row.to_segments or 0)]

    def summary(self, row: OperationRow, moves: int, splits: int = 0) -> str:
        return f"shrunk to {row.to_segments} segments: {counted(moves)} moved"
