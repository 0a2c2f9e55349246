"""Where one group is rebuilt while the rest of its cluster goes on: a folder beside the members'.

::

    HOME/NAME/repairs/GROUP/wish.json     what was asked for
    HOME/NAME/repairs/GROUP/state.json    how far it is
    HOME/NAME/repairs/GROUP/data/         the data directory while it is made
    HOME/NAME/repairs/GROUP/before/       what was left in the members' places

The members' places are taken as a whole, with their configurations: the group gets a new place in Patroni's store,
because the old one knows of a log that may have been longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgherd.errors import PgherdError
from pgherd.model.topology import Member, group_name
from pgherd.platform.base import PLACING, REPAIR_ENDED
from pgherd.platform.bench import Bench, LastWords
from pgherd.platform.local import endings, files, processes
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.workshop import OF_THE_SOURCE
from pgherd.platform.machine import Machine


class LocalBench(Bench):
    """See :class:`~pgherd.platform.base.Bench`.

    :param locked: the home's lock, as a context manager
    :param members: the group's members that exist in any form, by ordinal
    :param is_running: whether a member's Patroni runs
    :param machine: gives this machine
    :param store_lsn: what the group's leader last told Patroni's store
    :param leave_store: give the group's place in Patroni's store up
    """

    def __init__(
        self,
        layout: Layout,
        cluster: str,
        group: int,
        *,
        locked: Callable[[], Any],
        members: Callable[[], Sequence[Member]],
        is_running: Callable[[Member], bool],
        machine: Callable[[], Machine],
        store_lsn: Callable[[], int | None],
        leave_store: Callable[[], None],
    ) -> None:
        self._layout = layout
        self._cluster = cluster
        self._first = Member(cluster, group, 0)
        self._root = layout.repairs(cluster) / group_name(group)
        self._locked = locked
        self._members = members
        self._is_running = is_running
        self._machine = machine
        self._store_lsn = store_lsn
        self._leave_store = leave_store

    def folder(self) -> Path:
        with files.explained(f"make {self._root}"):
            self._root.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
        return self._root

    @property
    def data(self) -> Path:
        return self._root / "data"

    def machine(self) -> Machine:
        return self._machine()

    def drop(self) -> None:
        self.end_processes()
        files.remove(self.data)

    def tidy(self) -> None:
        """Whoever was killed when a repair had ended may have left a whole copy of the group behind."""
        wish, state = self.read("wish") or {}, self.read("state") or {}
        # Another one that is asked for removes it itself, and then makes its own there.
        if state.get("phase") in REPAIR_ENDED and wish.get("id") == state.get("id") and self.data.exists():
            self.drop()

    def last_words(self) -> LastWords:
        members = self._members()
        left = [str(data) for each in members if any_file(data := self._layout.member(each).data)]
        return LastWords(
            {each.name: endings.of(self._layout, each) for each in members}, self._store_lsn(), left
        )

    def is_quiet(self) -> bool:
        return not any(self._is_running(each) for each in self._members())

    def set_aside(self) -> None:
        before = self._before
        with self._locked(), files.explained(f"set the data of {self._first.scope} aside"):
            if not self.is_quiet():
                raise PgherdError(f"a member of {self._first.scope} runs again: its data can't be set aside")
            before.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
            for member in self._members():
                place = self._layout.member(member).directory
                if place.exists():
                    processes.end_postgres(place, self._layout.member(member).data)
                    place.rename(before / member.name)
            for each in (before, self._root, self._layout.members(self._cluster)):
                files.sync_directory(each)
            self._leave_store()

    @property
    def in_force(self) -> bool:
        is_placed = self._layout.member(self._first).has_data and not self.data.exists()
        return is_placed and self.kept is not None

    def put_back(self) -> None:
        with self._locked(), files.explained(f"put the data of {self._first.scope} back"):
            if not self._before.exists() or self._layout.member(self._first).has_data:
                return
            members = self._layout.members(self._cluster)
            names = [path.name for path in self._before.iterdir()]
            for name in names:
                files.hide(members / name)
                (self._before / name).rename(members / name)
            files.sync_directory(members)
            files.remove(self._before)
        for name in names:
            files.sweep(members, name)

    def place(self, prepare: Callable[[Machine, Path], None]) -> None:
        layout, data = self._layout.member(self._first), self.data
        if data.is_dir():
            prepare(self.machine(), data)
        with self._locked():
            if not data.is_dir():
                return
            for name in OF_THE_SOURCE:
                (data / name).unlink(missing_ok=True)
            with files.explained(f"put {layout.data} in its place"):
                layout.directory.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
                files.sync_directory(data)
                data.rename(layout.data)
                for each in (layout.directory, layout.directory.parent, self._root):
                    files.sync_directory(each)

    def end_processes(self) -> None:
        processes.end_postgres(self._root, self.data)

    def read(self, what: str) -> dict[str, Any] | None:
        found = files.read_json(self._root / f"{what}.json")
        return found if isinstance(found, dict) else None

    def write(self, what: str, value: Mapping[str, Any]) -> None:
        with self._locked():
            if self._layout.declaration(self._cluster).exists():
                files.write_json(self.folder() / f"{what}.json", value)

    @property
    def _before(self) -> Path:
        return self._root / "before"

    @property
    def kept(self) -> str | None:
        return str(self._before) if any_file(self._before) else None

    def clear(self) -> None:
        with self._locked():
            files.hide(self._root)
        # A whole group's data: nobody else of the home waits until they are gone.
        files.sweep(self._root.parent, self._root.name)

    @property
    def is_placing(self) -> bool:
        """Whether no member of the group may be started now."""
        return (self.read("state") or {}).get("phase") == PLACING


def any_file(folder: Path) -> bool:
    """Whether there is anything in a folder."""
    try:
        return any(True for _ in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
