"""A volume of limited size in the lab, whose own have no quota: a file system in a file, which every node mounts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab import machine as machines
from lab.settings import Settings
from lab.shell import run

from tests.kubernetes.kube import Namespace, kubectl


@contextmanager
def small_volume(namespace: Namespace, claim: str, mebibytes: int) -> Iterator[Path]:
    """A claim that pods on all nodes may use at once, as long as the block lasts; yields where its content is, here."""
    settings = Settings.from_environment()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgherd-small-")))
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        run(["mkfs.ext4", "-q", "-m", "0", image])
        device = run(["losetup", "--find", "--show", image]).strip()
        stack.callback(run, ["losetup", "--detach", device])
        # One block device has one file system in the kernel, whoever mounts it: all see the same, as of a file server.
        here = folder / "here"
        here.mkdir()
        run(["mount", device, here])
        stack.callback(run, ["umount", here])
        here.chmod(0o777)
        place = Path(tempfile.mkdtemp(prefix=f"{claim}-", dir=settings.state))
        stack.callback(place.rmdir)
        for node in settings.nodes:
            machines.inside(node, "mount", "--no-mtab", device, place)
            stack.callback(machines.inside, node, "umount", "--no-mtab", "--lazy", place)
        volume = f"{namespace.name}-{claim}"
        for manifest in _bound(volume, claim, str(place), f"{mebibytes}Mi"):
            namespace.apply(manifest)
        stack.callback(kubectl, "delete", "pv", volume, "--wait=false", check=False)
        stack.callback(namespace.kubectl, "delete", "pvc", claim, "--timeout=60s", timeout=70, check=False)
        yield here


def _bound(volume: str, claim: str, path: str, size: str) -> list[dict[str, Any]]:
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **shared,
                "capacity": {"storage": size},
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": path, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim},
            "spec": {**shared, "volumeName": volume, "resources": {"requests": {"storage": size}}},
        },
    ]
