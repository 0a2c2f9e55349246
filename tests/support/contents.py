"""What a cluster holds and must go on holding through every operation, and what operations must not leave behind."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.support.home import Home, wait_for
from tests.support.writers import make_table

ROWS = 3000


def make_items(connection: psycopg.Connection[Any], count: int) -> None:
    """A distributed table ``item`` of so many rows."""
    connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text)")
    connection.execute("SELECT create_distributed_table('item', 'id')")
    connection.execute(f"INSERT INTO item SELECT g, 'n' || g FROM generate_series(1, {count}) g")


def fill(home: Home, engine: str = "fdw") -> None:
    """Citus does not move tables without a key online; there that one stays on the coordinator."""
    with home.connect() as connection:
        make_table(connection)
        make_items(connection, ROWS)
        connection.execute("CREATE TABLE keyless (id int, note text)")
        if engine == "fdw":
            connection.execute("SELECT create_distributed_table('keyless', 'id')")
        connection.execute(f"INSERT INTO keyless SELECT g % 100, 'n' || g FROM generate_series(1, {ROWS}) g")


def contents(home: Home) -> list[Any]:
    """What must stay the same through every operation."""
    return [
        home.query("SELECT count(*), sum(id)::bigint, md5(string_agg(note, ',' ORDER BY id)) FROM item"),
        home.query("SELECT count(*), sum(id)::bigint, md5(string_agg(note, ',' ORDER BY note)) FROM keyless"),
    ]


LEFTOVERS = {
    "slots": "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'",
    "publications": "SELECT pubname FROM pg_publication",
    "subscriptions": "SELECT subname FROM pg_subscription",
    "origins": "SELECT roname FROM pg_replication_origin",
    "identities": "SELECT relname FROM pg_class WHERE relreplident = 'f' AND relkind = 'r'",
}


def leftovers(home: Home) -> dict[str, list[Any]]:
    """What moves made and did not take away, on any segment; empty if nothing."""
    found: dict[str, list[Any]] = {}
    for group in home.status()["groups"][1:]:
        with home.connect("shop", "--group", group["name"]) as connection:
            for what, query in LEFTOVERS.items():
                if rows := connection.execute(query).fetchall():
                    found.setdefault(what, []).extend((group["name"], row[0]) for row in rows)
    return found


def nothing_is_left_over(home: Home) -> None:
    wait_for(lambda: not leftovers(home), "nothing is left over from the moves", 60)
    wait_for(
        lambda: "nothing found wrong" in home.run("check", "shop", check=False).stdout, "a sound cluster", 30
    )
