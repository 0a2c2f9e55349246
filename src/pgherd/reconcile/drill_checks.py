"""What a drill checks, and what became of each check: a result claims none that was not made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pgherd.backup import pages
from pgherd.backup.base import Verified
from pgherd.model.topology import group_name
from pgherd.reconcile.drill_words import (
    CATALOGUE,
    NO_TABLES,
    NOT_REACHED,
    PAGES,
    RELATIONS,
    ROWS,
    WHAT,
)

BY = {PAGES: pages.PROGRAM, CATALOGUE: "pgherd check", ROWS: "counts and hashes", RELATIONS: "pg_amcheck"}
"""what checks; the copies are their method's affair"""


@dataclass(frozen=True)
class Check:
    """One check, and what became of it."""

    name: str
    by: str
    why: str = NOT_REACHED
    """why it was not made, or not in all groups; empty: it was"""
    problems: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """As results hold it; the problems are told there once, for all checks."""
        done = not self.why
        return {
            "check": self.name,
            "by": self.by,
            "done": done,
            "why": self.why,
            "problems": len(self.problems),
        }


class Checks:
    """All of one drill.

    :param tables: whether there are any whose rows are compared
    """

    def __init__(self, *, tables: bool) -> None:
        self._known = {name: Check(name, BY.get(name, "")) for name in WHAT}
        if not tables:
            self.tell(ROWS, why=NO_TABLES)

    def by(self, name: str, program: str) -> None:
        """Remember what makes one."""
        self._known[name] = replace(self._known[name], by=program)

    def tell(self, name: str, problems: Iterable[str] = (), why: str = "") -> list[str]:
        """Remember what became of one; returns the problems."""
        found = list(problems)
        self._known[name] = replace(self._known[name], why=why, problems=found)
        return found

    def give_up(self, why: str) -> None:
        """Remember why those that were not reached were not."""
        for name, each in self._known.items():
            if each.why == NOT_REACHED:
                self._known[name] = replace(each, why=why)

    def as_json(self) -> list[dict[str, Any]]:
        """All of them."""
        return [each.as_json() for each in self._known.values()]


def groups_of(restored: Mapping[str, Any]) -> dict[int, Sequence[str]]:
    """The chain of base copies of each group, as it was written down when a scratch was made; none: it never began."""
    return {int(group): copies for group, copies in sorted((restored.get("bases") or {}).items())}


def of_pages(restored: Mapping[str, Any]) -> tuple[list[str], str]:
    """What was found in the pages of a scratch, and why they were not all verified; empty: they were."""
    known = restored.get(pages.KEY) or {}
    groups = groups_of(restored)
    if not groups or not known:
        return [], NOT_REACHED
    found = {group: pages.pages_from(known.get(str(group))) for group in groups}
    problems = [f"{group_name(group)}: {text}" for group, each in found.items() for text in each.problems]
    return problems, _undone({group: each.why for group, each in found.items() if not each.done})


def of_restored_copies(restored: Mapping[str, Any]) -> str:
    """Why not all copies were verified by who restored them; empty: they were."""
    steps, groups = restored.get("steps") or (), groups_of(restored)
    if not groups:
        return NOT_REACHED
    left = {group: NOT_REACHED for group in groups if f"copied:{group}" not in steps}
    return _undone(left) if len(left) < len(groups) else NOT_REACHED


def of_copies(found: Mapping[int, Verified]) -> tuple[list[str], str]:
    """What was found in the copies of each group where they are kept, and why they were not all verified."""
    problems = [f"{group_name(group)}: {text}" for group, each in found.items() for text in each.problems]
    return problems, _undone({group: each.why for group, each in found.items() if each.why})


def _undone(reasons: Mapping[int, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for group, why in reasons.items():
        by_reason.setdefault(why, []).append(group_name(group))
    return "; ".join(f"{why} ({', '.join(groups)})" for why, groups in by_reason.items())
