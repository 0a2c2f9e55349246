"""A server's own parser is the judge of what we say of pg_hba lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.model.spec_hba import hba_problems
from pgherd.reconcile import access
from tests.support.hba import RIGHT, WRONG
from tests.support.servers import Herd, running_herd

pytestmark = pytest.mark.local

BUILT_OTHERWISE = "not supported by this build"


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    with running_herd(tmp_path_factory.mktemp("herd"), segments=0) as herd:
        # Without any library of tokens no line with oauth would do.
        server = herd.servers[0]
        server.stop()
        server.settings = {**server.settings, "oauth_validator_libraries": "any"}
        server.start()
        yield herd


def test_a_server_reads_just_the_lines_that_are_accepted(herd: Herd) -> None:
    lines = [*RIGHT, *(line for line, _ in WRONG)]
    refused = dict(zip(lines, _refused(herd, lines), strict=True))
    differently = {
        line: (reason, hba_problems(line))
        for line, reason in refused.items()
        if (reason is not None) != bool(hba_problems(line)) and BUILT_OTHERWISE not in (reason or "")
    }
    assert differently == {}


def test_a_line_that_only_a_server_can_find_wrong_is_told_with_its_number(herd: Herd) -> None:
    text = "# ours\nhost all app all scram-sha-256\nhost all /^( all scram-sha-256\n"
    assert not hba_problems(text)
    file = Path(herd.servers[0].data) / "pg_hba.conf"
    before = file.read_text()
    servers = [(0, each) for each in herd.databases.addresses()[0]]
    assert access.unread(herd.databases, text, servers) == []
    try:
        file.write_text(f"{before}\nhostssl all app 10.0.0.0/8 scram-sha-256\n")
        assert access.unread(herd.databases, text, servers) == [], "it only can't match"
        file.write_text(f"local all all trust\n{before}\n{text}")
        [told] = access.unread(herd.databases, text, servers) or []
    finally:
        file.write_text(before)
    assert told.startswith(
        "spec.postgres.hostBasedAuthentication: line 3 (host all /^( all scram-sha-256) can't be"
    )
    assert "invalid regular expression" in told


def _refused(herd: Herd, lines: list[str]) -> list[str | None]:
    """Why the server would not take each of these, None where it would."""
    starts, text = [], ""
    for line in lines:
        starts.append(text.count("\n") + 1)
        text += f"{line}\n"
    file = Path(herd.servers[0].data) / "pg_hba.conf"
    before = file.read_text()
    with herd.superuser() as connection:
        file.write_text(text)
        # A line without a type was not understood, even where no error is said. One that only can't match has both.
        rules = connection.execute(
            "SELECT line_number, coalesce(error, 'no reason given') FROM pg_hba_file_rules WHERE type IS NULL"
        ).fetchall()
        file.write_text(before)
    reasons = {int(number): str(error) for number, error in rules}
    return [reasons.get(start) for start in starts]
