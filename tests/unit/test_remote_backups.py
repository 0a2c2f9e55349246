"""What the commands make of wishes about backups on Kubernetes: resources, and nothing where they make no sense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup.schedule import Standing
from pgherd.cli import backup_commands
from pgherd.errors import BadInput, PgherdError
from pgherd.model import spec
from pgherd.model.spec import PostgresCluster
from pgherd.platform.kubernetes import drills, epochs, names
from pgherd.platform.kubernetes.api import SCHEDULE
from pgherd.platform.kubernetes.drills import BEGUN, ENDED, Ask, State
from pgherd.remote import drills as remote_drills
from pgherd.remote import objects
from pgherd.remote.api import explained
from pgherd.remote.client import KubernetesClient
from tests.support.backups import at, point
from tests.support.home import wait_for
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_backups import CORE, DECLARED, GROUP

SPEC = {"engine": "fdw", "shardCount": 8, "segments": {"count": 2}}


class Commands(KubernetesClient):
    """The client of a fake API; what it declares is kept."""

    def __init__(self, client: Any) -> None:
        @contextmanager
        def asking() -> Iterator[None]:
            with explained("http://it"):
                yield

        self._api = SimpleNamespace(client=client, namespace="prod", asking=asking)  # type: ignore[assignment]
        self._explicit_namespace = None
        self.declared_clusters: list[PostgresCluster] = []

    def up(self, cluster: PostgresCluster) -> None:
        self.declared_clusters.append(cluster)


def resource(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}
    return {"apiVersion": "pgherd.io/v1alpha1", "kind": "PostgresCluster", "metadata": metadata, "spec": spec}


HALTED = {
    **resource(SPEC),
    "metadata": {"annotations": {names.STOPPED_ANNOTATION: "true"}},
}


@pytest.fixture
def kube() -> Iterator[tuple[Kube, Commands]]:
    with kube_api() as (kube, api):
        kube.put(f"{GROUP}/postgresclusters/shop", resource({**SPEC, "backup": DECLARED}))
        kube.put(f"{GROUP}/postgresclusters/plain", resource(SPEC))
        kube.put(f"{GROUP}/postgresclusters/halted", HALTED)
        points = [
            {**point(hour).as_json(), "state": "restorable" if hour < 3 else "not archived yet"}
            for hour in (1, 2, 3)
        ]
        backups = [{"id": "first", "type": "full", "phase": "done"}]
        data = {"backups": json.dumps(backups), "restorePoints": json.dumps(points)}
        kube.put(f"{CORE}/configmaps/shop.backups", {"kind": "ConfigMap", "data": data})
        yield kube, Commands(api.client)


def test_a_restore_declares_a_cluster_that_names_its_point(kube: tuple[Kube, Commands]) -> None:
    _, commands = kube
    found = commands.restore("shop", "shop2", time=at(1.5))
    assert (found["restorePoint"], found["following"]["name"]) == ("p1", "p2")
    [made] = commands.declared_clusters
    assert made.metadata.name == "shop2"
    assert made.spec.segments.count == 2
    assert made.spec.bootstrap is not None
    recovery = made.spec.bootstrap.recovery
    assert recovery is not None
    assert (recovery.cluster, recovery.restore_point, recovery.secret_ref) == ("shop", "p1", "keys")
    assert recovery.method == "pgbackrest"
    assert made.spec.backup is not None, "it has backups of its own"
    assert "annotations" not in made.metadata.model_dump(exclude_none=True, exclude_defaults=True)


def test_the_newest_point_that_can_be_restored_is_meant_if_none_is_named(
    kube: tuple[Kube, Commands],
) -> None:
    _, commands = kube
    assert commands.restore("shop", "shop2")["restorePoint"] == "p2"


def test_which_point_it_was_is_known_once_the_operator_has_found_it_out(
    kube: tuple[Kube, Commands], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, commands = kube
    monkeypatch.setattr(
        backup_commands, "current", lambda: SimpleNamespace(client=lambda: commands, platform="kubernetes")
    )
    unknown: dict[str, object] = {"restorePoint": None, "time": None, "following": None}

    def told(found: dict[str, object] | None) -> str:
        backup_commands.tell_point("shop", "shop2", found)
        return " ".join(capsys.readouterr().err.split())

    assert told(unknown) == "", "nobody has written it down yet"
    state: dict[str, Any] = {"phase": "done", "point": point(2).as_json()}
    following = {"name": "p3", "time": at(3)}
    for known, expected in (
        (state, ""),
        ({**state, "following": following}, f"the next one is p3 ({at(3)})"),
        ({**state, "following": None}, "it is the newest one"),
    ):
        there.put(
            f"{CORE}/configmaps/shop2.recovery",
            {"kind": "ConfigMap", "data": {"state.json": json.dumps(known)}},
        )
        is_told = f"shop2: is shop as of restore point p2 ({at(2)}); {expected}" if expected else ""
        assert told(unknown) == is_told
    assert told({**unknown, "restorePoint": "p1"}) == "", "it was told before"
    assert told(None) == "", "the cluster itself was copied"


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("shop2", {"restore_point": "p3"}, "no restore point 'p3' can be restored: there are 2, from p1"),
        ("plain", {}, "plain is here already"),
        ("shop2", {"repository": "/mnt"}, r"--repository: say with --file what shop2 should be"),
        ("shop", {"repository": "/mnt", "in_place": True}, "--in-place .*: leave --repository out"),
        ("shop2", {"time": "2026-11-21T09:15:00"}, "--time: must be a time with its zone"),
    ],
)
def test_a_restore_that_can_not_be_changes_nothing(
    kube: tuple[Kube, Commands], target: str, options: dict[str, Any], told: str
) -> None:
    _, commands = kube
    with pytest.raises(BadInput, match=told):
        commands.restore("shop", target, **options)
    assert commands.declared_clusters == []


def test_a_cluster_that_is_gone_is_restored_from_the_repository_that_a_file_names(
    kube: tuple[Kube, Commands], tmp_path: Path
) -> None:
    _, commands = kube
    gone, shape = tmp_path / "gone.yaml", tmp_path / "shop2.yaml"
    gone.write_text(json.dumps(DECLARED))
    shape.write_text(json.dumps({**resource({**SPEC, "backup": DECLARED}), "metadata": {"name": "shop2"}}))
    declared = spec.load(shape.read_text(), source="shop2.yaml", platform="kubernetes")
    options: dict[str, Any] = {"repository": str(gone), "declared": declared, "time": at(1.5)}
    found = commands.restore("lost", "shop2", **options)
    assert found == {"restorePoint": None, "time": None, "following": None}
    [made] = commands.declared_clusters
    assert made.spec.bootstrap is not None
    recovery = made.spec.bootstrap.recovery
    assert recovery is not None
    assert (recovery.cluster, recovery.time, recovery.secret_ref) == ("lost", at(1.5), "keys")
    assert recovery.repository is not None
    assert recovery.repository.kind == "s3"
    assert (made.metadata.name, made.spec.segments.count) == ("shop2", 2)
    refusals: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("plain", {}, "plain is here already"),
        ("shop3", {"time": "yesterday"}, "--time: "),
        ("shop3", {"repository": str(tmp_path)}, "repository"),
    )
    for target, more, told in refusals:
        with pytest.raises(BadInput, match=told):
            commands.restore("lost", target, **{**options, **more})
    assert len(commands.declared_clusters) == 1
    with pytest.raises(BadInput, match="--repository: on kubernetes only the operator"):
        commands.restore_points("lost", str(gone))


CLUSTER = f"{GROUP}/postgresclusters/shop"
CLAIM = f"{CORE}/persistentvolumeclaims/data-shop-coordinator-0"


@pytest.fixture
def living(kube: tuple[Kube, Commands]) -> tuple[Kube, Commands]:
    """Its cluster has data."""
    kube[0].put(CLAIM, {"kind": "PersistentVolumeClaim", "metadata": {"labels": names.labels("shop", 0)}})
    return kube


def says(kube: Kube, **restore: Any) -> None:
    """What the operator says of restoring in place."""
    wish = epochs.wish_of(kube.objects[CLUSTER])
    told = {"asked": wish and wish.id, "id": wish and wish.id, **restore}
    kube.put(CLUSTER, {**kube.objects[CLUSTER], "status": {"restore": told}})


def test_a_restore_in_place_is_asked_for_in_one_change(living: tuple[Kube, Commands]) -> None:
    kube, commands = living
    metadata = {**kube.objects[CLUSTER]["metadata"], "annotations": {names.STOPPED_ANNOTATION: "true"}}
    spec = {**kube.objects[CLUSTER]["spec"], "segments": {"count": 3}}
    kube.put(CLUSTER, {**kube.objects[CLUSTER], "metadata": metadata, "spec": spec})
    found = commands.restore("shop", "shop", restore_point="p1", in_place=True)
    assert (found["restorePoint"], found["following"]["name"]) == ("p1", "p2")
    assert kube.writes("PATCH") == [CLUSTER], "nobody sees half of it"
    now = kube.objects[CLUSTER]
    wish = epochs.wish_of(now)
    assert wish is not None
    assert wish.recovery is not None
    assert not wish.problem
    assert (wish.recovery["restorePoint"], wish.recovery["cluster"]) == ("p1", "shop")
    assert now["spec"]["segments"]["count"] == 2, "as many as there were at that point"
    assert names.STOPPED_ANNOTATION not in now["metadata"]["annotations"]
    assert "bootstrap" not in now["spec"], "what was declared stays as it was"


def test_what_has_to_wait_for_the_end_of_a_restore_in_place_is_refused(living: tuple[Kube, Commands]) -> None:
    kube, commands = living
    commands.restore("shop", "shop", in_place=True)
    before = kube.objects[CLUSTER]
    for _ in range(2):  # nobody has seen it yet; then it is under way
        for ask in (
            lambda: commands.restore("shop", "shop", in_place=True),
            lambda: commands.scale("shop", 3),
            lambda: commands.rebalance("shop"),
            lambda: commands.confirm_restore("shop"),
        ):
            with pytest.raises(BadInput, match="shop is being restored in place: 'pgherd status shop' shows"):
                ask()
        assert kube.objects[CLUSTER]["spec"] == before["spec"]
        says(kube, phase="copying", kept=[])
    commands.cancel("shop")
    assert epochs.wish_of(kube.objects[CLUSTER]) is None


def test_what_was_kept_is_confirmed_first(living: tuple[Kube, Commands]) -> None:
    kube, commands = living
    with pytest.raises(BadInput, match="shop: nothing is kept from before a restore"):
        commands.confirm_restore("shop")
    commands.restore("shop", "shop", in_place=True)
    says(kube, phase="done", kept=["data-shop-coordinator-0"])
    assert commands.restore_outcome("shop") is None
    with pytest.raises(BadInput, match="'pgherd restore shop --confirm' removes it"):
        commands.restore("shop", "shop", in_place=True)
    kube.remove(CLAIM)
    commands.confirm_restore("shop")
    wish = epochs.wish_of(kube.objects[CLUSTER])
    assert wish is not None
    assert wish.confirmed
    assert wish.id == kube.objects[CLUSTER]["status"]["restore"]["id"]


def test_why_a_restore_in_place_was_taken_back_is_told(living: tuple[Kube, Commands]) -> None:
    kube, commands = living
    commands.restore("shop", "shop", in_place=True)
    says(kube, phase="reverted", error="it is damaged", kept=[])
    assert commands.restore_outcome("shop") == "it is damaged"
    says(kube, refused="it is not confirmed", phase="done")
    with pytest.raises(
        BadInput, match="shop: nothing was changed, the restore is refused: it is not confirmed"
    ):
        commands.restore_outcome("shop")


def test_nothing_is_put_in_the_place_of_nothing(kube: tuple[Kube, Commands]) -> None:
    with pytest.raises(BadInput, match="shop has no data yet that could be taken back"):
        kube[1].restore("shop", "shop", in_place=True)


@pytest.mark.parametrize(
    ("asked", "declared"),
    [
        ({"time": at(6)}, {"time": at(6)}),
        ({"time": at(15.5)}, {"restore_point": "p15"}),
        ({"restore_point": "p6"}, {"restore_point": "p6"}),
        ({"backup": "b1"}, {"restore_point": "p1"}),
        ({"backup": "b0"}, {"backup": "b0"}),
        ({"backup": "b1", "inclusive": False}, {"backup": "b1", "inclusive": False}),
        ({}, {"restore_point": "p16"}),
    ],
)
def test_what_is_older_than_the_list_is_declared_as_it_was_asked(
    kube: tuple[Kube, Commands], asked: dict[str, Any], declared: dict[str, Any]
) -> None:
    api, commands = kube
    points = [point(1, backup="b1"), point(14), point(15), point(16)]
    rows = [{**each.as_json(), "state": "restorable"} for each in points]
    data = {"restorePoints": json.dumps(rows), "restorePointsSince": at(14)}
    api.put(f"{CORE}/configmaps/shop.backups", {"kind": "ConfigMap", "data": data})
    found = commands.restore("shop", "shop2", **asked)
    assert found["restorePoint"] == declared.get("restore_point") or found["restorePoint"] is None
    [made] = commands.declared_clusters
    assert made.spec.bootstrap is not None
    recovery = made.spec.bootstrap.recovery
    assert recovery is not None
    wanted = {"restore_point": None, "time": None, "backup": None, "inclusive": True, **declared}
    assert {name: getattr(recovery, name) for name in wanted} == wanted
    with pytest.raises(BadInput, match="is in the future"):
        commands.restore("shop", "shop3", time="2099-01-01T00:00:00Z")


def test_a_backup_is_a_resource(kube: tuple[Kube, Commands]) -> None:
    api, commands = kube
    name = commands.backup("shop", "incremental")
    path = f"{GROUP}/postgresbackups/{name}"
    assert api.objects[path]["spec"] == {"cluster": "shop", "type": "incremental"}
    api.put(path, {**api.objects[path], "status": {"phase": "Failed", "error": "no room"}})
    with pytest.raises(PgherdError, match=f"backup {name} failed: no room"):
        commands.wait_backup("shop", name)
    api.put(path, {**api.objects[path], "status": {"phase": "Done", "groups": {}, "bytes": 1}})
    assert commands.wait_backup("shop", name)["phase"] == "done"


def test_backups_of_a_cluster_without_any_are_refused(kube: tuple[Kube, Commands]) -> None:
    _, commands = kube
    for ask in (
        lambda: commands.backup("plain", "full"),
        lambda: commands.backups("plain"),
        lambda: commands.restore_points("plain"),
    ):
        with pytest.raises(BadInput, match=r"plain has no backups: spec\.backup says"):
            ask()
    with pytest.raises(BadInput, match="--type: must be one of full"):
        commands.backup("shop", "half")


def test_points_are_shown_as_on_one_machine(kube: tuple[Kube, Commands]) -> None:
    _, commands = kube
    rows = commands.restore_points("shop")
    assert [row["restorable"] for row in rows] == [True, True, False]
    assert rows[0]["lsns"]["1"].keys() == {"lsn", "timeline"}


# clones


def test_a_clone_is_made_of_the_backups_and_has_none_of_its_own(kube: tuple[Kube, Commands]) -> None:
    _, commands = kube
    assert (commands.clone("shop", "shop2", "p1") or {})["restorePoint"] == "p1"
    assert (commands.clone("shop", "shop3") or {})["restorePoint"] == "p2", "the newest"
    for made in commands.declared_clusters:
        assert made.spec.bootstrap is not None
        assert made.spec.bootstrap.recovery is not None
        assert made.spec.backup is None


def test_a_clone_of_a_cluster_without_backups_is_declared_to_be_a_copy_of_it(
    kube: tuple[Kube, Commands],
) -> None:
    _, commands = kube
    assert commands.clone("plain", "plain2") is None, "there is no point yet of which it would be"
    [made] = commands.declared_clusters
    assert made.spec.bootstrap is not None
    assert made.spec.bootstrap.clone is not None
    assert made.spec.bootstrap.clone.cluster == "plain"
    assert made.spec.bootstrap.recovery is None
    assert (made.metadata.name, made.spec.segments.count, made.spec.backup) == ("plain2", 2, None)
    assert made.metadata.annotations == {}, "what tools noted on the source is not the clone's"


@pytest.mark.parametrize(
    ("source", "target", "at_point", "told"),
    [
        ("plain", "x", "p1", "--at p1: plain has no backups, and so no restore points: leave --at out"),
        ("plain", "shop", None, "shop is here already"),
        ("plain", "plain", None, "plain is here already"),
        ("other/plain", "x", None, "other/plain: a clone is made in the namespace of its source"),
        ("halted", "x", None, "halted is stopped: 'pgherd start halted' brings it back"),
        ("shop", "x", "p3", "no restore point 'p3' can be restored"),
        ("shop", "plain", None, "plain is here already"),
        ("nobody", "x", None, "no cluster 'nobody'"),
    ],
)
def test_a_clone_that_can_not_be_is_refused_in_one_line(
    kube: tuple[Kube, Commands], source: str, target: str, at_point: str | None, told: str
) -> None:
    _, commands = kube
    with pytest.raises(BadInput, match=told) as refused:
        commands.clone(source, target, at_point)
    assert len(refused.value.problems) == 1
    assert commands.declared_clusters == []


# drills

STATE = f"{CORE}/configmaps/shop.drill"
SHOP = f"{GROUP}/postgresclusters/shop"
RESULT = {
    "id": "",
    "restorePoint": "p2",
    "finishedAt": "2026-11-21T10:00:00+00:00",
    "seconds": 3.0,
    "passed": True,
    "problems": [],
}


class Operator:
    """It does what a wish of a drill says, as soon as there is one."""

    def __init__(self, kube: Kube, states: Callable[[Ask], list[State]]) -> None:
        self._kube, self._states = kube, states
        self.asks: list[Ask] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        wait_for(
            lambda: drills.is_asked(self._kube.objects[SHOP]), "somebody asks for a drill", 20, every=0.01
        )
        ask = drills.asked(self._kube.objects[SHOP])
        assert ask is not None
        self.asks.append(ask)
        for state in self._states(ask):
            self._kube.put(STATE, drills.state_object("shop", state, self._kube.objects[SHOP]))
            time.sleep(0.05)

    def join(self) -> None:
        self._thread.join(20)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_drills, "POLL_SECONDS", 0.01)


def test_a_drill_is_asked_for_and_waited_for(kube: tuple[Kube, Commands]) -> None:
    api, commands = kube

    def states(ask: Ask) -> list[State]:
        begun = State(ask, BEGUN, "2026-11-21T09:00:00+00:00", told=("restoring p2",))
        examined = replace(
            begun.saying("comparing rows"), status={"name": "shop-drill", "phase": "Examining"}
        )
        return [begun, examined, replace(examined, phase=ENDED, result={**RESULT, "id": ask.id})]

    operator = Operator(api, states)
    told: list[str] = []
    shown: list[dict[str, Any]] = []
    found = commands.drill(
        "shop", keep=True, tables=["account"], timeout=600, told=told.append, progress=shown.append
    )
    operator.join()
    (ask,) = operator.asks
    assert (ask.keep, ask.tables, ask.timeout, ask.schedule) == (True, ("account",), 600.0, "")
    assert found["passed"]
    assert told == ["restoring p2", "comparing rows"]
    assert {"name": "shop-drill", "phase": "Examining"} in shown
    assert [each["id"] for each in commands.drills("shop")] == [ask.id], "also before it is listed"


@pytest.mark.parametrize("refused", [True, False])
def test_a_drill_that_could_not_be_made_says_why(kube: tuple[Kube, Commands], refused: bool) -> None:
    api, commands = kube
    error = "table x: there is none of this name"
    Operator(api, lambda ask: [State(ask, ENDED, "2026-11-21T09:00:00+00:00", error=error, refused=refused)])
    with pytest.raises(PgherdError, match=error) as caught:
        commands.drill("shop", timeout=float("inf"))
    assert isinstance(caught.value, BadInput) is refused


def test_a_second_drill_is_refused_while_one_is_wanted_or_going_on(kube: tuple[Kube, Commands]) -> None:
    api, commands = kube
    begun = State(Ask("a1", schedule="nightly"), BEGUN, "2026-11-21T09:00:00+00:00")
    api.put(STATE, drills.state_object("shop", begun, api.objects[SHOP]))
    with pytest.raises(BadInput, match="a drill of shop is going on: wait until it is done"):
        commands.drill("shop")
    api.remove(STATE)
    wanted = {drills.ASK_ANNOTATION: '{"id": "b2"}'}
    api.put(SHOP, {**api.objects[SHOP], "metadata": {**api.objects[SHOP]["metadata"], "annotations": wanted}})
    with pytest.raises(BadInput, match="a drill of shop is going on"):
        commands.drill("shop")
    with pytest.raises(BadInput, match="plain has no backups"):
        commands.drill("plain")


def test_a_wish_that_no_operator_hears_is_withdrawn(
    kube: tuple[Kube, Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, commands = kube
    monkeypatch.setattr(objects, "STALE_SECONDS", 0.1)
    with pytest.raises(PgherdError, match="no drill was made: nothing is heard of the operator"):
        commands.drill("shop")
    assert not drills.is_asked(api.objects[SHOP])


def test_drills_and_schedules_are_shown_with_what_the_operator_listed(kube: tuple[Kube, Commands]) -> None:
    api, commands = kube
    assert commands.drills("shop") == []
    listed = api.objects[f"{CORE}/configmaps/shop.backups"]
    old = {**RESULT, "finishedAt": "2026-11-20T10:00:00+00:00"}
    api.put(
        f"{CORE}/configmaps/shop.backups", {**listed, "data": {**listed["data"], "drills": json.dumps([old])}}
    )
    assert commands.drills("shop") == [old]
    schedule = {
        "apiVersion": SCHEDULE.api_version,
        "kind": SCHEDULE.name,
        "metadata": {},
        "spec": {"cluster": "shop", "cron": "0 2 * * *", "drill": {"every": "7d"}},
        "status": {
            "standing": Standing(
                "0 2 * * *", "2026-11-20T00:00:00+00:00", "2026-11-20T00:00:00+00:00"
            ).as_json()
        },
    }
    api.put(f"{GROUP}/postgresbackupschedules/nightly", schedule)
    (row,) = commands.schedules("shop")
    assert row["drill"]["dueAt"] == "2026-11-27T10:00:00+00:00"


# lines of pg_hba.conf that only an older version accepted

OLD = "hostnossl all app 10.0.0.0/8 scram-sha-256"


def with_lines(kube: Kube, lines: str) -> None:
    before = kube.objects[CLUSTER]
    postgres = {"hostBasedAuthentication": lines}
    kube.put(CLUSTER, {**before, "spec": {**before["spec"], "postgres": postgres}})


def test_an_old_line_can_be_corrected_and_everything_else_goes_on(living: tuple[Kube, Commands]) -> None:
    kube, commands = living
    with_lines(kube, OLD)
    assert commands.declared("shop").spec.postgres.host_based_authentication == OLD
    commands.scale("shop", 4)
    assert kube.objects[CLUSTER]["spec"]["segments"]["count"] == 4
    raw = spec.to_mapping(commands.declared("shop"))
    with pytest.raises(BadInput, match="line 1 is for connections without TLS"):
        KubernetesClient.up(commands, spec.from_mapping(raw, platform="kubernetes", kept=True))
    raw["spec"]["postgres"]["hostBasedAuthentication"] = OLD.replace("hostnossl", "hostssl")
    KubernetesClient.up(commands, spec.from_mapping(raw, platform="kubernetes"))
    lines = kube.objects[CLUSTER]["spec"]["postgres"]["hostBasedAuthentication"]
    assert lines == OLD.replace("hostnossl", "hostssl")


def test_an_old_line_keeps_nobody_from_restoring_in_place(living: tuple[Kube, Commands]) -> None:
    kube, commands = living
    with_lines(kube, OLD)
    assert commands.restore("shop", "shop", restore_point="p1", in_place=True)["restorePoint"] == "p1"
    assert epochs.wish_of(kube.objects[CLUSTER]) is not None


def test_an_old_line_is_refused_for_a_new_cluster_and_it_is_said_where_to_correct_it(
    living: tuple[Kube, Commands],
) -> None:
    kube, commands = living
    with_lines(kube, OLD)
    for make in (commands.restore, commands.clone):
        with pytest.raises(BadInput) as refused:
            make("shop", "shop2")
        (problem,) = refused.value.problems
        assert "line 1 is for connections without TLS" in problem
        assert problem.endswith("correct it there with 'pgherd up'")
    assert commands.declared_clusters == []
