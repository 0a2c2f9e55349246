"""PostgreSQL's client programs, run for as long as they need, watched, and never left behind.

A program works on one path of its own; whoever starts one there first ends what an earlier, killed pgherd left running
on it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from pgherd.errors import Cancelled, PgherdError
from pgherd.platform.machine import LAST_BYTES

POLL_SECONDS = 0.05
_PROGRESS = re.compile(r"(\d+)/(\d+) kB")
_ANY_PROGRESS = re.compile(r"\d+/\s*\d+ (kB|relations)")


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    stopping: Callable[[], bool],
    watch: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a program to its end.

    :param watch: told again and again what it said last, and when it has ended its last :data:`LAST_BYTES`
    :raises Cancelled: ``stopping`` said so; the program has ended
    :raises PgherdError: it failed; with its own words
    """
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**_clean_environment(), "LC_ALL": "C", **(environment or {})},
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                if stopping():
                    raise Cancelled(f"{_name(command)} was stopped")
                watch(_tail(output.fileno()))
                try:
                    child.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            _end(child)
        said = _tail(output.fileno(), LAST_BYTES)
        watch(said)
        if child.returncode != 0:
            raise PgherdError(f"{_name(command)}: {complaint(said)}")


def kilobytes(text: str) -> tuple[int, int] | None:
    """Bytes done and in all, from what a program with ``--progress`` said last."""
    found = _PROGRESS.findall(text)
    return (int(found[-1][0]) << 10, int(found[-1][1]) << 10) if found else None


def end_strays(path: Path) -> None:
    """End programs that an earlier pgherd left working on a path."""
    strays = []
    for process in psutil.process_iter():
        try:
            if any(part == str(path) for part in process.cmdline()[1:]) and process.pid != os.getpid():
                strays.append(process)
                process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(strays, timeout=10.0)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(5.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _name(command: Sequence[str | Path]) -> str:
    known = [Path(part).name for part in command if Path(part).name.startswith(("pg_", "pgbackrest"))]
    return known[0] if known else Path(command[0]).name


def _tail(descriptor: int, size: int = 4096) -> str:
    end = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, max(0, end - size)).decode(errors="replace")


def complaint(text: str) -> str:
    """The first error, and its detail and hint."""
    lines = [
        line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() and not _ANY_PROGRESS.search(line)
    ]
    begin = next((n for n, line in enumerate(lines) if re.search(r"\b(error|ERROR|FATAL)\b", line)), None)
    told = lines[begin : begin + 3] if begin is not None else lines[-2:]
    return "; ".join(re.sub(r"^pg_\w+: (error: )?", "", line) for line in told) or "it failed without a word"
