"""What the installed PostgreSQL itself says of declared parameters, asked before anything runs: see
:mod:`pgherd.platform.parameters`."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from pgherd.engine import registry
from pgherd.model import tuning
from pgherd.model.spec import ParameterValue, PostgresCluster, PostgresSpec
from pgherd.model.spec_hba import HBA_PATH, hba_methods, hba_problems
from pgherd.platform.local.binaries import Binaries
from pgherd.platform.parameters import LIBDIR, QUESTION, absent, libraries, path_of, refusal, setting

_SECONDS = 30
_BUILT_IN = {
    "ldap": ("ldap",),
    "pam": ("pam",),
    "gss": ("gssapi",),
    "cert": ("ssl", "openssl"),
}
"""authentication methods that PostgreSQL knows only if it was built with one of these"""


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


def access_problems(postgres: Binaries, declared: PostgresSpec) -> list[str]:
    """pg_hba lines that this PostgreSQL would not read, each of which would keep every member from starting."""
    text = declared.host_based_authentication
    problems = hba_problems(text, postgres.major, declared.parameters)
    limited = [(number, method) for number, method in hba_methods(text) if method in _BUILT_IN]
    options = _build_options(postgres) if limited else None
    if options is not None:
        problems += [
            f"line {number} has authentication method {method}, which the PostgreSQL in {postgres.directory} was built "
            "without: take another, or name the directory of one that has it with --bin-dir"
            for number, method in limited
            if not options.intersection(_BUILT_IN[method])
        ]
    return [f"{HBA_PATH}: {problem}" for problem in problems]


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
    said = _told(postgres, name)
    folder = Path(said or "")
    return folder if said is not None and folder.is_dir() else None


def _build_options(postgres: Binaries) -> set[str] | None:
    """What PostgreSQL was built with (``--with-NAME``), as ``pg_config`` tells it; None where that can't be known."""
    said = _told(postgres, "configure")
    try:
        arguments = shlex.split(said or "")
    except ValueError:
        return None
    # Other ways to build it leave this empty, or have arguments of their own.
    if not arguments or any(argument.startswith("-D") for argument in arguments):
        return None
    found: set[str] = set()
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.startswith("--with-") and value != "no":
            found.add(name.removeprefix("--with-"))
        elif name.startswith(("--with-", "--without-")):
            found.discard(name.removeprefix("--with-").removeprefix("--without-"))
    return found


def _told(postgres: Binaries, name: str) -> str | None:
    """What ``pg_config`` says; None where it can't be asked."""
    config = postgres.directory / "pg_config"
    if not config.exists():
        return None
    command: list[str | Path] = [config, f"--{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
