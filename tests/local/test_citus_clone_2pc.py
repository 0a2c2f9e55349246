"""A segment is split while it commits in two phases on the others: its copy must not end these in its name.

A promoted copy takes itself for its source until the split's commit reaches it. That is made to last here: the split
waits for a lock on another segment after it has promoted the copy. Commits of the source take their time, so that there
are always some between prepared and committed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg

from tests.local.test_citus_clone import declared, herd, scale, whole
from tests.support import money
from tests.support.citus import held_up, is_promoted, needs_citus, superuser
from tests.support.home import Home, wait_for
from tests.support.money import await_transfers, make_tables, movers

pytestmark = needs_citus

SOURCE, OTHERS, NEW = "segment-1", ("segment-2", "segment-3"), "segment-4"
NUMBERS = 100_000
"""more than transfers come about"""
LONG = 9.0
"""seconds that a promoted copy is left alone for: its maintenance daemon wakes up every two, and recovers every five"""


def elsewhere(connection: psycopg.Connection[Any], table: str, last: int) -> list[int]:
    """Those of the numbers from 1 on whose rows of a table are not on the segment that will be split."""
    query = (
        "SELECT g FROM generate_series(1, %s) g WHERE get_shard_id_for_distribution_column(%s, g) IN"
        " (SELECT shardid FROM pg_dist_placement WHERE groupid <> 1) ORDER BY g"
    )
    return [row[0] for row in connection.execute(query, [last, table]).fetchall()]


def make_largest(home: Home) -> None:
    """The largest segment is the one that is split."""
    with superuser(home) as connection:
        connection.execute("CREATE TABLE ballast (id int PRIMARY KEY, note text)")
        connection.execute("SELECT create_distributed_table('ballast', 'id')")
        there = sorted({*range(1, 20_001)} - set(elsewhere(connection, "ballast", 20_000)))
        connection.execute(
            "INSERT INTO ballast SELECT g, string_agg(md5(g || '.' || n), '') FROM unnest(%s::int[]) g,"
            " generate_series(1, 30) n GROUP BY g",
            [there],
        )


def slow(home: Home, delay: str) -> None:
    """Let commits of the source wait: what belongs to them is prepared elsewhere meanwhile."""
    with superuser(home, SOURCE) as connection:
        for name, setting in (("commit_siblings", "0"), ("commit_delay", delay)):
            connection.execute(f"ALTER SYSTEM SET {name} TO {setting}".encode())
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def open_transaction(home: Home, row: int) -> Iterator[str]:
    """A client's transaction at the source, and the name of a part of it that is prepared on another segment."""
    with home.connect("shop", "--group", SOURCE, autocommit=False) as client:
        client.execute("INSERT INTO item VALUES (%s, 'open')", [row])
        number = client.execute(
            "SELECT process_id, transaction_number FROM get_current_transaction_id()"
        ).fetchone()
        assert number is not None
        name = f"citus_1_{number[0]}_{number[1]}_99"
        with superuser(home, OTHERS[1]) as connection:
            connection.execute("SET citus.enable_ddl_propagation TO off")
            connection.execute("CREATE TABLE public.part (id int)")
            connection.execute("BEGIN; INSERT INTO public.part VALUES (1)")
            connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
        yield name
        with superuser(home, OTHERS[1]) as connection:
            connection.execute(f"COMMIT PREPARED '{name}'".encode())
            connection.execute("SET citus.enable_ddl_propagation TO off; DROP TABLE public.part")
        client.execute("DELETE FROM item WHERE id = %s", [row])
        client.commit()


def prepared(home: Home, name: str) -> bool:
    with superuser(home, OTHERS[1]) as connection:
        query = "SELECT count(*) FROM pg_prepared_xacts WHERE gid = %s"
        return connection.execute(query, [name]).fetchone() == (1,)


def recovery_interval(home: Home, group: str) -> str:
    with superuser(home, group) as connection:
        row = connection.execute("SHOW citus.recover_2pc_interval").fetchone()
        assert row is not None
        return str(row[0])


def test_two_phase_commits_live_through_a_split_and_one_that_is_killed() -> None:
    with herd(segments=3) as home:
        with home.connect() as connection:
            make_tables(connection)
            accounts = elsewhere(connection, "account", money.ACCOUNTS)
            numbers = frozenset(elsewhere(connection, "transfer", NUMBERS))
            (row, *_) = (each for each in elsewhere(connection, "item", 9000) if each > 8000)
        make_largest(home)
        slow(home, "50000")
        dsn = home.dsn("shop", "--group", SOURCE)
        with (
            movers(dsn, 8, accounts=accounts, numbers=numbers) as ledger,
            open_transaction(home, row) as name,
        ):
            with held_up(home, OTHERS[0]):
                thread = scale(home, 4)
                wait_for(lambda: is_promoted(home, NEW), "the copy is promoted", 200, every=0.2)
                time.sleep(LONG)
                assert is_promoted(home, NEW)
                assert prepared(home, name), "the copy has ended what its source is at work on"
                daemon = home.supervisor()
                assert daemon is not None
                daemon.kill()
                time.sleep(LONG)
                assert prepared(home, name), "the copy that nobody looks after has ended it"
            # Made anew, and promoted again.
            home.up(declared(4), timeout=400)
            thread.join()
            assert prepared(home, name)
            await_transfers(ledger, 20)
        slow(home, "0")
        now = datetime.now(UTC)
        for group in ("coordinator", SOURCE, *OTHERS, NEW):
            with home.connect("shop", "--group", group) as connection:
                money.audit(connection, ledger, since=now, until=now)
        assert not ledger.errors, ledger.errors[:3]
        last = home.status()["lastOperation"]
        assert last["message"] == "expanded to 4 segments: 1 of them split off from others"
        whole(home, 4)
        wait_for(lambda: recovery_interval(home, NEW) == "5s", "the new segment recovers its own", 30)
        print(f"{len(ledger.acknowledged)} transfers, {ledger.retries} failed")
