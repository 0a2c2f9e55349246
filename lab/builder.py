"""Images from the Dockerfiles that people with a registry use, built without one: buildah, on a base by mmdebstrap.

A Dockerfile takes its base as the build argument ``BASE``, whose default is what a registry has; here it is a Debian
that mmdebstrap makes, once. Layers stay in the lab's cache, so a build does again only what changed.

How this machine reaches its package sources stays out of Dockerfiles and images: what its pip was told goes into the
build as the secret ``pip.conf``, its certificates as the secret ``ca.crt``.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from lab import debian
from lab.errors import BadRequestError, CommandError, LabError
from lab.settings import Settings
from lab.shell import run

SUITE = "trixie"
BASE_IMAGE = f"localhost/lab-debian:{SUITE}"
MIRROR = "http://deb.debian.org/debian"
GENTLY = ["setpriv", "--pdeathsig", "TERM", "nice", "-n", "10"]
BUILD_DEADLINE = 3600.0
SCRATCH = "building-"

UNWANTED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
"""Files of packages that Debian's own slim base leaves out, too; the licences stay."""

PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
"""What a machine's pip may have been told that holds inside a build as well."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Recipe:
    """What to build, of what, and what to call it."""

    dockerfile: Path
    context: Path
    tag: str
    """the image's whole name, for example ``localhost/mine:1``"""
    target: str | None = None
    """the stage; None is the last one"""
    arguments: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    """files the build may read and the image will not hold, by the names the Dockerfile gives them"""

    def check(self) -> None:
        """:raises BadRequestError: the Dockerfile or its context is not there, or the name is no whole one"""
        if not self.dockerfile.is_file():
            raise BadRequestError(f"{self.dockerfile}: no such file")
        if not self.context.is_dir():
            raise BadRequestError(f"{self.context}: no such directory")
        for secret in self.secrets.values():
            if not secret.is_file():
                raise BadRequestError(f"{secret}: no such file")
        name, _, version = self.tag.rpartition(":")
        if "/" not in name or not version or "/" in version:
            raise BadRequestError(f"{self.tag}: give the whole name, such as localhost/mine:1")


def build(settings: Settings, recipe: Recipe, archive: Path, *, fresh: bool = False) -> None:
    """Build an image and write it as an OCI archive.

    :param fresh: make the base and every layer anew, with the packages of today
    :raises BadRequestError: the recipe names what is not there
    :raises LabError: a step failed; the message carries its last words
    """
    recipe.check()
    if os.geteuid() != 0:
        raise BadRequestError("building images makes chroots and mounts: run it as root")
    debian.install(debian.BUILD_PACKAGES)
    with _alone(settings):
        _tidy(settings)
        if fresh or not _exists(settings, BASE_IMAGE):
            _make_base(settings)
        _build(settings, recipe, fresh)
        _write(settings, recipe.tag, archive)


def forget(settings: Settings) -> None:
    """Remove the base and all layers; the next build starts from nothing."""
    if not settings.layers.exists():
        return
    with _alone(settings):
        run([*_buildah(settings), "rm", "--all"])
        run([*_buildah(settings), "rmi", "--all", "--force"])
        shutil.rmtree(settings.layers)


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One build at a time: the next one waits, and finds the layers of this one."""
    settings.cache.mkdir(parents=True, exist_ok=True)
    with (settings.cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tidy(settings: Settings) -> None:
    """Remove what builds that were killed have left; nobody else builds now."""
    for leftover in settings.cache.glob(f"{SCRATCH}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    run([*_buildah(settings), "rm", "--all"])


def _buildah(settings: Settings) -> list[str | Path]:
    state: list[str | Path] = ["--root", settings.layers, "--runroot", "/run/lab-images"]
    return [*GENTLY, "buildah", *state, "--storage-driver", "overlay"]


def _exists(settings: Settings, image: str) -> bool:
    return bool(run([*_buildah(settings), "images", "--quiet", "--filter", f"reference={image}"]).strip())


def _make_base(settings: Settings) -> None:
    """A minimal Debian as an image. Killed half-way, it leaves nothing that counts."""
    print(f"making {BASE_IMAGE} (once; some seconds)", flush=True)
    with _scratch(settings) as scratch:
        root = scratch / "base.tar"
        run([*GENTLY, "mmdebstrap", *_mmdebstrap_options(), SUITE, root, *_sources()], timeout=BUILD_DEADLINE)
        container = run([*_buildah(settings), "from", "scratch"]).strip()
        try:
            run([*_buildah(settings), "add", "--quiet", container, root, "/"], timeout=BUILD_DEADLINE)
            run([*_buildah(settings), "config", "--cmd", "bash", container])
            run([*_buildah(settings), "commit", "--quiet", container, BASE_IMAGE], timeout=BUILD_DEADLINE)
        finally:
            run([*_buildah(settings), "rm", container])


def _mmdebstrap_options() -> list[str]:
    unwanted = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED]
    licences = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
    return ["--variant=minbase", *unwanted, licences, *(f"--aptopt={line}" for line in _apt_settings())]


def _apt_settings() -> list[str]:
    """How this machine's apt reaches its sources: proxies, and whether it trusts the clock."""
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check")
    return [line for line in run(["apt-config", "dump"]).splitlines() if line.startswith(wanted)]


def _sources() -> list[str]:
    mirror = (os.environ.get("LAB_DEBIAN_MIRROR") or MIRROR).rstrip("/")
    return [
        f"deb {mirror} {SUITE} main",
        f"deb {mirror} {SUITE}-updates main",
        f"deb {mirror}-security {SUITE}-security main",
    ]


def _build(settings: Settings, recipe: Recipe, fresh: bool) -> None:
    with _scratch(settings) as scratch:
        words: list[str | Path] = [
            *_buildah(settings),
            "build",
            "--isolation",
            "chroot",
            "--layers",
            "--force-rm",
        ]
        words += ["--no-cache"] if fresh else []
        words += ["--target", recipe.target] if recipe.target else []
        for name, value in {"BASE": BASE_IMAGE, **recipe.arguments}.items():
            words += ["--build-arg", f"{name}={value}"]
        for name, path in {**_secrets(scratch), **recipe.secrets}.items():
            words += ["--secret", f"id={name},src={path}"]
        words += ["--tag", recipe.tag, "--file", recipe.dockerfile, recipe.context]
        try:
            run(words, timeout=BUILD_DEADLINE)
        except CommandError as error:
            said = str(error).split(": ", 2)[-1]  # without the long command before it
            raise LabError(f"{recipe.tag} was not built: {said}") from error


def _secrets(scratch: Path) -> dict[str, Path]:
    told = [f"{name} = {value}" for name, value in _pip_settings().items() if name in PIP_SETTINGS]
    secrets = {"pip.conf": scratch / "pip.conf"}
    if CERTIFICATES.exists():
        secrets["ca.crt"] = CERTIFICATES
        told.append("cert = /run/secrets/ca.crt")
    secrets["pip.conf"].write_text("\n".join(["[global]", *told, ""]))
    return secrets


def _pip_settings() -> dict[str, str]:
    """What pip was told on this machine, by files and by the environment (which comes last, and wins)."""
    if find_spec("pip") is None:
        return {}
    return parse_pip_settings(run([sys.executable, "-m", "pip", "config", "list"]))


def parse_pip_settings(listing: str) -> dict[str, str]:
    """The names and values of ``pip config list``; a value of several lines becomes one."""
    found = {}
    for line in listing.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name.rpartition(".")[2]] = " ".join(str(ast.literal_eval(value)).split())
    return found


def _write(settings: Settings, tag: str, archive: Path) -> None:
    """Write an image as an OCI archive; one that is there already is replaced when the new one is whole."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(settings) as scratch:
        layout = scratch / "layout"
        run([*_buildah(settings), "push", "--quiet", tag, f"oci:{layout}:{tag}"], timeout=BUILD_DEADLINE)
        name_for_containerd(layout / "index.json", tag)
        unfinished = archive.with_suffix(".new")
        with tarfile.open(unfinished, "w") as tar:
            for path in sorted(layout.iterdir()):
                tar.add(path, path.name)
        unfinished.rename(archive)


def name_for_containerd(index: Path, tag: str) -> None:
    """containerd takes an image's whole name from an annotation of its own; other readers know the standard's."""
    document = json.loads(index.read_text())
    for manifest in document["manifests"]:
        manifest.setdefault("annotations", {})["io.containerd.image.name"] = tag
    index.write_text(json.dumps(document))


@contextlib.contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """A directory for one build, on the disk that holds the layers."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=settings.cache) as name:
        yield Path(name)


def parse_arguments(option: str, words: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as a mapping.

    :param option: what the words were given with
    :raises BadRequestError: a word without a name or an equals sign
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise BadRequestError(f"{option} {word}: give NAME=VALUE")
        found[name] = value
    return found
