"""Which installations of Citus are accepted, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.engine.citus import installation
from pgherd.engine.citus.versions import Versions, problem

CONTROL = (
    "comment = 'Citus distributed database'\ndefault_version = '{}'\nmodule_pathname = '$libdir/citus'\n"
)


def folders(path: Path, version: str | None, *, library: bool = True) -> dict[str, Path]:
    (path / "share" / "extension").mkdir(parents=True)
    (path / "lib").mkdir()
    if version is not None:
        (path / "share" / "extension" / "citus.control").write_text(CONTROL.format(version))
    if library:
        (path / "lib" / "citus.so").touch()
    return {"sharedir": path / "share", "pkglibdir": path / "lib"}


@pytest.mark.parametrize(
    ("version", "postgres"), [("13.2-1", 15), ("13.0-1", 17), ("14.0-1", 16), ("14.0-1", 18), ("15.0-1", 19)]
)
def test_pairs_that_citus_supports_are_accepted(tmp_path: Path, version: str, postgres: int) -> None:
    assert installation.problems(postgres, folders(tmp_path, version).get) == []


@pytest.mark.parametrize(
    ("version", "postgres", "told"),
    [
        ("13.2-1", 18, "Citus 13.2 is for PostgreSQL 15 to 17, this is 18"),
        ("14.0-1", 15, "Citus 14.0 is for PostgreSQL 16 to 18, this is 15"),
        ("12.1-1", 16, "Citus 12.1 is older than 13.0"),
        ("fresh", 18, "the version of Citus here can't be read"),
        (None, 18, "citus is not in the PostgreSQL 18 here"),
    ],
)
def test_others_are_named_with_the_way_out(
    tmp_path: Path, version: str | None, postgres: int, told: str
) -> None:
    [problem] = installation.problems(postgres, folders(tmp_path, version).get)
    assert problem.startswith("spec.engine: ")
    assert told in problem
    assert "--bin-dir" in problem


def test_half_an_installation_is_none(tmp_path: Path) -> None:
    [problem] = installation.problems(18, folders(tmp_path, "14.0-1", library=False).get)
    assert "citus.so" in problem


def test_without_pg_config_nobody_can_tell() -> None:
    [problem] = installation.problems(18, lambda name: None)
    assert "no pg_config" in problem


@pytest.mark.parametrize(
    ("installed", "in_database", "told"),
    [
        ("14.0-1", "14.0-1", None),
        ("14.0-1", None, None),  # it is being made ready
        (
            "14.0-1",
            "13.2-1",
            "has Citus 13.2-1 in the database, but 14.0-1 installed: run ALTER EXTENSION citus UPDATE",
        ),
        (
            "13.2-1",
            "14.0-1",
            "has Citus 14.0-1 in the database, but 13.2-1 installed: install Citus 14.0-1 there",
        ),
        (None, "14.0-1", "has no Citus installed any more: install Citus 14.0-1"),
        ("13.2-1", "13.2-1", "runs Citus 13.2-1, the coordinator 14.0-1: bring all nodes to one version"),
    ],
)
def test_a_node_whose_citus_differs_is_named_with_the_way_out(
    installed: str | None, in_database: str | None, told: str | None
) -> None:
    found = problem(2, Versions(installed, in_database), Versions("14.0-1", "14.0-1"))
    assert found is None if told is None else found is not None and found.startswith(f"segment-2 {told}")
