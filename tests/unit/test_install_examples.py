"""Every example is a declaration that this version takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.engine.registry import check_available
from pgherd.model import spec

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def test_there_are_examples_and_each_is_listed() -> None:
    listed = (FOLDER / "README.md").read_text()
    assert EXAMPLES
    assert all(f"({name})" in listed for name in EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid(name: str) -> None:
    cluster = spec.load((FOLDER / name).read_text(), source=name, platform="kubernetes")
    check_available(cluster)


def test_no_two_examples_are_of_the_same_name() -> None:
    clusters = [
        spec.load((FOLDER / name).read_text(), source=name, platform="kubernetes") for name in EXAMPLES
    ]
    assert len({cluster.metadata.name for cluster in clusters}) == len(EXAMPLES)
