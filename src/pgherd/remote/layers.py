"""What a tunnel does to the bytes that it carries: nothing, or encryption for a program that can't.

Members refuse connections that are not encrypted, but not every ``psql`` was built with encryption (the embedded one
was not). So the tunnel speaks PostgreSQL's request for encryption and TLS itself, checks that the cluster's own
authority vouches for the member, and hands the program plain bytes, which never leave this machine.
"""

from __future__ import annotations

import ssl

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes.tunnel import Plain

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_CHUNK = 64 * 1024
_SASL = (10).to_bytes(4, "big")
_BOUND = b"SCRAM-SHA-256-PLUS\0"


class PostgresTls(Plain):
    """TLS as PostgreSQL does it: asked for first, then begun.

    :param authority: the certificate that must vouch for the server, as PEM
    :param host: the name the server must have
    """

    def __init__(self, authority: str, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cadata=authority)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._accepted = False
        self._shaken = False
        self._waiting = bytearray()
        self._opening: bytes | None = b""

    def begin(self) -> bytes:
        """The request for encryption."""
        return _SSL_REQUEST

    def outward(self, content: bytes) -> bytes:
        """Encrypted, or kept until it can be."""
        self._waiting += content
        self._write()
        return self._outgoing.read()

    def inward(self, content: bytes) -> tuple[bytes, bytes]:
        """Decrypted, and what the handshake wants to send.

        :raises PgherdError: the server does not encrypt, or is not who it should be
        """
        if not self._accepted and content:
            if content[:1] != b"S":
                raise PgherdError("the member does not encrypt")
            self._accepted, content = True, content[1:]
        self._incoming.write(content)
        if self._accepted:
            self._shake_hands()
        self._write()
        return self._without_binding(self._read()), self._outgoing.read()

    def _shake_hands(self) -> None:
        if self._shaken:
            return
        try:
            self._tls.do_handshake()
            self._shaken = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise PgherdError(f"the member is not who it should be: {error.reason or error}") from error

    def _write(self) -> None:
        if self._shaken and self._waiting:
            self._tls.write(self._waiting)
            self._waiting.clear()

    def _read(self) -> bytes:
        found = b""
        if self._shaken:
            try:
                while more := self._tls.read(_CHUNK):
                    found += more
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                pass
        return found

    def _without_binding(self, content: bytes) -> bytes:
        """The server's offer of authentication without the kind that is bound to the encryption.

        The encryption ends here, and a program without any takes such an offer for an attack.
        """
        if self._opening is None:
            return content
        self._opening += content
        ready = b""
        while len(self._opening) >= 5 and len(self._opening) > (length := _length(self._opening)):
            message, self._opening = self._opening[: length + 1], self._opening[length + 1 :]
            if message[:1] == b"R" and message[5:9] == _SASL:
                body = message[5:].replace(_BOUND, b"")
                message = b"R" + (len(body) + 4).to_bytes(4, "big") + body
            ready += message
            if message[:1] in b"RE":
                rest, self._opening = self._opening, None
                return ready + rest
        return ready


def _length(message: bytes) -> int:
    return int.from_bytes(message[1:5], "big")


def fatal(message: str) -> bytes:
    """PostgreSQL's own way to tell a program that is connecting why it can't."""
    fields = b"".join(
        kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"C", "08006"), (b"M", message))
    )
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"
