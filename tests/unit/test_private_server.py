"""What a control file says of a data directory."""

from __future__ import annotations

import pytest

from pgherd.backup.private_server import read_control
from pgherd.errors import PgherdError

TOLD = """\
pg_control version number:            1700
Database cluster state:               {state}
Latest checkpoint's TimeLineID:       {checkpoint}
Latest checkpoint's PrevTimeLineID:   9
Min recovery ending location:         0/5000110
Min recovery ending loc's timeline:   {ending}
max_connections setting:              100
max_worker_processes setting:         16
max_prepared_xacts setting:           50
track_commit_timestamp setting:       off
"""


def test_parameters_are_known_by_the_names_that_they_are_set_by() -> None:
    found = read_control(TOLD.format(state="in production", checkpoint=3, ending=0))
    assert found.settings == {
        "max_connections": 100,
        "max_worker_processes": 16,
        "max_prepared_transactions": 50,
    }


@pytest.mark.parametrize(
    ("state", "checkpoint", "ending", "timeline", "in_recovery"),
    [
        ("in production", 3, 0, 3, False),
        ("in archive recovery", 3, 3, 3, True),
        ("shut down in recovery", 2, 3, 3, True),
        # It has left recovery, and its first checkpoint since then is not made yet.
        ("in production", 3, 4, 4, False),
        ("in archive recovery", 3, 4, 4, True),
        ("shut down", 4, 0, 4, False),
    ],
)
def test_how_far_the_end_of_recovery_has_come(
    state: str, checkpoint: int, ending: int, timeline: int, in_recovery: bool
) -> None:
    found = read_control(TOLD.format(state=state, checkpoint=checkpoint, ending=ending))
    assert (found.timeline, found.in_recovery) == (timeline, in_recovery)


def test_an_answer_that_does_not_say_it_is_an_error() -> None:
    with pytest.raises(PgherdError, match="pg_controldata says nothing of"):
        read_control("pg_controldata: error: could not open file")
