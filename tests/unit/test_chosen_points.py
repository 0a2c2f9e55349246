"""Which points the tests of busy clusters restore."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.points import choose


def point(timeline: int = 1, groups: int = 3, placement: int = 1) -> dict[str, Any]:
    return {"lsns": {"1": {"timeline": timeline}}, "groups": groups, "placement": placement}


def test_there_is_one_of_every_kind_and_then_of_every_placement_among_those_that_are_restored() -> None:
    offered = [
        *[point() for _ in range(50)],
        point(timeline=2),
        point(timeline=2, groups=4, placement=2),
        *[point(timeline=2, groups=4, placement=4) for _ in range(50)],
        point(timeline=2, groups=4, placement=3),
    ]
    among = range(1, len(offered))
    for _ in range(20):
        assert {offered[n]["placement"] for n in choose(offered, among, 5)} == {1, 2, 3, 4}
        few = choose(offered, among, 1, also=[7])
        assert 7 in few
        assert {(offered[n]["lsns"]["1"]["timeline"], offered[n]["groups"]) for n in few} == {
            (1, 3),
            (2, 3),
            (2, 4),
        }
        assert len(choose(offered, among, 20)) == 20


def test_too_few_points_are_no_test_of_many() -> None:
    with pytest.raises(AssertionError, match="too few"):
        choose([point(), point(), point()], [1, 2], 3)
