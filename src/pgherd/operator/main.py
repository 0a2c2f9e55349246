"""``python -m pgherd.operator``: kopf's handlers, and what they need.

Settings come from the environment: ``PGHERD_WATCH_NAMESPACE`` (empty: all namespaces), ``PGHERD_POSTGRES_IMAGE`` (what
members run unless their cluster says otherwise), ``PGHERD_LOG_LEVEL``.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from typing import Any

import httpx2
import kopf
from lightkube import Client

from pgherd.errors import PgherdError
from pgherd.operator.keeper import Keeper
from pgherd.operator.lease import ANSWER_SECONDS, Lease
from pgherd.operator.strays import Strays
from pgherd.operator.waiting import answering
from pgherd.platform.kubernetes import names, zone
from pgherd.platform.kubernetes.api import ALL_NAMESPACES, CLUSTER, Api
from pgherd.platform.kubernetes.cache import Watched
from pgherd.platform.kubernetes.crd import GROUP, PLURAL, VERSION
from pgherd.platform.kubernetes.fence import Fence
from pgherd.platform.kubernetes.platform import Defaults, KubernetesPlatform

logger = logging.getLogger(__name__)

LIVENESS = "http://0.0.0.0:8080/healthz"
LEASE_NAME = "pgherd-operator"
FENCE_SECONDS = 10.0
"""how often fenced nodes are looked at"""
STRAYS_SECONDS = 10.0
"""how often backups and schedules are looked at whose cluster is not there"""
MAX_CLUSTERS = 1000
DELETE_SECONDS = 20.0
"""how long one call of the deletion's handler works on it before kopf calls again"""


class Operator:
    """What all handlers share.

    :param namespace: ``*`` for all
    """

    def __init__(self, api: Api, namespace: str, defaults: Defaults) -> None:
        self._api = api
        self._defaults = defaults
        self.objects = Watched(api, namespace)
        self._guard = threading.Lock()
        self._platforms: dict[str, KubernetesPlatform] = {}
        self._keepers: dict[tuple[str, str], Keeper] = {}

    def keeper(self, namespace: str, name: str) -> Keeper:
        """Who looks after a cluster."""
        with self._guard:
            key = (namespace, name)
            if key not in self._keepers:
                self._leave_gone()
                if namespace not in self._platforms:
                    platform = KubernetesPlatform(self._api, namespace, self.objects, self._defaults)
                    self._platforms[namespace] = platform
                self._keepers[key] = Keeper(self._platforms[namespace], name)
            return self._keepers[key]

    def _leave_gone(self) -> None:
        """Remember nothing of clusters that are gone, nor of namespaces without any."""
        for key, keeper in list(self._keepers.items()):
            if keeper.has_ended() and self.objects.get(CLUSTER, *key) is None:
                del self._keepers[key]
                self._platforms[key[0]].leave(key[1])
        for namespace in self._platforms.keys() - {namespace for namespace, _ in self._keepers}:
            del self._platforms[namespace]

    def look_after_fences(self) -> None:
        """From now on take down fences whose nodes report again: the cluster that wanted one may be gone."""

        def look() -> None:
            while True:
                self.lower_fences()
                time.sleep(FENCE_SECONDS)

        threading.Thread(target=look, name="fences", daemon=True).start()

    def look_after_strays(self) -> None:
        """From now on answer for backups and schedules whose cluster is not there."""
        strays = Strays(self._api, self.objects)

        def look() -> None:
            while True:
                strays.look()
                time.sleep(STRAYS_SECONDS)

        threading.Thread(target=look, name="strays", daemon=True).start()

    def lower_fences(self) -> None:
        """One look at fenced nodes; never raises."""
        try:
            Fence(self._api).lower(logger.info)
        except PgherdError as error:
            logger.warning("fenced nodes: %s", error)
        except Exception:  # it must outlive whatever one look ran into
            logger.exception("fenced nodes")

    def is_at_rest(self) -> bool:
        """Whether nobody works on a cluster any more."""
        with self._guard:
            return all(keeper.is_at_rest() for keeper in self._keepers.values())


def register(operator: Operator) -> kopf.OperatorRegistry:
    """kopf's handlers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.persistence.finalizer = names.FINALIZER
        storage = f"operator.{names.DOMAIN}"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=storage)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=storage)
        settings.posting.enabled = False
        settings.execution.max_workers = MAX_CLUSTERS
        settings.watching.server_timeout = 60
        settings.watching.client_timeout = 75
        try:
            operator.objects.start()
        except TimeoutError as error:
            # Not after a minute, as kopf would: most of it may be there in a moment.
            raise kopf.TemporaryError(str(error), delay=1.0) from None
        operator.look_after_fences()
        operator.look_after_strays()
        logger.info("watching")

    @kopf.on.login(registry=registry)
    def login(**known: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)

    # Without this kopf looks only once a minute whether a loop that was told to has ended.
    @kopf.daemon(GROUP, VERSION, PLURAL, registry=registry, cancellation_polling=1.0)
    def keep(stopped: kopf.DaemonStopped, namespace: str | None, name: str, **_: Any) -> None:
        operator.keeper(str(namespace), name).keep(lambda seconds: bool(stopped.wait(seconds)))

    @kopf.on.delete(GROUP, VERSION, PLURAL, registry=registry)
    def wind_down(namespace: str | None, name: str, **_: Any) -> None:
        if not operator.keeper(str(namespace), name).wind_down(DELETE_SECONDS):
            raise kopf.TemporaryError("members are still ending", delay=0.5)

    return registry


def main() -> None:
    """Run until a signal."""
    logging.basicConfig(
        level=os.environ.get("PGHERD_LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(threadName)s %(message)s",
    )
    for noisy in ("httpx", "httpx2", "kopf.objects", "kopf._core", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    zone.learn()
    namespace = os.environ.get("PGHERD_WATCH_NAMESPACE") or ALL_NAMESPACES
    operator = Operator(Api(Client()), namespace, Defaults.from_environment())
    lease = make_lease(namespace)
    # As process 1 of its container it would not end by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    liveness = os.environ.get("PGHERD_LIVENESS", LIVENESS)
    try:
        with answering(liveness) as sign:
            lease.acquire(sign)
    except (PgherdError, OSError) as error:
        raise SystemExit(f"pgherd: {error}") from None
    everywhere = namespace == ALL_NAMESPACES
    try:
        kopf.run(
            registry=register(operator),
            clusterwide=everywhere,
            namespaces=[] if everywhere else [namespace],
            standalone=True,
            liveness_endpoint=liveness,
        )
    finally:
        if operator.is_at_rest():
            lease.release()


def make_lease(watched: str) -> Lease:
    """The lease of operators in this namespace that look after the same clusters."""
    client = Client(timeout=httpx2.Timeout(ANSWER_SECONDS))
    name = LEASE_NAME if watched == ALL_NAMESPACES else f"{LEASE_NAME}-{watched}"
    # A container that is started anew in its pod takes its own place; elsewhere no name is sure to be one's own.
    identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    return Lease(Api(client), client.namespace, name, identity)
