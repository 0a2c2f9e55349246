"""What is known of nodes that differ, while looks come and go."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.errors import Unavailable
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe
from pgherd.reconcile.loop import ClusterLoop
from pgherd.reconcile.state import Observed
from tests.support.looks import look

DIFFERS = ["segment-2 runs another version"]


def test_nodes_that_differ_are_not_taken_for_fit_because_nobody_can_ask_them_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers: list[Any] = [DIFFERS, Unavailable("coordinator has no primary"), []]

    def unfit() -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def seen(world: observe.World, *, sizes: bool) -> Observed:
        return replace(look(), unfit=observe._unfit(world))

    monkeypatch.setattr(observe, "observe", seen)
    world: Any = SimpleNamespace(engine=SimpleNamespace(unfit=unfit))
    loop = ClusterLoop(LocalPlatform(tmp_path), "shop", threading.Event())
    assert [loop._look(world).unfit for _ in range(3)] == [DIFFERS, DIFFERS, []]
