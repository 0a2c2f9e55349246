"""A cluster's databases and Patronis, reached from outside through tunnels to its pods."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightkube.resources.core_v1 import Pod

from pgherd.engine.registry import make_engine
from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import Endpoint, group_name
from pgherd.platform.base import MemberView
from pgherd.platform.kubernetes import api as platform_api
from pgherd.platform.kubernetes import epochs, names
from pgherd.platform.kubernetes.bench import PodBench
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.platform.kubernetes.tunnel import HOST, Tunnel
from pgherd.reconcile import observe
from pgherd.remote.api import Api


def primary_pod(api: Api, name: str, group: int) -> str:
    """The pod of a group's primary, as its Patroni labelled it.

    :raises Unavailable: there is none right now
    """
    labels: dict[str, Any] = {**names.selector(name, group), names.ROLE_LABEL: "primary"}
    with api.asking():
        pods = list(api.client.list(Pod, namespace=api.namespace, labels=labels))
    running = [pod for pod in pods if pod.status and pod.status.phase == "Running" and pod.metadata]
    if not running:
        raise Unavailable(
            f"{group_name(group)} of {name} has no primary right now: see 'pgherd status {name}'"
        )
    return str(running[0].metadata.name)  # type: ignore[union-attr]


class Tunnels:
    """One tunnel for each port of each pod that was asked for, until closed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], Tunnel] = {}

    def to(self, pod: str, port: int) -> Endpoint:
        """The local endpoint that leads there."""
        with self._lock:
            if (pod, port) not in self._open:
                self._open[pod, port] = Tunnel(self._api, lambda: pod, port)
            return Endpoint(HOST, self._open[pod, port].port)

    def close(self) -> None:
        """End them all."""
        with self._lock:
            for tunnel in self._open.values():
                tunnel.close()
            self._open.clear()


class ReachedPlatform(KubernetesPlatform):
    """The platform as it is, but for where its members are reached from here.

    :param authority: file with the cluster's certificate authority
    """

    def __init__(self, api: Api, tunnels: Tunnels, authority: str) -> None:
        super().__init__(platform_api.Api(api.client), api.namespace)
        self._tunnels = tunnels
        self._authority = authority

    @property
    def keeps_backups(self) -> bool:
        """The operator does: a repository need not be reached from here."""
        return False

    def kept_declaration(self, name: str) -> dict[str, Any] | None:
        """As far as this user may see it: commands make nothing of a declaration, the operator judges it."""
        with contextlib.suppress(PgherdError):
            return super().kept_declaration(name)
        return None

    def restored(
        self, name: str, resource: dict[str, Any] | None, *, winding_down: bool
    ) -> epochs.State | None:
        """As far as this user may see it: commands begin nothing on what they take for a cluster's volumes."""
        with contextlib.suppress(PgherdError):
            return super().restored(name, resource, winding_down=True)
        return None

    def own(self, name: str, state: epochs.State | None) -> tuple[epochs.Own, set[int]]:
        """As far as this user may see it."""
        with contextlib.suppress(PgherdError):
            return super().own(name, state)
        return epochs.Own(epochs.current(state)), set()

    def benches(self, name: str) -> Mapping[int, PodBench]:
        """The operator's affair."""
        return {}

    def members(self, name: str) -> Mapping[str, MemberView]:
        """Every member that exists in any form, by name."""
        return {
            member: replace(
                view,
                postgres=self._tunnels.to(member, names.POSTGRES_PORT),
                rest=self._tunnels.to(member, names.REST_PORT),
            )
            for member, view in super().members(name).items()
        }

    def authority(self, name: str) -> str:
        """The file at hand."""
        return self._authority

    def connection_options(self, name: str) -> Mapping[str, str]:
        """Encrypted through the tunnel, too: members' certificates are good for this machine's own address."""
        return {"sslmode": "verify-full", "sslrootcert": self._authority}


@contextlib.contextmanager
def reached(api: Api, name: str, authority: str) -> Iterator[observe.World]:
    """The world of one cluster, for as long as the block lasts.

    :param authority: the certificate of the cluster's authority, as PEM
    :raises NoSuchCluster: there is none of this name
    """
    tunnels = Tunnels(api)
    try:
        with kept_file(authority) as path:
            yield observe.connect(ReachedPlatform(api, tunnels, path), name, make_engine)
    finally:
        tunnels.close()


@contextlib.contextmanager
def kept_file(text: str) -> Iterator[str]:
    """A file that only this user can change, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="pgherd-") as folder:
        path = Path(folder) / "ca.crt"
        path.write_text(text)
        yield str(path)
