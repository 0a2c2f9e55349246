"""Asking for a repair where clusters run in Kubernetes: what follows from the cluster's own resource."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.errors import BadInput, PgherdError
from pgherd.model.spec import to_mapping
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.rebuilt import Wish
from pgherd.remote import objects, repairs
from tests.unit.test_kubernetes_objects import cluster

GROUP = "segment-1"
UID = "u"


def resource(wish: Wish | None = None, *members: dict[str, str], **told: Any) -> dict[str, Any]:
    text = {names.repair_annotation(1): wish.as_text(UID)} if wish is not None else {}
    entry = {"group": GROUP, "id": "a", "phase": "copying", "due": True, "accepted": False, "kept": None}
    return {
        **to_mapping(cluster()),
        "metadata": {"name": "shop", "uid": UID, "annotations": text},
        "status": {
            "groups": [{"name": GROUP, "id": 1, "members": list(members)}],
            "repairs": [{**entry, **told}] if told else [],
        },
    }


def asked(found: dict[str, Any], *, accept: bool = False) -> Wish:
    return repairs._asked("shop", GROUP, found, accept=accept)


def test_the_same_repair_goes_on_as_long_as_it_is_open() -> None:
    first = asked(resource())
    assert first.id
    assert not first.accept
    assert asked(resource(Wish("a"), due=True)) == Wish("a")
    assert asked(resource(Wish("a"), due=True), accept=True) == Wish("a", accept=True)
    assert asked(resource(Wish("a", accept=True), due=True)) == Wish("a", accept=True), "once accepted"
    assert asked(resource(Wish("b"), phase="done", due=False)) == Wish("b"), "nobody has seen it yet"
    doubt = resource(Wish("a"), phase="in doubt", due=False)
    assert asked(doubt, accept=True) == Wish("a", accept=True)
    assert asked(doubt).id != "a", "there may be more by now"
    for ended in ("done", "failed", "refused"):
        assert asked(resource(Wish("a"), phase=ended, due=False)).id != "a"


def test_nothing_is_asked_for_over_what_is_not_confirmed() -> None:
    found = resource(Wish("a"), phase="done", due=False, kept="data-shop-segment-1-0")
    with pytest.raises(
        BadInput, match=r"data-shop-segment-1-0: 'pgherd repair shop --group segment-1 --confirm'"
    ):
        asked(found)


def test_whoever_waits_hears_of_his_own_repair_only() -> None:
    news = repairs._news
    assert news("shop", GROUP, "b", resource(Wish("b"), phase="done")) is None
    assert (news("shop", GROUP, "a", resource(Wish("a"), due=True)) or {})["phase"] == "copying"
    assert news("shop", GROUP, "a", resource(None, phase="done")) is not None
    with pytest.raises(PgherdError, match="was called off"):
        news("shop", GROUP, "b", resource(None, phase="done"))
    with pytest.raises(PgherdError, match="was called off"):
        news("shop", GROUP, "b", resource(Wish("c")))


def test_what_is_refused_hides_nothing_of_the_repair_that_is_open() -> None:
    refused = {"id": "b", "reason": "segment-1 is being rebuilt already"}
    found = resource(Wish("b"), phase="placing", due=True, accepted=True, refused=refused)
    told = repairs._news("shop", GROUP, "b", found) or {}
    assert (told["phase"], told["reason"], told["due"]) == ("refused", refused["reason"], False)
    assert repairs._is_over(GROUP, "b", told, found)
    assert (repairs._news("shop", GROUP, "a", found) or {})["phase"] == "placing"
    assert asked(found) == Wish("a", accept=True), "whoever asks now waits for that one"
    kept = resource(Wish("b"), phase="done", due=False, kept="data-shop-segment-1-0", refused=refused)
    with pytest.raises(BadInput, match="--confirm' removes it"):
        asked(kept)
    assert asked(resource(Wish("b"), phase="failed", due=False, refused=refused)).id not in ("a", "b")


@pytest.mark.parametrize("phase", ["done", "failed"])
def test_every_repair_that_has_ended_can_be_confirmed(phase: str) -> None:
    """By its own id, whatever else is asked for."""
    refused = {"id": "b", "reason": "its volumes are still kept"}
    looks = [resource(Wish("b"), phase=phase, due=False, kept="data-1", refused=refused), resource()]
    told: list[Wish] = []
    here: Any = SimpleNamespace(
        _ready=lambda name: looks.pop(0),
        _get=lambda name: looks.pop(0),
        _kept=lambda name: [],
        _ask=lambda name, found, wish, group: told.append(wish),
    )
    repairs.Repairs.confirm_repair(here, "shop", GROUP)
    assert told == [Wish("a", confirmed=True)]
    for phase, why in (
        ("copying", "is not done"),
        ("in doubt", "is not done"),
        ("refused", "was not repaired"),
    ):
        looks.append(resource(Wish("a"), phase=phase, due=False))
        with pytest.raises(BadInput, match=why):
            repairs.Repairs.confirm_repair(here, "shop", GROUP)


def test_a_loss_that_was_accepted_just_now_is_waited_for() -> None:
    def is_over(wish: Wish, **told: Any) -> bool:
        found = resource(wish, **told)
        return repairs._is_over(GROUP, "a", objects.repair_of(found, GROUP), found)

    assert is_over(Wish("a"), phase="in doubt", due=False)
    assert not is_over(Wish("a", accept=True), phase="in doubt", due=False), "that is from before"
    assert not is_over(Wish("a", accept=True), phase="settling", due=True, accepted=True)
    assert is_over(Wish("a", accept=True), phase="done", due=False, accepted=True)
    assert is_over(Wish("a", accept=True), phase="refused", due=False)


def test_who_leads_is_what_the_operator_saw() -> None:
    leads = {"name": "shop-segment-1-0", "role": "primary", "state": "running"}
    follows = {"name": "shop-segment-1-1", "role": "standby", "state": "running"}
    assert objects.primary_of(resource(None, leads, follows), GROUP) == "shop-segment-1-0"
    assert objects.primary_of(resource(None, {**leads, "state": "starting"}, follows), GROUP) is None
    assert objects.primary_of(resource(None, leads, {**follows, "role": "primary"}), GROUP) is None
    assert objects.primary_of({"metadata": {"name": "shop"}}, GROUP) is None


def test_a_group_without_a_primary_is_not_lost_because_another_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failover takes some seconds, in whichever group."""
    monkeypatch.setattr(repairs, "POLL_SECONDS", 0.01)
    leads = {"name": "shop-segment-1-0", "role": "primary", "state": "running"}
    looks = [resource(), resource(), resource(None, leads)]
    for each in looks:
        lost = "the data of segment-11 are gone, nothing empty is put in their place"
        now = {"phase": "Degraded", "observedAt": datetime.now(UTC).isoformat()}
        each["status"].update(now, conditions=[{"type": "DataLost", "status": "True", "message": lost}])
    here: Any = SimpleNamespace(_get=lambda name: looks.pop(0))
    assert repairs.Repairs._primary(here, "shop", GROUP) == "shop-segment-1-0"
    looks += [resource()]
    looks[0]["status"].update(now, conditions=[{"type": "DataLost", "message": lost.replace("-11", "-1")}])
    assert repairs.Repairs._primary(here, "shop", GROUP) is None


def test_a_group_is_one_that_is_declared_or_there() -> None:
    found = resource()
    assert repairs._number("shop", "coordinator", found) == 0
    found["status"]["groups"].append({"name": "segment-7", "id": 7})
    assert repairs._number("shop", "segment-7", found) == 7
    with pytest.raises(BadInput, match="shop has no segment-9: it has coordinator, segment-1"):
        repairs._number("shop", "segment-9", found)
    with pytest.raises(BadInput, match="is not a group"):
        repairs._number("shop", "nobody", found)


def test_what_is_rebuilt_keeps_a_restore_in_place_away() -> None:
    assert objects.being_rebuilt(resource()) is None
    assert objects.being_rebuilt(resource(Wish("a"), due=True)) == GROUP
    assert objects.being_rebuilt(resource(Wish("a"), phase="in doubt", due=False)) == GROUP
    assert objects.being_rebuilt(resource(Wish("a"), phase="done", due=False)) is None
