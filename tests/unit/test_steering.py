"""What people ask of a running cluster directly."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.errors import PgherdError, Unavailable
from pgherd.reconcile import access, observe, steering
from pgherd.reconcile.state import Observed
from tests.support.looks import look, member

SLOW = look(changes=[member(1, 1, running=False)])


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "BETWEEN_LOOKS_SECONDS", 0.0)


@pytest.mark.parametrize("ask", ["restart", "switchover"])
def test_no_server_is_ended_that_could_not_read_its_access_rules(
    monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.setattr(observe, "observe", lambda world: look())
    monkeypatch.setattr(access, "unread", lambda databases, text, asked: ["line 3 can't be read"])
    told: list[str] = []
    patroni = SimpleNamespace(restart=told.append, switchover=told.append)
    known = SimpleNamespace(segments=lambda: [1, 2])
    world = cast(
        observe.World,
        SimpleNamespace(name="shop", patroni=patroni, databases=None, engine=known, platform=None),
    )
    monkeypatch.setattr(steering, "group_number", lambda world, group: 1)
    with pytest.raises(PgherdError, match="line 3 can't be read"):
        steering.restart(world, "segment-1") if ask == "restart" else steering.switchover(
            world, "segment-1", None
        )
    assert not told


def test_a_restart_whose_end_nobody_saw_names_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "observe", lambda world: look())
    monkeypatch.setattr(access, "require_readable", lambda *asked: None)
    monkeypatch.setattr(steering, "group_number", lambda world, group: 1)

    def restart(rest: object) -> None:
        raise Unavailable("Patroni at 127.0.0.1:34155 does not answer: TimeoutError")

    patroni = SimpleNamespace(restart=restart)
    world = cast(observe.World, SimpleNamespace(name="shop", patroni=patroni, databases=None))
    with pytest.raises(Unavailable, match="shop-segment-1-1 may not have been restarted: Patroni at 127"):
        steering.restart(world, "segment-1")


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
