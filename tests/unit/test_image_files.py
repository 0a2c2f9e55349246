"""What the images are made of agrees with what the package says it needs, and holds nothing of one machine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]
LOCKS = ("patroni.lock", "operator.lock", "build.lock")
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """Package to version, as a lock file has them."""
    return {name.lower().replace("_", "-"): version for name, version in PIN.findall(path.read_text())}


def names(requirements: list[str]) -> set[str]:
    """The packages that some requirements ask for."""
    return {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in requirements}


def without() -> set[str]:
    """The packages that the operator's image leaves out."""
    lines = (FOLDER / "operator.without").read_text().splitlines()
    return names([line for line in lines if line and not line.startswith("#")])


def instructions(dockerfile: str) -> Iterator[str]:
    """A Dockerfile's instructions, each on one line."""
    text = re.sub(r"(?m)^#.*\n", "", (FOLDER / dockerfile).read_text())
    return (line for line in re.sub(r"\\\n", " ", text).splitlines() if line)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_the_versions_of_the_tests(lock: str) -> None:
    tested = pins(ROOT / "requirements.lock")
    found = pins(FOLDER / lock)
    assert found
    different = {name for name in found if name in tested and found[name] != tested[name]}
    assert not different, "run: make lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_has_a_hash(lock: str) -> None:
    text = (FOLDER / lock).read_text()
    entries = re.split(r"\n(?=\S)", text)
    assert all("--hash=sha256:" in entry for entry in entries if PIN.match(entry))


def test_the_operator_has_all_the_package_needs_but_its_own_server() -> None:
    found = set(pins(FOLDER / "operator.lock"))
    missing = names(PROJECT["dependencies"]) - without() - found
    assert not missing, "run: make lock"
    assert not found & without()


def test_members_run_the_patroni_that_one_machine_runs() -> None:
    wanted = next(line for line in PROJECT["dependencies"] if line.startswith("patroni"))
    assert pins(FOLDER / "patroni.lock")["patroni"] == wanted.split("==")[1]


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "operator.Dockerfile"])
def test_every_stage_starts_from_the_base_or_from_another(dockerfile: str) -> None:
    text = list(instructions(dockerfile))
    assert text[0] == "ARG BASE=debian:trixie-slim"
    stages = {"${BASE}"}
    for line in text:
        words = line.split()
        if words[0] == "FROM":
            assert words[1] in stages, line
            stages |= set(words[3:])
    users = [line.split()[1] for line in text if line.startswith("USER")]
    assert users[-1] == "${UID}:${UID}"


def test_what_is_built_without_a_target_has_no_citus() -> None:
    *_, last = instructions("Dockerfile")
    assert last == "FROM postgres"


def test_nothing_of_the_images_names_a_package_index_or_a_directory_of_one_machine() -> None:
    for path in FOLDER.iterdir():
        found = re.search(r"https?://(?![a-z.]*\.example/)|index-url|--proxy|/work/|/home/", path.read_text())
        assert found is None, f"{path}: {found}"
