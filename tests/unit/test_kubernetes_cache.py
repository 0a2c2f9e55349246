"""What the operator has at hand follows the API server, also when a stream falls silent without an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from pgherd.platform.kubernetes import api, cache, names
from pgherd.platform.kubernetes.api import CLUSTER, POD, Api
from pgherd.platform.kubernetes.cache import Watched
from tests.support.kube_api import Kube, Object, kube_api
from tests.support.waiting import until

PODS = "/api/v1/namespaces/prod/pods"
CLUSTERS = "/apis/pgherd.io/v1alpha1/namespaces/prod/postgresclusters"


def a_pod(**labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {**names.labels("shop", 1), **labels}}}


def is_none(found: Callable[[], object]) -> bool:
    return found() is None


@pytest.fixture
def server() -> Iterator[tuple[Kube, Api]]:
    with kube_api() as made:
        yield made


@contextmanager
def followed(client: Api) -> Iterator[Watched]:
    """Pods alone, followed in the background."""
    watched = Watched(client, "prod")
    thread = threading.Thread(target=watched._watch, args=(POD,), daemon=True)
    thread.start()
    assert watched._filled[POD].wait(10)
    try:
        yield watched
    finally:
        watched.close()
        thread.join(10)


def test_a_stream_that_fell_silent_is_given_up(
    server: tuple[Kube, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WATCH_SECONDS", 1)
    monkeypatch.setattr(api, "SILENT_SECONDS", 0.5)
    kube, client = server
    with followed(client) as watched:
        kube.put(f"{PODS}/a", a_pod())
        until(lambda: watched.get(POD, "prod", "a"))
        kube.deaf.set()
        kube.put(f"{PODS}/b", a_pod())
        until(lambda: watched.get(POD, "prod", "b"))
        assert kube.deaf.is_set()


def test_everything_is_asked_for_anew_now_and_then(
    server: tuple[Kube, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WATCH_SECONDS", 1)
    monkeypatch.setattr(cache, "RELIST_SECONDS", 1.5)
    kube, client = server
    kube.put(f"{PODS}/a", a_pod())
    with followed(client) as watched:
        until(lambda: watched.get(POD, "prod", "a"))
        del kube.objects[f"{PODS}/a"]  # of which no stream told
        kube.version += 1
        until(lambda: watched.get(POD, "prod", "a") is None)


def test_an_answer_that_comes_after_the_deletion_brings_nothing_back(server: tuple[Kube, Api]) -> None:
    kube, client = server
    old = dict(kube.put(f"{PODS}/a", a_pod()))
    watched = Watched(client, "prod")
    watched._take(POD, "ADDED", dict(old))
    kube.remove(f"{PODS}/a")
    watched._take(POD, *kube.log[-1][::2])
    watched.put(POD, dict(old))
    assert watched.get(POD, "prod", "a") is None
    assert watched.of_cluster(POD, "prod", "shop") == []
    watched.put(POD, kube.put(f"{PODS}/a", a_pod()))
    assert watched.get(POD, "prod", "a")


def test_a_list_does_not_take_away_what_was_made_after_it(server: tuple[Kube, Api]) -> None:
    kube, client = server
    watched = Watched(client, "prod")
    before = kube.version
    watched.put(POD, kube.put(f"{PODS}/a", a_pod()))
    watched._fill(POD, [], before, first=True)
    assert watched.get(POD, "prod", "a")
    watched._fill(POD, [], kube.version, first=True)
    assert watched.get(POD, "prod", "a") is None


def test_an_object_that_lost_its_label_is_no_longer_the_clusters(server: tuple[Kube, Api]) -> None:
    kube, client = server
    watched = Watched(client, "prod")
    watched.put(POD, kube.put(f"{PODS}/a", a_pod()))
    before = watched.revision("prod", "shop")
    bare = a_pod()
    del bare["metadata"]["labels"][names.CLUSTER_LABEL]
    watched.put(POD, kube.put(f"{PODS}/a", bare))
    assert watched.of_cluster(POD, "prod", "shop") == []
    assert watched.revision("prod", "shop") != before


def test_only_the_very_object_is_deleted(server: tuple[Kube, Api]) -> None:
    kube, client = server
    seen = dict(kube.put(f"{PODS}/a", a_pod()))
    kube.remove(f"{PODS}/a")
    kube.put(f"{PODS}/a", a_pod())
    client.delete_this(POD, "prod", seen, grace=0)
    assert f"{PODS}/a" in kube.objects
    client.delete_this(POD, "prod", kube.objects[f"{PODS}/a"], grace=0)
    assert f"{PODS}/a" not in kube.objects
    client.delete_this(POD, "prod", seen)


def test_what_a_pod_was_when_it_went_is_known_until_it_comes_back(server: tuple[Kube, Api]) -> None:
    kube, client = server
    ended = {**a_pod(), "status": {"phase": "Failed"}}
    with followed(client) as watched:
        for path, metadata in (("a", {"deletionTimestamp": "now"}), ("b", {})):
            kube.put(f"{PODS}/{path}", {**ended, "metadata": {**ended["metadata"], **metadata}})
            found = partial(watched.get, POD, "prod", path)
            until(found)
            kube.remove(f"{PODS}/{path}")
            until(partial(is_none, found))
        until(lambda: watched.last_of("prod", "shop"))
        assert [each["metadata"]["name"] for each in watched.last_of("prod", "shop")] == ["a"]
        assert watched.last_of("prod", "other") == []
        kube.put(f"{PODS}/a", a_pod())
        until(lambda: not watched.last_of("prod", "shop"))


def test_what_a_pod_was_when_it_went_outlives_the_next_list(
    server: tuple[Kube, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WATCH_SECONDS", 1)
    monkeypatch.setattr(cache, "RELIST_SECONDS", 0.5)
    kube, client = server
    with followed(client) as watched:
        going = a_pod()
        kube.put(f"{PODS}/a", {**going, "metadata": {**going["metadata"], "deletionTimestamp": "now"}})
        until(lambda: watched.get(POD, "prod", "a"))
        kube.remove(f"{PODS}/a")
        until(lambda: watched.last_of("prod", "shop"))
        # A list of which only a stream tells what came and went before it.
        for _ in range(2):
            kube.put(f"{PODS}/mark", a_pod())
            del kube.objects[f"{PODS}/mark"]
            until(lambda: watched.get(POD, "prod", "mark"))
            until(lambda: watched.get(POD, "prod", "mark") is None)
        assert [each["metadata"]["name"] for each in watched.last_of("prod", "shop")] == ["a"]


def gone(watched: Watched, kube: Kube, name: str, cluster: str) -> None:
    """A pod of a cluster was told to end, and went."""
    pod = a_pod()
    pod["metadata"] |= {"deletionTimestamp": "now", "labels": names.labels(cluster, 1)}
    watched.put(POD, dict(kube.put(f"{PODS}/{name}", pod)))
    kube.remove(f"{PODS}/{name}")
    watched._take(POD, *kube.log[-1][::2])


def a_cluster(uid: str) -> Object:
    return {"kind": "PostgresCluster", "metadata": {"uid": uid, "generation": 1}}


def last_of(watched: Watched, cluster: str) -> list[str]:
    return [each["metadata"]["name"] for each in watched.last_of("prod", cluster)]


def test_a_cluster_does_not_get_the_last_words_of_a_former_one_of_its_name(server: tuple[Kube, Api]) -> None:
    kube, client = server
    watched = Watched(client, "prod")
    watched.put(CLUSTER, dict(kube.put(f"{CLUSTERS}/shop", a_cluster("1"))))
    gone(watched, kube, "a", "shop")
    gone(watched, kube, "b", "other")
    assert last_of(watched, "shop") == ["a"]
    kube.remove(f"{CLUSTERS}/shop")
    watched._take(CLUSTER, *kube.log[-1][::2])
    assert (last_of(watched, "shop"), last_of(watched, "other")) == ([], ["b"])
    gone(watched, kube, "c", "shop")
    assert last_of(watched, "shop") == [], "the news of pods may come after that of their cluster"
    watched.put(CLUSTER, dict(kube.put(f"{CLUSTERS}/shop", a_cluster("2"))))
    gone(watched, kube, "d", "shop")
    assert last_of(watched, "shop") == ["d"]


@pytest.mark.parametrize("follower", [[], ["2"]])
def test_a_list_tells_too_that_last_words_are_a_former_clusters(
    server: tuple[Kube, Api], follower: list[str]
) -> None:
    kube, client = server
    watched = Watched(client, "prod")
    watched.put(CLUSTER, dict(kube.put(f"{CLUSTERS}/shop", a_cluster("1"))))
    gone(watched, kube, "a", "shop")
    watched._fill(CLUSTER, [dict(kube.objects[f"{CLUSTERS}/shop"])], kube.version, first=True)
    assert last_of(watched, "shop") == ["a"]
    kube.remove(f"{CLUSTERS}/shop")
    now = [dict(kube.put(f"{CLUSTERS}/shop", a_cluster(uid))) for uid in follower]
    watched._fill(CLUSTER, now, kube.version, first=True)
    assert last_of(watched, "shop") == []


def test_the_end_of_a_pod_that_a_list_showed_anew_is_not_the_end_of_the_new_one(
    server: tuple[Kube, Api],
) -> None:
    kube, client = server
    watched = Watched(client, "prod")
    watched.put(POD, dict(kube.put(f"{PODS}/a", a_pod())))
    kube.remove(f"{PODS}/a")
    end = kube.log[-1][::2]
    watched._fill(POD, [kube.put(f"{PODS}/a", a_pod())], kube.version, first=False)
    watched._take(POD, *end)
    assert watched.get(POD, "prod", "a")
