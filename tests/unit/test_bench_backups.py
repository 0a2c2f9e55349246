"""What the benchmark of backups takes from the state that a restore leaves."""

from __future__ import annotations

import pytest
from bench.__main__ import NEEDS, SCENARIOS
from bench.scenarios import backups


def test_a_restores_copies_are_timed_apart_from_all_of_it() -> None:
    times = {"startedAt": "00", "copyingSince": "02", "copiedAt": "07", "finishedAt": "12"}
    state = {key: f"2026-11-22T10:00:{second}.000+00:00" for key, second in times.items()}
    found = backups._seconds_in({**state, "phase": "done"})
    assert (found.copied, found.placed) == (5.0, 12.0)


def test_what_can_not_run_here_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NEEDS.keys() <= SCENARIOS.keys()
    monkeypatch.setenv("PGHERD_PGBACKREST", "/nowhere/pgbackrest")
    assert "pgbackrest" in str(NEEDS["backups-pgbackrest"]())
