"""Expand: new segments come up, are admitted, and take their share of the shards.

With ``expansion.mode: clone`` they begin as copies of present ones instead, each of which is split in two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pgherd.model.placement import plan
from pgherd.operations import splits, steps
from pgherd.operations.base import Context, Course, Doer, Planned, Planner, Work, counted, names
from pgherd.operations.interrupted import left_unfinished
from pgherd.operations.journal import NewStep, Step
from pgherd.operations.store import OperationRow


def _check(work: Work, step: Step) -> str:
    return splits.check(work, step) if step.detail.get("clone") else steps.check(work, step)


def _plan(work: Work, step: Step) -> Planned:
    work.engine.steer(())
    segments = work.engine.segments()
    new = set(step.detail["segments"]) | left_unfinished(work.context.databases, work.row.id)
    moves = plan(work.items(), dict.fromkeys(segments, 1.0), new=new)
    steps.require_space(work, moves)
    return Planned(f"{counted(len(moves))} to move to {names(sorted(new))}", moves)


class Expand(Course):
    """From ``from_segments`` to ``to_segments``, which is more."""

    kind = "expand"
    doers: ClassVar[Mapping[str, Doer]] = {
        "check": _check,
        "members": steps.members,
        "admit": steps.admit,
        "copies": splits.copies,
        "split": splits.split,
        "clean-up": steps.clean_up,
    }
    planners: ClassVar[Mapping[str, Planner]] = {"plan": _plan}

    def step_kinds(self) -> Sequence[str]:
        return ("check", "members", "admit", "plan", "clean-up")

    def head(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        wanted = range(1, (row.to_segments or 0) + 1)
        new = [segment for segment in wanted if segment not in context.engine.segments()]
        if context.spec().expansion.mode == "clone":
            return splits.head(context.engine, new)
        return [
            NewStep("check"),
            NewStep("members", {"segments": new}),
            *(NewStep("admit", {"segment": segment}) for segment in new),
            NewStep("plan", {"segments": new}),
        ]

    def tail(self, context: Context, row: OperationRow) -> Sequence[NewStep]:
        return [NewStep("clean-up")]

    def summary(self, row: OperationRow, moves: int, splits: int = 0) -> str:
        if splits:
            return f"expanded to {row.to_segments} segments: {splits} of them split off from others"
        return f"expanded to {row.to_segments} segments: {counted(moves)} moved"
