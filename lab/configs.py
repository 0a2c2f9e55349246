"""The files the components read. Pure: settings in, text out. JSON wherever YAML is read: it is the same."""

from __future__ import annotations

import json
from typing import Any

from lab.debian import CNI_PLUGINS
from lab.settings import (
    API_PORT,
    CONTROL_PLANE,
    COREDNS_IMAGE,
    DNS_IP,
    NAME,
    TOOL_IMAGE,
    Machine,
    Settings,
)

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
HEARTBEAT_SECONDS = 4


def kubeconfig(settings: Settings, identity: str, server: str) -> str:
    """Who to be, and where the API server is."""
    pki = settings.pki
    user = {"client-certificate": f"{pki}/{identity}.crt", "client-key": f"{pki}/{identity}.key"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": {"server": server, "certificate-authority": f"{pki}/ca.crt"}}],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": identity}}],
        "current-context": NAME,
    }
    return json.dumps(config, indent=1)


def inner_server() -> str:
    """The API server, from within the lab."""
    return f"https://{CONTROL_PLANE.ip}:{API_PORT}"


def containerd(settings: Settings, node: Machine) -> str:
    """containerd's, with everything it keeps on the machine's own disk."""
    home = settings.home(node)
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{TOOL_IMAGE}"
restrict_oom_score_adj = true
enable_unprivileged_ports = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{home}/cni"
"""


def cni(node: Machine) -> str:
    """Every pod on a routed link of its own, so that all its packets pass the node's Service rules, neighbours' too.

    Given addresses are remembered in /run: after a power failure none is taken.
    """
    ranges: list[list[dict[str, str]]] = [[{"subnet": node.pod_cidr}]]
    ipam: dict[str, Any] = {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "0.4.0", "name": "lab", "plugins": plugins}, indent=1)


def kubelet(settings: Settings, node: Machine) -> str:
    """A kubelet that keeps to its own cgroups, and is missed quickly."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{settings.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{settings.pki}/{node.name}.crt",
        "tlsPrivateKeyFile": f"{settings.pki}/{node.name}.key",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{settings.home(node)}/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet-plugins",
        "nodeStatusUpdateFrequency": f"{HEARTBEAT_SECONDS}s",
        "nodeLeaseDurationSeconds": 4 * HEARTBEAT_SECONDS,  # renewed four times in that span
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,  # a removed image could not be pulled again
        "maxPods": 100,
        "registryPullQPS": 0,
        "serializeImagePulls": False,
    }
    return json.dumps(config, indent=1)


def variables() -> dict[str, str]:
    """What the manifests leave open."""
    return {"DNS_IP": DNS_IP, "COREDNS_IMAGE": COREDNS_IMAGE}
