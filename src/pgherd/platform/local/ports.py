"""Ports are picked once, written down and kept, so that addresses given to clients and to other groups stay right.

They are picked at random below the range from which the kernel takes ports for outgoing connections: no such
connection can sit on a member's port while it is down, and two homes hardly ever pick the same. ``HOME/ports.json``
is ``{CLUSTER: {MEMBER: {"postgres": PORT, "rest": PORT}}}``; the store's own port stands under cluster ``""``. Should
the book get lost, ports are taken from the configurations that were written with them.
Callers hold the home's lock.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

import yaml

from pgherd.errors import PgherdError
from pgherd.platform.local import files

HOST = "127.0.0.1"
STORE = ""
_LOWEST, _HIGHEST = 20000, 32767
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

Ports = Mapping[str, int]


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: connections that are only waiting to be forgotten don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


class PortBook:
    """The home's ports.

    :param path: ``ports.json``
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of_cluster(self, cluster: str) -> dict[str, Ports]:
        """Ports by member name."""
        return self._read().get(cluster, {})

    def adopt(self, cluster: str, member: str, ports: Ports) -> Ports:
        """Write down the ports that a member has had all along: the book was lost, the member was not."""
        book = self._read()
        book.setdefault(cluster, {})[member] = dict(ports)
        files.write_json(self._path, book)
        return ports

    def reserve(self, cluster: str, member: str, *purposes: str) -> Ports:
        """The ports of a member, picked at the first call.

        :raises PgherdError: no free one was found, or the book is damaged
        """
        book = self._read()
        known = book.get(cluster, {}).get(member)
        if known is not None and set(purposes) <= set(known):
            return known
        taken = {port for members in book.values() for ports in members.values() for port in ports.values()}
        picked: dict[str, int] = dict(known or {})
        for purpose in purposes:
            if purpose not in picked:
                picked[purpose] = _pick(taken | set(picked.values()))
        book.setdefault(cluster, {})[member] = picked
        files.write_json(self._path, book)
        return picked

    def release(self, cluster: str, member: str | None = None) -> None:
        """Forget a member's ports, or those of all members of a cluster."""
        book = self._read()
        members = dict(book.get(cluster, {}))
        if member is None:
            members.clear()
        members.pop(member or "", None)
        if members:
            book[cluster] = members
        else:
            book.pop(cluster, None)
        files.write_json(self._path, book)

    def _read(self) -> dict[str, dict[str, Ports]]:
        book = files.read_json(self._path) or {}
        if not all(isinstance(m, dict) and all(map(_are_ports, m.values())) for m in book.values()):
            raise PgherdError(
                f"{self._path} is damaged (not a book of ports): restore it from a copy, or remove it, and running "
                "members' ports are read from their configuration"
            )
        return book


def _are_ports(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(port, int) for port in value.values())


def configured_ports(config: Path) -> Ports | None:
    """The ports that a member's ``patroni.yml`` names, or None if it does not (yet)."""
    try:
        text = yaml.safe_load(config.read_text(encoding="utf-8"))
        addresses = {"postgres": text["postgresql"]["listen"], "rest": text["restapi"]["listen"]}
        return {purpose: int(address.rpartition(":")[2]) for purpose, address in addresses.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
        return None


def _pick(taken: set[int]) -> int:
    lowest, highest = _range()
    for _ in range(1000):
        port = lowest + secrets.randbelow(highest - lowest + 1)
        if port not in taken and is_free(port):
            return port
    raise PgherdError(f"no free port between {lowest} and {highest}: end programs that listen there")


def _range() -> tuple[int, int]:
    try:
        begin = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        begin = _HIGHEST + 1
    highest = min(_HIGHEST, begin - 1)
    # A machine that gives nearly all ports to outgoing connections leaves us no better range.
    return (_LOWEST, highest) if highest - _LOWEST > 1000 else (_LOWEST, _HIGHEST)
