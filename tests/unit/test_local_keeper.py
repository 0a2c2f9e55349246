"""What a member's keeper ends when a server died, and what it leaves alone; and when it wakes Patroni."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pgherd.platform.local import keeper, processes
from tests.support.waiting import until

PATRONI = """\
import http.server, json, os, subprocess, sys
import yaml

directory = os.path.dirname(sys.argv[1])
server = [sys.executable, f"{directory}/server.py", f"{directory}/data"]
# By a child that is gone at once, as Patroni itself does it.
subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.Popen(sys.argv[1:])", *server])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_PATCH(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with open(f"{directory}/data/session") as file:
            lives = os.path.exists(f"/proc/{file.read()}")
        with open(f"{directory}/calls", "a") as file:
            print(json.dumps([self.path, body, self.headers["Authorization"], lives]), file=file)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


with open(sys.argv[1]) as file:
    config = yaml.safe_load(file)
with http.server.HTTPServer(("127.0.0.1", 0), Handler) as api:
    config["restapi"]["connect_address"] = f"127.0.0.1:{api.server_port}"
    with open(sys.argv[1], "w") as file:
        yaml.safe_dump(config, file)
    api.serve_forever()
"""

SERVER = """\
import os, signal, subprocess, sys

data = sys.argv[1]


def stop(*_):
    session.kill()
    session.wait()
    os.unlink(f"{data}/postmaster.pid")
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
# It computes: whatever becomes of its server, it goes on.
session = subprocess.Popen(["postgres: shop: app app 127.0.0.1(4711) SELECT", "600"], executable="/bin/sleep")
with open(f"{data}/session", "w") as file:
    file.write(str(session.pid))
with open(f"{data}/postmaster.new", "w") as file:
    print(os.getpid(), data, sep="\\n", file=file)
os.rename(f"{data}/postmaster.new", f"{data}/postmaster.pid")
while True:
    signal.pause()
"""


class Watched:
    """A member of stand-ins (Patroni, a server, a session that computes) below a real keeper."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir()
        (folder / "path" / "patroni").mkdir(parents=True)
        (folder / "path" / "patroni" / "__init__.py").touch()
        (folder / "path" / "patroni" / "__main__.py").write_text(PATRONI)
        (folder / "server.py").write_text(SERVER)
        rest = {"authentication": {"username": "pgherd", "password": "secret"}}
        (folder / "patroni.yml").write_text(yaml.safe_dump({"restapi": rest}))
        self.process = subprocess.Popen(
            [sys.executable, "-P", *processes.KEEPER, str(folder)],
            env={**os.environ, "PYTHONPATH": str(folder / "path")},
            start_new_session=True,
        )
        until(lambda: "connect_address" in (folder / "patroni.yml").read_text(), "Patroni serves")
        until((folder / "data" / "postmaster.pid").exists, "the server runs")

    @property
    def server(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def calls(self) -> list[list[object]]:
        """What Patroni was asked: path, body, password, whether the session was still there."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    with suppress(ProcessLookupError):
        os.killpg(made.process.pid, signal.SIGKILL)
    made.process.wait(10)


@contextmanager
def children(*titles: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children of this process under these titles."""
    with ExitStack() as stack:
        started = []
        for title in titles:
            child = stack.enter_context(
                subprocess.Popen([title], executable="/bin/cat", stdin=subprocess.PIPE)
            )
            stack.callback(child.kill)
            started.append(child)
        yield started


def test_what_a_server_that_died_has_left_is_ended_and_nothing_else() -> None:
    server = "/usr/lib/postgresql/18/bin/postgres"
    session, logger = "postgres: shop: app app 127.0.0.1(4711) SELECT  ", "postgres: shop: logger "
    with children(session, logger, server, "pg_basebackup") as (orphan, *others):
        keeper._end_orphans()
        assert orphan.wait(10) == -9
        assert [other.poll() for other in others] == [None, None, None]


def test_patroni_is_woken_when_the_last_session_of_a_killed_server_is_gone(watched: Watched) -> None:
    """It looks for its server once a second, and a server that starts before that does not come up."""
    os.kill(watched.server, signal.SIGKILL)
    until(watched.calls, "Patroni is woken")
    password = "Basic " + base64.b64encode(b"pgherd:secret").decode()
    assert watched.calls() == [["/config", '{"nothing": null}', password, False]]


def test_a_server_that_stops_as_told_wakes_nobody(watched: Watched) -> None:
    server = watched.server
    os.kill(server, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{server}").exists(), "the keeper has buried it")
    time.sleep(1.0)
    assert not watched.calls()
    assert watched.process.poll() is None


def test_what_wakes_patroni_changes_no_configuration() -> None:
    """Of any cluster's, also one that is paused."""
    from patroni.utils import patch_config

    sent = json.loads(keeper.NOTHING)
    config = {"loop_wait": 1, "pause": True, "postgresql": {"parameters": {"nothing": "x"}}}
    assert sent, "Patroni does not look at what is empty"
    assert not patch_config(config, sent)
    assert config == {"loop_wait": 1, "pause": True, "postgresql": {"parameters": {"nothing": "x"}}}


def test_patroni_itself_looks_when_it_is_woken_and_writes_nothing(tmp_path: Path) -> None:
    """Its own REST server, whose store and loop are told of."""
    from patroni.api import RestApiServer

    woken: list[bool] = []
    known = {"loop_wait": 1, "pause": True}
    config = SimpleNamespace(data=dict(known), modify_version=7, version=7)
    # Whatever else it would do to its store fails, and answers with another status.
    store = SimpleNamespace(get_cluster=lambda: SimpleNamespace(config=config))
    loop = SimpleNamespace(wakeup=lambda: woken.append(True))
    rest: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "authentication": {"username": "pgherd", "password": "secret"},
    }
    described: Any = SimpleNamespace(dcs=store, ha=loop, version="4", config={})
    server = RestApiServer(described, rest)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        written = {"restapi": {**rest, "connect_address": f"127.0.0.1:{server.server_port}"}}
        (tmp_path / "patroni.yml").write_text(yaml.safe_dump(written))
        keeper._wake(str(tmp_path / "patroni.yml"))
    finally:
        server.shutdown()
        server.server_close()
    assert woken == [True]
    assert config.data == known
