"""What the lab takes from the distribution: installed when missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from lab.errors import LabError
from lab.shell import run

CNI_PLUGINS = Path("/usr/lib/cni")

PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "mount": "mount",
}
"""Program wanted: package that brings it."""

BUILD_PACKAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "apt-config": "apt"}
"""The same, for building images; running the lab needs none of them."""


def missing(wanted: Mapping[str, str] = PACKAGES) -> list[str]:
    """The packages that are needed and not there."""
    lacking = {package for program, package in wanted.items() if shutil.which(program) is None}
    if wanted is PACKAGES and not (CNI_PLUGINS / "ptp").exists():
        lacking.add("containernetworking-plugins")
    return sorted(lacking)


def install(wanted: Mapping[str, str] = PACKAGES) -> None:
    """Install what is missing, with the distribution's own tool.

    :raises LabError: that tool is not there, or could not bring them
    """
    packages = missing(wanted)
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise LabError(f"please install {', '.join(packages)}: the lab knows only Debian's apt-get")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], env=env, timeout=600)
    run(["apt-get", "install", "--yes", "--no-install-recommends", *packages], env=env, timeout=1200)
    if still := missing(wanted):
        raise LabError(f"apt-get installed {', '.join(still)}, but what they should bring is not there")
