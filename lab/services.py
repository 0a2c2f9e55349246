"""What runs on the machines: the command line of every component. Pure: settings in, services out."""

from __future__ import annotations

from lab.init import LISTENER
from lab.machine import Service
from lab.settings import API_PORT, CONTROL_PLANE, POD_CIDR, SERVICE_CIDR, Machine, Settings

ETCD_CLIENT = "http://127.0.0.1:2379"
NODE_GRACE = "16s"
"""How long a node may be silent until it is NotReady."""


def control_plane(settings: Settings) -> list[Service]:
    """The control plane's services, in the order in which they need each other."""
    return [
        etcd(settings),
        apiserver(settings),
        forwarder(settings),
        controller_manager(settings),
        scheduler(settings),
        volumes(settings),
    ]


def etcd(settings: Settings) -> Service:
    data = settings.home(CONTROL_PLANE) / "etcd"
    return Service(
        "etcd",
        [
            "etcd",
            f"--data-dir={data}",
            f"--listen-client-urls={ETCD_CLIENT}",
            f"--advertise-client-urls={ETCD_CLIENT}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",  # it dies with the lab; only the machine's own crash could lose something
            "--auto-compaction-retention=1h",
            "--quota-backend-bytes=4294967296",
            "--logger=zap",
            "--log-level=warn",
        ],
    )


def apiserver(settings: Settings) -> Service:
    pki = settings.pki
    return Service(
        "kube-apiserver",
        [
            str(settings.bin / "kube-apiserver"),
            f"--etcd-servers={ETCD_CLIENT}",
            f"--advertise-address={CONTROL_PLANE.ip}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/apiserver-client.crt",
            f"--kubelet-client-key={pki}/apiserver-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki}/ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki}/front-proxy.crt",
            f"--proxy-client-key-file={pki}/front-proxy.key",
            "--enable-aggregator-routing=true",  # no kube-proxy here: call webhooks at their pods
            "--feature-gates=SizeBasedListCostEstimate=false",  # it asks more of etcd than Debian's can tell
            "--profiling=false",
        ],
    )


def forwarder(settings: Settings) -> Service:
    """The way in from the host: its socket there, its connections here."""
    target = f"{CONTROL_PLANE.ip}:{API_PORT}"
    return Service("forwarder", [str(settings.bin / "tool"), "forward", str(LISTENER), target], listener=True)


def controller_manager(settings: Settings) -> Service:
    pki = settings.pki
    return Service(
        "kube-controller-manager",
        [
            str(settings.bin / "kube-controller-manager"),
            f"--kubeconfig={pki}/controller-manager.kubeconfig",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            f"--cluster-cidr={POD_CIDR}",
            "--allocate-node-cidrs=false",  # the wires are laid by number: see lab.network
            f"--node-monitor-grace-period={NODE_GRACE}",
            "--node-monitor-period=2s",
            "--leader-elect=false",
        ],
    )


def scheduler(settings: Settings) -> Service:
    kubeconfig = settings.pki / "scheduler.kubeconfig"
    return Service(
        "kube-scheduler",
        [
            str(settings.bin / "kube-scheduler"),
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            # A pod is tried again when its claim is bound; where that is seen before the binding, only after this.
            "--pod-max-in-unschedulable-pods-duration=10s",
        ],
    )


def volumes(settings: Settings) -> Service:
    """Gives claims their volumes: the one component of our own."""
    kubeconfig = settings.pki / "volumes.kubeconfig"
    argv = [str(settings.bin / "volumes"), f"--kubeconfig={kubeconfig}", f"--root={settings.volumes}"]
    return Service("volumes", argv)


def containerd(settings: Settings, node: Machine) -> Service:
    return Service("containerd", ["containerd", f"--config={settings.home(node)}/containerd.toml"])


def kubelet(settings: Settings, node: Machine) -> Service:
    home = settings.home(node)
    return Service(
        "kubelet",
        [
            str(settings.bin / "kubelet"),
            f"--config={home}/kubelet.json",
            f"--kubeconfig={settings.pki}/{node.name}.kubeconfig",
            f"--hostname-override={node.name}",
            f"--node-ip={node.ip}",
            "--root-dir=/var/lib/kubelet",
            f"--node-labels=topology.kubernetes.io/zone=zone{node.number},topology.kubernetes.io/region=lab",
        ],
    )


def proxy(settings: Settings, node: Machine) -> Service:
    return Service(
        "kube-proxy",
        [
            str(settings.bin / "kube-proxy"),
            f"--kubeconfig={settings.pki}/proxy.kubeconfig",
            f"--hostname-override={node.name}",
            f"--cluster-cidr={POD_CIDR}",
            "--proxy-mode=iptables",
            "--conntrack-max-per-core=0",  # may only be set for the whole host
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ],
    )
