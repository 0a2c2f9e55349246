"""Declared pg_hba lines that only running servers can find wrong."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import psycopg
import pytest

from pgherd.errors import Unavailable
from pgherd.model.topology import Credentials, Endpoint
from pgherd.postgres.connections import Databases
from pgherd.reconcile import access
from tests.support.looks import look, member

LINES = "# ours\nhost all app all scram-sha-256\nhost  all /^( all scram-sha-256\n"
WRONG = "host  all /^( all scram-sha-256"
ERROR = 'invalid regular expression "^(": parentheses () not balanced'
TOLD = (
    f"spec.postgres.hostBasedAuthentication: line 3 ({WRONG}) can't be read: {ERROR}: correct it, until then members go"
    " on with the rules that they had, and none of them could start again"
)


class Servers(Databases):
    """They say this of their pg_hba files, by port."""

    answers: ClassVar[dict[int, list[Any] | Exception]]

    def connect(self, group: int, **how: Any) -> Any:
        """One server is asked, whatever it is."""
        [endpoint] = self.addresses()[group]
        assert how == {"database": "postgres", "read_only": True}
        answer = self.answers[endpoint.port]
        if isinstance(answer, Exception):
            raise answer
        return nullcontext(SimpleNamespace(execute=lambda query: SimpleNamespace(fetchall=lambda: answer)))


def unread(answers: dict[int, Any], text: str = LINES) -> list[str] | None:
    Servers.answers = answers
    servers = Servers("app", Credentials("", "", "", ""), dict)
    return access.unread(servers, text, [(port // 10, Endpoint("here", port)) for port in answers])


def test_a_line_that_servers_can_not_read_is_told_once_with_its_number_and_the_way_out() -> None:
    rows = [(9, ERROR, WRONG)]
    assert unread({0: rows, 1: rows, 20: []}) == [TOLD]


def test_a_line_that_is_not_declared_is_told_by_its_place() -> None:
    [told] = unread({0: [(2, "no", "nonsense")]}) or []
    assert "line 2 of the servers' pg_hba.conf (nonsense) can't be read: no" in told
    assert access.problem(LINES, None, None, "no such file").startswith(
        "spec.postgres.hostBasedAuthentication"
    )


@pytest.mark.parametrize(
    ("answers", "told"),
    [({0: Unavailable("away"), 1: []}, []), ({0: Unavailable("away")}, None), ({}, None)],
    ids=["one answers", "none does", "nobody to ask"],
)
def test_what_nobody_can_say_is_not_taken_for_right(answers: dict[int, Any], told: list[str] | None) -> None:
    assert unread(answers) == told


def test_a_server_that_waits_for_its_disk_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "QUESTION_SECONDS", 0.1)
    ours, theirs = socket.socketpair()

    def execute(query: str) -> Any:
        assert ours.recv(1) == b"", "nothing ever comes"
        raise psycopg.OperationalError("the connection was cut off")

    class Hanging(Servers):
        """Their only answer is silence."""

        def connect(self, group: int, **how: Any) -> Any:
            return nullcontext(SimpleNamespace(execute=execute, fileno=ours.fileno))

    with ours, theirs:
        servers = Hanging("app", Credentials("", "", "", ""), dict)
        assert access.unread(servers, LINES, [(1, Endpoint("here", 1))]) is None


def test_what_a_build_lacks_may_need_an_image_first() -> None:
    told = access.problem(LINES, 1, WRONG, 'authentication method "ldap" not supported by this build')
    assert "declare an image that has this first" in told


def test_nobody_is_asked_where_no_line_is_declared() -> None:
    assert unread({0: Unavailable("away")}, " \n") == []


def test_before_a_restart_all_running_servers_are_asked_else_primaries() -> None:
    raised = {"max_connections": (100, 200)}
    calm, due = look(), look(changes=[member(1, 1, pending=raised), member(2, 1, running=False)])
    assert {(group, endpoint.port) for group, endpoint in access.servers(calm)} == {
        (0, 7000),
        (1, 7010),
        (2, 7020),
    }
    assert not access.is_to_change(calm)
    assert {endpoint.port for _, endpoint in access.servers(due)} == {7000, 7001, 7010, 7011, 7020}
    assert access.is_to_change(due)
