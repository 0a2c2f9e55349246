"""Where everything of the lab is and what it is called: names and addresses, known before anything exists.

All of it is fixed, so that a process that knows nothing (`lab down` after a crash) still finds everything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lab.errors import BadRequestError

NAME = "pgherd-lab"
"""The cgroup, the cluster's name in the kubeconfig, and the state directory's default name."""

NODES = 3
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
SWITCH_PREFIX = "192.168.50"
API_PORT = 6443

TOOL_IMAGE = "localhost/lab-tool:1"
COREDNS_IMAGE = "localhost/lab-coredns:1"


@dataclass(frozen=True)
class Machine:
    """One machine of the lab. Number 0 is the control plane, the others are nodes."""

    number: int

    @property
    def name(self) -> str:
        return f"node{self.number}" if self.number else "control-plane"

    @property
    def ip(self) -> str:
        """On the wire between the machines; the control plane is everyone's gateway."""
        return f"{SWITCH_PREFIX}.{10 + self.number if self.number else 1}"

    @property
    def pod_cidr(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def link(self) -> str:
        """The interface on the control plane's side of this node's cable."""
        return f"lab-{self.name}"

    @property
    def cgroup(self) -> str:
        """Relative to the root of every cgroup hierarchy; pods live below it, our own processes in `machine`."""
        return f"{NAME}/{self.name}"


CONTROL_PLANE = Machine(0)


@dataclass(frozen=True)
class Settings:
    """The two directories of the lab: the cache outlives it, the state goes when it goes."""

    state: Path
    cache: Path

    @classmethod
    def from_environment(cls) -> Settings:
        """`LAB_STATE` (default /var/lib/pgherd-lab) and `LAB_CACHE` (default ~/.cache/pgherd-lab)."""
        state = Path(os.environ.get("LAB_STATE") or f"/var/lib/{NAME}")
        cache = Path(os.environ.get("LAB_CACHE") or Path.home() / ".cache" / NAME)
        if not (state.is_absolute() and cache.is_absolute()):
            raise BadRequestError("LAB_STATE and LAB_CACHE must be absolute paths")
        return cls(state.resolve(), cache.resolve())

    @property
    def machines(self) -> list[Machine]:
        return [CONTROL_PLANE, *self.nodes]

    @property
    def nodes(self) -> list[Machine]:
        return [Machine(number) for number in range(1, NODES + 1)]

    def node(self, number: int) -> Machine:
        """:raises BadRequestError: there is no node of that number"""
        if not 1 <= number <= NODES:
            raise BadRequestError(f"there is no node {number}: the lab has nodes 1 to {NODES}")
        return Machine(number)

    def home(self, machine: Machine) -> Path:
        """What belongs to one machine: its root, its disks, its services, its logs."""
        return self.state / "machines" / machine.name

    @property
    def bin(self) -> Path:
        """The components we built."""
        return self.cache / "bin"

    @property
    def images(self) -> Path:
        """Image archives that every node gets when the lab comes up."""
        return self.cache / "images"

    @property
    def layers(self) -> Path:
        """The base and the layers of the images built here."""
        return self.cache / "layers"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for use from the host."""
        return self.state / "kubeconfig"

    @property
    def volumes(self) -> Path:
        """The data of all dynamic volumes; every node sees it, as if it came over a network."""
        return self.state / "volumes"

    @property
    def ready_mark(self) -> Path:
        """Exists from the moment `lab up` succeeded."""
        return self.state / "ready"
