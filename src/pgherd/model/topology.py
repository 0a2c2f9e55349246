"""Who is who: the groups and members that a declaration asks for, and where they are reached.

A cluster is group 0 (the coordinator) and groups 1..N (the segments). A group is one primary and its standbys: one
Patroni scope. Names are stable and never reused for another role: ``shop-coordinator-0``, ``shop-segment-2-1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COORDINATOR = 0


def group_name(group_id: int) -> str:
    """``coordinator`` for group 0, ``segment-N`` for group N."""
    return "coordinator" if group_id == COORDINATOR else f"segment-{group_id}"


def group_id(name: str) -> int:
    """The inverse of :func:`group_name`.

    :raises ValueError: the name is not a group's
    """
    if name == "coordinator":
        return COORDINATOR
    kind, _, number = name.partition("-")
    if kind != "segment" or not number.isdecimal() or int(number) < 1 or str(int(number)) != number:
        raise ValueError(f"{name!r} is not a group: use 'coordinator' or 'segment-N'")
    return int(number)


@dataclass(frozen=True, order=True)
class Member:
    """One PostgreSQL instance with its Patroni."""

    cluster: str
    group: int
    ordinal: int

    @property
    def name(self) -> str:
        """``CLUSTER-coordinator-0``, ``CLUSTER-segment-2-1``"""
        return f"{self.cluster}-{group_name(self.group)}-{self.ordinal}"

    @property
    def scope(self) -> str:
        """The Patroni scope, one per group."""
        return f"{self.cluster}-{group_name(self.group)}"


@dataclass(frozen=True)
class Endpoint:
    """Where one member's PostgreSQL listens."""

    host: str
    port: int


@dataclass(frozen=True)
class Credentials:
    """The passwords of one cluster, SCRAM everywhere.

    ``superuser`` (role ``postgres``) and ``replication`` (role ``replicator``) are pgherd's own; ``owner`` is the
    password of the role that owns the distributed database (named like it).
    """

    superuser: str
    replication: str
    owner: str
    rest: str
    """password of the user ``pgherd`` at Patroni's REST API (unsafe calls only)"""


SUPERUSER = "postgres"
REPLICATION_USER = "replicator"

Endpoints = Sequence[Endpoint]
