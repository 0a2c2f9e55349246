"""The histories of timelines that a repository lacks, sent again.

A server hands each history over once. It may be let go with everything else that waits when a repository is away for
too long, or somebody removes it; without it no point on its timeline can be restored. Servers keep them for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from psycopg import sql

from pgherd.model.topology import SUPERUSER
from pgherd.platform.machine import Machine
from pgherd.postgres.connections import Databases


def send_again(databases: Databases, group: int, known: Collection[int]) -> list[int]:
    """Have a group's primary archive the histories that are not among the known ones.

    :param known: timelines
    :return: those that it hands over now
    :raises Unavailable: the group has no primary that answers
    """
    with databases.connect(group, database=SUPERUSER) as connection:
        rows = connection.execute(
            "SELECT name, current_setting('data_directory') FROM pg_ls_waldir()"
            " WHERE name ~ '^[0-9A-F]{8}[.]history$' ORDER BY 1"
        ).fetchall()
        lacking = {
            timeline: f"{data}/pg_wal/archive_status/{name}.ready"
            for name, data in rows
            if (timeline := int(name[:8], 16)) not in known
        }
        for path in lacking.values():
            # An empty file of this name is how a server asks its archiver for one.
            connection.execute(sql.SQL("COPY (SELECT WHERE false) TO {}").format(sql.Literal(path)))
    return list(lacking)


def have_archived(machine: Machine, data: Path) -> None:
    """Have a restored server hand over all that it has, which it begins with: without its history in the repository
    nobody could ever be restored to the timeline that begins there."""
    log = data / "pg_wal"
    for history in machine.names(log, ".history"):
        machine.write(log / "archive_status" / f"{history}.ready", "")
