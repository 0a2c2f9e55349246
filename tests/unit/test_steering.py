"""What people ask of a running cluster directly."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.reconcile import observe, steering
from pgherd.reconcile.state import Observed
from tests.support.looks import look, member

SLOW = look(changes=[member(1, 1, running=False)])


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "BETWEEN_LOOKS_SECONDS", 0.0)


def findings(monkeypatch: pytest.MonkeyPatch, *looks: Observed) -> tuple[list[str], list[Observed]]:
    """What a check tells when it sees this one after the other, and what it did not look at any more."""
    left: Iterator[Observed] = iter(looks)
    monkeypatch.setattr(observe, "observe", lambda world: next(left))
    engine = SimpleNamespace(check=list)
    found = steering.findings(cast(observe.World, SimpleNamespace(name="shop", engine=engine)))
    return [each.message for each in found], list(left)


def test_a_check_that_finds_nothing_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told, left = findings(monkeypatch, look(), SLOW)
    assert not told
    assert left == [SLOW]


def test_a_member_that_did_not_answer_in_time_once_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = findings(monkeypatch, SLOW, SLOW, look())
    assert not told


def test_a_member_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = [SLOW] * steering.LOOKS
    told, left = findings(monkeypatch, *looks)
    assert told[0] == "shop-segment-1-1 is stopped"
    assert not left
