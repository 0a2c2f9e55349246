"""What is remembered beside the backups: whose they are, restore points, backups, drills. In any store.

::

    repository.json              whose it is, what it was made with, and the cluster's declaration
    lock                         held while anything but logs is changed (where the store is a directory)
    points/DAY.jsonl             restore points: one line each, one more when it is archived
    backups/ID/backup.json       what a backup is, written before anything of it is made
    drills.json                  the last drills
    prints/POINT.json            what tables held at a point that a drill made
    pins/...                     which backups are being read, and so have to stay (``pins``)

All of it can be read when the cluster is gone. Points are appended, with a flush each; a line that a crash cut short is
passed over, and the next append begins a new one. Where a store can't append, a file holds an hour's points, not a
day's; if a file is damaged, the points that follow go into one beside it (``HOUR_2.jsonl``): it may be put back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from pgherd.backup import records
from pgherd.backup.archive import MARK
from pgherd.backup.records import Backup, Point
from pgherd.backup.sealed import MAGIC
from pgherd.backup.store import Damaged, Entry, Store
from pgherd.errors import BadInput, PgherdError, Unavailable, Withheld
from pgherd.model.topology import COORDINATOR, group_name
from pgherd.platform.base import Owner

T = TypeVar("T")
R = TypeVar("R")
PARALLEL = 16
"""files that are read at a time, where each is a request"""
FRESH_SECONDS = 5.0
"""how long the look at a distant repository is good"""
DRILLS = 100
"""how many are remembered"""
NEVER = float("-inf")
_ID = re.compile(r"[a-z0-9][-.a-z0-9]*")
"""of a backup; what a file server keeps for itself is called otherwise"""


class NotOurs(BadInput):
    """The repository is another cluster's."""


class Away(Withheld):
    """There is no repository in a directory: it was removed, or its disk is not mounted."""


@dataclass(frozen=True)
class Identity:
    """Whose repository it is."""

    cluster: str
    id: str
    declared: Mapping[str, Any] = field(default_factory=dict)
    """the cluster's declaration, as it was last"""
    systems: Mapping[str, str] = field(default_factory=dict)
    """the database system of each group, by the group's name, as it was last"""
    method: str = "native"
    """what its base copies and logs are made with"""
    owner: str = ""
    """the id of the cluster that may write to it; empty: nobody has said so, the systems alone tell"""

    def as_json(self) -> dict[str, Any]:
        """For :func:`identity_from`; what no platform here asks for is left out."""
        return {name: value for name, value in vars(self).items() if name != "owner" or value}


def identity_from(raw: Mapping[str, Any]) -> Identity:
    """The inverse of ``Identity.as_json``; what a later version added is passed over.

    :raises TypeError: it is none
    """
    known = {each.name for each in fields(Identity)}
    return Identity(**{name: value for name, value in raw.items() if name in known})


class Unread(Enum):
    """Why a backup's folder says nothing of it."""

    MISSING = "no record"
    LOST = "no record any more"
    DAMAGED = "damaged"
    FOREIGN = "of another version"


@dataclass(frozen=True)
class Held:
    """What the folders of backups hold, as one look found them."""

    backups: Sequence[Backup]
    """oldest first; those that ended badly too"""
    unread: Mapping[str, Unread]
    """the other folders"""
    location: str

    def complaints(self) -> dict[str, str]:
        """Of each backup whose record can't be read, or is gone: one line, with the way out."""
        found = {name: _COMPLAINTS.get(why, "") for name, why in self.unread.items()}
        return {name: text.format(name, self.location) for name, text in found.items() if text}


_COMPLAINTS = {
    Unread.LOST: (
        "backup {0} has no record any more: put backup.json in {1}/backups/{0} back from a copy or remove that folder"
    ),
    Unread.DAMAGED: (
        "the record of backup {0} is damaged: put backup.json in {1}/backups/{0} back from a copy or remove that folder"
    ),
    Unread.FOREIGN: (
        "the record of backup {0} is not understood: it is of another version of pgherd (go on with that one), or "
        "damaged (put backup.json in {1}/backups/{0} back from a copy or remove that folder)"
    ),
}


class Catalogue:
    """What is remembered of one cluster's backups.

    :param method: what base copies and logs are made with
    :param owner: tells who asks
    """

    def __init__(self, store: Store, method: str = "native", owner: Callable[[], Owner] = Owner) -> None:
        self.store = store
        self._method = method
        self._owner = owner
        self._owned = NEVER
        self._known: dict[tuple[str, str], bytes] = {}
        self._ended: dict[str, Backup] = {}
        self._had: set[str] = set()
        """backups that had a record, whatever it held"""
        self._seen = NEVER

    @property
    def location(self) -> str:
        """What to call it in messages."""
        return self.store.location

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from changing what is remembered.

        :raises PgherdError: the repository is not there
        """
        self.require()
        with self.store.locked():
            yield

    # whose it is

    def is_there(self) -> bool:
        """Whether there is a repository (it may be on a disk that is not mounted)."""
        if not self.store.near and time.monotonic() - self._seen < FRESH_SECONDS:
            return True
        found = self.store.read(MARK) is not None
        self._seen = time.monotonic() if found else NEVER
        return found

    def require(self) -> None:
        """
        :raises Away: it is not there, but its disk may come back
        :raises PgherdError: it is not there, as who keeps it says, or nobody can tell
        """
        if self.is_there():
            return
        nothing = f"there is no repository at {self.location}"
        if self.store.near:
            raise Away(f"{nothing}: see to it that its disk is mounted")
        raise PgherdError(f"{nothing}: see whether it was removed")

    def identity(self) -> Identity:
        """Whose it is.

        :raises PgherdError: it is not there, or damaged
        """
        content = self.store.read(MARK)
        if content is None:
            self.require()
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            return identity_from(json.loads(content or b""))
        if (content or b"").startswith(MAGIC):
            raise BadInput(f"{self.location} is encrypted: spec.backup.encrypt and its passphrase are needed")
        raise PgherdError(f"{self.location}/{MARK} is damaged: restore it from a copy")

    def create(self, cluster: str) -> None:
        """Begin a repository, if its place is there; no-op if there is one.

        :raises PgherdError: the place is not there, or can't be written to
        """
        if self.is_there():
            return
        self.store.create()
        with self.store.locked():
            if not self.is_there():
                owner = self._owner().id
                made = Identity(cluster, secrets.token_hex(8), method=self._method, owner=owner)
                self._write(MARK, made.as_json())

    def refuse_anothers(self) -> Identity:
        """Whose it is, before anything of it is believed or changed.

        :raises NotOurs: it says that it is another's
        """
        known, me = self.identity(), self._owner()
        try:
            check_holder(self.location, known, me)
        except NotOurs:
            self._owned = NEVER
            raise
        if me.id and known.owner == me.id:
            self._owned = time.monotonic()
        return known

    def require_own(self) -> None:
        """Refuse a repository that is not known to be this cluster's.

        :raises NotOurs: it is another's
        :raises Unavailable: nobody has claimed it yet, or it is to be taken over: its keeper tells
        """
        if self.store.near or time.monotonic() - self._owned >= FRESH_SECONDS:
            known, me = self.refuse_anothers(), self._owner()
            if known.owner != me.id and me.id:
                raise Unavailable(
                    f"{self.location}: whose backups it holds is known once the databases answer"
                )

    def is_own(self) -> bool:
        """Whether it was found to be this cluster's. Asks nobody but the platform."""
        return self._owned != NEVER or not self._owner().id

    def claim(self, systems: Mapping[int, str], declared: Mapping[str, Any]) -> None:
        """Remember what the cluster is now.

        :raises BadInput: the repository holds the backups of another one
        """
        me = self._owner()
        named = {group_name(group): system for group, system in systems.items()}

        def wanted(known: Identity) -> Identity:
            check_owner(self.location, known, named.get(group_name(COORDINATOR)), self._method)
            systems_now = {**known.systems, **named}
            return replace(known, declared=dict(declared), systems=systems_now, owner=me.id or known.owner)

        known = self.refuse_anothers()
        if wanted(known) != known:
            with self.locked():
                # Of two that claim it at once the second one sees whose it is by now.
                self._write(MARK, wanted(self.refuse_anothers()).as_json())
        if me.id:
            self._owned = time.monotonic()

    # points

    def points(self, *, days: int = 0) -> list[Point]:
        """Every restore point, oldest first.

        :param days: only those of the last so many days on which there were any; 0: all
        :raises Away: the repository is away, which is not to be taken for one without points
        """
        return self.points_and_damage(days=days)[0]

    def points_and_damage(self, *, days: int = 0) -> tuple[list[Point], list[str]]:
        """The same, and the files of points of which nothing can be read.

        :param days: as in :meth:`points`
        :raises Away: as there
        """

        def look() -> tuple[list[Point], list[str]]:
            entries = self._point_files(days)
            contents = self._contents(entries)
            empty = [entry.name for entry, content in zip(entries, contents, strict=True) if not content]
            damaged = [name for name in empty if self.store.is_damaged(name)]  # it may have gone meanwhile
            return _points_in(contents), damaged

        return self._there(look)

    def point(self, name: str) -> Point | None:
        """A point by the name that ``points.new_name`` gave it; None: there is none."""
        named = datetime.strptime("-".join(name.split("-")[1:3]), "%Y%m%d-%H%M%S")
        # It is kept under the time at which it was made, and clocks are set.
        around = {f"{named + timedelta(days=days):%Y-%m-%d}" for days in (-1, 0, 1)}
        entries = [entry for entry in self.store.names("points") if _day(entry) in around]
        return next((each for each in _points_in(self._contents(entries)) if each.name == name), None)

    def _point_files(self, days: int) -> list[Entry]:
        entries = [entry for entry in self.store.names("points") if entry.name.endswith(".jsonl")]
        last = sorted({_day(entry) for entry in entries})[-days:]
        return [entry for entry in entries if _day(entry) in last]

    def points_version(self) -> tuple[str, str | None] | None:
        """Something that differs whenever a point was written down. Cheap."""
        entries = [entry for entry in self.store.names("points") if entry.name.endswith(".jsonl")]
        return (entries[-1].name, entries[-1].version) if entries else None

    def remember_point(self, point: Point) -> None:
        """Write a point down, or what became of it."""
        when = point.time[: 10 if self.store.grows else 13]
        # A line of its own, whatever a crash left before it.
        line = b"\n" + json.dumps(point.as_json()).encode() + b"\n"
        with self.locked():
            for number in itertools.count(1):
                with contextlib.suppress(Damaged):
                    # In order after the first: should that be put back, what became of a point later counts.
                    self.store.append(f"points/{when}{f'_{number}' if number > 1 else ''}.jsonl", line)
                    return

    def forget_points(self, names: set[str]) -> None:
        """Let points go that can't be restored any more."""
        with self.locked():
            for entry in self.store.names("points"):
                self._rewrite(entry.name, names)

    def _rewrite(self, name: str, gone: set[str]) -> None:
        kept: list[str] = []
        lost = False
        for line in (self.store.read(name) or b"").decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                if json.loads(line)["name"] in gone:
                    lost = True
                else:
                    kept.append(line)
        if lost and kept:
            self.store.write(name, ("\n".join(kept) + "\n").encode())
        elif lost:
            self.store.remove(name)

    # backups

    def backups(self) -> Sequence[Backup]:
        """Every backup, oldest first; those that ended badly too."""
        return self.held().backups

    def held(self) -> Held:
        """Every backup, and what else is in their place.

        :raises Away: the repository is away, which is not to be taken for an empty one
        """
        return self._there(self._look)

    def _look(self) -> Held:
        names = self.store.folders("backups")
        found = dict(zip(names, self._each(self._record, names), strict=True))
        backups = [each for each in found.values() if isinstance(each, Backup)]
        return Held(
            sorted(backups, key=lambda backup: (backup.requested_at, backup.id)),
            {name: each for name, each in found.items() if isinstance(each, Unread)},
            self.location,
        )

    def _record(self, backup: str) -> Backup | Unread:
        """One backup's record; one that has ended does not change any more."""
        if backup not in self._ended:
            content = self.store.read(_record_of(backup))
            if content is None and self._has_lost_record(backup):
                content = self.store.read(_record_of(backup))  # it may have come meanwhile
                if content is None:
                    return Unread.LOST
            if content is None:
                return Unread.MISSING
            self._had.add(backup)
            found = _backup_in(content)
            if isinstance(found, Unread) or found.is_open or self.store.near:
                return found
            self._ended[backup] = found
        return self._ended[backup]

    def _has_lost_record(self, backup: str) -> bool:
        """Whether a folder without a record is known to have had one: it is written before anything else. Copies that
        are not complete tell nothing: they are not worth holding anything for."""
        if not _ID.fullmatch(backup):
            return False
        folder = f"backups/{backup}"
        inside = [*(entry.name for entry in self.store.names(folder)), *self.store.folders(folder)]
        if any(not name.endswith(".partial") for name in inside):
            return True
        return backup in self._had and backup in self.store.folders("backups")

    def backup(self, backup: str) -> Backup:
        """One backup.

        :raises BadInput: there is none of this name
        """
        held = self.held()
        for found in held.backups:
            if found.id == backup:
                return found
        raise BadInput(
            held.complaints().get(backup)
            or f"there is no backup {backup} in {self.location}: 'pgherd backups' shows what there is"
        )

    def nameless(self) -> list[str]:
        """Folders of backups whose record was never written, is gone or torn: nobody knows what they hold."""
        return [name for name, why in self.held().unread.items() if why is not Unread.FOREIGN]

    def remember_backup(self, backup: Backup) -> None:
        """Write a backup's record; before anything of it is made. Always durably: without it the copies are lost."""
        with self.locked():
            self._write(_record_of(backup.id), backup.as_json())

    def remove_backup(self, backup: str) -> None:
        """Remove a backup, record and copies."""
        with self.locked():
            self.store.remove(f"backups/{backup}")

    def without_record(self, backups: Iterable[str]) -> list[str]:
        """Those of these backups that have no record as the store says now, whatever it said before."""
        return self._there(lambda: [each for each in backups if self.store.read(_record_of(each)) is None])

    # drills

    def drills(self) -> list[dict[str, Any]]:
        """The last drills, oldest first; none if they can't be read."""
        with contextlib.suppress(PgherdError):
            return self.known_drills()
        return []

    def known_drills(self) -> list[dict[str, Any]]:
        """The same; none if what is there is no list of drills.

        :raises PgherdError: the repository does not answer
        """
        with contextlib.suppress(ValueError):
            found = json.loads(self.store.read("drills.json") or b"[]")
            return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        return []

    def remember_drill(self, result: Mapping[str, Any]) -> None:
        """Write a drill down; no-op if that one is."""
        with self.locked():
            before = self.known_drills()[-(DRILLS - 1) :]
            if result.get("id") in {each["id"] for each in before if "id" in each}:
                return
            self.store.write("drills.json", (json.dumps([*before, result], indent=2) + "\n").encode())

    def remember_prints(self, point: str, prints: Sequence[Mapping[str, Any]]) -> None:
        """Write down what tables held at a point; what is known of points that are gone goes."""
        with self.locked():
            self._write(f"prints/{point}.json", {"prints": list(prints)})
            known, damaged = self.points_and_damage()
            if damaged:
                return  # those of points that may be readable again stay
            names = {each.name for each in known}
            for entry in self.store.names("prints"):
                if entry.name.removeprefix("prints/").removesuffix(".json") not in names:
                    self.store.remove(entry.name)

    def prints(self, point: str) -> list[dict[str, Any]]:
        """What tables held at a point.

        :raises PgherdError: it was not written down, or is damaged
        """
        with contextlib.suppress(ValueError, TypeError, LookupError):
            return list(json.loads(self.store.read(f"prints/{point}.json") or b"")["prints"])
        raise PgherdError(f"{self.location}/prints/{point}.json is not there any more, or damaged")

    # files

    def contents(self, folder: str) -> dict[str, bytes]:
        """What is in the JSON files directly in a folder, by their names; nothing in those that are damaged.

        :raises Away: the repository is away, which is not to be taken for an empty folder
        """

        def look() -> dict[str, bytes]:
            names = [entry.name for entry in self.store.names(folder) if entry.name.endswith(".json")]
            found = zip(names, self._each(self.store.read, names), strict=True)
            return {name: content for name, content in found if content is not None}

        return self._there(look)

    def _there(self, look: Callable[[], R]) -> R:
        """What a look finds. A disk that has dropped seems to hold nothing: it has to be there before and after.

        :raises Away: it was not
        """
        if not self.store.near:
            return look()  # whoever is asked says so
        self.require()
        found = look()
        self.require()
        return found

    def _contents(self, entries: list[Entry]) -> list[bytes]:
        """The contents of files, of which those that have not changed are remembered."""

        def read(entry: Entry) -> bytes:
            if entry.version is None or self.store.grows:
                return self.store.read(entry.name) or b""
            key = (entry.name, entry.version)
            if key not in self._known:
                content = self.store.read(entry.name)
                if not content:
                    return b""  # not remembered: what is damaged may be put back as it was, in place
                self._known[key] = content
            return self._known[key]

        found = self._each(read, entries)
        current = {(entry.name, entry.version) for entry in entries}
        names = {entry.name for entry in entries}
        for key in [key for key in self._known if key[0] in names and key not in current]:
            self._known.pop(key, None)
        return found

    def _each(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Side by side where each is a request."""
        if self.store.near or len(items) < 2:
            return list(map(do, items))
        with ThreadPoolExecutor(max_workers=min(PARALLEL, len(items))) as pool:
            return list(pool.map(do, items))

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        self.store.write(name, (json.dumps(dict(value), indent=2) + "\n").encode())


def _record_of(backup: str) -> str:
    return f"backups/{backup}/backup.json"


def _points_in(contents: list[bytes]) -> list[Point]:
    """Points by time; of each what was written down of it last."""
    found: dict[str, Point] = {}
    for content in contents:
        for line in content.decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
                point = records.point_from(json.loads(line))
                found[point.name] = point
    return sorted(found.values(), key=lambda point: point.time)


def _backup_in(content: bytes) -> Backup | Unread:
    try:
        raw = json.loads(content)
    except ValueError:
        return Unread.DAMAGED
    if not isinstance(raw, dict):
        return Unread.DAMAGED
    try:
        return records.backup_from(raw)
    except (ValueError, TypeError, LookupError, AttributeError):
        return Unread.FOREIGN


def _day(entry: Entry) -> str:
    return entry.name.rpartition("/")[2][:10]


def check_holder(location: object, known: Identity, me: Owner) -> None:
    """Refuse a repository that says that it is another cluster's; one that says nothing passes.

    :raises NotOurs: in one line
    """
    if not me.id or known.owner in ("", me.id) or known.owner == me.takes_over:
        return
    raise NotOurs(
        f"spec.backup.repository: {location} holds the backups of another cluster, {known.owner}: "
        f"{me.hint.format(owner=known.owner) or 'name another place'}"
    )


def check_owner(location: object, known: Identity, coordinator: str | None, method: str = "native") -> None:
    """Refuse another cluster's repository.

    :param coordinator: the database system of the coordinator; None: it has no data yet
    :raises BadInput: in one line
    """
    before = known.systems.get(group_name(COORDINATOR))
    if before is not None and before != coordinator:
        raise BadInput(
            f"spec.backup.repository.path: {location} holds the backups of another cluster that was called "
            f"{known.cluster}: name another path, or move these away"
        )
    if known.method != method:
        raise BadInput(
            f"spec.backup.method: {location} holds backups made with {known.method}: go on with it, or name another "
            "repository"
        )
