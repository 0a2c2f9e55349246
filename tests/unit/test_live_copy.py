"""A running cluster as a repository: its copies are made side by side, and none is left out of the record."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup.live_copy import PARALLEL, NearCopy
from pgherd.backup.records import Backup, GroupBackup, Point
from pgherd.backup.repository import Repository
from tests.support.backups import copy, point


class Copies(NearCopy):
    """Copies that all end at once; there are no servers."""

    def __init__(self, repository: Repository) -> None:
        anything: Any = SimpleNamespace(repository=repository, readable_timeline=lambda group, at: 1)
        super().__init__(anything, anything, anything, anything, lambda: False)
        self._together = threading.Barrier(PARALLEL)

    def _standby(self, group: int) -> None:
        return None

    def _copy_of(self, *arguments: Any) -> GroupBackup:
        self._together.wait(30)
        return copy(0)

    def _point(self, backup: str) -> Point:
        return point(1, groups=PARALLEL)


def test_copies_that_end_at_once_are_all_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_group = Backup.with_group

    def slowly(backup: Backup, group: int, made: GroupBackup) -> Backup:
        changed = with_group(backup, group, made)
        time.sleep(0.02)
        return changed

    monkeypatch.setattr(Backup, "with_group", slowly)
    repository = Repository(tmp_path / "shop")
    repository.create("shop")
    Copies(repository)._copy("shop", list(range(PARALLEL)), lambda group, done, total: None)
    (made,) = repository.backups()
    assert sorted(made.groups) == list(range(PARALLEL))
