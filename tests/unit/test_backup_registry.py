"""Which of the methods that look at repositories are kept, and remember what they read."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from pgherd.backup import registry
from pgherd.model.spec import BackupSpec
from pgherd.operator.main import MAX_CLUSTERS
from pgherd.platform.kubernetes.platform import KubernetesPlatform
from tests.support.kube_api import kube_api

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
