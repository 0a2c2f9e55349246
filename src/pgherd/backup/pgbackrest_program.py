"""pgBackRest itself, where it is installed on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from pgherd.backup import tools
from pgherd.backup.pgbackrest_config import complaint, version_problem
from pgherd.errors import BadInput, Cancelled, PgherdError

VARIABLE = "PGHERD_PGBACKREST"
PATIENCE_SECONDS = 120.0
"""for a command that only looks"""


def find() -> Path:
    """The program.

    :raises BadInput: it is not here
    """
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or "pgbackrest")
    if found is None:
        raise BadInput(
            f"spec.backup.method: pgbackrest is not installed here ({named or 'pgbackrest'} is no program): "
            f"install it, name it with {VARIABLE}, or leave method out"
        )
    return Path(found).absolute()


def name() -> str:
    """The program's path; its bare name where it is not installed (any more): members go on without it."""
    try:
        return str(find())
    except BadInput:
        return "pgbackrest"


def check(major: int) -> None:
    """Refuse a pgBackRest that does not know a PostgreSQL.

    :raises BadInput: with both versions
    """
    program = find()
    stamp = program.stat()
    problem = version_problem(_version(str(program), stamp.st_mtime_ns), major)
    if problem is not None:
        raise BadInput(f"spec.backup.method: {problem}")


@lru_cache(maxsize=16)
def _version(program: str, changed: int) -> str:
    try:
        done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BadInput(f"spec.backup.method: {program} does not run: {error}") from None
    return done.stdout.strip() or done.stderr.strip()


class Program:
    """Runs it with one configuration.

    :param config: ``pgbackrest.conf``
    :param prefix: what to put before a command, as members run
    """

    def __init__(self, program: Path, config: Path, prefix: Sequence[str]) -> None:
        self._start = [*prefix, str(program), f"--config={config}"]

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> None:
        """A command that takes its time.

        :raises Cancelled: ``stopping`` said so
        :raises PgherdError: it failed; in its own words
        """
        try:
            tools.run([*self._start, *arguments], environment=environment, stopping=stopping, watch=watch)
        except Cancelled:
            raise
        except PgherdError as error:
            raise PgherdError(complaint(str(error))) from error

    def output(self, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> bytes:
        """What a command prints.

        :raises PgherdError: it failed; in its own words
        """
        command = [*self._start, "--log-level-console=off", "--log-level-stderr=error", *arguments]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                env={**_clean(), **(environment or {})},
                timeout=PATIENCE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PgherdError(f"pgbackrest does not run: {error}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace")
            raise PgherdError(f"pgbackrest: {complaint(said) or f'exit code {done.returncode}'}")
        return done.stdout


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
