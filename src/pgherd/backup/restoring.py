"""What a reconcile loop needs to know of a cluster's making from a backup: whether it is due, how far it is, and who
does it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg

from pgherd.backup import looking, pins, planning, registry, repair, restore, source, wish
from pgherd.backup.amounts import pace_in
from pgherd.backup.base import BackupMethod
from pgherd.backup.far_copy import RECEIVED, FarCopy, FarMethod, Place
from pgherd.backup.live_copy import NearCopy
from pgherd.backup.native import Native
from pgherd.backup.pauses import Awaited
from pgherd.backup.records import Point
from pgherd.backup.restore import FOLDER, MAKE_ENGINE, STEPS, Restore, Site
from pgherd.engine.base import Engine
from pgherd.errors import NoSuchCluster, PgherdError, Unavailable, one_line
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import Member
from pgherd.platform import origin
from pgherd.platform.base import NO_WAY_BACK, Platform
from pgherd.platform.machine import Machines
from pgherd.postgres.connections import Databases

PENDING = "requested"
"""phase of a restore in place that is asked for, and not begun yet"""


def state(platform: Platform, cluster: PostgresCluster) -> Mapping[str, Any] | None:
    """How far it is, empty if it has not begun; None: it is not to be made from a backup, or that is done.

    :raises Unavailable: nobody can tell yet, for what an earlier cluster of its name had is still going
    """
    if not platform.keeps_backups:
        return None
    name = cluster.metadata.name
    needed = bool(wish.told(cluster))
    known = platform.workshop(name).read_state()
    if known is None and not needed:
        return None
    members = platform.members(name).values()
    has_data = any(view.has_data for view in members)
    lived = bool((platform.read_status(name) or {}).get("admitted"))
    unsure = needed and not lived and not any(view.running for view in members)
    if unsure and not platform.declaration(name).is_winding_down:
        # What is at hand may be of an earlier cluster of this name: an empty one would be founded.
        has_data = platform.has_data_now(name)
        known = platform.workshop(name).read_state()
    if not wish.is_due(known, cluster, has_data, lived=lived):
        return None
    return wish.standing(known or {}, cluster)


def in_place(platform: Platform, name: str) -> dict[str, Any] | None:
    """``status.restore``: how the last restore in place stands; None: there was none, and none is asked for."""
    if not platform.keeps_backups:
        return None
    workshop = platform.workshop(name)
    # In this order: it may be decided meanwhile.
    asked, is_pending, refused = workshop.asked, workshop.pending is not None, workshop.refused
    known = workshop.read_state() or {}
    if not known.get("inPlace") and asked is None:
        return None
    own = known if known.get("inPlace") else {}
    phase = own.get("phase")
    return {
        "asked": asked,
        "id": own.get("id"),
        "phase": PENDING if is_pending and not refused else phase,
        "restorePoint": (own.get("point") or {}).get("name"),
        "error": own.get("error") if phase == restore.REVERTED else None,
        "refused": refused,
        "noWayBack": own.get(NO_WAY_BACK) if phase not in restore.ENDED else None,
        "kept": list(workshop.kept) if phase == restore.DONE else [],
    }


def look(platform: Platform, cluster: PostgresCluster, pending: Mapping[str, Any]) -> None:
    """See :func:`pgherd.backup.looking.look`.

    :param pending: what it begins with
    """
    counts = pending.get("segments") or {}
    if cluster.spec.segments.count == counts.get("before"):
        cluster = _with_segments(cluster, counts["at"])
    looking.look(platform, cluster, pending["recovery"])


def pending(platform: Platform, name: str) -> Mapping[str, Any] | None:
    """What a restore in place begins with that is asked for and has not begun; None: there is none."""
    return platform.workshop(name).pending if platform.keeps_backups else None


def as_before(cluster: PostgresCluster, pending: Mapping[str, Any] | None) -> PostgresCluster:
    """A cluster as it is to be until a restore in place begins that was asked for together with other segments."""
    counts = (pending or {}).get("segments") or {}
    if cluster.spec.segments.count != counts.get("at"):
        return cluster
    return _with_segments(cluster, counts["before"])


def _with_segments(cluster: PostgresCluster, count: int) -> PostgresCluster:
    segments = cluster.spec.segments.model_copy(update={"count": count})
    return cluster.model_copy(update={"spec": cluster.spec.model_copy(update={"segments": segments})})


def repairs(platform: Platform, name: str) -> Mapping[int, Mapping[str, Any]]:
    """Groups that are being rebuilt, or were: how far that is, with ``due`` and what is ``kept``.

    Where something else is asked for and not done, ``refused`` says its ``id`` and the ``reason``.
    """
    found: dict[int, dict[str, Any]] = {}
    for group, bench in sorted(platform.benches(name).items()):
        wish, known, why_not = bench.read("wish"), bench.read("state"), bench.refused
        refused = {"id": bench.asked, "reason": why_not} if why_not else None
        if wish is None:
            if refused is not None:
                told = {"id": bench.asked, "phase": repair.REFUSED, "error": why_not}
                found[group] = {**told, "due": False, "kept": bench.kept, "refused": refused}
            continue
        # What is known of a repair counts, whatever is asked for: its group may be halted until it is done.
        current = known if known is not None and known.get("id") == wish["id"] else {"phase": "requested"}
        rate, left = pace_in(current) if current.get("phase") == "copying" else (None, None)
        found[group] = {
            **current,
            **{"bytesPerSecond": rate, "etaSeconds": left},
            "reason": with_pause(_with_warning(str(current.get("reason") or ""), current), current),
            "id": wish["id"],
            "accepted": bool(wish["accept"]),
            "due": repair.is_due(wish, known),
            "kept": bench.kept,
            "refused": refused,
        }
    return found


def made_of(known: Mapping[str, Any]) -> dict[str, Any] | None:
    """The point that was restored, its time and what follows; None: nobody has written that down."""
    if "point" not in known or "following" not in known:
        return None
    point = known["point"]
    return {"restorePoint": point["name"], "time": point["time"], "following": known["following"]}


def operation_status(known: Mapping[str, Any]) -> dict[str, Any]:
    """``status.operation`` while it goes on."""
    done, total = known.get("bytesDone", 0), known.get("bytesTotal", 0)
    doing = _doing(known)
    # Once all is copied these would only say how long ago that was.
    rate, left = pace_in(known) if doing == "copying" else (None, None)
    return {
        "kind": "restore",
        "phase": doing,
        "bytesTotal": total,
        "bytesDone": done,
        "bytesPerSecond": rate,
        "movesTotal": 0,
        "movesDone": 0,
        "etaSeconds": left,
        "message": with_pause(_failure(known) or _onward(known), known),
    }


def with_pause(text: str, known: Mapping[str, Any]) -> str:
    """What is being done, and what keeps it from going on: a restore or a repair that waits looks like one at work."""
    if not known.get("waits"):
        return text
    if not known.get("tries"):
        return "; ".join(filter(None, [text, str(known["waits"])]))
    paused = f"try {known.get('tries')} ended so, the next one follows: {known['waits']}"
    return "; ".join(filter(None, [text, paused]))


_DOING = ("copying", "replaying", "opening", "settling", "placing")


def _failure(known: Mapping[str, Any]) -> str:
    """Why it is being taken back."""
    return "" if known.get("phase") == restore.REVERTED else str(known.get("failure") or "")


def _onward(known: Mapping[str, Any]) -> str:
    """What is being done, and that it can't be undone."""
    text = "; ".join(filter(None, [str(known.get("message") or ""), known.get(NO_WAY_BACK)]))
    return _with_warning(text, known)


def _with_warning(text: str, known: Mapping[str, Any]) -> str:
    """The same, and that nothing keeps retention from what is read."""
    is_over = known.get("phase") in (*restore.ENDED, restore.FAILED, repair.DOUBT)
    return "; ".join(filter(None, [text, None if is_over else known.get(pins.UNPINNED)]))


def _doing(known: Mapping[str, Any]) -> str:
    if _failure(known):
        return "taking it back"
    if known.get("phase") != "copying":
        return str(known.get("phase", "requested"))
    done = sum(step in STEPS for step in known.get("steps", ()))
    return _DOING[min(done, len(_DOING) - 1)]


Running = Callable[[str], tuple[Engine, Databases]]
"""the engine and the databases of another cluster here"""


def begin(
    platform: Platform,
    cluster: PostgresCluster,
    make_engine: MAKE_ENGINE,
    stop: threading.Event,
    running: Running,
    is_unkept: Callable[[], bool] = lambda: False,
) -> Restore | None:
    """Whoever carries it on; None: nothing is to be done any more.

    :param running: how to reach the cluster that is cloned
    :param is_unkept: whether nobody keeps the cluster's own backups now
    :raises PgherdError: nothing says any more from where, or something else now, and too late
    """
    name = cluster.metadata.name
    bootstrap = cluster.spec.bootstrap
    # A look may be from before its end; and data that are there are never made anew.
    if state(platform, cluster) is None:
        return None
    written = platform.workshop(name).read_state() or {}
    known = wish.standing(written, cluster)
    asked = known.get("recovery")
    if asked is None and (bootstrap is None or not bootstrap.is_needed):
        raise PgherdError(
            f"{name} was being made from a backup, which is not declared any more: declare it again, or delete {name}"
        )
    wish.require_open(written, cluster)
    anew = written.get("phase") in restore.ENDED
    cluster = _with_its_segments(platform, cluster, known)

    def stopping() -> bool:
        if stop.is_set():
            return True
        try:
            declaration = platform.declaration(name)
        except NoSuchCluster:
            return True
        except PgherdError:
            return False  # nobody knows: what is done is done; what makes no sense is no wish
        ends = declaration.is_winding_down
        return ends or is_obsolete(declaration.cluster) or _is_called_off(platform, name, known)

    def given_up() -> bool:
        try:
            declaration = platform.declaration(name)
        except NoSuchCluster:
            return True
        except PgherdError:
            return False
        before = {**known, wish.KEY: wish.told(cluster)}
        return declaration.deleting or wish.leads_elsewhere(before, declaration.cluster)

    def is_obsolete(now: PostgresCluster) -> bool:
        return not known.get("inPlace") and bool(wish.told(now)) and wish.told(now) != wish.told(cluster)

    if asked is None and bootstrap is not None and bootstrap.clone is not None:
        machines = platform.workshop(name).machines()
        clone = _Clone(platform, cluster, bootstrap.clone.cluster, running, stopping)
        method, live = clone.near() if machines is None else clone.far(machines)
        return Restore(
            Site(platform, cluster, method, make_engine, stopping, clone.source, live=live, anew=anew)
        )
    found = source.remembered(platform, cluster, known) if asked is None else known
    if found is None:
        return None
    recovery = asked or origin.recovery({**found, wish.KEY: wish.told(cluster)})
    assert recovery is not None, "is_needed says that there is one"
    wanted = planning.wanted(recovery)
    workshop = platform.workshop(name)
    method = registry.open_method(platform, wanted, wanted.cluster, workshop.scratch(), workshop.machines())
    own = (wanted.cluster, wanted, known.get("id"))
    its = partial(source.require_its, platform, cluster, method, origin.owner(found))
    site = Site(
        platform, cluster, method, make_engine, stopping, *own, anew=anew, given_up=given_up, check_source=its
    )
    # Who keeps its own ones is its own keeper, and none begins before this has ended.
    is_own = bool(known.get("inPlace")) and looking.is_own(cluster, wanted)
    return Restore(replace(site, is_unkept=is_unkept) if is_own else site)


def unpin(platform: Platform, name: str) -> None:
    """Remove the pin of a making that nobody goes on with, as the cluster goes. May take as long as a store is silent.

    :raises PgherdError: it stays until it lapses
    """
    if not platform.keeps_backups:
        return
    workshop = platform.workshop(name)
    known = workshop.read_state() or {}
    asked = origin.recovery(known)
    if not known.get(pins.KEY) or asked is None or known.get("phase") in (*restore.ENDED, restore.FAILED):
        return
    wanted = planning.wanted(asked)
    method = registry.open_method(platform, wanted, wanted.cluster, workshop.scratch(), workshop.machines())
    pins.remove(method.repository, known[pins.KEY])


_Live = Callable[[Callable[[int, int, int], None]], Point]


@dataclass(frozen=True)
class _Clone:
    """How a running cluster becomes what is restored."""

    platform: Platform
    cluster: PostgresCluster
    source: str
    running: Running
    stopping: Callable[[], bool]

    def near(self) -> tuple[BackupMethod, _Live]:
        """On this machine."""
        platform, name = self.platform, self.cluster.metadata.name
        copy = Native(platform.workshop(name).scratch() / self.source, platform.programs, with_log=True)

        def live(report: Callable[[int, int, int], None]) -> Point:
            platform.declaration(self.source)  # who declares it where it is not is told at once
            engine, databases = self._standing()
            # Before all of it is copied, which may take hours.
            planning.check_shape(
                self.cluster, engine.name, databases.database, max(engine.segments(), default=0)
            )
            made = NearCopy(engine, databases, copy, platform.programs(), self.stopping)
            return made.make(self.source, report)

        return copy, live

    def far(self, machines: Machines) -> tuple[BackupMethod, _Live]:
        """Straight to where its members are put together."""
        workshop = self.platform.workshop(self.cluster.metadata.name)
        workshop.heed(self.stopping)

        def place(group: int) -> Place:
            member = Member(self.cluster.metadata.name, group, 0)
            folder = workshop.folder(member)
            return Place(workshop.machine(member), folder / FOLDER, folder / RECEIVED)

        copy = FarMethod(place, self.source)

        def live(report: Callable[[int, int, int], None]) -> Point:
            engine, databases = self._standing()
            made = FarCopy(engine, databases, copy, self.stopping, machines, place, self.cluster)
            return made.make(self.source, report)

        return copy, live

    def _standing(self) -> tuple[Engine, Databases]:
        """How to reach the source.

        :raises Awaited: it is not there as a whole: both may be declared together, or it may be stopped for an hour
        """
        try:
            declared = self.platform.declaration(self.source)
        except NoSuchCluster:
            raise self._awaited(f"there is no cluster {self.source} here") from None
        if declared.stopped or declared.deleting:
            raise self._awaited(f"{self.source} {'is being deleted' if declared.deleting else 'is stopped'}")
        engine, databases = self.running(self.source)
        try:
            there = len(engine.segments())
        except (Unavailable, psycopg.Error) as error:
            raise self._awaited(f"{self.source} does not answer ({one_line(error)})") from error
        if there != (count := declared.cluster.spec.segments.count):
            raise self._awaited(f"{self.source} is to have {count} segments, and has {there} now")
        return engine, databases

    def _awaited(self, why: str) -> Awaited:
        return Awaited(f"spec.bootstrap.clone.cluster: {why}: it is waited for")


def _with_its_segments(
    platform: Platform, cluster: PostgresCluster, known: Mapping[str, Any]
) -> PostgresCluster:
    """As many segments as there were at the point. Who asked for it may have been killed before he declared them."""
    counts = known.get("segments") or {}
    if "point" in known or known.get("failure") or cluster.spec.segments.count != counts.get("before"):
        return cluster
    platform.declare_segments(cluster.metadata.name, counts["at"])
    return platform.declaration(cluster.metadata.name).cluster


def _is_called_off(platform: Platform, name: str, known: Mapping[str, Any]) -> bool:
    """Whether nobody wants any more what was begun."""
    return not known.get("failure") and bool((platform.workshop(name).read_state() or {}).get("failure"))
