"""What people see: the status, the list, progress lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from pgherd.cli import render
from pgherd.cli.progress import Lines, amount, one_line, watching


def drawn(renderable: RenderableType) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=400).print(renderable)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def member(name: str, role: str = "primary", state: str = "running", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "state": state,
        "host": "127.0.0.1",
        "port": 5432,
        "lagBytes": 0,
        **more,
    }


def status(**more: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "phase": "Running",
        "engine": "fdw",
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "x", "message": "every group takes writes"},
            {"type": "Degraded", "status": "False", "reason": "x", "message": "all members are as declared"},
        ],
        "groups": [
            {
                "name": "coordinator",
                "id": 0,
                "shards": 0,
                "bytes": 0,
                "members": [
                    member("shop-coordinator-0"),
                    member("shop-coordinator-1", "replica", "streaming", sync=True, lagBytes=2048),
                ],
            },
            {
                "name": "segment-1",
                "id": 1,
                "shards": 16,
                "bytes": 123_456_789,
                "members": [
                    member("shop-segment-1-0"),
                    member("shop-segment-1-1", "unknown", "stopped", port=None),
                ],
            },
        ],
        "operation": None,
        "lastOperation": None,
        "errors": [],
        **more,
    }


OPERATION = {
    "kind": "expand",
    "phase": "moving",
    "movesTotal": 16,
    "movesDone": 3,
    "bytesTotal": 52_428_800,
    "bytesDone": 1_048_576,
    "etaSeconds": 190,
    "message": "moving 1/5 to segment-3",
}


def test_a_status_shows_every_member_where_it_is() -> None:
    lines = drawn(render.status(status()))
    assert lines[0] == "shop  Running  engine fdw  every group takes writes"
    rows = [line.split() for line in lines]
    assert ["coordinator", "shop-coordinator-0", "primary", "running", "127.0.0.1:5432"] in rows
    assert ["shop-coordinator-1", "sync", "standby", "streaming", "2.0", "KiB", "127.0.0.1:5432"] in rows
    assert [
        "segment-1",
        "shop-segment-1-0",
        "primary",
        "running",
        "127.0.0.1:5432",
        "16",
        "117.7",
        "MiB",
    ] in rows
    assert not any("problems" in line for line in lines)


def test_a_status_shows_problems_and_operations() -> None:
    degraded = {"type": "Degraded", "status": "True", "message": "a is stopped; b has no primary"}
    shown = "\n".join(
        drawn(render.status(status(operation=OPERATION, conditions=[degraded], errors=["disk is full"])))
    )
    assert (
        "operation: expand, moving: 3 of 16 moves, 1.0 MiB of 50.0 MiB, about 3 min 10 s left; moving 1/5 to segment-3"
        in shown
    )
    assert "problems:\n  a is stopped\n  b has no primary\n  disk is full" in shown


@pytest.mark.parametrize("kind", ["EngineUnfit", "AccessRulesUnread"])
def test_a_status_shows_what_is_wrong_though_all_is_running(kind: str) -> None:
    wrong = {"type": kind, "status": "True", "message": "segment-2 has another version: bring all to one"}
    assert "problems:\n  segment-2 has another version: bring all to one" in "\n".join(
        drawn(render.status(status(conditions=[wrong])))
    )


def test_a_cluster_that_can_not_be_looked_at_is_listed_too() -> None:
    lines = drawn(render.clusters([status(), {"name": "x", "phase": "Unknown", "groups": []}]))
    assert lines[1].split()[:5] == ["shop", "Running", "fdw", "1", "3/4"]
    assert lines[2].split()[:3] == ["x", "Unknown", "-"]


def test_moves_are_listed_in_order() -> None:
    move = {
        "colocation": 1,
        "index": 5,
        "source": "segment-1",
        "target": "segment-3",
        "bytes": 2048,
        "tables": ["a", "b"],
    }
    assert drawn(render.moves([move]))[1].split() == [
        "1",
        "1/5",
        "segment-1",
        "segment-3",
        "2.0",
        "KiB",
        "a,",
        "b",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**40, "5.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes_for_people(count: int | None, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_progress_counts_bytes_then_moves_then_members() -> None:
    assert amount(status(operation=OPERATION)) == (1_048_576, 52_428_800)
    assert amount(status(operation={**OPERATION, "bytesTotal": 0})) == (3, 16)
    assert amount(status()) == (3, 4)


def test_plain_lines_say_what_is_new_once_a_second() -> None:
    file, clock = io.StringIO(), [0.0]
    say = Lines("shop", Console(file=file, width=400), lambda: clock[0])
    for moment, done in [(0.0, 1), (0.1, 1), (0.5, 2), (1.2, 2), (2.5, 2), (3.0, 3)]:
        clock[0] = moment
        say(
            status(
                phase="Expanding",
                operation={"kind": "expand", "phase": "moving", "movesTotal": 4, "movesDone": done},
            )
        )
    assert file.getvalue().splitlines() == [
        f"shop: Expanding: expand, moving: {done} of 4 moves" for done in (1, 2, 3)
    ]


def test_a_terminal_gets_a_bar_on_one_line() -> None:
    file = io.StringIO()
    with watching("shop", console=Console(file=file, force_terminal=True, width=100)) as watcher:
        watcher(status(phase="Creating", operation={**OPERATION, "message": "[brackets] " * 30}))
        watcher(status(phase="Expanding", operation=OPERATION))
    shown = file.getvalue()
    assert "shop Expanding" in shown
    assert "3 of 16 moves" in shown
    assert shown.count("\n") <= 1


def test_an_older_generation_is_no_news() -> None:
    file = io.StringIO()
    with watching("shop", 2, Console(file=file, width=100)) as watcher:
        watcher(status(generation=1, phase="Degraded"))
        watcher(status(generation=2))
    assert file.getvalue() == "shop: Running\n"


def test_a_creation_counts_members_and_names_two_things_at_most() -> None:
    steps = {"type": "Progressing", "status": "True", "message": "start a; start b; start c; start d"}
    now = status(phase="Creating", conditions=[steps])
    assert one_line(now) == "3 of 4 members run; start a; start b; and 2 more"
