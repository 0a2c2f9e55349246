"""Running other programs, and waiting for conditions with a deadline."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from lab.errors import CommandError, LabError


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | BinaryIO | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = 120,
) -> str:
    """Run a program to its end and return what it printed.

    :param timeout: seconds; None waits for ever
    :raises CommandError: it is not there, failed, or took longer than that
    """
    words = [str(word) for word in argv]
    try:
        done = _run(words, stdin, env, cwd, timeout)
    except FileNotFoundError as error:
        raise CommandError(f"{words[0]}: not found ({error.filename})") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(words[:6])}: not done after {timeout} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise CommandError(f"{' '.join(words[:6])}: exit {done.returncode}: {said[-2000:]}")
    return done.stdout.decode(errors="replace")


def _run(
    words: list[str],
    stdin: str | BinaryIO | None,
    env: dict[str, str] | None,
    cwd: Path | None,
    timeout: float | None,
) -> subprocess.CompletedProcess[bytes]:
    if isinstance(stdin, str):
        return subprocess.run(
            words, check=False, input=stdin.encode(), capture_output=True, env=env, cwd=cwd, timeout=timeout
        )
    source = subprocess.DEVNULL if stdin is None else stdin
    return subprocess.run(
        words, check=False, stdin=source, capture_output=True, env=env, cwd=cwd, timeout=timeout
    )


def succeeds(argv: Sequence[str | Path], *, timeout: float = 10) -> bool:
    """Whether a program ends well within that many seconds."""
    try:
        run(argv, timeout=timeout)
    except CommandError:
        return False
    return True


def wait_until(
    condition: Callable[[], bool], what: str, *, deadline: float, pause: float = 0.1, hint: str = ""
) -> None:
    """Ask again and again until the condition holds.

    :param deadline: seconds from now
    :raises LabError: it did not hold in time; the message names what was waited for
    """
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"still waiting for {what} after {deadline:.0f} s{': ' + hint if hint else ''}")
        time.sleep(pause)
