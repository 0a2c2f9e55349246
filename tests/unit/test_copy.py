"""Comparing both sides of a copy."""

from __future__ import annotations

from decimal import Decimal

from pgherd.operations.copy_rows import Total, differences


def total(rows: int, checksum: int = 0) -> Total:
    return Total(rows, Decimal(checksum))


def test_totals_of_pieces_add_up_whatever_their_order() -> None:
    pieces = [total(1, 5), total(2, -7), total(0)]
    assert sum(pieces, Total()) == sum(reversed(pieces), Total()) == total(3, -2)


def test_equal_tables_have_no_difference() -> None:
    assert differences({"a": total(3, 9), "empty": total(0)}, {"a": total(3, 9), "more": total(1)}) == []


def test_each_difference_is_named_with_its_table() -> None:
    expected = {"lost": total(3, 9), "doubled": total(3, 9), "changed": total(3, 9), "gone": total(1, 1)}
    found = {"lost": total(2, 4), "doubled": total(6, 18), "changed": total(3, 8)}
    assert differences(expected, found) == [
        "lost: 3 rows at the source, 2 at the destination",
        "doubled: 3 rows at the source, 6 at the destination",
        "changed: 3 rows on both sides, but their checksums differ",
        "gone: 1 rows at the source, 0 at the destination",
    ]
