"""Who reads the copies of a repository: retention leaves them, and the log that they need, until that has ended.

::

    pins/READER.json        which backups somebody reads, since when; written anew every minute
    pins/expiring.json      the backups that retention is about to remove

Readers may be on other machines, where no lock of ours reaches. So each side first writes down what it is about to do,
and then looks for the other: a reader writes its pin, and goes on if its backups are neither in ``expiring.json`` nor
gone; retention writes ``expiring.json``, and removes what no pin names that is there after that. Of two at once one at
least sees the other. Both write into the same folder: whoever writes to a folder of a share sees what others did there.

A pin is renewed while its reader lives. It lapses once its time is more than a day off, and whoever keeps the
repository has seen besides, for an hour, that nobody renews it: clocks of several machines need not agree. One that
can't be read holds everything, as other records do, and lapses when it was seen unchanged for a day.

What retention wrote down goes with it, also if it is cut short. One that is killed can't do that: whoever keeps the
repository next does, and whoever waits to read minds it no more once he has seen it unchanged for an hour, or knows
that nobody keeps the repository. Should there be somebody after all he looks for pins before each backup that goes.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pgherd.backup import presence
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import NEVER, Catalogue
from pgherd.backup.choice import Waste
from pgherd.backup.maker import is_full
from pgherd.backup.records import moment, now, seconds_since
from pgherd.errors import PgherdError, Refused, Unavailable, Withheld, one_line

logger = logging.getLogger(__name__)

FOLDER = "pins"
EXPIRING = f"{FOLDER}/expiring.json"
RENEW_SECONDS = 60.0
"""between two times that a reader writes its pin"""
LAPSE_SECONDS = 24 * 3600.0
"""how far off the time of a pin has to be for nobody to be expected any more"""
WATCHED_SECONDS = 3600.0
"""for how long nobody must have been seen to renew it besides; and how long what retention is about to remove is minded
while nobody is seen to write it anew"""
KEY = "pin"
"""where a reader's state says what its pin is called"""
UNPINNED = "unpinned"
"""where it says why nothing keeps retention off"""


@dataclass(frozen=True)
class Pin:
    """That somebody reads."""

    reader: str
    """who, for people"""
    backups: tuple[str, ...]
    since: str
    renewed: str

    def told(self) -> dict[str, Any]:
        """For the status."""
        return {"reader": self.reader, "backups": list(self.backups), "since": self.since}


def _pin_in(content: bytes) -> Pin | None:
    """None: nobody can tell what is read."""
    try:
        raw = json.loads(content)
        backups = raw["backups"]
        if not isinstance(backups, list) or not all(isinstance(each, str) for each in backups):
            return None
        pin = Pin(str(raw["reader"]), tuple(backups), raw["since"], raw["renewed"])
        return replace(pin, since=moment(pin.since).isoformat(), renewed=moment(pin.renewed).isoformat())
    except (ValueError, TypeError, LookupError):
        return None


# who reads


class Reading:
    """One reader's pin.

    :param name: what the pin's name begins with
    :param reader: who, for people
    :param state: what is written down of the reader
    :param tell: adds to that; may be called by another thread
    :param is_unkept: whether nobody is left who keeps that repository, as is known
    """

    def __init__(
        self,
        method: BackupMethod,
        name: str,
        reader: str,
        state: Callable[[], Mapping[str, Any]],
        tell: Callable[..., None],
        is_unkept: Callable[[], bool] = lambda: False,
    ) -> None:
        self._method = method
        self._name = name
        self._reader = f"{reader} at {socket.gethostname()}"
        self._state = state
        self._tell = tell
        self._is_unkept = is_unkept
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._begun = False
        self._written = NEVER

    def begin(self, backups: Iterable[str], unread: Collection[str] | None = None) -> None:
        """Pin backups from now on, also those that a process pinned that was killed; no-op without any, or once begun.

        Where nobody may write to the repository, or it is full, it is read all the same: that is told.

        :param unread: those whose copies are still to be read; None: all of them
        :raises Unavailable: retention is about to remove some
        :raises PgherdError: some are gone, or the repository is away
        """
        wanted = tuple(dict.fromkeys(backups))
        if not wanted or self._begun:
            return
        if not self._state().get(KEY):
            # Before there is one: whoever goes on has to know what to remove.
            self._tell(**{KEY: f"{self._name}-{secrets.token_hex(8)}"})
        pin = Pin(self._reader, wanted, now(), now())
        try:
            self._write(pin)
        except PgherdError as error:
            if isinstance(error, Withheld) and not isinstance(error, Refused):
                raise
            if (away := presence.obstacle(self._method)) is not None:
                raise away from error
            self._note(one_line(error))
        else:
            self._note("")
        self._require(wanted, wanted if unread is None else unread)
        self._begun = True
        threading.Thread(target=self._renew, args=(pin,), name=f"pin-{self._name}", daemon=True).start()

    def end(self, *, over: bool) -> None:
        """Renew it no more.

        :param over: nobody goes on with this: it is removed
        """
        self._over.set()
        with self._guard:
            if not over or not self._state().get(KEY):
                return
            try:
                remove(self._method.repository, self._state()[KEY])
            except PgherdError as error:
                logger.warning("the pin of the %s stays until it lapses: %s", self._reader, error)

    @property
    def _file(self) -> str:
        return f"{FOLDER}/{self._state()[KEY]}.json"

    def _write(self, pin: Pin) -> None:
        repository = self._method.repository
        repository.require()  # nothing is to be made where its disk is not mounted
        repository.store.write(self._file, (json.dumps(asdict(pin), indent=2) + "\n").encode())
        self._written = time.monotonic()

    def _renew(self, pin: Pin) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with self._guard:
                if self._over.is_set():
                    return
                try:
                    self._write(replace(pin, renewed=now()))
                    self._note("")
                except Exception as error:  # whatever it was may pass, and what reads goes on
                    logger.info("the pin of the %s is not renewed: %s", self._reader, one_line(error))
                    if time.monotonic() - self._written > WATCHED_SECONDS:
                        self._note(one_line(error) or repr(error))

    def _note(self, why: str) -> None:
        """Tell that nothing keeps retention off, or that something does."""
        told = f"retention may remove what is read: its pin can't be written ({why})" if why else None
        if told == self._state().get(UNPINNED):
            return
        if told:
            logger.warning("%s: %s", self._reader, told)
        try:
            self._tell(**{UNPINNED: told})
        except PgherdError as error:
            logger.info("%s: what keeps its pin from being written can't be told: %s", self._reader, error)

    def _require(self, wanted: Collection[str], unread: Collection[str]) -> None:
        repository = self._method.repository
        require_left(repository, wanted, self._is_unkept)
        if gone := repository.without_record(unread):
            raise PgherdError(f"{', '.join(gone)}, which is to be read, is gone from {repository.location}")


def require_left(
    repository: Catalogue, wanted: Collection[str], is_unkept: Callable[[], bool] = lambda: False
) -> None:
    """Refuse to read what retention is about to remove.

    :raises Unavailable: that is some of it, or nobody can tell
    """
    content = repository.store.read(EXPIRING)
    if content is None or not (said := _announced(content, wanted)):
        return
    if is_unkept() or _unchanged_for(repository, content) >= WATCHED_SECONDS:
        _drop(repository, content)
        return
    raise Unavailable(
        f"{said}; what a retention left there that was killed is minded for an hour: if nobody keeps "
        f"{repository.location} any more, remove {EXPIRING} there"
    )


def remove(repository: Catalogue, pin: str) -> None:
    """Remove a reader's pin, who never goes on.

    :param pin: what it is called
    :raises PgherdError: the repository is away
    """
    repository.store.remove(f"{FOLDER}/{pin}.json")


def _announced(content: bytes, wanted: Collection[str]) -> str:
    """Why some of these should not be read; empty: they may be."""
    backups = _going(content)
    if backups is None:
        return _DAMAGED
    going = ", ".join(each for each in wanted if each in backups)
    return going and f"retention is about to remove {going}, and leaves it once it finds that it is read"


def _going(content: bytes) -> Collection[str] | None:
    """What retention announced; None: that can't be read."""
    try:
        return set(json.loads(content)["backups"])
    except (ValueError, TypeError, LookupError):
        return None


_DAMAGED = (
    f"{EXPIRING} is damaged, and nobody knows what retention is about to remove: it writes that anew within the "
    "hour"
)
_watched: dict[str, tuple[bytes, float]] = {}
"""what was seen last in the files of repositories, by where they are, and since when"""


def _unchanged_for(repository: Catalogue, content: bytes) -> float:
    """For how long this process has seen nothing else, in seconds."""
    known = _watched.get(repository.location)
    if known is None or known[0] != content:
        known = _watched[repository.location] = (content, time.monotonic())
    return time.monotonic() - known[1]


def _drop(repository: Catalogue, content: bytes) -> None:
    logger.warning("%s in %s has lapsed: nobody removes anything there", EXPIRING, repository.location)
    _watched.pop(repository.location, None)
    with suppress(PgherdError):  # where nobody may write it is read all the same
        if repository.store.read(EXPIRING) == content:
            repository.store.remove(EXPIRING)


def is_any_to_go(repository: Catalogue, backups: Collection[str]) -> bool:
    """Whether retention is about to remove some of these, or at it.

    :raises Unavailable: nobody can tell
    """
    content = repository.store.read(EXPIRING)
    if content is None:
        return False
    if (going := _going(content)) is None:
        raise Unavailable(_DAMAGED)
    return not set(backups).isdisjoint(going)


# who keeps


@dataclass(frozen=True)
class Found:
    """What holds retention off, as one look found it."""

    pins: Mapping[str, Pin] = field(default_factory=dict)
    """by their files"""
    unread: tuple[str, ...] = ()
    """files of which nobody can tell what they pin"""
    lapsed: Mapping[str, bytes] = field(default_factory=dict)
    """files that hold nothing any more, with what is in them"""

    @property
    def backups(self) -> frozenset[str]:
        """Those that are read."""
        return frozenset(each for pin in self.pins.values() for each in pin.backups)

    @property
    def holds(self) -> frozenset[tuple[str, ...]]:
        """Something that differs whenever something else is held."""
        known = {(name, *pin.backups) for name, pin in self.pins.items()}
        return frozenset(known | {(name, "") for name in self.unread})


class Readers:
    """Those of one repository, as its keeper sees them."""

    def __init__(self) -> None:
        self.found = Found()
        self._seen: dict[str, tuple[bytes, float]] = {}
        """what is in each file, and since when"""

    def look(self, repository: Catalogue) -> Found:
        """Who reads now.

        :raises PgherdError: nobody can tell
        """
        contents = {
            name: content for name, content in repository.contents(FOLDER).items() if name != EXPIRING
        }
        since = time.monotonic()
        self._seen = {
            name: known if (known := self._seen.get(name)) and known[0] == content else (content, since)
            for name, content in contents.items()
        }
        pins = {name: _pin_in(content) for name, content in contents.items()}
        lapsed = {name for name, pin in pins.items() if self._is_lapsed(name, pin)}
        self.found = Found(
            {name: pin for name, pin in pins.items() if pin is not None and name not in lapsed},
            tuple(name for name, pin in pins.items() if pin is None and name not in lapsed),
            {name: contents[name] for name in lapsed},
        )
        return self.found

    def _is_lapsed(self, name: str, pin: Pin | None) -> bool:
        watched = time.monotonic() - self._seen[name][1]
        if pin is None:
            return watched >= LAPSE_SECONDS
        return watched >= WATCHED_SECONDS and abs(seconds_since(pin.renewed)) >= LAPSE_SECONDS

    def agree(self, repository: Catalogue, plan: Callable[[Found], Waste]) -> Waste:
        """What goes, written down for those who are about to read it; :meth:`tidy` comes when it is gone.

        :param plan: what goes while this is held
        """
        found = self.look(repository)
        while True:
            gone = plan(found)
            _announce(repository, gone.backups)
            before, found = found, self.look(repository)
            if found.holds == before.holds:
                return gone

    def may_go(self, repository: Catalogue, going: Sequence[str]) -> bool:
        """Whether nobody reads, since it was agreed on, what goes now; written down anew for those who are about to.

        :param going: what has not gone yet, the next one first
        """
        _announce(repository, going)
        found = self.look(repository)
        return not found.unread and going[0] not in found.backups

    def tidy(self, repository: Catalogue) -> None:
        """Nothing more goes: nobody has to mind what went, nor pins that hold nothing."""
        for name, content in self.found.lapsed.items():
            if repository.store.read(name) == content:
                logger.warning("%s in %s has lapsed: nobody renews it", name, repository.location)
                repository.store.remove(name)
        repository.store.remove(EXPIRING)


def _announce(repository: Catalogue, backups: Collection[str]) -> None:
    if not backups:
        repository.store.remove(EXPIRING)
        return
    content = json.dumps({"backups": list(backups), "since": now()}, indent=2) + "\n"
    try:
        repository.store.write(EXPIRING, content.encode())
    except PgherdError as error:
        # What goes makes the room to write in; nobody can write that he reads it meanwhile.
        if not is_full(error):
            raise
