"""Commands that change a running cluster: grow and shrink it, spread its data, let another member lead."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pgherd.cli import render
from pgherd.cli.cluster_commands import Name, NoWait, Output, OutputOption, Timeout, await_fulfilment, seconds
from pgherd.cli.context import current, emit, out, plural, say, tell
from pgherd.cli.progress import watching

FOR_EVER = 0

Group = Annotated[str, typer.Option(help="coordinator or segment-N.", metavar="GROUP")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (scale, rebalance, pause, resume, cancel, switchover, restart, copy_to):
        name = "copy-to" if command is copy_to else None
        app.command(name, rich_help_panel="Changes")(command)


def scale(
    name: Name,
    segments: Annotated[int, typer.Option(help="How many segments there should be.", show_default=False)],
    no_wait: NoWait = False,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Grow or shrink a cluster online. Shards move to new segments, or off those that go."""
    limit = seconds(timeout)
    client = current().client()
    before = client.declared(name).spec
    client.scale(name, segments)
    change = f"from {before.segments.count} to {plural(segments, 'segment')}"
    if before.expansion.paused:
        say(f"{name}: declared {change}; moves are paused until 'pgherd resume {name}'")
    elif no_wait:
        say(f"{name}: scaling {change}; 'pgherd status {name} --watch' shows how far it is")
    else:
        if segments != before.segments.count:
            tell(f"{name}: scaling {change}")
        now = await_fulfilment(name, limit, f"scaling {name} {change}")
        # Not what was asked for here, if somebody else declared something meanwhile.
        there = client.declared(name).spec.segments.count
        said = "" if there == segments else ", as somebody else declared meanwhile"
        say(f"{name}: {plural(there, 'segment')}{said}{moved(now) if there != before.segments.count else ''}")


def moved(now: dict[str, Any]) -> str:
    """What the last operation moved."""
    last = now.get("lastOperation") or {}
    if not last.get("movesTotal"):
        return ""
    return (
        f", {plural(last.get('movesDone') or 0, 'shard group')} moved ({render.size(last.get('bytesDone'))})"
    )


def rebalance(
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the moves.")] = False,
    output: OutputOption = Output.table,
    no_wait: NoWait = False,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Spread the data evenly. With as few moves between segments as possible."""
    limit = seconds(timeout)
    client = current().client()
    if dry_run:
        show_moves(name, client.plan_rebalance(name), output)
        return
    paused = client.declared(name).spec.expansion.paused
    operation = client.rebalance(name)
    if no_wait or paused:
        say(f"{name}: rebalancing" + (f" once 'pgherd resume {name}' allows moves" if paused else ""))
        return
    now = await_fulfilment(name, limit, f"rebalancing {name}", operation)
    say(f"{name}: balanced{moved(now)}")


def show_moves(name: str, plan: list[dict[str, Any]], output: Output) -> None:
    """The moves that a rebalance would make."""
    if output is not Output.table:
        emit(plan, output)
    elif plan:
        out().print(render.moves(plan))
        say(f"\n{plural(len(plan), 'move')}, {render.size(sum(move['bytes'] for move in plan))}")
    else:
        say(f"{name}: balanced already, nothing would move")


def pause(name: Name) -> None:
    """Begin no further move. Those that run are finished."""
    client = current().client()
    client.pause(name)
    running, unseen = operation_of(client.status(name))
    what = (
        f"{running['kind']} is paused"
        if running
        else f"{unseen or 'no operation is running'}; the next one will wait"
    )
    say(f"{name}: {what}; 'pgherd resume {name}' goes on")


def resume(name: Name) -> None:
    """Let moves go on after a pause."""
    client = current().client()
    client.resume(name)
    running, unseen = operation_of(client.status(name))
    allowed = f"moves are allowed; {unseen or 'no operation is running'}"
    say(f"{name}: {running['kind'] + ' goes on' if running else allowed}")


def operation_of(now: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The operation that runs, or why nobody can tell whether one does."""
    roles = {member["role"] for group in now["groups"] if group["id"] == 0 for member in group["members"]}
    unseen = "" if "primary" in roles else "the coordinator has no primary that could tell what is running"
    return now.get("operation"), unseen


def cancel(name: Name) -> None:
    """Call the running operation off. What it began and did not finish is undone."""
    current().client().cancel(name)
    say(f"{name}: cancelling; 'pgherd status {name} --watch' shows when it is done")


def switchover(
    name: Name,
    group: Group,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="MEMBER", help="Who shall lead. Left out: the best standby.", show_default=False
        ),
    ] = None,
) -> None:
    """Let a standby of a group take over from its primary."""
    primary = current().client().switchover(name, group, to)
    say(f"{name}: {primary} is the primary of {group} now")


def restart(
    name: Name,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Only this group. Left out: all.", show_default=False)
    ] = None,
) -> None:
    """Restart PostgreSQL. One member at a time, standbys first."""
    context = current()
    context.going_on = "the member at hand finishes its restart, the others keep running as they are"
    context.client().restart(name, group, lambda text: tell(f"{name}: {text}"))
    say(f"{name}: restarted {group or 'all groups'}")


def copy_to(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The cluster to copy from.", show_default=False)
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A new cluster to copy to.", show_default=False)
    ],
    parallel: Annotated[
        int, typer.Option(help="How many shards to copy at a time.", min=1, max=16, metavar="N")
    ] = 2,
) -> None:
    """Copy a database from an fdw cluster to a citus cluster. Writers at SRC wait until it is over; readers go on.

    Definitions, distribution, rows and sequences go over; at the end counts and checksums of all tables are compared.
    Interrupted, the same command goes on where it was.
    """
    current().going_on = "nothing; writers go on, and the same command goes on with the copy"
    with watching(destination) as watch:

        def told(message: str, done: int, total: int) -> None:
            operation = {
                "kind": "copy",
                "phase": message,
                "movesDone": done,
                "movesTotal": total,
                "unit": "parts",
            }
            watch({"name": destination, "phase": "Copying", "operation": operation})

        done = current().client().copy_to(source, destination, told, parallel)
    rows, sequences = f"{done.rows:,} rows", plural(done.sequences, "sequence")
    say(
        f"{destination}: has all of {source}: {plural(done.tables, 'table')}, {rows}, {sequences};"
        " counts and checksums are equal"
    )
