"""PostgreSQL's programs as they are, but base copies are made slowly, and not verified to their end, while a test wants
that: real ones, in whose middle something can happen."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.home import programs

RATE = "6M"
"""bytes a second: a fresh group's copy takes several"""


@dataclass(frozen=True)
class Throttle:
    """A directory of programs and what makes copies slow."""

    directory: Path
    flag: Path

    def on(self) -> None:
        """From now on base copies, and restores of them, take their time."""
        self.flag.touch()

    def off(self) -> None:
        """Those that are begun later are quick."""
        self.flag.unlink(missing_ok=True)


def throttled(directory: Path) -> Throttle:
    """The programs in use, by links, in a fresh directory."""
    directory.mkdir(mode=0o755)
    flag, real = directory / "slow", programs().directory
    for program in real.iterdir():
        (directory / program.name).symlink_to(program)
    script = directory / "pg_basebackup"
    script.unlink()
    original = shlex.quote(str(real / script.name))
    script.write_text(
        f'#!/bin/sh\nif [ "$1" != --version ] && [ -e {shlex.quote(str(flag))} ]; then\n'
        f'    exec {original} --max-rate={RATE} "$@"\nfi\nexec {original} "$@"\n'
    )
    script.chmod(0o755)
    script = directory / "pg_verifybackup"
    script.unlink()
    script.write_text(
        f"#!/bin/sh\nwhile [ -e {shlex.quote(str(flag))} ]; do sleep 0.2; done\n"
        f'exec {shlex.quote(str(real / script.name))} "$@"\n'
    )
    script.chmod(0o755)
    return Throttle(directory, flag)
