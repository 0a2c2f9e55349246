"""Commands about schedules of backups: they are declared by 'up', like clusters; here they are looked at and halted."""

from __future__ import annotations

from typing import Annotated

import typer

from pgherd.cli import render
from pgherd.cli.cluster_commands import Output, OutputOption
from pgherd.cli.context import current, emit, out, say, tell

Schedule = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The schedule.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (backup_schedules, suspend_schedule, resume_schedule, delete_schedule):
        app.command(command.__name__.replace("_", "-"), rich_help_panel="Backups")(command)


def backup_schedules(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One cluster's. Left out: all.", show_default=False)
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Show when backups and drills are made by themselves. 'up -f FILE' declares such schedules."""
    rows = current().client().schedules(name)
    if output is not Output.table:
        emit(rows, output)
    elif rows:
        out().print(render.schedules(rows))
    else:
        tell(
            "no schedules here; 'pgherd explain PostgresBackupSchedule' says how 'pgherd up -f FILE' takes one"
        )


def suspend_schedule(schedule: Schedule) -> None:
    """Begin no more backups and drills by a schedule. What runs goes on."""
    current().client().suspend_schedule(schedule, True)
    say(f"{schedule}: suspended; 'pgherd resume-schedule {schedule}' goes on")


def resume_schedule(schedule: Schedule) -> None:
    """Let a schedule go on. What passed meanwhile is not made up for."""
    client = current().client()
    client.suspend_schedule(schedule, False)
    (row,) = [each for each in client.schedules() if each["name"] == schedule]
    say(f"{schedule}: goes on; the next backup is due at {row['nextAt']}")


def delete_schedule(schedule: Schedule) -> None:
    """Delete a schedule. The backups that it made stay."""
    current().client().delete_schedule(schedule)
    say(f"{schedule}: deleted; the backups that it made are kept")
