"""A backup that goes on after its groups went another way: it is done only with copies that lead to its point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.backup import maker, points, records
from pgherd.backup.base import Report
from pgherd.backup.maker import Job, Maker
from pgherd.backup.native import Native
from pgherd.backup.points import Standing
from pgherd.backup.records import Backup, BackupType, GroupBackup, GroupPoint, Point
from pgherd.errors import BadInput
from pgherd.platform.base import Programs
from tests.support.backups import SYSTEM, backup, copy, lsn

LEFT = f'1\t{lsn(1.05)}\tat restore point "p-1"\n'
"""all groups were taken back to a place within the copy that was made at 1"""


class Groups(Native):
    """Groups that are all on one timeline, and whose copies are folders with a note; the repository is a real one."""

    timeline = 1

    def __init__(self, root: Path) -> None:
        super().__init__(root, _no_programs)
        self.made: list[tuple[int, str | None]] = []

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
        return copy(float(self.timeline), "full" if parent is None else kind, parent, timeline=self.timeline)

    def go_back(self) -> None:
        """A restore in place."""
        self.timeline = 2
        for group in range(3):
            folder = self.repository.logs(group) / SYSTEM
            folder.mkdir(parents=True)
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
