"""Making a cluster from a repository, a new one or, in place, one that is there already.

Five steps, each of them persisted (``Workshop.write_state``) and done for all groups before the next begins:

1. *copied*: a data directory of each group's chain of base copies, verified on the way;
2. *reached*: each group's server, private to this process, has replayed its log up to the restore point, and waits;
3. *opened*: only now, when all have reached it, each leaves recovery;
4. *settled*: passwords, addresses, half-committed transactions (``settle``, ``Engine.settle_restored``);
5. *placed*: the servers have ended, the directories are their members' data.

Nobody can connect before the last step: the servers have no network, and Patroni knows nothing of them. Killed
anywhere, the next process takes it up at the last step that is written down; what a killed one was about to do is done
again.

In place, the members' old data are set aside first, as a whole, and stay until somebody confirms. If the restore fails,
that is written down, and they are put back. If somebody removed them there is only one way, on.

A new cluster whose restore fails is cleared away, up to the fourth step. After that its data are whole, some perhaps in
their places: nothing of them is removed, and what keeps the others from their places is tried again until it is mended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from pgherd.backup import finding, pages, pins, planning, presence, records, settle, wish
from pgherd.backup.amounts import Amount, Amounts
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import Away
from pgherd.backup.histories import have_archived
from pgherd.backup.pauses import NO_PAUSE, Awaited, after_pause, is_worth_a_try, reason_of
from pgherd.backup.private_server import PrivateServer, is_open, is_paused_or_open
from pgherd.backup.records import Point
from pgherd.backup.wal import timelines
from pgherd.engine.base import Engine
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable, Withheld
from pgherd.faults import crash_point
from pgherd.model.spec import DeclaredRecoverySpec, PostgresCluster
from pgherd.model.topology import COORDINATOR, Member, group_name
from pgherd.platform import base
from pgherd.platform.base import NO_WAY_BACK, Lost, NothingBefore, Platform
from pgherd.platform.local import files
from pgherd.platform.machine import Machine
from pgherd.postgres.connections import Databases

logger = logging.getLogger(__name__)

STEPS = ("copied", "reached", "opened", "settled", "placed")
DONE, FAILED, REVERTED, ENDED = base.DONE, base.FAILED, base.REVERTED, base.ENDED
IN_PLACE = {"phase": "requested", "inPlace": True}
"""what asks for a restore in place, as the first state"""
PARALLEL = 4
"""groups at a time"""
FOLDER = "from-backup"
"""a member's data directory while it is made"""
WRITE_SECONDS = 120
"""how long to try to write down that a copy is complete"""
MAKE_ENGINE = Callable[[PostgresCluster, Databases], Engine]


@dataclass(frozen=True)
class Site:
    """Where a cluster is restored.

    :param method: of the repository that it is restored from
    :param source: the name of the cluster that it was
    :param recovery: what is to be restored; None: a running cluster is copied
    :param id: which restore in place this is, where wishes have names
    :param live: makes that repository of a running cluster, and returns its point; it reports a group, its bytes done
        and in all
    :param stopping: whether this process is to end, or the cluster is to stop or to go
    :param given_up: whether nobody will go on with it
    :param anew: whether what was made before is known to be gone
    :param is_unkept: whether nobody is left who keeps that repository, as is known
    :param check_source: raises where a point may not be chosen there
    """

    platform: Platform
    cluster: PostgresCluster
    method: BackupMethod
    make_engine: MAKE_ENGINE
    stopping: Callable[[], bool]
    source: str
    recovery: DeclaredRecoverySpec | None = None
    id: str | None = None
    live: Callable[[Callable[[int, int, int], None]], Point] | None = None
    anew: bool = False
    given_up: Callable[[], bool] = lambda: False
    is_unkept: Callable[[], bool] = lambda: False
    check_source: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """The new cluster's."""
        return self.cluster.metadata.name

    @property
    def wanted(self) -> DeclaredRecoverySpec:
        """What is declared."""
        if self.recovery is None:
            raise PgherdError(f"{self.name} is not declared to be made from a backup any more")
        return self.recovery

    def member(self, group: int) -> Member:
        """The first member of a group: the others are cloned from it."""
        return Member(self.name, group, 0)


def _doing(point: Point, following: Mapping[str, str] | None) -> str:
    """What is restored, and what lies after it."""
    after = f"; the next one is {following['name']} ({following['time']})" if following else ""
    return f"restoring to {point.name} ({point.time}){after}"


class Restore:
    """One cluster's making, from wherever it stands to its end."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._workshop = site.platform.workshop(site.name)
        self._workshop.heed(site.stopping)
        self._state: dict[str, Any] = {}
        self._guard = threading.Lock()
        self._amounts = Amounts()
        self._told = 0.0
        self._servers: dict[int, PrivateServer] = {}
        who = f"restore of {site.name}"
        self._reading = pins.Reading(
            site.method, site.name, who, lambda: self._state, self._tell, site.is_unkept
        )

    def run(self) -> None:
        """Until it is done.

        :raises Cancelled, Unavailable: this process is asked to stop, or a server does not answer; whoever comes next
            goes on
        :raises PgherdError, psycopg.Error: it failed for good, which is written down; what was made is removed
        """
        written = self._workshop.read_state() or {}
        is_over = written.get("phase") in ENDED and not self._site.anew
        known = wish.standing(written, self._site.cluster)
        if is_over or known.get("id") != self._site.id:
            logger.info("%s: nobody asks for this restore any more", self._site.name)
            return
        self._state = dict(known)
        if not self._in_place:
            self._state[wish.KEY] = wish.told(self._site.cluster)
        try:
            if self._in_place and self._state.get("failure"):
                self._take_back()
                return
            self._discard_lost()
            if "point" not in self._state:
                self._plan()
            self._pin()
            if self._in_place and self._is_to_do("aside"):
                self._workshop.set_aside()
                self._pass("aside")
            with ExitStack() as servers:
                servers.callback(self._stop_servers)
                self._carry_on()
        except Cancelled as error:
            logger.info("%s: its restore pauses: %s", self._site.name, error)
            raise
        except Lost as error:
            self._make_anew(error)
            raise
        except Exception as error:  # whatever it was, somebody has to be told
            obstacle = None if self._has_way_back else self._obstacle(error)
            if obstacle is not None or is_worth_a_try(error, self._state) or self._has_only_one_way:
                self._pause(obstacle or error)
            else:
                self._fail(error)
            raise
        finally:
            self._reading.end(over=self._state.get("phase") in (*ENDED, FAILED) or self._site.given_up())

    def _obstacle(self, error: Exception) -> Withheld | None:
        """What is waited for: a repository that is away, or refuses us, makes copies and logs look damaged."""
        found = error if isinstance(error, Withheld) else None
        if found is None and isinstance(error, PgherdError | OSError) and not isinstance(error, Awaited):
            found = presence.obstacle(self._site.method)
        # Where there was none when the point was to be chosen a path may be mistyped, and what a clone is made of is
        # on the members' own disk.
        may_come_back = "point" in self._state and self._site.live is None
        return None if isinstance(found, Away) and not may_come_back else found

    def _pause(self, error: Exception) -> None:
        """Nothing is known to be wrong: whoever comes next goes on."""
        logger.info("%s: its restore pauses: %s", self._site.name, error)
        with suppress(PgherdError):
            self._tell(**after_pause(error, self._state))

    def _make_anew(self, error: Lost) -> None:
        """A group's data are lost with their place. Once some may be in their places, all are made anew: what is in its
        place is not moved out of it again."""
        lost = [error.group] if self._is_to_do("settled") else self._groups()
        if self._site.live is not None:
            # Copied anew, a group is past the point that the others were copied for.
            lost = sorted({error.group, *self._groups()})
            self._state.pop("point", None)
        kept = {"aside", *(f"copied:{group}" for group in self._groups() if group not in lost)}
        copied = {
            key: what for key, what in (self._state.get("copiedBytes") or {}).items() if int(key) not in lost
        }
        steps = [step for step in self._state.get("steps", ()) if step in kept]
        # Written down before anything goes: nobody must take a new place for one that is filled, or keep one of those
        # that are to go.
        self._tell(steps=steps, copiedBytes=copied, **{wish.LOST: lost}, **after_pause(error, self._state))
        crash_point("restore:lost")
        self._discard_lost()

    def _discard_lost(self) -> None:
        lost = self._state.get(wish.LOST)
        for group in lost or ():
            self._workshop.discard(self._site.member(group))
        if lost:
            self._tell(**{wish.LOST: []})

    def _fail(self, error: Exception) -> None:
        logger.error("%s could not be restored: %s", self._site.name, error)
        if self._in_place:
            # From here on there is no way but back, whoever goes on.
            self._tell(**NO_PAUSE, failure=self._state.get("failure") or reason_of(error))
            crash_point("restore:failed")
            self._take_back()
            return
        self._remove_unfinished()
        self._tell(**NO_PAUSE, phase=FAILED, error=reason_of(error), finishedAt=records.now())

    def _take_back(self) -> None:
        """The cluster is what it was before."""
        self._remove(self._end_strays)
        self._remove(self._drop_scratch)
        try:
            back = self._workshop.put_back()
        except NothingBefore as error:
            self._go_on(error)
            return
        self._put_segments_back("at", "before")
        crash_point("restore:put-back")
        self._tell(phase=REVERTED, error=self._state["failure"], finishedAt=records.now(), **back)

    def _go_on(self, error: NothingBefore) -> None:
        """What is restored is all that there will be of the cluster, whatever failed, or whoever called it off."""
        why = self._state.get("failure")
        logger.error("%s: its restore can't be taken back (%s): %s: it goes on", self._site.name, why, error)
        self._put_segments_back("before", "at")
        self._tell(**{NO_WAY_BACK: f"{error}, so it can't be taken back ({why}) and goes on"}, failure=None)

    def _put_segments_back(self, now: str, wanted: str) -> None:
        """As many are declared as before, unless somebody wants yet another number: data would be moved for nothing."""
        counts, platform = self._state.get("segments") or {}, self._site.platform
        if platform.declaration(self._site.name).cluster.spec.segments.count == counts.get(now):
            platform.declare_segments(self._site.name, counts[wanted])

    def _carry_on(self) -> None:
        self._tell(message=_doing(self._point, self._state.get("following")))
        self._end_strays()
        if self._is_to_do("copied"):
            self._each(self._machine)  # who finds no place for one group copies none
            self._amounts = Amounts(self._groups(), self._copied())
            with suppress(PgherdError):  # only progress
                self._tell(**self._amounts.beginning())
            self._each(self._copy)
            self._pass("copied", copiedAt=records.now())
        if self._is_to_do("settled"):
            self._each(self._start_and_reach)
            self._pass("reached")
            self._each(self._open)
            self._pass("opened")
            self._settle_alive()
            self._pass("settled")
            self._stop_servers()
        if self._is_to_do("placed"):
            if self._workshop.is_trial():
                self._each(self._verify_pages)
            for group in self._groups():
                have_archived(self._machine(group), self._data(group))
                self._workshop.place(self._site.member(group), self._data(group))
                crash_point(f"restore:placed:{group}")
            self._pass("placed")
        self._workshop.close()
        self._tell(phase=DONE, finishedAt=records.now(), message="")
        self._drop_scratch()

    @property
    def _in_place(self) -> bool:
        return bool(self._state.get("inPlace"))

    @property
    def _has_way_back(self) -> bool:
        return self._in_place and not self._state.get(NO_WAY_BACK)

    @property
    def _has_only_one_way(self) -> bool:
        """Whether what fails now is tried until it is mended: the data are whole, or there are no others."""
        return not self._has_way_back and (self._in_place or not self._is_to_do("settled"))

    # where it stands

    def _is_to_do(self, step: str) -> bool:
        """Whether this step is still to be done."""
        return step not in self._state.get("steps", [])

    def _pass(self, step: str, **what: Any) -> None:
        # What is done anew after a pause, because the servers have to be started, is no progress.
        progress = NO_PAUSE if self._is_to_do(step) else {}
        with self._guard:
            # Groups come to their steps side by side.
            steps = [*dict.fromkeys([*self._state.get("steps", []), step])]
            self._write({"steps": steps, **progress, **what})
        crash_point(f"restore:{step}")

    def _tell(self, **what: Any) -> None:
        with self._guard:
            self._write(what)

    def _write(self, what: Mapping[str, Any]) -> None:
        self._state = {**self._state, **what}
        self._workshop.write_state(self._state)

    def _groups(self) -> list[int]:
        return sorted(map(int, self._state.get("bases", ())))

    @property
    def _point(self) -> Point:
        return records.point_from(self._state["point"])

    def _data(self, group: int) -> Path:
        return self._workshop.folder(self._site.member(group)) / FOLDER

    def _machine(self, group: int) -> Machine:
        return self._workshop.machine(self._site.member(group))

    def _each(self, do: Callable[[int], Any]) -> None:
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            list(pool.map(do, self._groups()))

    # planning

    def _plan(self) -> None:
        site = self._site
        doing = "choosing the point" if site.live is None else f"copying {site.source}"
        # First of all: whoever finds a member's volume must know what it is for.
        self._amounts = Amounts(range(site.cluster.spec.segments.count + 1))
        begins = {"phase": "copying", "steps": [], "bases": {}, "startedAt": records.now(), "message": doing}
        self._tell(**begins, **self._amounts.beginning(), following=None)
        point, following = self._choose() if site.live is None else (site.live(self._report), None)
        planning.check_fits(site.cluster, point)
        bases = finding.bases(site.method, point)
        if bases is None:
            raise PgherdError(
                f"{point.name} can't be restored any more: a copy that it needs is gone from {site.method.location}"
            )
        self._check_version(bases)
        self._tell(
            phase="copying",
            steps=[],
            point=point.as_json(),
            bases={str(group): copies for group, copies in bases.items()},
            following=following,
            startedAt=records.now(),
            message=_doing(point, following),
            **NO_PAUSE,
        )
        crash_point("restore:planned")

    def _choose(self) -> tuple[Point, dict[str, str] | None]:
        """The point that is meant, and the one after it."""
        self._site.check_source()
        point, next_one = finding.find(self._site.method, self._site.wanted)
        return point, {"name": next_one.name, "time": next_one.time} if next_one else None

    def _pin(self) -> None:
        """Keep retention from what is read; nothing is any more once all groups are what they were."""
        if self._site.live is not None or not self._is_to_do("settled"):
            return
        bases = self._state.get("bases") or {}
        unread = {each for group in bases if self._is_to_do(f"copied:{group}") for each in bases[group]}
        self._reading.begin([each for copies in bases.values() for each in copies], unread)
        crash_point("restore:pinned")

    def _check_version(self, bases: Mapping[int, Sequence[str]]) -> None:
        major = self._site.method.major_of(bases[COORDINATOR][-1], COORDINATOR)
        here = self._machine(COORDINATOR).major
        if major != here:
            raise BadInput(
                f"the backup is of PostgreSQL {major}, but PostgreSQL {here} is here: name the directory of a "
                f"PostgreSQL {major} with --bin-dir, or on Kubernetes an image with postgres.version: {major}"
            )

    def _end_strays(self) -> None:
        """What a killed process left running works on our directories."""
        for group in self._groups():
            self._workshop.end_processes(self._site.member(group), self._data(group))

    # 1: copies

    def _copied(self) -> dict[int, Amount]:
        """What was copied of the groups that are done, in bytes, and of how many."""
        known = self._state.get("copiedBytes") or {}
        done = (group for group in self._groups() if not self._is_to_do(f"copied:{group}"))
        return {group: tuple(known.get(str(group), (0, 0))) for group in done}

    def _copy(self, group: int) -> None:
        copies = self._state["bases"][str(group)]
        site = self._site
        if not self._is_to_do(f"copied:{group}"):
            return
        site.method.restore(
            copies,
            group,
            self._data(group),
            lambda done, total: self._report(group, done, total),
            site.stopping,
        )
        with self._guard:
            done = {**(self._state.get("copiedBytes") or {}), str(group): self._amounts.of(group)}
            self._state["copiedBytes"] = done
        self._pass_patiently(f"copied:{group}")

    def _pass_patiently(self, step: str) -> None:
        """What took hours is not done again because nobody could write for a moment that it is done."""
        deadline = time.monotonic() + WRITE_SECONDS
        while True:
            try:
                return self._pass(step)
            except Unavailable:
                if time.monotonic() > deadline or self._site.stopping():
                    raise
                time.sleep(1.0)

    def _report(self, group: int, done: int, total: int) -> None:
        self._amounts.report(group, done, total)
        if done < total and time.monotonic() - self._told < 0.5:
            return
        self._told = time.monotonic()
        # What a clone waited for before there was a point is there once it is copied.
        awaited: Mapping[str, Any] = {} if "point" in self._state else {"waits": None}
        with suppress(PgherdError):  # how far it is is no reason to begin it anew
            self._tell(**self._amounts.told(), **awaited)

    # 2: replay

    def _start_and_reach(self, group: int) -> None:
        point, at, server = self._point, self._point.groups[group], self._server(group)
        member, data = self._site.member(group), self._data(group)
        self._workshop.end_processes(member, data)  # the machine may be another one since somebody looked
        control = server.controlled()
        if control.timeline <= at.timeline:  # else a process that was killed had come so far that it is open
            self._machine(group).remove(data / "standby.signal")  # of a standby: of both the other would stay
            self._machine(group).write(data / "recovery.signal", "")
        server.start(
            {
                **control.enough(at.settings),
                "restore_command": self._site.method.restore_command(group, at.system),
                "recovery_target_name": point.name,
                "recovery_target_timeline": str(at.timeline),
                "recovery_target_action": "pause",
            }
        )
        with self._guard:
            self._servers[group] = server
        try:
            server.wait(is_paused_or_open, self._site.stopping)
        except (Cancelled, Unavailable):
            raise
        except PgherdError as error:
            if (hindrance := self._site.method.hindrance(server.said())) is not None:
                raise Withheld(f"the log of {group_name(group)} can't be read now: {hindrance}") from error
            raise PgherdError(
                f"the log of {group_name(group)} does not lead to {point.name}: {error}: an earlier point, or one "
                "that another backup serves, may still be restored"
            ) from error
        with server.connect() as connection:
            in_recovery = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        if in_recovery == (True,) and f'restore point "{point.name}"' not in server.said():
            raise PgherdError(
                f"{group_name(group)} stopped before the restore point {point.name}: see the log of {member.name}"
            )
        crash_point(f"restore:reached:{group}")

    # 3: the end of recovery

    def _open(self, group: int) -> None:
        server = self._servers[group]
        with server.connect() as connection:
            if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                connection.execute("SELECT pg_promote(false)")
        server.wait(is_open, self._site.stopping)
        if self._in_place:
            self._require_timeline_of_its_own(group, server)
        crash_point(f"restore:opened:{group}")

    def _require_timeline_of_its_own(self, group: int, server: PrivateServer) -> None:
        """:raises PgherdError: the repository has a timeline of that number already: their logs would be mixed up"""
        timeline = server.timeline()
        self._site.method.repository.require()
        method, system = self._site.method, self._point.groups[group].system
        known = {history.timeline for history in method.histories(group, system)}
        if timeline in known | timelines(method.log_names(group, system) or ()):
            raise PgherdError(
                f"{group_name(group)} took timeline {timeline}, which the repository has already: it did not see all "
                "of the repository: try again"
            )

    # 4: a cluster of its own

    def _settle_alive(self) -> None:
        try:
            self._settle()
        except (Unavailable, psycopg.OperationalError) as error:
            # These servers are ours: one that has ended will end again, and none is waited for without end.
            for server in self._servers.values():
                server.require_running()
            if isinstance(error, Unavailable):
                raise psycopg.OperationalError(str(error)) from error
            raise

    def _settle(self) -> None:
        site = self._site
        servers = {group: each.endpoint for group, each in self._servers.items()}
        databases = settle.private_databases(site.platform, site.cluster, servers)
        reason = f"{site.source} was restored to {self._point.name}"
        done = settle.settle(databases, self._groups(), reason, in_place=self._in_place)
        spec = site.cluster.spec
        members = {
            group: [
                Member(site.name, group, ordinal)
                for ordinal in range((spec.segments if group else spec.coordinator).standbys + 1)
            ]
            for group in self._groups()
        }
        ports = self._workshop.reserve([member for each in members.values() for member in each])
        endpoints = {group: [ports[member.name] for member in each] for group, each in members.items()}
        done += site.make_engine(site.cluster, databases).settle_restored(endpoints)
        for sentence in done:
            logger.info("%s: %s", site.name, sentence)
        self._tell(done=done)

    def _server(self, group: int) -> PrivateServer:
        member = self._site.member(group)
        folder, log = self._workshop.folder(member), self._workshop.log(member)
        return PrivateServer(self._machine(group), self._data(group), folder, log)

    # 5: in their places

    def _verify_pages(self, group: int) -> None:
        """Each page's checksum, while no server runs. What is found ends nothing: it is told when all is examined."""
        if not self._is_to_do(f"verified:{group}"):
            return
        wanted = self._point.groups[group].settings
        found = pages.verify(self._machine(group), self._server(group), wanted, self._site.stopping)
        with self._guard:
            known = self._state.get(pages.KEY) or {}
            self._state[pages.KEY] = {**known, str(group): found.as_json()}
        self._pass_patiently(f"verified:{group}")

    # ends

    def _stop_servers(self) -> None:
        servers, self._servers = self._servers, {}
        if servers:
            with ThreadPoolExecutor(max_workers=len(servers)) as pool:
                list(pool.map(PrivateServer.stop, servers.values()))

    def _drop_scratch(self) -> None:
        files.remove(self._workshop.scratch())

    def _remove_unfinished(self) -> None:
        """As much of it as can be: one folder that stays must not keep the others."""
        self._remove(self._drop_scratch)
        for group in map(int, self._state.get("bases", {})):
            self._remove(partial(self._drop, group))
        self._remove(self._workshop.close)

    def _remove(self, remove: Callable[[], None]) -> None:
        """As far as it can be."""
        try:
            remove()
        except PgherdError as error:
            logger.warning("%s: %s", self._site.name, error)

    def _drop(self, group: int) -> None:
        # Nothing is set up to remove something in it.
        if (machine := self._workshop.standing(self._site.member(group))) is not None:
            machine.remove(self._data(group))
