"""One cluster's loop, kept running for as long as the cluster is there and wants care."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pgherd.errors import PgherdError
from pgherd.operator.backups import Desk
from pgherd.platform.kubernetes.api import CLUSTER
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.reconcile.loop import ClusterLoop

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""how often a stopped cluster is looked at for a new wish"""
JOIN_SECONDS = 20.0
"""how long the end waits for a loop and its operation to come to a resumable place"""


class Keeper:
    """Runs one cluster's loop; one loop at a time, whoever asks."""

    def __init__(self, platform: KubernetesPlatform, name: str) -> None:
        self._platform = platform
        self._name = name
        self._one = threading.Lock()
        self._loop: ClusterLoop | None = None
        self._desk: Desk | None = None

    def keep(self, wait: Callable[[float], bool]) -> None:
        """Keep the cluster as declared until told to stop, or until it is gone.

        :param wait: waits so many seconds, returns whether to stop
        """
        with self._one:
            while not self._is_free():
                if wait(LOOK_SECONDS):
                    return
            stop = threading.Event()
            desk = self._desk = Desk(self._platform, self._name, stop)
            loop = self._start(stop)
            try:
                desk.start()
                while not wait(LOOK_SECONDS):
                    if not loop.is_alive():
                        if not self._wants_care():
                            continue
                        loop = self._start(stop)
            finally:
                # Whatever it ran into: it is called again, and nobody else may be at work then.
                stop.set()
                loop.join(JOIN_SECONDS)
                loop.join_operation(JOIN_SECONDS)
                if desk.is_alive():
                    desk.join(JOIN_SECONDS)

    def _is_free(self, seconds: float = 0.0) -> bool:
        """Whether no loop is at work: one that was told to end may still be in the middle of a step."""
        if self._loop is not None:
            self._loop.join(seconds)
        return self._loop is None or not self._loop.is_alive()

    def _start(self, stop: threading.Event) -> ClusterLoop:
        loop = ClusterLoop(self._platform, self._name, stop)
        if self._desk is not None:
            loop.beside = self._desk.trouble
        loop.start()
        self._loop = loop
        return loop

    def has_ended(self) -> bool:
        """Whether it has looked after its cluster, and nobody makes it do so any more."""
        return self._loop is not None and not self._one.locked() and self.is_at_rest()

    def is_at_rest(self) -> bool:
        """Whether neither the loop nor anything beside it is at work."""
        loop, desk = self._loop, self._desk
        return (loop is None or loop.is_at_rest()) and (desk is None or desk.is_at_rest())

    def _wants_care(self) -> bool:
        try:
            declaration = self._platform.declaration(self._name)
            if declaration.deleting or not declaration.stopped:
                return True
            status = self._platform.read_status(self._name) or {}
            if status.get("generation") != declaration.generation or status.get("phase") != "Stopped":
                return True
            return any(view.running for view in self._platform.members(self._name).values())
        except PgherdError:
            return False
        except Exception:  # a loop runs into it, too, and tells it
            logger.exception("%s: whether it wants care can't be told", self._name)
            return True

    def wind_down(self, seconds: float) -> bool:
        """Bring a cluster that is being deleted to its end; False if it takes longer than this.

        A loop may end for other reasons. What it looks at may lag: then nothing is to be done of a cluster that was
        stopped before, and one that was just declared is not there.
        """
        with self._one:
            if not self._is_free(seconds):
                return False
            stop = threading.Event()
            loop = self._start(stop)
            loop.join(seconds)
            stop.set()
            loop.join(JOIN_SECONDS)
            return loop.has_forgotten or self._is_gone()

    def _is_gone(self) -> bool:
        """Whether there is nothing any more that could be deleted; asked."""
        try:
            return self._platform.api.get(CLUSTER, self._platform.namespace, self._name) is None
        except PgherdError:
            return False  # nobody knows
