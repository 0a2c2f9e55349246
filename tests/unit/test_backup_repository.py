"""What a repository remembers, also after a crash in the middle of a line, and whose it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgherd.backup import maker
from pgherd.backup.records import pace
from pgherd.backup.repository import Repository
from pgherd.backup.wal import (
    History,
    parse_history,
    parse_lsn,
    readable_timeline,
    segment_before,
    segment_number,
)
from pgherd.errors import BadInput, PgherdError
from tests.support.backups import at, backup, point


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "shop")
    made.create("shop")
    return made


def test_points_come_back_in_order_as_they_were_written_last(repository: Repository) -> None:
    first, second = point(30), replace(point(2), archived=False)
    for each in (first, second, replace(second, archived=True)):
        repository.remember_point(each)
    assert repository.points() == [replace(second, archived=True), first]
    assert repository.points(days=1) == [first]


def test_a_line_cut_short_hides_neither_the_one_before_nor_the_one_after(repository: Repository) -> None:
    repository.remember_point(point(1))
    (day,) = (repository.root / "points").iterdir()
    with day.open("ab") as file:
        file.write(b'{"name": "torn", "gro')
    repository.remember_point(point(2))
    assert [each.name for each in repository.points()] == ["p1", "p2"]


def test_points_can_be_forgotten(repository: Repository) -> None:
    for hours in (1, 2, 30):
        repository.remember_point(point(hours))
    repository.forget_points({"p1", "p30"})
    assert [each.name for each in repository.points()] == ["p2"]


def test_a_backup_comes_back_as_it_was_written(repository: Repository) -> None:
    made = replace(backup(1, "incremental", "f0"), started_at=at(1), error="none")
    repository.remember_backup(made)
    assert repository.backups() == [made]
    assert repository.backup(made.id) == made
    with pytest.raises(BadInput, match="there is no backup x"):
        repository.backup("x")
    repository.remove_backup(made.id)
    assert repository.backups() == []


def test_one_backup_at_a_time_and_no_name_twice(repository: Repository) -> None:
    first = maker.request(repository, "full")
    with pytest.raises(BadInput, match=f"backup {first.id} is not done yet"):
        maker.request(repository, "full")
    repository.remember_backup(replace(first, phase="failed"))
    assert maker.request(repository, "full").id != first.id


def test_a_repository_belongs_to_one_cluster(repository: Repository) -> None:
    repository.claim({0: "1", 1: "2"}, {"kind": "PostgresCluster"})
    repository.claim({0: "1", 1: "3"}, {"kind": "PostgresCluster"})  # a segment may be made anew
    with pytest.raises(BadInput, match="holds the backups of another cluster that was called shop"):
        repository.claim({0: "9"}, {})
    assert repository.identity().systems == {"coordinator": "1", "segment-1": "3"}


def test_a_repository_that_is_away_is_missed_not_made(tmp_path: Path) -> None:
    away = Repository(tmp_path / "shop")
    with pytest.raises(PgherdError, match="there is no repository at"):
        away.remember_point(point(1))
    assert not away.root.exists()


# positions in logs


def test_positions_and_the_files_they_are_in() -> None:
    assert parse_lsn("1/A0000028") == (1 << 32) + 0xA0000028
    assert segment_before(1, parse_lsn("0/2000000")) == "000000010000000000000001"
    assert segment_before(2, parse_lsn("0/2000001")) == "000000020000000000000002"
    assert segment_before(1, parse_lsn("1/1")) == "000000010000000100000000"
    assert segment_number("000000010000000100000000") == 256
    assert segment_number("00000002.history") is None
    with pytest.raises(ValueError, match="not a position"):
        parse_lsn("7")


def test_a_history_says_what_belongs_to_the_past() -> None:
    history = parse_history(3, "1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tx\nnonsense\n")
    assert history == History(3, {1: 0x3000000, 2: 0x5000000})
    assert history.holds(1, 0x3000000)
    assert not history.holds(1, 0x3000001)
    assert history.holds(3, 1 << 60)


def test_a_file_that_a_dead_primary_kept_to_itself_is_found_on_the_next_timeline() -> None:
    history, lsn = History(2, {1: 0x3800000}), 0x3000100
    assert readable_timeline(1, lsn, [history], {}) is None
    assert readable_timeline(1, lsn, [history], {"000000020000000000000003": 1}) == 2
    assert readable_timeline(1, lsn, [history], {"000000010000000000000003": 1}) == 1
    lost = 0x3900000  # written by the old primary only
    assert readable_timeline(1, lost, [history], {"000000020000000000000003": 1}) is None


def test_a_position_on_a_later_timeline_can_not_be_reached_before_that_ones_history_is_there() -> None:
    archived = {"000000020000000000000003": 1}
    assert readable_timeline(2, 0x3800000, [], archived) is None
    assert readable_timeline(2, 0x3800000, [History(2, {1: 0x3000000})], archived) == 2


def test_a_file_that_ends_where_its_timeline_was_left_holds_no_point_from_after_that() -> None:
    """Its name is there: archived by a standby that had received it up to the promotion."""
    history = parse_history(2, "1\t0/3800000\tno recovery target specified\n")
    both = {"000000010000000000000003": 1, "000000020000000000000003": 1}
    assert readable_timeline(1, 0x3900000, [history], both) is None
    assert readable_timeline(1, 0x3800000, [history], both) == 1


def test_what_a_restore_in_place_left_behind_can_be_restored_all_the_same() -> None:
    """No standby followed that: what is archived is what the members had written."""
    back = parse_history(2, '1\t0/3800000\tat restore point "p-20261121-101500-ab12"\n')
    later = parse_history(
        3, '1\t0/3800000\tat restore point "p"\n2\t0/5000000\tno recovery target specified\n'
    )
    assert readable_timeline(1, 0x3900000, [back, later], {"000000010000000000000003": 1}) == 1
    assert later.restored == {1}


def test_pace_is_not_known_before_anything_is_done() -> None:
    assert pace(None, 1, 2) == (None, None)
    assert pace(at(0), 0, 2) == (None, None)
    rate, left = pace(at(0), 10**12, 2 * 10**12)
    assert rate
    assert left
