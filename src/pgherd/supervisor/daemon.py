"""The daemon of one home: a reconcile loop per cluster, until there is nothing left to look after.

``HOME/supervisor.lock`` is held (flock) by the one daemon that runs; a second one sees it and leaves. The lock goes
with the process, however it ends, so it can't be stale.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pgherd import __version__
from pgherd.errors import NoSuchCluster, PgherdError, one_line
from pgherd.platform.local import files, logs
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile.loop import ClusterLoop

logger = logging.getLogger(__name__)

LOCK = "supervisor.lock"
LOG = "supervisor.log"
SCAN_SECONDS = 0.2
"""how often the daemon looks for new clusters"""
REMOVAL_SECONDS = 5.0
"""how long a home without a lock may take to turn out to be on its way out altogether"""
JOIN_SECONDS = 20.0
"""how long a shutdown waits for loops and operations to come to a resumable place"""


def acquire(home: Path) -> IO[str] | None:
    """The daemon's lock, or None if another one holds it."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (home / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()} {__version__}")
    file.flush()
    return file


@dataclass(frozen=True)
class Running:
    """The daemon that holds the lock."""

    pid: int
    version: str


def probe(home: Path) -> Running | None:
    """The daemon that runs in this home (its lock is held), or None."""
    try:
        file = (home / LOCK).open("r")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, version = file.read().partition(" ")
            # 0: it has only just taken the lock, or somebody wrote into the file
            return Running(int(pid) if pid.isdecimal() else 0, version)
        return None


class Daemon:
    """Runs the loops of one home."""

    def __init__(self, platform: LocalPlatform, lock: IO[str]) -> None:
        self._platform = platform
        self._lock = lock
        self._stop = threading.Event()
        self._loops: dict[str, ClusterLoop] = {}
        self._complaints: dict[str, str] = {}
        self._store_error = ""

    @property
    def stop_asked(self) -> threading.Event:
        """Set when it shuts down."""
        return self._stop

    def run(self) -> None:
        """Until a signal, or until no cluster is left that should run."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        while not self._stop.wait(SCAN_SECONDS):
            if not self._is_ours():
                self._leave_lost_home()
                break
            logs.rotate(self._platform.home / LOG)
            try:
                self._ensure_loops()
                if not self._loops and self._leave_if_idle():
                    return
            except (PgherdError, OSError):
                logger.exception("a scan of the home failed")
        for loop in self._loops.values():
            loop.join(JOIN_SECONDS)
            loop.join_operation(JOIN_SECONDS)

    def _is_ours(self) -> bool:
        """Whether the lock still guards the home: without its file, the next command starts another daemon."""
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._platform.home / LOCK))
        except OSError:
            return False

    def _leave_lost_home(self) -> None:
        self._stop.set()
        deadline = time.monotonic() + REMOVAL_SECONDS
        while time.monotonic() < deadline:
            if self._platform.abandon_if_removed():
                logger.warning("the home was removed: ended what still ran in it")
                return
            time.sleep(SCAN_SECONDS)
        logger.warning("the lock file was removed or replaced: leaving, databases go on")

    def _on_signal(self, number: int, frame: object) -> None:
        logger.info("signal %s: shutting down, databases go on", number)
        self._stop.set()

    def _ensure_loops(self) -> None:
        self._loops = {name: loop for name, loop in self._loops.items() if loop.is_alive()}
        active = [name for name in self._platform.clusters() if self._needs_loop(name)]
        if active:
            self._ensure_store()
        for name in active:
            if name not in self._loops:
                self._loops[name] = ClusterLoop(self._platform, name, self._stop)
                self._loops[name].start()

    def _ensure_store(self) -> None:
        # Without it loops still look and tell: each runs into the same error, and its status says so.
        try:
            self._platform.ensure_store()
        except (PgherdError, OSError) as error:
            if str(error) != self._store_error:
                logger.error("%s", error)
            self._store_error = str(error)
        else:
            self._store_error = ""

    def _needs_loop(self, name: str) -> bool:
        # What one cluster should be may be unreadable; the others must not suffer from it.
        try:
            needed = self._needs_care(name)
        except PgherdError as error:
            reason = one_line(error)
            if self._complaints.get(name) != reason:
                logger.error("%s is left alone: %s", name, reason)
            self._complaints[name] = reason
            return False
        self._complaints.pop(name, None)
        return needed

    def _needs_care(self, name: str) -> bool:
        try:
            declaration = self._platform.declaration(name)
        except NoSuchCluster:
            return False
        if declaration.deleting or not declaration.stopped:
            return True
        if any(view.running for view in self._platform.members(name).values()):
            return True
        return (self._platform.read_status(name) or {}).get("phase") != "Stopped"

    def _leave_if_idle(self) -> bool:
        """Nothing runs and nothing should: release everything under the home's lock, so that no wish gets lost.

        A wish is declared under the same lock: either it is seen here, or its client finds this daemon gone.
        """
        with self._platform.locked():
            # Members of a cluster that was left alone may run, and need the store.
            if any(self._needs_loop(name) or name in self._complaints for name in self._platform.clusters()):
                return False
            logger.info("nothing left to look after")
            self._platform.stop_store()
            self._lock.close()
            if not self._platform.clusters():
                for leftover in (LOCK, LOG):
                    (self._platform.home / leftover).unlink(missing_ok=True)
        self._platform.close_if_empty()
        return True


def main(home: Path, bin_dir: Path | None) -> int:
    """The process ``python -m pgherd.supervisor``."""
    # Late: the client starts daemons, and so knows this module.
    from pgherd.supervisor.client import Client
    from pgherd.supervisor.schedules import Scheduler

    lock = acquire(home)
    if lock is None:
        return 0
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(threadName)s %(message)s"
    )
    logger.info("supervisor %s looks after this home", os.getpid())
    platform = LocalPlatform(home, bin_dir)
    daemon = Daemon(platform, lock)
    threading.Thread(target=_sweep, args=(home,), name="sweep", daemon=True).start()
    Scheduler(platform, Client(home, bin_dir), daemon.stop_asked).start()
    daemon.run()
    return 0


def _sweep(home: Path) -> None:
    try:
        files.sweep_below(home, 3)  # HOME/NAME/members/MEMBER
    except (PgherdError, OSError) as error:
        logger.warning("what was removed before is not all gone: %s", error)
