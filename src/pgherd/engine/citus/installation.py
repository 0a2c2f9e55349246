"""Whether an installation of PostgreSQL has a Citus that we can run, found before anything is started."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

SUPPORTED: Mapping[int, tuple[int, int]] = {13: (15, 17), 14: (16, 18)}
"""for each major version of Citus, the first and the last PostgreSQL that it supports"""

FILES = (("sharedir", "extension/citus.control"), ("pkglibdir", "citus.so"))
"""what an installation has if Citus is in it: a folder by its name in ``pg_config``, and the path in it"""

_ADVICE = "install Citus for it, or name the directory of a PostgreSQL that has it with --bin-dir"


def problems(postgres_major: int, folder: Callable[[str], Path | None]) -> list[str]:
    """What this installation lacks, one line each.

    :param folder: a folder by its name in ``pg_config``, None where it can't be known
    """
    libraries, shared = folder("pkglibdir"), folder("sharedir")
    if libraries is None or shared is None:
        return [f"spec.engine: citus: there is no pg_config here to tell whether Citus is there: {_ADVICE}"]
    known = {"sharedir": shared, "pkglibdir": libraries}
    control, library = (known[where] / file for where, file in FILES)
    missing = [path for path in (control, library) if not path.is_file()]
    if missing:
        return [
            f"spec.engine: citus is not in the PostgreSQL {postgres_major} here (no {missing[0]}): {_ADVICE}"
        ]
    problem = unsupported(version(control.read_text("utf-8", "replace")), postgres_major)
    return [f"spec.engine: {problem}: {_ADVICE}"] if problem else []


def version(control: str) -> tuple[int, ...]:
    """The version of an extension's control file, for example ``(14, 0, 1)``; empty: it has none."""
    found = re.search(r"^default_version\s*=\s*'(\d+)\.(\d+)(?:-(\d+))?'", control, re.MULTILINE)
    return tuple(int(part) for part in found.groups(default="0")) if found else ()


def unsupported(citus: tuple[int, ...], postgres_major: int) -> str | None:
    """Why this pair of versions can't be used; None if it can, or is newer than what we know."""
    if not citus:
        return "the version of Citus here can't be read"
    name = f"Citus {citus[0]}.{citus[1]}"
    if citus[0] < min(SUPPORTED):
        return f"{name} is older than {min(SUPPORTED)}.0, the first that pgherd runs"
    first, last = SUPPORTED.get(citus[0], (0, postgres_major))
    if not first <= postgres_major <= last:
        return f"{name} is for PostgreSQL {first} to {last}, this is {postgres_major}"
    return None
