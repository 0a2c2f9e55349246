"""What the installed PostgreSQL itself says of declared parameters, asked before anything runs: see
:mod:`pgherd.platform.parameters`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from pgherd.engine import registry
from pgherd.model import tuning
from pgherd.model.spec import ParameterValue, PostgresCluster
from pgherd.platform.local.binaries import Binaries
from pgherd.platform.parameters import LIBDIR, QUESTION, absent, libraries, path_of, refusal, setting

_SECONDS = 30


def problems(postgres: Binaries, parameters: Mapping[str, ParameterValue]) -> list[str]:
    """What this PostgreSQL would not take, each with its path in the declaration."""
    return [
        f"{path_of(name)}: {problem}"
        for name, value in parameters.items()
        for problem in _problems(postgres, name, value)
    ]


def memory_problems(cluster: PostgresCluster) -> list[str]:
    """Buffers that this machine does not have: a member would restart for them and not come back."""
    wanted = tuning.declared_buffers(cluster)
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted is None or wanted < here:
        return []
    return [
        f"{tuning.BUFFERS}: {wanted >> 20} MiB are more than this machine has ({here >> 20} MiB): lower it"
    ]


def engine_problems(postgres: Binaries, cluster: PostgresCluster) -> list[str]:
    """What this PostgreSQL lacks of the declared engine."""
    return registry.installation_problems(cluster, postgres.major, lambda name: _config(postgres, name))


def _problems(postgres: Binaries, name: str, value: ParameterValue) -> Iterator[str]:
    if problem := _refusal(postgres.directory / "postgres", name, value):
        yield problem
    yield from (absent(library) for library in _missing(postgres, name, value))


def _refusal(program: Path, name: str, value: ParameterValue) -> str | None:
    done = subprocess.run(
        [program, *QUESTION, setting(name, value)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    return None if done.returncode == 0 else refusal(done.stderr, value)


def _missing(postgres: Binaries, name: str, value: ParameterValue) -> Iterator[str]:
    """Libraries without a file where PostgreSQL would look for them."""
    named = libraries(name, value)
    folder = _config(postgres, "pkglibdir") if named else None
    if folder is None:
        return
    for library, path in named.items():
        there = Path(path.replace(LIBDIR, str(folder)))
        if not list(there.parent.glob(f"{there.name}.*")):
            yield library


def _config(postgres: Binaries, name: str) -> Path | None:
    """A folder as ``pg_config`` tells it; None where that can't be known."""
    config = postgres.directory / "pg_config"
    if not config.exists():
        return None
    command: list[str | Path] = [config, f"--{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    folder = Path(done.stdout.strip())
    return folder if done.returncode == 0 and folder.is_dir() else None
