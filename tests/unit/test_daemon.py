"""What a home's daemon looks after."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from pgherd.errors import PgherdError
from pgherd.platform.local.files import write
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile.loop import ClusterLoop
from pgherd.supervisor import daemon
from tests.support.platform import cluster


class Loop:
    """In place of a cluster's loop."""

    def __init__(self, platform: LocalPlatform, name: str, stop: threading.Event) -> None:
        self.name = name

    def start(self) -> None:
        """Nothing is started."""

    def is_alive(self) -> bool:
        """For ever."""
        return True


@pytest.mark.parametrize("text", ["", "a: [", "{}", "pgherd: [1]", "pgherd: {generation: abc}"])
def test_a_damaged_declaration_takes_care_from_no_other_cluster(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    platform = LocalPlatform(tmp_path / "home")
    platform.declare(cluster())
    (platform.home / "bad").mkdir()
    (platform.home / "bad" / "cluster.yaml").write_text(text)
    monkeypatch.setattr(platform, "ensure_store", lambda: None)
    monkeypatch.setattr(daemon, "ClusterLoop", Loop)
    lock = daemon.acquire(platform.home)
    assert lock is not None
    with lock, caplog.at_level(logging.ERROR):
        found = daemon.Daemon(platform, lock)
        found._ensure_loops()
        found._ensure_loops()
        assert list(found._loops) == ["shop"]
        assert len(caplog.records) == 1, "said once"
        platform.forget("shop", purge=True)
        assert not found._leave_if_idle(), "members of the damaged one may run"


@pytest.mark.parametrize("text", ["", "a: [", "raft: 3", "raft: {self_addr: x, password: y}", "raft: {}"])
def test_a_damaged_store_is_one_clear_line_and_loops_go_on_to_tell(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = LocalPlatform(tmp_path / "home")
    platform.declare(cluster())
    write(platform.home / "raft" / "raft.yml", text)
    with pytest.raises(PgherdError, match=r"raft\.yml is damaged"):
        platform.ensure_store()
    monkeypatch.setattr(daemon, "ClusterLoop", Loop)
    lock = daemon.acquire(platform.home)
    assert lock is not None
    with lock:
        found = daemon.Daemon(platform, lock)
        found._ensure_loops()
        assert list(found._loops) == ["shop"]


def test_a_step_that_meets_the_unexpected_is_an_error_of_the_status(tmp_path: Path) -> None:
    class Broken:
        def act(self, step: object, seen: object) -> None:
            raise KeyError("namespace")

    loop = ClusterLoop(LocalPlatform(tmp_path), "shop", threading.Event())
    assert loop._do(Broken(), "start it", None) == "could not start it: 'namespace'"  # type: ignore[arg-type]
