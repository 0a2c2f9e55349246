"""Images without a registry: one static binary wrapped as an OCI archive, and archives brought into the nodes."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from lab import machine as machines
from lab.configs import CONTAINERD_SOCKET
from lab.errors import BadRequestError, CommandError, LabError
from lab.settings import Machine

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
NOBODY = "65532:65532"
CTR_IMAGES = ("ctr", "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", "images")


def wrap(binary: Path, image: str, archive: Path, *, arguments: list[str]) -> None:
    """Write an image archive that holds one binary and runs it.

    :param image: its name with its tag, as pods will ask for it
    :param arguments: what it is run with when a pod does not say
    """
    layer = _layer(binary)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": [f"/{binary.name}"], "Cmd": arguments, "User": NOBODY, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    blobs = {_digest(layer): layer}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, "application/vnd.oci.image.config.v1+json", config),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    entry = _blob(blobs, "application/vnd.oci.image.manifest.v1+json", manifest)
    entry["annotations"] = {"io.containerd.image.name": image, "org.opencontainers.image.ref.name": image}
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_suffix(".new")
    with tarfile.open(unfinished, "w") as tar:
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for digest, content in blobs.items():
            _add(tar, f"blobs/{digest.replace(':', '/')}", content)
    unfinished.rename(archive)


def _layer(binary: Path) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, binary.name, binary.read_bytes(), mode=0o755)
    return layer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _blob(blobs: dict[str, bytes], media_type: str, document: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(document).encode()
    blobs[_digest(content)] = content
    return _descriptor(media_type, content)


def load(node: Machine, archive: Path) -> str:
    """Bring an image archive (OCI or Docker) into a node.

    :return: the names of its images, one a line
    :raises BadRequestError: there is no such file
    :raises LabError: it is no image archive, or the node can't take it
    """
    if not archive.is_file():
        raise BadRequestError(f"{archive}: no such file")
    try:
        with archive.open("rb") as content:
            said = machines.inside(
                node, *CTR_IMAGES, "import", "--all-platforms", "-", stdin=content, timeout=600
            )
    except CommandError as error:
        raise LabError(
            f"{archive} can't be brought into {node.name}: is it an image archive? {error}"
        ) from error
    return "\n".join(line.split()[1] for line in said.splitlines() if line.startswith("unpacking"))


def tag(node: Machine, name: str, new: str) -> None:
    """Give an image of a node one more name.

    :raises LabError: the node has no image of this name
    """
    try:
        machines.inside(node, *CTR_IMAGES, "tag", "--force", name, new, timeout=60)
    except CommandError as error:
        raise LabError(f"{node.name} has no image {name}: {error}") from error
