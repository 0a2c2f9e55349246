"""What tests on Kubernetes look with: it sees what kubectl sees, and files that take long come first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from tests.kubernetes import conftest
from tests.kubernetes.reads import KubectlError, Reader

PODS = {
    "name": "pods",
    "singularName": "pod",
    "kind": "Pod",
    "namespaced": True,
    "shortNames": ["po"],
}
SETS = {"name": "statefulsets", "kind": "StatefulSet", "namespaced": True, "shortNames": ["sts"]}
NODES = {"name": "nodes", "kind": "Node", "namespaced": False}
CONTENT: dict[str, Any] = {
    "/apis": {
        "groups": [
            {"preferredVersion": {"groupVersion": "apps/v1"}},
            {"preferredVersion": {"groupVersion": "metrics/v1"}},
            {"preferredVersion": {"groupVersion": "away/v1"}},
        ]
    },
    "/api/v1": {"resources": [PODS, {**PODS, "name": "pods/log"}, NODES]},
    "/apis/apps/v1": {"resources": [SETS]},
    "/apis/metrics/v1": {"resources": [PODS]},
    "/api/v1/namespaces/prod/pods/one": {"kind": "Pod", "metadata": {"name": "one"}},
    "/api/v1/nodes/node1": {"kind": "Node"},
    "/apis/apps/v1/namespaces/prod/statefulsets": {
        "kind": "StatefulSetList",
        "apiVersion": "apps/v1",
        "items": [{"metadata": {"name": "db"}}],
    },
}


class Server:
    """Answers, and knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.breaks = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(str(request.url.copy_with(scheme="", host=None)))
        if self.breaks:
            self.breaks -= 1
            raise httpx2.RemoteProtocolError("the connection ended")
        path = request.url.path
        if path in CONTENT:
            return httpx2.Response(200, json=CONTENT[path])
        if path.startswith("/apis/away"):
            return httpx2.Response(503, text="nobody is here")
        if "/namespaces/" in path:
            return httpx2.Response(404, json={"kind": "Status", "message": "not found"})
        return httpx2.Response(404, text="404 page not found")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def reader(server: Server) -> Reader:
    return Reader(httpx2.Client(base_url="https://api", transport=httpx2.MockTransport(server)))


@pytest.mark.parametrize("word", ["pod", "pods", "po"])
def test_a_kind_is_found_by_every_word_that_kubectl_takes_and_the_core_comes_first(
    reader: Reader, word: str
) -> None:
    found = reader.get("prod", word, "one")
    assert found is not None
    assert found["metadata"]["name"] == "one"


def test_a_kind_of_no_namespace_is_found(reader: Reader) -> None:
    assert reader.get("prod", "node", "node1") == {"kind": "Node"}


def test_what_is_listed_says_what_it_is_and_is_asked_for_by_its_labels(
    reader: Reader, server: Server
) -> None:
    [found] = reader.list("prod", "sts", "a=b,c in (d,e)")
    assert (found["kind"], found["apiVersion"]) == ("StatefulSet", "apps/v1")
    assert httpx2.URL(server.asked[-1]).params["labelSelector"] == "a=b,c in (d,e)"


def test_no_object_and_no_such_kind_are_not_the_same(reader: Reader) -> None:
    assert reader.get("prod", "pod", "two") is None
    with pytest.raises(KubectlError, match="resource type 'pgc'"):
        reader.get("prod", "pgc", "shop")


def test_a_path_that_the_server_has_no_more_is_an_error(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reader.get("prod", "pod", "one")
    monkeypatch.setattr("tests.kubernetes.reads._is_status", lambda answer: False)
    with pytest.raises(KubectlError, match="404"):
        reader.get("prod", "pod", "two")


def test_a_kept_connection_that_ended_is_made_anew_once(reader: Reader, server: Server) -> None:
    assert reader.get("prod", "pod", "one")
    server.breaks = 1
    assert reader.get("prod", "pod", "one")
    server.breaks = 2
    with pytest.raises(KubectlError, match="the connection ended"):
        reader.get("prod", "pod", "one")


def test_files_that_take_long_come_first_and_tests_of_a_file_stay_in_their_order() -> None:
    folder = Path(conftest.__file__).parent
    names = [
        "test_images.py::a",
        "test_life.py::z",
        "test_life.py::a",
        "test_backups.py::b",
        "test_aside.py::a",
    ]
    items = [SimpleNamespace(path=folder / name.partition("::")[0], name=name) for name in names]
    found = cast("list[pytest.Item]", items)
    conftest.pytest_collection_modifyitems(cast("Any", SimpleNamespace()), found)
    assert [item.name for item in items] == names, "one after the other they stay as they are"
    conftest.pytest_collection_modifyitems(cast("Any", SimpleNamespace(workerinput={})), found)
    assert [item.name for item in items] == [
        "test_backups.py::b", "test_life.py::z", "test_life.py::a", "test_aside.py::a", "test_images.py::a",
    ]  # fmt: skip


def test_every_file_that_is_said_to_take_long_is_there() -> None:
    folder = Path(conftest.__file__).parent
    assert all((folder / name).is_file() for name in conftest.LONGEST)
