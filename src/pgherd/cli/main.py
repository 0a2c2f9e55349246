"""``pgherd``: the command line.

Commands do little: they hand a wish to the client and show the answer. Here their errors become exit codes: 0 done, 1
it failed, 2 bad input, 130 interrupted. Nobody ever sees a traceback unless PGHERD_DEBUG=1 asks for it.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pgherd import __version__
from pgherd.cli import (
    backup_commands,
    cluster_commands,
    install_commands,
    operation_commands,
    repair_command,
    schedule_commands,
)
from pgherd.cli.context import Context, begin, current, require_platform, tell
from pgherd.cli.entry import INTERRUPTED
from pgherd.errors import BadInput, PgherdError, one_line

app = typer.Typer(
    name="pgherd",
    help="Distributed PostgreSQL as a service: deployed, kept alive, grown and shrunk online, from one declaration.",
    epilog="A new cluster: write down what it should be (pgherd explain), then pgherd up -f FILE.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
cluster_commands.register(app)
operation_commands.register(app)
backup_commands.register(app)
schedule_commands.register(app)
repair_command.register(app)
install_commands.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgherd {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    platform: Annotated[
        str, typer.Option(envvar="PGHERD_PLATFORM", metavar="local|kubernetes", help="Where clusters run.")
    ] = "local",
    home: Annotated[
        Path | None,
        typer.Option(
            envvar="PGHERD_HOME",
            help="Local: the directory of your clusters; left out, ~/.local/state/pgherd (or $XDG_STATE_HOME/pgherd).",
        ),
    ] = None,
    bin_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="PGHERD_BIN_DIR", help="Local: PostgreSQL's programs, instead of the installed wheel's."
        ),
    ] = None,
    kube_context: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Kubernetes: the kubeconfig's context.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Kubernetes: the namespace.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        return
    shared = current()
    shared.options = typed_again(context, shared.program, platform, kube_context, namespace)
    if context.invoked_subcommand in install_commands.NAMES:
        platform = "kubernetes"  # there is nothing else to install
    require_platform(platform, context=kube_context, namespace=namespace)
    if home is not None and home.exists() and not home.is_dir():
        raise BadInput(f"--home {home}: is not a directory")
    shared.platform, shared.home, shared.bin_dir = platform, home, bin_dir
    shared.kube_context, shared.namespace = kube_context, namespace


def typed_again(
    context: typer.Context, program: str, platform: str, kube_context: str | None, namespace: str | None
) -> str:
    """The options that an advised command needs to mean the same clusters."""
    installs = context.invoked_subcommand in install_commands.NAMES
    from_environment = "PGHERD_PLATFORM" in os.environ
    options = ""
    if program == "pgherd" and (installs or platform == "kubernetes") and not from_environment:
        options += " --platform kubernetes"
    if kube_context:
        options += f" --context {kube_context}"
    if namespace and not installs:
        options += f" -n {namespace}"
    return options


def main(arguments: Sequence[str] | None = None, program: str = "pgherd") -> None:
    """Run the command line and exit.

    :param program: what the person typed to come here
    """
    _open_closed_streams()
    code = run(sys.argv[1:] if arguments is None else arguments, program)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`pgherd logs | head`); Python must not try to write to it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _open_closed_streams() -> None:
    # Started with one closed (`pgherd list >&-`): Python has None there, and the next file opened would get its number.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for the process's life


def run(arguments: Sequence[str], program: str = "pgherd") -> int:
    """Run one command; returns the exit code."""
    debug = os.environ.get("PGHERD_DEBUG", "") not in ("", "0")
    # What libraries and loops log is for the supervisor's log; here it would tear the progress bar.
    logging.basicConfig(level=logging.DEBUG if debug else logging.CRITICAL)
    context = Context(program=program)
    begin(context)
    try:
        code = _invoke(hoist_global_options(arguments))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(error)
    if code == INTERRUPTED:
        tell(f"\npgherd: interrupted{'; ' + context.going_on if context.going_on else ''}")
    return code


def _invoke(arguments: Sequence[str]) -> int:
    result = typer.main.get_command(app).main(
        list(arguments), prog_name=current().program, standalone_mode=False
    )
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    """Say what went wrong in one line (or one for each problem), with the way out."""
    if isinstance(error, typer.TyperException):
        message = one_line(error.format_message()).replace("Value error, ", "").rstrip(".")
        tell(f"pgherd: {message}{_help_of(error)}")
        return error.exit_code
    if isinstance(error, PgherdError):
        for line in str(error).splitlines() or ["it failed without a reason"]:
            tell(f"pgherd: {line}")
        return error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        tell(f"pgherd: {where}{error.strerror or error}")
        return 1
    tell(f"pgherd: unexpected {type(error).__name__}: {one_line(error)} (PGHERD_DEBUG=1 shows where)")
    return 1


def _help_of(error: typer.TyperException) -> str:
    context: typer.Context | None = getattr(error, "ctx", None)
    return f" (see '{context.command_path} --help')" if context else ""


_GLOBAL_OPTIONS = ("--platform", "--home", "--bin-dir", "--context", "--namespace", "-n")


def hoist_global_options(arguments: Sequence[str]) -> list[str]:
    """Let global options stand anywhere before ``--``, as people type them: ``pgherd status shop --home DIR``."""
    front: list[str] = []
    rest: list[str] = []
    queue = list(arguments)
    while queue and queue[0] != "--":
        argument = queue.pop(0)
        if argument in _GLOBAL_OPTIONS and queue:
            front += [argument, queue.pop(0)]
        elif argument.startswith(tuple(f"{option}=" for option in _GLOBAL_OPTIONS if option != "-n")):
            front.append(argument)
        else:
            rest.append(argument)
    return [*front, *rest, *queue]


if __name__ == "__main__":
    main()
