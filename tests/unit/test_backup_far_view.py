"""A store that does not answer holds up nobody who heals."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.backup import far_view
from pgherd.backup.base import BackupMethod
from tests.support.waiting import until


def method(name: str, *, near: bool) -> BackupMethod:
    made = SimpleNamespace(
        name="pgbackrest",
        location=name,
        fingerprint=lambda: name,
        repository=SimpleNamespace(store=SimpleNamespace(near=near)),
    )
    return cast(BackupMethod, made)


def test_a_near_repository_that_answers_is_seen_at_once() -> None:
    assert far_view.look(method("near", near=True), lambda: {"problems": ["a"]}) == {"problems": ["a"]}


def test_a_distant_one_that_answers_is_seen_at_once() -> None:
    assert far_view.look(method("far", near=False), lambda: {"problems": ["b"]})["problems"] == ["b"]


@pytest.mark.parametrize("near", [False, True])
def test_one_that_does_not_answer_is_told_and_waited_for_by_nobody(
    monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    monkeypatch.setattr(far_view, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(far_view, "SILENT_SECONDS", 0.05)
    silent, answers = method(f"silent-{near}", near=near), threading.Event()

    def view() -> dict[str, Any]:
        answers.wait(30)
        return {"problems": [], "lastBackup": 1}

    until(lambda: far_view.look(silent, view)["problems"] == [f"silent-{near} does not answer"])
    answers.set()
    until(lambda: far_view.look(silent, view).get("lastBackup") == 1)
    until(lambda: far_view.look(silent, view)["problems"] == [])


def test_a_silence_is_told_once_with_what_the_look_before_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_view, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(far_view, "SILENT_SECONDS", 0.05)
    silent, answers = method("s3://safe/shop", near=False), threading.Event()
    problems = ["s3://safe does not answer", "48 MiB of the log of segment-1 wait for it"]
    looks: list[int] = []

    def view() -> dict[str, Any]:
        looks.append(1)
        if len(looks) > 1:
            answers.wait(30)
        return {"problems": problems}

    until(lambda: far_view.look(silent, view)["problems"] == problems)
    for _ in range(20):
        assert far_view.look(silent, view)["problems"] == problems
        time.sleep(0.01)
    assert len(looks) == 2, "the second one is still waited for"
    answers.set()


def test_what_nobody_expected_is_a_problem_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def view() -> dict[str, Any]:
        raise RuntimeError("of a library")

    found = far_view.look(method("s3://odd", near=False), view)
    assert found["problems"] == ["of a library"]
