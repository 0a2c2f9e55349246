"""What commands wait for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgherd.cli.main import run
from pgherd.errors import NoSuchCluster, PgherdError
from pgherd.supervisor.client import Client
from tests.support.platform import cluster

DONE: Mapping[str, Any] = {
    "phase": "Running",
    "generation": 1,
    "settled": True,
    "conditions": [],
    "errors": [],
}
LONG_AGO = "2020-01-01T00:00:00.000+00:00"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Of a home with a declared cluster, in which nothing is ever started."""
    made = Client(tmp_path / "home")
    made._platform.declare(cluster())
    monkeypatch.setattr(made, "ensure_daemon", lambda: None)
    return made


def test_a_status_from_before_a_power_cut_is_not_believed(client: Client) -> None:
    client._platform.write_status("shop", {**DONE, "observedAt": LONG_AGO})
    with pytest.raises(PgherdError, match="not ready after"):
        client.wait("shop", timeout=0.3)


def test_an_old_status_that_is_still_true_is_enough(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client._platform.write_status("shop", {**DONE, "observedAt": LONG_AGO})
    monkeypatch.setattr(client, "status", lambda name: dict(DONE))
    assert client.wait("shop", timeout=0.3)["phase"] == "Running"


def test_a_status_of_now_is_believed(client: Client) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    client._platform.write_status("shop", {**DONE, "observedAt": later.isoformat()})
    assert client.wait("shop", timeout=0.3)["phase"] == "Running"


def test_what_somebody_has_to_see_to_is_not_waited_for(client: Client) -> None:
    unfit = {
        "type": "EngineUnfit",
        "status": "True",
        "reason": "NodesDiffer",
        "message": "segment-2 has lost the extension citus",
        "lastTransitionTime": LONG_AGO,
    }
    now = {**DONE, "phase": "Updating", "settled": False, "conditions": [unfit]}
    client._platform.write_status("shop", {**now, "errors": ["could not prepare the database of segment-2"]})
    with pytest.raises(PgherdError, match="shop: segment-2 has lost the extension"):
        client.wait("shop", timeout=5)


def test_data_that_a_deletion_kept_can_be_purged_later(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    home = client._platform.home
    data = home / "shop" / "members" / "shop-segment-1-0" / "data" / "global"
    data.mkdir(parents=True)
    (data / "pg_control").touch()
    client._platform.forget("shop", purge=False)
    assert run(["--home", str(home), "delete", "shop", "--purge"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert run(["--home", str(home), "delete", "shop", "--yes"]) == 2
    assert "no cluster 'shop'" in capsys.readouterr().err
    assert run(["--home", str(home), "delete", "shop", "--purge", "--yes"]) == 0
    assert not home.exists()


def test_what_a_supervisor_killed_at_its_very_end_left_is_removed(client: Client) -> None:
    platform = client._platform
    platform.forget("shop", purge=True)
    for rest in ("supervisor.log", "supervisor.lock"):
        (platform.home / rest).touch()
    (platform.home / ".removed.shop.1234" / "members").mkdir(parents=True)
    client.wait_gone("shop", timeout=5)
    assert not platform.home.exists()


def test_nothing_is_tidied_beside_another_cluster(client: Client) -> None:
    platform = client._platform
    (platform.home / "supervisor.log").touch()
    with pytest.raises(NoSuchCluster):
        client.require_known("shed")
    assert (platform.home / "supervisor.log").exists()
    assert platform.clusters() == ["shop"]
