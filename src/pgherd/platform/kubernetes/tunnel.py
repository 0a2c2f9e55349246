"""A way to a port of a pod: a local port whose connections go through the Kubernetes API.

This is the API's ``portforward`` over a WebSocket: what ``kubectl port-forward`` does. Each connection asks anew which
pod it is for, so that a program which reconnects after a failover reaches the new primary.

In the WebSocket, a message's first byte is its channel: 0 carries data, 1 what went wrong. The first message of each
channel holds the port number only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import secrets
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import httpx2
from lightkube import Client
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from pgherd.errors import PgherdError

logger = logging.getLogger(__name__)

_PROTOCOL = "v4.channel.k8s.io"
_CHUNK = 32 * 1024
_DATA = 0
_ENOUGH = 1024 * 1024
"""bytes that wait to be written, from which on no more are read"""

HOST = "127.0.0.1"
TIMEOUT = 15.0


class Reach(Protocol):
    """One namespace of a Kubernetes API."""

    @property
    def url(self) -> str:
        """The API server's."""

    @property
    def namespace(self) -> str:
        """The namespace."""

    @property
    def client(self) -> Client:
        """Who asks."""

    def asking(self) -> AbstractContextManager[None]:
        """Turns whatever goes wrong inside into one of our errors."""


class Plain:
    """Bytes as they are."""

    def begin(self) -> bytes:
        """What to send to the pod before anything else."""
        return b""

    def outward(self, content: bytes) -> bytes:
        """What the program said, as it is to be sent to the pod."""
        return content

    def inward(self, content: bytes) -> tuple[bytes, bytes]:
        """What the pod said: what to give to the program, and what to send back."""
        return content, b""


class Tunnel:
    """Listens on a local port until closed.

    :param target: gives the pod's name at each connection
    :param port: the port in the pod
    :param layer: gives, at each connection, what is done to its bytes
    :param farewell: what to tell a program whose connection could not be made, from the reason
    """

    def __init__(
        self,
        api: Reach,
        target: Callable[[], str],
        port: int,
        *,
        layer: Callable[[], Plain] = Plain,
        farewell: Callable[[str], bytes] = lambda reason: b"",
    ) -> None:
        self._api, self._target, self._to = api, target, port
        self._layer, self._farewell = layer, farewell
        self._closed = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"tunnel-{port}", daemon=True).start()

    def close(self) -> None:
        """End it and its connections."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with connection:
            try:
                pod = self._target()
                with opened(self._api, pod, "portforward", [("ports", str(self._to))]) as (far, first):
                    Carrier(connection, far, first, self._layer()).run()
            except (PgherdError, OSError, LocalProtocolError, RemoteProtocolError) as error:
                logger.info("tunnel to port %s: %s", self._to, error)
                self._tell(connection, str(error))
            finally:
                self._open.discard(connection)

    def _tell(self, connection: socket.socket, reason: str) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(1.0)
            # What is unread when it closes would take the answer with it.
            connection.recv(_CHUNK)
            connection.sendall(self._farewell(reason))


@contextlib.contextmanager
def opened(
    api: Reach, pod: str, what: str, parameters: Sequence[tuple[str, str]]
) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection of the Kubernetes API, turned into a WebSocket to a pod; and what was read from it already.

    :param what: ``portforward`` or ``exec``
    :raises PgherdError: the API does not let us, or the pod is not there
    """
    url = f"{api.url.rstrip('/')}/api/v1/namespaces/{api.namespace}/pods/{pod}/{what}"
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "sec-websocket-protocol": _PROTOCOL,
    }
    http: httpx2.Client = api.client._client._client
    with api.asking(), http.stream("GET", url, params=list(parameters), headers=headers) as answer:
        if answer.status_code != 101:
            raise PgherdError(f"{pod}: {what}: {_reason(answer)}")
        stream = answer.extensions["network_stream"]
        # The pod's side speaks first; what it said may have come together with the answer.
        yield stream.get_extra_info("socket"), stream.read(_CHUNK, timeout=TIMEOUT)


def _reason(response: httpx2.Response) -> str:
    try:
        return str(json.loads(response.read())["message"])
    except (ValueError, LookupError, TypeError, httpx2.HTTPError, httpx2.StreamError):
        return f"the Kubernetes API answered {response.status_code}"


class Carrier:
    """Bytes both ways between a local connection and a WebSocket, until either side has enough.

    One thread does both directions: an encrypted connection must not be read and written at the same time.
    """

    def __init__(
        self, near: socket.socket, far: socket.socket, first: bytes, layer: Plain | None = None
    ) -> None:
        self._near, self._far = near, far
        self._layer = layer or Plain()
        self._framing = Connection(ConnectionType.CLIENT)
        self._to_near = bytearray()
        self._to_far = bytearray()
        self._greeted: set[int] = set()
        self._message = bytearray()
        self._over = False
        self._send_data(self._layer.begin())
        if first:
            self._arrived(first)

    def run(self) -> None:
        """Return when it is over.

        :raises PgherdError: the pod refuses the connection
        """
        self._near.setblocking(False)
        self._far.setblocking(False)
        while not self._over or self._to_near:
            near, far = self._wait()
            if near & selectors.EVENT_READ and not self._over:
                self._read_near()
            if far & selectors.EVENT_READ and not self._over:
                self._read_far()
            self._to_far = self._write(self._far, self._to_far)
            self._to_near = self._write(self._near, self._to_near)

    def _wait(self) -> tuple[int, int]:
        """What each side is ready for. What the encryption has decrypted already, no selector sees."""
        wanted_near = _events(len(self._to_far) < _ENOUGH and not self._over, bool(self._to_near))
        wanted_far = _events(len(self._to_near) < _ENOUGH and not self._over, bool(self._to_far))
        if isinstance(self._far, ssl.SSLSocket) and self._far.pending() and wanted_far & selectors.EVENT_READ:
            return 0, selectors.EVENT_READ
        ready = {"near": 0, "far": 0}
        with selectors.DefaultSelector() as selector:
            for side, name, wanted in ((self._near, "near", wanted_near), (self._far, "far", wanted_far)):
                if wanted:
                    selector.register(side, wanted, name)
            for key, events in selector.select():
                ready[key.data] = events
        return ready["near"], ready["far"]

    def _read_near(self) -> None:
        content = _read(self._near)
        if content:
            self._send_data(self._layer.outward(content))
        elif content is not None:
            self._send(CloseConnection(code=1000))
            self._over = True

    def _read_far(self) -> None:
        content = _read(self._far)
        if content is not None:
            self._arrived(content)

    def _arrived(self, content: bytes) -> None:
        self._framing.receive_data(content or None)
        for event in self._framing.events():
            if isinstance(event, BytesMessage):
                self._message += event.data
                if event.message_finished:
                    self._received(bytes(self._message))
                    self._message.clear()
            elif isinstance(event, Ping):
                self._send(event.response())
            elif isinstance(event, CloseConnection):
                self._over = True

    def _received(self, message: bytes) -> None:
        channel, content = message[0], message[1:]
        if channel not in self._greeted:
            self._greeted.add(channel)
            content = content[2:]
        if channel == _DATA:
            inward, outward = self._layer.inward(content)
            self._to_near += inward
            self._send_data(outward)
        elif content:
            raise PgherdError(content.decode("utf-8", "replace"))

    def _send_data(self, content: bytes) -> None:
        if content:
            self._send(BytesMessage(bytes([_DATA]) + content))

    def _send(self, event: Any) -> None:
        self._to_far += self._framing.send(event)

    def _write(self, side: socket.socket, content: bytearray) -> bytearray:
        """What is left after writing as much as goes now."""
        if not content:
            return content
        try:
            return content[side.send(content[:_CHUNK]) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return content
        except OSError:
            self._over = True
            return bytearray()


def _events(read: bool, write: bool) -> int:
    return (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)


def _read(side: socket.socket) -> bytes | None:
    """What has arrived; empty at the end, None if there is nothing yet."""
    try:
        return side.recv(_CHUNK)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
    except OSError:
        return b""
