"""What of the groups' logs pgBackRest has archived, read off the names in its repository.

Below ``archive/STANZA/VERSION-1/`` histories lie as they are, files of the log in folders of 256 each, their names
followed by a checksum. In a distant repository a full folder is not listed all the time: nothing comes to it any more.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping

from pgherd.backup import wal
from pgherd.backup.pgbackrest_config import FOLDER
from pgherd.backup.records import GroupPoint
from pgherd.backup.store import Store

_FILE = re.compile(r"([0-9A-F]{24})-[0-9a-f]{40}(\.\w+)?")
_FOLDER = re.compile(r"[0-9A-F]{16}")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history(\.\w+)?")
AGAIN_SECONDS, FRESH_SECONDS, FULL_SECONDS = 1.0, 5.0, 600.0
"""between two looks into the same folder of a distant repository: for a file that is awaited, for all files, and where
only retention changes anything"""
SETTLED_SECONDS = 60.0
"""until nothing comes to a full folder any more: files may be sent side by side, and by several members"""


class ArchivedLog:
    """The archived logs of one repository.

    :param store: the repository as it is
    :param fetch: gets a file of pgBackRest's, decrypted
    """

    def __init__(self, store: Store, fetch: Callable[[str], bytes]) -> None:
        self._store = store
        self._fetch = fetch
        self._histories: dict[str, wal.History] = {}
        self._seen: dict[str, tuple[float, frozenset[str]]] = {}
        self._full: dict[str, float] = {}
        """since when folders are known to be full"""

    def readable_timeline(self, stanza: str, at: GroupPoint) -> int | None:
        """The timeline on which a point can be reached; None: not yet."""
        lsn = wal.parse_lsn(at.lsn)
        archived = _Files(lambda name: self._is_archived(stanza, name))
        return wal.readable_timeline(at.timeline, lsn, self.histories(stanza), archived)

    def histories(self, stanza: str) -> list[wal.History]:
        """The histories of a system's timelines."""
        found = []
        for folder in self._archives(stanza):
            for entry in self._store.names(folder):
                match = _HISTORY.fullmatch(entry.name.rpartition("/")[2])
                if match is not None:
                    found.append(self._history(entry.name, int(match[1], 16)))
        return found

    def _history(self, name: str, timeline: int) -> wal.History:
        if name not in self._histories:
            text = self._fetch(name.removeprefix(f"{FOLDER}/")).decode(errors="replace")
            self._histories[name] = wal.parse_history(timeline, text)
        return self._histories[name]

    def _archives(self, stanza: str) -> list[str]:
        base = f"{FOLDER}/archive/{stanza}"
        return [f"{base}/{name}" for name in self._store.folders(base)]

    def _is_archived(self, stanza: str, name: str) -> bool:
        return any(name in self._names(f"{archive}/{name[:16]}") for archive in self._archives(stanza))

    def names(self, stanza: str) -> frozenset[str]:
        """All archived files of a log, without histories."""
        found: set[str] = set()
        for archive in self._archives(stanza):
            folders = [name for name in self._store.folders(archive) if _FOLDER.fullmatch(name)]
            newest = {name[:8]: name for name in sorted(folders)}
            for name in folders:
                path = f"{archive}/{name}"
                is_full = newest[name[:8]] != name
                found |= self._names(path, self._good(path) if is_full else FRESH_SECONDS)
        return frozenset(found)

    def _good(self, folder: str) -> float:
        """How long a look into a full folder is good. One from before lacks its last files, which looks like a hole."""
        full = self._full.setdefault(folder, time.monotonic())
        looked, _ = self._seen.get(folder, (float("-inf"), None))
        if looked < full:
            return 0.0
        return FULL_SECONDS if looked > full + SETTLED_SECONDS else FRESH_SECONDS

    def _names(self, folder: str, good: float = AGAIN_SECONDS) -> frozenset[str]:
        looked, known = self._seen.get(folder, (float("-inf"), frozenset()))
        if not self._store.near and time.monotonic() - looked < good:
            return known
        entries = (_FILE.fullmatch(entry.name.rpartition("/")[2]) for entry in self._store.names(folder))
        names = frozenset(match[1] for match in entries if match is not None)
        self._seen[folder] = (time.monotonic(), names)
        return names


class _Files(Mapping[str, object]):
    """The archived files by name, of which only those are looked for that somebody asks for."""

    def __init__(self, there: Callable[[str], bool]) -> None:
        self._there = there

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._there(name)

    def __getitem__(self, name: str) -> object:
        if name in self:
            return name
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        raise TypeError("nobody lists all files of a log")

    def __len__(self) -> int:
        raise TypeError("nobody counts all files of a log")
