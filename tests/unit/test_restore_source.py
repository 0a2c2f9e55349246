"""A cluster that is declared to be made from the backups of another one, which knows itself where these are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import pins, restoring, wish
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.native import Native
from pgherd.backup.pauses import Awaited
from pgherd.backup.restore import Restore
from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster, from_mapping, to_mapping
from pgherd.platform import origin
from pgherd.platform.base import Owner
from pgherd.platform.local.platform import LocalPlatform
from tests.support.backups import backup
from tests.support.platform import cluster

NOTHING: Any = None


def new(**recovery: Any) -> PostgresCluster:
    return cluster("new", engine="fdw", bootstrap={"recovery": {"cluster": "shop", **recovery}})


class Home:
    """In which a cluster is declared to be made of what another one's backups are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.platform = folder, LocalPlatform(folder / "home")
        self.platform.declare(new(restorePoint="p1"))
        self.workshop = self.platform.workshop("new")

    def declare_source(self, path: str = "first", **backup: Any) -> None:
        declared = {"repository": {"path": str(self.folder / path)}, **backup}
        self.platform.declare(cluster(engine="fdw", backup=declared))

    def begin(self) -> Restore | None:
        now = self.platform.declaration("new").cluster
        return restoring.begin(self.platform, now, NOTHING, threading.Event(), NOTHING)

    def begun(self) -> Restore:
        restore = self.begin()
        assert restore is not None
        return restore

    @property
    def state(self) -> dict[str, Any]:
        return self.workshop.read_state() or {}

    @property
    def waits(self) -> str:
        return str(restoring.operation_status(self.state)["message"])

    def repository(self, owner: str, path: str = "first") -> Catalogue:
        """That of the source, with a backup in it."""
        place, known = self.folder / path / "shop", Owner(owner)
        made = Native(place, self.platform.programs, owner=lambda: known).repository
        made.create("shop")
        made.claim({0: "7"}, {})
        made.remember_backup(backup(1))
        return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_all_that_says_where_the_others_backups_are_is_taken_over(home: Home) -> None:
    bucket = {"s3": {"bucket": "safe", "prefix": "prod", "endpoint": "minio:9000", "caFile": "/etc/ca.crt"}}
    home.declare_source(
        method="pgbackrest", repository=bucket, secretRef="/etc/keys.yaml", encrypt=True, compress="lz4"
    )
    found = home.begun()._site.wanted
    assert (found.cluster, found.method, found.secret_ref) == ("shop", "pgbackrest", "/etc/keys.yaml")
    assert found.encrypt
    assert found.restore_point == "p1"
    assert found.repository is not None
    assert found.repository.s3 is not None
    assert (found.repository.s3.prefix, found.repository.s3.ca_file) == ("prod", "/etc/ca.crt")
    assert home.begun()._site.method.location == "s3://safe/prod/shop"


def test_where_they_are_is_found_once_and_remembered(home: Home) -> None:
    home.declare_source("first")
    home.begun()
    assert origin.recovery(home.state) == {
        "cluster": "shop",
        "method": "native",
        "encrypt": False,
        "repository": {"path": str(home.folder / "first")},
        "restorePoint": "p1",
    }
    home.declare_source("second")
    assert home.begun()._site.method.location == str(home.folder / "first" / "shop")
    home.platform.forget("shop", purge=True)
    assert home.begun()._site.method.location == str(home.folder / "first" / "shop")


def test_another_point_that_is_declared_meanwhile_is_looked_for_where_the_backups_are_by_then(
    home: Home,
) -> None:
    home.declare_source("first")
    home.begun()
    home.declare_source("second")
    home.platform.declare(new(restorePoint="p2"))
    assert home.begun()._site.method.location == str(home.folder / "second" / "shop")


def test_one_that_is_not_there_or_has_no_backups_is_waited_for_and_told_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(home.platform, "announce", lambda name, what, failed: told.append(what))
    assert home.begin() is None
    assert "spec.bootstrap.recovery.cluster: there is no cluster shop here" in home.waits
    assert home.waits.endswith("it is waited for")
    assert home.begin() is None
    home.platform.declare(cluster(engine="fdw"))
    assert home.begin() is None
    assert "shop has no backups: declare its spec.backup" in home.waits
    assert len(told) == 2
    home.declare_source()
    assert home.begun()._site.method.location == str(home.folder / "first" / "shop")
    assert home.waits == ""


def test_its_first_backup_is_waited_for(home: Home) -> None:
    home.declare_source()
    restore = home.begun()
    with pytest.raises(Awaited, match=r"shop has no backup yet at .*first/shop: it is waited for"):
        restore.run()
    assert "has no backup yet" in home.waits
    assert home.state["phase"] == "copying"
    home.repository(home.platform.owner("shop").id)
    home.begun()._site.check_source()


def test_as_long_as_nothing_was_there_what_is_declared_of_the_other_one_by_now_counts(home: Home) -> None:
    home.declare_source("mistyped")
    with pytest.raises(Awaited, match=r"no backup yet at .*mistyped"):
        home.begun().run()
    home.declare_source("second")
    assert home.begun()._site.method.location == str(home.folder / "second" / "shop")
    with pytest.raises(Awaited, match=r"no backup yet at .*second"):
        home.begun().run()
    home.workshop.write_state({**home.state, "point": {"name": "p1"}, "steps": ["copied"]})
    home.declare_source("third")
    assert home.begun()._site.method.location == str(home.folder / "second" / "shop")


def test_one_that_was_declared_anew_before_its_first_backup_is_the_one_that_is_meant(home: Home) -> None:
    home.declare_source()
    with pytest.raises(Awaited):
        home.begun().run()
    home.platform.forget("shop", purge=True)
    home.declare_source()
    home.repository(home.platform.owner("shop").id)
    home.begun()._site.check_source()


def test_a_store_that_is_silent_leads_nobody_elsewhere(home: Home) -> None:
    home.declare_source("first")
    home.begun()
    home.workshop.write_state({**home.state, "phase": "copying", "tries": 1, "waits": "it does not answer"})
    home.declare_source("second")
    assert home.begun()._site.method.location == str(home.folder / "first" / "shop")


def test_nobody_is_told_to_wait_for_the_backup_of_a_cluster_that_is_gone(home: Home) -> None:
    home.declare_source()
    with pytest.raises(Awaited):
        home.begun().run()
    home.platform.forget("shop", purge=True)
    with pytest.raises(Awaited, match="there is no cluster shop here: declare it, or name with repository"):
        home.begun().run()
    assert f"no backup yet at {home.folder}/first/shop" in home.waits


BUCKET: dict[str, Any] = {
    "method": "pgbackrest",
    "repository": {"s3": {"bucket": "safe", "region": "eu-central-1"}},
}


def test_other_keys_that_the_other_one_gets_for_the_same_backups_are_used_at_any_step(home: Home) -> None:
    home.declare_source(**BUCKET, secretRef="/etc/old.yaml")
    home.begun()
    home.workshop.write_state(
        {**home.state, "phase": "copying", "point": {"name": "p1"}, "steps": ["copied:0"]}
    )
    home.declare_source(**BUCKET, secretRef="/etc/new.yaml")
    assert home.begun()._site.wanted.secret_ref == "/etc/new.yaml"
    assert home.state["steps"] == ["copied:0"], "what is done is not done again"
    assert home.state["found"]["recovery"]["secretRef"] == "/etc/new.yaml", "pods are given it, too"


def test_keys_that_are_away_are_waited_for_and_others_may_be_named(home: Home) -> None:
    home.declare_source(**BUCKET, secretRef=str(home.folder / "none.yaml"))
    with pytest.raises(Awaited, match=r"none\.yaml can't be read"):
        home.begun().run()
    assert "none.yaml can't be read: no such file or directory: it is waited for" in home.waits
    assert home.state["phase"] == "copying"
    home.declare_source("second")
    assert home.begun()._site.method.location == str(home.folder / "second" / "shop")


def test_what_makes_no_sense_of_the_other_one_is_not_told_as_if_it_were_of_the_new_one(home: Home) -> None:
    home.declare_source()
    path = home.folder / "home" / "shop" / "cluster.yaml"
    path.write_text(path.read_text().replace("engine: fdw", "engine: oracle"))
    assert home.begin() is None
    assert "recovery.cluster: what is declared of shop makes no sense (" in home.waits
    assert "spec.engine" in home.waits


def test_one_that_goes_between_two_looks_is_not_taken_for_one_whose_backups_may_be_anybodys(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.declare_source()
    monkeypatch.setattr(home.platform, "owner", lambda name: Owner(""))
    assert home.begin() is None
    assert "shop is being deleted: it is waited for" in home.waits


def test_what_another_cluster_of_its_name_left_there_is_not_taken_for_its_backups(home: Home) -> None:
    home.declare_source()
    home.repository("elsewhere/shop/1234")
    with pytest.raises(BadInput, match="holds the backups of another cluster than shop, elsewhere/shop/1234"):
        home.begun().run()
    assert home.state["phase"] == "failed"


def test_a_repository_that_is_named_is_read_whoever_it_belongs_to(home: Home) -> None:
    home.repository("elsewhere/shop/1234")
    home.platform.declare(new(repository={"path": str(home.folder / "first")}))
    restore = home.begun()
    restore._site.check_source()
    assert restore._site.method.location == str(home.folder / "first" / "shop")
    assert home.state == {}, "nothing had to be found"


def test_a_making_that_is_given_up_removes_its_pin_where_it_read(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.declare_source("first")
    home.begun()
    home.workshop.write_state({**home.state, "phase": "copying", pins.KEY: "pin"})
    home.declare_source("second")
    removed: list[str] = []
    monkeypatch.setattr(pins, "remove", lambda repository, pin: removed.append(repository.location))
    restoring.unpin(home.platform, "new")
    assert [str(each) for each in removed] == [str(home.folder / "first" / "shop")]


def test_what_an_earlier_version_wrote_down_says_where_itself() -> None:
    asked = {"cluster": "shop", "repository": {"path": "/mnt"}}
    assert origin.recovery({wish.KEY: {"recovery": asked}}) == asked
    assert origin.recovery({"inPlace": True, "recovery": asked, wish.KEY: {}}) == asked
    assert origin.recovery({wish.KEY: {"clone": {"cluster": "shop"}}}) is None
    assert origin.recovery({wish.KEY: {"recovery": {"cluster": "shop"}}}) is None


# what is refused


@pytest.mark.parametrize("platform", ["local", "kubernetes"])
@pytest.mark.parametrize(
    ("recovery", "told"),
    [
        ({"cluster": "new"}, r"spec\.bootstrap\.recovery\.cluster: is the cluster itself: name another one"),
        ({"cluster": "prod/shop"}, "repository: may be left out only for a cluster of the same home, or"),
        ({"cluster": "shop", "method": "pgbackrest"}, "method: goes with repository: name that, too, or"),
        ({"cluster": "shop", "secretRef": "/keys.yaml"}, "secretRef: goes with repository"),
        ({"cluster": "shop", "encrypt": True}, "encrypt: goes with repository"),
        ({"cluster": "shop", "inclusive": False}, "inclusive: false needs restorePoint, time or backup"),
    ],
)
def test_a_declaration_that_makes_no_sense_without_a_repository_is_refused_in_one_line(
    platform: str, recovery: dict[str, Any], told: str
) -> None:
    raw = to_mapping(cluster("new", engine="fdw"))
    raw["spec"]["bootstrap"] = {"recovery": recovery}
    with pytest.raises(BadInput, match=told) as refused:
        from_mapping(raw, platform=platform)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize("platform", ["local", "kubernetes"])
def test_a_cluster_may_still_be_made_from_a_repository_of_its_own_name(platform: str) -> None:
    repository = {"path": "/mnt"} if platform == "local" else {"s3": {"bucket": "safe"}}
    method = "native" if platform == "local" else "pgbackrest"
    raw = to_mapping(cluster("new", engine="fdw"))
    named = {"cluster": "new", "method": method, "repository": repository}
    raw["spec"]["bootstrap"] = {"recovery": named}
    assert from_mapping(raw, platform=platform).spec.bootstrap is not None
