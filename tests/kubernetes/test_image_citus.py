"""The stage that adds Citus, for people who have a package source of it: here one made up, signed like a real one.

Nothing of Citus is in it: what is shown is that a source with its key is used, and leaves no trace but the package.
Needs root and Debian's tools, no cluster.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lab import debian
from lab.builder import Recipe, build
from lab.errors import LabError
from lab.settings import Settings
from lab.shell import run

pytestmark = pytest.mark.kubernetes

FOLDER = Path(__file__).parents[2] / "deploy" / "image"
PACKAGE = "postgresql-17-citus-13.0"
CONTROL = f"""Package: {PACKAGE}
Version: 0.0.1
Architecture: all
Maintainer: nobody <nobody@example.com>
Description: stands for an extension
"""
EXTENSION = "usr/share/postgresql/17/extension/citus.control"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed package source with one package, and its public key beside it."""
    debian.install({"dpkg-deb": "dpkg", "gpg": "gpg", "gpg-agent": "gpg-agent"})
    folder = tmp_path_factory.mktemp("source")
    _package(folder)
    deb = folder / "citus.deb"
    content = deb.read_bytes()
    told = f"Filename: ./{deb.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    (folder / "Packages").write_text(CONTROL + told)
    packages = (folder / "Packages").read_bytes()
    listed = f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
    (folder / "Release").write_text(f"Origin: a test\nDate: Sat, 01 Jan 2000 00:00:00 UTC\nSHA256:\n{listed}")
    _sign(folder)
    return folder


def _package(folder: Path) -> None:
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(CONTROL)
    (root / EXTENSION).parent.mkdir(parents=True)
    (root / EXTENSION).write_text("comment = 'stands for an extension'\n")
    run(["dpkg-deb", "--build", "--root-owner-group", root, folder / "citus.deb"])


def _sign(folder: Path) -> None:
    home = folder / "keys"
    home.mkdir(mode=0o700)
    gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", ""]
    run([*gpg, "--quick-generate-key", "a test", "ed25519", "sign"])
    run([*gpg, "--clearsign", "--output", folder / "InRelease", folder / "Release"])
    run([*gpg, "--armor", "--output", folder / "key.asc", "--export"])
    run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"])


@pytest.fixture(scope="module")
def address(source: Path) -> Iterator[str]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(source))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def recipe(arguments: dict[str, str], secrets: dict[str, Path]) -> Recipe:
    tag = "localhost/pgherd-postgres:test-citus"
    return Recipe(FOLDER / "Dockerfile", FOLDER, tag, "citus", arguments, secrets)


def files_of(archive: Path) -> set[str]:
    """All that the layers of an image's archive hold, removed or not."""
    found: set[str] = set()
    with tarfile.open(archive) as tar:

        def blob(digest: str) -> bytes:
            content = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert content is not None
            return content.read()

        index = tar.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
        for number, layer in enumerate(manifest["layers"]):
            path = archive.with_name(f"layer-{number}")
            path.write_bytes(blob(layer["digest"]))
            with tarfile.open(path) as inner:
                found |= {name.removeprefix("./") for name in inner.getnames()}
    return found


def test_a_source_with_its_key_brings_the_package_and_stays_out(
    tmp_path: Path, source: Path, address: str
) -> None:
    line = f"deb [signed-by=/run/secrets/citus.asc] {address} ./"
    archive = tmp_path / "citus.tar"
    wanted = recipe({"CITUS_SOURCE": line}, {"citus.asc": source / "key.asc"})
    build(Settings.from_environment(), wanted, archive)
    files = files_of(archive)
    assert EXTENSION in files
    assert "opt/patroni/bin/patroni" in files
    unwanted = {"etc/apt/sources.list.d/citus.list", "run/secrets/citus.asc", "etc/pip.conf"}
    assert not files & unwanted


def test_a_source_whose_key_is_not_there_is_not_trusted(tmp_path: Path, address: str) -> None:
    line = f"deb {address} ./"
    with pytest.raises(LabError, match="was not built"):
        build(Settings.from_environment(), recipe({"CITUS_SOURCE": line}, {}), tmp_path / "citus.tar")
    assert not list(tmp_path.iterdir())


def test_no_source_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match="was not built: CITUS_SOURCE is empty: name a source of Citus, as --build-arg"
    ):
        build(Settings.from_environment(), recipe({}, {}), tmp_path / "citus.tar")
    assert not list(tmp_path.iterdir())
