"""What commands wait for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import finding, planning, registry, restore, source, wish
from pgherd.cli.main import run
from pgherd.errors import BadInput, NoSuchCluster, PgherdError
from pgherd.model.spec import from_mapping, to_mapping
from pgherd.model.topology import Member
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout
from pgherd.reconcile import steering
from pgherd.supervisor import backups
from pgherd.supervisor.client import Client
from tests.support.backups import point
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


FAILED = {"id": 1, "kind": "expand", "generation": DONE["generation"], "phase": "failed", "error": "lost"}


@pytest.mark.parametrize(
    "seen", [{"errors": ["could not prepare the database of segment-2"]}, {"lastOperation": FAILED}]
)
def test_what_somebody_has_to_see_to_is_not_waited_for(client: Client, seen: dict[str, object]) -> None:
    unfit = {
        "type": "EngineUnfit",
        "status": "True",
        "reason": "NodesDiffer",
        "message": "segment-2 has lost the extension citus",
        "lastTransitionTime": LONG_AGO,
    }
    now = {**DONE, "phase": "Updating", "settled": False, "conditions": [unfit]}
    client._platform.write_status("shop", {**now, **seen})
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


# the home's lock, for which every cluster of the home waits


def is_unlocked(client: Client) -> bool:
    """Whether another thread gets the home's lock."""
    taken = threading.Event()

    def take() -> None:
        with client._platform.locked():
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    return taken.wait(5)


def with_backups(path: Path, **fields: Any) -> Any:
    return cluster(engine="fdw", backup={"repository": {"path": str(path)}}, **fields)


def test_a_repository_that_does_not_answer_holds_no_other_cluster_up(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def prepare(*arguments: object) -> None:
        asked.append(is_unlocked(client))

    monkeypatch.setattr(backups, "prepare", prepare)
    client.up(with_backups(tmp_path / "repository"))
    assert asked == [True]
    assert client.declared("shop").spec.backup is not None


def test_what_is_refused_makes_no_repository(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="shardCount"):
        client.up(with_backups(tmp_path / "repository", shardCount=16))
    assert not (tmp_path / "repository").exists()


def test_what_changed_while_the_repository_was_asked_is_looked_at_again(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*arguments: object) -> None:
        client._platform.set_deleting("shop", purge=False)

    monkeypatch.setattr(backups, "prepare", prepare)
    with pytest.raises(BadInput, match="is being deleted"):
        client.up(with_backups(tmp_path / "repository"))
    assert client.declared("shop").spec.backup is None


def test_what_was_kept_is_removed_without_holding_the_home_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, layout = client._platform, Layout(client._platform.home)
    bench, asked = platform.bench("shop", 1), []

    def remove(path: Path) -> None:
        asked.append((path.name.split(".")[2], is_unlocked(client)))
        shutil.rmtree(path)

    monkeypatch.setattr(files, "_remove_tree", remove)
    (layout.aside("shop") / "members").mkdir(parents=True)
    (bench.folder() / "before").mkdir()
    platform.workshop("shop").write_state({"phase": restore.DONE})
    client.confirm_restore("shop")
    bench.clear()
    assert asked == [("before-restore", True), ("segment-1", True)]
    assert not layout.aside("shop").exists()
    asked.clear()
    (layout.member(Member("shop", 1, 0)).data / "base").mkdir(parents=True)
    platform.remove_member(Member("shop", 1, 0))
    assert asked == [("shop-segment-1-0", True)]
    (layout.member(Member("shop", 0, 0)).data / "base").mkdir(parents=True)
    platform.forget("shop", purge=True)
    assert asked[1:] == [("shop", True)]
    assert not list(platform.home.glob("*shop*"))


def test_a_removal_that_was_cut_short_is_finished_when_it_is_asked_for_again(client: Client) -> None:
    rest = client._platform.home / "shop" / ".removed.before-restore.1234"
    rest.mkdir()
    with pytest.raises(BadInput, match="nothing is kept"):
        client.confirm_restore("shop")
    assert not rest.exists()


def test_nothing_is_tidied_beside_another_cluster(client: Client) -> None:
    platform = client._platform
    (platform.home / "supervisor.log").touch()
    with pytest.raises(NoSuchCluster):
        client.require_known("shed")
    assert (platform.home / "supervisor.log").exists()
    assert platform.clusters() == ["shop"]


WRONG = "host all all 10.0.0.0/99 md5"
"""accepted by older versions only"""


@pytest.fixture
def old(client: Client) -> Client:
    """Of a home whose cluster was declared by an older version."""
    raw = to_mapping(cluster(engine="fdw"))
    raw["spec"]["postgres"]["hostBasedAuthentication"] = WRONG
    client._platform.declare(from_mapping(raw, kept=True))
    return client


def test_a_line_that_an_older_version_accepted_keeps_nobody_from_calling_an_operation_off(
    old: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "request_cancel", lambda world: 3)
    old.cancel("shop")
    assert old.declared("shop").spec.segments.count == 3
    assert old.declared("shop").spec.postgres.host_based_authentication == WRONG


def test_a_clone_that_would_not_start_is_refused_with_the_way_out(old: Client) -> None:
    with pytest.raises(BadInput) as refused:
        backups.plan_clone(old._platform, "shop", "shop2")
    (problem,) = refused.value.problems
    assert problem.startswith("spec.postgres.hostBasedAuthentication: line 1 has a wrong mask in 10.0.0.0/99")
    assert problem.endswith("correct it there with 'pgherd up'")


def test_a_line_that_an_older_version_accepted_keeps_nobody_from_restoring_in_place(
    old: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = point(1)
    source = {"cluster": "shop", "repository": {"path": "/mnt"}}
    method = SimpleNamespace(check=lambda: None)
    monkeypatch.setattr(backups, "method_of", lambda *arguments: method)
    monkeypatch.setattr(backups, "declared_of", lambda *arguments: None)
    monkeypatch.setattr(registry, "source_of", lambda *arguments: source)
    monkeypatch.setattr(finding, "restorable", lambda method: [chosen])
    monkeypatch.setattr(finding, "find_point", lambda *arguments: chosen)
    monkeypatch.setattr(planning, "check_fits", lambda *arguments: None)
    found = backups.plan(old._platform, "shop", "shop", in_place=True)
    assert found.cluster.spec.postgres.host_based_authentication == WRONG


def test_what_a_restored_cluster_was_made_of_is_known_here_too(client: Client) -> None:
    assert client.restored_point("shop") is None
    client._platform.workshop("shop").write_state(
        {"phase": restore.DONE, "point": point(1).as_json(), "following": None}
    )
    assert client.restored_point("shop") == {
        "restorePoint": "p1",
        "time": point(1).time,
        "following": None,
    }


class Died:
    """A process that has ended, or has not."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    def poll(self) -> int | None:
        """Its exit code, negative for a signal."""
        return self._code


def _spawned(made: Client, monkeypatch: pytest.MonkeyPatch, *codes: int | None) -> list[Died]:
    """Supervisors that end like this, one after the other; the one that does not end is seen to run."""
    started: list[Died] = []

    def spawn() -> Died:
        started.append(Died(codes[len(started)]))
        return started[-1]

    monkeypatch.setattr(made, "_spawn_daemon", spawn)
    monkeypatch.setattr(made, "_daemon_runs", lambda: started[-1].poll() is None)
    return started


def test_a_supervisor_that_is_killed_before_it_is_seen_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Client(tmp_path / "home")
    started = _spawned(made, monkeypatch, -9, -9, None)
    made.ensure_daemon()
    assert len(started) == 3


def test_a_supervisor_that_refuses_to_start_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Client(tmp_path / "home")
    started = _spawned(made, monkeypatch, 1)
    with pytest.raises(PgherdError, match=r"the supervisor does not start: see .*supervisor\.log"):
        made.ensure_daemon()
    assert len(started) == 1


def from_shop() -> Any:
    return cluster("new", engine="fdw", bootstrap={"recovery": {"cluster": "shop"}})


def test_a_cluster_from_the_backups_of_one_that_has_none_is_refused_before_it_is_declared(
    client: Client, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"spec\.bootstrap\.recovery\.cluster: shop has no backups") as refused:
        client.up(from_shop())
    assert len(refused.value.problems) == 1
    gone = cluster("new", engine="fdw", bootstrap={"recovery": {"cluster": "gone"}})
    with pytest.raises(BadInput, match="there is no cluster gone here"):
        client.up(gone)
    assert "new" not in client._platform.clusters()
    client._platform.declare(with_backups(tmp_path / "repository"))
    client.up(from_shop())
    assert "new" in client._platform.clusters()


def test_what_a_cluster_was_made_of_may_go_and_it_can_still_be_declared_anew(
    client: Client, tmp_path: Path
) -> None:
    client._platform.declare(with_backups(tmp_path / "repository"))
    client.up(from_shop())
    client._platform.forget("shop", purge=True)
    client.up(from_shop())
    control = Layout(tmp_path / "home").member(Member("new", 0, 0)).data / "global" / "pg_control"
    control.parent.mkdir(parents=True)
    control.write_text("")
    client.up(cluster("new", engine="fdw", bootstrap={"recovery": {"cluster": "shop", "restorePoint": "p7"}}))


@pytest.mark.parametrize("going_on", ["settled", "in place"])
def test_what_is_going_on_may_be_declared_again_when_what_it_is_made_of_is_gone(
    client: Client, tmp_path: Path, going_on: str
) -> None:
    client._platform.declare(with_backups(tmp_path / "repository"))
    client.up(from_shop())
    workshop = client._platform.workshop("new")
    found = source.find(client._platform, from_shop())
    told = {"declared": wish.told(from_shop()), "found": found, "steps": ["copied", "settled"]}
    own = {"inPlace": True, "recovery": {"cluster": "new", "repository": {"path": "/mnt"}}}
    workshop.write_state({"phase": "copying", **(told if going_on == "settled" else own)})
    client._platform.forget("shop", purge=True)
    other = {"cluster": "new" if going_on == "in place" else "shop", "repository": {"path": "/mnt"}}
    client.up(cluster("new", engine="fdw", bootstrap={"recovery": other}))
    client.up(from_shop())
    now = client._platform.declaration("new").cluster
    assert wish.told(now) == wish.told(from_shop())
