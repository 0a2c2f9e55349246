"""Programs in pods: what they say arrives, how they end is told, and none of them outlives who started it.

The far side is a real shell behind the WebSocket protocol, as a kubelet would run it; that Kubernetes does the same is
shown by the tests on a real one.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.platform.kubernetes import machines, names, programs
from pgherd.platform.kubernetes.machines import MemberMachines, PodMachine
from pgherd.platform.kubernetes.programs import GUARD, PodProgram
from tests.support.home import wait_for

SERVER = """\
import signal, sys, time
def end(*_):
    print("a last checkpoint", flush=True)
    sys.exit(0)
signal.signal(signal.SIGINT, end)
print("up", flush=True)
time.sleep(600)
"""


class Kubelet:
    """Runs what it is asked to, and carries its channels."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.lines: list[socket.socket] = []

    @contextmanager
    def opened(
        self, api: Any, pod: str, what: str, parameters: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[socket.socket, bytes]]:
        assert what == "exec"
        near, far = socket.socketpair()
        self.lines.append(far)
        command = [value for name, value in parameters if name == "command"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.children.append(child)
        threading.Thread(target=self._serve, args=(child, far), daemon=True).start()
        with near:
            yield near, b""

    def _serve(self, child: subprocess.Popen[bytes], far: socket.socket) -> None:
        framing, guard = Connection(ConnectionType.SERVER), threading.Lock()

        def send(channel: int, content: bytes) -> None:
            with guard, suppress(OSError):
                far.sendall(framing.send(BytesMessage(bytes([channel]) + content)))

        def carry(channel: int, stream: Any) -> None:
            while content := stream.read1(65536):
                send(channel, content)

        def listen() -> None:
            assert child.stdin is not None
            while content := _received(far):
                framing.receive_data(content)
                for event in framing.events():
                    if isinstance(event, BytesMessage):
                        child.stdin.write(bytes(event.data)[1:])
                        child.stdin.flush()
            child.stdin.close()

        carriers = [
            threading.Thread(target=carry, args=(channel, stream), daemon=True)
            for channel, stream in ((1, child.stdout), (2, child.stderr))
        ]
        for carrier in carriers:
            carrier.start()
        threading.Thread(target=listen, daemon=True).start()
        for carrier in carriers:
            carrier.join()
        code = child.wait()
        causes = [{"reason": "ExitCode", "message": str(code)}]
        status = {"status": "Success"} if code == 0 else {"status": "Failure", "details": {"causes": causes}}
        send(3, json.dumps(status).encode())
        with guard, suppress(OSError):
            far.sendall(framing.send(CloseConnection(code=1000)))


def _received(far: socket.socket) -> bytes:
    try:
        return far.recv(65536)
    except OSError:  # who asked did not wait for the rest
        return b""


@pytest.fixture
def kubelet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubelet]:
    made = Kubelet()
    monkeypatch.setattr(programs, "opened", made.opened)
    yield made
    for child in made.children:
        child.kill()
        child.wait()


@pytest.fixture
def pod(kubelet: Kubelet) -> PodMachine:
    return PodMachine(None, "shop-segment-1-0", 17)  # type: ignore[arg-type]


def test_what_a_program_prints_is_told_apart_from_what_it_complains_of(pod: PodMachine) -> None:
    assert pod.shell("head -c 300000 /dev/zero; echo no >&2") == bytes(300000)


def test_what_a_program_prints_is_read_as_a_whole_or_not_at_all(
    pod: PodMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    much = programs.KEPT + 100_000
    assert pod.shell(f"head -c {much} /dev/zero") == bytes(much)
    monkeypatch.setattr(programs, "WHOLE", 100_000)
    with pytest.raises(PgherdError, match="printed more than"):
        pod.shell("head -c 300000 /dev/zero")


def test_a_program_that_fails_fails_with_its_own_words(pod: PodMachine) -> None:
    with pytest.raises(PgherdError, match="no such thing"):
        pod.shell("echo something; echo no such thing >&2; exit 7")


def test_files_are_written_listed_and_removed(pod: PodMachine, tmp_path: Path) -> None:
    pod.make_folder(tmp_path / "a" / "b")
    pod.write(tmp_path / "a" / "one.history", "it's $HOME\n")
    assert (tmp_path / "a" / "one.history").read_text() == "it's $HOME\n"
    assert (tmp_path / "a" / "one.history").stat().st_mode & 0o077 == 0
    assert pod.names(tmp_path / "a", ".history") == ["one.history"]
    assert pod.names(tmp_path / "none", ".history") == []
    pod.remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_an_earlier_operator_left_is_ended(pod: PodMachine, kubelet: Kubelet, tmp_path: Path) -> None:
    strays = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"--lock-path={tmp_path}"]),
        subprocess.Popen(["sleep", "600"], cwd=tmp_path),
    ]
    kubelet.children += strays
    pod.end_strays(f"--lock-path={tmp_path}")
    assert strays[0].wait(10) == -9
    assert strays[1].poll() is None
    (tmp_path / "postmaster.pid").write_text("1\n")
    pod.end_in(tmp_path)
    assert strays[1].wait(10) == -9
    assert not (tmp_path / "postmaster.pid").exists(), "its number may be any process's here"


def test_a_long_program_is_watched_and_can_be_stopped(pod: PodMachine, kubelet: Kubelet) -> None:
    heard: list[str] = []
    with pytest.raises(Cancelled):
        pod.run(
            ["/bin/sh", "-c", "echo 10%; exec sleep 600"],
            stopping=lambda: "10%" in "".join(heard),
            watch=heard.append,
        )
    wait_for(lambda: kubelet.children[0].poll() is not None, "it ended", 10)


def test_a_program_on_a_node_that_was_cut_off_is_given_up_though_its_connection_stays(
    kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "LOOK_SECONDS", 0.2)
    ends = iter(["", "", "the node of shop-segment-1-0, node2, does not report any more"])
    pod = PodMachine(None, "shop-segment-1-0", 17, lambda: next(ends))  # type: ignore[arg-type]
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="node2, does not report any more"):
        pod.run(["sleep", "600"], stopping=lambda: time.monotonic() > begun + 30)
    wait_for(lambda: kubelet.children[0].poll() is not None, "it was ended, where it hears of that", 10)


def test_a_pod_that_is_gone_or_another_one_or_on_a_silent_node_runs_nothing_any_more() -> None:
    def pod(uid: str) -> dict[str, Any]:
        running = [{"name": names.CONTAINER, "state": {"running": {}}}]
        return {
            "metadata": {"name": "shop-segment-1-0", "uid": uid},
            "spec": {"nodeName": "node2"},
            "status": {"containerStatuses": running},
        }

    there, silent = [pod("1")], {"node": None}

    def silent_node(found: dict[str, Any]) -> str | None:
        if silent["node"] == "unknown":
            raise Unavailable("the API server does not answer")
        return silent["node"]

    platform: Any = SimpleNamespace(pods=lambda cluster: there, silent_node=silent_node, reach=None)
    machine: Any = MemberMachines(platform, "shop", 17).at("shop-segment-1-0.shop.prod")
    machine._require_there()
    for node in ("unknown", "node2"):
        silent["node"] = node  # type: ignore[assignment]
        with nullcontext() if node == "unknown" else pytest.raises(Unavailable, match="node2"):
            machine._require_there()
    silent["node"] = None
    there[:] = [pod("2")]
    with pytest.raises(Unavailable, match="shop-segment-1-0 is gone"):
        machine._require_there()
    there.clear()
    with pytest.raises(Unavailable, match="shop-segment-1-0 is gone"):
        machine._require_there()


def test_a_program_that_is_killed_is_not_told_in_the_words_of_its_progress(pod: PodMachine) -> None:
    with pytest.raises(PgherdError, match=r"/bin/sh in shop-segment-1-0 was ended by signal 9$"):
        pod.run(["/bin/sh", "-c", "echo 'P01 DETAIL: 15%'; kill -9 $$"], stopping=lambda: False)


def test_what_a_program_said_at_its_end_is_told_whole(pod: PodMachine) -> None:
    heard: list[str] = []
    pod.run(["seq", "3000"], stopping=lambda: False, watch=heard.append)
    assert heard[-1].split() == [str(number) for number in range(1, 3001)]


def test_a_server_is_asked_to_end_before_it_is_made_to(pod: PodMachine) -> None:
    process = pod.start([sys.executable, "-c", SERVER], Path("/none"))
    wait_for(lambda: "up" in process.said(), "it runs", 10)
    assert process.is_running()
    process.stop(10.0)
    assert not process.is_running()
    assert "a last checkpoint" in process.said()


def test_one_whose_connection_breaks_is_neither_running_nor_ended(kubelet: Kubelet) -> None:
    program = PodProgram(None, "shop-segment-1-0", ["sleep", "600"])  # type: ignore[arg-type]
    wait_for(lambda: kubelet.lines, "it is connected", 10)
    kubelet.lines[0].shutdown(socket.SHUT_RDWR)
    assert program.wait(10)
    with pytest.raises(Unavailable, match="the connection to shop-segment-1-0 broke"):
        program.is_running()
    wait_for(lambda: kubelet.children[0].poll() is not None, "its guard ended it", 10)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, silent: int = 1) -> subprocess.Popen[bytes]:
        script = GUARD.replace(f"-t {programs.SILENT_SECONDS}", f"-t {silent}")
        assert script != GUARD
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(["/bin/bash", "-c", script, "guard", *command], stdin=pipe, stdout=pipe)
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def test_a_program_of_whose_starter_nothing_is_heard_is_ended(
    guarded: Callable[..., subprocess.Popen[bytes]],
) -> None:
    guard = guarded("sleep", "600", silent=5)
    assert guard.stdin is not None
    begun = time.monotonic()
    while time.monotonic() < begun + 7:
        time.sleep(0.5)
        guard.stdin.write(b"beat\n")
        guard.stdin.flush()
    assert guard.poll() is None, "it was heard of"
    guard.wait(60)


def test_the_end_of_a_program_is_the_end_of_its_guard(
    guarded: Callable[..., subprocess.Popen[bytes]],
) -> None:
    guard = guarded("/bin/sh", "-c", "exit 7", silent=600)
    assert guard.wait(10) == 7


def test_one_that_ignores_its_end_is_made_to_end(guarded: Callable[..., subprocess.Popen[bytes]]) -> None:
    guard = guarded("/bin/bash", "-c", "trap '' TERM; echo up; while :; do sleep 1; done", silent=600)
    assert guard.stdout is not None
    assert guard.stdin is not None
    assert guard.stdout.readline() == b"up\n"
    guard.stdin.close()
    assert guard.wait(20) == 137
