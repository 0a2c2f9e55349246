"""Which of the methods that look at repositories are kept, and remember what they read."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pgherd.backup import registry
from pgherd.model.spec import BackupSpec
from pgherd.operator.main import MAX_CLUSTERS
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from pgherd.platform.machine import Machine, Machines
from tests.support.kube_api import kube_api
from tests.unit.test_kubernetes_objects import cluster

S3 = {"method": "pgbackrest", "repository": {"s3": {"bucket": "safe"}}}


@pytest.fixture
def platform() -> Iterator[KubernetesPlatform]:
    with kube_api() as (_, api):
        yield KubernetesPlatform(api, "prod")


def opened(platform: KubernetesPlatform, cluster: str, **declared: Any) -> Any:
    spec = BackupSpec.model_validate({**S3, **declared})
    return registry.open_method(platform, spec, cluster, platform.backup_folder(cluster), own=True)


def test_each_of_many_clusters_keeps_what_it_remembers(platform: KubernetesPlatform) -> None:
    names = [f"shop-{number}" for number in range(MAX_CLUSTERS)]
    first = [opened(platform, name) for name in names]
    assert [opened(platform, name) for name in names] == first


def test_what_is_not_declared_any_more_is_forgotten(platform: KubernetesPlatform) -> None:
    gone = weakref.ref(opened(platform, "shop"))
    changed = opened(platform, "shop", compress="lz4")
    gc.collect()
    assert gone() is None
    assert opened(platform, "shop", compress="lz4") is changed


def test_a_source_to_restore_from_is_none_of_the_clusters_own_repository(
    platform: KubernetesPlatform,
) -> None:
    own = opened(platform, "shop")
    spec = BackupSpec.model_validate(S3)
    assert registry.open_method(platform, spec, "shop", platform.backup_folder("shop")) is not own


def test_keys_that_were_changed_are_not_brought_to_members_by_who_has_the_old_ones(
    platform: KubernetesPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup is made to its end with the keys that it began with; the new ones may be wrong."""
    stamp, brought = ["1"], list[str]()
    keys = {"access-key-id": "AKIA", "secret-access-key": "right"}
    monkeypatch.setattr(platform, "secret_stamp", lambda reference: stamp[0])
    monkeypatch.setattr(platform, "secret", lambda reference: dict(keys))
    monkeypatch.setattr(platform, "machines", lambda name: Members(brought))
    declared = cluster(backup={**S3, "secretRef": "keys"})
    began_with = registry.make_method(platform, declared)
    began_with.equip()
    assert brought == ["right"]
    stamp[0], keys["secret-access-key"] = "2", "wrong"
    began_with.equip()
    assert brought == ["right"]
    registry.make_method(platform, declared).equip()  # once the repository was found to take them
    assert brought == ["right", "wrong"]


class Members(Machines):
    """Members that get a configuration."""

    folder, processes = Path("/etc/pgherd-backup"), 1

    def __init__(self, brought: list[str]) -> None:
        self._brought = brought

    def equip(self, files: Mapping[str, str]) -> None:
        [line] = [each for each in files["pgbackrest.conf"].splitlines() if "s3-key-secret" in each]
        self._brought.append(line.partition("=")[2])

    def at(self, host: str) -> Machine:
        raise AssertionError("nothing is run here")

    def of(self, group: int | None) -> Machine:
        raise AssertionError("nothing is run here")

    def end_strays(self, group: int, argument: str) -> None:
        raise AssertionError("nothing is run here")

    def holder(self, volume: object) -> Machine:
        raise AssertionError("it is in a bucket")
