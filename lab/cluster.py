"""The lab as a whole: up, down, and everything done to it in between."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import Template

from lab import cgroups, components, configs, debian, images, network, pki, services
from lab import machine as machines
from lab.errors import BadRequestError, LabError
from lab.settings import CONTROL_PLANE, Machine, Settings
from lab.shell import run, succeeds, wait_until

MANIFESTS = Path(__file__).parent / "manifests"
READY_DEADLINE = 180.0
CONTAINERD_DEADLINE = 60.0


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Only one `lab` changes the lab at a time; the kernel forgets the lock of one that was killed."""
    if os.geteuid() != 0:
        raise BadRequestError("the lab makes namespaces and cgroups: run it as root")
    settings.cache.mkdir(parents=True, exist_ok=True)
    with (settings.cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another `lab` command is at work on this machine; wait for it") from None
        yield


def prepare(settings: Settings) -> None:
    """Install and build what the lab consists of, and start nothing.

    :raises LabError: something could not be had or built
    """
    debian.install()
    components.build(settings)


def up(settings: Settings) -> None:
    """Bring the lab up; returns when every node and the cluster's DNS are ready. One that is up stays as it is.

    :raises LabError: it did not come up; what there is of it stays to be looked at, until `lab down`
    """
    if settings.ready_mark.exists() and machines.init_pid(CONTROL_PLANE):
        print("the lab is up already")
        return
    prepare(settings)
    down(settings)  # what an `up` that was cut short has left
    for folder in (settings.state / "machines", settings.volumes):
        folder.mkdir(parents=True)
    cgroups.create(CONTROL_PLANE)
    pki.create(settings)
    _start_control_plane(settings)
    _wait_for_api(settings)
    _apply_manifests(settings)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: boot(settings, node), settings.nodes))
    _wait_until_ready(settings)
    settings.ready_mark.touch()


def down(settings: Settings) -> None:
    """Take away everything the lab has made, except its cache; also after an `up` that was killed.

    What runs is listed by the cgroups, what the kernel keeps for it ends with it, and the rest is one directory.
    """
    cgroups.remove()
    machines.erase(settings)


def _start_control_plane(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.set_inheritable(True)
        machines.switch_on(settings, CONTROL_PLANE, listener.fileno())
    network.build_switch(settings)
    for identity in pki.identities(settings):
        path = settings.pki / f"{identity.file}.kubeconfig"
        path.write_text(configs.kubeconfig(settings, identity.file, configs.inner_server()))
    settings.kubeconfig.write_text(configs.kubeconfig(settings, "admin", f"https://127.0.0.1:{port}"))
    settings.kubeconfig.chmod(0o600)
    for service in services.control_plane(settings):
        machines.set_service(settings, CONTROL_PLANE, service)


def boot(settings: Settings, node: Machine) -> None:
    """Switch a node on, with its disks as they are, and start everything on it."""
    home = settings.home(node)
    machines.switch_on(settings, node)
    network.plug_in(settings, node)
    (home / "cni").mkdir(exist_ok=True)
    (home / "cni" / "10-lab.conflist").write_text(configs.cni(node))
    (home / "containerd.toml").write_text(configs.containerd(settings, node))
    (home / "kubelet.json").write_text(configs.kubelet(settings, node))
    (home / "resolv.conf").write_text("")
    machines.set_service(settings, node, services.proxy(settings, node))
    machines.set_service(settings, node, services.containerd(settings, node))
    ctr = [*machines.entering(node), "ctr", "--address", configs.CONTAINERD_SOCKET, "version"]
    wait_until(
        lambda: succeeds(ctr),
        f"containerd on {node.name}",
        deadline=CONTAINERD_DEADLINE,
        hint=f"see {home / 'log' / 'containerd.log'}",
    )
    for archive in sorted(settings.images.glob("*.tar")):
        images.load(node, archive)
    machines.set_service(settings, node, services.kubelet(settings, node))
    (home / "equipped").touch()


def kubectl(settings: Settings, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
    """Run kubectl as the administrator and return what it printed."""
    return run([*_kubectl(settings), *arguments], stdin=stdin, timeout=timeout)


def _kubectl(settings: Settings) -> list[str]:
    return [str(settings.bin / "kubectl"), f"--kubeconfig={settings.kubeconfig}"]


def _wait_for_api(settings: Settings) -> None:
    ask = [*_kubectl(settings), "get", "--raw", "/readyz"]
    log = settings.home(CONTROL_PLANE) / "log" / "kube-apiserver.log"
    wait_until(lambda: succeeds(ask), "the API server", deadline=READY_DEADLINE, pause=0.3, hint=f"see {log}")


def _apply_manifests(settings: Settings) -> None:
    for path in sorted(MANIFESTS.glob("*.yaml")):
        manifest = Template(path.read_text()).substitute(configs.variables())
        kubectl(settings, "apply", "--filename=-", stdin=manifest)


def _wait_until_ready(settings: Settings) -> None:
    wait_until(
        lambda: all(is_ready(settings, node) for node in settings.nodes),
        "all nodes to be Ready",
        deadline=READY_DEADLINE,
        pause=0.3,
        hint="see `lab status`",
    )
    wait_until(
        lambda: _is_dns_ready(settings),
        "the cluster's DNS",
        deadline=READY_DEADLINE,
        pause=0.3,
        hint="see its pods' logs",
    )


def _is_dns_ready(settings: Settings) -> bool:
    ask = ["get", "deployment", "coredns", "--namespace=kube-system", "--output=json", "--request-timeout=5s"]
    try:
        found = json.loads(kubectl(settings, *ask))
    except LabError:
        return False
    return bool(found["status"].get("availableReplicas", 0) == found["spec"]["replicas"])


def is_ready(settings: Settings, node: Machine) -> bool:
    """Whether the control plane holds a node for ready."""
    return _readiness(settings).get(node.name) == "Ready"


def _readiness(settings: Settings) -> dict[str, str]:
    """Node's name to `Ready`, `NotReady` or `Unknown`; empty while nobody answers."""
    try:
        nodes = json.loads(kubectl(settings, "get", "nodes", "--output=json", "--request-timeout=5s"))[
            "items"
        ]
    except LabError:
        return {}
    words = {"True": "Ready", "False": "NotReady", "Unknown": "Unknown"}
    return {
        node["metadata"]["name"]: words[condition["status"]]
        for node in nodes
        for condition in node.get("status", {}).get("conditions", [])
        if condition["type"] == "Ready"
    }


@dataclass(frozen=True)
class MachineStatus:
    """One machine, seen from outside and by the control plane."""

    machine: Machine
    power: bool
    link: bool | None
    """Whether the cable is plugged in; None for a machine that is off, and for the switch itself."""
    stopped: list[str]
    """Services that were told to stop."""
    ready: str
    """What the control plane says of the node; empty if it says nothing."""


def status(settings: Settings) -> list[MachineStatus]:
    """Every machine as it is now.

    :raises LabError: there is no lab
    """
    demand_lab(settings)
    links = network.links() if machines.init_pid(CONTROL_PLANE) else {}
    readiness = _readiness(settings)
    return [_status_of(settings, machine, links, readiness) for machine in settings.machines]


def _status_of(
    settings: Settings, machine: Machine, links: dict[str, bool], readiness: dict[str, str]
) -> MachineStatus:
    power = machines.init_pid(machine) is not None
    expected = _services_of(settings, machine) if power else []
    return MachineStatus(
        machine=machine,
        power=power,
        link=links.get(machine.link),
        stopped=[name for name in expected if not machines.is_service_set(settings, machine, name)],
        ready=readiness.get(machine.name, ""),
    )


def _services_of(settings: Settings, machine: Machine) -> list[str]:
    if machine == CONTROL_PLANE:
        return [service.name for service in services.control_plane(settings)]
    return ["containerd", "kubelet", "kube-proxy"]


def demand_lab(settings: Settings) -> None:
    """:raises LabError: there is no lab"""
    if not settings.state.exists():
        raise LabError("there is no lab here; `lab up` makes one")


def _demand_power(node: Machine) -> None:
    if machines.init_pid(node) is None:
        raise BadRequestError(f"{node.name} is off; `lab mend {node.number}` switches it on")


def kill_node(settings: Settings, node: Machine) -> None:
    """Power failure of a node."""
    demand_lab(settings)
    machines.switch_off(node)


def cut(settings: Settings, node: Machine) -> None:
    """Pull a node's cable; it and its pods go on alone."""
    demand_lab(settings)
    _demand_power(node)
    network.cut(node)


def mend(settings: Settings, node: Machine) -> None:
    """Whatever was done to a node: switch it on again, plug its cable in, start its kubelet."""
    demand_lab(settings)
    if _is_booted(settings, node):
        network.mend(node)
        start_kubelet(settings, node)
        return
    machines.switch_off(node)  # what a `mend` that was cut short has left
    boot(settings, node)


def _is_booted(settings: Settings, node: Machine) -> bool:
    """Whether a node is on and got everything it needs, stopped or cut as it may be."""
    return (
        machines.init_pid(node) is not None
        and node.link in network.links()
        and (settings.home(node) / "equipped").exists()
    )


def stop_kubelet(settings: Settings, node: Machine) -> None:
    """The node's pods go on, but nobody reports on them or obeys the control plane."""
    demand_lab(settings)
    _demand_power(node)
    machines.unset_service(settings, node, "kubelet")


def start_kubelet(settings: Settings, node: Machine) -> None:
    """The end of `stop_kubelet`."""
    demand_lab(settings)
    _demand_power(node)
    machines.set_service(settings, node, services.kubelet(settings, node))


def stop_api(settings: Settings) -> None:
    """Take the API server away from everyone."""
    demand_lab(settings)
    machines.unset_service(settings, CONTROL_PLANE, "kube-apiserver")


def start_api(settings: Settings) -> None:
    """The end of `stop_api`; returns when it answers."""
    demand_lab(settings)
    machines.set_service(settings, CONTROL_PLANE, services.apiserver(settings))
    _wait_for_api(settings)


def load_image(settings: Settings, archive: Path) -> str:
    """Bring an image archive into every node that is on.

    :return: the names of the images, one a line
    """
    with ThreadPoolExecutor() as pool:
        return next(iter(list(pool.map(lambda node: images.load(node, archive), _nodes_on(settings)))))


def tag_image(settings: Settings, name: str, new: str) -> None:
    """Give an image one more name in every node that is on."""
    for node in _nodes_on(settings):
        images.tag(node, name, new)


def _nodes_on(settings: Settings) -> list[Machine]:
    demand_lab(settings)
    on = [node for node in settings.nodes if machines.init_pid(node) is not None]
    if not on:
        raise LabError("no node is on")
    return on
