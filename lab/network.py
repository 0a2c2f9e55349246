"""The wires between the machines, all of them inside the machines' own network namespaces.

The control plane's machine holds a bridge, the switch; each node has one cable into it, a veth pair. The machines route
each node's pods over that node's address. Nothing of it is in the host's network: no interface, no route, no rule.
"""

from __future__ import annotations

import json
from typing import Any

from lab import machine as machines
from lab.settings import CONTROL_PLANE, Machine, Settings
from lab.shell import run

SWITCH = "lab-switch"


def _ip(machine: Machine, *commands: str) -> None:
    """Several `ip` commands in a machine's network; the first that fails ends it."""
    run([*machines.entering_network(machine), "ip", "-batch", "-"], stdin="\n".join(commands) + "\n")


def _forward_packets(machine: Machine) -> None:
    """Route for others; and let what crosses the switch be nobody's business but the ends'."""
    settings = ("ipv4/ip_forward=1", "bridge/bridge-nf-call-iptables=0")
    script = "; ".join(
        f"if [ -e /proc/sys/net/{key} ]; then echo {value} > /proc/sys/net/{key}; fi"
        for key, value in (setting.split("=") for setting in settings)
    )
    run([*machines.entering_network(machine), "sh", "-c", script])


def build_switch(settings: Settings) -> None:
    """The control plane's side: the switch, and the way to every node's pods."""
    _ip(
        CONTROL_PLANE,
        "link set lo up",
        f"link add {SWITCH} type bridge",
        f"address add {CONTROL_PLANE.ip}/24 dev {SWITCH}",
        f"link set {SWITCH} up",
        *(f"route add {node.pod_cidr} via {node.ip}" for node in settings.nodes),
    )
    _forward_packets(CONTROL_PLANE)


def plug_in(settings: Settings, node: Machine) -> None:
    """A node's cable, its address, and the way to the other nodes' pods and to everything else."""
    pid = machines.init_pid(node)
    unplug = [*machines.entering_network(), "ip", "link", "delete", node.link]
    if node.link in links():  # of the machine's last life; the kernel takes its time
        run(unplug)
    _ip(
        CONTROL_PLANE,
        f"link add {node.link} type veth peer name eth0 netns {pid}",
        f"link set {node.link} master {SWITCH} up",
    )
    others = [other for other in settings.nodes if other != node]
    _ip(
        node,
        "link set lo up",
        f"address add {node.ip}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {CONTROL_PLANE.ip}",
        *(f"route add {other.pod_cidr} via {other.ip}" for other in others),
    )
    _forward_packets(node)


def links() -> dict[str, bool]:
    """The interfaces on the switch's machine, and whether each is up."""
    shown = run([*machines.entering_network(), "ip", "-json", "link", "show"])
    found: list[dict[str, Any]] = json.loads(shown)
    return {link["ifname"]: "UP" in link["flags"] for link in found}


def cut(node: Machine) -> None:
    """Pull a node's cable: what runs there goes on, unreachable."""
    _ip(CONTROL_PLANE, f"link set {node.link} down")


def mend(node: Machine) -> None:
    """Plug the cable in again."""
    _ip(CONTROL_PLANE, f"link set {node.link} up")
