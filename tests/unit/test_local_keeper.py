"""What a member's keeper ends when a server died, and what it leaves alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pgherd.platform.local import keeper


@contextmanager
def children(*titles: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children of this process under these titles."""
    with ExitStack() as stack:
        started = []
        for title in titles:
            child = stack.enter_context(
                subprocess.Popen([title], executable="/bin/cat", stdin=subprocess.PIPE)
            )
            stack.callback(child.kill)
            started.append(child)
        yield started


def test_what_a_server_that_died_has_left_is_ended_and_nothing_else() -> None:
    server = "/usr/lib/postgresql/18/bin/postgres"
    session, logger = "postgres: shop: app app 127.0.0.1(4711) SELECT  ", "postgres: shop: logger "
    with children(session, logger, server, "pg_basebackup") as (orphan, *others):
        keeper._end_orphans()
        assert orphan.wait(10) == -9
        assert [other.poll() for other in others] == [None, None, None]
