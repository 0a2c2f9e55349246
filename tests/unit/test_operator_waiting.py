"""An operator that waits for its lease tells its kubelet that it lives, as long as it goes on looking."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from pgherd.operator import waiting
from tests.support.servers import free_port


def free_url() -> str:
    return f"http://127.0.0.1:{free_port()}/healthz"


def answer(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def test_it_is_well_while_it_looks_and_not_when_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    url = free_url()
    with waiting.answering(url) as sign:
        assert answer(url) == 200
        monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.0)
        assert answer(url) == 503
        monkeypatch.undo()
        sign()
        assert answer(url) == 200


def test_the_port_is_free_for_who_answers_next() -> None:
    url = free_url()
    for _ in range(3):
        with waiting.answering(url):
            assert answer(url) == 200
