"""The components, built from the sources Go's module cache holds, and kept in the lab's cache.

What is built is told by the modules in lab/components; a component is built again when its module changed. Building
yields to everything else on the machine: it happens once, and people work meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import images
from lab.errors import LabError
from lab.settings import COREDNS_IMAGE, TOOL_IMAGE, Settings
from lab.shell import run

SOURCES = Path(__file__).parent / "components"
GENTLY = ["setpriv", "--pdeathsig", "TERM", "nice", "-n", "19", "ionice", "-c3"]
"""A build is to be noticed by nobody, and to end with the `lab up` that wanted it."""


@dataclass(frozen=True)
class Component:
    """One module of ours and the programs it builds."""

    module: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]


COMPONENTS = (
    Component("tool", (".",), ("tool",)),
    Component("coredns", (".",), ("coredns",)),
    Component(
        "kubernetes",
        ("tool", "./volumes"),
        (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
            "volumes",
        ),
    ),
)


def build(settings: Settings) -> None:
    """Build what is missing or outdated, and wrap the images made of it.

    Killed half-way it goes on where it was: Go keeps what it compiled, and a component counts only when it is whole.
    """
    settings.bin.mkdir(parents=True, exist_ok=True)
    for component in COMPONENTS:
        if not is_built(settings, component):
            _build(settings, component)
    wrapped = (("tool", TOOL_IMAGE, ["pause"]), ("coredns", COREDNS_IMAGE, ["-version"]))
    for program, image, arguments in wrapped:
        binary, archive = settings.bin / program, settings.images / f"{program}.tar"
        if not archive.exists() or archive.stat().st_mtime < binary.stat().st_mtime:
            images.wrap(binary, image, archive, arguments=arguments)


def is_built(settings: Settings, component: Component) -> bool:
    """Whether the cache holds this component as its module says."""
    mark = _mark(settings, component)
    programs = all((settings.bin / program).exists() for program in component.programs)
    return programs and mark.exists() and mark.read_text() == fingerprint(component)


def fingerprint(component: Component) -> str:
    """Changes with anything that changes what is built."""
    told = hashlib.sha256()
    for path in sorted(path for path in (SOURCES / component.module).rglob("*") if path.is_file()):
        told.update(path.name.encode() + path.read_bytes())
    return told.hexdigest()


def _mark(settings: Settings, component: Component) -> Path:
    return settings.cache / f"{component.module}.built"


def _build(settings: Settings, component: Component) -> None:
    go = shutil.which("go")
    if go is None:
        raise LabError(
            "the lab builds Kubernetes from source: please install Go (1.25 or newer; see lab/README.md)"
        )
    mark = _mark(settings, component)
    mark.unlink(missing_ok=True)
    folder = SOURCES / component.module
    flags = ["-trimpath", "-ldflags", _linker_flags(folder)]
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    print(f"building {', '.join(component.programs)} (once; needs some minutes)", flush=True)
    run(
        [*GENTLY, go, "build", *flags, "-o", f"{settings.bin}/", *component.packages],
        env=env,
        cwd=folder,
        timeout=None,
    )
    mark.write_text(fingerprint(component))


def _linker_flags(folder: Path) -> str:
    """Kubernetes learns its own version from the linker."""
    found = re.search(r"k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)", (folder / "go.mod").read_text())
    if found is None:
        return "-s -w"
    version, major, minor = found.groups()
    told = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return "-s -w " + " ".join(
        f"-X k8s.io/component-base/version.{name}={value}" for name, value in told.items()
    )
