"""The bytes of a tunnel: nothing lost, nothing added, an end for every end. The far side speaks the WebSocket protocol
over a socket pair; that Kubernetes does the same is shown by the tests on a real one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong

from pgherd.errors import PgherdError
from pgherd.platform.kubernetes.tunnel import Carrier
from tests.support.home import wait_for

GREETINGS = (b"\x00\x38\x15", b"\x01\x38\x15")
"""each channel's first message: its number, then the port"""


class Pod:
    """The far side: a server that answers as a test tells it."""

    def __init__(self, far: socket.socket) -> None:
        self._socket = far
        self._framing = Connection(ConnectionType.SERVER)
        self.received = bytearray()
        self._inside = False
        self.closed = False
        self.ponged = False

    def send(self, *events: BytesMessage | Ping | CloseConnection) -> None:
        self._socket.sendall(b"".join(self._framing.send(event) for event in events))

    def greet(self) -> None:
        self.send(*(BytesMessage(greeting) for greeting in GREETINGS))

    def read(self, count: int) -> None:
        """Until so many bytes of data are there, or the other side has closed."""
        while len(self.received) < count and not self.closed:
            content = self._socket.recv(65536)
            self._framing.receive_data(content or None)
            for event in self._framing.events():
                if isinstance(event, BytesMessage):
                    # Events are parts of messages; each of ours begins with the channel.
                    self.received += event.data[0 if self._inside else 1 :]
                    self._inside = not event.message_finished
                self.closed |= isinstance(event, CloseConnection)
                self.ponged |= isinstance(event, Pong)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Pod, list[BaseException]]]:
    """The program's end, the pod's end, and what the carrier between them raised."""
    program, near = socket.socketpair()
    far, pod_side = socket.socketpair()
    raised: list[BaseException] = []

    def carry() -> None:
        # The sockets are closed last: whoever sees an end sees why.
        with near, far:
            try:
                Carrier(near, far, b"").run()
            except PgherdError as error:
                raised.append(error)

    thread = threading.Thread(target=carry)
    thread.start()
    program.settimeout(10)
    pod_side.settimeout(10)
    pod = Pod(pod_side)
    pod.greet()
    yield program, pod, raised
    program.close()
    pod_side.close()
    thread.join(10)
    assert not thread.is_alive()


def read(program: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := program.recv(65536)):
        found += more
    return found


def test_bytes_go_both_ways_and_greetings_don_t(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, _ = ends
    program.sendall(b"query")
    pod.read(5)
    assert pod.received == b"query"
    pod.send(BytesMessage(b"\x00ans"), BytesMessage(b"\x00"), BytesMessage(b"\x00wer"))
    assert read(program, 6) == b"answer"


def test_much_goes_both_ways_at_once(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, _ = ends
    size = 8_000_000
    up = bytes(range(256)) * (size // 256)

    def send() -> None:
        program.sendall(up)

    def answer() -> None:
        for start in range(0, size, 50_000):
            pod.send(BytesMessage(b"\x00" + up[start : start + 50_000]))

    threads = [threading.Thread(target=work) for work in (send, answer, lambda: pod.read(len(up)))]
    for thread in threads:
        thread.start()
    assert read(program, len(up)) == up
    for thread in threads:
        thread.join(20)
    assert bytes(pod.received) == up


def test_a_message_in_parts_is_one(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, _ = ends
    pod.send(BytesMessage(b"\x00ans", message_finished=False), BytesMessage(b"wer"))
    assert read(program, 6) == b"answer"


def test_the_pods_end_ends_the_programs(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, raised = ends
    pod.send(BytesMessage(b"\x00last words"), CloseConnection(code=1000))
    assert read(program, 1000) == b"last words"
    assert raised == []


def test_the_programs_end_ends_the_pods(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, _ = ends
    program.close()
    pod.read(1)
    assert pod.closed


def test_pings_are_answered(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, _ = ends
    pod.send(Ping(b"there?"))
    program.sendall(b"x")
    pod.read(1)
    assert pod.ponged


def test_what_the_pod_says_is_wrong_is_raised(ends: tuple[socket.socket, Pod, list[BaseException]]) -> None:
    program, pod, raised = ends
    pod.send(BytesMessage(b"\x01connection refused"))
    assert read(program, 1) == b""
    # The tunnel's thread closes the socket first and ends with the error a moment later.
    wait_for(lambda: raised, "it is raised", 5)
    assert [str(error) for error in raised] == ["connection refused"]
