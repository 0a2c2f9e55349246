"""Rebuilding one group whose members have all lost their data, up to the present, while the other groups go on.

The ladder: (1) a member that fell behind is rewound, (2) one that lost its data is copied from its group's primary,
both by Patroni, without being asked. Where no member is left to copy from there is (3) the repository: the newest base
copy and all of the archived log. It has everything only if that is proven (``verdict``); otherwise the repair stops,
nothing is changed, and the status says what may be missing. (4) Somebody accepts the loss: then it goes on.

Each step is persisted and done once: *copied* (the base copy), *replayed* (all of the log; the database has left
recovery, alone), *judged*, *settled* (what hangs on other groups), *aside* (what is left in the members' places, kept),
*placed* (the first member's data), *joined* (Patroni leads, the other members are copied from it, and the catalogue is
compared with the group). Until *aside* nothing but a place of the repair's own (its *bench*) was touched. Killed
anywhere the next process goes on with the step that is due; what fails for good before *placed* is undone. A repository
that is away is waited for.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from pgherd.backup import choice, pins, presence, records, settle
from pgherd.backup.amounts import Amounts
from pgherd.backup.base import BackupMethod
from pgherd.backup.gaps import Logs
from pgherd.backup.histories import have_archived
from pgherd.backup.pauses import NO_PAUSE, after_pause, is_worth_a_try, reason_of
from pgherd.backup.private_server import Controlled, PrivateServer, is_open
from pgherd.backup.records import GroupPoint
from pgherd.backup.settle import CONNECT_SECONDS
from pgherd.backup.verdict import Reached, Verdict, judge
from pgherd.backup.wal import SEGMENT_BYTES, History, is_past, parse_history, parse_lsn
from pgherd.engine.base import Engine
from pgherd.errors import Cancelled, PgherdError, Unavailable, Withheld, one_line
from pgherd.faults import crash_point
from pgherd.model.topology import group_name
from pgherd.platform import base
from pgherd.platform.base import CALLED_OFF, Lost
from pgherd.platform.bench import Bench
from pgherd.postgres.connections import Databases, is_passing

logger = logging.getLogger(__name__)

STEPS = ("copied", "replayed", "judged", "settled", "aside", "placed", "joined")
REPOSITORY, LOSS = "repository", "accepted loss"
"""the rungs of the ladder that are climbed here"""
OPEN = ("requested", "copying", "replaying", "settling", "placing", "joining")
DOUBT, DONE, FAILED, REFUSED = base.DOUBT, base.DONE, base.FAILED, "refused"
BEGINNING: Mapping[str, Any] = {
    "phase": "copying",
    "rung": REPOSITORY,
    "reason": "no member of the group is left to copy from",
    "steps": [],
}
"""what the state says of a repair of which nothing is made yet"""
POLL_SECONDS = 0.5
_FAR = "FFFFFFFF/FFFFFFFF"
_LAST_COMMIT = re.compile(r"last completed transaction was at log time (.+)")


def new_wish(identity: str, *, accept: bool) -> dict[str, Any]:
    """What asks for a repair.

    :param accept: the loss of whatever is not in the repository is accepted
    """
    return {"id": identity, "accept": accept, "requestedAt": records.now()}


def is_due(wish: Mapping[str, Any] | None, state: Mapping[str, Any] | None) -> bool:
    """Whether a group is (still) to be rebuilt."""
    if wish is None:
        return False
    if wish.get(CALLED_OFF):
        return True
    if state is None or state.get("id") != wish["id"]:
        return True
    phase = state.get("phase")
    return phase in OPEN or (phase == DOUBT and bool(wish["accept"]))


@dataclass(frozen=True)
class Site:
    """Where a group is rebuilt.

    :param engine: the running cluster's
    :param databases: the running cluster's
    :param has_primary: whether a member of the group leads, as Patroni says
    :param is_retired: whether the cluster has no such group any more
    :param down_since: since when the group is known to be down
    :param call_off: calls a change of the cluster off that is under way; what was done, if anything
    :param stopping: whether this process is to end, or the cluster is to stop or to go
    """

    name: str
    group: int
    bench: Bench
    method: BackupMethod
    engine: Engine
    databases: Databases
    has_primary: Callable[[], bool]
    is_retired: Callable[[], bool]
    down_since: Callable[[], str | None]
    call_off: Callable[[], str | None]
    stopping: Callable[[], bool]

    @property
    def title(self) -> str:
        """``segment-1``"""
        return group_name(self.group)


class Repair:
    """One group's rebuilding, from wherever it stands to its end."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._state: dict[str, Any] = {}
        self._guard = threading.Lock()
        self._told = 0.0

    @cached_property
    def _reading(self) -> pins.Reading:
        site = self._site
        name, who = f"{site.name}-{site.title}", f"repair of {site.title} of {site.name}"
        return pins.Reading(site.method, name, who, lambda: self._state, self._tell)

    def run(self) -> None:
        """Until it is done, or waits for somebody to accept a loss.

        :raises Cancelled, Unavailable: this process is asked to stop, or a server does not answer; whoever comes next
            goes on
        :raises PgherdError, psycopg.Error: it failed for good, which is written down and undone
        """
        site = self._site
        site.bench.heed(site.stopping)
        wish = site.bench.read("wish")
        self._state = site.bench.read("state") or {}
        if wish is None or not is_due(wish, self._state):
            return  # it came to its end since somebody looked
        if wish.get(CALLED_OFF):
            logger.info("%s: rebuilding %s was called off", site.name, site.title)
            self._unpin(over=True)
            site.bench.put_back()
            site.bench.drop()
            site.bench.clear()
            return
        if self._state.get("id") != wish["id"]:
            self._begin(str(wish["id"]))
        try:
            self._carry_on()
        except Cancelled as error:
            logger.info("%s: rebuilding %s pauses: %s", site.name, site.title, error)
            raise
        except Exception as error:  # whatever it was, somebody has to be told
            if self._may_go_on(error):
                logger.info("%s: rebuilding %s pauses: %s", site.name, site.title, error)
                with suppress(PgherdError):
                    self._pause(error)
            else:
                self._fail(error)
            raise
        finally:
            self._unpin(over=self._state.get("phase") not in OPEN)

    def _unpin(self, *, over: bool) -> None:
        if self._state.get(pins.KEY):
            self._reading.end(over=over)

    def _may_go_on(self, error: Exception) -> bool:
        # Most servers that are asked are the running cluster's: they may be away for long, and so may the repository.
        # And from its place nothing is taken back.
        if isinstance(error, _Retired):
            return False
        may_pass = isinstance(error, Withheld) or is_passing(error) or is_worth_a_try(error, self._state)
        return may_pass or self._is_past("placed") or self._site.bench.in_force or self._is_withheld(error)

    def _is_withheld(self, error: Exception) -> bool:
        """A repository that is away makes copies and logs look damaged."""
        known = isinstance(error, PgherdError | OSError)
        return known and presence.obstacle(self._site.method) is not None

    def _pause(self, error: Exception) -> None:
        """Whoever comes next goes on, or begins anew if what was made is lost."""
        if isinstance(error, Lost) and not self._is_past("settled"):
            # Nothing but what was made hangs on it: from the beginning, in another place.
            with self._guard:
                names = ("id", "startedAt", pins.KEY)
                known = {name: self._state[name] for name in names if name in self._state}
                self._state = {**known, **BEGINNING, **after_pause(error, self._state)}
                self._site.bench.renew(self._state)
            crash_point("repair:renewed")
        elif isinstance(error, Lost):
            # Its members wait for it by now, and how they ended counts as it was known before.
            waits = Unavailable(f"{error}: bring it back, or call the repair off and ask for another one")
            self._tell(**after_pause(waits, self._state))
        else:
            self._tell(**after_pause(error, self._state))

    def _fail(self, error: Exception) -> None:
        site = self._site
        logger.error("%s: %s could not be rebuilt: %s", site.name, site.title, error)
        if not self._is_past("placed"):
            site.bench.put_back()
        self._tell(**NO_PAUSE, phase=FAILED, error=reason_of(error), finishedAt=records.now())
        site.bench.drop()

    def _begin(self, identity: str) -> None:
        self._site.bench.drop()
        # Of a repair before this one that never came to its end: there is none beside it.
        self._state = {name: what for name, what in self._state.items() if name == pins.KEY}
        self._tell(id=identity, startedAt=records.now(), **BEGINNING)
        crash_point("repair:begun")

    def _carry_on(self) -> None:
        site = self._site
        site.bench.end_processes()
        self._require_wanted()
        try:
            # Each of these may take hours: until the members' places are touched one may come back meanwhile.
            self._require_no_primary()
            if not self._is_past("copied"):
                self._copy()
            if not self._is_past("replayed"):
                self._replay()
            self._require_no_primary()
            if not self._is_past("judged") and not self._judge():
                return
            self._require_no_primary()
            if not self._is_past("settled"):
                self._settle()
            if not self._is_past("placed"):
                self._place()
        except _CameBack:
            self._give_way()
            return
        self._join()

    def _require_wanted(self) -> None:
        """:raises _Retired: nobody starts its members any more, whatever is put in their places"""
        if self._site.is_retired():
            raise _Retired(f"{self._site.name} has no {self._site.title} any more")

    def _require_no_primary(self) -> None:
        """:raises _CameBack: there is one again, and it may have taken writes since: what was made is of no use"""
        if not self._is_past("aside") and self._site.has_primary():
            raise _CameBack

    def _give_way(self) -> None:
        """A member came back by itself: nothing was touched."""
        site = self._site
        reason = "a member of the group came back by itself: nothing was changed"
        logger.info("%s: rebuilding %s ends: %s", site.name, site.title, reason)
        site.bench.put_back()
        self._tell(**NO_PAUSE, phase=DONE, rung="none", reason=reason, finishedAt=records.now())
        site.bench.drop()

    # where it stands

    @property
    def _data(self) -> Path:
        return self._site.bench.data

    def _is_past(self, step: str) -> bool:
        return step in self._state.get("steps", ())

    def _pass(self, step: str, **what: Any) -> None:
        steps = [*dict.fromkeys([*self._state.get("steps", ()), step])]
        self._tell(**NO_PAUSE, **what, steps=steps)
        crash_point(f"repair:{step}")

    def _tell(self, **what: Any) -> None:
        with self._guard:
            self._state = {**self._state, **what}
            self._site.bench.write("state", self._state)

    # copy and replay

    def _copy(self) -> None:
        site = self._site
        site.method.equip()  # before there is a machine: it finds what was there when it was made
        copies, at = newest_copy(site.method, site.group)
        begins = Amounts([site.group]).beginning()
        self._tell(copies=copies, system=at.system, settings=dict(at.settings), **begins)
        self._reading.begin(copies)
        site.bench.machine()  # who finds no place copies nothing
        site.method.restore(copies, site.group, self._data, self._report, site.stopping)
        # Before any server ran here: what was copied does not know that it has to be recovered.
        site.bench.machine().write(self._data / "recovery.signal", "")
        self._pass("copied", phase="replaying", timeline=self._server().controlled().timeline)

    def _report(self, done: int, total: int) -> None:
        if done < total and time.monotonic() - self._told < 0.5:
            return
        self._told = time.monotonic()
        with suppress(PgherdError):  # how far it is is no reason to begin it anew
            self._tell(bytesDone=done, bytesTotal=total)

    def _replay(self) -> None:
        """All of the archived log; then the database leaves recovery, alone."""
        site = self._site
        self._reading.begin(self._state["copies"], unread=())
        site.method.equip()
        server = self._server()
        site.bench.end_processes()  # the machine may be another one since somebody looked
        command = site.method.restore_command(site.group, self._state["system"])
        control = server.controlled()
        known = self._timeline_before()
        if control.timeline <= known:
            # It has not left recovery, whatever it began in order to: the timeline it chose then is nobody's.
            machine, log = site.bench.machine(), self._data / "pg_wal"
            for history in machine.names(log, ".history"):
                if int(history.removesuffix(".history"), 16) > known:
                    machine.remove(log / history)
            machine.write(self._data / "recovery.signal", "")
        server.start(
            {
                **self._settings(control),
                # It is asked only when it is open again: parameters that only matter to those who ask do not stop it.
                "hot_standby": "off",
                "restore_command": command,
                "recovery_target_timeline": "latest",
            }
        )
        try:
            self._await_open(server)
            reached = self._reached(server)
        finally:
            server.stop()
        self._pass("replayed", reached=asdict(reached))

    def _timeline_before(self) -> int:
        """The newest that there was before a server ran here: one that has left recovery is on a later one."""
        method = self._site.method
        try:
            method.repository.require()  # one that is away has no histories, either
        except PgherdError as error:
            raise Unavailable(str(error)) from error
        archived = method.histories(self._site.group, self._state["system"])
        return max([int(self._state.get("timeline", 1)), *(history.timeline for history in archived)])

    def _server(self) -> PrivateServer:
        bench = self._site.bench
        folder = bench.folder()
        return PrivateServer(bench.machine(), self._data, folder, folder / "server.log")

    def _await_open(self, server: PrivateServer) -> None:
        """All of the log is replayed.

        :raises Withheld: the repository is away, or refuses the keys: that is not the log's end
        """
        try:
            server.wait(is_open, self._site.stopping)
        except (Cancelled, Unavailable):
            raise
        except PgherdError as error:
            if (hindrance := self._site.method.hindrance(server.said())) is not None:
                raise Withheld(f"its log can't be read now: {hindrance}") from error
            raise

    def _settings(self, control: Controlled) -> dict[str, str]:
        known = control.settings
        wanted = {name: int(value) for name, value in self._state.get("settings", {}).items()}
        return {name: str(max(wanted.get(name, 0), known.get(name, 0))) for name in {*known, *wanted}}

    def _reached(self, server: PrivateServer) -> Reached:
        timeline = server.timeline()
        path = self._data / "pg_wal" / f"{timeline:08X}.history"
        text = self._site.bench.machine().output(["/bin/cat", str(path)]).decode(errors="replace")
        left = parse_history(timeline, text).left
        committed = _LAST_COMMIT.findall(server.said())
        return Reached(max(left), left[max(left)], committed[-1].strip() if committed else None)

    # judgement

    def _judge(self) -> bool:
        """Whether to go on: nothing is missing, or that is accepted."""
        site = self._site
        verdict = judge(Reached(**self._state["reached"]), site.bench.last_words(), self._marks())
        accepted = bool((site.bench.read("wish") or {}).get("accept"))
        if verdict.complete:
            self._pass("judged", phase="settling", verdict=asdict(verdict), reason=verdict.reason)
            return True
        since = site.down_since()
        reason = verdict.reason + (f"; it has been down since {since}" if since else "")
        if not accepted:
            site.bench.rest()
            self._tell(**NO_PAUSE, phase=DOUBT, verdict=asdict(verdict), reason=reason)
            logger.warning("%s: rebuilding %s waits: %s", site.name, site.title, reason)
            return False
        self._pass("judged", phase="settling", rung=LOSS, verdict=asdict(verdict), reason=reason)
        return True

    def _marks(self) -> dict[int, str]:
        """Restore points that the group's primary had written, archived or not."""
        method, group, system = self._site.method, self._site.group, self._state["system"]
        # One that is away has no points: what nobody sees would count as never written.
        method.repository.require()
        reached = Reached(**self._state["reached"]).timeline
        known = marks_of(
            method.repository.points(days=2), group, system, reached, method.histories(group, system)
        )
        found = {**known, **self._archived_marks()}
        method.repository.require()
        return found

    def _archived_marks(self) -> dict[int, str]:
        """Where the archived log begins anew after its last hole, and where its last file begins."""
        method, group, system = self._site.method, self._site.group, self._state["system"]
        logs = Logs(method.log_names, method.histories)
        timeline = logs.newest_timeline(group, system)
        there = None if timeline is None else logs.present(group, system, timeline)
        if there is None:
            return {}
        marks = {there.last * SEGMENT_BYTES: "that file of it is in the repository"}
        if there.gaps:
            after = (there.gaps[-1].last + 1) * SEGMENT_BYTES
            marks[after] = "its log goes on in the repository after a part that is missing"
        return marks

    @property
    def _is_lossy(self) -> bool:
        return not self._state["verdict"]["complete"]

    # what hangs on other groups

    def _settle(self) -> None:
        site, server = self._site, self._server()
        site.bench.end_processes()
        server.start(self._settings(server.controlled()))
        try:
            server.wait(is_open, site.stopping)
            private = Databases(
                site.databases.database,
                site.databases.credentials,
                lambda: {site.group: [server.endpoint]},
                connect_timeout=CONNECT_SECONDS,
            )
            done = list(site.engine.settle_rebuilt(site.group, private, lossy=self._is_lossy))
            if self._is_lossy:
                # Their publishers consider sent what was received and is lost now: they would leave it out.
                done += settle.disable_subscriptions(private, site.group)
                done += settle.sequences_left_behind(site.group)
        finally:
            server.stop()
        self._pass("settled", done=done)

    # into its place

    def _place(self) -> None:
        site = self._site
        self._require_no_primary()
        # The planner ends what still waits there, and starts nothing meanwhile.
        self._tell(phase="placing")
        self._wait(self._is_quiet)
        if not self._is_past("aside"):
            site.bench.set_aside()
            self._pass("aside")
        site.bench.place(have_archived)
        crash_point("repair:moved")
        self._pass("placed", phase="joining")

    def _is_quiet(self) -> bool:
        # One that was about to lead when that was asked last leads until it is told to end.
        self._require_no_primary()
        self._require_wanted()
        bench = self._site.bench
        if bench.is_quiet():
            return True
        if (waits := bench.lingering or None) != self._state.get("waits"):
            self._tell(**{**NO_PAUSE, "waits": waits})
        return False

    def _join(self) -> None:
        site = self._site
        self._wait(self._is_back)
        done = [*self._state.get("done", ()), *filter(None, [site.call_off()])]
        self._pass("joined", done=done, findings=self._findings(), phase=DONE, finishedAt=records.now())
        logger.info("%s: %s is rebuilt: %s", site.name, site.title, self._state["reason"])

    def _is_back(self) -> bool:
        self._require_wanted()
        return self._site.has_primary() and self._answers()

    def _answers(self) -> bool:
        """Whether it is reached again by everybody's way: a name may be known a moment later than who has it."""
        try:
            with self._site.databases.connect(self._site.group):
                return True
        except (PgherdError, psycopg.Error):
            return False

    def _findings(self) -> list[str]:
        """What the catalogue and the groups disagree on: rows and shards that refer to what is lost."""
        try:
            return [
                f"{group_name(each.group)}: {each.message}: {each.fix}" for each in self._site.engine.check()
            ]
        except (PgherdError, psycopg.Error) as error:
            return [f"the cluster could not be checked: {one_line(error)}"]

    def _wait(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self._site.stopping():
                raise Cancelled("the repair was stopped")
            time.sleep(POLL_SECONDS)


class _Retired(PgherdError):
    """The cluster has no such group any more."""


class _CameBack(Exception):
    """A member of the group leads again."""


def marks_of(
    points: Sequence[records.Point], group: int, system: str, reached: int, histories: Sequence[History]
) -> dict[int, str]:
    """Where a group's log has been (bytes), and what tells so. What was left behind on the way to the timeline that was
    reached, by a failover or by a restore in place, is no part of what it has to have.

    :param reached: the timeline
    """
    found = {}
    for point in points:
        at = point.groups.get(group)
        if at is None or at.system != system:
            continue
        if is_past(at.timeline, parse_lsn(at.lsn), reached, histories, unknown=True):
            found[parse_lsn(at.lsn)] = f"restore point {point.name} was made there at {point.time}"
    return found


def newest_copy(method: BackupMethod, group: int) -> tuple[list[str], GroupPoint]:
    """The copies from which a group is brought to the present, and what is known of it.

    :raises PgherdError: the repository is not there, or has none
    """
    repository = method.repository
    identity = repository.identity()
    system = identity.systems.get(group_name(group))
    backups = [backup for backup in repository.backups() if backup.phase == "done"]
    if system is not None:
        histories = method.histories(group, system)
        timelines = [history.timeline for history in histories] or [1]
        at = GroupPoint(system, max(timelines), _FAR, _settings_of(repository.points(days=2), group, system))
        found = choice.base_for(group, at, datetime.now(UTC).isoformat(), backups, method.histories)
        copies = choice.chain(found, group, {each.id: each for each in backups}) if found else []
        if copies:
            return copies, at
    raise PgherdError(
        f"{method.location} holds no base copy of {group_name(group)} from which it could be rebuilt"
    )


def _settings_of(points: Sequence[records.Point], group: int, system: str) -> Mapping[str, str]:
    known = [at.settings for each in points if (at := each.groups.get(group)) and at.system == system]
    return known[-1] if known else {}


def verdict_of(state: Mapping[str, Any]) -> Verdict | None:
    """What was found of what is missing; None: it is not known yet."""
    raw = state.get("verdict")
    return None if raw is None else Verdict(**raw)
