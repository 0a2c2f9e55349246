"""Commands about a cluster as a whole: create it, look at it, connect to it, stop and delete it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.live import Live

from pgherd.cli import render
from pgherd.cli.context import current, emit, out, plural, say, tell
from pgherd.cli.progress import watching
from pgherd.errors import BadInput, PgherdError
from pgherd.model import documents, spec
from pgherd.model import explain as explanation
from pgherd.model.backup_kinds import PostgresBackup, PostgresBackupSchedule
from pgherd.model.spec_yaml import MAX_CHARACTERS
from pgherd.model.topology import group_name
from pgherd.platform.base import ENDED

WATCH_SECONDS = 1.0
MAX_BYTES = 4 * MAX_CHARACTERS
"""more can't be a declaration, and some files never end"""
READY_SECONDS = 600

Name = Annotated[str, typer.Argument(metavar="NAME", help="The cluster.", show_default=False)]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once; it goes on in the background.")]
Timeout = Annotated[
    float, typer.Option(help="Seconds to wait at most; 0: as long as it takes.", metavar="SECONDS")
]


class Output(StrEnum):
    """How an answer is written."""

    table = "table"
    json = "json"
    yaml = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to write the answer.")]


class Role(StrEnum):
    """What a connection is for."""

    rw = "rw"
    ro = "ro"


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (up, status, list_clusters, psql, dsn, logs, check, stop, start, delete, explain):
        name = "list" if command is list_clusters else None
        app.command(name, rich_help_panel="Clusters")(command)


def seconds(timeout: float) -> float:
    """0 is for ever."""
    if not timeout >= 0:  # NaN too
        raise BadInput(f"--timeout: must be >= 0, got {timeout:g}")
    return timeout or float("inf")


def await_fulfilment(name: str, timeout: float, doing: str, operation: int = 0) -> dict[str, Any]:
    """Show progress until a cluster is as declared.

    :param doing: what goes on if the person leaves
    :param operation: one that has to have ended, too
    """
    context = current()
    context.going_on = (
        f"the {context.keeper} goes on {doing}; 'pgherd status {name} --watch' shows how far it is"
    )
    client = context.client()
    generation = client.generation(name)
    with watching(name, generation) as watcher:
        now = client.wait(
            name, generation=generation, operation=operation, timeout=seconds(timeout), progress=watcher
        )
    context.going_on = ""
    return now


def up(
    file: Annotated[
        str, typer.Option("--file", "-f", help="The declaration; - reads standard input.", metavar="FILE")
    ],
    no_wait: NoWait = False,
    timeout: Timeout = READY_SECONDS,
) -> None:
    """Create what FILE declares, or change it to that. Doing it again changes nothing.

    FILE may hold several documents: clusters, schedules of backups, single backups.
    """
    limit = seconds(timeout)
    source = "stdin" if file == "-" else file
    everything = documents.load_all(read(file), source=source, platform=current().platform)
    check_references(everything)
    for declared in everything:
        if isinstance(declared, spec.PostgresCluster):
            up_cluster(declared, limit, no_wait=no_wait)
        elif isinstance(declared, PostgresBackupSchedule):
            up_schedule(declared)
        else:
            up_backup(declared, limit, no_wait=no_wait)


def check_references(everything: Sequence[documents.Declared]) -> None:
    """Refuse what refers to clusters that are not there, or have no backups, before anything is made.

    :raises BadInput: in one line
    """
    here = {each.metadata.name: each for each in everything if isinstance(each, spec.PostgresCluster)}
    for each in everything:
        if isinstance(each, spec.PostgresCluster):
            continue
        name = each.spec.cluster
        cluster = here[name] if name in here else current().client().declared(name)
        if cluster.spec.backup is None:
            raise BadInput(
                f"{each.kind} {each.metadata.name}: {name} has no backups: its spec.backup says where they should go "
                "('pgherd explain backup')"
            )


def up_schedule(schedule: PostgresBackupSchedule) -> None:
    """Create or change a schedule, and say what comes next."""
    client, name = current().client(), schedule.metadata.name
    client.declare_schedule(schedule)
    (row,) = [each for each in client.schedules() if each["name"] == name]
    following = f"the next backup is due at {row['nextAt']}" if row["nextAt"] else "it is suspended"
    say(f"{name}: {schedule.spec.type} backups of {schedule.spec.cluster}; {following}")


def up_backup(backup: PostgresBackup, limit: float, *, no_wait: bool) -> None:
    """Make a backup that is declared, unless it is there."""
    context, cluster = current(), backup.spec.cluster
    client = context.client()
    if not no_wait:
        await_other_backup(backup, limit)
    made = client.declare_backup(backup)
    if no_wait:
        say(f"{cluster}: backup {made} is declared; 'pgherd backups {cluster}' shows how far it is")
        return
    context.going_on = (
        f"the {context.keeper} goes on backing {cluster} up; 'pgherd backups {cluster}' shows how far it is"
    )
    with watching(cluster) as watcher:
        done = client.wait_backup(cluster, made, timeout=limit, progress=watcher)
    context.going_on = ""
    say(
        f"{cluster}: backup {made} is done ({plural(len(done['groups']), 'group')}, {render.size(done['bytes'])})"
    )


def await_other_backup(backup: PostgresBackup, limit: float) -> None:
    """A cluster makes one backup at a time, the very first by itself."""
    client, cluster = current().client(), backup.spec.cluster
    for known in client.backups(cluster):
        if known["phase"] in ("requested", "running") and known["id"] != backup.metadata.name:
            tell(f"{cluster}: waiting for backup {known['id']}")
            with suppress(PgherdError), watching(cluster) as watcher:
                client.wait_backup(cluster, known["id"], timeout=limit, progress=watcher)


def up_cluster(cluster: spec.PostgresCluster, limit: float, *, no_wait: bool) -> None:
    """Create or change a cluster."""
    name, begun = cluster.metadata.name, time.monotonic()
    client = current().client()
    client.up(cluster)
    if no_wait:
        say(f"{name}: declared; 'pgherd status {name} --watch' shows how far it is")
        return
    await_fulfilment(name, limit, f"making {name} as declared")
    # Not what this file says, if somebody else declared something meanwhile.
    there = client.declared(name).spec
    shape = f"{plural(there.segments.count, 'segment')}, engine {there.engine}"
    say(f"{name}: ready after {time.monotonic() - begun:.1f} s ({shape}); connect with 'pgherd psql {name}'")


def read(file: str) -> str:
    """The text of a file, or of standard input for ``-``.

    :raises BadInput: it can't be read, in one line
    """
    name = "stdin" if file == "-" else file
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise BadInput(f"{name}: too long: a declaration has at most {MAX_CHARACTERS} characters")
        return raw.decode("utf-8-sig")
    except IsADirectoryError:
        raise BadInput(f"{name}: is a directory: name the file in it") from None
    except (OSError, ValueError) as error:
        reason = (
            "is not UTF-8 text"
            if isinstance(error, UnicodeDecodeError)
            else getattr(error, "strerror", str(error))
        )
        raise BadInput(f"{name}: can't be read: {reason}") from None


def status(
    name: Name,
    output: OutputOption = Output.table,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again whenever it changes.")] = False,
) -> None:
    """Show what a cluster is doing. Phase, members, operation, problems."""
    if not watch:
        show(current().client().status(name), output)
    elif output is Output.table and out().is_terminal:
        watch_on_terminal(name)
    else:
        for now in changes(name):
            show(now, output)


def show(now: dict[str, Any], output: Output) -> None:
    """One status on stdout."""
    if output is Output.table:
        out().print(render.status(now))
    else:
        emit(now, output)


def watch_on_terminal(name: str) -> None:
    """The status in place, until Ctrl-C."""
    client = current().client()
    with Live(console=out(), auto_refresh=False, screen=False) as live:
        while True:
            view: RenderableType = render.status(client.status(name))
            live.update(view, refresh=True)
            time.sleep(WATCH_SECONDS)


def changes(name: str) -> Iterator[dict[str, Any]]:
    """The status now, and again whenever anything but the time of the look is new, until Ctrl-C."""
    client, before = current().client(), None
    while True:
        now = client.status(name)
        essence = {key: value for key, value in now.items() if key != "observedAt"}
        if essence != before:
            yield now
            sys.stdout.flush()
        before = essence
        time.sleep(WATCH_SECONDS)


def list_clusters(output: OutputOption = Output.table) -> None:
    """Show all clusters."""
    client = current().client()
    rows = [status_or_reason(client, name) for name in client.names()]
    if output is not Output.table:
        emit(rows, output)
    elif rows:
        out().print(render.clusters(rows))
    else:
        tell("no clusters here; 'pgherd up -f FILE' creates one, 'pgherd explain' says what FILE holds")


def status_or_reason(client: Any, name: str) -> dict[str, Any]:
    """A status; one cluster that can't be looked at must not hide the others."""
    try:
        found: dict[str, Any] = client.status(name)
    except PgherdError as error:
        tell(f"pgherd: {name}: {error}")
        found = {"name": name, "phase": "Unknown", "errors": [str(error)], "groups": []}
    return found


def explain(
    field: Annotated[
        str | None,
        typer.Argument(metavar="FIELD", help="A field such as segments.count.", show_default=False),
    ] = None,
) -> None:
    """Explain a field of the declaration. Type, default, bounds, meaning."""
    say(explanation.explain(field))


def psql(
    name: Name,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="Arguments for psql, after --.", show_default=False),
    ] = None,
) -> None:
    """Open psql on a cluster. As the owner of its database; what follows -- is passed on."""
    client = current().client()
    command, environment = client.psql_command(name)
    sys.stdout.flush()
    command, environment = [*command, *(arguments or [])], {**os.environ, **environment}
    try:
        if client.carries_sessions:
            raise typer.Exit(run_below(command, environment))
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise PgherdError(f"{command[0]}: can't be run: {error.strerror}") from None


def run_below(command: list[str], environment: dict[str, str]) -> int:
    """Run a program of the terminal's and wait for it; Ctrl-C is for it alone. Returns its exit code."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def dsn(
    name: Name,
    role: Annotated[Role, typer.Option(help="rw: the primary. ro: a standby where there is one.")] = Role.rw,
    group: Annotated[str, typer.Option(help="coordinator or segment-N.", metavar="GROUP")] = "coordinator",
) -> None:
    """Print a libpq URI, password included. It names every member, so it stays right through a failover.

    On Kubernetes it is for programs inside: the coordinator is named by its Service. From outside: psql.
    """
    say(current().client().dsn(name, role=role, group=group))


def logs(
    name: Name,
    member: Annotated[
        str | None, typer.Argument(metavar="MEMBER", help="One member. Left out: all.", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines are written, until Ctrl-C.")
    ] = False,
) -> None:
    """Show the log lines of a cluster's members."""
    for line in current().client().logs(name, member, follow):
        typer.echo(line)


def check(name: Name, output: OutputOption = Output.table) -> None:
    """Compare the catalogue with the world. Rows, shards, definitions, members; exit code 1 if anything differs."""
    found = [
        {**asdict(finding), "group": group_name(finding.group) if finding.group >= 0 else "-"}
        for finding in current().client().check(name)
    ]
    if output is not Output.table:
        emit(found, output)
    elif found:
        out().print(render.findings(found))
    if found:
        raise PgherdError(f"{name}: {plural(len(found), 'thing')} found wrong")
    if output is Output.table:
        say(f"{name}: nothing found wrong")


def stop(name: Name, no_wait: NoWait = False, timeout: Timeout = READY_SECONDS) -> None:
    """End all of a cluster's processes; its data stays."""
    current().client().stop(name)
    if no_wait:
        say(f"{name}: stopping")
        return
    await_fulfilment(name, timeout, f"stopping {name}")
    say(f"{name}: stopped, its data is kept; 'pgherd start {name}' brings it back")


def start(name: Name, no_wait: NoWait = False, timeout: Timeout = READY_SECONDS) -> None:
    """Bring a stopped cluster back. Also after a restart of the machine."""
    begun = time.monotonic()
    current().client().start(name)
    if no_wait:
        say(f"{name}: starting; 'pgherd status {name} --watch' shows how far it is")
        return
    await_fulfilment(name, timeout, f"starting {name}")
    say(f"{name}: ready after {time.monotonic() - begun:.1f} s")


def destroyed_anyway(name: str) -> bool:
    """Whether the cluster is declared to take its data along.

    :raises NoSuchCluster: there is none of this name
    """
    declared = current().client().declared(name)
    return current().platform == "kubernetes" and declared.spec.deletion_policy == "Delete"


def beside(name: str) -> str:
    """What of a restore in place a deletion keeps besides; on one machine nobody need choose between volumes."""
    if current().platform != "kubernetes":
        return ""
    restore = current().client().status(name).get("restore") or {}
    if restore.get("kept"):
        return ", and what it was before it was restored"
    if restore.get("asked") and restore.get("phase") not in (None, *ENDED):
        return ", as it was before the restore that is under way"
    return ""


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, delete it.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Destroy its data too.")] = False,
    no_wait: NoWait = False,
    timeout: Timeout = READY_SECONDS,
) -> None:
    """Delete a cluster. Its data is kept unless --purge is given, and taken up again by an 'up' of its name."""
    context = current()
    client = context.client()
    client.require_known(name)
    destroys = purge or destroyed_anyway(name)
    fate = "its data is destroyed" if destroys else f"its data is kept{beside(name)}"
    if not yes:
        raise BadInput(f"{name} was not deleted: add --yes to delete it ({fate})")
    client.delete(name, purge=purge)
    if not no_wait:
        context.going_on = (
            f"the {context.keeper} goes on deleting {name}; 'pgherd list' shows whether it is gone"
        )
        client.wait_gone(name, timeout=seconds(timeout))
        context.going_on = ""
    say(f"{name}: {'being deleted' if no_wait else 'deleted'}, {fate}")
