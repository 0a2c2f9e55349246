"""Who looks after a cluster: one loop at a time, a deletion is over when it is over, and nothing piles up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import kopf
import pytest

from pgherd.errors import BadInput, NoSuchCluster, PgherdError, Unavailable
from pgherd.model.topology import Credentials
from pgherd.operator import keeper as module
from pgherd.operator.backups import Desk
from pgherd.operator.keeper import Keeper
from pgherd.operator.main import Operator, register
from pgherd.platform.kubernetes import cache, names
from pgherd.platform.kubernetes.api import CONFIG_MAP, Kind, Object
from pgherd.platform.kubernetes.cache import WATCHED, Direct, Watched
from pgherd.platform.kubernetes.ensure import Applier
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.reconcile.loop import ClusterLoop
from tests.support.home import wait_for
from tests.support.kube_api import Kube, kube_api

PATH = "/apis/pgherd.io/v1alpha1/namespaces/prod/postgresclusters/shop"
RESOURCE = {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster", "spec": {"segments": {"count": 1}}}


@pytest.fixture
def place() -> Iterator[tuple[Kube, KubernetesPlatform]]:
    with kube_api() as (kube, api):
        yield kube, KubernetesPlatform(api, "prod")


class Loop(threading.Thread):
    """Ends when it is told to go on."""

    def __init__(self, platform: Any, name: str, stop: threading.Event, *, forgets: bool = False) -> None:
        super().__init__(daemon=True)
        self.stop_asked = stop
        self.forgets, self.has_forgotten = forgets, False
        self.beside: Any = str
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self) -> None:
        self.go_on.wait(30)
        self.has_forgotten = self.forgets

    def is_at_rest(self) -> bool:
        return not self.is_alive()

    def join_operation(self, timeout: float) -> None:
        """Nothing runs beside it."""


class Idle(threading.Thread):
    """A desk at which nothing is done, until it is told to leave."""

    def __init__(self, platform: Any, name: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stop_asked = stop

    def run(self) -> None:
        self.stop_asked.wait(60)

    def trouble(self) -> str:
        return ""

    def is_at_rest(self) -> bool:
        return not self.is_alive()


# the end


@pytest.mark.parametrize(("forgets", "is_there"), [(False, True), (True, True), (False, False)])
def test_a_deletion_is_over_when_all_is_forgotten_or_nothing_is_there_and_not_when_a_loop_just_ends(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch, forgets: bool, is_there: bool
) -> None:
    kube, platform = place
    if is_there:
        kube.put(PATH, {**RESOURCE, "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    monkeypatch.setattr(module, "ClusterLoop", lambda *given: Loop(*given, forgets=forgets))
    assert Keeper(platform, "shop").wind_down(5.0) == (forgets or not is_there)


def test_a_deletion_is_not_over_while_nobody_knows_whether_the_cluster_is_there(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise Unavailable("the API server does not answer")

    monkeypatch.setattr(module, "ClusterLoop", Loop)
    monkeypatch.setattr(place[1].api, "get", away)
    assert not Keeper(place[1], "shop").wind_down(5.0)


def test_a_loop_that_brought_its_cluster_to_the_end_says_so(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, platform = place
    kube.put(PATH, {**RESOURCE, "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "uid": "one"}})
    loop = ClusterLoop(platform, "shop", threading.Event())
    loop.run()
    assert loop.has_forgotten
    # One that just does not see it has brought nothing to its end.
    kube.remove(PATH)
    blind = ClusterLoop(platform, "shop", threading.Event())
    blind.run()
    assert not blind.has_forgotten


@pytest.mark.parametrize("is_damaged", [False, True])
def test_neither_a_damaged_authority_nor_a_namespace_that_goes_too_keeps_a_cluster_from_going(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    kube, platform = place

    def create(namespace: str, obj: Any) -> Any:
        raise PgherdError(f"could not create it: namespace {namespace} is being terminated")

    kube.put(PATH, {**RESOURCE, "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "uid": "one"}})
    if is_damaged:
        authority = {"apiVersion": "v1", "kind": "Secret", "metadata": {"labels": names.labels("shop")}}
        kube.put("/api/v1/namespaces/prod/secrets/shop-ca", {**authority, "data": {"ca.crt": "AAAA"}})
    else:
        monkeypatch.setattr(platform.api, "create", create)
    assert Keeper(platform, "shop").wind_down(10.0)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    "damaged",
    [{"state.json": "{"}, {"state.json": '{"epoch": "x"}'}, {"repairs.json": "{"}, {"repairs.json": "[1]"}],
)
def test_notes_that_nobody_can_read_keep_no_cluster_from_going(
    place: tuple[Kube, KubernetesPlatform], damaged: dict[str, str], kept: bool
) -> None:
    """To delete the cluster is the way out that they are told with."""
    kube, platform = place
    core, member = "/api/v1/namespaces/prod", "shop-segment-1-0"
    notes = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": names.labels("shop")}}
    kube.put(f"{core}/configmaps/shop.recovery", {**notes, "data": damaged})
    spec = {**RESOURCE["spec"], "deletionPolicy": "Retain" if kept else "Delete"}  # type: ignore[dict-item]
    kube.put(PATH, {**RESOURCE, "spec": spec})
    with pytest.raises(PgherdError, match=r"ConfigMap shop\.recovery is damaged.* or delete the cluster"):
        platform.members("shop")
    kube.put(PATH, {**kube.objects[PATH], "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    labels = {"labels": names.labels("shop", 1)}
    running = {"containerStatuses": [{"name": "postgres", "state": {"running": {}}}]}
    kube.put(f"{core}/pods/{member}", {"metadata": labels, "spec": {}, "status": running})
    kube.put(f"{core}/persistentvolumeclaims/data1-{member}", {"metadata": labels})
    assert Keeper(platform, "shop").wind_down(10.0)
    assert f"{core}/pods/{member}" not in kube.objects
    assert (f"{core}/persistentvolumeclaims/data1-{member}" in kube.objects) == kept
    assert (f"{core}/configmaps/shop.recovery" in kube.objects) == kept


def test_an_authority_that_can_not_be_had_is_told_of_a_cluster_that_is_to_run(
    place: tuple[Kube, KubernetesPlatform],
) -> None:
    kube, platform = place
    kube.put(PATH, {**RESOURCE, "metadata": {"uid": "one"}})
    kube.put(
        "/api/v1/namespaces/prod/secrets/shop-ca",
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"labels": names.labels("shop")}, "data": {}},
    )
    with pytest.raises(PgherdError, match=r"Secret shop-ca is damaged .*: restore it from a copy"):
        platform.connection_options("shop")


def test_a_stop_that_waits_for_a_member_goes_on_looking(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, platform = place
    monkeypatch.setattr(platform, "credentials", lambda name: Credentials("a", "b", "c", "d"))
    kube.put(PATH, {**RESOURCE, "metadata": {"annotations": {names.STOPPED_ANNOTATION: "true"}}})
    labels = {"labels": names.labels("shop", 1)}
    running = {"containerStatuses": [{"name": "postgres", "state": {"running": {}}}]}
    core, member = "/api/v1/namespaces/prod", "shop-segment-1-0"
    kube.put(f"{core}/pods/{member}", {"metadata": labels, "spec": {}, "status": running})
    going = {**labels, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    kube.put(f"{core}/persistentvolumeclaims/data-{member}", {"metadata": going})
    loop = ClusterLoop(platform, "shop", threading.Event())
    loop.round()
    assert not loop._rests
    assert f"{core}/pods/{member}" in kube.objects
    assert kube.objects[PATH]["status"]["phase"] == "Updating"
    kube.remove(f"{core}/persistentvolumeclaims/data-{member}")
    loop.round()
    assert f"{core}/pods/{member}" not in kube.objects
    loop.round()
    assert loop._rests


class Lagging(Direct):
    """Has not heard yet that anything is to be deleted."""

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        found = super().get(kind, namespace, name)
        if found is not None and self.lags:
            found["metadata"].pop("deletionTimestamp", None)
        return found

    lags = True


def test_a_stopped_cluster_goes_only_once_it_is_seen_that_it_is_to_go() -> None:
    with kube_api() as (kube, api):
        reader = Lagging(api)
        keeper = Keeper(KubernetesPlatform(api, "prod", reader), "shop")
        going = {
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {names.STOPPED_ANNOTATION: "true"},
        }
        kube.put(PATH, {**RESOURCE, "metadata": going})
        assert not keeper.wind_down(20.0)
        reader.lags = False
        assert keeper.wind_down(20.0)


# one at a time


def test_no_loop_begins_beside_one_that_is_still_in_the_middle_of_a_step(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Loop] = []

    def make(*given: Any) -> Loop:
        made.append(Loop(*given, forgets=True))
        made[-1].go_on.clear()
        return made[-1]

    monkeypatch.setattr(module, "ClusterLoop", make)
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    place[0].put(PATH, RESOURCE)
    keeper = Keeper(place[1], "shop")
    assert not keeper.wind_down(0.05)
    assert not keeper.wind_down(0.05)
    assert len(made) == 1
    waits = iter([False, True])
    keeper.keep(lambda seconds: next(waits))
    assert len(made) == 1
    made[0].go_on.set()
    made[0].join(5)
    assert not keeper.wind_down(0.05)
    assert len(made) == 2
    made[1].go_on.set()


def test_who_is_beside_the_loop_counts_for_whether_anybody_is_at_work(
    place: tuple[Kube, KubernetesPlatform],
) -> None:
    keeper = Keeper(place[1], "shop")
    assert keeper.is_at_rest()
    resting = threading.Event()
    keeper._desk = cast("Any", SimpleNamespace(is_at_rest=resting.is_set))
    assert not keeper.is_at_rest(), "the lease stays its own"
    resting.set()
    assert keeper.is_at_rest()


# what must not end it


def test_a_loop_outlives_whatever_it_runs_into_while_it_refuses_what_was_declared(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, platform = place
    kube.put(PATH, RESOURCE)
    stop, seen = threading.Event(), list[int]()

    def refused(name: str) -> Any:
        seen.append(1)
        if len(seen) > 1:
            stop.set()
        raise BadInput("spec.segments.count: must be >= 1, got 0")

    def broken(name: str) -> Any:
        raise KeyError("status")

    monkeypatch.setattr("pgherd.reconcile.loop.CALM_SECONDS", 0.01)
    monkeypatch.setattr(platform, "declaration", refused)
    monkeypatch.setattr(platform, "members", broken)
    monkeypatch.setattr(platform, "read_status", broken)
    loop = ClusterLoop(platform, "shop", stop)
    loop.start()
    loop.join(20)
    assert not loop.is_alive()
    assert len(seen) > 1, "it looked again"


def test_what_nobody_expected_of_a_stopped_cluster_is_found_out_and_told_by_a_loop(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Any:
        raise KeyError("status")

    made: list[Loop] = []

    def make(*given: Any) -> Loop:
        made.append(Loop(*given))
        return made[-1]

    monkeypatch.setattr(module, "ClusterLoop", make)
    monkeypatch.setattr(module, "Desk", Idle)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(place[1], "declaration", broken)
    keeper = Keeper(place[1], "shop")

    def wait(seconds: float) -> bool:
        made[-1].join(5)
        return len(made) > 1

    keeper.keep(wait)
    assert len(made) == 2
    assert all(each.stop_asked.is_set() for each in made)


def test_nobody_goes_on_where_looking_after_a_cluster_ended_by_an_error(
    place: tuple[Kube, KubernetesPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(seconds: float) -> bool:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "ClusterLoop", Loop)
    monkeypatch.setattr(module, "Desk", Idle)
    keeper = Keeper(place[1], "shop")
    with pytest.raises(RuntimeError):
        keeper.keep(wait)
    assert keeper.is_at_rest()


# what is remembered


def test_nothing_is_remembered_of_a_namespace_whose_clusters_are_gone() -> None:
    with kube_api() as (_, api):
        operator = Operator(api, "*", Defaults())
        operator.keeper("old", "shop")._loop = cast(
            "Any", SimpleNamespace(is_at_rest=lambda: True, is_alive=lambda: False)
        )
        operator.keeper("busy", "shop")
        operator.keeper("new", "shop")
        assert sorted(operator._platforms) == ["busy", "new"]
        assert operator.keeper("busy", "shop") is operator.keeper("busy", "shop")


def test_the_file_of_its_authority_goes_with_a_cluster(
    place: tuple[Kube, KubernetesPlatform], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "authority_file", lambda cluster, namespace: str(tmp_path / cluster))
    platform = place[1]
    platform.authority("shop")
    platform.authority("shop-2")
    platform.leave("shop")
    platform.leave("nobody")
    assert [each.name for each in tmp_path.iterdir()] == ["shop-2"]


def test_when_a_group_was_seen_unfounded_is_not_remembered_for_a_later_cluster_of_its_name(
    place: tuple[Kube, KubernetesPlatform],
) -> None:
    known = place[1]._upkeep._unfounded
    known.update({"shop-coordinator": 1.0, "shop-segment-1": 1.0, "shop-2-segment-1": 1.0})
    place[1].leave("shop")
    assert list(known) == ["shop-2-segment-1"]


def test_nothing_is_remembered_of_what_was_applied_for_a_cluster_that_is_gone(
    place: tuple[Kube, KubernetesPlatform],
) -> None:
    _, platform = place
    applier = Applier(platform.api, platform._reader)
    made = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {}}
        for name in ("shop", "shop-ro", "shop.owner", "shopping")
    ]
    applier.ensure("prod", made)
    applier.forget("prod", "shop")
    assert list(applier._done) == [("prod", CONFIG_MAP, "shopping")]


def test_a_list_that_is_published_late_goes_with_its_cluster(
    place: tuple[Kube, KubernetesPlatform],
) -> None:
    kube, platform = place
    kube.put(PATH, {**RESOURCE, "metadata": {"uid": "one"}})
    desk = Desk(platform, "shop", threading.Event())
    desk._publish({"backups": "[]"})
    [made] = [obj for obj in kube.objects.values() if obj["kind"] == "ConfigMap"]
    assert [owner["uid"] for owner in made["metadata"]["ownerReferences"]] == ["one"]
    kube.remove(PATH)
    with pytest.raises(NoSuchCluster):
        desk._publish({"backups": "[1]"})


# streams


def test_a_first_look_that_took_too_long_is_taken_again_at_once() -> None:
    def start() -> None:
        raise TimeoutError("pods can't be read from the Kubernetes API server")

    registry = register(cast("Any", SimpleNamespace(objects=SimpleNamespace(start=start))))
    handlers: list[Any] = [each.fn for each in registry._activities._handlers]
    [configure] = [each for each in handlers if each.__name__ == "configure"]
    with pytest.raises(kopf.TemporaryError, match="pods can't be read") as told:
        configure(settings=kopf.OperatorSettings())
    assert told.value.delay == 1.0


def test_a_first_look_that_took_too_long_is_waited_for_again_by_the_same_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    is_there = threading.Event()
    monkeypatch.setattr(cache, "FIRST_SECONDS", 0.05)
    with kube_api() as (_, api):
        watched = Watched(api, "prod")

        def watch(kind: Any) -> None:
            begun.append(kind.plural)
            is_there.wait(20)
            watched._filled[kind].set()

        monkeypatch.setattr(watched, "_watch", watch)
        with pytest.raises(TimeoutError):
            watched.start()
        with pytest.raises(TimeoutError):
            watched.start()
        is_there.set()
        wait_for(lambda: all(each.is_set() for each in watched._filled.values()), "all is there")
        watched.start()
    assert len(begun) == len(WATCHED)
