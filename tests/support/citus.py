"""Where a server with Citus is, and homes that use it.

``PGHERD_CITUS_BIN_DIR``, else ``PGHERD_BIN_DIR``, names PostgreSQL's programs; without Citus there, tests marked
``citus`` are skipped, with the reason.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.home import Home, temporary_home

SEEN_BY_CHANCE = {"created", "slot", "copied", "subscribed", "caught-up", "attached", "detached", "cleaned"}
"""moments of a move that Citus tells while somebody looks, or not at all"""


@cache
def bin_dir() -> Path | None:
    """The programs of a PostgreSQL that has Citus, or None."""
    named = os.environ.get("PGHERD_CITUS_BIN_DIR") or os.environ.get("PGHERD_BIN_DIR")
    config = Path(named or "/nowhere") / "pg_config"
    if not config.exists():
        return None
    done = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True)
    return Path(named or "") if (Path(done.stdout.strip()) / "extension/citus.control").exists() else None


needs_citus = [
    pytest.mark.local,
    pytest.mark.citus,
    pytest.mark.skipif(
        bin_dir() is None,
        reason="no Citus: name the programs of a PostgreSQL that has it with PGHERD_CITUS_BIN_DIR",
    ),
]


class Programs:
    """The programs of a PostgreSQL with Citus, by links in a fresh directory. Their ``pg_config`` can tell something
    else: that Citus is gone, or of another version."""

    def __init__(self, directory: Path) -> None:
        real = bin_dir()
        assert real is not None
        self.directory, self._share = directory / "bin", directory / "share"
        self.directory.mkdir(mode=0o755, parents=True)
        directory.chmod(0o755)
        for program in real.iterdir():
            (self.directory / program.name).symlink_to(program)
        config = self.directory / "pg_config"
        config.unlink()
        original, share = shlex.quote(str(real / "pg_config")), shlex.quote(str(self._share))
        lie = f'if [ "$1" = --sharedir ] && [ -d {share} ]; then echo {share}; exit; fi'
        config.write_text(f'#!/bin/sh\n{lie}\nexec {original} "$@"\n')
        config.chmod(0o755)

    def tell(self, version: str | None) -> None:
        """From now on this Citus is installed; None: none is."""
        control = self._share / "extension" / "citus.control"
        control.parent.mkdir(parents=True, exist_ok=True)
        control.unlink(missing_ok=True)
        if version is not None:
            control.write_text(f"default_version = '{version}'\n")

    def tell_the_truth(self) -> None:
        """From now on it is as it is."""
        shutil.rmtree(self._share, ignore_errors=True)


@contextmanager
def citus_home(env: dict[str, str] | None = None) -> Iterator[Home]:
    """A home whose PostgreSQL has Citus."""
    with temporary_home({"PGHERD_BIN_DIR": str(bin_dir()), **(env or {})}) as home:
        yield home


def superuser(home: Home, group: str = "coordinator", name: str = "shop") -> psycopg.Connection[Any]:
    """A session of the superuser at a group's primary."""
    password = json.loads((home.path / name / "credentials.json").read_text())["superuser"]
    primary = home.member(group, "primary", name)
    return psycopg.connect(
        host=primary["host"],
        port=primary["port"],
        user="postgres",
        password=password,
        dbname="app",
        autocommit=True,
    )


@contextmanager
def held_up(home: Home, segment: str) -> Iterator[None]:
    """While this lasts no split commits: it can't tell this segment who is a node."""
    with superuser(home, segment) as connection, connection.transaction():
        connection.execute("LOCK TABLE pg_dist_local_group IN SHARE MODE")
        yield


def is_promoted(home: Home, group: str) -> bool:
    """Whether the copy takes writes; who is asked is the server, as Patroni keeps its hands off."""
    password = json.loads((home.path / "shop" / "credentials.json").read_text())["superuser"]
    groups = {each["name"]: each["members"] for each in home.status()["groups"]}
    for member in groups.get(group, []):
        try:
            with psycopg.connect(
                host=member["host"], port=member["port"], user="postgres", password=password, dbname="app"
            ) as connection:
                return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        except psycopg.OperationalError:
            return False
    return False
