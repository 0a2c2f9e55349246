"""Sessions that keep writers out at their nodes until a decision that is made elsewhere is to be seen there.

Locks end with their session, and a session that waits for its client ends as soon as the client is gone. One with a
statement at work does not look: the server goes on until the statement is done. So each session watches its own node
itself. Whoever decides may be killed between sending COMMIT and seeing it done: nobody writes by what held before.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

from pgherd.errors import Unavailable, one_line
from pgherd.postgres.connections import Connection

logger = logging.getLogger(__name__)

HOLD_SECONDS = 120
"""what a decision may take: longer than a server's restart, with what is prepared there. Where none was made, these
sessions are ended: by whoever failed to make it, or by whoever follows one that was killed"""
START_SECONDS = 5.0
NUDGE_SECONDS = 2.0
_POLL_SECONDS = 0.2
_HOLDS = "pgherd holds"
_WATCH = """\
DO $hold$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '{seconds} s';
BEGIN
    RAISE NOTICE {holds};
    WHILE NOT ({shown}) LOOP
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'it is not to be seen after {seconds} s';
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
END $hold$"""
_ENDLESS = (
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout',"
    " 'idle_in_transaction_session_timeout', 'client_connection_check_interval')"
)
"""whatever would end them before, or make them look for their client"""


class Hold:
    """Sessions in transactions, at work until something is to be seen at each one's node.

    :param sessions: with the locks that are to be held
    :param shown: an expression, true once the decision has reached the node
    """

    def __init__(self, sessions: Sequence[Connection], shown: sql.Composable) -> None:
        self._sessions = sessions
        self._statement = sql.SQL(_WATCH).format(
            seconds=sql.SQL(str(HOLD_SECONDS)), holds=sql.Literal(_HOLDS), shown=shown
        )

    def start(self) -> None:
        """From the return on, their locks outlive this process.

        :raises psycopg.Error, Unavailable: that can't be had
        """
        waiting = set(self._sessions)
        for session in self._sessions:
            session.execute("SET LOCAL client_min_messages TO notice")
            session.execute(_ENDLESS.encode())

            def told(diagnostic: psycopg.errors.Diagnostic, session: Connection = session) -> None:
                if diagnostic.message_primary == _HOLDS:
                    waiting.discard(session)

            session.add_notice_handler(told)
            session.pgconn.send_query(self._statement.as_bytes(session))
            session.pgconn.flush()
        deadline = time.monotonic() + START_SECONDS
        while waiting:
            if time.monotonic() > deadline or not waiting <= self._busy():
                raise Unavailable("a node does not keep its writers waiting")
            _await_news(waiting)

    def release(self) -> None:
        """Nothing was decided: nobody has to wait any more."""
        for session in self._sessions:
            with suppress(psycopg.Error):
                session.cancel_safe(timeout=START_SECONDS)
        deadline = time.monotonic() + START_SECONDS
        while (busy := self._busy()) and time.monotonic() < deadline:
            _await_news(busy)
        for session in self._sessions:
            if session not in busy:
                _conclude(session, told=False)

    def wait(self, nudge: Callable[[], None]) -> None:
        """Until the decision, which has been made, is to be seen at each node; each lets go as soon as it is.

        :param nudge: called now and then: it brings the decision to nodes that were away
        """
        next_nudge = time.monotonic() + NUDGE_SECONDS
        waiting = set(self._sessions)
        while waiting:
            busy = self._busy()
            for session in waiting - busy:
                _conclude(session)
            waiting &= busy
            if waiting:
                _await_news(waiting)
                if time.monotonic() > next_nudge:
                    nudge()
                    next_nudge = time.monotonic() + NUDGE_SECONDS

    def _busy(self) -> set[Connection]:
        return {session for session in self._sessions if _is_busy(session)}


def _await_news(sessions: set[Connection]) -> None:
    select.select([session.pgconn.socket for session in sessions], [], [], _POLL_SECONDS)


def _is_busy(session: Connection) -> bool:
    """Whether its statement is still at work; one whose server is gone holds nobody."""
    try:
        session.pgconn.consume_input()
        return bool(session.pgconn.is_busy())
    except psycopg.OperationalError:
        return False


def _conclude(session: Connection, *, told: bool = True) -> None:
    with suppress(psycopg.OperationalError):
        while (result := session.pgconn.get_result()) is not None:
            if told and result.status != ExecStatus.COMMAND_OK:
                reason = result.error_message.decode(errors="replace")
                logger.warning("a node's writers were not kept waiting to the end: %s", one_line(reason))
        session.rollback()
