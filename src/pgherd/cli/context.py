"""What every command shares: where to look for clusters, how to speak, what goes on if the person leaves.

Results go to stdout, everything said on the way to stderr, so that stdout can be piped.
"""

from __future__ import annotations

import json
import re
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from pgherd.errors import BadInput
from pgherd.model import spec_yaml

if TYPE_CHECKING:
    from pgherd.cli.door import Door

PLATFORMS = ("local", "kubernetes")
"""platforms that this version can run clusters on"""

UNPLACED = ("install", "uninstall", "explain")
"""commands to which it does not matter where clusters run"""

_PLAIN_WIDTH = 400
"""columns where no terminal says how many there are: nothing is cut or folded"""


@dataclass
class Context:
    """One run of the command line."""

    platform: str = "local"
    home: Path | None = None
    bin_dir: Path | None = None
    kube_context: str | None = None
    namespace: str | None = None
    program: str = "pgherd"
    """how this command line was called"""
    options: str = ""
    """global options that the next command needs too"""
    going_on: str = ""
    """what happens in the background if the person presses Ctrl-C now"""

    @property
    def keeper(self) -> str:
        """Who fulfils wishes."""
        return "supervisor" if self.platform == "local" else "operator"

    def client(self) -> Door:
        """The door to this platform's clusters.

        :raises BadInput: there is no way to it, such as a kubeconfig
        """
        # Imported late: `pgherd explain` needs no database driver, and starts faster without.
        if self.platform == "kubernetes":
            from pgherd.remote.client import KubernetesClient

            return KubernetesClient(self.kube_context, self.namespace, self.bin_dir)
        from pgherd.supervisor.client import Client

        return Client(self.home, self.bin_dir)


def require_platform(platform: str, *, context: str | None, namespace: str | None) -> None:
    """Refuse platforms that can't be used, and options of the other platform.

    :raises BadInput: in one line
    """
    if platform not in PLATFORMS:
        raise BadInput(
            f"--platform {platform} is not available in this version: use {' or '.join(PLATFORMS)}"
        )
    for option, value in (("--context", context), ("--namespace", namespace)):
        if platform == "local" and value is not None:
            raise BadInput(f"{option} is for --platform kubernetes; on local use --home")


_current: ContextVar[Context] = ContextVar("pgherd_cli_context")


def current() -> Context:
    """The context of the command that is running."""
    return _current.get()


def begin(context: Context) -> None:
    """Make this the context of the command that is about to run."""
    _current.set(context)


def out() -> Console:
    """stdout: as wide as the terminal, or as wide as need be."""
    return _console(stderr=False)


def err() -> Console:
    """stderr, the same way."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, soft_wrap=not stream.isatty())


def say(text: str) -> None:
    """The result of a command, for people."""
    typer.echo(typeable(text))


def tell(text: str) -> None:
    """Something said on the way."""
    typer.echo(typeable(text), err=True)


def typeable(text: str) -> str:
    """Commands that a text advises, as this person has to type them."""

    def typed(found: re.Match[str]) -> str:
        options = "" if found[1] in UNPLACED else current().options
        return f"'{current().program}{options} {found[1]}"

    return re.sub(r"'pgherd ([a-z]+)", typed, text)


def emit(value: Any, output: str) -> None:
    """A result for programs, ``json`` or ``yaml``."""
    if output == "json":
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        typer.echo(spec_yaml.write(value), nl=False)


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 segment``, ``2 segments``"""
    return f"{count} {one if count == 1 else many or one + 's'}"
