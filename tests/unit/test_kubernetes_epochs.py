"""Restoring in place on Kubernetes: which volumes are a cluster's own, whatever is asked for and wherever it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import restore, restoring
from pgherd.backup.restore import Site
from pgherd.backup.wish import is_due, standing
from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.model.spec import PostgresCluster, to_mapping, validate
from pgherd.model.topology import Member
from pgherd.platform.kubernetes import epochs, names
from pgherd.platform.kubernetes.epochs import Wish
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.workshop import PodWorkshop, has_ended
from pgherd.reconcile import status
from tests.support.backups import point
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_objects import cluster, objects

S3 = {"bucket": "safe", "endpoint": "s3.example.com", "uriStyle": "path"}
RECOVERY = {
    "cluster": "shop",
    "method": "pgbackrest",
    "repository": {"s3": S3},
    "secretRef": "keys",
    "restorePoint": "p1",
}
CORE = "/api/v1/namespaces/prod"
APPS = "/apis/apps/v1/namespaces/prod"
SHOP = "/apis/pgherd.io/v1alpha1/namespaces/prod/postgresclusters/shop"
STATE = f"{CORE}/configmaps/shop.recovery"
UID = "11111111-2222"


def annotated(text: str) -> dict[str, Any]:
    return {"metadata": {"uid": UID, "annotations": {names.RESTORE_ANNOTATION: text}}}


def asked(identity: str = "a") -> Wish:
    wish = epochs.wish_of(annotated(Wish(identity, RECOVERY).as_text(UID)))
    assert wish is not None
    return wish


def confirmed(identity: str = "a") -> Wish:
    return Wish(identity, confirmed=True)


# what follows from what


def begun(before: epochs.State | None = None, identity: str = "a") -> dict[str, Any]:
    state = epochs.with_wish("shop", before, asked(identity), (epochs.current(before),))
    assert state is not None
    return dict(state)


def test_a_wish_begins_an_epoch_and_keeps_the_one_before() -> None:
    state = begun()
    assert (state["phase"], state["inPlace"], state["id"]) == ("requested", True, "a")
    assert state["recovery"]["restorePoint"] == "p1"
    assert (epochs.current(state), state["kept"]) == (1, 0)
    assert epochs.is_under_way(state)
    assert is_due(state, cluster(), True)


def test_what_was_done_is_in_force_and_what_was_taken_back_is_not() -> None:
    done = {**begun(), "phase": restore.DONE}
    assert (epochs.current(done), epochs.unconfirmed(done)) == (1, 0)
    reverted = {**begun(), "phase": restore.REVERTED, "discard": [1]}
    assert (epochs.current(reverted), epochs.unconfirmed(reverted)) == (0, None)
    assert epochs.discarded(reverted) == [1]
    # The next one gets volumes that nobody has begun, and keeps what runs.
    following = begun(reverted, "b")
    assert (epochs.current(following), following["kept"], following["discard"]) == (2, 0, [1])


def test_no_restore_ever_gets_volumes_that_are_there() -> None:
    for there, epoch in (((0,), 1), ((0, 4), 5), ((0, 1, 2), 3)):
        reverted = {**begun(), "phase": restore.REVERTED}
        state = epochs.with_wish("shop", reverted, asked("b"), there)
        assert epochs.current(state) == max(epoch, 2)
    assert epochs.with_wish("shop", None, asked(), (0, 4)) is None, "nobody knows which of them it has"
    assert epochs.with_wish("shop", None, asked(), ()) is None


def test_a_wish_that_was_fulfilled_or_taken_back_is_not_fulfilled_again() -> None:
    for phase in (restore.DONE, restore.REVERTED):
        state = {**begun(), "phase": phase}
        assert epochs.with_wish("shop", state, asked()) == state
        assert epochs.with_wish("shop", state, None) == state


@pytest.mark.parametrize("wish", [None, Wish("b", RECOVERY), confirmed()])
def test_what_nobody_wants_any_more_is_taken_back(wish: Wish | None) -> None:
    state = {**begun(), "phase": "copying"}
    left = epochs.with_wish("shop", state, wish)
    if wish is not None and wish.id == state["id"]:
        assert left == state
    else:
        assert left == {**state, "failure": epochs.CALLED_OFF}
        assert epochs.current(left) == 1, "until that is done the old volumes stay as they are"


def test_why_it_failed_is_not_forgotten_when_it_is_called_off_besides() -> None:
    state = {**begun(), "phase": "copying", "failure": "the copy is damaged"}
    assert epochs.with_wish("shop", state, None) == state


def test_nothing_is_restored_over_what_is_not_confirmed() -> None:
    done = {**begun(), "phase": restore.DONE}
    assert epochs.with_wish("shop", done, asked("b")) == done
    assert "'pgherd restore shop --confirm' removes it" in epochs.refused("shop", done, asked("b"))
    assert epochs.refused("shop", done, asked()) == ""
    made = {"phase": "copying"}
    assert epochs.with_wish("shop", made, asked()) == made, (
        "a cluster that is made has nothing to be taken back"
    )
    assert "is being restored already" in epochs.refused("shop", made, asked())


def test_only_what_was_restored_is_confirmed() -> None:
    done = {**begun(), "phase": restore.DONE}
    assert epochs.is_confirmed(done, confirmed())
    for state, wish in (
        (done, asked()),
        (done, confirmed("b")),
        (done, None),
        ({**done, "phase": "copying"}, confirmed()),
        ({**done, "phase": restore.REVERTED}, confirmed()),
        ({**done, "kept": None}, confirmed()),
        (None, confirmed()),
    ):
        assert not epochs.is_confirmed(state, wish)
    after = epochs.confirmed(done)
    assert (epochs.current(after), epochs.unconfirmed(after), epochs.discarded(after)) == (1, None, [0])
    assert (epochs.current(begun(after, "b")), begun(after, "b")["kept"]) == (2, 1)


def test_what_is_in_force_or_kept_is_never_discarded() -> None:
    done = {**begun(), "phase": restore.DONE, "discard": [0, 1, 7]}
    assert epochs.discarded(done) == [7]
    assert epochs.discarded({**done, "phase": restore.REVERTED}) == [1, 7]
    assert epochs.discarded(None) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", 'it is not {"id": ..., "recovery": {...}}'),
        ("[]", 'it is not {"id": ..., "recovery": {...}}'),
        ('{"recovery": {}}', 'it is not {"id": ..., "recovery": {...}}'),
        ('{"id": "a"}', "recovery: "),
        (json.dumps({"id": "a", "recovery": {**RECOVERY, "time": "now"}}), "recovery"),
        (json.dumps({"id": "a", "recovery": {**RECOVERY, "point": "p1"}}), "recovery.point"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_and_changes_nothing(text: str, why: str) -> None:
    wish = epochs.wish_of(annotated(text))
    assert wish is not None
    assert why in epochs.refused("shop", None, wish)
    assert epochs.with_wish("shop", None, wish) is None


def test_a_wish_is_not_for_a_resource_that_was_made_from_a_copy() -> None:
    text = Wish("a", RECOVERY).as_text("another")
    assert epochs.wish_of(annotated(text)) is None
    assert epochs.wish_of({"metadata": {}}) is None
    assert epochs.wish_of(None) is None


# objects


def test_a_cluster_that_was_never_restored_has_the_names_that_it_always_had() -> None:
    member = Member("shop", 1, 0)
    assert names.volume_claim(member, 0) == "data-shop-segment-1-0"
    assert names.scope(cluster(), 1, 0) == "shop-segment-1"


def test_an_epoch_has_volumes_and_a_place_in_the_store_of_its_own() -> None:
    made = objects(epoch=3)
    spec = made["StatefulSet"]["spec"]
    [claim] = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data3"
    mounts = [each["name"] for each in spec["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert "data3" in mounts
    assert "data" not in mounts
    labels = spec["template"]["metadata"]["labels"]
    assert labels[names.SCOPE_LABEL] == "shop-segment-1.3"
    assert names.selector("shop", 1).items() <= labels.items(), "Services lead to it as ever"
    assert "scope: shop-segment-1.3\n" in made["ConfigMap"]["data"]["patroni.yml"]
    before, after = (objects(epoch=each)["StatefulSet"]["spec"]["template"]["metadata"] for each in (0, 3))
    assert before["annotations"] != after["annotations"]


# the platform


class Lab:
    """A cluster of one group with data, and whoever looks after it."""

    def __init__(self, kube: Kube, api: Any) -> None:
        self.kube, self.api = kube, api
        self.annotate("")
        self.platform = KubernetesPlatform(api, "prod", defaults=Defaults())
        self.platform.start_member(cluster(), Member("shop", 0, 0), {})
        self.claim(0)
        kube.put(
            f"{CORE}/pods/shop-coordinator-0", {**RUNNING, "metadata": {"labels": names.labels("shop", 0)}}
        )
        self.platform.align(cluster(), {0: {}})

    @property
    def workshop(self) -> PodWorkshop:
        return self.platform.workshop("shop")

    def annotate(self, text: str) -> None:
        raw = {
            **to_mapping(cluster()),
            "metadata": {"uid": UID, "annotations": {names.RESTORE_ANNOTATION: text}},
        }
        self.kube.put(SHOP, raw)

    def claim(self, epoch: int) -> None:
        claim = {
            "metadata": {"labels": names.labels("shop", 0)},
            "spec": {"resources": {"requests": {"storage": "100Gi"}}},
        }
        self.kube.put(
            f"{CORE}/persistentvolumeclaims/{names.volume_claim(Member('shop', 0, 0), epoch)}", claim
        )

    def store(self, epoch: int) -> None:
        labels = names.pod_labels(cluster(), 0, epoch)
        path = f"{CORE}/configmaps/{names.store_object(cluster(), 0, 'config', epoch)}"
        self.kube.put(path, {"kind": "ConfigMap", "metadata": {"labels": labels}})

    def stop(self) -> None:
        self.platform.stop_member(Member("shop", 0, 0))

    def claims(self) -> list[str]:
        return sorted(
            path.rpartition("/")[2] for path in self.kube.objects if "/persistentvolumeclaims/" in path
        )

    def stores(self) -> list[str]:
        return sorted(
            path.rpartition("/")[2]
            for path in self.kube.objects
            if path.endswith("-config") and "/configmaps/" in path
        )

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kube.objects[STATE]["data"]["state.json"])
        return found


RUNNING: dict[str, Any] = {
    "spec": {},
    "status": {"containerStatuses": [{"name": "postgres", "state": {"running": {}}}]},
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with kube_api() as (kube, api):
        yield Lab(kube, api)


def wish(lab: Lab, identity: str = "a", **more: Any) -> None:
    """Asked for, and begun by somebody who looked for its point."""
    lab.annotate(Wish(identity, RECOVERY, **more).as_text(UID))
    if (pending := lab.workshop.pending) is not None:
        assert lab.workshop.decide(pending)


def test_all_that_runs_has_to_be_gone_and_nothing_starts_meanwhile(lab: Lab) -> None:
    wish(lab)
    [view] = lab.platform.members("shop").values()
    assert (view.running, view.has_data) == (True, False), "the new volume is not there yet"
    with pytest.raises(Unavailable, match="shop is being restored in place"):
        lab.platform.start_member(cluster(), Member("shop", 0, 0), {})
    with pytest.raises(PgherdError, match="shop is being restored in place"):
        lab.platform.align(cluster(), {0: {}})
    with pytest.raises(Unavailable, match="shop-coordinator-0, shop-coordinator has not ended yet"):
        lab.workshop.set_aside()
    lab.stop()
    assert lab.platform.members("shop") == {}
    lab.workshop.set_aside()
    assert lab.claims() == ["data-shop-coordinator-0"]
    [claim] = [obj for path, obj in lab.kube.objects.items() if "/persistentvolumeclaims/" in path]
    assert claim["metadata"]["labels"][names.KEPT_LABEL] == "true"


def test_what_is_written_down_decides_whatever_is_at_hand_of_the_wish(lab: Lab) -> None:
    lab.annotate(Wish("a", RECOVERY).as_text(UID))
    assert lab.workshop.pending is not None
    assert lab.workshop.read_state() is None
    assert STATE not in lab.kube.objects, "to look changes nothing"
    wish(lab)
    state = lab.workshop.read_state()
    assert state is not None
    assert lab.workshop.pending is None
    lab.workshop.write_state({**state, "phase": "copying"})
    lab.annotate("")
    left = lab.workshop.read_state()
    assert left is not None
    assert (left["failure"], left["phase"]) == (epochs.CALLED_OFF, "copying")
    with pytest.raises(Unavailable):
        lab.platform.settled_epoch("shop")


def test_a_cluster_without_data_has_nothing_to_be_taken_back(lab: Lab) -> None:
    lab.kube.remove(f"{CORE}/persistentvolumeclaims/data-shop-coordinator-0")
    wish(lab)
    assert lab.workshop.read_state() is None


def test_what_is_restored_runs_on_new_volumes_and_confirming_removes_the_old_ones(lab: Lab) -> None:
    lab.store(0)
    wish(lab)
    lab.stop()
    lab.workshop.set_aside()
    state = lab.workshop.read_state() or {}
    lab.claim(1)
    lab.workshop.write_state({**state, "phase": restore.DONE})
    [view] = lab.platform.members("shop").values()
    assert view.has_data
    lab.platform.start_member(cluster(), Member("shop", 0, 0), {})
    template = lab.kube.objects[f"{APPS}/statefulsets/shop-coordinator"]["spec"]["volumeClaimTemplates"][0]
    assert template["metadata"]["name"] == "data1"
    assert lab.workshop.kept == ["data-shop-coordinator-0"]
    lab.store(1)
    for _ in range(3):
        lab.platform.align(cluster(), {0: {}})
    assert lab.claims() == ["data-shop-coordinator-0", "data1-shop-coordinator-0"], "nobody has confirmed it"
    lab.annotate(Wish("a", confirmed=True).as_text(UID))
    for _ in range(2):
        lab.platform.align(cluster(), {0: {}})
    assert lab.claims() == ["data1-shop-coordinator-0"]
    assert lab.stores() == ["shop-coordinator.1-config"]
    assert lab.workshop.kept == []
    assert (lab.state()["kept"], lab.state()["discard"]) == (None, [])
    assert lab.platform.settled_epoch("shop") == 1


def test_what_was_taken_back_runs_on_its_old_volumes_and_the_new_ones_go(lab: Lab) -> None:
    lab.store(0)
    wish(lab)
    lab.stop()
    lab.workshop.set_aside()
    state = {**(lab.workshop.read_state() or {}), "phase": "copying", "failure": "it is damaged"}
    lab.claim(1)
    lab.store(1)
    lab.workshop.write_state(state)
    back = lab.workshop.put_back()
    assert back == {"discard": [1]}
    assert lab.claims() == ["data-shop-coordinator-0", "data1-shop-coordinator-0"], (
        "nothing goes before that is told"
    )
    lab.workshop.write_state({**state, **back, "phase": restore.REVERTED, "error": "it is damaged"})
    assert lab.platform.settled_epoch("shop", asked=True) == 0
    lab.platform.start_member(cluster(), Member("shop", 0, 0), {})
    for _ in range(2):
        lab.platform.align(cluster(), {0: {}})
    assert lab.claims() == ["data-shop-coordinator-0"]
    assert lab.stores() == ["shop-coordinator-config"]
    [claim] = [obj for path, obj in lab.kube.objects.items() if "/persistentvolumeclaims/" in path]
    assert names.KEPT_LABEL not in claim["metadata"]["labels"]
    told = restoring.in_place(lab.platform, "shop")
    assert told is not None
    assert (told["phase"], told["error"], told["kept"]) == (restore.REVERTED, "it is damaged", [])


class Failing(restore.Restore):
    """One that has begun to make volumes, and can't go on."""

    lab: Lab
    error: Exception = PgherdError("it is damaged")

    def _plan(self) -> None:
        self._tell(phase="copying", point=point(1).as_json(), bases={}, message="restoring to p1")
        self.lab.claim(epochs.current(self._state))

    def _carry_on(self) -> None:
        raise self.error


def restored(lab: Lab, error: Exception | None = None) -> None:
    """One try, by whoever looks after it now."""
    known = lab.workshop.read_state() or {}
    nothing: Any = None
    there: Any = SimpleNamespace(repository=SimpleNamespace(require=lambda: None))
    site = Site(lab.platform, cluster(), there, nothing, lambda: False, "shop", None, known.get("id"))
    made = Failing(site)
    made.lab, made.error = lab, error or made.error
    with suppress(PgherdError):
        made.run()


def test_a_restore_that_fails_ends_where_it_began(lab: Lab) -> None:
    wish(lab)
    lab.stop()
    restored(lab)
    state = lab.state()
    assert (state["phase"], state["error"], state["discard"]) == (restore.REVERTED, "it is damaged", [1])
    assert restoring.state(lab.platform, cluster()) is None
    assert lab.platform.settled_epoch("shop") == 0
    restored(lab, KeyError("nobody begins it again"))
    assert lab.state() == state
    for _ in range(2):
        lab.platform.align(cluster(), {0: {}})
    assert lab.claims() == ["data-shop-coordinator-0"]


def test_without_the_old_volumes_a_restore_goes_on_and_can_not_be_called_off(lab: Lab) -> None:
    counts = {"before": 3, "at": cluster().spec.segments.count}
    wish(lab, segments=counts)
    lab.stop()
    restored(lab, Unavailable("it begins"))
    lab.kube.remove(f"{CORE}/persistentvolumeclaims/data-shop-coordinator-0")
    restored(lab)
    state = lab.state()
    assert (state["phase"], state["failure"]) == ("copying", None)
    assert state["noWayBack"] == (
        "the volumes that shop had before are gone, so it can't be taken back (it is damaged) and goes on"
    )
    lab.annotate("")
    assert (lab.workshop.read_state() or {}).get("failure") is None, "there is nothing to go back to"
    assert lab.claims() == ["data1-shop-coordinator-0"], "what was made stays"


def test_what_was_taken_back_has_as_many_segments_as_before(lab: Lab) -> None:
    counts = {"before": 3, "at": cluster().spec.segments.count}
    wish(lab, segments=counts)
    lab.stop()
    restored(lab)
    assert lab.state()["phase"] == restore.REVERTED
    assert lab.kube.objects[SHOP]["spec"]["segments"]["count"] == 3


def test_a_number_of_segments_that_somebody_wants_meanwhile_stays(lab: Lab) -> None:
    wish(lab, segments={"before": 3, "at": 4})
    lab.stop()
    restored(lab)
    assert lab.kube.objects[SHOP]["spec"]["segments"]["count"] == 2


def test_nobody_goes_back_to_volumes_that_are_gone(lab: Lab) -> None:
    wish(lab)
    lab.stop()
    restored(lab, Unavailable("the repository is silent"))
    lab.kube.remove(f"{CORE}/persistentvolumeclaims/data-shop-coordinator-0")
    for _ in range(2):
        restored(lab)
    assert lab.state()["phase"] == "copying"
    assert lab.claims() == ["data1-shop-coordinator-0"], "it is all there is"


def test_whoever_comes_late_does_not_undo_what_was_brought_to_its_end(lab: Lab) -> None:
    wish(lab)
    state = {**(lab.workshop.read_state() or {}), "startedAt": "2026-01-01T00:00:00.000+00:00"}
    lab.workshop.write_state({**state, "phase": restore.DONE})
    with pytest.raises(Cancelled, match="by somebody else"):
        lab.workshop.write_state({**state, "phase": "copying"})
    assert lab.state()["phase"] == restore.DONE
    made = {"phase": "copying", "startedAt": state["startedAt"]}
    assert has_ended({**made, "phase": restore.DONE}, made)
    assert not has_ended(
        {**made, "phase": restore.DONE}, {**made, "startedAt": "2026-01-02T00:00:00.000+00:00"}
    )
    assert not has_ended({**state, "phase": restore.REVERTED}, {**state, "id": "b", "phase": "requested"})


def test_what_was_kept_and_is_gone_needs_no_confirmation(lab: Lab) -> None:
    wish(lab)
    lab.stop()
    state = lab.workshop.read_state() or {}
    lab.claim(1)
    lab.workshop.write_state({**state, "phase": restore.DONE})
    lab.kube.remove(f"{CORE}/persistentvolumeclaims/data-shop-coordinator-0")
    lab.platform.align(cluster(), {0: {}})
    assert lab.state()["kept"] is None
    assert epochs.refused("shop", lab.state(), Wish("b", RECOVERY)) == ""


@pytest.mark.parametrize("phase", [restore.DONE, restore.REVERTED])
def test_a_cluster_that_is_declared_to_be_restored_is_never_founded_because_of_its_namesake(
    phase: str,
) -> None:
    state, raw = {**begun(), "phase": phase}, to_mapping(cluster())
    raw["spec"]["bootstrap"] = {"recovery": RECOVERY}
    declared, problems = validate(raw, PostgresCluster)
    assert declared is not None, problems
    assert is_due(state, declared, has_data=False)
    assert standing(state, declared) == {}
    assert not is_due(state, declared, has_data=False, lived=True)
    assert not is_due(state, declared, has_data=True)


def test_a_restore_that_is_called_off_goes_back_whoever_hears_of_it(lab: Lab) -> None:
    wish(lab)
    lab.stop()
    restored(lab, Unavailable("the repository is silent"))
    assert lab.state()["phase"] == "copying"
    assert restoring.state(lab.platform, cluster()) is not None
    lab.annotate("")
    restored(lab, KeyError("it does not go on"))
    assert (lab.state()["phase"], lab.state()["error"]) == (restore.REVERTED, epochs.CALLED_OFF)
    assert lab.platform.settled_epoch("shop") == 0


def test_where_nobody_can_tell_which_volumes_are_its_own_nothing_starts(lab: Lab) -> None:
    lab.claim(1)
    with pytest.raises(PgherdError, match=r"ConfigMap shop\.recovery is gone"):
        lab.platform.members("shop")
    wish(lab)  # it was the one that was fulfilled then, perhaps
    with pytest.raises(PgherdError, match=r"ConfigMap shop\.recovery is gone"):
        lab.platform.start_member(cluster(), Member("shop", 0, 0), {})
    assert lab.workshop.read_state() is None
    lab.kube.put(
        STATE,
        {"kind": "ConfigMap", "metadata": {"labels": names.labels("shop")}, "data": {"state.json": "{"}},
    )
    with pytest.raises(PgherdError, match=r"ConfigMap shop\.recovery is damaged"):
        lab.platform.members("shop")


def test_a_deletion_keeps_what_says_which_volumes_are_in_force_and_a_purge_removes_them_all(lab: Lab) -> None:
    wish(lab)
    lab.stop()
    state = lab.workshop.read_state() or {}
    lab.claim(1)
    lab.workshop.write_state({**state, "phase": restore.DONE})
    lab.platform.forget("shop", purge=False)
    assert lab.claims() == ["data-shop-coordinator-0", "data1-shop-coordinator-0"]
    assert lab.state()["epoch"] == 1
    lab.platform.forget("shop", purge=True)
    assert lab.claims() == []
    assert STATE not in lab.kube.objects


def test_no_volume_of_a_restore_is_claimed_once_that_has_ended(lab: Lab) -> None:
    wish(lab)
    state = lab.workshop.read_state() or {}
    lab.workshop.write_state({**state, "phase": restore.DONE})
    with pytest.raises(PgherdError, match="is not being made from a backup"):
        lab.workshop.machine(Member("shop", 0, 0))
    assert lab.claims() == ["data-shop-coordinator-0"]


# what is told


@pytest.mark.parametrize(
    ("told", "reason", "words"),
    [
        (
            {"kept": ["data-shop-coordinator-0"]},
            "Unconfirmed",
            "(data-shop-coordinator-0): 'pgherd restore shop --confirm'",
        ),
        ({"error": "it is damaged"}, "TakenBack", "the restore failed: it is damaged"),
        ({"refused": "it is not confirmed"}, "Refused", "it is not confirmed"),
    ],
)
def test_how_it_ended_is_a_condition(told: dict[str, Any], reason: str, words: str) -> None:
    seen: Any = SimpleNamespace(restore=told, declaration=SimpleNamespace(cluster=cluster()))
    [(kind, holds, why, text)] = status._restore_condition(seen)
    assert (kind, holds, why) == ("RestoredInPlace", reason == "Unconfirmed", reason)
    assert words in text


def test_that_it_was_taken_back_is_told_once_for_each_restore() -> None:
    told = {"id": "a", "phase": "reverted", "error": "it is damaged"}
    seen: Any = SimpleNamespace(restore=told)
    [(text, failed)] = status._taken_back(seen, None)
    assert failed
    assert "it is damaged" in text
    assert status._taken_back(seen, {"restore": told}) == []
    assert status._taken_back(seen, {"restore": {**told, "id": "b"}})
    assert status._taken_back(SimpleNamespace(restore=None), None) == []  # type: ignore[arg-type]
