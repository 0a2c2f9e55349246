"""A drill: the newest restore point is restored into a scratch cluster, which is examined and removed again.

Backups that nobody restores are hopes. A drill does all that a real restore does, in a cluster without standbys; then
it asks the scratch whether its catalogue and its segments agree, reads every table and index of every group for damage
(``pg_amcheck``; page checksums are verified on the way), and writes the result beside the backups.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgherd.backup import records, tools
from pgherd.errors import BadInput, NoSuchCluster, PgherdError
from pgherd.model import spec as declaration
from pgherd.model.spec import PostgresCluster
from pgherd.model.spec_models import MAX_NAME
from pgherd.model.topology import SUPERUSER, group_name
from pgherd.reconcile.observe import World

if TYPE_CHECKING:
    from pgherd.supervisor.client import Client

SUFFIX = "-drill"
_QUIET = "-c event_triggers=off"
Told = Callable[[str], None]


def drill(
    client: Client, world: Callable[[str], World], name: str, *, keep: bool, timeout: float, told: Told
) -> dict[str, Any]:
    """Do it; returns the record.

    :param world: the way to a cluster's databases
    :param keep: leave the scratch cluster there
    :param told: told what is being done
    :raises BadInput: there is nothing to restore, or the scratch's name is taken by something else
    """
    scratch = f"{name}{SUFFIX}"
    if len(scratch) > MAX_NAME:
        raise BadInput(f"{name}: its name is too long for a drill, the scratch cluster would be {scratch}")
    _clear(client, name, scratch)
    begun, found = time.monotonic(), None
    problems: list[str] = []
    try:
        found = client.restore(name, scratch, declared=_lean(client.declared(name), scratch))
        told(f"restoring {found['restorePoint']} ({found['time']}) into {scratch}")
        client.wait(scratch, timeout=timeout)
        told("comparing its catalogue with its segments")
        problems += [f"{each.check}: {each.message}" for each in client.check(scratch)]
        told("reading every table and index")
        problems += _amcheck(world(scratch))
    except BadInput:
        if found is None:
            raise
        problems.append("the scratch cluster could not be declared")
    except PgherdError as error:
        problems.append(str(error))
    result = {
        "restorePoint": found["restorePoint"] if found else None,
        "time": found["time"] if found else None,
        "finishedAt": records.now(),
        "seconds": round(time.monotonic() - begun, 1),
        "passed": not problems,
        "problems": problems,
    }
    remember(client, name, result)
    if not keep:
        told("removing it")
        _clear(client, name, scratch)
    return result


def _lean(source: PostgresCluster, scratch: str) -> PostgresCluster:
    """The source's shape without standbys and without backups of its own."""
    raw = declaration.to_mapping(source)
    spec = {key: value for key, value in raw["spec"].items() if key != "backup"}
    for group in ("coordinator", "segments"):
        spec[group] = {**spec[group], "standbys": 0}
    return declaration.from_mapping({**raw, "metadata": {"name": scratch}, "spec": spec}, source=scratch)


def _clear(client: Client, name: str, scratch: str) -> None:
    """Remove a scratch cluster, also one that a killed drill left."""
    try:
        bootstrap = client.declared(scratch).spec.bootstrap
    except NoSuchCluster:
        with suppress(NoSuchCluster):
            client.delete(scratch, purge=True)
        return
    if bootstrap is None or bootstrap.recovery is None or bootstrap.recovery.cluster != name:
        raise BadInput(f"{scratch} is a cluster of its own: a drill of {name} needs that name")
    client.delete(scratch, purge=True)
    client.wait_gone(scratch)


def _amcheck(world: World) -> list[str]:
    """What ``pg_amcheck`` finds, a line for each group."""
    programs = world.platform.programs()
    found = []
    for group in sorted(world.databases.addresses()):
        parameters = world.databases.parameters(group, user=SUPERUSER)
        command: list[str | Path] = [
            programs.find("pg_amcheck"),
            *("--no-password", "--install-missing", f"--host={parameters['host']}"),
            *(f"--port={parameters['port']}", f"--username={SUPERUSER}", parameters["dbname"]),
        ]
        environment = {"PGPASSWORD": parameters["password"]}
        if programs.major >= 17:
            environment["PGOPTIONS"] = _QUIET
        try:
            tools.run(command, environment=environment, stopping=lambda: False)
        except PgherdError as error:
            found.append(f"{group_name(group)}: {error}")
    return found


def remember(client: Client, name: str, result: dict[str, Any]) -> None:
    """Write a drill down beside the backups."""
    client.repository(name).remember_drill(result)


def drills(client: Client, name: str) -> list[dict[str, Any]]:
    """The last drills, oldest first."""
    return client.repository(name).drills()
