"""Who is told of a switchover, and when. What Patroni and Citus make of it is seen in the Citus tests."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import cast

import pytest

from pgherd.errors import PgherdError
from pgherd.model.topology import Endpoint
from pgherd.patroni.client import MemberStatus, PatroniClient
from pgherd.reconcile import handover
from pgherd.reconcile.observe import World
from tests.support.looks import cluster, look, patroni

HEIR = "shop-segment-1-1"


class Patronis(PatroniClient):
    """A cluster's: while it is looked at, one comes to lead, then to serve. They remember what they are asked for."""

    def __init__(self, refusal: str = "") -> None:
        standby, primary = patroni(HEIR, leader=False), patroni(HEIR, leader=True)
        self._looks = [
            None,
            standby,
            replace(standby, leader=True),
            replace(primary, state="starting"),
            primary,
        ]
        self._refusal = refusal
        self.asked: list[str] = []
        self.looked, self.granted = threading.Event(), threading.Event()

    def member_status(self, endpoint: Endpoint) -> MemberStatus | None:
        self.looked.set()
        if not self.granted.is_set():
            return None
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]

    def switchover(self, endpoint: Endpoint, leader: str, candidate: str | None = None) -> str:
        self.asked.append(f"{candidate} for {leader}")
        if self._refusal:
            raise PgherdError(self._refusal)
        self.granted.set()
        return f"Successfully switched over to {candidate!r}"

    def announce_primary(self, coordinator: Endpoint, group: int, leader: str) -> None:
        self.asked.append(
            f"port {coordinator.port}: {leader} leads {group}, {len(self._looks) - 1} looks too early"
        )


def hand_over(patronis: Patronis, engine: str, group: int = 1) -> list[str]:
    """Let the standby of a group lead; what was asked for."""
    seen = look(cluster(engine=engine))
    leader, heir = seen.of_group(group)
    world = World("shop", *(cast(object, None),) * 3, patronis)  # type: ignore[arg-type]
    handover.switchover(world, seen, leader, heir)
    return patronis.asked


def heralds() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == f"herald of {HEIR}"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "LOOK_SECONDS", 0.001)


def test_citus_is_told_of_a_segments_new_primary_as_soon_as_it_serves() -> None:
    asked, *told = hand_over(Patronis(), "citus")
    assert asked == f"{HEIR} for shop-segment-1-0"
    assert told == [f"port 8000: {HEIR} leads 1, 0 looks too early"] * handover.TELLINGS


@pytest.mark.parametrize(("engine", "group"), [("fdw", 1), ("citus", 0)])
def test_where_nobody_waits_nobody_is_told(engine: str, group: int) -> None:
    patronis = Patronis()
    assert len(hand_over(patronis, engine, group)) == 1
    assert not patronis.looked.is_set()


def test_a_switchover_that_is_refused_is_not_told() -> None:
    patronis = Patronis("candidate is not healthy")
    with pytest.raises(PgherdError, match="not healthy"):
        hand_over(patronis, "citus")
    patronis.granted.set()  # it comes to lead for another reason
    for herald in heralds():
        herald.join(10)
    assert len(patronis.asked) == 1
    assert not heralds()
