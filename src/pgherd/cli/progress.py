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
from pgherd.reconcile.fulfilment import conditions as by_type

Watcher = Callable[[dict[str, Any]], None]

LINE_SECONDS = 1.0


@contextmanager
def watching(name: str, generation: int = 0, console: Console | None = None) -> Iterator[Watcher]:
    """A function to call with each new status; a bar is gone, lines are complete when the block ends.

    :param generation: statuses of an older generation of the declaration are no news
    :param console: where to show it; default stderr
    """
    console = console or err()
    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task(name, total=None, detail="")
            yield _since(generation, lambda now: progress.update(task, **_bar_fields(now)))
    else:
        yield _since(generation, Lines(name, console))


def _since(generation: int, watcher: Watcher) -> Watcher:
    def watch(now: dict[str, Any]) -> None:
        if now.get("generation", generation) >= generation:
            watcher(now)

    return watch


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
    return members(now)


def members(now: Mapping[str, Any]) -> tuple[int, int]:
    """How many members run, of how many."""
    everyone = [member for group in now.get("groups", ()) for member in group["members"]]
    return sum(member.get("state") in ("running", "streaming") for member in everyone), len(everyone)


def one_line(now: Mapping[str, Any]) -> str:
    """What is happening."""
    if now.get("errors"):
        return str(now["errors"][0])
    if now.get("operation"):
        return render.operation_line(now["operation"])
    well, total = members(now)
    told = [f"{well} of {total} members run"] if now["phase"] in ("Pending", "Creating", "Updating") else []
    conditions = by_type(now)
    # While members come, it is no news that some are not there: only a cluster that was complete is degraded.
    kind = "Degraded" if now["phase"] == "Degraded" else "Progressing"
    if conditions.get(kind, {}).get("status") == "True":
        told.append(shortened(str(conditions[kind].get("message", ""))))
    return "; ".join(filter(None, told))


def shortened(message: str) -> str:
    """The first two of a list of sentences, and how many more there are."""
    sentences = message.split("; ")
    more = len(sentences) - 2
    return "; ".join([*sentences[:2], f"and {more} more"]) if more > 0 else message


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
