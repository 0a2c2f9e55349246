"""Drills on Kubernetes as far as no Kubernetes is needed: who asks, what is written down, whose the scratch is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import finding, registry
from pgherd.backup import schedule as rules
from pgherd.backup.records import Point
from pgherd.errors import BadInput, Cancelled, NoSuchCluster, PgherdError, Unavailable
from pgherd.model.spec import from_mapping
from pgherd.operator import drills as module
from pgherd.operator import scratch as scratch_module
from pgherd.operator.drills import Drills
from pgherd.operator.scratch import Scratch, shape
from pgherd.platform.kubernetes import drills, names
from pgherd.platform.kubernetes.api import CLUSTER
from pgherd.platform.kubernetes.drills import BEGUN, ENDED, ENDING, Ask, State
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.reconcile.drills import Course, Wish, lean, scratch_name
from tests.support.backups import point
from tests.support.home import wait_for
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_backups import CORE, DECLARED, GROUP, Records
from tests.unit.test_schedules import declared

SHOP, SCRATCH = f"{GROUP}/postgresclusters/shop", f"{GROUP}/postgresclusters/shop-drill"
STATE = f"{CORE}/configmaps/shop.drill"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


# what is written down


def test_a_wish_is_read_as_it_was_written() -> None:
    ask = Ask("a1", keep=True, tables=("account", "s.b"), timeout=60.0, schedule="nightly")
    assert drills.ask_from(json.loads(json.dumps(ask.as_json()))) == ask
    resource = {"metadata": {"annotations": {drills.ASK_ANNOTATION: '{"id": "b2"}'}}}
    assert drills.asked(resource) == Ask("b2")


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "{}", '{"id": 7}', '{"id": "a", "tables": [1]}', "null"]
)
def test_a_wish_that_nobody_understands_is_none(text: str) -> None:
    resource = {"metadata": {"annotations": {drills.ASK_ANNOTATION: text}}}
    assert drills.asked(resource) is None
    assert drills.is_asked(resource)
    assert not drills.is_asked({"metadata": {}})


def test_how_far_a_drill_is_is_read_as_it_was_written() -> None:
    owner = {
        "apiVersion": CLUSTER.api_version,
        "kind": CLUSTER.name,
        "metadata": {"name": "shop", "uid": "u"},
    }
    state = State(Ask("a1", tables=("t",)), BEGUN, "2026-11-20T12:00:00+00:00", point="d", told=("a", "b"))
    made = drills.state_object("shop", state, owner)
    assert made["metadata"]["name"] == names.drill_state("shop")
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert drills.state_from(made) == state
    for broken in (None, {}, {"data": {"state.json": "{"}}, {"data": {"state.json": "{}"}}):
        assert drills.state_from(broken) is None


def test_only_what_a_drill_made_is_a_scratch() -> None:
    owner = {
        "apiVersion": CLUSTER.api_version,
        "kind": CLUSTER.name,
        "metadata": {"name": "shop", "uid": "u"},
    }
    declared = {"apiVersion": CLUSTER.api_version, "kind": CLUSTER.name, "metadata": {"name": "shop-drill"}}
    made = drills.scratch_object(declared, "a1", owner)
    assert drills.is_scratch(made, "shop")
    assert not drills.is_scratch(made, "other")
    assert (drills.is_of(made, "a1"), drills.is_of(made, "b2")) == (True, False)
    copied = {**declared, "metadata": {"name": "shop-drill", "labels": made["metadata"]["labels"]}}
    assert not drills.is_scratch(copied, "shop"), "a label is easily copied"
    leaving = {**made, "metadata": {**made["metadata"], "deletionTimestamp": "2026-11-20T12:00:00Z"}}
    assert not drills.is_of(leaving, "a1")


# the scratch


@pytest.fixture
def kube() -> Iterator[tuple[Kube, KubernetesPlatform]]:
    with kube_api() as (kube, api):
        declared = {
            "apiVersion": CLUSTER.api_version,
            "kind": CLUSTER.name,
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "ours"}},
            "spec": {
                "engine": "fdw",
                "backup": DECLARED,
                "coordinator": {"standbys": 1},
                "segments": {"count": 3, "standbys": 1},
            },
        }
        kube.put(SHOP, declared)
        yield kube, KubernetesPlatform(api, "prod")


class Bench:
    """A scratch's maker."""

    def __init__(self, platform: KubernetesPlatform, drill: str = "a1") -> None:
        self.stop = threading.Event()
        self.notes: list[Course] = []
        self.scratch = Scratch(
            platform,
            "shop",
            drill,
            wait=lambda seconds: self.stop.wait(0.01),
            stopping=self.stop.is_set,
            write=self.notes.append,
        )


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Those of the repository that can be restored."""
    found = [point(1), point(2)]
    monkeypatch.setattr(finding, "restorable", lambda method: found)
    monkeypatch.setattr(registry, "make_method", lambda platform, cluster: None)
    return found


def test_a_scratch_is_a_lean_cluster_that_goes_with_the_one_whose_backups_it_is_made_of(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    api, platform = kube
    scratch = Bench(platform).scratch
    assert scratch.plan(None) == ("p2", points[1].time)
    assert SCRATCH not in api.objects, "nothing is made yet"
    scratch.declare("p1")
    made = api.objects[SCRATCH]
    spec = made["spec"]
    assert spec["bootstrap"]["recovery"]["restorePoint"] == "p1"
    assert spec["bootstrap"]["recovery"]["secretRef"] == "keys"
    assert "backup" not in spec, "it neither archives nor has schedules"
    assert (spec["coordinator"]["standbys"], spec["segments"]["standbys"]) == (0, 0)
    assert spec["segments"]["count"] == max(points[0].groups), "as many as at the point"
    assert spec["deletionPolicy"] == "Delete"
    assert made["metadata"]["labels"] == {drills.OF_LABEL: "shop"}
    assert "note" not in made["metadata"]["annotations"]
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("shop", api.objects[SHOP]["metadata"]["uid"])


def test_where_a_scratch_is_made_its_pages_are_verified_and_the_drill_reads_what_was_found(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    _, platform = kube
    bench = Bench(platform)
    assert bench.scratch.restored() == {}
    bench.scratch.declare("p1")
    assert platform.workshop("shop-drill").is_trial()
    assert not platform.workshop("shop").is_trial()
    found = {"0": {"done": True, "why": "", "blocks": 7, "problems": []}}
    platform.workshop("shop-drill").write_state({"phase": "done", "bases": {"0": ["b1"]}, "pages": found})
    assert bench.scratch.restored()["pages"] == found
    assert not bench.scratch.is_to_stop()
    bench.stop.set()
    assert bench.scratch.is_to_stop()


def test_lines_that_an_older_version_accepted_keep_nobody_from_drilling(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    lines = {
        "hostBasedAuthentication": "hostnossl all all 10.0.0.0/8 scram-sha-256\nhost all all 10.0.0.0/99 md5"
    }
    parameters = {"parameters": {"work_mem": "8MB"}}
    raw = {
        "apiVersion": CLUSTER.api_version,
        "kind": CLUSTER.name,
        "metadata": {"name": "shop"},
        "spec": {"engine": "fdw", "backup": DECLARED, "postgres": {**parameters, **lines}},
    }
    cluster = from_mapping(raw, platform="kubernetes", kept=True)
    scratch = shape(cluster, points[0], "shop-drill")
    assert scratch.spec.postgres.host_based_authentication == "", "nobody but pgherd connects to it"
    assert scratch.spec.postgres.parameters == parameters["parameters"]
    assert from_mapping(lean(cluster, "shop-drill"), platform="local").metadata.name == "shop-drill"


def test_a_scratch_is_declared_once_and_that_of_an_earlier_drill_makes_room(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    api, platform = kube
    Bench(platform).scratch.declare("p1")
    first = api.objects[SCRATCH]["metadata"]["uid"]
    Bench(platform).scratch.declare("p1")
    assert api.objects[SCRATCH]["metadata"]["uid"] == first, "who goes on finds it"
    Bench(platform, "b2").scratch.declare("p2")
    assert api.objects[SCRATCH]["metadata"]["uid"] != first
    assert drills.is_of(api.objects[SCRATCH], "b2")
    assert api.writes("DELETE") == [SCRATCH]


def test_what_has_the_scratchs_name_and_is_none_is_left_alone(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    api, platform = kube
    scratch = Bench(platform).scratch
    claim = f"{CORE}/persistentvolumeclaims/data-shop-drill-segment-1-0"
    api.put(claim, {"kind": "PersistentVolumeClaim", "metadata": {"labels": names.labels("shop-drill", 1)}})
    with pytest.raises(BadInput, match="the volumes of a cluster shop-drill that was deleted are kept"):
        scratch.plan(None)
    api.remove(claim)
    api.put(SCRATCH, {"apiVersion": CLUSTER.api_version, "kind": CLUSTER.name, "spec": {}})
    for act in (lambda: scratch.plan(None), lambda: scratch.declare("p1"), scratch.clear):
        with pytest.raises(
            BadInput, match="shop-drill is a cluster of its own: a drill of shop needs that name"
        ):
            act()
    assert SCRATCH in api.objects
    assert not api.writes("DELETE")


def test_removing_a_scratch_waits_for_its_volumes_and_can_be_left_to_the_next(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    api, platform = kube
    bench = Bench(platform)
    bench.scratch.declare("p1")
    claim = f"{CORE}/persistentvolumeclaims/data-shop-drill-segment-1-0"
    leaving = {"labels": names.labels("shop-drill", 1), "deletionTimestamp": "2026-11-20T12:00:00Z"}
    api.put(claim, {"kind": "PersistentVolumeClaim", "metadata": leaving})
    ended = threading.Event()

    def clear() -> None:
        bench.scratch.clear()
        ended.set()

    threading.Thread(target=clear, daemon=True).start()
    wait_for(lambda: SCRATCH not in api.objects, "the scratch is deleted", 10)
    assert not ended.wait(0.2)
    api.remove(claim)
    assert ended.wait(10)
    bench.stop.set()
    bench.scratch.clear()  # nothing to wait for
    api.put(claim, {"kind": "PersistentVolumeClaim", "metadata": leaving})
    with pytest.raises(Cancelled):
        bench.scratch.clear()
    bench.stop.clear()
    api.put(claim, {"kind": "PersistentVolumeClaim", "metadata": {"labels": names.labels("shop-drill", 1)}})
    with pytest.raises(BadInput, match="are kept"):
        bench.scratch.clear()


def test_a_scratch_that_somebody_deletes_or_that_does_not_come_is_a_finding(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point]
) -> None:
    api, platform = kube
    scratch = Bench(platform).scratch
    scratch.declare("p1")
    with pytest.raises(PgherdError, match="shop-drill: not ready after 0 s"):
        scratch.wait(Wish(timeout=0))
    api.remove(SCRATCH)
    with pytest.raises(PgherdError, match="there is no cluster 'shop-drill'"):
        scratch.wait(Wish())


def test_a_scratch_that_is_there_and_not_seen_yet_is_waited_for(
    kube: tuple[Kube, KubernetesPlatform], points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, platform = kube

    def unseen(name: str) -> int:
        raise NoSuchCluster(f"there is no cluster {name!r}")

    scratch = Bench(platform).scratch
    scratch.declare("p1")
    monkeypatch.setattr(platform, "generation", unseen)
    with pytest.raises(PgherdError, match="shop-drill: not ready after 0 s"):
        scratch.wait(Wish(timeout=0))


def test_a_drill_of_which_nothing_can_be_written_down_is_gone_on_with_later(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.ask()
    with monkeypatch.context() as away:
        away.setattr(yard.kube, "refuse_writes", True)
        yard.drills.look(backups=True)
        wait_for(lambda: yard.told, "it is told", 10)
        yard.drills.join(10)
    assert yard.told[0][0].startswith("its drill pauses: could not")
    assert STATE not in yard.kube.objects
    assert yard.ended().result is not None
    assert len(yard.method.repository.drills()) == 1


def test_a_point_with_other_segments_than_there_are_now_can_be_drilled(
    kube: tuple[Kube, KubernetesPlatform],
) -> None:
    _, platform = kube
    cluster = platform.declaration("shop").cluster
    assert cluster.spec.segments.count == 3
    assert shape(cluster, point(1), "shop-drill").spec.segments.count == max(point(1).groups)


# who asks, and who goes on


class Made:
    """What takes the place of a drill: it says what is to be found, or fails."""

    found: Any = ()
    at: threading.Event | None = None
    courses: list[Course]

    def __init__(self, ground: Scratch, wish: Wish, course: Course) -> None:
        self._ground, self._wish, self._course = ground, wish, course
        type(self).courses.append(course)

    def run(self) -> dict[str, Any]:
        self._wish.told("restoring p1")
        self._ground.note(Course(self._course.id, self._course.started_at, restore_point="p1", time="t"))
        if self.at is not None and not self.at.wait(10):
            raise AssertionError("nobody went on")
        if isinstance(self.found, Exception):
            raise self.found
        return {
            "id": self._course.id,
            "restorePoint": "p1",
            "finishedAt": NOW.isoformat(),
            "seconds": 1.0,
            "passed": not self.found,
            "problems": list(self.found),
        }


class Yard:
    """A cluster's drills, and what they write."""

    def __init__(self, kube: Kube, platform: KubernetesPlatform, method: Records) -> None:
        self.kube, self.platform, self.method = kube, platform, method
        self.method.repository.create("shop")
        self.told: list[tuple[str, bool]] = []
        platform.announce = lambda name, what, *, failed=False: self.told.append((what, failed))  # type: ignore[method-assign]
        self.begin()

    def begin(self) -> None:
        """An operator starts."""
        self.stop = threading.Event()
        self.drills = Drills(self.platform, "shop", self.stop)

    def ask(self, **wish: Any) -> None:
        text = json.dumps({"id": "a1", **wish})
        known = self.kube.objects[SHOP]
        annotations = {**known["metadata"].get("annotations", {}), drills.ASK_ANNOTATION: text}
        self.kube.put(SHOP, {**known, "metadata": {**known["metadata"], "annotations": annotations}})

    def is_asked(self) -> bool:
        return drills.is_asked(self.kube.objects[SHOP])

    def state(self) -> State:
        found = drills.state_from(self.kube.objects[STATE])
        assert found is not None
        return found

    def ended(self) -> State:
        def done() -> bool:
            self.drills.look(backups=True)
            return STATE in self.kube.objects and not self.state().is_open and not self.drills.is_going_on()

        wait_for(done, "the drill has ended", 20)
        return self.state()


@pytest.fixture
def yard(
    kube: tuple[Kube, KubernetesPlatform], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Yard]:
    method = Records(tmp_path / "repository", kube[1])
    monkeypatch.setattr(registry, "make_method", lambda platform, cluster: method)
    monkeypatch.setattr(finding, "restorable", lambda method: [point(1)])
    monkeypatch.setattr(module, "Drill", Made)
    monkeypatch.setattr(module, "TRY_SECONDS", 0.01)
    monkeypatch.setattr(scratch_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Made, "courses", [], raising=False)
    made = Yard(*kube, method)
    yield made
    made.stop.set()
    made.drills.join(10)


def test_a_drill_that_is_asked_for_is_made_once_remembered_and_told(yard: Yard) -> None:
    yard.ask(tables=["account"])
    state = yard.ended()
    assert state.result is not None
    assert (state.result["passed"], state.ask.tables) == (True, ("account",))
    assert state.told == ("restoring p1", "removing it")
    yard.drills.look(backups=True)
    assert not yard.is_asked(), "the wish is withdrawn"
    yard.drills.look(backups=True)
    assert [each["id"] for each in yard.method.repository.drills()] == ["a1"]
    assert yard.told == [("drilled the backups: p1 was restored and is sound", False)]
    assert len(Made.courses) == 1


def test_a_failed_drill_is_told_as_such(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Made, "found", ("segment-1: damaged",))
    yard.ask()
    assert yard.ended().result is not None
    assert yard.told == [("a drill of p1 failed: segment-1: damaged", True)]
    assert not yard.method.repository.drills()[0]["passed"]


@pytest.mark.parametrize(
    ("error", "refused", "tries"),
    [
        (BadInput("table x: there is none of this name"), True, 1),
        (PgherdError("no room"), False, 1),
        (KeyError("unexpected"), False, 1),
        (Unavailable("nobody answers"), False, module.TRIES),
    ],
)
def test_a_drill_that_can_not_be_made_says_why_and_leaves_nothing(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, error: Exception, refused: bool, tries: int
) -> None:
    monkeypatch.setattr(Made, "found", error)
    yard.ask()
    state = yard.ended()
    assert (state.refused, state.result, len(Made.courses)) == (refused, None, tries)
    assert state.error == str(error)
    assert yard.method.repository.drills() == []
    assert bool(yard.told) is not refused, "who asked for what can't be is told alone"


def test_an_operator_that_ends_is_followed_by_one_that_goes_on_where_the_drill_was(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Made, "at", threading.Event())
    monkeypatch.setattr(Made, "found", Cancelled("the drill of shop pauses"))
    yard.ask()
    yard.drills.look(backups=True)
    wait_for(lambda: STATE in yard.kube.objects and yard.state().restore_point, "it has begun", 10)
    yard.stop.set()
    assert Made.at is not None
    Made.at.set()
    yard.drills.join(10)
    assert yard.state().phase == BEGUN
    assert yard.is_asked(), "the wish stays until it is fulfilled"
    monkeypatch.setattr(Made, "found", ())
    yard.begin()
    state = yard.ended()
    assert state.result is not None
    assert [each.restore_point for each in Made.courses] == [None, "p1"]
    assert {each.id for each in Made.courses} == {"a1"}


def test_a_drill_whose_result_is_remembered_is_not_examined_again(yard: Yard) -> None:
    yard.method.repository.remember_drill({"id": "a1", "restorePoint": "p1", "passed": True, "problems": []})
    yard.platform.write_drill("shop", State(Ask("a1"), BEGUN, NOW.isoformat(), restore_point="p1"))
    assert yard.ended().result is not None
    assert Made.courses == []
    assert len(yard.method.repository.drills()) == 1


def test_a_drill_that_was_killed_while_its_scratch_went_removes_the_rest(yard: Yard) -> None:
    scratch = drills.scratch_object(
        {
            "apiVersion": CLUSTER.api_version,
            "kind": CLUSTER.name,
            "metadata": {"name": "shop-drill"},
            "spec": {},
        },
        "a1",
        {**yard.kube.objects[SHOP], "apiVersion": CLUSTER.api_version, "kind": CLUSTER.name},
    )
    yard.kube.put(SCRATCH, scratch)
    result = {"id": "a1", "restorePoint": "p1", "passed": True, "problems": []}
    yard.platform.write_drill("shop", State(Ask("a1"), ENDING, NOW.isoformat(), result=result))
    assert yard.ended().phase == ENDED
    assert SCRATCH not in yard.kube.objects


@pytest.mark.parametrize("keep", [True, False])
def test_a_scratch_stays_if_it_is_to_be_kept(yard: Yard, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    cleared = []
    monkeypatch.setattr(Scratch, "clear", lambda self: cleared.append(self.scratch))
    yard.ask(keep=keep)
    yard.ended()
    assert cleared == ([] if keep else ["shop-drill"])


def test_without_backups_a_drill_only_comes_to_its_end(yard: Yard) -> None:
    yard.platform.write_drill("shop", State(Ask("a1"), BEGUN, NOW.isoformat()))
    yard.drills.look(backups=False)
    wait_for(lambda: not yard.drills.is_going_on(), "it has ended", 10)
    assert "has no backups any more" in yard.state().error
    yard.ask(id="b2")
    yard.drills.look(backups=False)
    assert not yard.is_asked()
    assert Made.courses == []


def test_a_cluster_whose_name_is_too_long_has_no_drills() -> None:
    assert scratch_name("s" * 34) == "s" * 34 + "-drill"
    with pytest.raises(BadInput, match="its name is too long for a drill"):
        scratch_name("s" * 35)


# schedules


def seen_to(yard: Yard, at: datetime, **drill: Any) -> str | None:
    schedule = declared("nightly", "0 2 * * *", drill={"every": "7d", **drill})
    standing = rules.Standing("0 2 * * *", NOW.isoformat(), NOW.isoformat())
    method: Any = yard.method
    return yard.drills.see_to(method, schedule, standing, at)


def test_a_schedules_drill_is_made_when_it_is_due(yard: Yard) -> None:
    assert seen_to(yard, NOW, keep=True, tables=["account"]) is None
    state = yard.ended()
    assert (state.ask.schedule, state.ask.keep, state.ask.tables) == ("nightly", True, ("account",))
    assert state.ask.timeout == 86400.0, "a day, unless something else is declared"
    assert seen_to(yard, NOW.replace(day=26)) == ""
    assert len(Made.courses) == 1
    assert seen_to(yard, NOW.replace(day=27)) is None
    yard.ended()
    assert len(Made.courses) == 2


def test_a_schedules_drill_that_can_not_be_made_is_said_and_tried_again_after_a_rest(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Made, "found", BadInput("table x: there is none of this name"))
    seen_to(yard, NOW)
    yard.ended()
    assert yard.told == [("a drill could not be made: table x: there is none of this name", True)]
    said = "a drill could not be made: table x: there is none of this name"
    assert seen_to(yard, NOW.replace(second=10)) == said
    assert seen_to(yard, NOW.replace(second=30)) == said
    assert len(Made.courses) == 1
    monkeypatch.setattr(Made, "found", ())
    assert seen_to(yard, NOW.replace(minute=2)) is None
    yard.ended()
    assert seen_to(yard, NOW.replace(minute=3)) == ""


def test_a_drill_that_does_not_end_in_time_loses_its_scratch(
    yard: Yard, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(Made, "at", let_go)
    monkeypatch.setattr(registry, "make_method", lambda platform, cluster: yard.method)
    Bench(yard.platform).scratch.declare("p1")
    seen_to(yard, NOW, timeout="1m")
    wait_for(lambda: STATE in yard.kube.objects and yard.state().restore_point, "it is at work", 10)
    yard.drills.look(backups=True)
    assert SCRATCH in yard.kube.objects
    monkeypatch.setattr(module, "LATE_SECONDS", -60.1)
    yard.drills.look(backups=True)
    assert SCRATCH not in yard.kube.objects
    let_go.set()
    yard.ended()


def test_a_drill_that_is_overdue_is_told_once(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "restorable", lambda method: [])
    assert seen_to(yard, NOW) == ""
    late = NOW.replace(day=22)
    assert seen_to(yard, late) == "a drill is overdue: there is no restore point to restore"
    seen_to(yard, late.replace(minute=5))
    assert yard.told == [("a drill was due at 2026-11-20 12:00 UTC", True)]


def test_no_drill_begins_because_the_repository_does_not_answer(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> Any:
        raise Unavailable("s3://safe/shop does not answer")

    monkeypatch.setattr(yard.method.repository, "known_drills", silent)
    with pytest.raises(Unavailable):
        seen_to(yard, NOW)
    assert Made.courses == []
