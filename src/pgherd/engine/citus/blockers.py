"""Who is in the way of a move: for messages.

A replication slot has to wait until every transaction ends that has written on its server when it is made, however long
that takes; Citus says no more than "Setting Up" meanwhile.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime

import psycopg

from pgherd.engine.citus import nodes
from pgherd.engine.citus.session import superuser
from pgherd.engine.wording import transaction_of
from pgherd.errors import Unavailable
from pgherd.model.topology import group_name
from pgherd.postgres.connections import Databases

LOOK_SECONDS = 2.0
"""how often the source is asked while a move is being set up"""

_PER_NODE = 10_000_000_000
"""Citus numbers processes of all nodes: the node's id times this, plus the process's number"""
_GLOBAL = re.compile(r"\bgpid=(\d+)")

_WAITED_FOR = (
    "SELECT b.pid, b.application_name, b.xact_start FROM pg_stat_activity w"
    " CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS held (pid) LEFT JOIN pg_stat_activity b ON b.pid = held.pid"
    " WHERE w.backend_type = 'walsender' AND w.wait_event_type = 'Lock' ORDER BY b.xact_start NULLS LAST LIMIT 1"
)


class SlotWait:
    """Whom the slots of one move wait for."""

    def __init__(self, databases: Databases, source: nodes.Node, known: Mapping[int, nodes.Node]) -> None:
        self._databases = databases
        self._source = source
        self._groups = {node.id: group for group, node in known.items()}
        self._looked = time.monotonic()
        self._told = ""

    def told(self) -> str:
        """What to add to "setting up"; nothing as long as nobody is waited for. Asks the source now and then."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._told = self._look()
        return self._told

    def _look(self) -> str:
        try:
            with superuser(self._databases, self._source.group) as connection:
                row = connection.execute(_WAITED_FOR).fetchone()
        except (psycopg.Error, Unavailable):
            return ""
        return "" if row is None else f", waiting for {self._described(*row)}"

    def _described(self, pid: int | None, application: str | None, since: datetime | None) -> str:
        if pid is None:
            return f"a prepared transaction on {group_name(self._source.group)}"
        node, process = origin(application or "")
        group = self._groups.get(node) if node is not None else None
        where, number = (self._source.group, pid) if group is None or process is None else (group, process)
        return transaction_of(number, group_name(where), since)


def origin(application: str) -> tuple[int | None, int | None]:
    """The node and the process for whom Citus has opened a session, by its application name; None: not by Citus."""
    found = _GLOBAL.search(application)
    if found is None:
        return None, None
    node, process = divmod(int(found[1]), _PER_NODE)
    return node, process
