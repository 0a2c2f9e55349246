"""What a command shows of a status that nobody has renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgherd.remote import client, objects

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def status(age: float = 0.0, phase: str = "Running", ready: str = "True") -> dict[str, Any]:
    return {
        "phase": phase,
        "observedAt": (NOW - timedelta(seconds=age)).isoformat(),
        "settled": True,
        "conditions": [
            {"type": "Ready", "status": ready, "message": "all well"},
            {"type": "Progressing", "status": "False", "message": ""},
        ],
    }


def test_a_status_of_an_operator_that_is_heard_is_shown_as_it_is() -> None:
    assert objects.aged(status(age=31), NOW) == status(age=31)


def test_an_old_status_is_told_to_be_old_and_not_to_be_true() -> None:
    shown = objects.aged(status(age=200), NOW)
    assert (shown["phase"], shown["settled"]) == ("Unknown", False)
    ready, progressing = shown["conditions"]
    assert (ready["status"], ready["reason"]) == ("Unknown", "OperatorSilent")
    assert ready["message"].startswith(
        "last seen Running, 200 s ago by this machine's clock: nothing is heard"
    )
    assert progressing == status()["conditions"][1]


@pytest.mark.parametrize("phase", ["Stopped", "Deleting"])
def test_what_nobody_looks_at_does_not_grow_old(phase: str) -> None:
    assert objects.aged(status(age=9999, phase=phase), NOW)["phase"] == phase


def test_what_the_operator_said_of_why_it_can_not_look_stays() -> None:
    found = status(age=9999, phase="Degraded", ready="Unknown")
    assert objects.aged(found, NOW) == found


def test_nobody_has_looked_yet() -> None:
    found = objects.nothing_known({"metadata": {"name": "shop"}})
    assert objects.aged(found, NOW) == found


def test_who_waits_believes_what_is_new_to_it_however_wrong_its_clock_is() -> None:
    heard, old = client.Heard(), status(age=500)
    heard.take(old)
    assert not heard.believes(old)
    newer = status(age=400)
    heard.take(newer)
    assert heard.believes(newer)
