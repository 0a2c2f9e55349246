"""A real S3 server of a test's own: SeaweedFS, with a certificate that an authority made here has signed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
BUCKET = "safe"
KEY, SECRET = "AKIAHERD", "a/secret+of=ours"
_SECONDS = 90.0


@dataclass(frozen=True)
class Objects:
    """A running server.

    :param authority: the file of the authority's certificate
    """

    port: int
    authority: Path
    process: subprocess.Popen[bytes]
    host: str = HOST

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def declared(self, bucket: str = BUCKET, **more: Any) -> dict[str, Any]:
        """``spec.backup.repository``."""
        s3 = {"bucket": bucket, "endpoint": self.endpoint, "uriStyle": "path", "caFile": str(self.authority)}
        return {"s3": {**s3, **more}}


@contextmanager
def objects(folder: Path, host: str = HOST, enter: Sequence[str] = ()) -> Iterator[Objects]:
    """A server with one bucket that lives as long as the block.

    :param host: the address where it listens
    :param enter: what to put before a command so that it runs where that address is
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority = _certificates(folder, host)
    (folder / "s3.json").write_text(json.dumps({"identities": [_identity()]}))
    ports = _free_ports(9, host, enter)
    servers = ("master", "volume", "filer", "s3")
    names = [*(f"{name}.port{kind}" for name in servers for kind in ("", ".grpc")), "s3.port.https"]
    # Ports of things that are not asked for are 0, names of sockets are in the folder.
    command = [
        *enter,
        *(str(_program()), "server", f"-dir={folder}", f"-ip={host}", f"-ip.bind={host}"),
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        *("-s3", "-filer", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        *(f"-s3.config={folder}/s3.json", f"-s3.cert.file={folder}/server.crt"),
        *(f"-s3.key.file={folder}/server.key", f"-s3.localSocket={folder}/s3.sock"),
        *(f"-filer.localSocket={folder}/filer.sock", "-master.volumeSizeLimitMB=64", "-volume.max=100"),
    ]
    # It writes to where it stands; a command to enter by may be a module of ours.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    with ExitStack() as stack, (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment
        )
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_remove_sockets, ports)
        stack.callback(process.wait)
        stack.callback(process.kill)
        server = Objects(ports[-1], authority, process, host)
        said = (folder / "server.log").read_text
        assert _answers(server, ports[4], enter, _SECONDS), said(errors="replace")[-4000:]
        yield server


def _answers(server: Objects, filer: int, enter: Sequence[str], timeout: float) -> bool:
    """Whether it has a bucket before the time is up; False at once if it has ended."""
    deadline = time.monotonic() + timeout
    while server.process.poll() is None and time.monotonic() < deadline:
        if _make_bucket(server, filer, enter):
            return True
        time.sleep(0.3)
    return False


def _remove_sockets(ports: list[int]) -> None:
    """It makes some of them where nobody asked for them."""
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        if path.stem.rpartition("-")[2] in map(str, ports):
            path.unlink(missing_ok=True)


def _program() -> Path:
    return Path(sys.executable).parent / "weed"


def _identity() -> dict[str, Any]:
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    return {"name": "herd", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}


_MAKE_BUCKET = """\
import sys, urllib3
pool = urllib3.PoolManager(ca_certs=sys.argv[1], retries=False, timeout=5.0)
made = pool.request("POST", sys.argv[2])
pool.request("GET", sys.argv[3])
sys.exit(made.status >= 300 and made.status != 409)
"""


def _make_bucket(server: Objects, filer: int, enter: Sequence[str]) -> bool:
    """A bucket is a folder of SeaweedFS' own file system."""
    urls = [f"http://{server.host}:{filer}/buckets/{BUCKET}/", f"https://{server.endpoint}/{BUCKET}/"]
    command = [*enter, sys.executable, "-c", _MAKE_BUCKET, str(server.authority), *urls]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


_FIND_PORTS = """\
import socket, sys
held = [socket.create_server((sys.argv[1], 0)) for _ in range(int(sys.argv[2]))]
print(*(each.getsockname()[1] for each in held))
"""


def _free_ports(count: int, host: str, enter: Sequence[str]) -> list[int]:
    """Free where the server will listen."""
    command = [*enter, sys.executable, "-c", _FIND_PORTS, host, str(count)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [int(port) for port in found.stdout.split()]


def _certificates(folder: Path, host: str) -> Path:
    """An authority's certificate, and the server's key and certificate beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("herd's authority", key, None, host)
    own = ec.generate_private_key(ec.SECP256R1())
    server = _certificate("herd's objects", own, (key, authority), host)
    (folder / "ca.crt").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "server.crt").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "ca.crt"


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None,
    host: str,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    if signer is not None:
        names = [x509.IPAddress(ip_address(host)), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key if signer is None else signer[0], hashes.SHA256())
