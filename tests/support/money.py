"""Money that moves between accounts on different segments, with a journal: what a restored cluster must hold.

Each transfer takes from one account, gives to another and writes a row of its own, in one transaction. At a moment at
which all groups agree the sum is what it was at the beginning, and the rows' sums are the accounts'.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

ACCOUNTS = 64
EACH = 1000
SUM = ACCOUNTS * EACH


@dataclass
class Ledger:
    """What the writers know."""

    began: dict[int, datetime] = field(default_factory=dict, repr=False)
    """transfer -> when its transaction was begun"""
    acknowledged: dict[int, datetime] = field(default_factory=dict, repr=False)
    """transfer -> when its commit was acknowledged"""
    paused: threading.Event = field(default_factory=threading.Event)
    resting: set[int] = field(default_factory=set)
    """writers that have nothing under way"""
    retries: int = 0
    errors: list[str] = field(default_factory=list)
    """what a retry does not explain"""


def make_tables(connection: psycopg.Connection[Any]) -> None:
    """Accounts with their first balances."""
    connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)")
    connection.execute("CREATE TABLE transfer (id bigint PRIMARY KEY, payer int, payee int, amount int)")
    connection.execute("SELECT create_distributed_table('account', 'id')")
    connection.execute("SELECT create_distributed_table('transfer', 'id')")
    connection.execute(f"INSERT INTO account SELECT g, {EACH} FROM generate_series(1, {ACCOUNTS}) g")


@contextmanager
def movers(
    dsn: str,
    count: int = 4,
    *,
    accounts: Collection[int] = range(1, ACCOUNTS + 1),
    numbers: Container[int] | None = None,
) -> Iterator[Ledger]:
    """Move money in ``count`` threads until the block ends; the ledger also knows what was moved before.

    :param accounts: those between which it moves
    :param numbers: those that transfers may have; None: any
    """

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(dsn, autocommit=True)

    ledger, stop = Ledger(), threading.Event()
    with connect() as connection:
        before = [row[0] for row in connection.execute("SELECT id FROM transfer")]
    ledger.began = dict.fromkeys(before, datetime.now(UTC))
    ledger.acknowledged = dict(ledger.began)
    first = max(before, default=-1) // count * count + count
    # Each writer has accounts of its own: a hot row is no part of what is shown here.
    own = [sorted(accounts)[number::count] for number in range(count)]
    ids = [_numbers(first + number, count, numbers) for number in range(count)]
    threads = [
        threading.Thread(
            target=_move_on, args=(connect, number, own[number], ids[number], ledger, stop), daemon=True
        )
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    await_transfers(ledger, 10)
    try:
        yield ledger
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def await_transfers(ledger: Ledger, count: int) -> None:
    """Until so many more are acknowledged."""
    wanted, deadline = len(ledger.acknowledged) + count, time.monotonic() + 60
    while len(ledger.acknowledged) < wanted:
        assert time.monotonic() < deadline, f"no money moves: {ledger.errors[:3]}"
        time.sleep(0.01)


def pause(ledger: Ledger, writers: int = 4) -> None:
    """Let everything that is under way come to its end."""
    ledger.paused.set()
    deadline = time.monotonic() + 30
    while len(ledger.resting) < writers:
        assert time.monotonic() < deadline, "the writers did not come to rest"
        time.sleep(0.01)


def _numbers(first: int, step: int, allowed: Container[int] | None) -> Iterator[int]:
    return (number for number in itertools.count(first, step) if allowed is None or number in allowed)


def _move_on(
    connect: Callable[[], psycopg.Connection[Any]],
    number: int,
    own: Sequence[int],
    numbers: Iterator[int],
    ledger: Ledger,
    stop: threading.Event,
) -> None:
    connection: psycopg.Connection[Any] | None = None
    while not stop.is_set():
        if ledger.paused.is_set():
            ledger.resting.add(number)
            time.sleep(0.02)
            continue
        ledger.resting.discard(number)
        if connection is None or connection.closed:
            with suppress(psycopg.Error):
                connection = connect()
            continue
        transfer = next(numbers)
        ledger.began[transfer] = datetime.now(UTC)
        try:
            move(connection, transfer, *random.sample(own, 2))
        except psycopg.Error as error:
            ledger.retries += 1
            if error.sqlstate is not None and not error.sqlstate.startswith(("40", "57", "08", "55", "25")):
                ledger.errors.append(f"{error.sqlstate}: {error}")
            connection.close()
        else:
            ledger.acknowledged[transfer] = datetime.now(UTC)
        time.sleep(0.002)
    if connection is not None:
        connection.close()


def move(connection: psycopg.Connection[Any], transfer: int, payer: int, payee: int) -> None:
    """One transfer, in one transaction."""
    amount = random.randint(1, 20)
    with connection.transaction():
        connection.execute("UPDATE account SET balance = balance - %s WHERE id = %s", [amount, payer])
        connection.execute("INSERT INTO transfer VALUES (%s, %s, %s, %s)", [transfer, payer, payee, amount])
        connection.execute("UPDATE account SET balance = balance + %s WHERE id = %s", [amount, payee])


def audit(connection: psycopg.Connection[Any], ledger: Ledger, *, since: datetime, until: datetime) -> int:
    """The sum is right, account by account; all of before ``since`` is there, nothing of after ``until``.

    :return: how many transfers there are
    """
    balances = dict(connection.execute("SELECT id, balance FROM account").fetchall())
    moved = connection.execute("SELECT id, payer, payee, amount FROM transfer").fetchall()
    assert len(balances) == ACCOUNTS
    assert sum(balances.values()) == SUM, f"the sum is {sum(balances.values())}, not {SUM}"
    expected = dict.fromkeys(balances, EACH)
    for _, payer, payee, amount in moved:
        expected[payer] -= amount
        expected[payee] += amount
    assert balances == expected, "a transfer is there in part"
    there = {row[0] for row in moved}
    missing = [each for each, when in ledger.acknowledged.items() if when < since and each not in there]
    early = [each for each in there if ledger.began[each] > until]
    assert not missing, f"{len(missing)} transfers from before the point are lost, such as {missing[:3]}"
    assert not early, f"{len(early)} transfers from after the point are there, such as {early[:3]}"
    return len(there)
