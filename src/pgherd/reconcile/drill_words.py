"""What the checks of a drill are called, and what a result says of those that were not made. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COPIES, PAGES, CATALOGUE, ROWS, RELATIONS = "copies", "pages", "catalogue", "rows", "relations"
WHAT = {
    COPIES: "the files of the base copies",
    PAGES: "page checksums",
    CATALOGUE: "the catalogue",
    ROWS: "rows",
    RELATIONS: "tables and btree indexes",
}
"""in the order in which they are told"""
NOT_REACHED = "the drill ended before"
NO_TABLES = "no tables are named"


def unchecked(result: Mapping[str, Any]) -> str:
    """What a drill did not check though it should have, as the end of a sentence; empty: nothing, or it is older than
    that this is written down."""
    left = [
        f"{WHAT[each['check']]} ({each['why']})"
        for each in result.get("checks") or ()
        if not each["done"] and each["why"] != NO_TABLES and each["check"] in WHAT
    ]
    return f"; not checked: {', '.join(left)}" if left else ""
