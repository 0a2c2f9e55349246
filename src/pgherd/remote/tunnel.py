"""A way to a port of a pod: a local port whose connections go through the Kubernetes API.

This is the API's ``portforward`` over a WebSocket: what ``kubectl port-forward`` does. Each connection asks anew which
pod it is for, so that a program which reconnects after a failover reaches the new primary.

In the WebSocket, a message's first byte is its channel: 0 carries data, 1 what went wrong. The first message of each
channel holds the port number only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
from httpx2.websockets import HTTPXWSException, WebSocketUpgradeError

from pgherd.errors import PgherdError
from pgherd.remote.api import Api, explained

logger = logging.getLogger(__name__)

_PROTOCOL = "v4.channel.k8s.io"
_CHUNK = 32 * 1024
_DATA = 0
_MAX_MESSAGE = 16 * 1024 * 1024

HOST = "127.0.0.1"


class Tunnel:
    """Listens on a local port until closed.

    :param target: gives the pod's name at each connection
    :param port: the port in the pod
    """

    def __init__(self, api: Api, target: Callable[[], str], port: int) -> None:
        self._api, self._target, self._to = api, target, port
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
        try:
            with connection:
                pod = self._target()
                with forwarded(self._api, pod, self._to) as session:
                    _carry(connection, session)
        except (PgherdError, OSError) as error:
            # The program at the other end sees its connection close; the reason is for PGHERD_DEBUG.
            logger.info("tunnel to port %s: %s", self._to, error)
        finally:
            self._open.discard(connection)


@contextlib.contextmanager
def forwarded(api: Api, pod: str, port: int) -> Iterator[Any]:
    """A WebSocket to a pod's port.

    :raises PgherdError: the API does not let us, or the pod is not there
    """
    url = f"{api.url.rstrip('/')}/api/v1/namespaces/{api.namespace}/pods/{pod}/portforward"
    http: httpx2.Client = api.client._client._client
    opening = http.websocket(
        url,
        params={"ports": str(port)},
        subprotocols=[_PROTOCOL],
        max_message_size_bytes=_MAX_MESSAGE,
        keepalive_ping_interval_seconds=None,
    )
    try:
        with explained(api.url), opening as session:
            try:
                yield session
            finally:
                _shut(session)
    except WebSocketUpgradeError as error:
        raise PgherdError(f"{pod}: port {port}: {_reason(error.response)}") from error
    except HTTPXWSException as error:
        raise PgherdError(f"{pod}: port {port}: the connection through the Kubernetes API broke") from error


def _reason(response: httpx2.Response) -> str:
    try:
        return str(json.loads(response.read())["message"])
    except (ValueError, LookupError, TypeError, httpx2.HTTPError, httpx2.StreamError):
        return f"the Kubernetes API answered {response.status_code}"


def _shut(session: Any) -> None:
    """Wake the library's thread that reads; closing alone would leave it asleep, and this program with it."""
    with contextlib.suppress(Exception):
        session.close()
    with contextlib.suppress(Exception):
        session.stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _carry(connection: socket.socket, session: Any) -> None:
    """Bytes both ways, until either side has enough."""
    upward = threading.Thread(target=_send, args=[connection, session], daemon=True)
    upward.start()
    greeted = set()
    try:
        while True:
            message = session.receive_bytes()
            channel, content = message[0], message[1:]
            if channel not in greeted:
                greeted.add(channel)
                content = content[2:]
            if channel != _DATA and content:
                raise PgherdError(content.decode("utf-8", "replace"))
            connection.sendall(content)
    except HTTPXWSException:
        pass  # one side has hung up
    finally:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        upward.join(5)


def _send(connection: socket.socket, session: Any) -> None:
    with contextlib.suppress(OSError, HTTPXWSException):
        while content := connection.recv(_CHUNK):
            session.send_bytes(bytes([_DATA]) + content)
    _shut(session)
