"""Which copies a restore point needs, which points can be restored, and what retention may remove."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgherd.backup import choice
from pgherd.backup.records import Backup, BackupType, Point
from pgherd.backup.wal import History, parse_lsn
from pgherd.errors import BadInput
from tests.support.backups import BEGIN, SYSTEM, at, backup, copy, lsn, point


def no_histories(group: int, system: str) -> Sequence[History]:
    return ()


def test_the_newest_copy_before_the_point_is_chosen() -> None:
    backups = [backup(0), backup(5), backup(10)]
    assert choice.bases(point(7), backups, no_histories) == {group: ["f5"] for group in range(3)}


def test_a_copy_that_ends_after_the_point_can_not_be_used() -> None:
    assert choice.bases(point(5.05), [backup(5)], no_histories) is None


def test_a_chain_is_restored_from_its_whole_copy_on() -> None:
    backups = [backup(0), backup(1, "differential", "f0"), backup(2, "incremental", "d1")]
    assert choice.bases(point(3), backups, no_histories) == {g: ["f0", "d1", "i2"] for g in range(3)}


def test_a_chain_with_a_missing_link_serves_nothing() -> None:
    backups = [backup(1, "incremental", "f0")]
    assert choice.bases(point(3), backups, no_histories) is None


def test_each_group_uses_its_own_newest_copy() -> None:
    late = Backup("f2", "full", "done", at(2), {3: copy(2)}, (3,))
    found = choice.bases(point(3, groups=4), [backup(0), late], no_histories)
    assert found == {0: ["f0"], 1: ["f0"], 2: ["f0"], 3: ["f2"]}


def test_a_copy_of_another_system_is_not_used() -> None:
    made_anew = point(3, systems={2: "8"})
    assert choice.bases(made_anew, [backup(0)], no_histories) is None


@pytest.mark.parametrize(("left_at", "usable"), [(2.0, True), (0.05, False)])
def test_a_copy_from_before_a_failover_serves_if_the_new_primary_had_all_of_it(
    left_at: float, usable: bool
) -> None:
    def histories(group: int, system: str) -> Sequence[History]:
        return [History(2, {1: parse_lsn(lsn(left_at))})]

    found = choice.bases(point(3, timeline=2), [backup(0)], histories)
    assert (found is not None) == usable


# targets


POINTS = [point(1), point(2, backup="f1.9"), point(3)]
NOW = datetime.fromisoformat(at(4))


def test_no_target_is_the_newest_point() -> None:
    assert choice.resolve(POINTS, now=NOW).name == "p3"


def test_a_time_is_the_newest_point_at_or_before_it() -> None:
    assert choice.resolve(POINTS, now=NOW, time=at(2.9)).name == "p2"
    assert choice.resolve(POINTS, now=NOW, time=at(2)).name == "p2"


def test_a_backup_is_the_point_that_closes_it() -> None:
    assert choice.resolve(POINTS, now=NOW, backup="f1.9").name == "p2"


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ({"restore_point": "p3"}, "p2"),
        ({"backup": "f1.9"}, "p1"),
        ({"time": at(2)}, "p1"),
        ({"time": at(2.5)}, "p2"),
    ],
)
def test_exclusive_is_the_newest_point_before_what_is_named(target: dict[str, Any], name: str) -> None:
    assert choice.resolve(POINTS, now=NOW, inclusive=False, **target).name == name


@pytest.mark.parametrize("target", [{"restore_point": "p1"}, {"time": at(1)}])
def test_nothing_is_before_the_first_point(target: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="before"):
        choice.resolve(POINTS, now=NOW, inclusive=False, **target)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({"time": at(0.5)}, "before the first restore point: there are 3, from p1"),
        ({"time": at(5)}, "in the future: there are 3"),
        ({"restore_point": "p9"}, "no restore point 'p9' can be restored: there are 3"),
        ({"backup": "f9"}, "no backup 'f9'"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(target: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        choice.resolve(POINTS, now=NOW, **target)


def test_nothing_restorable_says_when_the_first_point_comes() -> None:
    with pytest.raises(BadInput, match="the first comes with the first complete backup"):
        choice.resolve([], now=NOW)


# parents


def test_a_differential_backup_builds_on_the_last_whole_one_an_incremental_one_on_the_last() -> None:
    backups = [backup(0), backup(1, "differential", "f0"), backup(2, "incremental", "d1")]
    assert choice.parent_for("differential", 1, (SYSTEM, 1), backups, no_histories) == "f0"
    assert choice.parent_for("incremental", 1, (SYSTEM, 1), backups, no_histories) == "i2"
    assert choice.parent_for("full", 1, (SYSTEM, 1), backups, no_histories) is None


def test_a_group_that_is_new_gets_a_whole_copy() -> None:
    assert choice.parent_for("incremental", 1, ("8", 1), [backup(0)], no_histories) is None
    assert choice.missing_base({0: (SYSTEM, 1), 1: ("8", 1)}, [backup(0)], no_histories) == [1]


# branches that nobody went on with


def left_at(hours: float) -> choice.Histories:
    """A failover: timeline 2 goes on from there."""
    return lambda group, system: [History(2, {1: parse_lsn(lsn(hours))})]


HALF_COPIED = left_at(1.05)
"""a failover between the start and the stop of the copy that was made at 1"""


@pytest.mark.parametrize("kind", ["differential", "incremental"])
def test_nothing_builds_on_a_copy_that_holds_what_a_failover_left_behind(kind: str) -> None:
    """Blocks that changed only there would stay in the chain. Nor on an older one: pgBackRest takes the newest."""
    backups = [backup(0), backup(1)]
    assert choice.parent_for(kind, 1, (SYSTEM, 2), backups, HALF_COPIED) is None
    assert choice.parent_for(kind, 1, (SYSTEM, 2), backups, left_at(1.2)) == "f1"


def test_nothing_builds_on_a_copy_of_an_earlier_timeline_whose_end_is_not_known_yet() -> None:
    assert choice.parent_for("incremental", 1, (SYSTEM, 2), [backup(0)], no_histories) is None


def test_a_chain_over_a_copy_that_a_failover_left_behind_serves_nothing() -> None:
    chained = backup(2, "incremental", "f1", timeline=2)
    assert choice.bases(point(3, timeline=2), [backup(1), chained], HALF_COPIED) is None
    found = choice.bases(point(3, timeline=2), [backup(0), backup(1), chained], HALF_COPIED)
    assert found == {group: ["f0"] for group in range(3)}, "an older one serves"
    found = choice.bases(point(3, timeline=2), [backup(1), chained], left_at(1.2))
    assert found == {group: ["f1", "i2"] for group in range(3)}


@pytest.mark.parametrize(
    ("copies", "histories", "missing"),
    [
        ([backup(1)], HALF_COPIED, True),
        ([backup(1), backup(2, "incremental", "f1", timeline=2)], HALF_COPIED, True),
        ([backup(0), backup(1)], HALF_COPIED, False),
        ([backup(1)], left_at(1.2), False),
        ([backup(1)], no_histories, False),
        ([backup(2, timeline=3)], HALF_COPIED, False),
    ],
)
def test_a_group_gets_a_new_copy_if_none_is_known_to_lead_to_where_it_is(
    copies: list[Backup], histories: choice.Histories, missing: bool
) -> None:
    """What is not known yet, or younger than the last look at the group, is no reason."""
    found = choice.missing_base({1: (SYSTEM, 2)}, copies, histories)
    assert found == ([1] if missing else [])


# retention


def let_go(
    points: Sequence[Point],
    backups: Sequence[Backup],
    full: int,
    days: int,
    hours: float,
    histories: choice.Histories = no_histories,
    present: choice.Present | None = None,
    unread: Sequence[str] = (),
) -> choice.Waste:
    now = BEGIN + timedelta(hours=hours)
    systems = [(group, SYSTEM) for group in range(3)]
    return choice.waste(
        points, backups, histories, systems, full=full, days=days, now=now, present=present, unread=unread
    )


def test_old_backups_go_once_there_are_enough_newer_ones_and_nobody_needs_them() -> None:
    backups = [backup(hours) for hours in (0, 24, 48, 72)]
    points = [point(hours + 1) for hours in (0, 24, 48, 72)]
    gone = let_go(points, backups, full=2, days=0, hours=80)
    assert gone.backups == ("f24", "f0")
    assert gone.points == {"p1", "p25"}
    assert gone.logs == {(group, SYSTEM): (1, parse_lsn(lsn(48))) for group in range(3)}


def test_points_within_the_days_keep_what_they_need() -> None:
    backups = [backup(hours) for hours in (0, 24, 48, 72)]
    points = [point(hours) for hours in (1, 25, 40, 49, 73)]
    gone = let_go(points, backups, full=1, days=2, hours=80)
    assert gone.backups == ("f0",)  # p40 is younger than two days and stands on f24
    assert gone.points == {"p1"}


def test_nothing_goes_while_no_whole_backup_is_done() -> None:
    gone = let_go([point(1)], [backup(0, phase="failed")], full=1, days=0, hours=10_000)
    assert gone == choice.Waste(frozenset(), (), {})


BACK = left_at(30)
"""a restore in place to the point that was made at 30; what was there since is left behind"""
TAKEN_BACK: choice.Present = dict.fromkeys(range(3), (SYSTEM, 2))


def test_right_after_a_restore_in_place_what_leads_to_the_present_stays() -> None:
    """The youngest copy is of the branch that was left, and there is no point on the new one yet."""
    backups = [backup(0), backup(24, "incremental", "f0"), backup(48)]
    points = [point(30), point(49)]
    gone = let_go(points, backups, full=1, days=0, hours=60, histories=BACK, present=TAKEN_BACK)
    assert (gone.backups, gone.points) == ((), frozenset())
    assert gone.logs == {(group, SYSTEM): (1, parse_lsn(lsn(0))) for group in range(3)}


def test_what_leads_to_the_present_stays_however_much_was_made_on_the_branch_that_was_left() -> None:
    backups = [backup(0), *(backup(hours) for hours in (48, 72, 96)), backup(120, timeline=2)]
    gone = let_go([], backups, full=2, days=0, hours=130, histories=BACK, present=TAKEN_BACK)
    assert gone.backups == (), "two of them lead to the present, and what was made since the older one stays"
    segment_alone = Backup("f121", "full", "done", at(121), {1: copy(121, timeline=2)}, (1,))
    gone = let_go(
        [], [*backups[:-1], segment_alone], full=1, days=0, hours=130, histories=BACK, present=TAKEN_BACK
    )
    assert "f0" not in gone.backups, "the other groups have nothing else"


def test_the_branch_that_was_left_goes_once_there_are_enough_copies_of_the_new_one() -> None:
    backups = [backup(0), backup(24), backup(48), backup(72, timeline=2)]
    points = [point(25), point(49), point(73, timeline=2)]
    gone = let_go(points, backups, full=1, days=0, hours=80, histories=BACK, present=TAKEN_BACK)
    assert gone.backups == ("f48", "f24", "f0")
    assert gone.points == {"p25", "p49"}
    gone = let_go(points, backups, full=1, days=2, hours=80, histories=BACK, present=TAKEN_BACK)
    assert gone.backups == ("f24", "f0"), "within the days the branch that was left can still be restored"
    assert gone.points == {"p25"}


def test_nothing_goes_while_nobody_can_tell_what_leads_to_the_present() -> None:
    backups, points = [backup(0), backup(48)], [point(30), point(49), point(50, timeline=2)]
    gone = let_go(points, backups, full=1, days=0, hours=60, present=TAKEN_BACK)
    assert gone == choice.Waste(frozenset(), (), {})
    before = dict.fromkeys(range(3), (SYSTEM, 1))
    gone = let_go(points, backups, full=1, days=0, hours=60, present=before)
    assert gone.backups == ("f0",), "what never was anywhere else has no history"


@st.composite
def pasts(draw: st.DrawFn) -> tuple[list[Point], list[Backup]]:
    """Backups of any type one after the other, with points in between."""
    backups: list[Backup] = []
    for number in range(draw(st.integers(1, 12))):
        kind: BackupType = draw(st.sampled_from(["full", "differential", "incremental"]))
        parent = choice.parent_for(kind, 0, (SYSTEM, 1), backups, no_histories)
        backups.append(backup(number * 6.0, kind if parent else "full", parent))
    hours = draw(st.lists(st.integers(0, 80), unique=True, max_size=30))
    return [point(hour + 0.5) for hour in sorted(hours)], backups


@given(pasts(), st.integers(1, 4), st.integers(0, 4))
def test_retention_never_removes_what_a_kept_point_needs(
    past: tuple[list[Point], list[Backup]], full: int, days: int
) -> None:
    points, backups = past
    gone = let_go(points, backups, full, days, 90)
    left = [each for each in backups if each.id not in gone.backups]
    limit = BEGIN + timedelta(hours=90) - timedelta(days=days)
    for each in points:
        before = choice.bases(each, backups, no_histories)
        if each.name in gone.points:
            assert datetime.fromisoformat(each.time) < limit
            continue
        if before is None:
            continue
        if datetime.fromisoformat(each.time) >= limit:
            assert choice.bases(each, left, no_histories) == before
        now_needed = choice.bases(each, left, no_histories)
        if now_needed is None:
            continue
        for group, copies in now_needed.items():
            kept_from = gone.logs[group, SYSTEM]
            assert kept_from is not None
            start = min(parse_lsn(made.groups[group].start) for made in left if made.id in copies)
            assert kept_from[1] <= start
    whole = [each for each in backups if each.type == "full"]
    assert {each.id for each in whole[-full:]} <= {each.id for each in left}
    for kept in left:
        assert all(choice.chain(kept.id, group, {b.id: b for b in left}) for group in kept.groups)


@given(
    pasts(),
    st.integers(0, 80),
    st.lists(st.integers(1, 20), unique=True),
    st.integers(1, 4),
    st.integers(0, 4),
)
def test_retention_keeps_what_leads_to_the_present_after_a_restore_in_place(
    past: tuple[list[Point], list[Backup]], back_to: int, since: list[int], full: int, days: int
) -> None:
    points, before = past
    histories = left_at(back_to + 0.5)
    backups = [*before, *(backup(90 + hours, timeline=2) for hours in sorted(since))]
    gone = let_go(points, backups, full, days, 120, histories, TAKEN_BACK)
    left = [each for each in backups if each.id not in gone.backups]

    def leading(those: Sequence[Backup]) -> list[str]:
        """Full ones that a point of now can be brought back from."""
        now = point(119, timeline=2)
        return [
            each.id
            for each in those
            if each.type == "full" and choice.bases(now, [each], histories) is not None
        ]

    assert leading(left)[-full:] == leading(backups)[-full:]
    by_id = {each.id: each for each in left}
    for kept in left:
        assert all(choice.chain(kept.id, group, by_id) for group in kept.groups)
        for group, made in kept.groups.items():
            kept_from = gone.logs.get((group, SYSTEM))
            assert kept_from is None or kept_from[1] <= parse_lsn(made.start)


@given(pasts(), st.integers(1, 4), st.integers(0, 4), st.data())
def test_whatever_can_not_be_read_nothing_goes_that_would_stay_if_it_could(
    past: tuple[list[Point], list[Backup]], full: int, days: int, data: st.DataObject
) -> None:
    points, backups = past
    unread = data.draw(st.sets(st.sampled_from([each.id for each in backups])))
    readable = [each for each in backups if each.id not in unread]
    rightly = let_go(points, backups, full, days, 90)
    gone = let_go(points, readable, full, days, 90, unread=sorted(unread))
    assert gone.points <= rightly.points
    assert {*gone.backups} <= {*rightly.backups}
    for where, begins in gone.logs.items():
        allowed = rightly.logs[where]
        assert allowed is None or (begins is not None and begins[1] <= allowed[1])
