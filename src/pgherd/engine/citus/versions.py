"""Whether every node has Citus, and all the same: on its disk, and in its database.

Citus refuses to work with another version of itself, each statement anew and in its own words. Here it is told once,
with the node's name, and before anything is started for which all nodes are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from pgherd.engine.citus import nodes
from pgherd.engine.citus.session import superuser, value
from pgherd.errors import Unavailable
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.postgres.connections import Connection, Databases

_QUERY = """
SELECT (SELECT default_version FROM pg_available_extensions WHERE name = 'citus'),
       (SELECT extversion FROM pg_extension WHERE extname = 'citus')
"""


@dataclass(frozen=True)
class Versions:
    """Of one node, for example ``14.0-1``."""

    installed: str | None
    """what its disk has; None: nothing"""
    in_database: str | None
    """what the extension in its database is; None: there is none"""


def of(connection: Connection) -> Versions:
    """The versions of one node."""
    row = connection.execute(_QUERY.encode()).fetchone()
    return Versions(*row) if row else Versions(None, None)


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor version of the extension: ``(13, 2)`` of ``13.2-1``."""
    return tuple(int(part) for part in version.replace("-", ".").split(".")[:2])


def half_upgraded(here: Versions) -> str | None:
    """How the extension in the database differs from what is installed, with the way out; None: it does not."""
    if here.in_database in (None, here.installed):
        return None
    if here.installed is None:
        return f"no Citus installed any more: install Citus {here.in_database} for its PostgreSQL"
    way_out = "run ALTER EXTENSION citus UPDATE in its database"
    if numbers(here.installed) < numbers(str(here.in_database)):
        way_out = f"install Citus {here.in_database} there"
    return f"Citus {here.in_database} in the database, but {here.installed} installed: {way_out}"


def problem(group: int, here: Versions, coordinator: Versions) -> str | None:
    """What is wrong with one node's Citus, with the way out; None: nothing."""
    name = group_name(group)
    if difference := half_upgraded(here):
        return f"{name} has {difference}"
    if here.in_database not in (None, coordinator.in_database):
        return (
            f"{name} runs Citus {here.in_database}, the coordinator {coordinator.in_database}: bring all nodes to one"
            " version"
        )
    return None


def unfit(databases: Databases) -> list[str]:
    """See :meth:`pgherd.engine.base.Engine.unfit`. Nodes that don't answer are told of elsewhere."""
    with superuser(databases) as desk:
        coordinator = of(desk)
        if coordinator.in_database is None:
            return [lost(COORDINATOR)] if took_part(desk, COORDINATOR) else []
        found = [told] if (told := problem(COORDINATOR, coordinator, coordinator)) else []
        groups = {group: took_part(desk, group) for group in nodes.nodes(desk) if group != COORDINATOR}
    return [*found, *_segments(databases, groups, coordinator)]


def _segments(databases: Databases, groups: dict[int, bool], coordinator: Versions) -> Iterator[str]:
    for group, takes_part in groups.items():
        try:
            with superuser(databases, group) as connection:
                here = of(connection)
        except (Unavailable, psycopg.OperationalError):
            continue
        told = lost(group) if here.in_database is None and takes_part else problem(group, here, coordinator)
        if told:
            yield told


def took_part(desk: Connection, group: int) -> bool:
    """Whether the cluster counts on what this group has; the coordinator does if any segment does."""
    if value(desk, "SELECT to_regclass('pgherd.segment')") is None:
        return False
    query = "SELECT count(*) FROM pgherd.segment WHERE group_id = %s OR %s = 0"
    return bool(value(desk, query, [group, group]))


def lost(group: int) -> str:
    """What to say of a node whose database has lost the extension, and with it all that Citus knew there.

    A segment's shards are still there, and the coordinator knows the rest; nobody knows what the coordinator knew.
    """
    way_out = "restore the cluster from a backup"
    if group != COORDINATOR:
        way_out = (
            "run CREATE EXTENSION citus in its database, then SELECT start_metadata_sync_to_all_nodes() on the"
            " coordinator"
        )
    return f"{group_name(group)} has lost the extension citus, nothing empty is put in its place: {way_out}"
