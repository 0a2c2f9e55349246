"""What tables held at a restore point, on a herd of real servers: nothing that is there is missed, nothing is made up.

The same herd stands for the restored cluster: whatever happens to its rows afterwards is what a bad restore would show.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from pgherd.errors import BadInput
from pgherd.operations import fingerprint
from pgherd.operations.fingerprint import Outcome, Print, Snapshots
from pgherd.postgres.connections import Connection
from tests.support.citus_servers import running_citus_herd
from tests.support.engines import engine
from tests.support.servers import Herd, running_herd

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]

ROWS = 2000


@pytest.fixture(scope="module")
def herd(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    folder = tmp_path_factory.mktemp("herd")
    if engine == "citus":
        with running_citus_herd(folder) as herd:
            yield herd
    else:
        with running_herd(folder, segments=2, shard_count=4) as herd:
            yield herd


@pytest.fixture
def app(herd: Herd) -> Iterator[Connection]:
    with herd.connect() as connection:
        connection.execute("CREATE SCHEMA shop; SET search_path = shop")
        connection.execute('CREATE TABLE item (id int PRIMARY KEY, "a % {b}" text)')
        connection.execute("SELECT create_distributed_table('item', 'id')")
        connection.execute("CREATE TABLE kind (id int PRIMARY KEY); SELECT create_reference_table('kind')")
        connection.execute('CREATE TABLE "No te" (id int)')
        connection.execute(f"INSERT INTO item SELECT g, repeat('x', 200) FROM generate_series(1, {ROWS}) g")
        connection.execute('INSERT INTO kind VALUES (1), (2); INSERT INTO "No te" VALUES (1)')
        yield connection
        connection.execute("DROP SCHEMA shop CASCADE")


def quiet(doing: str, done: int, total: int) -> None:
    """Nobody is told."""


def snapshots(herd: Herd, *names: str) -> Snapshots:
    names = names or ("shop.item", "kind", "No te")
    return Snapshots(herd.databases, fingerprint.named(herd.engine.layout(), names))


def prints(herd: Herd, *names: str) -> list[Print]:
    around = snapshots(herd, *names)
    with around:
        herd.engine.create_restore_point("here")
    try:
        return around.prints(quiet)
    finally:
        around.close()


def compare(herd: Herd, known: list[Print]) -> Outcome:
    return fingerprint.compare(herd.databases, herd.engine, known, quiet)


def test_what_did_not_change_is_the_same(herd: Herd, app: Connection) -> None:
    known = prints(herd)
    assert sum(each.rows for each in known if each.table == "shop.item") == ROWS
    assert len([each for each in known if each.table == "shop.item"]) == 4
    assert not any(each.touched for each in known)
    assert known == [fingerprint.print_from(each.as_json()) for each in known]
    outcome = compare(herd, known)
    assert outcome.problems == ()
    assert outcome.rows == sum(each.rows for each in known)


def test_a_row_that_is_missing_is_found(herd: Herd, app: Connection) -> None:
    known = prints(herd)
    app.execute("DELETE FROM item WHERE id = 17")
    (problem,) = compare(herd, known).problems
    assert problem.startswith("shop.item: ")
    assert "rows and has" in problem


def test_a_row_with_other_contents_is_found(herd: Herd, app: Connection) -> None:
    known = prints(herd)
    wrong = [replace(known[0], hash=str(Decimal(known[0].hash) + 1)), *known[1:]]
    (problem,) = compare(herd, wrong).problems
    assert "but not their contents" in problem


def test_a_table_that_is_missing_is_found(herd: Herd, app: Connection) -> None:
    known = prints(herd)
    app.execute('DROP TABLE "No te"')
    (problem,) = compare(herd, known).problems
    assert problem.endswith("is not there")


def test_rows_that_came_later_are_nobodys_business(herd: Herd, app: Connection) -> None:
    known = prints(herd)
    app.execute(f"INSERT INTO item SELECT g FROM generate_series({ROWS + 1}, {ROWS + 50}) g")
    assert compare(herd, known).problems == ()


def test_what_is_changed_while_the_point_is_made_spoils_only_its_own_part(
    herd: Herd, app: Connection
) -> None:
    around = snapshots(herd)
    with around:
        app.execute("DELETE FROM item WHERE id = 5; UPDATE item SET \"a % {b}\" = 'y' WHERE id = 6")
    known = around.prints(quiet)
    around.close()
    touched = [part for each in known for part in each.touched]
    assert 1 <= len(touched) <= 2
    assert sum(most - fewest for _, fewest, most in touched) == 2
    # Whether the point was before or after them: both are right.
    outcome = compare(herd, known)
    assert outcome.problems == ()
    assert outcome.rows < ROWS + 3
    assert outcome.rows + outcome.touched >= ROWS
    app.execute("DELETE FROM item WHERE id < 500")
    assert compare(herd, known).problems


def test_a_transaction_that_is_open_meanwhile_does_not_count_even_in_parts_of_it(
    herd: Herd, app: Connection
) -> None:
    with herd.connect(autocommit=False) as writer:
        writer.execute(f"INSERT INTO shop.item SELECT g FROM generate_series({ROWS + 1}, {ROWS + 10}) g")
        writer.execute("SAVEPOINT part")
        writer.execute(f"INSERT INTO shop.item SELECT g FROM generate_series({ROWS + 11}, {ROWS + 20}) g")
        around = snapshots(herd, "item")
        with around:
            writer.commit()
        known = around.prints(quiet)
        around.close()
    assert sum(each.rows for each in known) == ROWS
    assert compare(herd, known).problems == ()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_a_commit_may_explain_that_was_on_its_way_is_no_finding(
    herd: Herd, app: Connection, end: str
) -> None:
    with herd.connect(autocommit=False) as writer:
        writer.execute("DELETE FROM shop.item WHERE id = 9")
        around = snapshots(herd, "item")
        with around:
            pass
        known = around.prints(quiet)
        around.close()
        getattr(writer, end)()
    outcome = compare(herd, known)
    assert outcome.problems == ()
    assert outcome.unclear == (1 if end == "commit" else 0)
    app.execute("DELETE FROM item WHERE id < 9")
    if end == "rollback":
        assert compare(herd, known).problems


def test_writers_are_neither_held_nor_miscounted(herd: Herd, app: Connection) -> None:
    stop, written = threading.Event(), [0]

    def write() -> None:
        with herd.connect() as connection:
            while not stop.is_set():
                written[0] += 1
                connection.execute(
                    'UPDATE shop.item SET "a %% {b}" = %s WHERE id = %s',
                    [str(written[0]), written[0] % ROWS + 1],
                )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        known = prints(herd)
        before = written[0]
        # In the open snapshots all rows of the time before are there, however long ago they were replaced.
        assert sum(each.rows + sum(most for *_, most in each.touched) for each in known) >= ROWS * 0.9
    finally:
        stop.set()
        writer.join()
    assert written[0] >= before > 0


def test_names_are_found_with_and_without_schema_and_quotes(herd: Herd, app: Connection) -> None:
    layout = herd.engine.layout()
    for name in ("item", "shop.item"):
        assert [table.name for table in fingerprint.named(layout, [name])] == ["shop.item"]
    for name in ("No te", '"No te"', "shop.No te", 'shop."No te"'):
        assert [table.name for table in fingerprint.named(layout, [name])] == ['shop."No te"']
    app.execute("CREATE SCHEMA other; CREATE TABLE other.item (id int)")
    try:
        with pytest.raises(BadInput) as caught:
            fingerprint.named(herd.engine.layout(), ["item", "nothing"])
        assert caught.value.problems == (
            "table item: there are several, name its schema",
            "table nothing: there is none of this name",
        )
    finally:
        app.execute("DROP SCHEMA other CASCADE")
