"""What keeps a member from starting, told in a line: PostgreSQL and Patroni say it in their logs only.

What runs without its Patroni in the meantime is ended where it would do harm.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pgherd.errors import PgherdError
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Member
from pgherd.platform.local import binaries, parameters, processes
from pgherd.platform.local.layout import MemberLayout
from pgherd.platform.local.ports import Ports, is_free

logger = logging.getLogger(__name__)

ROOM_TO_BE_MADE, ROOM_TO_START = 128 << 20, 1 << 20
"""free bytes below which a member without data, and one with data, can't even start"""


def require_none(
    bin_dir: Path | None, cluster: PostgresCluster, member: Member, layout: MemberLayout, ports: Ports
) -> None:
    """:raises PgherdError: the engine is not in these programs, a port is taken, or the disk is full"""
    _require_engine(bin_dir, cluster, member)
    _require_free(member, layout, ports)
    require_room(member, layout)


def _require_engine(bin_dir: Path | None, cluster: PostgresCluster, member: Member) -> None:
    # It was there when the cluster was declared. PostgreSQL would say in its log only that it is gone.
    for problem in parameters.engine_problems(binaries.find(bin_dir), cluster):
        raise PgherdError(f"{member.name} can't run: {problem}")


def _require_free(member: Member, layout: MemberLayout, ports: Ports) -> None:
    own_server = processes.postmaster_of(layout.data)
    for purpose, port in ports.items():
        if not (purpose == "postgres" and own_server) and not is_free(port):
            who = processes.listener(port) or "it belongs to somebody else"
            raise PgherdError(
                f"port {port} of {member.name} is taken by another program ({who}): end that program, "
                f"{member.name} starts as soon as the port is free"
            )


def require_room(member: Member, layout: MemberLayout) -> None:
    """:raises PgherdError: less is free than a member needs to be made, or to start"""
    free = free_bytes(layout)
    needed = ROOM_TO_START if layout.has_data else ROOM_TO_BE_MADE
    if free is not None and free < needed:
        raise PgherdError(
            f"only {free >> 20} MiB are free at {layout.directory}, {member.name} needs {needed >> 20} MiB: "
            "make room, it starts by itself then"
        )


def free_bytes(layout: MemberLayout) -> int | None:
    """Free space where a member's data is (or will be); None: nobody can tell."""
    path = layout.directory
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def end_strays(layout: MemberLayout) -> None:
    """A Patroni that was killed may leave a server, which the next one adopts, or tools, which must not go on."""
    if processes.postmaster_of(layout.data) is None:
        processes.end_postgres(layout.directory, layout.data)


def end_unguarded(member: Member, layout: MemberLayout) -> None:
    """End a server whose Patroni can't be started, where another member can lead.

    It would go on as a primary beside the one that is promoted when the leader lock runs out. It would acknowledge
    nothing, but clients that find it would wait for ever.
    """
    if processes.postmaster_of(layout.data) is not None:
        logger.warning("%s: its Patroni can't be started, so its server ends", member.name)
        processes.end_postgres(layout.directory, layout.data)
