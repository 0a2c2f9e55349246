"""How answers of Patroni are read (the answers are a real Patroni's), and what happens without one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import Endpoint
from pgherd.patroni.client import PatroniClient, lag_bytes

PRIMARY: dict[str, Any] = {
    "state": "running",
    "postmaster_start_time": "2026-11-21 03:17:09.220 UTC",
    "role": "primary",
    "server_version": 180006,
    "xlog": {"location": 50331840},
    "timeline": 1,
    "replication": [
        {
            "usename": "replicator",
            "application_name": "shop-coordinator-1",
            "client_addr": "127.0.0.1",
            "state": "streaming",
            "sync_state": "sync",
            "sync_priority": 1,
        }
    ],
    "database_system_identifier": "7575",
    "pending_restart": True,
    "pending_restart_reason": {"max_connections": {"old_value": "200", "new_value": "210"}},
    "patroni": {"version": "4.1.5", "scope": "shop-coordinator", "name": "shop-coordinator-0"},
}
STANDBY: dict[str, Any] = {
    "state": "running",
    "role": "replica",
    "server_version": 180006,
    "xlog": {"received_location": 50331800, "replayed_location": 50331700, "paused": False},
    "sync_standby": True,
    "timeline": 1,
    "replication_state": "streaming",
    "patroni": {"version": "4.1.5", "scope": "shop-coordinator", "name": "shop-coordinator-1"},
}
FOUNDING: dict[str, Any] = {
    "state": "initializing new cluster",
    "role": "uninitialized",
    "cluster_unlocked": True,
    "patroni": {"version": "4.1.5", "scope": "shop-coordinator", "name": "shop-coordinator-0"},
}
GROUP: dict[str, Any] = {
    "members": [
        {"name": "a", "role": "leader", "state": "running", "host": "127.0.0.1", "port": 1, "timeline": 1},
        {"name": "b", "role": "sync_standby", "state": "streaming", "host": "127.0.0.1", "port": 2, "lag": 7},
        {"name": "c", "role": "replica", "state": "creating replica", "lag": "unknown"},
    ],
    "scope": "shop-coordinator",
}


@contextmanager
def answering(status: int, body: str) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Endpoint("127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def client() -> PatroniClient:
    return PatroniClient("secret", timeout=0.5)


def test_who_waits_long_for_an_answer_is_patient_with_a_handshake_too(
    client: PatroniClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[urllib3.Timeout] = []

    def request(*asked: object, timeout: urllib3.Timeout, **how: object) -> SimpleNamespace:
        limits.append(timeout)
        return SimpleNamespace(status=200, data=json.dumps(PRIMARY).encode())

    monkeypatch.setattr(client._http, "request", request)
    nobody = Endpoint("127.0.0.1", 1)
    client.member_status(nobody)
    client.restart(nobody)
    assert [(each.connect_timeout, each.read_timeout) for each in limits] == [(0.5, 0.5), (10.0, 60.0)]


def test_a_primary_says_who_follows_it_and_what_waits_for_a_restart(client: PatroniClient) -> None:
    with answering(200, json.dumps(PRIMARY)) as endpoint:
        status = client.member_status(endpoint)
    assert status is not None
    assert (status.name, status.role, status.state, status.leader) == (
        "shop-coordinator-0",
        "primary",
        "running",
        True,
    )
    assert [(down.name, down.synchronous) for down in status.downstreams] == [("shop-coordinator-1", True)]
    assert status.pending_restart
    assert status.pending_restart_reason["max_connections"]["new_value"] == "210"
    assert not status.streaming


def test_a_standby_says_how_far_it_is(client: PatroniClient) -> None:
    with answering(503, json.dumps(STANDBY)) as endpoint:
        standby = client.member_status(endpoint)
    with answering(200, json.dumps(PRIMARY)) as endpoint:
        primary = client.member_status(endpoint)
    assert standby is not None
    assert primary is not None
    assert (standby.role, standby.leader, standby.streaming, standby.sync_standby) == (
        "standby",
        False,
        True,
        True,
    )
    assert lag_bytes(primary, standby) == 40
    assert lag_bytes(standby, primary) == 0


def test_a_primary_without_the_lock_is_no_leader(client: PatroniClient) -> None:
    with answering(503, json.dumps(PRIMARY)) as endpoint:
        status = client.member_status(endpoint)
    assert status is not None
    assert (status.role, status.leader) == ("primary", False)


def test_a_member_that_is_being_made_has_no_role_yet(client: PatroniClient) -> None:
    with answering(503, json.dumps(FOUNDING)) as endpoint:
        status = client.member_status(endpoint)
    assert status is not None
    assert (status.role, status.state, status.lsn) == ("unknown", "creating", None)


def test_the_group_as_its_store_knows_it(client: PatroniClient) -> None:
    with answering(200, json.dumps(GROUP)) as endpoint:
        view = client.cluster_view(endpoint)
    assert view.leader == "a"
    assert [(m.role, m.state, m.lag_bytes, m.sync_standby) for m in view.members] == [
        ("primary", "running", None, False),
        ("standby", "running", 7, True),
        ("standby", "creating", None, False),
    ]
    assert view.members[2].endpoint is None


def test_nobody_there(client: PatroniClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nowhere = Endpoint("127.0.0.1", server.getsockname()[1])
    assert client.member_status(nowhere) is None
    with pytest.raises(Unavailable, match=f"{nowhere.port} does not answer"):
        client.cluster_view(nowhere)


def test_a_member_that_hangs_costs_no_more_than_the_timeout(client: PatroniClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert client.member_status(Endpoint("127.0.0.1", server.getsockname()[1])) is None


def test_a_refusal_tells_patronis_reason(client: PatroniClient) -> None:
    with (
        answering(412, "candidate does not exists") as endpoint,
        pytest.raises(PgherdError, match="refused switchover: candidate does not exists"),
    ):
        client.switchover(endpoint, "a", "z")


def test_a_restart_that_is_not_needed_is_no_failure(client: PatroniClient) -> None:
    with answering(503, "restart conditions are not satisfied") as endpoint:
        client.restart(endpoint, only_if_pending=True)
        with pytest.raises(PgherdError):
            client.restart(endpoint)


def test_a_group_without_configuration_is_asked_again_later(client: PatroniClient) -> None:
    with answering(502, "") as endpoint, pytest.raises(Unavailable):
        client.get_config(endpoint)


def test_something_else_on_the_port_is_not_mistaken_for_patroni(client: PatroniClient) -> None:
    with answering(200, "<html>hello</html>") as endpoint:
        assert client.member_status(endpoint) is None
        with pytest.raises(PgherdError, match="not JSON"):
            client.get_config(endpoint)
