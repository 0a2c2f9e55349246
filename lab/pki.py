"""The cluster's keys and certificates: one authority, and one certificate for everyone who talks to the API server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.settings import CONTROL_PLANE, KUBERNETES_SERVICE_IP, Settings
from lab.shell import run

DAYS = "365"


@dataclass(frozen=True)
class Identity:
    """Who a certificate says its holder is."""

    file: str
    user: str
    group: str = ""
    names: Sequence[str] = ()
    """What it may be reached at, as openssl writes it: DNS:name or IP:address."""

    @property
    def subject(self) -> str:
        return (f"/O={self.group}" if self.group else "") + f"/CN={self.user}"


def identities(settings: Settings) -> list[Identity]:
    """Everyone in the lab who needs a certificate."""
    api_names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    api_names += ["kubernetes.default.svc.cluster.local"]
    api_addresses = [CONTROL_PLANE.ip, KUBERNETES_SERVICE_IP, "127.0.0.1"]
    names = [f"DNS:{name}" for name in api_names] + [f"IP:{address}" for address in api_addresses]
    kubelets = [
        Identity(node.name, f"system:node:{node.name}", "system:nodes", [f"DNS:{node.name}", f"IP:{node.ip}"])
        for node in settings.nodes
    ]
    return [
        Identity("apiserver", "kube-apiserver", names=names),
        Identity("admin", "lab-admin", "system:masters"),
        Identity("apiserver-client", "kube-apiserver-kubelet-client", "system:masters"),
        Identity("controller-manager", "system:kube-controller-manager"),
        Identity("scheduler", "system:kube-scheduler"),
        Identity("volumes", "lab:volumes"),
        Identity("proxy", "system:kube-proxy"),
        Identity("front-proxy", "front-proxy-client"),
        *kubelets,
    ]


def create(settings: Settings) -> None:
    """Make all keys and certificates anew."""
    folder = settings.pki
    folder.mkdir(mode=0o700, exist_ok=True)
    _new_key(folder / "ca.key")
    authority: list[str | Path] = [
        "-x509",
        "-key",
        folder / "ca.key",
        "-out",
        folder / "ca.crt",
        "-days",
        DAYS,
    ]
    run(
        ["openssl", "req", *authority, "-subj", "/CN=lab", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    )
    _new_key(folder / "service-accounts.key")
    run(
        [
            "openssl",
            "pkey",
            "-in",
            folder / "service-accounts.key",
            "-pubout",
            "-out",
            folder / "service-accounts.pub",
        ]
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda identity: _certify(folder, identity), identities(settings)))


def _new_key(path: Path) -> None:
    run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path])


def _certify(folder: Path, identity: Identity) -> None:
    key, request, certificate = (folder / f"{identity.file}.{kind}" for kind in ("key", "csr", "crt"))
    _new_key(key)
    run(["openssl", "req", "-new", "-key", key, "-subj", identity.subject, "-out", request])
    extensions = folder / f"{identity.file}.ext"
    names = f"subjectAltName={','.join(identity.names)}\n" if identity.names else ""
    extensions.write_text(f"extendedKeyUsage=clientAuth,serverAuth\n{names}")
    signing: list[str | Path] = [
        "-CA",
        folder / "ca.crt",
        "-CAkey",
        folder / "ca.key",
        "-extfile",
        extensions,
        "-days",
        DAYS,
    ]
    run(["openssl", "x509", "-req", "-in", request, *signing, "-set_serial", _serial(), "-out", certificate])


def _serial() -> str:
    return "0x" + run(["openssl", "rand", "-hex", "8"]).strip()
