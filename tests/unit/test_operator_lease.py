"""Never two operators at once: who can't renew the lease ends before another may take it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.errors import PgherdError, Unavailable
from pgherd.operator import lease as module
from pgherd.operator.lease import DEADLINE_SECONDS, LEASE_SECONDS, Lease
from pgherd.platform.kubernetes.api import Api
from tests.support.kube_api import Kube, kube_api

PATH = "/apis/coordination.k8s.io/v1/namespaces/prod/leases/operator"


@pytest.fixture
def server() -> Iterator[tuple[Kube, Api]]:
    with kube_api() as made:
        yield made


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def candidate(api: Api, identity: str, clock: Clock) -> Lease:
    return Lease(api, "prod", "operator", identity, clock=clock)


def test_a_second_one_waits_until_the_first_was_silent_for_as_long_as_a_lease_lasts(
    server: tuple[Kube, Api],
) -> None:
    kube, api = server
    clock = Clock()
    first, second = candidate(api, "first", clock), candidate(api, "second", clock)
    assert first.take() == "first"
    for _ in range(10):  # renewed all the while
        assert second.take() == "first"
        clock.now += DEADLINE_SECONDS
        assert first.take() == "first"
    assert second.take() == "first"
    clock.now += LEASE_SECONDS
    assert second.take() == "first"
    clock.now += 0.1
    assert second.take() == "second"
    assert first.take() == "second"
    assert kube.objects[PATH]["spec"]["leaseTransitions"] == 1


def test_a_lease_that_was_removed_is_not_free_while_its_holder_may_not_have_heard_of_that(
    server: tuple[Kube, Api],
) -> None:
    kube, api = server
    clock = Clock()
    first, second = candidate(api, "first", clock), candidate(api, "second", clock)
    first.take()
    assert second.take() == "first"
    kube.remove(PATH)
    clock.now += LEASE_SECONDS
    assert second.take() not in ("first", "second")
    assert PATH not in kube.objects
    clock.now += 0.1
    assert second.take() == "second", "a holder that did not make it anew has ended"
    kube.remove(PATH)
    assert second.renew() == "second", "whose own it is need not wait"


def test_of_two_that_see_it_free_one_gets_it(server: tuple[Kube, Api]) -> None:
    kube, api = server
    clock = Clock()
    first, second = candidate(api, "first", clock), candidate(api, "second", clock)
    first.take()
    first.release()
    free = dict(kube.objects[PATH])
    assert second.take() == "second"
    assert first._change(free, first._mine(free)) is None
    assert first.take() == "second"


def test_what_was_released_or_is_ones_own_place_is_taken_at_once(server: tuple[Kube, Api]) -> None:
    _, api = server
    clock = Clock()
    candidate(api, "first", clock).take()
    again = candidate(api, "first", clock)
    assert again.take() == "first"
    again.release()
    assert candidate(api, "second", clock).take() == "second"
    again.release()  # not its own any more
    assert candidate(api, "third", clock).take() == "second"


def test_who_can_not_renew_ends_before_another_may_take_it(
    server: tuple[Kube, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, api = server
    monkeypatch.setattr(module, "DEADLINE_SECONDS", 1.5)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    lost = threading.Event()
    held = Lease(api, "prod", "operator", "first", lost=lost.set)
    held.acquire()
    assert not lost.wait(2.5)
    kube.refuse_writes = True
    assert lost.wait(10)
    held.release()
    assert DEADLINE_SECONDS < LEASE_SECONDS


def test_a_lease_that_another_took_ends_its_holder(
    server: tuple[Kube, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, api = server
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    lost = threading.Event()
    held = Lease(api, "prod", "operator", "first", lost=lost.set)
    held.acquire()
    taken = kube.objects[PATH]
    kube.put(PATH, {**taken, "spec": {**taken["spec"], "holderIdentity": "second"}})
    assert lost.wait(10)
    held.release()
    assert kube.objects[PATH]["spec"]["holderIdentity"] == "second"


def test_an_api_server_that_does_not_answer_is_waited_for_and_a_missing_right_is_told(
    server: tuple[Kube, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, api = server
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    waited = candidate(api, "first", Clock())
    answers = [Unavailable("away"), Unavailable("away"), None]

    def take() -> str:
        answer = answers.pop(0)
        if answer:
            raise answer
        return "first"

    monkeypatch.setattr(waited, "take", take)
    waited.acquire()
    assert not answers
    waited.release()

    def refuse() -> str:
        raise PgherdError("could not read Lease operator: forbidden")

    refused = candidate(api, "first", Clock())
    monkeypatch.setattr(refused, "take", refuse)
    with pytest.raises(PgherdError, match="forbidden"):
        refused.acquire()
    assert PATH not in kube.objects


def test_a_waiting_operator_says_for_whom_and_ends_when_told_to(
    server: tuple[Kube, Api], tmp_path: Path
) -> None:
    kube, api = server
    candidate(api, "first", Clock()).take()
    kube.put(PATH.replace("/operator", "/pgherd-operator-prod"), kube.objects[PATH])
    kubeconfig = tmp_path / "kubeconfig"
    known = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me", "namespace": "prod"}}],
        "clusters": [{"name": "it", "cluster": {"server": api.client.config.cluster.server}}],
        "users": [{"name": "me", "user": {"token": "none"}}],
    }
    kubeconfig.write_text(json.dumps(known))
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "PGHERD_WATCH_NAMESPACE": "prod",
        "POD_NAME": "two",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "pgherd.operator"], env=environment, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        assert any("waiting for the lease" in line and "first has it" in line for line in waiting.stderr)
        waiting.terminate()
        assert waiting.wait(20) == 0
