"""A group's rebuilding: what ends it, and when it is too late for that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import repair, restoring
from pgherd.backup.base import NoBackups
from pgherd.backup.catalogue import Away
from pgherd.errors import BadInput, PgherdError
from pgherd.model.topology import Endpoint
from pgherd.platform.local.platform import LocalPlatform
from tests.support.bench import Bench
from tests.support.platform import cluster

GROUP = 1


class Lab:
    """A group whose data take long to be put together.

    :ivar leads_from: the step at whose end a member of the group leads again
    :ivar retired_from: the one at whose end the cluster has no such group any more; or what was done by then
    """

    def __init__(self) -> None:
        self.bench = Bench()
        self.leads_from = self.retired_from = "nowhere"
        self.did: list[str] = []

    @property
    def site(self) -> Any:
        return SimpleNamespace(
            name="shop",
            group=GROUP,
            title="segment-1",
            bench=self.bench,
            has_primary=lambda: self.leads_from in self.did,
            is_retired=lambda: self.retired_from in (*self.did, *self.bench.did),
            stopping=lambda: False,
            call_off=lambda: None,
        )

    def run(self, *past: str) -> dict[str, Any]:
        """From these steps on, until it ends; how it stands then."""
        did = self.did

        class Quick(repair.Repair):
            def _copy(self) -> None:
                did.append("copied")
                self._pass("copied")

            def _replay(self) -> None:
                did.append("replayed")
                self._pass("replayed")

            def _judge(self) -> bool:
                did.append("judged")
                self._pass("judged", phase="settling", reason="it is whole")
                return True

            def _settle(self) -> None:
                did.append("settled")
                self._pass("settled")

            def _answers(self) -> bool:
                return True

            def _findings(self) -> list[str]:
                return []

        if past:
            phase = "placing" if "settled" in past else "copying"
            self.bench.write("state", {"id": "1", "phase": phase, "steps": past, "reason": "it is whole"})
        Quick(self.site).run()
        return self.bench.state


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(repair, "POLL_SECONDS", 0.01)
    return Lab()


@pytest.mark.parametrize(
    ("leads_from", "did"),
    [
        ("copied", ["copied", "replayed"]),
        ("replayed", ["copied", "replayed"]),
        ("judged", ["copied", "replayed", "judged"]),
        ("settled", ["copied", "replayed", "judged", "settled"]),
    ],
)
def test_a_group_that_came_back_while_its_data_were_made_is_left_alone(
    lab: Lab, leads_from: str, did: Sequence[str]
) -> None:
    lab.leads_from = leads_from
    state = lab.run()
    assert lab.did == did
    assert (state["phase"], state["rung"]) == (repair.DONE, "none")
    assert "came back by itself: nothing was changed" in state["reason"]
    assert "aside" not in state["steps"]
    assert not {"set_aside", "place"} & {*lab.bench.did}
    assert lab.bench.did[-2:] == ["put_back", "drop"]


def test_one_that_leads_when_it_is_told_to_end_is_left_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.bench.busy = 3
    monkeypatch.setattr(lab.bench, "is_quiet", lambda: lab.did.append("told to end"))
    lab.leads_from = "told to end"
    state = lab.run("copied", "replayed", "judged", "settled")
    assert (state["phase"], state["rung"]) == (repair.DONE, "none")
    assert not {"set_aside", "place"} & {*lab.bench.did}


def test_nobody_starts_or_ends_members_before_it_was_asked_last_who_leads(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    has_primary = repair.Repair._require_no_primary

    def asked(self: repair.Repair) -> None:
        phases.append(lab.bench.state["phase"])
        has_primary(self)

    monkeypatch.setattr(repair.Repair, "_require_no_primary", asked)
    monkeypatch.setattr(lab.bench, "place", lambda prepare: setattr(lab, "leads_from", "copied"))
    assert lab.run()["phase"] == repair.DONE
    assert phases == ["copying", "copying", "settling", "settling", "placing"]
    assert "put_back" not in lab.bench.did, "what leads from then on is what was made"


@pytest.mark.parametrize("step", ["_copy", "_replay", "_judge"])
def test_a_repair_waits_for_a_repository_that_is_away_and_keeps_what_is_made(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    away = Away("there is no repository at /disk/shop: see to it that its disk is mounted")
    problems: list[Exception] = [away]

    class Failing(repair.Repair):
        def _pass(self, step: str, **what: Any) -> None:
            super()._pass(step, **what)

    def fail(self: repair.Repair) -> None:
        raise PgherdError("the copy is damaged")

    def require() -> None:
        for problem in problems:
            raise problem

    for each in ("_copy", "_replay", "_judge"):
        monkeypatch.setattr(Failing, each, fail if each == step else lambda self: True)
    site = lab.site
    site.method = SimpleNamespace(repository=SimpleNamespace(require=require))
    lab.bench.write("state", {"id": "1", "phase": "copying", "steps": [], "reason": ""})
    with pytest.raises(PgherdError, match="damaged"):
        Failing(site).run()
    assert lab.bench.state["phase"] == "copying"
    assert not {"put_back", "drop"} & {*lab.bench.did}
    problems.clear()
    with pytest.raises(PgherdError, match="damaged"):
        Failing(site).run()
    assert lab.bench.state["phase"] == repair.FAILED


def test_a_repair_of_a_cluster_without_backups_fails_and_says_so(lab: Lab) -> None:
    site = lab.site
    site.method = NoBackups()
    with pytest.raises(BadInput, match=r"spec\.backup says where"):
        repair.Repair(site).run()
    assert lab.bench.state["phase"] == repair.FAILED


def test_a_group_that_was_shrunk_away_is_not_waited_for(lab: Lab) -> None:
    """Nobody starts its members any more."""
    lab.retired_from = "place"
    with pytest.raises(PgherdError, match="shop has no segment-1 any more"):
        lab.run()
    state = lab.bench.state
    assert (state["phase"], state["error"]) == (repair.FAILED, "shop has no segment-1 any more")
    assert "placed" in state["steps"]
    assert "put_back" not in lab.bench.did, "what was before is kept until somebody confirms"
    for before in ([], ["settled"]):
        lab.bench, lab.retired_from = Bench(), "settled"
        with pytest.raises(PgherdError, match="shop has no segment-1 any more"):
            lab.run("copied", *before)
        assert lab.bench.did[-2:] == ["put_back", "drop"]
        assert "place" not in lab.bench.did


def test_what_has_not_ended_is_told_as_long_as_it_is_waited_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    is_quiet = lab.bench.is_quiet

    def looked() -> bool:
        told.append(restoring.with_pause("it is whole", lab.bench.state))
        return is_quiet()

    monkeypatch.setattr(lab.bench, "is_quiet", looked)
    lab.leads_from = "placed"
    monkeypatch.setattr(lab.bench, "place", lambda prepare: lab.did.append("placed"))
    lab.bench.busy, lab.bench.lingering = 2, "shop-segment-1-0 has not ended yet: its node a does not report"
    state = lab.run("copied", "replayed", "judged", "settled")
    assert (state["phase"], state["waits"]) == (repair.DONE, None)
    assert told == ["it is whole", *[f"it is whole; {lab.bench.lingering}"] * 2]


@pytest.mark.parametrize("phase", [repair.DONE, repair.FAILED])
def test_what_an_ended_repair_has_left_behind_is_removed(tmp_path: Path, phase: str) -> None:
    """Whoever was killed just then."""
    platform = LocalPlatform(tmp_path / "home")
    platform.declare(cluster(engine="fdw", segments=2))
    bench = platform.bench("shop", GROUP)
    bench.write("wish", repair.new_wish("a", accept=True))
    (bench.folder() / "data").mkdir()
    (bench.data / "row").write_text("precious")
    for now in (
        {"id": "a", "phase": "copying"},
        {"id": "a", "phase": repair.DOUBT},
        {"id": "z", "phase": phase},
    ):
        bench.write("state", now)
        platform.align(cluster(engine="fdw", segments=2), {})
        assert bench.data.exists(), "somebody is at work, or begins there just now"
    bench.write("state", {"id": "a", "phase": phase})
    platform.align(cluster(engine="fdw", segments=2), {})
    assert not bench.data.exists()
    assert restoring.repairs(platform, "shop")[GROUP]["phase"] == phase


@pytest.mark.parametrize(
    ("group", "complete", "tells"), [(0, False, True), (0, True, False), (1, False, False)]
)
def test_a_coordinator_that_lost_the_end_of_its_log_is_told_to_give_values_again(
    group: int, complete: bool, tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SimpleNamespace(endpoint=Endpoint("127.0.0.1", 5433))
    for name in ("start", "controlled", "wait", "stop"):
        setattr(server, name, lambda *of: None)

    class Settling(repair.Repair):
        def _server(self) -> Any:
            return server

        def _settings(self, *of: Any) -> Any:
            return {}

    lab = Lab()
    site = lab.site
    site.group, site.databases = group, SimpleNamespace(database="app", credentials=None)
    site.engine = SimpleNamespace(settle_rebuilt=lambda *of, **how: ["one was undone"])
    site.bench.end_processes = lambda: None
    monkeypatch.setattr("pgherd.backup.settle.disable_subscriptions", lambda databases, group: [])
    it = Settling(site)
    it._state = {"id": "1", "steps": [], "verdict": {"complete": complete}}
    it._settle()
    first, *more = lab.bench.state["done"]
    assert first == "one was undone"
    assert [each.startswith("the coordinator's sequences are where") for each in more] == [True] * tells
