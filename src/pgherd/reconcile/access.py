"""What running servers can't read of the declared pg_hba lines.

A declaration is refused for what any PostgreSQL would not read (:mod:`pgherd.model.spec_hba`). What only a server can
know is found out when it has the lines: it goes on with the rules that it had, and tells its log alone, but would not
start again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import psycopg

from pgherd.errors import PgherdError, one_line
from pgherd.model.spec_hba import HBA_PATH, hba_line_number
from pgherd.model.topology import SUPERUSER, Endpoint
from pgherd.postgres.connections import Connection, Databases
from pgherd.reconcile.state import Observed

logger = logging.getLogger(__name__)

LONGEST = 100
"""characters of a line that are told"""
QUESTION_SECONDS = 5.0
"""how long one server may take: it reads a file, and its volume may hang for ever"""
_UNSUPPORTED = "not supported by this build"
_QUERY = r"""
    SELECT line_number, coalesce(error, 'no reason given'),
           (string_to_array(pg_read_file(current_setting('hba_file')), E'\n'))[line_number]
    FROM pg_hba_file_rules WHERE type IS NULL ORDER BY line_number
"""
# One that only can't match, as hostssl where there is no TLS, has an error too, and a type: no server minds it.


def is_to_change(seen: Observed) -> bool:
    """Whether members wait for a restart: Patroni says so of one only after it has written the rules there."""
    return any(
        state.view.outdated or (state.patroni is not None and state.patroni.pending_restart)
        for state in seen.members.values()
    )


def servers(seen: Observed) -> list[tuple[int, Endpoint]]:
    """Who is to be asked, each with its group: all get the same lines, but one may have them a moment before others,
    and may be restarted then."""
    everybody = is_to_change(seen)
    return [
        (state.member.group, state.view.postgres)
        for state in seen.members.values()
        if state.is_running and (everybody or state.is_primary)
    ]


def unread(databases: Databases, text: str, asked: Sequence[tuple[int, Endpoint]]) -> list[str] | None:
    """The lines that servers can't read, a sentence each; None: nobody can be asked.

    :param text: the lines as declared
    :param asked: of :func:`servers`
    """
    if not text.strip():
        return []
    if not asked:
        return None
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(lambda server: _of(databases, text, *server), asked))
    told = [answer for answer in answers if answer is not None]
    return list(dict.fromkeys(problem for answer in told for problem in answer)) if told else None


def _of(databases: Databases, text: str, group: int, endpoint: Endpoint) -> list[str] | None:
    alone = replace(databases, addresses=lambda: {group: (endpoint,)})
    try:
        with (
            alone.connect(group, database=SUPERUSER, read_only=True) as connection,
            _no_longer_than(QUESTION_SECONDS, connection),
        ):
            rows = connection.execute(_QUERY).fetchall()
    except (PgherdError, psycopg.Error) as error:
        logger.info("%s can't say what it reads of pg_hba: %s", endpoint.host, one_line(error))
        return None
    return [problem(text, number, line, error) for number, error, line in rows]


@contextmanager
def _no_longer_than(seconds: float, connection: Connection) -> Iterator[None]:
    """Cut a connection off when its time is over; a server that waits for its disk heeds no timeout of its own."""

    def cut() -> None:
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as way:
            way.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def problem(text: str, number: int | None, line: str | None, error: str) -> str:
    """What is wrong with a line, and the way out.

    :param text: the lines as declared
    :param number: where it is in the server's file
    :param line: as it is there
    """
    declared = hba_line_number(text, line or "")
    where = f"line {declared}" if declared is not None else f"line {number} of the servers' pg_hba.conf"
    way_out = "correct it"
    if _UNSUPPORTED in error:
        way_out = (
            "leave it out, or declare an image that has this first, and the line when all members run in it"
        )
    return (
        f"{HBA_PATH}: {where} ({(line or '').strip()[:LONGEST]}) can't be read: {error}: {way_out}, until then"
        " members go on with the rules that they had, and none of them could start again"
    )


def require_readable(databases: Databases, seen: Observed, groups: Collection[int]) -> None:
    """Before servers are ended that are to come back.

    :raises PgherdError: one of these groups' members could not read its rules
    """
    asked = [
        (state.member.group, state.view.postgres)
        for state in seen.members.values()
        if state.is_running and state.member.group in groups
    ]
    if problems := unread(databases, seen.declaration.cluster.spec.postgres.host_based_authentication, asked):
        raise PgherdError("; ".join(problems))
