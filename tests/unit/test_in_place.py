"""Before a restore in place begins somebody looks whether its point is there; members run until it is found."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import finding, looking, registry, restoring
from pgherd.backup.looking import Unseen
from pgherd.backup.records import Point
from pgherd.errors import PgherdError, Refused, Unavailable, Withheld
from pgherd.model.spec_backup import BackupSpec
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.api import CONFIG_MAP
from pgherd.platform.kubernetes.epochs import Wish
from pgherd.platform.kubernetes.notes import Notes
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.workshop import PodWorkshop
from pgherd.reconcile import in_place, observe, plan, status
from pgherd.reconcile.in_place import InPlace
from pgherd.reconcile.loop import ClusterLoop
from pgherd.reconcile.state import Observed
from pgherd.reconcile.steps import Recover, RequestOperation, StartMember, Step, StopMember
from tests.support.backups import point
from tests.support.kube_api import kube_api
from tests.unit.test_kubernetes_epochs import CORE, RECOVERY, SHOP, STATE, UID, Lab

RUNNING = f"{CORE}/pods/shop-coordinator-0"


class Repository:
    """What the repository answers: its points, or why it does not."""

    def __init__(self) -> None:
        self.points: list[Point] = [point(1), point(2)]
        self.trouble: Exception | None = None
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self.expiring: bytes | None = None
        self.location, self.store = "/backups/shop", self
        self.repository = self

    def read(self, name: str) -> bytes | None:
        return self.expiring

    def restorable(self, method: object) -> list[Point]:
        self.asked += 1
        assert self.answers.wait(20)
        if self.trouble is not None:
            raise self.trouble
        return self.points


class Desk:
    """A cluster of which members run, and its operator."""

    def __init__(self, lab: Lab, repository: Repository) -> None:
        self.lab, self.repository = lab, repository
        self.stop = threading.Event()
        self.in_place = InPlace(lab.platform, "shop", self.stop)
        self.pods = {RUNNING: lab.kube.objects[RUNNING]}

    @property
    def platform(self) -> KubernetesPlatform:
        return self.lab.platform

    @property
    def workshop(self) -> PodWorkshop:
        return self.lab.workshop

    def wish(self, identity: str = "a", segments: Any = None, **recovery: Any) -> None:
        wanted = {**RECOVERY, "restorePoint": "p1", **recovery}
        wanted = {key: value for key, value in wanted.items() if value is not None}
        self.lab.annotate(Wish(identity, wanted, segments=segments).as_text(UID))

    def restart(self) -> None:
        """The operator dies, and another one takes over."""
        self.stop.set()
        self.stop = threading.Event()
        self.lab.platform = KubernetesPlatform(self.lab.api, "prod", defaults=Defaults())
        self.in_place = InPlace(self.lab.platform, "shop", self.stop)

    def look(self) -> Observed:
        """One look of the loop."""
        world: Any = SimpleNamespace(
            name="shop",
            platform=self.platform,
            databases=None,
            patroni=SimpleNamespace(member_status=lambda rest: None),
            engine=SimpleNamespace(
                parameters=lambda group, shards: {},
                preload_libraries=list,
                is_initialised=lambda group: None,
                restart_seconds=0,
            ),
        )
        self.in_place.see_to()
        return self.in_place.told(observe.observe(world))

    def steps(self) -> list[Step]:
        return plan.plan(self.look())

    def until(self, holds: Callable[[Observed], object]) -> Observed:
        deadline = time.monotonic() + 20
        while not holds(seen := self.look()):
            assert time.monotonic() < deadline, seen.restore
            time.sleep(0.02)
        return seen

    def condition(self, seen: Observed) -> tuple[str, str]:
        [(_, holds, reason, text)] = status._restore_condition(seen)
        assert not holds
        return reason, text

    def is_untouched(self) -> bool:
        now = {path: obj for path, obj in self.lab.kube.objects.items() if "/pods/" in path}
        steps = self.steps()
        return now == self.pods and not any(isinstance(step, StopMember | Recover) for step in steps)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    repository = Repository()
    monkeypatch.setattr(finding, "restorable", repository.restorable)
    monkeypatch.setattr(finding, "bases", lambda method, point: {0: ["f0"], 1: ["f0"]})
    monkeypatch.setattr(registry, "open_method", lambda *what, **how: repository)
    monkeypatch.setattr(in_place, "AGAIN_SECONDS", 0.0)
    with kube_api() as (kube, api):
        made = Desk(Lab(kube, api), repository)
        yield made
        made.stop.set()
        repository.answers.set()


@pytest.mark.parametrize(
    ("recovery", "why"),
    [
        ({"restorePoint": "p9"}, "no restore point 'p9' can be restored: there are 2, from p1"),
        ({"restorePoint": None, "time": "2099-01-01T00:00:00Z"}, "is in the future: there are 2, from p1"),
        ({"restorePoint": None, "time": "2026-01-01T00:00:00Z"}, "is before the first restore point"),
    ],
)
def test_a_wish_whose_point_is_not_there_is_refused_and_no_member_ends(
    desk: Desk, recovery: dict[str, Any], why: str
) -> None:
    desk.wish(**recovery)
    seen = desk.until(lambda seen: (seen.restore or {}).get("refused"))
    reason, text = desk.condition(seen)
    assert reason == "Refused"
    assert why in text
    assert (seen.restore or {})["phase"] is None, "nothing is under way"
    assert seen.operation_status is None
    assert desk.is_untouched()
    assert desk.workshop.read_state() is None
    [(event, failed)] = status._not_begun(seen, {"restore": {"asked": "a", "refused": ""}})
    assert failed
    assert why in event
    assert status._not_begun(seen, {"restore": seen.restore}) == [], "once"


@pytest.mark.parametrize("own", [True, False])
def test_programs_are_run_by_members_who_have_keys_of_their_own_repository_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    asked: list[tuple[str, Any]] = []

    def ask(which: str, machines: Any) -> Any:
        asked.append((which, machines))
        return desk.repository

    monkeypatch.setattr(registry, "make_method", lambda *what: ask("own", None))
    monkeypatch.setattr(registry, "open_method", lambda *what: ask("other", what[-1]))
    cluster = desk.platform.declaration("shop").cluster
    backup = BackupSpec.model_validate(
        {key: RECOVERY[key] for key in ("method", "repository", "secretRef")} | {"encrypt": not own}
    )
    spec = cluster.spec.model_copy(update={"backup": backup})
    looking.look(desk.platform, cluster.model_copy(update={"spec": spec}), RECOVERY)
    [(which, machines)] = asked
    assert which == ("own" if own else "other")
    if not own:
        for way in (partial(machines.of, 1), partial(machines.equip, {}), partial(machines.at, "a")):
            with pytest.raises(Unseen):
                way()


def test_what_nobody_can_see_before_begins_and_is_looked_for_then(desk: Desk) -> None:
    desk.repository.trouble = Unseen("no member has the keys of this repository")
    desk.wish()
    seen = desk.until(lambda seen: seen.recovery)
    assert (seen.recovery or {})["phase"] == restoring.PENDING


def test_what_retention_is_about_to_remove_is_waited_for_while_members_run(desk: Desk) -> None:
    desk.repository.expiring = b'{"backups": ["f0"]}'
    desk.wish()
    seen = desk.until(lambda seen: "retention" in ((seen.restore or {}).get("waits") or ""))
    assert "retention is about to remove f0" in (seen.restore or {})["waits"]
    assert desk.is_untouched()
    desk.repository.expiring = b'{"backups": ["f100"]}'
    seen = desk.until(lambda seen: seen.recovery)
    assert (seen.recovery or {})["phase"] == restoring.PENDING


def test_another_clusters_repository_is_refused_and_no_member_ends(desk: Desk) -> None:
    desk.repository.points = [point(1, groups=5)]
    desk.wish()
    seen = desk.until(lambda seen: (seen.restore or {}).get("refused"))
    assert "spec.segments.count: must be 4 as in the backup, got 2" in desk.condition(seen)[1]
    assert desk.is_untouched()


@pytest.mark.parametrize(
    "trouble",
    [
        Withheld("safe at s3.example.com does not answer"),
        Refused("s3.example.com refuses these keys"),
        PgherdError("there is no repository at s3.example.com"),
        KeyError("nobody expected it"),
    ],
)
def test_a_repository_that_is_away_is_waited_for_and_members_run(desk: Desk, trouble: Exception) -> None:
    desk.repository.trouble = trouble
    desk.wish()
    seen = desk.until(lambda seen: in_place.LOOKING not in desk.condition(seen)[1])
    reason, text = desk.condition(seen)
    assert reason == "Waiting"
    assert str(trouble) in text
    assert desk.is_untouched()
    assert (seen.restore or {})["phase"] == "requested", "whoever asked waits"
    assert seen.operation_status is not None
    assert str(trouble) in seen.operation_status["message"]
    assert str(trouble) in desk.in_place.complaints()[0]
    desk.repository.trouble = None
    desk.until(lambda seen: seen.recovery)
    assert desk.in_place.complaints() == []


def test_a_repository_that_is_silent_keeps_nobody_from_looking(desk: Desk) -> None:
    desk.repository.answers.clear()
    desk.wish()
    for _ in range(3):
        assert desk.condition(desk.look()) == ("Waiting", f"it is not begun yet: {in_place.LOOKING}")
    assert desk.is_untouched()
    assert desk.repository.asked <= 1, "one look at a time"
    [thread] = desk.in_place.threads()
    desk.repository.answers.set()
    desk.until(lambda seen: seen.recovery)
    thread.join(20)


def test_a_good_wish_begins(desk: Desk) -> None:
    desk.wish()
    assert desk.workshop.read_state() is None, "not by itself"
    seen = desk.until(lambda seen: seen.recovery)
    assert plan.plan(seen) == [StopMember(Member("shop", 0, 0))]
    assert (seen.recovery or {})["id"] == "a"
    assert desk.lab.state()["phase"] == "requested", "it is written down before anybody ends"
    assert desk.workshop.pending is None


def test_a_restart_before_the_point_is_found_looks_again(desk: Desk) -> None:
    desk.repository.answers.clear()
    desk.wish()
    desk.look()
    lingering = desk.in_place.threads()
    desk.restart()
    assert desk.is_untouched()
    desk.repository.answers.set()
    for thread in lingering:
        thread.join(20)
    desk.until(lambda seen: seen.recovery)


def test_what_was_found_is_known_after_a_restart(desk: Desk) -> None:
    desk.wish()
    desk.until(lambda seen: seen.recovery)
    asked = desk.repository.asked
    desk.repository.trouble = Withheld("it is away by now")
    desk.restart()
    assert desk.look().recovery, "what was begun goes on"
    desk.wish("b", restorePoint="p9")
    assert (desk.look().recovery or {})["failure"], "and is called off as ever"
    assert desk.repository.asked == asked


def test_a_refusal_lasts_over_a_restart_and_until_something_else_is_asked_for(desk: Desk) -> None:
    desk.wish(restorePoint="p3")
    desk.until(lambda seen: (seen.restore or {}).get("refused"))
    asked = desk.repository.asked
    desk.repository.points.append(point(3))
    desk.restart()
    assert (desk.look().restore or {})["refused"], "nobody expects it to begin much later"
    assert desk.repository.asked == asked
    desk.wish("b", restorePoint="p3")
    desk.until(lambda seen: seen.recovery)


def test_a_changed_wish_is_looked_for_anew_also_while_the_store_of_the_first_is_silent(desk: Desk) -> None:
    desk.repository.answers.clear()
    desk.wish(restorePoint="p9")
    desk.look()
    [first] = desk.in_place.threads()
    desk.wish(restorePoint="p2")
    desk.look()
    [second] = desk.in_place.threads()
    assert second is not first
    desk.repository.answers.set()
    first.join(20)
    seen = desk.until(lambda seen: seen.recovery)
    assert (seen.recovery or {})["recovery"]["restorePoint"] == "p2"
    assert not (seen.restore or {})["refused"], "what was found of the first one is not counted"


def test_a_wish_that_was_taken_back_meanwhile_begins_nothing(desk: Desk) -> None:
    desk.wish()
    pending = desk.workshop.pending
    assert pending is not None
    desk.lab.annotate("")
    assert not desk.workshop.decide(pending)
    desk.wish("b")
    assert not desk.workshop.decide(pending, "it makes no sense")
    assert STATE not in desk.lab.kube.objects


def test_nothing_begins_over_what_somebody_else_wrote_down_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.wish()
    pending = desk.workshop.pending
    assert pending is not None
    busy = PodWorkshop._busy

    def write(workshop: PodWorkshop) -> str:
        state = {"phase": "done", "inPlace": True, "id": "z", "epoch": 4, "kept": 0}
        labels = {"labels": names.labels("shop")}
        desk.lab.kube.put(
            STATE, {"kind": CONFIG_MAP.name, "metadata": labels, "data": {"state.json": json.dumps(state)}}
        )
        return busy(workshop)

    monkeypatch.setattr(PodWorkshop, "_busy", write)
    with pytest.raises(Unavailable, match="was changed by somebody else meanwhile"):
        desk.workshop.decide(pending)
    assert desk.lab.state()["id"] == "z"


def test_a_cluster_of_which_nothing_runs_is_restored_without_a_look(desk: Desk) -> None:
    desk.repository.trouble = Withheld("it is away")
    desk.lab.stop()
    desk.wish()
    assert desk.steps() == [Recover(None)]
    assert desk.repository.asked == 0


def test_a_cluster_that_is_stopped_begins_nothing_before_its_start(desk: Desk) -> None:
    desk.wish()
    found = desk.lab.kube.objects[SHOP]
    annotations = {**found["metadata"]["annotations"], names.STOPPED_ANNOTATION: "true"}
    desk.lab.kube.put(SHOP, {**found, "metadata": {**found["metadata"], "annotations": annotations}})
    seen = desk.look()
    assert desk.condition(seen) == ("Waiting", "it is not begun yet: shop is stopped")
    assert (desk.repository.asked, desk.workshop.read_state()) == (0, None)


def declare(desk: Desk, count: int) -> None:
    found = desk.lab.kube.objects[SHOP]
    spec = {**found["spec"], "segments": {**found["spec"]["segments"], "count": count}}
    metadata = {**found["metadata"], "generation": found["metadata"].get("generation", 1) + 1}
    desk.lab.kube.put(SHOP, {**found, "spec": spec, "metadata": metadata})


def test_segments_that_are_declared_with_a_wish_are_neither_made_nor_removed_before_it_begins(
    desk: Desk,
) -> None:
    desk.repository.answers.clear()
    desk.repository.points = [point(1, groups=5)]
    desk.wish(segments={"before": 2, "at": 4})
    declare(desk, 4)
    seen = desk.look()
    assert seen.declaration.cluster.spec.segments.count == 2
    assert not any(
        isinstance(step, RequestOperation) or (isinstance(step, StartMember) and step.member.group > 2)
        for step in plan.plan(seen)
    )
    desk.repository.answers.set()
    seen = desk.until(lambda seen: seen.recovery)
    assert seen.declaration.cluster.spec.segments.count == 4


def test_a_refused_wish_leaves_as_many_segments_declared_as_before(desk: Desk) -> None:
    desk.repository.answers.clear()
    desk.wish(segments={"before": 2, "at": 4}, restorePoint="p9")
    declare(desk, 4)
    desk.look()
    desk.repository.answers.set()
    desk.until(lambda seen: (seen.restore or {}).get("refused"))
    assert desk.lab.kube.objects[SHOP]["spec"]["segments"]["count"] == 2


def test_a_refusal_that_is_cut_short_is_made_by_the_next_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.wish(segments={"before": 2, "at": 4}, restorePoint="p9")
    declare(desk, 4)
    pending = desk.workshop.pending
    assert pending is not None

    def die(notes: Notes, refusal: object) -> None:
        raise Unavailable("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Notes, "write_refusal", die)
        with pytest.raises(Unavailable, match="killed"):
            desk.workshop.decide(pending, "there is no such point")
    desk.restart()
    seen = desk.until(lambda seen: (seen.restore or {}).get("refused"))
    assert seen.declaration.cluster.spec.segments.count == 2
    assert desk.workshop.read_state() is None


def test_a_wish_that_is_refused_in_the_middle_of_a_look_moves_no_data(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.repository.answers.clear()
    desk.wish(segments={"before": 2, "at": 4}, restorePoint="p9")
    declare(desk, 4)
    pending = desk.workshop.pending
    assert pending is not None
    desk.look()
    declaration = desk.platform.declaration

    def late(name: str) -> Any:
        found = declaration(name)
        monkeypatch.setattr(desk.platform, "declaration", declaration)
        desk.workshop.decide(pending, "there is no such point")
        return found

    desk.in_place.see_to = lambda: monkeypatch.setattr(desk.platform, "declaration", late)  # type: ignore[method-assign]
    seen = desk.look()
    assert (seen.restore or {})["refused"] == "there is no such point"
    assert seen.declaration.cluster.spec.segments.count == 2


def test_what_became_of_an_earlier_restore_is_not_told_twice(desk: Desk) -> None:
    before = {
        "phase": "reverted",
        "inPlace": True,
        "id": "z",
        "epoch": 1,
        "kept": 0,
        "error": "it is damaged",
    }
    desk.workshop.write_state(before)
    desk.wish(restorePoint="p9")
    first = desk.look()
    last = desk.until(lambda seen: (seen.restore or {}).get("refused"))
    for seen in (first, last):
        assert status._taken_back(seen, {"restore": {"id": "z", "error": "it is damaged"}}) == []


def test_a_restore_that_waits_is_no_operation_any_more_once_it_is_refused() -> None:
    waiting = restoring.operation_status({"message": "its point is looked for"})
    silent: Any = SimpleNamespace(catalogue=None, recovery=None, operation_status=None)
    assert status._operations(silent, {"operation": waiting})["operation"] is None
    moving = {"kind": "expand", "phase": "moving"}
    assert status._operations(silent, {"operation": moving})["operation"] == moving


def test_the_loop_looks_before_it_plans(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = ClusterLoop(desk.platform, "shop", threading.Event())
    order: list[str] = []
    monkeypatch.setattr(loop._in_place, "see_to", lambda: order.append("point"))

    def end(world: object, *, sizes: bool) -> Observed:
        order.append("world")
        raise Unavailable("that will do")

    monkeypatch.setattr(observe, "connect", lambda platform, name, make_engine: None)
    monkeypatch.setattr(observe, "observe", end)
    with pytest.raises(Unavailable):
        loop.round()
    assert order == ["point", "world"]
