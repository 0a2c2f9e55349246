"""Which Kubernetes is meant: found as kubectl finds it, refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pgherd.errors import BadInput
from pgherd.remote.api import Api, find_config


def kubeconfig(path: Path, name: str, current: str | None = None, **user: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "current-context": current,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": f"ns-{name}"}}],
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}.example"}}],
        "users": [{"name": name, "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_current_context_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "a", "eu", "eu", token="t")))
    found = Api()
    assert (found.url, found.namespace, found.context) == ("https://eu.example", "ns-eu", "eu")
    assert Api(namespace="prod").namespace == "prod"


def test_several_files_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        tmp_path / "missing",
        kubeconfig(tmp_path / "a", "eu", "eu", token="t"),
        kubeconfig(tmp_path / "b", "us", "us", token="t"),
    ]
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, files)))
    assert find_config(None).cluster.server == "https://eu.example"
    assert find_config("us").cluster.server == "https://us.example"


def test_paths_are_relative_to_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        kubeconfig(tmp_path / "a" / "c", "eu", "eu"),
        kubeconfig(tmp_path / "b" / "c", "us", tokenFile="secret"),
    ]
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, files)))
    user = find_config("us").user
    assert user is not None
    assert user.token_file == str(tmp_path / "b" / "secret")


def test_a_user_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    path.write_text(
        "current-context: a\ncontexts: [{name: a, context: {cluster: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert Api().namespace == "default"


@pytest.mark.parametrize(
    ("text", "context", "says"),
    [
        ("contexts: []", None, "no current context: use --context; the kubeconfig has none"),
        ("contexts: [{name: a, context: {cluster: a}}]", "b", "--context b: not found; there are: a"),
        ("{", None, "can't be used: while parsing"),
        ("[1]", None, "can't be used"),
        ("just text", None, "can't be used"),
        ("contexts: 3", None, "can't be used"),
        (
            "contexts: [{name: a, context: {cluster: gone}}]\ncurrent-context: a\nclusters: []",
            None,
            "can't be used",
        ),
        ("contexts: [{context: {cluster: a}}]\ncurrent-context: a", None, "can't be used"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    text: str, context: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(BadInput) as refused:
        find_config(context)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_certificate_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kubeconfig(tmp_path / "c", "eu", "eu", **{"client-certificate": "a.crt", "client-key": "a.key"})
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(BadInput, match=r"can't be used"):
        Api()
