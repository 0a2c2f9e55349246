"""Restore points from a time in which money moved: which of them are restored, and what each of them must hold."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from tests.support.money import Ledger, audit

Points = Sequence[dict[str, Any]]
"""those that can be restored, oldest first, as ``restore-points -o json`` has them"""


def newest(ledger: Ledger) -> str:
    """When the last transfer so far was acknowledged."""
    return max(ledger.acknowledged.values()).isoformat(timespec="milliseconds")


def moment(text: str) -> datetime:
    """A point's time."""
    return datetime.fromisoformat(text).astimezone(UTC)


def inside(offered: Points, ledger: Ledger) -> list[int]:
    """Which of them were made between the first transfer and the last one, and have one before them."""
    begun, ended = min(ledger.began.values()), max(ledger.acknowledged.values())
    return [n for n, point in enumerate(offered) if n and begun < moment(point["time"]) < ended]


def kind(point: dict[str, Any]) -> tuple[int, int]:
    """What a failover of segment-1 and an expansion change: its timeline, and how many groups there are."""
    return int(point["lsns"]["1"]["timeline"]), int(point["groups"])


def choose(offered: Points, among: Sequence[int], count: int, also: Iterable[int] = ()) -> set[int]:
    """As many as are to be restored: at random, one of every kind that there is, and then one of every placement.

    :param also: those that are among them anyhow
    :return: more than ``count`` only if there are more kinds
    """
    chosen = set(also)
    for each in sorted({kind(offered[n]) for n in among}):
        chosen.add(random.choice([n for n in among if kind(offered[n]) == each]))
    by_placement = {offered[n]["placement"]: n for n in random.sample(among, len(among))}
    known = {offered[n]["placement"] for n in chosen}
    rest = [n for placement, n in by_placement.items() if placement not in known]
    rest += [n for n in random.sample(among, len(among)) if n not in rest]
    for n in rest:
        if len(chosen) >= count:
            break
        chosen.add(n)
    assert len(chosen) >= count, f"{len(among)} points were made, too few to restore {count} of them"
    return chosen


def audit_point(connection: psycopg.Connection[Any], ledger: Ledger, offered: Points, n: int) -> int:
    """What was restored to a point has the sum, all from before the point before it, and nothing of a later time.

    :return: how many transfers there are
    """
    since, until = (moment(offered[each]["time"]) for each in (n - 1, n))
    return audit(connection, ledger, since=since, until=until)
