"""Commands about backups: make one, look at what there is, restore a cluster from it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from pgherd.cli import render
from pgherd.cli.cluster_commands import (
    Name,
    NoWait,
    Output,
    OutputOption,
    Timeout,
    await_fulfilment,
    read,
    seconds,
)
from pgherd.cli.context import current, emit, out, plural, say, tell
from pgherd.cli.progress import watching
from pgherd.errors import BadInput, PgherdError
from pgherd.model import spec
from pgherd.reconcile.drill_words import unchecked

FOR_EVER = 0

Repository = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|FILE",
        help="Where the backups are, if the cluster is gone: repository.path, or a FILE.yaml with what spec.backup "
        "said. On Kubernetes: such a file, with restore.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (backup, backups, restore_points, restore, clone, drill, drills):
        app.command(command.__name__.replace("_", "-"), rich_help_panel="Backups")(command)


def backup(
    name: Name,
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="full: everything. differential: what changed since the last full one. incremental: what changed "
            "since the last one.",
        ),
    ] = "full",
    no_wait: NoWait = False,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Back up a cluster. Every group side by side, closed by a restore point."""
    limit = seconds(timeout)
    context = current()
    client, begun = context.client(), time.monotonic()
    made = client.backup(name, kind)
    if no_wait:
        say(f"{name}: backup {made} begins; 'pgherd backups {name}' shows how far it is")
        return
    context.going_on = (
        f"the {context.keeper} goes on backing {name} up; 'pgherd backups {name}' shows how far it is"
    )
    with watching(name) as watcher:
        done = client.wait_backup(name, made, timeout=limit, progress=watcher)
    context.going_on = ""
    for group in done["groups"].values():
        if group["note"]:
            tell(f"{name}: {group['note']}")
    amount = f"{plural(len(done['groups']), 'group')}, {render.size(done['bytes'])}"
    say(f"{name}: backup {made} is done ({amount}, {time.monotonic() - begun:.1f} s)")


def backups(name: Name, repository: Repository = None, output: OutputOption = Output.table) -> None:
    """Show the backups of a cluster."""
    rows = current().client().backups(name, repository)
    if output is not Output.table:
        emit(rows, output)
    elif rows:
        out().print(render.backups(rows))
    else:
        tell(f"no backups of {name} yet; 'pgherd backup {name}' makes one")


def restore_points(
    name: Name,
    repository: Repository = None,
    last: Annotated[
        int, typer.Option(metavar="N", min=0, help="Only the last N; 0: all, as -o json shows them.")
    ] = 20,
    output: OutputOption = Output.table,
) -> None:
    """Show the moments to which a cluster can be restored."""
    rows = current().client().restore_points(name, repository)
    if output is not Output.table:
        emit(rows, output)
        return
    if not rows:
        tell(f"no restore points of {name} yet; spec.backup.restorePointEvery says how often one is made")
        return
    shown = rows[-last:]
    out().print(render.restore_points(shown))
    good = sum(row["restorable"] for row in rows)
    say(f"\n{good} of {plural(len(rows), 'restore point')} can be restored" + more(len(rows) - len(shown)))
    if since := current().client().restore_points_since(name):
        say(
            f"from before {since} only those are listed that close a backup; the others can be restored, too, with "
            f"'pgherd restore {name} NEW --time TIME' or --point"
        )


def more(count: int) -> str:
    """How many are not shown."""
    return f"; {count} earlier ones are not shown (--last 0)" if count else ""


def restore(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The cluster that was backed up.", show_default=False)
    ],
    target: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The new cluster; left out with --in-place.", show_default=False),
    ] = None,
    point: Annotated[
        str | None, typer.Option(metavar="POINT", help="To this restore point.", show_default=False)
    ] = None,
    moment: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="TIME",
            help="To the newest restore point at or before this time (2026-11-21T09:15:00Z).",
            show_default=False,
        ),
    ] = None,
    made: Annotated[
        str | None,
        typer.Option("--backup", metavar="BACKUP", help="To the end of this backup.", show_default=False),
    ] = None,
    exclusive: Annotated[
        bool,
        typer.Option(
            "--exclusive",
            help="Without the point that is meant: to the newest one before it (with --point, --time or --backup).",
        ),
    ] = False,
    repository: Repository = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="What the new cluster should be (other standbys, other parameters); left out: what SOURCE was.",
            show_default=False,
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Take SOURCE itself back; its data are kept until --confirm.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, take it back (with --in-place).")] = False,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="SOURCE is well as it is: remove what --in-place kept. Goes alone."),
    ] = False,
    no_wait: NoWait = False,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Make a new cluster from the backups of another. To a restore point, a time or a backup; left out: the newest."""
    limit, begun = seconds(timeout), time.monotonic()
    context = current()
    if confirm:
        others = {
            "NAME": target,
            "--point": point,
            "--time": moment,
            "--backup": made,
            "--exclusive": exclusive,
            "--repository": repository,
            "--file": file,
            "--in-place": in_place,
        }
        if given := next((option for option, value in others.items() if value), None):
            raise BadInput(
                f"--confirm ends a restore in place, and removes what that kept: leave {given} out"
            )
        context.client().confirm_restore(source)
        say(f"{source}: what it was before its restore is removed")
        return
    target = checked_target(source, target, in_place=in_place, yes=yes, file=file)
    declared = None if file is None else spec.load(read(file), source=file, platform=context.platform)
    found = context.client().restore(
        source,
        target,
        repository=repository,
        restore_point=point,
        time=moment,
        backup=made,
        inclusive=not exclusive,
        declared=declared,
        in_place=in_place,
    )
    tell(f"{target}: {as_of(source, found)}")
    if no_wait:
        say(f"{target}: being restored; 'pgherd status {target} --watch' shows how far it is")
        return
    await_fulfilment(target, limit, f"restoring {target}")
    tell_point(source, target, found)
    if in_place and (error := context.client().restore_outcome(target)):
        raise PgherdError(f"{target}: is as it was before, the restore failed: {error}")
    say(f"{target}: restored after {time.monotonic() - begun:.1f} s; connect with 'pgherd psql {target}'")
    if in_place:
        tell(f"{target}: what it was before is kept; 'pgherd restore {target} --confirm' removes it")


def checked_target(source: str, target: str | None, *, in_place: bool, yes: bool, file: str | None) -> str:
    """The name of the cluster that is made.

    :raises BadInput: options that don't go together
    """
    if not in_place:
        if target is None:
            raise BadInput("NAME is missing: how shall the new cluster be called? (or --in-place)")
        return target
    if target is not None and target != source:
        raise BadInput(f"--in-place takes {source} itself back: leave {target} out")
    if file is not None:
        raise BadInput("--in-place keeps the declaration: leave --file out")
    if not yes:
        raise BadInput(f"{source} was not restored: add --yes to take it back in place (its data are kept)")
    return source


def clone(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The cluster to copy.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="NAME", help="The new cluster.", show_default=False)],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="POINT",
            help="As of this restore point, from the backups. Left out: as it is now, without any backups; on "
            "Kubernetes, if there are backups, as of the newest point.",
            show_default=False,
        ),
    ] = None,
    no_wait: NoWait = False,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Copy a running cluster. The copy has its own passwords and no backups until they are declared."""
    limit, begun = seconds(timeout), time.monotonic()
    found = current().client().clone(source, target, at)
    if found is not None:
        tell(f"{target}: {as_of(source, found)}")
    if no_wait:
        say(f"{target}: being made; 'pgherd status {target} --watch' shows how far it is")
        return
    await_fulfilment(target, limit, f"making {target}")
    tell_point(source, target, found)
    say(
        f"{target}: a copy of {source} after {time.monotonic() - begun:.1f} s; connect with 'pgherd psql {target}'"
    )


def drill(
    name: Name,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the scratch cluster there.")] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE",
            help="Compare the rows of this table with what they were at the point; again for more tables.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.table,
    timeout: Timeout = FOR_EVER,
) -> None:
    """Prove that the backups are good. The newest point is restored into a scratch cluster, examined, and removed."""
    limit = seconds(timeout)
    context = current()
    context.going_on = (
        f"the supervisor removes the scratch cluster {name}-drill"
        if context.platform == "local"
        else f"the operator goes on with the drill; 'pgherd drills {name}' will show what it found"
    )
    with watching(f"{name}-drill") as watcher:
        result = context.client().drill(
            name,
            keep=keep,
            tables=table or (),
            timeout=limit,
            told=lambda text: tell(f"{name}: {text}"),
            progress=watcher,
        )
    context.going_on = ""
    if output is not Output.table:
        emit(result, output)
    if not result["passed"]:
        raise PgherdError(f"{name}: the drill failed: {'; '.join(result['problems'])}")
    if output is Output.table:
        say(
            f"{name}: {result['restorePoint']} was restored and is sound ({result['seconds']:.1f} s)"
            f"{same(result)}{unchecked(result)}"
        )


def same(result: dict[str, Any]) -> str:
    """What came back as it was."""
    compared = result.get("compared")
    if not compared:
        return ""
    text = f"; {compared['rows']:,} rows of {plural(len(compared['tables']), 'table')} are as they were"
    if compared["rowsTouched"]:
        text += f", of about {compared['rowsTouched']:,} more only the number was compared"
    return text


def drills(name: Name, output: OutputOption = Output.table) -> None:
    """Show the last drills of a cluster, and what they found."""
    rows = current().client().drills(name)
    if output is not Output.table:
        emit(rows, output)
    elif rows:
        out().print(render.drills(rows))
    else:
        tell(f"no drills of {name} yet; 'pgherd drill {name}' makes one")


def as_of(source: str, found: dict[str, object]) -> str:
    """What is made, of whom."""
    if found["restorePoint"] is None:
        return f"{source} as asked; which restore point that is, is found out in the repository"
    return f"{source} as of restore point {found['restorePoint']} ({found['time']}); {between(found)}"


def tell_point(source: str, target: str, found: dict[str, object] | None) -> None:
    """Say which point it was, if that was to be found out in the repository."""
    if found is None or found["restorePoint"] is not None:
        return
    if (point := current().client().restored_point(target)) is not None:
        tell(f"{target}: is {as_of(source, point)}")


def between(found: dict[str, object]) -> str:
    """What lies after the point."""
    following = found["following"]
    if not isinstance(following, dict):
        return "it is the newest one"
    return f"the next one is {following['name']} ({following['time']})"
