"""``python -m bench.demo``: play the demo, write the report, leave nothing behind.

``DEMO_KEEP=1`` leaves the cluster up and says how to connect to it and how to remove it. Exit code 0: everything
was as promised; 1: something was not; 2: it could not begin; 130: interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

import psycopg
from rich.console import Console

from bench.demo.acts import NAME, Demo
from bench.demo.report import Report, show
from bench.support import BUILD, Pgherd, PlainPostgres, RunError, alone

DIRECTORY = BUILD / "demo"


def main() -> int:
    """Play it; returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        with alone(DIRECTORY):
            return _perform(console)
    except RunError as error:
        console.print(f"pgherd demo: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _perform(console: Console) -> int:
    begun = time.monotonic()

    def say(act: str, line: str) -> None:
        console.print(f"{time.monotonic() - begun:6.1f} s  {act:16} {line}", markup=False, soft_wrap=True)

    pgherd, plain, report = Pgherd(DIRECTORY / "home"), PlainPostgres(DIRECTORY / "plain"), Report()
    pgherd.remove_everything()
    demo = Demo(pgherd, plain, report, say)
    try:
        _play(demo, report)
        if report.problems():
            pgherd.save_evidence(DIRECTORY / "evidence")
            say("evidence", f"the status and all logs are in {DIRECTORY / 'evidence'}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _leave(pgherd, plain, console)
    report.seconds = time.monotonic() - begun
    (DIRECTORY / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n")
    show(report, console)
    return 0 if not report.problems() else 1


def _play(demo: Demo, report: Report) -> None:
    try:
        demo.play()
    except (RunError, psycopg.Error, OSError) as error:
        report.stopped_by = str(error).strip()
    except KeyboardInterrupt:
        with suppress(RunError):
            demo.stop_writing(within=1)
        raise
    try:
        demo.stop_writing()
    except RunError as error:
        report.stopped_by = report.stopped_by or str(error)


def _leave(pgherd: Pgherd, plain: PlainPostgres, console: Console) -> None:
    plain.remove()
    if os.environ.get("DEMO_KEEP") != "1":
        pgherd.remove_everything()
        return
    command = f"{sys.prefix}/bin/pgherd --home {pgherd.home}"
    console.print(
        f"The cluster stays up (DEMO_KEEP=1). Connect:  {command} psql {NAME}\n"
        f"Remove it:  {command} delete {NAME} --purge --yes",
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
