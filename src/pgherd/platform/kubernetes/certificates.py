"""A cluster's own certificate authority, and the certificates of its groups.

Every connection is encrypted: clients, replication, the coordinator's to the segments, Patroni's REST API. Each group
has one certificate, good for its members' stable names; the coordinator's is good for the Services' names too. Members
reach one another by address and check the authority only, everyone else checks the name as well.

Elliptic keys (P-256). A certificate lasts 90 days and is made anew 30 days before its end, the authority ten years.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pgherd.model.topology import COORDINATOR
from pgherd.platform.kubernetes import names, zone

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 90
RENEW_DAYS = 30
"""a certificate is made anew so long before its end"""
_BACKDATED = timedelta(hours=1)
"""clocks differ"""

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
CERTIFICATE, KEY = "tls.crt", "tls.key"


@dataclass(frozen=True)
class Authority:
    """Who signs; both as PEM."""

    certificate: str
    key: str

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Authority:
        """From a Secret's values.

        :raises ValueError: they are not an authority's
        """
        try:
            found = cls(values[CA_CERTIFICATE], values[CA_KEY])
        except KeyError as error:
            raise ValueError(f"{error} is missing") from None
        found._load()
        return found

    def values(self) -> dict[str, str]:
        """For a Secret."""
        return {CA_CERTIFICATE: self.certificate, CA_KEY: self.key}

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        key = serialization.load_pem_private_key(self.key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not an elliptic one")
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is not the certificate's")
        return certificate, key

    def issue(self, hosts: Sequence[str], now: datetime) -> dict[str, str]:
        """A certificate for a server of these names, as a Secret's values."""
        issuer, issuer_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        built = (
            _builder(hosts[0][:64], issuer.subject, key.public_key(), now, CERTIFICATE_DAYS)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # Strict verifiers (Python 3.13's) ask for both.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(issuer_key, hashes.SHA256())
        )
        return {CERTIFICATE: _pem(built), KEY: _pem_key(key), CA_CERTIFICATE: self.certificate}

    def is_good(self, values: Mapping[str, str], hosts: Sequence[str], now: datetime) -> bool:
        """Whether a certificate is this authority's, good for these names, and lasts for some time yet."""
        try:
            found = x509.load_pem_x509_certificate(values[CERTIFICATE].encode())
            found.verify_directly_issued_by(self._load()[0])
            serialization.load_pem_private_key(values[KEY].encode(), password=None)
            extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (KeyError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        if values.get(CA_CERTIFICATE) != self.certificate:
            return False
        lasts = found.not_valid_after_utc - now > timedelta(days=RENEW_DAYS)
        return lasts and {_general(host) for host in hosts} <= set(extension.value)


def make_authority(cluster: str, now: datetime) -> Authority:
    """A new certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"pgherd {cluster}")
    built = (
        _builder(f"pgherd {cluster}", name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(built), _pem_key(key))


def hosts(cluster: str, group: int, namespace: str) -> list[str]:
    """The names by which a group's members are reached."""
    service = names.group_object(cluster, group)
    ends = dict.fromkeys((f"{namespace}.svc", f"{namespace}.svc.cluster.local", zone.of(namespace)))
    found = [f"*.{service}.{end}" for end in ends]
    if group == COORDINATOR:
        for name in (cluster, f"{cluster}-ro"):
            found += [name, f"{name}.{namespace}", *(f"{name}.{end}" for end in ends)]
    return [*found, "localhost", "127.0.0.1"]


def _builder(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
