"""Where the backups of a cluster are that is gone: what a file may say, and what is wrong with one that says else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.backup import planning
from pgherd.errors import BadInput
from pgherd.supervisor.client import Client

CLUSTER = "{apiVersion: pgherd.io/v1alpha1, kind: PostgresCluster, metadata: {name: shop}, spec: {}}"


def test_a_file_says_what_spec_backup_said(tmp_path: Path) -> None:
    file = tmp_path / "gone.yaml"
    file.write_text("{method: pgbackrest, repository: {path: /mnt/backups}, compress: lz4}")
    found = planning.repository(str(file))
    assert (found.method, found.repository.path, found.compress) == ("pgbackrest", "/mnt/backups", "lz4")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{method: pgbackrest}", ["repository: is required"]),
        ("{repository: {path: rel}}", ["repository.path: must be an absolute path"]),
        ("hello", ["must be a mapping, got 'hello'"]),
        (CLUSTER, ["is a whole PostgresCluster: it is to hold only what spec.backup says"]),
        (
            "{repository: {path: /mnt}, compres: zst, retention: {full: 0}}",
            ["retention.full: must be >= 1, got 0", "compres: unknown field; did you mean compress?"],
        ),
    ],
)
def test_what_is_wrong_with_such_a_file_is_named_a_line_each(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    file = tmp_path / "gone.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        planning.repository(str(file))
    assert len(refused.value.problems) == len(told)
    for problem, expected in zip(refused.value.problems, told, strict=True):
        assert problem.startswith(f"--repository {file}: {expected}")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-21"])
def test_a_time_that_is_none_in_utc_is_refused_like_one_without_a_zone(time: str) -> None:
    raw = {"cluster": "shop", "repository": {"path": "/mnt"}, "time": time}
    with pytest.raises(BadInput, match="--time: must be a time with its zone such as 2026-11-21T09:15:00Z"):
        planning.wanted(raw)


def test_only_commands_that_take_a_repository_ask_for_one(tmp_path: Path) -> None:
    client = Client(tmp_path / "home")
    with pytest.raises(BadInput, match="if it is gone, name its repository with --repository"):
        client.restore_points("nobody")
    for ask in (client.repository, client.drill):
        with pytest.raises(BadInput, match="no cluster 'nobody'") as refused:
            ask("nobody")
        assert "--repository" not in str(refused.value)
