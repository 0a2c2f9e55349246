"""What the installed PostgreSQL itself says of declared parameters, asked before anything runs.

Patroni leaves out a parameter it does not know or whose value is out of range, and only logs it: a typing error would
stay unseen. A library that is not there would keep members from starting. ``postgres -C`` reads parameters exactly as
a server does, needs no data directory, and takes about 2 ms.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from pgherd.engine import registry
from pgherd.model import tuning
from pgherd.model.spec import ParameterValue, PostgresCluster
from pgherd.platform.local.binaries import Binaries

_SECONDS = 30
_MARKS = ("FATAL:", "DETAIL:", "HINT:")


def problems(postgres: Binaries, parameters: Mapping[str, ParameterValue]) -> list[str]:
    """What this PostgreSQL would not take, each with its path in the declaration."""
    return [
        f"spec.postgres.parameters.{name}: {problem}"
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
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if refusal := _refusal(postgres.directory / "postgres", name, text):
        yield refusal
    if name.lower() == "shared_preload_libraries":
        yield from (f"there is no library {library} here" for library in _missing(postgres, text))


def _refusal(program: Path, name: str, value: str) -> str | None:
    # -C must be the first argument: only then may root ask.
    command: list[str | Path] = [
        program,
        "-C",
        "port",
        "--config-file=/dev/null",
        "-D",
        "/",
        "-c",
        f"{name}={value}",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode == 0:
        return None
    told = [
        line.split(mark, 1)[1].strip() for line in done.stderr.splitlines() for mark in _MARKS if mark in line
    ]
    return "; ".join(told) or f"PostgreSQL refuses {value!r}"


def _missing(postgres: Binaries, libraries: str) -> Iterator[str]:
    """Libraries without a file where PostgreSQL would look for them; paths and ``$libdir`` are left to it."""
    folder = _config(postgres, "pkglibdir")
    if folder is None:
        return
    for library in filter(None, (item.strip().strip('"') for item in libraries.split(","))):
        if "/" not in library and not list(folder.glob(f"{library.removesuffix('.so')}.*")):
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
