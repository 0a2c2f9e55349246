"""Rebalance: shards move between the present segments until their bytes are even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pgherd.engine.base import Engine
from pgherd.model.placement import Item, Move, plan
from pgherd.operations import steps
from pgherd.operations.base import Context, Course, Doer, Planned, Planner, Work, counted
from pgherd.operations.journal import NewStep, Step
from pgherd.operations.store import OperationRow


def plan_rebalance(engine: Engine) -> list[Move]:
    """The moves that a rebalance would make now, in order."""
    items = [
        Item(group.id.colocation, group.id.index, group.segment, group.bytes)
        for group in engine.shard_groups()
    ]
    return plan(items, dict.fromkeys(engine.segments(), 1.0), rebalance=True)


def _plan(work: Work, step: Step) -> Planned:
    work.engine.steer(())
    moves = plan_rebalance(work.engine)
    steps.require_space(work, moves)
    return Planned(f"{counted(len(moves))} to move", moves)


class Rebalance(Course):
    """The number of segments stays."""

    kind = "rebalance"
    doers: ClassVar[Mapping[str, Doer]] = {"check": steps.check, "clean-up": steps.clean_up}
    planners: ClassVar[Mapping[str, Planner]] = {"plan": _plan}

    def step_kinds(self) -> Sequence[str]:
        return ("check", "plan", "clean-up")

    def head(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        return [NewStep("check"), NewStep("plan")]

    def tail(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        return [NewStep("clean-up")]

    def is_superseded(self, context: Context, row: OperationRow) -> bool:
        return context.spec().segments.count != len(context.engine.segments())
