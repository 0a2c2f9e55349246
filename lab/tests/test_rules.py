"""What the lab writes and refuses, without a lab."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path

import pytest

from lab import configs, images, pki, services
from lab.cluster import MANIFESTS
from lab.errors import BadRequestError
from lab.settings import CONTROL_PLANE, Settings

SETTINGS = Settings(Path("/state"), Path("/cache"))


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_node_that_is_not_there_is_refused(number: int) -> None:
    with pytest.raises(BadRequestError, match="nodes 1 to 3"):
        SETTINGS.node(number)


def test_a_relative_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_STATE", "here")
    with pytest.raises(BadRequestError, match="absolute"):
        Settings.from_environment()


def test_machines_share_no_name_address_or_cgroup() -> None:
    machines = SETTINGS.machines
    for told in ({m.name for m in machines}, {m.ip for m in machines}, {m.cgroup for m in machines}):
        assert len(told) == len(machines)
    assert len({node.pod_cidr for node in SETTINGS.nodes}) == len(SETTINGS.nodes)


def test_a_kubelet_keeps_to_its_nodes_cgroup() -> None:
    for node in SETTINGS.nodes:
        assert json.loads(configs.kubelet(SETTINGS, node))["cgroupRoot"] == f"/{node.cgroup}"


def test_every_kubeconfig_a_service_reads_has_an_identity() -> None:
    lists = [services.control_plane(SETTINGS)]
    lists += [[services.kubelet(SETTINGS, node), services.proxy(SETTINGS, node)] for node in SETTINGS.nodes]
    words = [word for told in lists for service in told for word in service.argv]
    wanted = set(re.findall(r"/state/pki/([a-z0-9-]+)\.kubeconfig", " ".join(words)))
    assert wanted <= {identity.file for identity in pki.identities(SETTINGS)}
    assert wanted >= {"scheduler", "controller-manager", "proxy", "volumes", "node1", "node3"}


def test_only_the_forwarder_gets_the_hosts_socket() -> None:
    assert [service.name for service in services.control_plane(SETTINGS) if service.listener] == ["forwarder"]


def test_manifests_leave_nothing_open() -> None:
    told = "".join(path.read_text() for path in MANIFESTS.glob("*.yaml"))
    assert set(re.findall(r"\$\{(\w+)\}", told)) == set(configs.variables())


def test_a_wrapped_binary_is_an_image_whose_digests_are_true(tmp_path: Path) -> None:
    binary, archive = tmp_path / "thing", tmp_path / "thing.tar"
    binary.write_bytes(b"\x7fELF")
    images.wrap(binary, "localhost/thing:1", archive, arguments=["run"])
    with tarfile.open(archive) as tar:
        content = {name: reader.read() for name in tar.getnames() if (reader := tar.extractfile(name))}
    entry = json.loads(content["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/thing:1"
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"
    assert f"blobs/{entry['digest'].replace(':', '/')}" in content


def test_the_control_plane_is_no_node() -> None:
    assert CONTROL_PLANE not in SETTINGS.nodes
