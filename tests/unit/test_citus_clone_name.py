"""A copy that would speak for its source, or archive, is not promoted, and a segment that takes itself for it does not
recover."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pgherd.engine.citus import clone, clone_name, clone_place
from pgherd.errors import Unavailable
from pgherd.model.topology import Credentials, Endpoint
from pgherd.postgres.connections import Databases

COPY = {3: [Endpoint("10.0.0.1", 5432), Endpoint("10.0.0.2", 5432)]}
WAY_OUT = "waiting for its configuration; if ALTER SYSTEM has set it, RESET it at the source, cancel and expand again"


QUIET = ("-1", clone_name.KEEPING)


@dataclass
class _Session:
    """Of a server that says this to whatever it is asked."""

    rows: list[tuple[Any, ...]]

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def execute(self, query: object, values: object = None) -> _Session:
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(iter(self.rows), None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.rows


@dataclass(frozen=True)
class Servers(Databases):
    """Servers that answer by their hosts; those that are not named are away."""

    says: Mapping[str, Sequence[tuple[Any, ...]]] = field(default_factory=dict)

    def connect(self, group: int, **how: Any) -> Any:
        host = self.addresses()[group][0].host
        if host not in self.says:
            raise Unavailable(f"group {group} can't be reached: no answer")
        return _Session(list(self.says[host]))


def servers(addresses: Mapping[int, Sequence[Endpoint]], says: Mapping[str, Any]) -> Servers:
    return Servers("app", Credentials("s", "r", "o", "p"), lambda: addresses, says=says)


def test_a_copy_of_which_no_member_recovers_may_be_promoted() -> None:
    clone_name.require_quiet(servers(COPY, {"10.0.0.1": [QUIET], "10.0.0.2": [("-1", "(disabled)")]}), 3)


@pytest.mark.parametrize(("first", "second", "named"), [("5s", "-1", "10.0.0.1"), ("-1", "1min", "10.0.0.2")])
def test_a_copy_of_which_any_member_would_recover_for_its_source_is_not_promoted(
    first: str, second: str, named: str
) -> None:
    keeping = clone_name.KEEPING
    asked = servers(COPY, {"10.0.0.1": [(first, keeping)], "10.0.0.2": [(second, keeping)]})
    with pytest.raises(Unavailable) as told:
        clone_name.require_quiet(asked, 3)
    assert str(told.value) == (
        f"segment-3 at {named}:5432 has citus.recover_2pc_interval {second if first == '-1' else first}, not -1, and"
        f" would roll back transactions of the segment that it is a copy of: {WAY_OUT}"
    )


def test_a_copy_of_which_a_member_would_archive_what_may_be_thrown_away_is_not_promoted() -> None:
    asked = servers(COPY, {"10.0.0.1": [QUIET], "10.0.0.2": [("-1", "archive.py push /repo %p %f")]})
    with pytest.raises(Unavailable) as told:
        clone_name.require_quiet(asked, 3)
    assert str(told.value) == (
        "segment-3 at 10.0.0.2:5432 would archive what it writes before it is known to be a segment (archive_command):"
        f" {WAY_OUT}"
    )


def test_what_a_promoted_copy_writes_waits_and_what_it_got_from_its_source_goes(tmp_path: Path) -> None:
    def is_taken() -> bool:
        return subprocess.run(clone_name.KEEPING, shell=True, cwd=tmp_path, check=False).returncode == 0

    assert not is_taken()
    (tmp_path / "standby.signal").touch()
    assert is_taken()


def test_a_copy_of_which_a_member_does_not_answer_is_not_promoted() -> None:
    with pytest.raises(Unavailable, match="group 3 can't be reached"):
        clone_name.require_quiet(servers(COPY, {"10.0.0.1": [QUIET]}), 3)


def test_copies_and_segments_that_do_not_know_themselves_neither_recover_nor_archive() -> None:
    asked = servers({0: [Endpoint("10.0.0.9", 5432)]}, {"10.0.0.9": [(3,), (4,)]})
    off = {"citus.recover_2pc_interval": "-1", "archive_command": "test -f standby.signal"}
    assert clone_name.parameters(asked) == {3: off, 4: off}


def test_a_new_segment_that_takes_itself_for_its_source_is_waited_for() -> None:
    alone = {3: COPY[3][:1]}
    with pytest.raises(
        Unavailable, match="segment-3 takes itself for group 1 until the split's commit reaches it"
    ):
        clone_name.require_own(servers(alone, {"10.0.0.1": [(1,)]}), 3)
    clone_name.require_own(servers(alone, {"10.0.0.1": [(3,)]}), 3)


def test_a_split_asks_the_copy_before_any_writer_has_to_wait() -> None:
    asked = servers(COPY, {"10.0.0.1": [QUIET], "10.0.0.2": [("5s", clone_name.KEEPING)]})
    with pytest.raises(
        Unavailable, match=r"segment-3 at 10\.0\.0\.2:5432 has citus\.recover_2pc_interval 5s"
    ):
        clone._part(asked, operation=7, group=3, source=1, node=5, alone=asked)


def test_the_record_stays_until_the_new_segment_knows_itself() -> None:
    nodes = {0: [Endpoint("10.0.0.9", 5432)], 3: COPY[3][:1]}
    asked = servers(nodes, {"10.0.0.9": [(17, 3, 1)], "10.0.0.1": [(1,)]})
    with pytest.raises(Unavailable, match="segment-3 takes itself for group 1"):
        clone.own_sequences(asked)


def test_the_member_that_follows_the_source_is_the_one_that_is_promoted() -> None:
    says: dict[str, Any] = {"10.0.0.1": [("shop_segment_3_1",)], "10.0.0.2": [("pgherd_clone_3",)]}
    assert clone_place.leader(servers(COPY, says), 3) == COPY[3][1]
    assert clone_place.leader(servers(COPY, {"10.0.0.2": [("pgherd_clone_3",)]}), 3) == COPY[3][1]
    with pytest.raises(Unavailable, match="no member of segment-3 follows its source"):
        clone_place.leader(servers(COPY, {"10.0.0.1": [], "10.0.0.2": [(None,)]}), 3)


@pytest.mark.parametrize(
    ("first", "second", "follows"),
    [(True, True, True), (True, False, False), (False, True, False), (None, True, True), (None, None, None)],
)
def test_a_copy_any_member_of_which_was_promoted_follows_nobody_any_more(
    first: bool | None, second: bool | None, follows: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgherd.engine.citus.clone.time.sleep", lambda seconds: None)
    answers = {"10.0.0.1": first, "10.0.0.2": second}
    says = {host: [(answer,)] for host, answer in answers.items() if answer is not None}
    assert clone._follows(servers(COPY, says), 3) is follows


@pytest.mark.parametrize(
    ("state", "behind", "says", "given_up"),
    [
        ("copying", [], "is catching up", False),
        ("copying", [(5 << 20,)], "is 5 MiB behind", False),
        ("parting", [], "was interrupted: it is made anew", True),
        ("parting", [(0,)], None, False),
    ],
)
def test_a_copy_about_to_part_that_follows_its_source_no_more_is_given_up(
    state: str, behind: list[tuple[int]], says: str | None, given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {0: [Endpoint("10.0.0.9", 5432)], 1: [Endpoint("10.0.0.8", 5432)], 3: COPY[3]}
    # The member that followed the source is away, the other one is a standby of it and answers.
    answers = {"10.0.0.9": [(3, 1, state)], "10.0.0.8": behind, "10.0.0.2": [(True,)]}
    told: list[str] = []
    monkeypatch.setattr(clone, "RETURN_SECONDS", 0.3)
    monkeypatch.setattr(clone, "_was_decided", lambda *of: False)
    monkeypatch.setattr(clone, "_set", lambda desk, group, to: told.append(to))
    missing = clone.what_is_missing(servers(nodes, answers), 3)
    assert missing == (says and f"segment-3, a copy of segment-1, {says}")
    assert told == (["undone"] if given_up else [])
