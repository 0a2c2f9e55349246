"""What ``pgbackrest verify`` says, and what is made of it: it ends with 0 whatever it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgherd.backup import pgbackrest_verify as verify
from pgherd.backup.base import Verified
from pgherd.backup.pgbackrest import PgBackRest
from pgherd.backup.pins import EXPIRING
from pgherd.errors import Cancelled, PgherdError, Unavailable

FULL, DIFF = "20261122-172754F", "20261122-172754F_20261122-172809D"
LABELS, START = [FULL, DIFF], "0/4000028"
WAL = "15-1/0000000100000000"
REMOVED = "retention has removed them meanwhile, or is about to"


def report(*lines: str, status: str = "error", full: str = "valid", diff: str = "valid") -> str:
    """As 2.45 and 2.55.1 write it."""
    told = (
        "stanza: x",
        f"status: {status}",
        "  archiveId: 15-1, total WAL checked: 4, total valid WAL: 4",
        "    missing: 0, checksum invalid: 0, size invalid: 0, other: 0",
        f"  backup: {FULL}, status: {full}, total files checked: 964, total valid files: 964",
        "    missing: 0, checksum invalid: 0, size invalid: 0, other: 0",
        f"  backup: {DIFF}, status: {diff}, total files checked: 967, total valid files: 967",
        "    missing: 0, checksum invalid: 0, size invalid: 0, other: 0",
    )
    logged = ["P00   INFO: stanza: x", *(f"            {line}" for line in told[1:])]
    begun = f"P00   INFO: verify command begin 2.45: --set={DIFF} --stanza=x --verbose"
    return "\n".join(
        [begun, *lines, *logged, *told, "P00   INFO: verify command end: completed successfully"]
    )


def test_copies_that_are_sound_are_verified() -> None:
    assert verify.read(report(status="ok"), LABELS, START) == Verified([])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            f"P01   INFO: invalid checksum '{DIFF}/pg_data/base/5/3455.zst'",
            f"{DIFF}/pg_data/base/5/3455.zst has another checksum than when it was made",
        ),
        (f"P02   INFO: file missing '{FULL}/bundle/1'", f"{FULL}/bundle/1 is missing"),
        (
            f"P01   INFO: invalid size '{DIFF}/bundle/2'",
            f"{DIFF}/bundle/2 has another size than when it was made",
        ),
        (
            f"P02   INFO: invalid result {WAL}/000000010000000000000004-2a35.zst: [29] raised from local-2 protocol: "
            "zst error: [-20] Data corruption detected\n            [FormatError] on retry after 0ms",
            f"{WAL}/000000010000000000000004-2a35.zst can't be read ([29] raised from local-2 protocol: zst error: "
            "[-20] Data corruption detected)",
        ),
    ],
)
def test_a_damaged_file_of_a_copy_or_of_its_log_is_named_though_verify_ends_well(
    line: str, told: str
) -> None:
    assert verify.read(report(line), LABELS, START).problems == [told]


def test_a_copy_that_has_lost_its_manifest_is_damaged_though_verify_calls_the_stanza_sound() -> None:
    found = verify.read(report(status="ok", diff="manifest missing"), LABELS, START)
    assert found.problems == [f"{DIFF}/backup.manifest can't be read"]


def test_a_copy_that_is_called_invalid_with_the_one_that_it_builds_on_adds_no_line() -> None:
    line = f"P01   INFO: file missing '{FULL}/bundle/1'"
    found = verify.read(report(line, full="invalid", diff="invalid"), LABELS, START)
    assert found.problems == [f"{FULL}/bundle/1 is missing"]
    found = verify.read(report(full="invalid", diff="invalid"), LABELS, START)
    assert found.problems == [f"{FULL} is invalid", f"{DIFF} is invalid"], "nobody says why"


def test_what_older_versions_say_of_other_copies_and_of_an_older_log_is_passed_over() -> None:
    """They verify the whole stanza, whatever ``--set`` says."""
    others = (
        "P01   INFO: invalid checksum '20260101-000000F/bundle/1'",
        f"P01   INFO: invalid checksum '{WAL}/000000010000000000000003-1910.zst'",
        f"P01   WARN: file missing '{WAL}/000000010000000000000005-1910.zst'",
    )
    assert verify.read(report(*others), LABELS, START) == Verified([])


def test_many_damaged_files_are_counted_and_the_first_ones_named() -> None:
    lines = [f"P01   INFO: file missing '{DIFF}/bundle/{number}'" for number in range(12)]
    found = verify.read(report(*lines), LABELS, START)
    assert len(found.problems) == verify.NAMED + 1
    assert found.problems[-1] == f"and {12 - verify.NAMED} more"


def test_a_stanza_that_has_lost_what_lists_its_copies_is_damaged() -> None:
    said = "stanza: x\nstatus: error\n  No usable backup.info file\n"
    assert verify.read(said, LABELS, START).problems == ["No usable backup.info file"]


def test_copies_of_which_nothing_is_said_were_not_verified() -> None:
    """So was an answer of which only the end is known, or one of a version that nobody has seen yet."""
    other = report(status="ok").replace(DIFF, "20270101-000000F")
    for said in ("", "stanza: x\nstatus: ok\n", other):
        found = verify.read(said, LABELS, START)
        assert (found.problems, found.why) == ((), f"it said nothing of {DIFF}")


def test_a_store_that_does_not_answer_is_no_damage() -> None:
    line = f"P01   INFO: invalid result {DIFF}/bundle/1: [49] raised from local-1: [HostConnectError] timeout"
    found = verify.read(report(line), LABELS, START)
    assert (found.problems, "HostConnectError" in found.why) == ((), True)


class Pgbackrest:
    """A method whose program says what is given, or fails."""

    def __init__(self, said: Any) -> None:
        self.said, self.there = said, ["b1", "b2"]
        self.to_go: list[str] = []
        self.then: Callable[[], None] = lambda: None
        """what happens once somebody has looked at the repository"""
        self.commands: list[list[str]] = []
        self.ended: list[tuple[int, str]] = []
        self.labels = dict(zip(self.there, LABELS, strict=True))
        runner: Any = SimpleNamespace(
            of=lambda group: None,
            run=self._run,
            prepare=lambda settings: None,
            end_strays=lambda group, argument: self.ended.append((group, argument)),
            lock=lambda group: Path(f"/tmp/lock-{group}"),
        )
        place: Any = SimpleNamespace(settings=lambda: None, is_current=lambda: True)
        outer = self

        class Method(PgBackRest):
            @property
            def repository(self) -> Any:
                return SimpleNamespace(backups=outer._backups, store=SimpleNamespace(read=outer._expiring))

            def _copy_of(self, backup: str, group: int) -> Any:
                return SimpleNamespace(system="7", label=outer.labels[backup], start=START)

        self.method = Method(place, runner)

    def _run(self, arguments: list[str], machine: Any, *, watch: Callable[[str], None], **how: Any) -> None:
        self.commands.append(arguments)
        if isinstance(self.said, Exception):
            raise self.said
        watch(self.said)

    def _backups(self) -> list[Any]:
        found = [SimpleNamespace(id=each) for each in self.there]
        self.then()
        return found

    def _expiring(self, name: str) -> bytes | None:
        assert name == EXPIRING
        found = json.dumps({"backups": self.to_go}).encode() if self.to_go else None
        self.then()
        return found

    def verified(self) -> Verified | None:
        return self.method.verify(["b1", "b2"], 1, lambda: False)


def test_pgbackrest_verifies_the_set_that_is_restored_and_ends_what_a_killed_one_left() -> None:
    bench = Pgbackrest(report(status="ok"))
    assert bench.verified() == Verified([])
    [command] = bench.commands
    assert command[-1] == "verify"
    assert {f"--set={DIFF}", "--stanza=segment-1-7", "--output=text", "--verbose"} <= set(command)
    [(group, mark)] = bench.ended
    assert (group, mark in command) == (1, True)


def test_what_a_killed_drill_left_verifying_is_ended_when_it_is_swept_up() -> None:
    bench = Pgbackrest(report(status="ok"))
    bench.verified()
    bench.method.systems = lambda: [(1, "7"), (2, "8")]  # type: ignore[method-assign]
    bench.method.end_verifying()
    first, *rest = bench.ended
    assert rest == [first, (2, first[1].replace("lock-1", "lock-2"))]


def test_copies_that_retention_removed_meanwhile_are_not_called_damaged() -> None:
    bench = Pgbackrest(report(f"P01   INFO: file missing '{FULL}/bundle/1'"))
    found = bench.verified()
    assert found is not None
    assert found.problems == [f"{FULL}/bundle/1 is missing"]
    bench.there.remove("b1")
    assert bench.verified() == Verified(why=REMOVED)


def test_copies_that_retention_is_about_to_remove_are_not_called_damaged() -> None:
    """Their records go last."""
    bench = Pgbackrest(report(f"P01   INFO: file missing '{FULL}/bundle/1'"))
    bench.to_go = ["b0", "b1"]
    assert bench.verified() == Verified(why=REMOVED)
    bench.to_go = ["b0"]
    found = bench.verified()
    assert found is not None
    assert found.problems == [f"{FULL}/bundle/1 is missing"], "retention is about others"


def test_copies_that_are_gone_before_anybody_asks_whether_they_are_to_go_are_not_called_damaged() -> None:
    """Retention says no more what it was about to remove once it is gone."""
    bench = Pgbackrest(report(f"P01   INFO: file missing '{FULL}/bundle/1'"))

    def goes() -> None:
        bench.there, bench.to_go = ["b2"], []

    bench.to_go = ["b1"]
    bench.then = goes
    assert bench.verified() == Verified(why=REMOVED)


def test_a_verify_that_can_not_be_run_is_no_finding_and_says_why() -> None:
    old = PgherdError("option 'output' is not valid for command 'verify'")
    assert Pgbackrest(old).verified() == Verified(why=str(old))
    for error in (Unavailable("no member of shop runs"), Cancelled("stopped")):
        with pytest.raises(type(error)):
            Pgbackrest(error).verified()
