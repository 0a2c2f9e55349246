"""Data that are gone stay gone: nothing empty is put in their place and called a running cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engines import engine
from tests.support.home import Home, declaration, temporary_home, wait_for
from tests.support.writers import make_table

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("engine")]
__all__ = ["engine"]


@pytest.fixture
def home(engine: str) -> Iterator[Home]:
    with temporary_home() as home:
        home.up(declaration(segments=1, standbys=0))
        with home.connect() as connection:
            make_table(connection)
        yield home


@pytest.mark.parametrize("group", ["segment-1", "coordinator"])
def test_a_group_whose_data_are_gone_is_not_founded_anew(home: Home, group: str) -> None:
    wait_for(lambda: home.status()["admitted"] == [1], "the status knows who takes part")
    home.run("stop", "shop")
    member = home.path / "shop" / "members" / f"shop-{group}-0"
    shutil.rmtree(member)
    # Even without the record of how the group began.
    (home.path / "shop" / "groups.json").unlink()
    home.run("start", "shop", "--no-wait")
    told = wait_for(lambda: lost(home), "it is said")
    assert told["message"].startswith(f"the data of {group} are gone")
    other = "segment-1" if group == "coordinator" else "coordinator"
    now = wait_for(lambda: serving(home, other), "the other group serves")
    assert now["phase"] == "Degraded"
    assert not (member / "data").exists()


def lost(home: Home) -> dict[str, str] | None:
    conditions = home.status()["conditions"]
    return next((dict(each) for each in conditions if each["type"] == "DataLost"), None)


def serving(home: Home, group: str) -> dict[str, Any] | None:
    now = home.status()
    roles = {(each["name"], member["role"]) for each in now["groups"] for member in each["members"]}
    return now if (group, "primary") in roles else None
