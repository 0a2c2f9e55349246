"""Repairs on Kubernetes: which volumes are a group's own, whatever is asked for and wherever it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pgherd.backup import repair, restoring
from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.model.spec import to_mapping
from pgherd.model.topology import Member
from pgherd.platform.base import CALLED_OFF
from pgherd.platform.bench import Ending
from pgherd.platform.kubernetes import endings, epochs, names, rebuilt, stands, views
from pgherd.platform.kubernetes.bench import PodBench
from pgherd.platform.kubernetes.cache import Direct
from pgherd.platform.kubernetes.epochs import Own
from pgherd.platform.kubernetes.machines import PodMachine
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform
from pgherd.platform.kubernetes.rebuilt import Record, Wish
from pgherd.reconcile import fulfilment
from tests.support.kube_api import Kube, kube_api
from tests.unit.test_kubernetes_backups import DECLARED
from tests.unit.test_kubernetes_epochs import APPS, CORE, RECOVERY, RUNNING, SHOP, STATE, UID
from tests.unit.test_kubernetes_objects import cluster, objects

KEY = names.repair_annotation(1)
DECLARATION = cluster(backup=DECLARED)


def state(identity: str = "a", phase: str = "copying", **more: Any) -> dict[str, Any]:
    return {"id": identity, "phase": phase, **more}


def begun(identity: str = "a", number: int = 1, before: Record | None = None) -> Record:
    return (before or Record()).begun(Wish(identity), number, state(identity))


# what follows from what


def test_a_repair_makes_an_epoch_and_keeps_the_one_before() -> None:
    record = begun()
    assert (record.own, record.made, record.kept) == (None, 1, None)
    assert rebuilt.own({0: {1: record}}, 0) == Own(0), "until it is whole the group has what it had"
    placed = record.placed(0)
    assert (placed.own, placed.made, placed.kept) == (1, None, 0)
    assert placed.placed(0) == placed
    own = rebuilt.own({0: {1: placed}}, 0)
    assert (own.of(0), own.of(1), own.of(2)) == (0, 1, 0)
    done = placed.told(state(phase="done"), accept=False)
    assert done.to_go(0) == []
    after = done.forgotten()
    assert (after.own, after.kept, after.id, after.state) == (1, None, None, None)
    assert after.to_go(0) == [0]
    gone = after.removed([0])
    assert (gone.to_go(0), gone.numbers) == ([], {0, 1})
    again = begun("b", 2, gone).placed(0)
    assert (again.own, again.kept) == (2, 1)


def test_what_fails_or_is_called_off_leaves_what_was_there() -> None:
    for record in (begun().told(state(phase="failed"), accept=False), begun().forgotten()):
        assert (record.own, record.made, record.to_go(0)) == (None, None, [1])
    again = begun("b", 2, begun())
    assert (again.made, again.to_go(0)) == (2, [1]), "nobody goes on with what another one has made"


def test_volumes_that_are_needed_are_never_to_go() -> None:
    record = Record(own=3, made=5, kept=2, spent=(0, 2, 3, 4, 5))
    assert record.to_go(0) == [0, 4]
    assert Record(spent=(0, 1)).to_go(0) == [1]


def test_repairs_count_for_the_epoch_in_which_they_were_made() -> None:
    placed = begun().placed(0)
    records = rebuilt.with_record({0: {1: placed}}, 2, 1, begun("b", 3))
    assert rebuilt.own(records, 2) == Own(2)
    assert rebuilt.own(records, 0).of(1) == 1, "if the restore is taken back"
    assert rebuilt.numbers(records) == {0, 1, 3}
    assert rebuilt.of_epoch(records, 0, 1) == {0, 1}
    assert rebuilt.of_epoch(records, 0, 2) == {0}
    assert rebuilt.without(records, [2], 0) == {0: {1: Record(**{**vars(placed), "used": ("b",)})}}
    assert rebuilt.without(records, [7], 0) == records


def test_which_repairs_there_were_is_remembered_whatever_is_forgotten_of_them() -> None:
    records = {0: {1: begun("b", 2, begun()).placed(0), 2: Record(spent=(1,))}, 2: {1: begun("c", 3)}}
    assert rebuilt.ids(records, 1) == {"a", "b", "c"}
    left = rebuilt.without(records, [0], 2)
    assert rebuilt.ids(left, 1) == {"a", "b", "c"}
    assert rebuilt.ids(left, 2) == set()
    assert list(left) == [2]
    assert left[2][1].made == 3
    assert rebuilt.ids({0: {1: begun().forgotten()}}, 1) == {"a"}
    record = Record()
    for number in range(2 * rebuilt.REMEMBERED):
        record = begun(str(number), number, record)
    assert len(record.forgotten().used) == rebuilt.REMEMBERED


def test_what_is_written_is_read() -> None:
    records = {0: {1: begun().placed(0), 2: Record(spent=(4,), past=(5,))}, 7: {0: begun("b", 9)}}
    assert rebuilt.records_from(json.loads(json.dumps(rebuilt.as_json(records)))) == records
    assert rebuilt.records_from(None) == {}
    damaged: list[Any] = [[], {"0": []}, {"0": {"1": {"whose": 1}}}, {"a": {}}]
    for each in damaged:
        with pytest.raises(ValueError, match=r"attribute|argument|literal"):
            rebuilt.records_from(each)


def test_a_group_halts_only_while_other_volumes_take_the_place_of_its_own() -> None:
    for phase in ("requested", "copying", "replaying", "settling", "joining", "done", "failed", repair.DOUBT):
        assert rebuilt.halted({0: {1: Record(state=state(phase=phase))}}, 0) == set()
    records = {0: {1: Record(state=state(phase="placing"))}}
    assert rebuilt.halted(records, 0) == {1}
    assert rebuilt.halted(records, 1) == set()


def annotated(text: str, uid: str = UID) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "annotations": {KEY: text}}}


def test_a_wish_is_read_as_it_was_written() -> None:
    for wish in (Wish("a"), Wish("a", accept=True), Wish("a", confirmed=True)):
        assert rebuilt.wish_of(annotated(wish.as_text(UID)), 1) == wish
    assert rebuilt.wish_of(annotated(Wish("a").as_text("another")), 1) is None
    assert rebuilt.wish_of(annotated(Wish("a").as_text(UID)), 2) is None
    assert rebuilt.wish_of(None, 1) is None
    for text in ("{", "[]", "7", '{"accept": true}', '{"id": 7}', '{"id": ""}'):
        found = rebuilt.wish_of(annotated(text), 1)
        assert found is not None
        assert found.problem
        assert rebuilt.wanted(Record(), found, found.problem) is None
    others = {"metadata": {"annotations": {KEY: "{", f"{names.REPAIR_ANNOTATION}everything": "{", "a": "b"}}}
    assert rebuilt.asked_groups(others) == {1}


def test_what_nobody_asks_for_any_more_is_called_off_until_it_is_in_force() -> None:
    record = begun()
    assert rebuilt.wanted(record, Wish("a")) == {"id": "a", "accept": False}
    assert rebuilt.wanted(record, None) == {"id": "a", "accept": False, CALLED_OFF: True}
    assert rebuilt.wanted(record, Wish("b")) == {"id": "b", "accept": False}, "another one takes its place"
    assert rebuilt.wanted(record, Wish("a", confirmed=True)) == {"id": "a", "accept": False}
    assert rebuilt.wanted(record.placed(0), None) == {"id": "a", "accept": False}
    failed = record.told(state(phase="failed"), accept=False)
    assert rebuilt.wanted(failed, None) == {"id": "a", "accept": False}
    assert rebuilt.wanted(Record(), None) is None
    assert repair.is_due(rebuilt.wanted(record, None), record.state)
    assert not repair.is_due(rebuilt.wanted(failed, Wish("a")), failed.state)
    assert repair.is_due(rebuilt.wanted(failed, Wish("b")), failed.state)


def test_a_loss_once_accepted_stays_so() -> None:
    record = begun().told(state(), accept=True)
    assert (rebuilt.wanted(record, Wish("a")) or {})["accept"]
    assert not (rebuilt.wanted(record, Wish("b")) or {})["accept"]


def test_what_can_not_be_done_is_refused() -> None:
    def refused(record: Record, wish: Wish | None, obstacle: str = "", kept: tuple[str, ...] = ()) -> str:
        return rebuilt.refused("shop", 1, record, wish, obstacle=obstacle, kept=kept)

    assert refused(Record(), Wish("b")) == ""
    assert refused(Record(), Wish("b"), "it has no backups") == "it has no backups"
    assert "is being rebuilt already" in refused(begun().placed(0), Wish("b"))
    assert refused(begun(), Wish("b")) == ""
    done = begun().placed(0).told(state(phase="done"), accept=False)
    assert refused(done, Wish("b")) == "", "nothing is there to be kept"
    assert "'pgherd repair shop --group segment-1 --confirm' removes it" in refused(
        done, Wish("b"), kept=("data-shop-segment-1-0",)
    )
    for wish in (None, Wish("a"), Wish("b", confirmed=True)):
        assert refused(done, wish, "whatever", ("data-shop-segment-1-0",)) == ""


def test_a_rebuilt_group_keeps_its_place_in_the_store() -> None:
    made = objects(DECLARATION, volumes=3)
    spec = made["StatefulSet"]["spec"]
    assert [each["metadata"]["name"] for each in spec["volumeClaimTemplates"]] == ["data3"]
    mounts = [each["name"] for each in spec["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert "data3" in mounts
    assert spec["template"]["metadata"]["labels"][names.SCOPE_LABEL] == "shop-segment-1"


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("refused", "it is not"),
        ("failed", "nothing was changed: it is damaged"),
        ("in doubt", "--accept-data-loss'"),
    ],
)
def test_whoever_waits_is_told_what_became_of_it(phase: str, error: str) -> None:
    now = {"phase": phase, "reason": "it is not" if phase == "refused" else "it is damaged"}
    with pytest.raises(PgherdError, match=error):
        fulfilment.repaired("shop", "segment-1", now)
    assert fulfilment.repaired("shop", "segment-1", {"phase": "done"}) == {"phase": "done"}
    with pytest.raises(PgherdError, match="what it was before is kept in data-1: it is damaged"):
        fulfilment.repaired(
            "shop", "segment-1", {"phase": "failed", "kept": "data-1", "error": "it is damaged"}
        )


# the platform


class Lab:
    """A cluster of which one segment has lost what was on its volumes, and whoever looks after it."""

    def __init__(self, kube: Kube, api: Any) -> None:
        self.kube, self.api = kube, api
        self.annotate({})
        self.platform = KubernetesPlatform(api, "prod", defaults=Defaults())
        self.platform.start_member(DECLARATION, Member("shop", 1, 0), {})
        self.claim(0, 0)
        self.claim(1, 0)
        self.pod("shop-segment-1-0", names.labels("shop", 1))

    def annotate(self, annotations: dict[str, str]) -> None:
        metadata = {"uid": UID, "annotations": annotations}
        self.kube.put(SHOP, {**to_mapping(DECLARATION), "metadata": metadata})

    def ask(self, identity: str = "a", **options: Any) -> None:
        self.annotate({KEY: Wish(identity, **options).as_text(UID)})

    def claim(self, group: int, epoch: int, **status: str) -> None:
        claim = {
            "metadata": {"labels": names.labels("shop", group)},
            "spec": {"resources": {"requests": {"storage": "100Gi"}}},
            "status": status,
        }
        name = names.volume_claim(Member("shop", group, 0), epoch)
        self.kube.put(f"{CORE}/persistentvolumeclaims/{name}", claim)

    def pod(self, name: str, labels: dict[str, str]) -> None:
        found = self.kube.objects.get(f"{CORE}/pods/{name}", {})
        metadata = {
            **found.get("metadata", {}),
            "labels": {**labels, **found.get("metadata", {}).get("labels", {})},
        }
        self.kube.put(f"{CORE}/pods/{name}", {**RUNNING, "kind": "Pod", "metadata": metadata})

    def claims(self) -> list[str]:
        return self._names("persistentvolumeclaims")

    def pods(self) -> list[str]:
        return self._names("pods")

    def _names(self, kind: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.kube.objects if f"/{kind}/" in path)

    @property
    def bench(self) -> PodBench:
        return self.platform.bench("shop", 1)

    def record(self) -> Record:
        raw = json.loads(self.kube.objects[STATE]["data"]["repairs.json"])
        return rebuilt.records_from(raw)[epochs.FIRST][1]

    def begin(self, identity: str = "a", **options: bool) -> None:
        self.ask(identity, **options)
        self.bench.write("state", state(identity))

    def make(self) -> None:
        """Its pod, and that runs."""
        with pytest.raises(Unavailable, match="does not run yet"):
            self.bench.machine()
        name = f"shop-segment-1-0-restore{self.record().made}"
        self.pod(name, {})
        self.bench.machine()

    def place(self) -> None:
        self.bench.write("state", state(phase="placing"))
        self.platform.stop_member(Member("shop", 1, 0))
        self.bench.set_aside()
        self.bench.place(lambda machine, data: None)

    def align(self) -> None:
        for _ in range(3):
            self.platform.align(DECLARATION, {0: {}, 1: {}})


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(stands, "START_SECONDS", 1.5)

    def shell(self: PodMachine, script: str, *arguments: str) -> bytes:
        return b""

    monkeypatch.setattr(PodMachine, "shell", shell)
    with kube_api() as (kube, api):
        yield Lab(kube, api)


def test_to_look_changes_nothing(lab: Lab) -> None:
    assert lab.platform.benches("shop") == {}
    lab.ask()
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["id"], told["phase"], told["due"]) == ("a", "requested", True)
    assert STATE not in lab.kube.objects


def test_a_group_is_put_together_beside_what_it_has(lab: Lab) -> None:
    lab.begin()
    lab.make()
    assert lab.claims() == ["data-shop-coordinator-0", "data-shop-segment-1-0", "data1-shop-segment-1-0"]
    assert "shop-segment-1-0-restore1" in lab.pods()
    assert lab.platform.settled("shop", asked=True) == Own(0)
    lab.align()
    assert "shop-segment-1-0" in lab.pods(), "nobody is stopped before what takes his place is whole"
    assert len(lab.claims()) == 3


@pytest.mark.parametrize(("steps", "is_made_anew"), [(["copied"], True), (["copied", "judged"], False)])
def test_a_pod_without_the_volume_of_the_backups_is_made_anew_while_they_are_read(
    lab: Lab, steps: list[str], is_made_anew: bool
) -> None:
    lab.begin()
    lab.make()
    lab.bench.write("state", {**state(), "steps": steps})
    found = lab.kube.objects[SHOP]
    backup = {"method": "pgbackrest", "repository": {"volume": {"claimName": "backups"}}}
    metadata = {**found["metadata"], "generation": 7}
    lab.kube.put(SHOP, {**found, "metadata": metadata, "spec": {**found["spec"], "backup": backup}})
    if not is_made_anew:
        assert lab.bench.machine()
        return
    with pytest.raises(Unavailable, match="there is no PersistentVolumeClaim backups"):
        lab.bench.machine()
    assert lab.pods() == ["shop-segment-1-0"]


def test_what_is_rebuilt_is_in_force_by_one_write_and_confirming_removes_what_was_before(lab: Lab) -> None:
    store = f"{CORE}/configmaps/shop-segment-1-leader"
    lab.kube.put(store, {"kind": "ConfigMap", "metadata": {"annotations": {"optime": "77"}}})
    lab.begin()
    lab.make()
    assert lab.bench.last_words().store_lsn == 77
    lab.bench.write("state", state(phase="placing"))
    [view] = [each for each in lab.platform.members("shop").values() if each.member.group == 1]
    assert view.running
    with pytest.raises(Unavailable, match="has not ended yet"):
        lab.bench.set_aside()
    with pytest.raises(Unavailable, match="its group is being rebuilt"):
        lab.platform.start_member(DECLARATION, Member("shop", 1, 0), {})
    lab.platform.stop_member(Member("shop", 1, 0))
    lab.align()
    assert f"{APPS}/statefulsets/shop-segment-1" not in lab.kube.objects, "nobody brings it back meanwhile"
    lab.place()
    assert store not in lab.kube.objects
    assert "shop-segment-1-0-restore1" not in lab.pods()
    assert (lab.record().own, lab.record().kept, lab.record().in_force) == (1, 0, True)
    kept = lab.kube.objects[f"{CORE}/persistentvolumeclaims/data-shop-segment-1-0"]
    assert kept["metadata"]["labels"][names.KEPT_LABEL] == "true"
    lab.place()  # whoever was killed right after it does it again
    lab.bench.write("state", state(phase="joining"))
    lab.platform.start_member(DECLARATION, Member("shop", 1, 0), {})
    made_of = lab.kube.objects[f"{APPS}/statefulsets/shop-segment-1"]["spec"]
    assert made_of["volumeClaimTemplates"][0]["metadata"]["name"] == "data1"
    lab.bench.write("state", state(phase="done"))
    lab.align()
    assert lab.bench.kept == "data-shop-segment-1-0"
    lab.ask(confirmed=True)
    lab.align()
    assert lab.claims() == ["data-shop-coordinator-0", "data1-shop-segment-1-0"]
    assert lab.platform.settled("shop", asked=True).of(1) == 1
    assert KEY not in lab.kube.objects[SHOP]["metadata"].get("annotations", {})
    assert restoring.repairs(lab.platform, "shop") == {}
    lab.begin("b")
    assert lab.record().made == 2


def test_a_repair_that_is_in_force_goes_on_whatever_else_is_asked_for(lab: Lab) -> None:
    lab.begin(accept=True)
    lab.make()
    lab.place()  # and whoever did that was killed
    lab.ask("b", accept=True)
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["id"], told["phase"], told["due"], told["accepted"]) == ("a", "placing", True, True)
    assert told["refused"]["id"] == "b"
    assert "is being rebuilt already" in told["refused"]["reason"]
    assert not lab.bench.unwanted
    assert lab.platform.own("shop", None)[1] == {1}
    lab.bench.write("state", state(phase="done"))
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["id"], told["phase"], told["due"], told["kept"]) == (
        "a",
        "done",
        False,
        "data-shop-segment-1-0",
    )
    assert "--confirm' removes it" in told["refused"]["reason"]
    lab.ask(confirmed=True)
    lab.align()
    assert restoring.repairs(lab.platform, "shop") == {}


def test_what_is_called_off_leaves_nothing_behind(lab: Lab) -> None:
    lab.begin()
    lab.make()
    lab.annotate({})
    assert lab.bench.unwanted
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert told["due"]
    site: Any = type("Site", (), {"name": "shop", "title": "segment-1", "bench": lab.bench, "stopping": bool})
    repair.Repair(site).run()
    lab.align()
    assert lab.claims() == ["data-shop-coordinator-0", "data-shop-segment-1-0"]
    assert lab.pods() == ["shop-segment-1-0"]
    assert restoring.repairs(lab.platform, "shop") == {}
    assert lab.platform.members("shop")


@pytest.mark.parametrize("end", ["failed", "done", "called off"])
def test_the_keys_of_the_repository_go_with_the_last_repair(lab: Lab, end: str) -> None:
    secret = f"{CORE}/secrets/{names.recovery_secret('shop')}"
    both = {names.repair_annotation(group): Wish("a").as_text(UID) for group in (1, 2)}
    lab.annotate(both)
    other = lab.platform.bench("shop", 2)
    lab.bench.write("state", state())
    lab.make()
    other.write("state", state())
    other.machines().equip({"pgbackrest.conf": "x"})
    lab.bench.rest()
    assert lab.pods() == ["shop-segment-1-0"]
    assert secret in lab.kube.objects, "the other group's pod is about to be made"
    if end == "called off":
        lab.annotate({})
        for bench in (lab.bench, other):
            bench.clear()
    else:
        lab.bench.write("state", state(phase=end))
        lab.align()
        assert secret in lab.kube.objects
        other.write("state", state(phase=end))
    lab.align()
    assert secret not in lab.kube.objects


def test_a_repair_that_waits_for_somebody_has_no_keys(lab: Lab) -> None:
    secret = f"{CORE}/secrets/{names.recovery_secret('shop')}"
    lab.begin()
    lab.make()
    lab.bench.machines().equip({"pgbackrest.conf": "x"})
    lab.platform.workshop("shop").tidy()
    lab.bench.tidy()
    assert secret in lab.kube.objects
    lab.bench.rest()
    assert secret not in lab.kube.objects
    lab.bench.write("state", state(phase=repair.DOUBT))
    other = lab.platform.bench("shop", 2)
    other.machines().equip({"pgbackrest.conf": "x"})
    other.tidy()
    assert secret not in lab.kube.objects, "whoever waits does not keep them"


def test_what_was_given_up_makes_no_volume_any_more(lab: Lab) -> None:
    lab.begin()
    late = lab.bench
    record = late._record()
    lab.bench.drop()
    late._record = lambda *, asked=False: lab.record() if asked else record  # type: ignore[method-assign]
    with pytest.raises(Cancelled, match="was given up"):
        late.machine()
    assert lab.claims() == ["data-shop-coordinator-0", "data-shop-segment-1-0"]


def test_a_pod_on_a_dead_node_that_holds_a_repair_up_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.begin()
    assert lab.bench.lingering == "shop-segment-1-0 has not ended yet"
    monkeypatch.setattr(lab.platform._nodes, "silent", lambda nodes: dict.fromkeys(nodes, 99.0))
    pod = lab.kube.objects[f"{CORE}/pods/shop-segment-1-0"]
    lab.kube.put(f"{CORE}/pods/shop-segment-1-0", {**pod, "spec": {"nodeName": "a"}, "status": {}})
    assert lab.bench.lingering == (
        "shop-segment-1-0 has not ended yet: its node a does not report; delete the node or declare fencing"
    )
    lab.platform.stop_member(Member("shop", 1, 0))
    assert lab.bench.lingering == ""


def test_a_group_is_rebuilt_anew_on_other_volumes(lab: Lab) -> None:
    lab.begin()
    lab.make()
    lab.bench.write("state", state(phase=repair.DOUBT))
    lab.begin("b")
    assert lab.record().made == 2
    lab.align()
    assert lab.claims() == ["data-shop-coordinator-0", "data-shop-segment-1-0"]
    lab.make()
    assert "data2-shop-segment-1-0" in lab.claims()


def test_what_is_left_of_the_data_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.begin()
    words = lab.bench.last_words()
    assert words.endings == {"shop-segment-1-0": None, "shop-segment-1-1": None}
    assert (words.data, words.store_lsn) == ([], None)
    monkeypatch.setattr(PodMachine, "shell", lambda *arguments: b"PG_VERSION\n")
    assert lab.bench.last_words().data == ["data-shop-segment-1-0"]
    lab.platform.stop_member(Member("shop", 1, 0))
    assert lab.bench.last_words().data == ["data-shop-segment-1-0"], "nobody can look"
    lab.claim(1, 0, phase="Pending")
    assert lab.bench.last_words().data == [], "there never was a volume"


def test_a_group_that_the_cluster_does_not_have_is_not_rebuilt(lab: Lab) -> None:
    wish = {names.repair_annotation(9): Wish("a", accept=True).as_text(UID)}
    lab.annotate(wish)
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["phase"], told["due"], told["error"]) == (repair.REFUSED, False, "shop has no segment-9")
    assert not lab.platform.bench("shop", 9).busy
    for admitted, has in ([1, 2], False), ([1, 2, 9], True):
        found = lab.kube.objects[SHOP]
        lab.kube.put(SHOP, {**found, "status": {"admitted": admitted, "conditions": [], "phase": "Running"}})
        assert lab.platform.counts_on("shop", 9) is has
        [told] = restoring.repairs(lab.platform, "shop").values()
        assert told["due"] is has, "one that is being shrunk away has data until it is"
    assert lab.platform.counts_on("shop", 1)


def restoring_now(lab: Lab) -> dict[str, Any]:
    """The restore in place that is asked for, whose point somebody has found."""
    workshop = lab.platform.workshop("shop")
    pending = workshop.pending
    assert pending is not None
    assert workshop.decide(pending)
    return workshop.read_state() or {}


def test_a_restore_in_place_and_a_repair_exclude_each_other(lab: Lab) -> None:
    restore = epochs.Wish("r", RECOVERY).as_text(UID)
    lab.begin()
    lab.annotate({KEY: Wish("a").as_text(UID), names.RESTORE_ANNOTATION: restore})
    assert lab.platform.workshop("shop").read_state() is None
    assert lab.platform.workshop("shop").pending is None
    assert "segment-1 of shop is being rebuilt" in lab.platform.workshop("shop").refused
    requested = {"phase": "copying", "inPlace": True, "id": "r", "epoch": 2, "kept": 0}
    with pytest.raises(Cancelled, match="a group of shop is being rebuilt"):
        lab.platform.workshop("shop").write_state(requested)
    lab.bench.write("state", state(phase="failed"))
    found = restoring_now(lab)
    assert found["epoch"] == 2, "volumes of repairs are not taken for those of a restore"
    lab.platform.workshop("shop").write_state({**found, "phase": "copying"})
    lab.annotate({KEY: Wish("b").as_text(UID), names.RESTORE_ANNOTATION: restore})
    assert "is being restored in place" in lab.platform.bench("shop", 1).refused


def test_a_restore_in_place_makes_all_anew_and_its_end_takes_repaired_volumes_along(lab: Lab) -> None:
    lab.begin()
    lab.make()
    lab.place()
    lab.bench.write("state", state(phase="done"))
    lab.annotate(
        {KEY: Wish("a").as_text(UID), names.RESTORE_ANNOTATION: epochs.Wish("r", RECOVERY).as_text(UID)}
    )
    workshop = lab.platform.workshop("shop")
    known = restoring_now(lab)
    assert (known["epoch"], known["kept"]) == (2, 0)
    workshop.set_aside()
    assert names.KEPT_LABEL in _labels(lab, "data1-shop-segment-1-0")
    lab.claim(0, 2)
    lab.claim(1, 2)
    back = {**known, "phase": "reverted"}
    workshop.write_state(back)
    assert lab.platform.settled("shop", asked=True) == Own(0, {1: 1}), "what was repaired is there again"
    workshop.write_state({**known, "phase": "done"})
    assert lab.platform.settled("shop", asked=True) == Own(2)
    assert set(workshop.kept) == {"data-shop-coordinator-0", "data1-shop-segment-1-0"}
    lab.annotate({names.RESTORE_ANNOTATION: epochs.Wish("r", confirmed=True).as_text(UID)})
    lab.align()
    assert lab.claims() == ["data2-shop-coordinator-0", "data2-shop-segment-1-0"]
    left = rebuilt.records_from(json.loads(lab.kube.objects[STATE]["data"]["repairs.json"]))
    assert left == {2: {1: Record(used=("a",))}}, "only which repairs there were"


@pytest.mark.parametrize("phase", ["done", "failed"])
def test_a_repair_that_has_ended_does_not_begin_again_after_a_restore_in_place(lab: Lab, phase: str) -> None:
    lab.begin(accept=True)
    lab.make()
    if phase == "done":
        lab.place()
    lab.bench.write("state", state(phase=phase))
    wish = {KEY: Wish("a", accept=True).as_text(UID)}
    restore = {names.RESTORE_ANNOTATION: epochs.Wish("r", RECOVERY).as_text(UID)}
    lab.annotate({**wish, **restore})
    workshop = lab.platform.workshop("shop")
    known = restoring_now(lab)
    workshop.write_state({**known, "phase": "copying"})
    lab.platform.stop_member(Member("shop", 1, 0))
    workshop.set_aside()
    lab.claim(0, 2)
    lab.claim(1, 2)
    workshop.write_state({**known, "phase": "done"})

    def is_at_rest() -> None:
        [told] = restoring.repairs(lab.platform, "shop").values()
        assert (told["phase"], told["due"]) == (repair.REFUSED, False)
        assert "there was a repair a of segment-1" in told["error"]
        assert not lab.bench.busy
        assert not lab.bench.unwanted
        with pytest.raises(Cancelled, match="has begun before"):
            lab.bench.write("state", state())

    is_at_rest()
    lab.annotate({**wish, names.RESTORE_ANNOTATION: epochs.Wish("r", confirmed=True).as_text(UID)})
    lab.align()
    lab.align()
    assert lab.claims() == ["data2-shop-coordinator-0", "data2-shop-segment-1-0"]
    is_at_rest()  # somebody's file brings the annotation back again and again
    lab.ask("b")
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["id"], told["due"]) == ("b", True)


@pytest.mark.parametrize("phase", ["done", "failed"])
def test_what_was_asked_for_is_withdrawn_with_its_end(lab: Lab, phase: str) -> None:
    lab.begin()
    lab.align()
    assert _asked(lab) is not None
    lab.bench.write("state", state(phase=phase))
    lab.platform._remove_discarded("shop")
    assert _asked(lab) is None
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["id"], told["phase"], told["due"]) == ("a", phase, False)
    lab.ask(confirmed=True)
    lab.platform.withdraw_repair("shop", 1, Wish("a"))
    assert _asked(lab) is not None, "somebody confirms it just now"
    lab.align()
    assert _asked(lab) is None
    lab.ask()
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["phase"], told["due"]) == (repair.REFUSED, False)


def _asked(lab: Lab) -> Wish | None:
    return rebuilt.wish_of(lab.kube.objects[SHOP], 1)


def _labels(lab: Lab, claim: str) -> dict[str, str]:
    return dict(lab.kube.objects[f"{CORE}/persistentvolumeclaims/{claim}"]["metadata"]["labels"])


def test_without_what_says_which_volumes_are_its_own_nothing_starts(lab: Lab) -> None:
    lab.begin()
    lab.make()
    lab.place()
    lab.kube.remove(STATE)
    with pytest.raises(PgherdError, match=r"ConfigMap shop\.recovery is gone"):
        lab.platform.members("shop")


def test_a_wish_that_makes_no_sense_is_told_and_changes_nothing(lab: Lab) -> None:
    lab.annotate({KEY: "soon"})
    [told] = restoring.repairs(lab.platform, "shop").values()
    assert (told["phase"], told["due"]) == (repair.REFUSED, False)
    assert "it is not {" in told["error"]
    lab.align()
    assert STATE not in lab.kube.objects


def test_two_groups_that_begin_at_once_know_of_each_other(lab: Lab) -> None:
    both = {names.repair_annotation(group): Wish("a").as_text(UID) for group in (1, 2)}
    lab.annotate(both)
    for group in (1, 2):
        lab.platform.bench("shop", group).write("state", state())
    records = rebuilt.records_from(json.loads(lab.kube.objects[STATE]["data"]["repairs.json"]))[0]
    assert {group: record.made for group, record in records.items()} == {1: 1, 2: 2}


def test_a_deletion_keeps_what_says_which_volumes_are_in_force(lab: Lab) -> None:
    lab.begin()
    lab.make()
    lab.place()
    lab.bench.write("state", state(phase="done"))
    lab.platform.forget("shop", purge=False)
    assert lab.record().own == 1
    lab.platform.forget("shop", purge=True)
    assert STATE not in lab.kube.objects
    assert lab.claims() == []


def test_the_data_of_a_repair_have_a_name_that_no_member_starts_on(lab: Lab) -> None:
    assert lab.bench.data == Path("/var/lib/postgresql/from-backup")


# how servers ended


CONTROL = """\
how its server ended:
Database cluster state:               shut down
Latest checkpoint location:           0/5000028
Latest checkpoint's TimeLineID:       3
"""


def ended(said: str, **metadata: Any) -> dict[str, Any]:
    status = {"name": "postgres", "state": {"terminated": {"message": said}}}
    return {
        "metadata": {"name": "shop-segment-1-0", "deletionTimestamp": "now", **metadata},
        "status": {"containerStatuses": [status]},
    }


def test_a_container_that_was_told_to_end_says_where_its_log_ended() -> None:
    assert endings.of_pod(ended(CONTROL)) == Ending(True, 3, 0x5000028)
    standby = CONTROL.replace("shut down", "shut down in recovery")
    assert endings.of_pod(ended(standby)) == Ending(False, 3, 0x5000028)
    for nothing in (
        ended(CONTROL.replace("shut down", "in production")),
        ended(CONTROL.replace("0/5000028", "nowhere")),
        ended("how its server ended:"),
        ended("Error"),
        ended(""),
        {"metadata": {"deletionTimestamp": "now"}},
    ):
        assert endings.of_pod(nothing) is None
    alive = ended(CONTROL)
    del alive["metadata"]["deletionTimestamp"]
    assert endings.of_pod(alive) is None, "it may be started again"
    assert views.why_not(ended(CONTROL)) == "", "that is no complaint"
    assert views.why_not(ended("no such disk")) == "no such disk"


def test_what_was_written_of_endings_is_read() -> None:
    known = {1: {"shop-segment-1-0": Ending(True, 3, 7)}, 2: {}}
    assert endings.read(endings.config_map("shop", known)) == {1: known[1]}
    for nonsense in (
        None,
        {},
        {"data": {"endings.json": "{"}},
        {"data": {"endings.json": '{"1": {"a": {}}}'}},
    ):
        assert endings.read(nonsense) == {}


class Watching(Direct):
    """Who saw pods go."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def last_of(self, namespace: str, cluster: str) -> list[dict[str, Any]]:
        return self.seen


def test_how_servers_ended_is_known_until_one_may_be_started(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watching, "seen", [ended(CONTROL)])
    platform = KubernetesPlatform(lab.api, "prod", Watching(lab.api), Defaults())
    with pytest.raises(Unavailable, match="may not have ended yet"):
        platform.has_stopped("shop")
    assert platform.endings("shop", 1) == {}, "one runs"
    platform.stop_member(Member("shop", 1, 0))
    platform.has_stopped("shop")
    assert platform.endings("shop", 1) == {"shop-segment-1-0": Ending(True, 3, 0x5000028)}
    lab.begin()
    words = platform.bench("shop", 1).last_words()
    assert words.endings == {"shop-segment-1-0": Ending(True, 3, 0x5000028), "shop-segment-1-1": None}
    platform.start_member(DECLARATION, Member("shop", 1, 0), {})
    assert platform.endings("shop", 1) == {}
    with pytest.raises(Unavailable, match="may not have ended yet"):
        platform.has_stopped("shop")
    assert platform.endings("shop", 1) == {}
