"""``python -m bench``: measure, print a table, write ``build/bench/report.json``.

``--only NAME`` (may be repeated) runs some of the benchmarks, ``--runs N`` says how often each is repeated. Absolute
numbers depend on the machine; ratios are taken within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from bench.scenarios import (
    backups,
    citus_failover,
    citus_moves,
    citus_pauses,
    citus_ratio,
    engine,
    failover,
    moves,
    planning,
    ready,
)
from bench.scenarios.base import Lab, Result, Scenario
from bench.scenarios.citus import why_not
from bench.support import BUILD, RunError, alone, timed

SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "planning": (planning.run, 3),
    "ready": (ready.run, 3),
    "engine": (engine.run, 5),
    "moves": (moves.run, 1),
    "failover": (failover.run, 20),
    "citus-pauses": (citus_pauses.run, 3),
    "citus-failover": (citus_failover.run, 10),
    "citus-moves": (citus_moves.run, 1),
    "citus-ratio": (citus_ratio.run, 5),
    "backups": (backups.run, 1),
    "backups-pgbackrest": (backups.run_pgbackrest, 1),
}
"""each with how often it is repeated if nobody says otherwise"""
NEEDS: dict[str, Callable[[], str | None]] = {
    **{name: why_not for name in SCENARIOS if name.startswith("citus-")},
    "backups-pgbackrest": backups.why_no_pgbackrest,
}
"""of those that can't run everywhere: why not here"""


def main() -> int:
    """Run what was asked for; returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    directory = BUILD / "bench"
    try:
        with alone(directory):
            return _run(
                arguments, Lab(directory, lambda line: console.print(f"  {line}", markup=False)), console
            )
    except RunError as error:
        console.print(f"pgherd bench: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=SCENARIOS, help="run only this one; may be repeated"
    )
    parser.add_argument("--runs", type=_positive, help="how often each is repeated")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number >= 1, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace, lab: Lab, console: Console) -> int:
    report: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        }
    }
    table = Table(title="pgherd bench", title_justify="left")
    for column in ("benchmark", "what", "result"):
        table.add_column(column)
    failed = False
    for name in arguments.only or SCENARIOS:
        if name in NEEDS and (reason := NEEDS[name]()):
            console.print(f"{name}: left out: {reason}", markup=False)
            failed = failed or bool(arguments.only)
            continue
        scenario, runs = SCENARIOS[name]
        console.print(f"{name} ...")
        seconds, result = timed(lambda s=scenario, n=arguments.runs or runs: _attempt(s, lab, n))  # type: ignore[misc]
        failed = failed or "failed" in result.numbers
        report[name] = {**result.numbers, "took_s": round(seconds, 1)}
        for what, shown in result.rows:
            table.add_row(name, what, shown)
    (lab.directory / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(table)
    return 1 if failed else 0


def _attempt(scenario: Scenario, lab: Lab, runs: int) -> Result:
    """One benchmark that fails does not take the others with it."""
    try:
        return scenario(lab, runs)
    except (RunError, psycopg.Error, OSError) as error:
        return Result({"failed": str(error).strip()}, [("failed", str(error).strip())])


if __name__ == "__main__":
    sys.exit(main())
