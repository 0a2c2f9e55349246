"""What a machine has that a lab could leave behind, for comparing before with after."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lab import cgroups
from lab.settings import NAME, Settings
from lab.shell import run

SYSCTLS = (
    "vm/*",
    "kernel/panic*",
    "kernel/keys/*",
    "net/ipv4/*",
    "net/ipv4/conf/*/*",
    "net/bridge/*",
    "net/netfilter/*",
)
RESTLESS = ("nf_conntrack_count", "tcp_mem", "udp_mem", "stat_refresh", "compact_memory")
"""Settings that move by themselves or only take orders."""

FOLDERS = ("/var/lib", "/var/log", "/opt", "/run", "/etc", "/etc/cni", "/usr/libexec", "/tmp/hostpath_pv")


def footprint(settings: Settings) -> dict[str, set[str]]:
    """Every kind of leftover there could be, as the things of that kind there are now."""
    return {
        "interfaces": _lines("ip", "-oneline", "link", "show"),
        "routes": _lines("ip", "route", "show", "table", "all"),
        "packet rules": {
            line for line in _lines("iptables-save") | _lines("ip6tables-save") if line[0] != "#"
        },
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "cgroups": {str(path / NAME) for path in cgroups.hierarchies() if (path / NAME).exists()},
        "network namespaces": set(_namespaces("net")) | _lines("ip", "netns"),
        "process namespaces": set(_namespaces("pid")),
        "processes": set(_processes(settings)),
        "settings": set(_sysctls()),
        "files": {str(path) for folder in FOLDERS for path in Path(folder).glob("*")},
    }


def leftovers(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """What came and did not go; of kinds that have none, nothing."""
    return {kind: after[kind] - before[kind] for kind in before if after[kind] - before[kind]}


def _lines(*argv: str) -> set[str]:
    return {line for line in run(argv).splitlines() if line}


def _namespaces(kind: str) -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield os.readlink(entry / "ns" / kind)


def _processes(settings: Settings) -> Iterator[str]:
    """Processes that have to do with the lab by their command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            ours = (str(settings.state), str(settings.bin), "containerd-shim", "lab.init")
            if any(word.startswith(ours) for word in words):
                yield " ".join(words)


def _sysctls() -> Iterator[str]:
    for pattern in SYSCTLS:
        for path in Path("/proc/sys").glob(pattern):
            with contextlib.suppress(OSError):
                if path.is_file() and path.name not in RESTLESS:
                    yield f"{path} = {path.read_text().strip()}"
