"""The command that brings a group back whose members have all lost their data."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pgherd.cli.cluster_commands import Name, NoWait, Timeout, seconds
from pgherd.cli.context import current, say, tell
from pgherd.cli.operation_commands import Group
from pgherd.cli.progress import watching
from pgherd.errors import BadInput

FOR_EVER = 0


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("repair", rich_help_panel="Backups")(repair)


def repair(
    name: Name,
    group: Group,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept-data-loss",
            help="Go on although what is not in the repository is lost; it is said what.",
        ),
    ] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="The group is well: remove what its repair set aside.")
    ] = False,
    no_wait: NoWait = False,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Rebuild one group from the backups, up to the present. For when all its members have lost their data.

    It stops, and nothing is changed, if what comes back may not be all that there was.
    """
    limit, begun = seconds(timeout), time.monotonic()
    context = current()
    client = context.client()
    if confirm:
        if accept:
            raise BadInput("--confirm ends a repair: leave --accept-data-loss out")
        client.confirm_repair(name, group)
        say(f"{name}: what {group} was before its repair is removed")
        return
    asked = client.repair(name, group, accept_data_loss=accept)
    if no_wait or asked["id"] is None:
        say(f"{name}: {asked['message']}; 'pgherd status {name}' shows how far it is")
        return
    tell(f"{name}: {asked['message']}")
    context.going_on = (
        f"the {context.keeper} goes on rebuilding {group}; 'pgherd status {name}' shows how far it is"
    )
    with watching(name) as watcher:
        done = client.wait_repair(name, group, asked["id"], timeout=limit, progress=watcher)
    context.going_on = ""
    for sentence in (*done.get("done", ()), *done.get("findings", ())):
        tell(f"{name}: {sentence}")
    say(
        f"{name}: {group} is back after {time.monotonic() - begun:.1f} s (rung: {done['rung']}): {done['reason']}"
    )
    if done.get("kept"):
        tell(
            f"{name}: what was left of it is kept in {done['kept']}; "
            f"'pgherd repair {name} --group {group} --confirm' removes it"
        )
