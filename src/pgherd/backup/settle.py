"""What every restored database has to be told before anybody connects: that it is another cluster now.

Passwords are this cluster's. Subscriptions would follow the publishers of the cluster that the backup is of, and take
their changes away from its own subscribers: they are disabled, those of moves lose their slots' names too (the slots
are the other cluster's). A change that was under way is called off; what it left behind, the engine cleans up later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import COORDINATOR, REPLICATION_USER, SUPERUSER, Endpoint, group_name
from pgherd.platform.base import Platform
from pgherd.postgres.connections import Databases

CONNECT_SECONDS = 60
"""these servers are here and nobody else asks them: that they are slow means that the machine is busy"""


def private_databases(
    platform: Platform, cluster: PostgresCluster, servers: Mapping[int, Endpoint]
) -> Databases:
    """The way to private servers, by group, with the passwords of the cluster that they become."""
    name = cluster.metadata.name
    return Databases(
        cluster.spec.database,
        platform.credentials(name),
        lambda: {group: [endpoint] for group, endpoint in servers.items()},
        connect_timeout=CONNECT_SECONDS,
        members_options=platform.connection_options(name),
    )


def settle(databases: Databases, groups: Sequence[int], reason: str, *, in_place: bool = False) -> list[str]:
    """Tell all groups' servers, at which nobody else is.

    :param reason: why what was under way is called off
    :param in_place: the cluster goes on with the same repository: its points are its own
    :return: what was done, a sentence each
    """
    done: list[str] = []
    for group in groups:
        _passwords(databases, group)
        done += disable_subscriptions(databases, group)
    done += _operations(databases, reason, in_place)
    return done


def _passwords(databases: Databases, group: int) -> None:
    known = databases.credentials
    passwords = {
        SUPERUSER: known.superuser,
        REPLICATION_USER: known.replication,
        databases.owner: known.owner,
    }
    with databases.connect(group, database=SUPERUSER) as connection:
        for role, password in passwords.items():
            connection.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
            )


def disable_subscriptions(databases: Databases, group: int) -> list[str]:
    """See the module; what was done, a sentence each."""
    with databases.connect(group, database=SUPERUSER) as connection:
        found = connection.execute(
            "SELECT d.datname, s.subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid"
            " WHERE s.subenabled OR s.subslotname IS NOT NULL ORDER BY 1, 2"
        ).fetchall()
    done = []
    for database, name in found:
        own = name.startswith(("pgherd", "citus_shard"))
        with databases.connect(group, database=database) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(name)))
            if own:
                connection.execute(
                    sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(sql.Identifier(name))
                )
        done.append(f"subscription {name} on {group_name(group)} is disabled")
    return done


def sequences_left_behind(group: int) -> list[str]:
    """What is to be told of the sequences of a group the end of whose log is lost; see the module."""
    if group != COORDINATOR:
        return []
    return [
        "the coordinator's sequences are where its log ended, and give values again that rows on segments may have:"
        " setval() them behind those"
    ]


def _operations(databases: Databases, reason: str, in_place: bool) -> list[str]:
    with databases.connect(COORDINATOR, autocommit=False) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        rows = connection.execute(
            "UPDATE pgherd.operations SET phase = 'cancelled', message = %s, finished_at = clock_timestamp()"
            " WHERE finished_at IS NULL RETURNING kind",
            [reason],
        ).fetchall()
        connection.execute(
            "UPDATE pgherd.operation_steps SET state = 'undone' WHERE state IN ('pending', 'running')"
        )
        connection.execute("DELETE FROM pgherd.segment_configuration")
        if not in_place:
            connection.execute("DELETE FROM pgherd.restore_points")
    return [f"{row[0]} was called off: {reason}" for row in rows]
