"""What the commands call: wishes go into the home's files, looks are taken at the world itself.

Nothing asks the daemon anything, so a status is true even while the daemon is dead. Every call that wants something
done makes sure that a daemon runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pgherd import __version__
from pgherd.backup import source
from pgherd.engine.base import Finding
from pgherd.engine.registry import check_available, make_engine
from pgherd.errors import BadInput, NoSuchCluster, PgherdError
from pgherd.model import spec as declaration
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import COORDINATOR
from pgherd.operations.copy import Summary, Tell
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe, plan, status, steering
from pgherd.reconcile.drills import Wish
from pgherd.reconcile.fulfilment import is_fulfilled, obstacle, time_is_up
from pgherd.reconcile.state import Observed
from pgherd.supervisor import backups, daemon
from pgherd.supervisor import drill as drilling
from pgherd.supervisor.backup_commands import BackupCommands, Progress

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
START_SECONDS = 60.0
"""a daemon is there within a second; only a machine that is very busy takes longer, and it is not told to be broken"""


def default_home() -> Path:
    """``PGHERD_HOME``, else ``~/.local/state/pgherd``."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(os.environ.get("PGHERD_HOME") or Path(state) / "pgherd")


class Client(BackupCommands):
    """One home.

    :param home: default :func:`default_home`
    :param bin_dir: where PostgreSQL's programs are, instead of the embedded ones
    """

    carries_sessions = False
    """psql needs nothing of this process"""

    def __init__(self, home: Path | None = None, bin_dir: Path | None = None) -> None:
        self._bin_dir = bin_dir
        self._platform = LocalPlatform((home or default_home()).absolute(), bin_dir)

    # wishes

    def up(self, cluster: PostgresCluster) -> None:
        """Create or change a cluster: the wish is durable and a daemon runs when this returns.

        :raises BadInput: this platform can't run it, or something changed that may not
        """
        cluster = declaration.with_platform_defaults(cluster, "local")
        check_available(cluster)
        self._platform.check_supported(cluster)
        self._require_change(cluster)
        source.require(self._platform, cluster)
        # Before the lock: a repository may answer late or never, and every cluster of the home would wait with us.
        backups.prepare(self._platform, cluster)
        with self._platform.locked():
            self._require_change(cluster)
            self._platform.declare(cluster)
            self._platform.set_stopped(cluster.metadata.name, False)
        self.ensure_daemon()

    def _require_change(self, cluster: PostgresCluster) -> None:
        with contextlib.suppress(NoSuchCluster):
            declaration.validate_change(self._staying(cluster.metadata.name), cluster, version_is_there=True)

    def scale(self, name: str, segments: int) -> None:
        """Declare another number of segments."""
        self._redeclare(name, lambda cluster: declaration.with_segment_count(cluster, segments))

    def pause(self, name: str) -> None:
        """Start no further move."""
        self._redeclare(name, lambda cluster: declaration.with_paused(cluster, True))

    def resume(self, name: str) -> None:
        """Undo :meth:`pause`."""
        self._redeclare(name, lambda cluster: declaration.with_paused(cluster, False))

    def cancel(self, name: str) -> None:
        """Call the running operation off: what it was to change is declared as it was before.

        :raises BadInput: no operation is running
        """
        before = steering.request_cancel(self._world(name))
        if before is not None:
            self.scale(name, before)

    def rebalance(self, name: str) -> int:
        """Request a rebalance; returns the operation's id, to :meth:`wait` for.

        :raises BadInput: another operation is running
        """
        self._staying(name)
        operation = steering.request_rebalance(self._world(name))
        self.ensure_daemon()
        return operation

    def plan_rebalance(self, name: str) -> list[dict[str, Any]]:
        """The moves that a rebalance would make, in order."""
        return steering.planned_moves(self._world(name))

    def stop(self, name: str) -> None:
        """Ask for all processes to end; data stays."""
        self._set_stopped(name, True)

    def start(self, name: str) -> None:
        """Undo :meth:`stop`, or come back after a reboot."""
        self._set_stopped(name, False)

    def delete(self, name: str, *, purge: bool) -> None:
        """Ask for the cluster to go; with ``purge`` its data too."""
        try:
            self._platform.set_deleting(name, purge=purge)
        except NoSuchCluster:
            if not (purge and self._platform.keeps(name)):
                raise
            # Deleted before, with its data kept: nothing runs, so nothing has to be waited for.
            self._platform.forget(name, purge=True)
            self._platform.close_if_empty()
            return
        self.ensure_daemon()

    def require_known(self, name: str) -> None:
        """Refuse what can't be deleted.

        :raises NoSuchCluster: nothing of this name is here, not even data that a deletion kept
        """
        if name not in self._platform.clusters() and not self._platform.keeps(name):
            self._tidy()
        if not self._platform.keeps(name):
            self._platform.declaration(name)

    def _staying(self, name: str) -> PostgresCluster:
        """The declaration of a cluster that is not about to go.

        :raises BadInput: it is being deleted
        """
        found = self._platform.declaration(name)
        if found.deleting:
            self.ensure_daemon()  # nobody should wait for a deletion that was cut short
            raise BadInput(f"{name} is being deleted: wait until 'pgherd list' shows it no more")
        return found.cluster

    def _set_stopped(self, name: str, stopped: bool) -> None:
        self._staying(name)
        self._platform.set_stopped(name, stopped)
        self.ensure_daemon()

    def _redeclare(self, name: str, change: Callable[[PostgresCluster], PostgresCluster]) -> None:
        self._staying(name)  # before the lock, which would make a home that is not there
        with self._platform.locked():
            current = self._staying(name)
            changed = change(current)
            if changed != current:
                self._platform.declare(changed)
        self.ensure_daemon()

    # drills

    def drill(
        self,
        name: str,
        *,
        keep: bool = False,
        tables: Sequence[str] = (),
        timeout: float = 3600.0,
        told: Callable[[str], None] = lambda text: None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Restore the newest point into a scratch cluster, examine it, remove it; the result is kept with the backups.

        :param tables: whose rows are compared with what they were at the point
        :raises BadInput: there is nothing to restore, no such table, or another drill is going on
        """
        wish = Wish(keep, tuple(tables), timeout, told, progress)
        return drilling.drill(self, self._platform, self._world, name, wish)

    def drills(self, name: str) -> list[dict[str, Any]]:
        """The last drills of a cluster, oldest first.

        :raises BadInput: it has no backups
        """
        return drilling.drills(self, name)

    def sweep_drill(self, name: str) -> None:
        """Remove what a drill left whose process is gone."""
        drilling.sweep(self, self._platform, name)

    def end_drill(self, name: str) -> None:
        """Remove the scratch of a drill that does not end by itself: it fails then."""
        drilling.remove_scratch(self, name)

    # looks

    def names(self) -> list[str]:
        """All clusters, sorted."""
        return list(self._platform.clusters())

    def declared(self, name: str) -> PostgresCluster:
        """The declaration in force."""
        return self._platform.declaration(name).cluster

    def generation(self, name: str) -> int:
        """The declaration's generation."""
        return self._platform.declaration(name).generation

    def status(self, name: str) -> dict[str, Any]:
        """A fresh look (DESIGN section 3), with the errors the daemon ran into last."""
        seen = observe.observe(self._world(name), sizes=True)
        return self._render(seen)

    def _render(self, seen: Observed) -> dict[str, Any]:
        name = seen.declaration.cluster.metadata.name
        previous = self._platform.read_status(name)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        fresh = previous is not None and previous.get("generation") == seen.declaration.generation
        # The supervisor's keeper knows them, and looks each minute.
        if seen.backups is not None and (readers := ((previous or {}).get("backups") or {}).get("readers")):
            seen = replace(seen, backups={**seen.backups, "readers": readers})
        return status.build(
            seen,
            plan.plan(seen),
            now=now,
            previous=previous,
            errors=(previous or {}).get("errors", []) if fresh else [],
            fatal=fresh and (previous or {}).get("phase") == "Failed",
        )

    def wait(
        self,
        name: str,
        *,
        generation: int | None = None,
        operation: int = 0,
        timeout: float = 600.0,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Until the cluster is as declared (or, where that was asked for, stopped).

        :param generation: wait for this generation at least; default the present one
        :param operation: wait for this operation, or a later one, to have ended
        :raises PgherdError: it failed, or time ran out; the message says what stands in the way
        """
        deadline, begun = time.monotonic() + timeout, datetime.now(UTC)
        wanted = self.generation(name) if generation is None else generation
        while True:
            self.ensure_daemon()
            now = self._platform.read_status(name)
            if now is not None and progress is not None:
                progress(now)
            if is_fulfilled(name, now, wanted, operation=operation, silence=self._silence):
                # What was written before may be from before a power cut: only what is there now counts.
                sure = now if now is not None and _is_since(now, begun) else self.status(name)
                if is_fulfilled(name, sure, wanted, operation=operation, silence=self._silence):
                    return sure
            if time.monotonic() > deadline:
                raise PgherdError(time_is_up(name, now, wanted, timeout, self._silence))
            time.sleep(POLL_SECONDS)

    def wait_gone(self, name: str, timeout: float = 120.0) -> None:
        """Until a deletion is complete.

        :raises PgherdError: time ran out
        """
        deadline = time.monotonic() + timeout
        while name in self._platform.clusters() or self._home_is_emptying():
            if time.monotonic() > deadline:
                reason = obstacle(self._platform.read_status(name), self._silence)
                raise PgherdError(f"{name}: not gone after {timeout:.0f} s: {reason}")
            if name in self._platform.clusters():
                self.ensure_daemon()
            time.sleep(POLL_SECONDS)
        self._tidy()

    def _tidy(self) -> None:
        """Finish what a supervisor does last of all, in case it was killed just there: nobody would start another."""
        home = self._platform.home
        if self._platform.clusters() or not home.is_dir():
            return
        # The home's lock first: whoever declares a cluster must not take us for its supervisor.
        with self._platform.locked():
            if self._platform.clusters() or (lock := daemon.acquire(home)) is None:
                return
            with lock:
                for leftover in () if self._platform.keeps_data() else (daemon.LOCK, daemon.LOG):
                    (home / leftover).unlink(missing_ok=True)
            self._platform.close_if_empty()

    def _home_is_emptying(self) -> bool:
        return not self._platform.clusters() and self._daemon_runs()

    def dsn(self, name: str, *, role: str = "rw", group: str = "coordinator") -> str:
        """One libpq URI that names every member of the group, with the owner's password.

        :raises BadInput: no such group
        """
        world = self._world(name)
        number = steering.group_number(world, group)
        parameters = world.databases.parameters(number, user=world.databases.owner, read_only=role == "ro")
        pairs = zip(parameters["host"].split(","), parameters["port"].split(","), strict=True)
        hosts = ",".join(f"{host}:{port}" for host, port in pairs)
        user, password = quote(parameters["user"], safe=""), quote(parameters["password"], safe="")
        attributes = parameters["target_session_attrs"]
        database = quote(parameters["dbname"], safe="")
        return f"postgresql://{user}:{password}@{hosts}/{database}?target_session_attrs={attributes}&connect_timeout=3"

    def psql_command(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Program and environment of an interactive session as the owner; the password is in the environment.

        :raises PgherdError: the cluster is stopped
        """
        world = self._world(name)
        if self._platform.declaration(name).stopped:
            raise PgherdError(f"{name} is stopped: 'pgherd start {name}' brings it back")
        parameters = world.databases.parameters(COORDINATOR, user=world.databases.owner)
        password = parameters.pop("password")
        text = " ".join(f"{key}={value}" for key, value in parameters.items())
        return [str(self._platform.program("psql")), text], {"PGPASSWORD": password}

    def logs(self, name: str, member: str | None, follow: bool) -> Iterator[str]:
        """Log lines of one member, or of all."""
        self._platform.declaration(name)
        return self._platform.logs(name, member, follow=follow)

    def check(self, name: str) -> list[Finding]:
        """Everything that the catalogue and the world disagree on."""
        return steering.findings(self._world(name))

    def copy_to(self, source: str, destination: str, tell: Tell, parallel: int) -> Summary:
        """Copy a cluster's database to another cluster, or go on with it.

        :raises BadInput: this can't be copied there
        :raises PgherdError: a cluster is stopped, or what came over is not what was sent
        """
        for name in (source, destination):
            if self._staying(name) and self._platform.declaration(name).stopped:
                raise PgherdError(f"{name} is stopped: 'pgherd start {name}' brings it back")
        pg_dump = self._platform.program("pg_dump")
        return steering.copy_to(self._world(source), self._world(destination), pg_dump, tell, parallel)

    # what Patroni does

    def switchover(self, name: str, group: str, to: str | None) -> str:
        """Let another member of a group lead. Returns the new primary's name.

        :raises BadInput: no such group or member
        :raises PgherdError: nobody may take over right now
        """
        self._staying(name)
        return steering.switchover(self._world(name), group, to)

    def restart(
        self, name: str, group: str | None, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        """Restart PostgreSQL of every member, one at a time, standbys first.

        :raises PgherdError: a member did not come back
        """
        self._staying(name)
        steering.restart(self._world(name), group, progress)

    # the daemon

    def ensure_daemon(self) -> None:
        """Start the home's daemon unless it runs.

        :raises PgherdError: it does not start
        """
        home = self._platform.home
        if (running := daemon.probe(home)) is not None:
            if running.pid == 0 or running.version == __version__:
                return
            self._retire_daemon(running)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        process = self._spawn_daemon()
        deadline = time.monotonic() + START_SECONDS
        while not self._daemon_runs():
            ended = process.poll() or 0
            if ended > 0 or time.monotonic() > deadline:
                raise PgherdError(f"the supervisor does not start: see {home / daemon.LOG}")
            if ended < 0:
                # Killed, maybe at work already and only not seen yet: that is not its own refusal.
                process = self._spawn_daemon()
            time.sleep(0.05)

    def _spawn_daemon(self) -> subprocess.Popen[bytes]:
        home = self._platform.home
        arguments = [sys.executable, "-m", "pgherd.supervisor", str(home)]
        with (home / daemon.LOG).open("a") as log:
            return subprocess.Popen(
                [*arguments, str(self._bin_dir)] if self._bin_dir else arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=home,
            )

    def _retire_daemon(self, running: daemon.Running) -> None:
        """After an upgrade: a daemon of another version would carry on with the old program."""
        logger.info("supervisor %s is of version %s: replacing it", running.pid, running.version)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60.0
        while (now := daemon.probe(self._platform.home)) is not None and now.pid == running.pid:
            if time.monotonic() > deadline:
                raise PgherdError(f"supervisor {running.pid} does not end: end it, then try again")
            time.sleep(0.05)

    def _daemon_runs(self) -> bool:
        return daemon.probe(self._platform.home) is not None

    # helpers

    def _world(self, name: str) -> observe.World:
        return observe.connect(self._platform, name, make_engine)

    @property
    def _silence(self) -> str:
        return f"the supervisor has not reported yet, its log is {self._platform.home / daemon.LOG}"


def _is_since(now: dict[str, Any], begun: datetime) -> bool:
    try:
        return datetime.fromisoformat(now["observedAt"]) >= begun
    except (LookupError, TypeError, ValueError):
        return False
