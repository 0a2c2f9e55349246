"""Which points a keeper follows, in a repository of real files; the cluster's database is only told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import histories, keeper, points
from pgherd.backup.keeper import Keeper, Kept
from pgherd.backup.native import Native
from pgherd.backup.pgbackrest import PgBackRest, Place
from pgherd.backup.pgbackrest_config import Settings
from pgherd.backup.pgbackrest_program import Runner
from pgherd.backup.records import Point
from pgherd.backup.repository import Repository
from pgherd.backup.store import DirectoryStore
from pgherd.backup.wal import segment_before
from pgherd.errors import PgherdError, Unavailable
from pgherd.platform.machine import Machine
from tests.support.backups import SYSTEM, lsn, point


class Herd:
    """A keeper of a cluster of one group, its repository, and what its database was told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = Repository(root)
        self.repository.create("shop")
        self.log = self.repository.logs(0) / SYSTEM
        self.log.mkdir(parents=True)
        self.recorded: list[str] = []
        self.is_away = False
        monkeypatch.setattr(points, "record", self._record)
        monkeypatch.setattr(keeper, "POINTS_SECONDS", 0.0)
        self.method = Native(root, self._no_programs)
        self.begin()

    def begin(self) -> None:
        """A supervisor starts."""
        nobody: Any = None
        kept = Kept("shop", nobody, nobody, self.method, lambda: None, dict, lambda: False, threading.Event())
        self.keeper = Keeper(kept)

    def _no_programs(self) -> Any:
        raise AssertionError("nothing is run here")

    def _record(self, databases: object, point: Point) -> None:
        if self.is_away:
            raise Unavailable("the coordinator is away")
        self.recorded.append(point.name)

    def make(self, hours: float, timeline: int = 1) -> Point:
        """A point that is written down."""
        made = replace(point(hours, groups=1, timeline=timeline), archived=False)
        self.repository.remember_point(made)
        return made

    def archive(self, at: float, timeline: int = 1) -> None:
        """The file of the log that holds this place is in the repository."""
        high, _, low = lsn(at).partition("/")
        (self.log / segment_before(timeline, (int(high, 16) << 32) + int(low, 16))).touch()

    def fork(self, timeline: int, at: float) -> None:
        """A timeline leaves the first one."""
        (self.log / f"{timeline:08X}.history").write_text(f"1\t{lsn(at)}\tno recovery target specified\n")

    def offered(self) -> list[str]:
        return [each.name for each in self.repository.points() if each.archived]

    def lines(self) -> int:
        """Lines that were written of points."""
        files = (self.repository.root / "points").iterdir()
        return sum(len(each.read_text().split("\n\n")) for each in files)


@pytest.fixture
def herd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Herd:
    return Herd(tmp_path / "shop", monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time passes when a test says so."""
    now = [1000.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    for module in (keeper, points):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return wait


def test_a_point_of_somebody_else_is_followed_without_any_backup_going_on(herd: Herd) -> None:
    herd.keeper._note_archived()
    herd.make(1)
    herd.archive(1)
    herd.keeper._note_archived()
    assert herd.offered() == ["p1"]
    assert herd.recorded == ["p1"]


def test_while_the_coordinator_is_away_points_are_offered_and_each_line_is_written_once(herd: Herd) -> None:
    for hours in (1, 2):
        herd.make(hours)
        herd.archive(hours)
    herd.is_away = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            herd.keeper._note_archived()
    assert herd.offered() == ["p1", "p2"]
    before = herd.lines()
    herd.is_away = False
    herd.keeper._note_archived()
    herd.keeper._note_archived()
    assert herd.lines() == before
    assert herd.recorded == ["p1", "p2"]


def test_a_log_that_comes_late_makes_its_point_good_after_all(
    herd: Herd, clock: Callable[[float], None]
) -> None:
    herd.make(1)
    herd.archive(2)
    for _ in range(2):
        herd.keeper._note_archived()
        clock(points.LOST_SECONDS + 1)
    herd.archive(1)
    herd.keeper._note_archived()
    assert herd.offered() == []  # it is looked for now and then only
    clock(keeper.LOST_AGAIN_SECONDS)
    herd.keeper._note_archived()
    assert herd.offered() == ["p1"]


def test_what_retention_let_go_does_not_come_back(herd: Herd) -> None:
    herd.make(1)
    herd.keeper._note_archived()
    herd.repository.forget_points({"p1"})
    herd.keeper._forget("p1")
    herd.archive(1)
    herd.keeper._note_archived()
    assert herd.repository.points() == []


# what is lost


def is_lost(herd: Herd, made: Point, clock: Callable[[float], None]) -> bool:
    lost = points.Lost(herd.method)
    lost.is_certain(made)
    clock(points.LOST_SECONDS + 1)
    return lost.is_certain(made)


def test_an_abandoned_branch_that_is_farther_says_nothing(herd: Herd, clock: Callable[[float], None]) -> None:
    herd.archive(9)  # then it was restored to an earlier place, where timeline 2 began
    herd.fork(2, 3)
    herd.archive(3, timeline=2)
    assert not is_lost(herd, herd.make(4, timeline=2), clock)
    herd.archive(5, timeline=2)
    assert is_lost(herd, herd.make(4, timeline=2), clock)


@pytest.mark.parametrize(("hours", "lost"), [(2, False), (4, True)])
def test_a_point_is_passed_where_a_later_timeline_left_its_way_before_it(
    herd: Herd, clock: Callable[[float], None], hours: float, lost: bool
) -> None:
    herd.fork(2, 3)
    herd.archive(1.9, timeline=2)
    assert is_lost(herd, herd.make(hours), clock) == lost


class Places:
    """A repository as it is declared, with keys that are renewed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def method(self, declared: str, stamp: str) -> PgBackRest:
        def opened() -> tuple[DirectoryStore, DirectoryStore]:
            return DirectoryStore(self.folder), DirectoryStore(self.folder)

        nobody: Any = None
        return PgBackRest(Place("s3://safe/shop", declared, stamp, opened, nobody), nobody)


def standing(timeline: int) -> points.Standing:
    return points.Standing(SYSTEM, "", timeline, 9, 9, {})


def test_each_groups_histories_are_looked_for_in_their_own_time(
    herd: Herd, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    """One whose primary does not answer keeps nobody from sending those of the others."""
    asked: list[int] = []
    away, lacking = {1}, {2}

    def send(databases: object, group: int, known: object) -> list[int]:
        asked.append(group)
        if group in away:
            raise Unavailable(f"group {group} has no primary")
        return [2] if group in lacking else []

    monkeypatch.setattr(histories, "send_again", send)
    herd.keeper._standing = {group: standing(2 if group else 1) for group in range(4)}

    def look() -> list[int]:
        asked.clear()
        for _ in range(4):
            with suppress(Unavailable):
                herd.keeper._see_to_histories()
        return list(asked)

    assert look() == [1, 2, 3], "the first one has none"
    assert look() == []
    away.clear()
    clock(keeper.HISTORIES_SECONDS + 1)
    assert look() == [1, 2], "all are there of the last one"
    lacking.clear()
    clock(keeper.HISTORIES_SECONDS + 1)
    assert look() == [2]
    clock(keeper.HISTORIES_GOOD_SECONDS)
    assert look() == [1, 2, 3]
    herd.keeper._standing = {3: standing(3)}
    assert look() == [3], "another timeline has another history"


def test_keys_that_are_renewed_do_not_end_a_backup_while_the_old_ones_do(tmp_path: Path) -> None:
    places, going = Places(tmp_path), threading.Event()
    nobody: Any = None
    kept = Kept(
        "shop", nobody, nobody, places.method("a", "1"), lambda: None, dict, lambda: True, threading.Event()
    )
    made = Keeper(kept)
    same, renewed, elsewhere = (places.method(*each) for each in (("a", "1"), ("a", "2"), ("b", "2")))
    assert not made.is_to_leave_for(same)
    assert made.is_to_leave_for(renewed), "nothing is going on that would be lost"
    made._maker = threading.Thread(target=going.wait)
    made._maker.start()
    try:
        assert not made.is_to_leave_for(renewed)
        assert made.is_to_leave_for(elsewhere)
        made.error = "s3://safe refuses these keys"
        assert made.is_to_leave_for(renewed)
    finally:
        going.set()
        made._maker.join()
    made.error = None
    assert made.is_to_leave_for(renewed)


class Torn(Runner):
    """A pgBackRest whose words do not arrive whole."""

    command, left = ("pgbackrest",), ()

    def prepare(self, settings: Settings) -> None:
        return

    def of(self, group: int | None) -> Any:
        return None

    at = end_strays = lock = environment = of  # type: ignore[assignment]

    def output(self, arguments: Sequence[str], machine: Machine) -> bytes:
        return b'"backup": [{}]}]'


def test_words_of_pgbackrest_that_make_no_sense_are_an_error_with_its_stanza(tmp_path: Path) -> None:
    nobody: Any = None

    def opened() -> tuple[DirectoryStore, DirectoryStore]:
        return DirectoryStore(tmp_path), DirectoryStore(tmp_path)

    method = PgBackRest(Place("s3://safe/shop", "", "", opened, lambda: nobody), Torn())
    with pytest.raises(PgherdError, match=f"what pgbackrest tells of coordinator-{SYSTEM} can't be read"):
        method.remove_log(0, SYSTEM, 1)


def test_a_round_that_meets_what_nobody_expected_is_told(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        herd.keeper.leave()
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(keeper, "FAR_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(herd.keeper, "_round", broken)
    monkeypatch.setattr(herd.keeper._kept.stop, "wait", lambda seconds: False)
    monkeypatch.setattr(herd.keeper, "_is_over", herd.keeper._leaving.is_set)
    herd.keeper.run()
    assert herd.keeper.error is not None
    assert "by nothing" in herd.keeper.error
