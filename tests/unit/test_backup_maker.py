"""A backup that goes on after its groups went another way: it is done only with copies that lead to its point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.backup import choice, gaps, maker, pgbackrest_program, points, records
from pgherd.backup.base import Report
from pgherd.backup.gaps import file_name
from pgherd.backup.maker import RETRY_SECONDS, TRIES, Job, Maker
from pgherd.backup.native import Native
from pgherd.backup.points import Standing
from pgherd.backup.records import Backup, BackupType, GroupBackup, GroupPoint, Point
from pgherd.backup.store import DirectoryStore
from pgherd.errors import BadInput, PgherdError, Unavailable, Withheld
from pgherd.platform.base import Programs
from tests.support.backups import SYSTEM, backup, copy, lsn

PER_HOUR = 16
"""files of the log"""
LEFT = f'1\t{lsn(1.05)}\tat restore point "p-1"\n'
"""all groups were taken back to a place within the copy that was made at 1"""


class Groups(Native):
    """Groups that are all on one timeline, and whose copies are folders with a note; the repository is a real one."""

    timeline = 1
    problem: PgherdError | None = None

    def __init__(self, root: Path) -> None:
        super().__init__(root, _no_programs)
        self.made: list[tuple[int, str | None]] = []
        self.lost: dict[int, set[int]] = {}
        self.position: float | None = None

    def back_up(
        self,
        backup: str,
        group: int,
        kind: BackupType,
        parent: str | None,
        connection: Mapping[str, str],
        report: Report,
        stopping: Callable[[], bool],
    ) -> GroupBackup:
        folder = self.repository.copy_of(backup, group)
        assert not folder.exists(), "what led nowhere was removed"
        folder.mkdir(parents=True)
        self.made.append((group, parent))
        if self.problem is not None:
            raise self.problem
        at = float(self.timeline) if self.position is None else self.position
        return copy(at, "full" if parent is None else kind, parent, timeline=self.timeline)

    def archive(self) -> None:
        """The log up to the next point, but for what is lost."""
        for group in range(3):
            folder = self.repository.logs(group) / SYSTEM
            folder.mkdir(parents=True, exist_ok=True)
            for number in set(range(PER_HOUR, 9 * PER_HOUR)) - self.lost.get(group, set()):
                (folder / file_name(1 if number < 1.05 * PER_HOUR - 1 else self.timeline, number)).touch()

    def go_back(self) -> None:
        """A restore in place."""
        self.timeline = 2
        for group in range(3):
            folder = self.repository.logs(group) / SYSTEM
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "00000002.history").write_text(LEFT)


def _no_programs() -> Programs:
    raise AssertionError("no program is needed")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    made = Groups(tmp_path / "shop")
    made.repository.create("shop")

    def look(databases: object, those: Sequence[int]) -> dict[int, Standing]:
        return {group: Standing(SYSTEM, "now", made.timeline, 1, 1, {}) for group in those}

    def make(engine: object, databases: object, method: object, name: str, *, backup: str) -> Point:
        made.archive()
        where = {group: GroupPoint(SYSTEM, made.timeline, lsn(9)) for group in range(3)}
        point = Point(name, records.now(), where, "fdw", "app", 0, 1.0, True, backup)
        made.repository.remember_point(point)
        return point

    monkeypatch.setattr(points, "look", look)
    monkeypatch.setattr(points, "make", make)
    return made


def job(groups: Groups) -> Job:
    engine = SimpleNamespace(segments=lambda: (1, 2))
    databases = SimpleNamespace(parameters=lambda *a, **k: {})
    return Job(cast(Any, engine), cast(Any, databases), groups, lambda: False)


def requested(groups: Groups, kind: BackupType = "full") -> Backup:
    return maker.request(groups.repository, kind)


def test_a_backup_that_was_open_during_a_restore_in_place_ends_with_copies_of_what_is_there_now(
    groups: Groups,
) -> None:
    backup = requested(groups)
    before = copy(1.0)
    for group in (0, 1):
        groups.repository.copy_of(backup.id, group).mkdir(parents=True)
    backup = replace(backup, phase="running", wanted=(0, 1, 2), groups={0: before, 1: before})
    groups.repository.remember_backup(backup)
    groups.go_back()
    done = Maker(job(groups), backup).run()
    assert done.phase == "done", done.error
    assert {made.timeline for made in done.groups.values()} == {2}
    assert sorted(groups.made) == [(0, None), (1, None), (2, None)]
    closing = {point.name: point for point in groups.repository.points()}[str(done.point)]
    assert {at.timeline for at in closing.groups.values()} == {2}


def test_copies_that_lead_to_the_point_are_made_once(groups: Groups) -> None:
    assert Maker(job(groups), requested(groups)).run().phase == "done"
    assert len(groups.made) == 3


def test_after_a_restore_in_place_the_next_copies_are_whole(groups: Groups) -> None:
    first = Maker(job(groups), requested(groups)).run()
    assert first.phase == "done"
    second = Maker(job(groups), requested(groups, "incremental")).run()
    assert {made.parent for made in second.groups.values()} == {first.id}
    groups.go_back()
    third = Maker(job(groups), requested(groups, "incremental")).run()
    assert {made.parent for made in third.groups.values()} == {None}


@pytest.mark.parametrize("content", ["{", '{"id": "nightly", "shape": 2}'])
def test_a_backup_whose_record_can_not_be_read_is_not_begun_anew_over_its_copies(
    tmp_path: Path, content: str
) -> None:
    native = Native(tmp_path / "shop", _no_programs)
    native.repository.create("shop")
    native.repository.remember_backup(replace(backup(1), id="nightly"))
    record = native.repository.folder("nightly") / "backup.json"
    record.write_text(content)
    with pytest.raises(BadInput, match=r"the record of backup nightly is .*put backup\.json in"):
        maker.request(native.repository, "full", name="nightly")
    assert record.read_text() == content
    assert maker.request(native.repository, "full").id != "nightly"


def test_a_group_whose_log_has_a_hole_behind_its_copy_is_copied_again(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the backup is done, and the point that closes it can't be restored."""
    monkeypatch.setattr(points, "LOST_SECONDS", 0.0)
    monkeypatch.setattr(maker, "RETRY_SECONDS", 0.01)
    groups.lost = {1: {3 * PER_HOUR}}

    class Later(Maker):
        def _copy_again(self, those: Sequence[int]) -> None:
            groups.position = 4.0
            super()._copy_again(those)

    done = Later(job(groups), requested(groups)).run()
    assert done.phase == "done", done.error
    assert sorted(group for group, _ in groups.made) == [0, 1, 1, 2]
    closing = groups.repository.point(str(done.point))
    assert closing is not None
    logs = gaps.Logs(groups.log_names, groups.histories)
    late = replace(closing, time="2026-12-01T00:00:00+00:00")
    assert choice.bases(late, [done], groups.histories, logs) is not None


def test_a_file_that_a_standby_brings_in_time_makes_no_copy_anew(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups.lost = {1: {3 * PER_HOUR}}

    def rest(self: Maker) -> None:
        groups.lost.clear()
        groups.archive()

    monkeypatch.setattr(Maker, "_rest", rest)
    assert Maker(job(groups), requested(groups)).run().phase == "done"
    assert len(groups.made) == 3


def test_a_closing_point_that_is_archived_days_later_is_not_lost(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = points.make

    def long_ago(*those: Any, **named: Any) -> Point:
        for hours in (40, 80, 120):
            groups.repository.remember_point(later(make(*those, **named), hours))
        return make(*those, **named)

    def later(point: Point, hours: float) -> Point:
        at = (records.moment(point.time) + timedelta(hours=hours)).isoformat()
        return replace(point, name=f"p-{hours}", time=at)

    monkeypatch.setattr(points, "make", long_ago)
    done = Maker(job(groups), requested(groups)).run()
    assert done.phase == "done", done.error


@pytest.mark.parametrize(
    ("problem", "again"),
    [
        (PgherdError("pg_basebackup: could not write to file: No space left on device"), True),
        (Unavailable("segment-1 has no primary"), True),
        (PgherdError("pg_basebackup: tablespaces are not backed up"), False),
    ],
)
def test_a_backup_that_failed_says_whether_another_one_may_do_better(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, problem: PgherdError, again: bool
) -> None:
    monkeypatch.setattr(maker, "TRIES", 1)
    groups.problem = problem
    failed = Maker(job(groups), requested(groups)).run()
    assert (failed.phase, failed.again) == ("failed", again)
    [known] = groups.repository.backups()
    assert known.again == again
    assert ("again" in known.as_json()) == again, "others are read by versions before, too"


def test_a_backup_whose_repository_goes_away_stays_open_with_its_copies(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = requested(groups)
    root = groups.repository.root

    class Dropping(Maker):
        def _close(self) -> None:
            root.rename(root.with_name("away"))
            raise PgherdError("the repository lost the restore point")

    with pytest.raises(PgherdError, match="lost"):
        Dropping(job(groups), backup).run()
    root.with_name("away").rename(root)
    [known] = groups.repository.backups()
    assert known.is_open
    assert Maker(job(groups), known).run().phase == "done"
    assert len(groups.made) == 3, "complete copies stay"


class Far(DirectoryStore):
    """As far away as a bucket: that it was there is believed for a moment."""

    near = False
    silent = False

    def read(self, name: str) -> bytes | None:
        if self.silent:
            raise Withheld("s3://safe does not answer")
        return super().read(name)


def test_a_store_that_was_there_a_moment_ago_is_asked_before_a_backup_counts_as_failed(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, repository = requested(groups), groups.repository
    far = Far(repository.root)
    monkeypatch.setattr(repository, "store", far)
    assert repository.is_there()

    class Dropping(Maker):
        def _close(self) -> None:
            far.silent = True
            repository.require()  # as far as it knows
            raise Withheld("s3://safe does not answer")

    with pytest.raises(PgherdError, match="does not answer"):
        Dropping(job(groups), backup).run()
    far.silent = False
    [known] = repository.backups()
    assert known.is_open
    assert Maker(job(groups), known).run().phase == "done"
    assert len(groups.made) == 3, "complete copies stay"


class Failover:
    """A group without a primary, for so many seconds of the maker's time."""

    def __init__(self, groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.until = 1000.0, float("-inf")
        self.look = points.look

        def rest(maker: Maker) -> None:
            self.now += RETRY_SECONDS

        monkeypatch.setattr(Maker, "_rest", rest)
        monkeypatch.setattr(
            maker, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=lambda seconds: None)
        )
        monkeypatch.setattr(points, "look", self._look)

    def begin(self, seconds: float) -> None:
        self.until = self.now + seconds

    def require_over(self) -> None:
        if self.now < self.until:
            raise Unavailable("group 1 can't be reached: no primary")

    def _look(self, databases: Any, those: Sequence[int]) -> dict[int, Standing]:
        if 1 in those:
            self.require_over()
        return self.look(databases, those)


@pytest.fixture
def failover(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> Failover:
    return Failover(groups, monkeypatch)


LONG = 60.0
"""a failover that takes longer than the tries of one group do"""


def test_a_group_whose_primary_dies_while_it_is_copied_is_waited_for_and_that_is_told(
    groups: Groups, failover: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TRIES * RETRY_SECONDS < LONG < maker.SILENT_SECONDS
    backup, copied, told = requested(groups), groups.back_up, []

    def back_up(*those: Any) -> GroupBackup:
        if those[1] == 1 and failover.until < 0:
            failover.begin(LONG)
            raise PgherdError("pgbackrest: terminated")
        told.append(groups.repository.backup(backup.id).message)
        return copied(*those)

    monkeypatch.setattr(groups, "back_up", back_up)
    monkeypatch.setattr(maker, "PARALLEL", 1)
    done = Maker(job(groups), backup).run()
    assert done.phase == "done", done.error
    assert told[1] == "segment-1: pgbackrest: terminated: trying again"
    assert sorted(group for group, _ in groups.made) == [0, 1, 2], "the others' copies stay"


def test_a_failover_when_all_copies_are_made_costs_none_of_them(
    groups: Groups, failover: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = points.make

    def made(*those: Any, **named: Any) -> Point:
        if failover.until < 0:
            failover.begin(LONG)
        failover.require_over()
        return make(*those, **named)

    monkeypatch.setattr(points, "make", made)
    done = Maker(job(groups), requested(groups)).run()
    assert done.phase == "done", done.error
    assert len(groups.made) == 3


def test_a_coordinator_that_fails_over_when_it_is_asked_for_segments_costs_no_copy(
    groups: Groups, failover: Failover
) -> None:
    working = job(groups)

    def segments() -> tuple[int, ...]:
        if failover.until < 0 and groups.made:
            failover.begin(LONG)
        failover.require_over()
        return (1, 2)

    engine: Any = SimpleNamespace(segments=segments)
    done = Maker(replace(working, engine=engine), requested(groups)).run()
    assert done.phase == "done", done.error
    assert len(groups.made) == 3


@pytest.mark.parametrize("wanted", [(2,), (1, 2)])
def test_a_backup_of_a_segment_alone_that_leaves_meanwhile_is_not_done(
    wanted: tuple[int, ...], groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy, and with no group named, it would pass for the last one of all groups."""
    monkeypatch.setattr(maker, "RETRY_SECONDS", 0.0)
    work = job(groups)

    def away(backup: str, group: int, *of: Any) -> GroupBackup:
        if group == 2:
            work.engine.segments = lambda: (1,)  # type: ignore[method-assign]
            raise Unavailable("segment-2 can't be reached")
        return back_up(backup, group, *of)

    back_up = groups.back_up
    monkeypatch.setattr(groups, "back_up", away)
    done = Maker(work, maker.request(groups.repository, "full", wanted)).run()
    if len(wanted) > 1:
        assert (done.phase, done.wanted, [*done.groups]) == ("done", (1,), [1])
    else:
        assert (done.phase, done.wanted, done.again) == ("failed", (2,), False)
        assert done.error == "segment-2 takes no part any more: nothing is left to copy"


def test_a_group_that_stays_away_fails_the_backup_in_the_end(
    groups: Groups, failover: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = requested(groups)
    failover.begin(100 * maker.SILENT_SECONDS)
    failed = Maker(job(groups), backup).run()
    assert (failed.phase, failed.again) == ("failed", True)
    assert failed.error == "segment-1: group 1 can't be reached: no primary"
    assert failover.now < 1000 + TRIES * (maker.SILENT_SECONDS + 4 * RETRY_SECONDS)


def test_a_copy_that_fills_the_repository_gives_its_room_to_the_record_that_it_failed(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "TRIES", 1)
    backup = requested(groups)
    repository = groups.repository
    partial = repository.folder(backup.id) / "segment-2.partial"
    whole = repository.copy_of(backup.id, 0)
    write = repository.remember_backup
    copied = groups.back_up

    def full(record: Backup) -> None:
        if partial.exists():
            raise PgherdError("could not write backup.json: No space left on device")
        assert whole.exists() or record.phase != "failed", "what is recorded is not what goes first"
        write(record)

    def back_up(*those: Any) -> GroupBackup:
        if those[1] != 2:
            return copied(*those)
        partial.mkdir()
        raise PgherdError("pg_basebackup: could not write: No space left on device")

    monkeypatch.setattr(maker, "PARALLEL", 1)
    monkeypatch.setattr(groups, "back_up", back_up)
    monkeypatch.setattr(repository, "remember_backup", full)
    ended = Maker(job(groups), backup).run()
    assert (ended.phase, ended.again) == ("failed", True)
    [known] = repository.backups()
    assert known == ended
    assert not partial.exists()
    assert not whole.exists(), "nothing is left of it in the end"


def test_a_backup_that_is_carried_on_tells_how_fast_it_goes_now(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that was away for a day has copied nothing in it."""
    known = requested(groups)
    groups.repository.copy_of(known.id, 0).mkdir(parents=True)
    long_ago = "2025-11-22T09:00:00.000+00:00"
    open_one = replace(
        known,
        phase="running",
        wanted=(0, 1, 2),
        groups={0: copy(1.0)},
        started_at=long_ago,
        bytes_done=900,
        bytes_total=1000,
    )
    groups.repository.remember_backup(open_one)
    copied, told = groups.back_up, []

    def back_up(*those: Any) -> GroupBackup:
        report = those[5]
        report(0, 1 << 30)
        report(1 << 29, 1 << 30)
        [now] = groups.repository.backups()
        told.append(now)
        return copied(*those)

    monkeypatch.setattr(maker, "PARALLEL", 1)
    monkeypatch.setattr(groups, "back_up", back_up)

    class Eager(Maker):
        def _report(self, *those: int) -> None:
            self._told = 0.0
            super()._report(*those)

    done = Eager(job(groups), open_one).run()
    assert done.phase == "done", done.error
    assert [(each.bytes_done, each.bytes_total) for each in told] == [
        (1 << 29, 2 << 30),  # the segment that has not begun is as large as a rule
        (3 << 29, 2 << 30),
    ]
    for each in told:
        rate, left = each.pace
        assert rate is not None
        assert rate > 1 << 20
        assert left is not None
        assert left < 3600
    assert (done.bytes_done, done.bytes_total) == (2 << 30, 2 << 30)
    assert done.pace == (None, None)


def test_an_archive_that_lost_its_beginning_is_no_reason_to_make_a_backup_again() -> None:
    said = "[FileMissingError] unable to load info file '/r/archive/coordinator-7/archive.info' or ..."
    assert not maker.may_pass(pgbackrest_program._failed(said))
