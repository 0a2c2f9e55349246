"""Where a new cluster's first members are put together: in their own folders, beside the place of their data.

A folder is the member's from the beginning, so a deletion in the middle removes what is there. What is unfinished has
another name than ``data``, by which everybody knows a member's data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgherd.errors import PgherdError
from pgherd.model.topology import Endpoint, Member
from pgherd.platform.base import NothingBefore, Workshop
from pgherd.platform.local import files, processes
from pgherd.platform.local.layout import Layout
from pgherd.platform.machine import Machine

OF_THE_SOURCE = ("patroni.dynamic.json", "backup_manifest", "postmaster.opts", "backup_label.old")
"""what a copy carries along that would mislead the new member: how the other cluster is configured, among others"""


class LocalWorkshop(Workshop):
    """See :class:`~pgherd.platform.base.Workshop`.

    :param locked: the home's lock, as a context manager
    :param reserve: gives a member its ports
    :param machine: gives this machine
    """

    def __init__(
        self,
        layout: Layout,
        cluster: str,
        locked: Callable[[], Any],
        reserve: Callable[[Member], Endpoint],
        machine: Callable[[], Machine],
    ) -> None:
        self._layout = layout
        self._cluster = cluster
        self._locked = locked
        self._reserve = reserve
        self._machine = machine

    def machine(self, member: Member) -> Machine:
        return self._machine()

    def folder(self, member: Member) -> Path:
        folder = self._layout.member(member).directory
        with files.explained(f"make {folder}"):
            folder.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
        return folder

    def log(self, member: Member) -> Path:
        return self._layout.member(member).log

    def is_trial(self) -> bool:
        # Whoever makes the drill has written it down, from before the scratch is declared.
        return any(_scratch_in(note) == self._cluster for note in self._layout.home.glob("*/drill.json"))

    def scratch(self) -> Path:
        return self._layout.cluster(self._cluster) / "source"

    def reserve(self, members: Sequence[Member]) -> Mapping[str, Endpoint]:
        return {member.name: self._reserve(member) for member in members}

    def place(self, member: Member, data: Path) -> None:
        layout = self._layout.member(member)
        with self._locked():
            if not data.is_dir():
                if (layout.data / "global" / "pg_control").is_file():
                    return  # placed before
                raise PgherdError(f"there are no restored data of {member.name} in {data}")
            for name in OF_THE_SOURCE:
                (data / name).unlink(missing_ok=True)
            with files.explained(f"put {layout.data} in its place"):
                files.sync_directory(data)
                data.rename(layout.data)
                files.sync_directory(layout.directory)

    def set_aside(self) -> None:
        aside, members = self._layout.aside(self._cluster), self._layout.members(self._cluster)
        groups = self._layout.groups(self._cluster)
        with self._locked(), files.explained(f"set {members} aside"):
            aside.mkdir(exist_ok=True, mode=files.PRIVATE_DIRECTORY)
            if not (aside / members.name).exists():
                members.rename(aside / members.name)
            # Their places in Patroni's store know of a log that was longer: the new members get new ones.
            if groups.exists():
                groups.replace(aside / groups.name)
            for each in (aside, aside.parent):
                files.sync_directory(each)

    def put_back(self) -> Mapping[str, Any]:
        aside, members = self._layout.aside(self._cluster), self._layout.members(self._cluster)
        groups = self._layout.groups(self._cluster)
        with self._locked(), files.explained(f"put {members} back"):
            self._begin_return(aside / members.name)
            if not aside.exists():
                return {}
            if (aside / members.name).exists():
                files.hide(members)
                (aside / members.name).rename(members)
            if (aside / groups.name).exists():
                (aside / groups.name).replace(groups)
            files.sync_directory(aside.parent)
            files.remove(aside)
        files.sweep(members.parent, members.name)
        return {}

    def _begin_return(self, kept: Path) -> None:
        """Written down before anything is moved: afterwards nobody can tell what was put back from what was removed."""
        state = self.read_state() or {}
        if state.get("returning"):
            return
        if kept.exists():
            self.write_state({**state, "returning": True})
        elif "aside" in state.get("steps", ()):
            raise NothingBefore(f"what {self._cluster} was before its restore is gone from {kept.parent}")

    @property
    def kept(self) -> Sequence[str]:
        aside = self._layout.aside(self._cluster)
        return [str(aside)] if aside.exists() else []

    def end_processes(self, member: Member, data: Path) -> None:
        processes.end_postgres(self._layout.member(member).directory, data)

    def read_state(self) -> dict[str, Any] | None:
        state = files.read_json(self._layout.restore(self._cluster))
        return state if isinstance(state, dict) else None

    def write_state(self, state: Mapping[str, Any]) -> None:
        with self._locked():
            # Not into a folder that a deletion has just removed.
            if self._layout.declaration(self._cluster).exists():
                files.write_json(self._layout.restore(self._cluster), state)


def _scratch_in(note: Path) -> object:
    """Which cluster a drill's note speaks of; None: nobody can tell."""
    with suppress(PgherdError):
        return (files.read_json(note) or {}).get("scratch")
    return None
