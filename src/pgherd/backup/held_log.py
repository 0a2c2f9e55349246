"""While a running cluster is copied, its groups keep the log that has not been received yet.

For each group a replication slot that lives as long as a session of ours: PostgreSQL removes it when that ends, for
whatever reason, so that nobody who is killed leaves one, and there is nothing to clean up. A session of which the
server hears nothing for :data:`SILENT_SECONDS` is ended by the server itself: a log that nobody fetches any more fills
no disk. The slot is moved on as the log arrives, so that no more is kept than what is on its way.

Patroni leaves such slots alone; one that stays it would drop as none of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress

import psycopg

from pgherd.errors import one_line
from pgherd.model.topology import SUPERUSER
from pgherd.postgres.connections import Connection, Databases

SILENT_SECONDS = 60
EVERY_SECONDS = 2.0
"""between two looks at how much has arrived"""
JOIN_SECONDS = 15.0
_MAKE = (
    f"SET idle_session_timeout = '{SILENT_SECONDS}s'",
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)
_MOVE_ON = """
SELECT pg_replication_slot_advance(s.slot_name, r.write_lsn)
  FROM pg_replication_slots s JOIN pg_stat_replication r ON r.application_name = s.slot_name
 WHERE s.slot_name = %s AND r.write_lsn > s.restart_lsn
"""


class HeldLog:
    """Those of a cluster's groups; a context manager.

    :param name: of the slots, and the ``application_name`` of who receives a group's log
    :param trouble: told the group and why its log is not kept any more
    :raises Unavailable, psycopg.Error: a group can't be asked to
    """

    def __init__(
        self, databases: Databases, groups: Sequence[int], name: str, trouble: Callable[[int, str], None]
    ) -> None:
        self._databases, self._groups, self._name, self._trouble = databases, groups, name, trouble
        self._over = threading.Event()
        self._sessions = ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> HeldLog:
        with ExitStack() as opened:
            held = {group: self._hold(opened, group) for group in self._groups}
            self._sessions = opened.pop_all()
        self._thread = threading.Thread(target=self._follow, args=[held], name="held-log", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        with suppress(psycopg.Error):
            self._sessions.close()

    def _hold(self, sessions: ExitStack, group: int) -> Connection:
        session = sessions.enter_context(
            self._databases.connect(group, database=SUPERUSER, application_name=f"{self._name} kept")
        )
        for each in _MAKE:
            session.execute(each)
        session.execute("SELECT pg_create_physical_replication_slot(%s, true, true)", [self._name])
        return session

    def _follow(self, held: Mapping[int, Connection]) -> None:
        while not self._over.wait(EVERY_SECONDS):
            for group, session in held.items():
                try:
                    session.execute(_MOVE_ON, [self._name])
                except psycopg.Error as error:
                    if not self._over.is_set():
                        self._trouble(group, f"the server keeps it no more: {one_line(error)}")
                    return
