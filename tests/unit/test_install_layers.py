"""Encryption by the tunnel, against a TLS server in memory that behaves as PostgreSQL does at the beginning."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes.certificates import Authority, make_authority
from pgherd.remote.layers import PostgresTls, fatal

REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
OFFER = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


class Server:
    """The other end: takes what the layer sends, gives what it would have sent."""

    def __init__(self, authority: Authority, folder: Path, host: str) -> None:
        values = authority.issue([host], datetime.now(UTC))
        (folder / "crt").write_text(values["tls.crt"])
        (folder / "key").write_text(values["tls.key"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "crt", folder / "key")
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shaken = False

    def take(self, content: bytes) -> bytes:
        self._incoming.write(content)
        if not self._shaken:
            try:
                self.tls.do_handshake()
                self._shaken = True
            except ssl.SSLWantReadError:
                pass
        return self._outgoing.read()

    def say(self, content: bytes) -> bytes:
        self.tls.write(content)
        return self._outgoing.read()


def shake_hands(layer: PostgresTls, server: Server) -> None:
    assert layer.begin() == REQUEST
    to_server = layer.inward(b"S")[1]
    while to_server:
        to_client = server.take(to_server)
        to_server = layer.inward(to_client)[1] if to_client else b""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("shop", datetime.now(UTC))


def test_bytes_come_through_and_the_offer_lacks_the_bound_kind(authority: Authority, tmp_path: Path) -> None:
    layer, server = PostgresTls(authority.certificate, "localhost"), Server(authority, tmp_path, "localhost")
    assert layer.outward(b"startup") == b"", "kept until there is encryption"
    shake_hands(layer, server)
    assert server.tls.read(100) == b"startup"
    said = message(b"v", b"\0\0\0\0") + message(b"R", (10).to_bytes(4, "big") + OFFER)
    heard = b"".join(layer.inward(server.say(said[at : at + 7]))[0] for at in range(0, len(said), 7))
    assert heard == message(b"v", b"\0\0\0\0") + message(b"R", (10).to_bytes(4, "big") + b"SCRAM-SHA-256\0\0")
    later = message(b"R", (10).to_bytes(4, "big") + OFFER)
    assert layer.inward(server.say(later))[0] == later, "only the beginning is looked at"
    server.take(layer.outward(b"query"))
    assert server.tls.read(100) == b"query"


def test_a_server_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = make_authority("shop", datetime.now(UTC))
    layer, server = PostgresTls(authority.certificate, "localhost"), Server(stranger, tmp_path, "localhost")
    with pytest.raises(PgherdError, match="not who it should be"):
        shake_hands(layer, server)


def test_a_server_of_another_name_is_refused(authority: Authority, tmp_path: Path) -> None:
    layer, server = PostgresTls(authority.certificate, "localhost"), Server(authority, tmp_path, "elsewhere")
    with pytest.raises(PgherdError, match="not who it should be"):
        shake_hands(layer, server)


def test_a_server_without_encryption_is_refused(authority: Authority) -> None:
    layer = PostgresTls(authority.certificate, "localhost")
    with pytest.raises(PgherdError, match="does not encrypt"):
        layer.inward(b"N")


def test_a_reason_is_told_in_postgresqls_words() -> None:
    told = fatal("no primary")
    assert int.from_bytes(told[1:5], "big") == len(told) - 1
    assert b"SFATAL\0" in told
    assert b"Mno primary\0\0" in told
