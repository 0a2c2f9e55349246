"""Watching a long change: a bar on a terminal, plain lines elsewhere.

Fed with the status as it is read again and again. A plain line is written when something new is to be said, at most
one a second, so that a log stays short and the last word is never lost for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from pgherd.cli import render
from pgherd.cli.context import err

Watcher = Callable[[dict[str, Any]], None]

LINE_SECONDS = 1.0


@contextmanager
def watching(name: str, console: Console | None = None) -> Iterator[Watcher]:
    """A function to call with each new status; a bar is gone, lines are complete when the block ends.

    :param console: where to show it; default stderr
    """
    console = console or err()
    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task(name, total=None, detail="")
            yield lambda now: progress.update(task, **_bar_fields(now))
    else:
        yield Lines(name, console)


def _bar(console: Console) -> Progress:
    one_line_only = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim", markup=False, table_column=one_line_only),
    )
    return Progress(*columns, console=console, transient=True, expand=True)


def _bar_fields(now: Mapping[str, Any]) -> dict[str, Any]:
    done, total = amount(now)
    detail = one_line(now)
    return {
        "completed": done,
        "total": total or None,
        "description": f"{now['name']} {now['phase']}",
        "detail": detail,
    }


def amount(now: Mapping[str, Any]) -> tuple[int, int]:
    """How much is done of how much: bytes of an operation, else its moves, else members that run."""
    operation = now.get("operation") or {}
    for done, total in (("bytesDone", "bytesTotal"), ("movesDone", "movesTotal")):
        if operation.get(total):
            return operation.get(done) or 0, operation[total]
    everyone = [member for group in now.get("groups", ()) for member in group["members"]]
    return sum(member.get("state") in ("running", "streaming") for member in everyone), len(everyone)


def one_line(now: Mapping[str, Any]) -> str:
    """What is happening."""
    if now.get("errors"):
        return str(now["errors"][0])
    if now.get("operation"):
        return render.operation_line(now["operation"])
    conditions = {condition["type"]: condition for condition in now.get("conditions", ())}
    progressing = conditions.get("Progressing", {})
    if progressing.get("status") == "True":
        return str(progressing.get("message", ""))
    degraded = conditions.get("Degraded", {})
    return str(degraded.get("message", "")) if degraded.get("status") == "True" else ""


class Lines:
    """Plain lines, one for each thing that is new."""

    def __init__(self, name: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._console = console
        self._clock = clock
        self._said = ""
        self._next = 0.0

    def __call__(self, now: dict[str, Any]) -> None:
        detail = one_line(now)
        text = f"{self._name}: {now['phase']}" + (f": {detail}" if detail else "")
        if text == self._said or self._clock() < self._next:
            return
        self._said, self._next = text, self._clock() + LINE_SECONDS
        self._console.print(text)
