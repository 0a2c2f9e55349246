"""What a drill checks, and what it says of checks that were not made: read off what the programs say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgherd.backup import pages, records, restore
from pgherd.backup.base import BackupMethod, NoBackups, Verified
from pgherd.backup.pgbackrest import PgBackRest
from pgherd.backup.pgbackrest_program import Runner
from pgherd.backup.restore import Restore, Site
from pgherd.engine.citus.engine import CitusEngine
from pgherd.engine.fdw.engine import FdwEngine
from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.machine import LocalMachine
from pgherd.platform.local.platform import LocalPlatform
from pgherd.platform.local.workshop import LocalWorkshop
from pgherd.reconcile import drills as module
from pgherd.reconcile import steering
from pgherd.reconcile.drill_checks import of_pages
from pgherd.reconcile.drill_words import NO_TABLES, unchecked
from pgherd.reconcile.drills import Course, Drill, Ground, TimeIsUp, Wish, verdict
from pgherd.supervisor import drill
from tests.support.backups import point
from tests.support.platform import cluster
from tests.unit.test_pgbackrest_verify import DIFF, START, report

# what pg_amcheck is told


def test_pg_amcheck_installs_its_extension_where_it_is_whatever_the_engine() -> None:
    """Citus lets nobody else than the coordinator create one, unless it is told to stay out of it."""
    nobody: Any = None
    assert module.amcheck_options(FdwEngine(nobody), 16) == {}
    assert module.amcheck_options(FdwEngine(nobody), 17) == {"PGOPTIONS": "-c event_triggers=off"}
    alone = "-c citus.enable_ddl_propagation=off"
    assert module.amcheck_options(CitusEngine(nobody), 16) == {"PGOPTIONS": alone}
    assert module.amcheck_options(CitusEngine(nobody), 17) == {"PGOPTIONS": f"-c event_triggers=off {alone}"}


# what pg_checksums says

DATA = "/home/shop-drill/from-backup"
SOUND = "Checksum operation completed\nFiles scanned:   967\nBlocks scanned:  2912\nBad checksums:  0\n"


def test_pages_that_are_sound_are_counted() -> None:
    assert pages.read(SOUND, "", DATA) == pages.Pages(True, blocks=2912)


def test_damaged_pages_are_named_with_their_file() -> None:
    lines = [
        f'pg_checksums: error: checksum verification failed in file "{DATA}/base/5/16384", block {block}: calculated '
        "checksum 7A but block contains 7B\n"
        for block in range(7)
    ]
    said = "".join(lines) + SOUND.replace("Bad checksums:  0", "Bad checksums:  7")
    found = pages.read(said, "pg_checksums: ...", DATA)
    assert (found.done, found.blocks) == (True, 2912)
    assert found.problems[0] == "the page checksum of base/5/16384, page 0, is wrong"
    assert (len(found.problems), found.problems[-1]) == (pages.NAMED + 1, "and 2 more")


def test_a_file_that_a_disk_does_not_give_is_damage() -> None:
    said = f'pg_checksums: error: could not read block 3 in file "{DATA}/base/5/1259": read 0 of 8192\n'
    found = pages.read(said, said, DATA)
    assert found.problems == ('could not read block 3 in file "base/5/1259": read 0 of 8192',)


@pytest.mark.parametrize(
    ("said", "complaint", "why"),
    [
        ("pg_checksums: error: data checksums are not enabled in cluster\n", "pg_checksums: ...", pages.OFF),
        (
            "pg_checksums: error: cluster must be shut down\n",
            "cluster must be shut down",
            "cluster must be shut down",
        ),
        ("", "", "pg_checksums did not say what it found"),
    ],
)
def test_checksums_that_were_not_verified_are_not_called_sound(said: str, complaint: str, why: str) -> None:
    assert pages.read(said, complaint, DATA) == pages.Pages(False, why)


def test_what_was_found_in_pages_is_read_as_it_was_written() -> None:
    for found in (pages.Pages(True, blocks=3, problems=("a", "b")), pages.Pages(False, pages.OFF)):
        assert pages.pages_from(found.as_json()) == found
    for nothing in (None, {}, {"done": True}):
        assert not pages.pages_from(nothing).done


class Server:
    """One on data whose server was killed, or shut down."""

    def __init__(self, *, shut_down: bool) -> None:
        self.data, self.shut_down = Path(DATA), shut_down
        self.steps: list[str] = []

    def controlled(self) -> Any:
        return SimpleNamespace(shut_down=self.shut_down, enough=dict)

    def start(self, settings: Mapping[str, str]) -> None:
        self.steps.append("start")

    def wait(self, reached: Any, stopping: Any) -> None:
        self.steps.append("wait")

    def stop(self) -> None:
        self.steps.append("stop")


class Programs(LocalMachine):
    """A machine whose ``pg_checksums`` says that all is sound."""

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps

    def program(self, name: str) -> str:
        return name

    def end_strays(self, argument: str) -> None:
        assert argument == DATA

    def run(self, command: Any, *, watch: Any = None, **how: Any) -> None:
        assert command == ["pg_checksums", "--check", "-D", DATA]
        self.steps.append("verify")
        watch(SOUND)


@pytest.mark.parametrize("shut_down", [True, False])
def test_data_of_a_server_that_was_killed_are_shut_down_in_order_before_their_pages_are_verified(
    shut_down: bool,
) -> None:
    server: Any = Server(shut_down=shut_down)
    found = pages.verify(Programs(server.steps), server, {}, lambda: False)
    assert found == pages.Pages(True, blocks=2912)
    assert server.steps == ["verify"] if shut_down else ["start", "wait", "stop", "verify"]


@pytest.mark.parametrize("error", [PgherdError("the server ended"), psycopg.errors.DiskFull("no space")])
def test_a_server_that_can_not_be_shut_down_in_order_leaves_its_pages_unverified_and_is_no_end(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(reached: Any, stopping: Any) -> None:
        raise error

    server: Any = Server(shut_down=False)
    monkeypatch.setattr(server, "wait", wait)
    found = pages.verify(Programs(server.steps), server, {}, lambda: False)
    assert found == pages.Pages(False, f"its server could not be shut down in order: {error}")
    assert server.steps == ["start", "stop"]


def test_what_a_program_said_at_its_end_is_told_whole(tmp_path: Path) -> None:
    here: Any = SimpleNamespace(prefix=[])
    told = [""]

    def watch(text: str) -> None:
        told.append(text)

    LocalMachine(here).run(["seq", "3000"], stopping=lambda: False, watch=watch)
    assert told[-1].split() == [str(number) for number in range(1, 3001)]


def test_a_drills_scratch_is_known_where_it_is_made(tmp_path: Path) -> None:
    platform = LocalPlatform(tmp_path)
    platform.declare(cluster())
    workshop = platform.workshop("shop-drill")
    assert not workshop.is_trial()
    note = Layout(tmp_path).drill("shop")
    note.write_text("torn")
    assert not workshop.is_trial()
    files.write_json(note, {"scratch": "shop-drill", "pid": 1})
    assert workshop.is_trial()
    assert not platform.workshop("shop").is_trial()


def test_a_drill_that_was_cut_short_leaves_no_verifying_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, ended = LocalPlatform(tmp_path), []
    platform.declare(cluster())
    client: Any = SimpleNamespace(declared=lambda name: name)
    method = SimpleNamespace(end_verifying=lambda: ended.append("verifying"))
    monkeypatch.setattr(drill, "make_method", lambda platform, declared: method)
    monkeypatch.setattr(drill, "_clear", lambda client, name, scratch: ended.append(scratch))
    drill.sweep(client, platform, "shop")
    assert ended == [], "there was none"
    files.write_json(Layout(tmp_path).drill("shop"), {"scratch": "shop-drill", "pid": 1, "started": 0})
    drill.sweep(client, platform, "shop")
    assert ended == ["shop-drill", "verifying"]
    assert not Layout(tmp_path).drill("shop").exists()


def test_a_repository_that_hangs_keeps_no_scratch_of_a_killed_drill_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(BaseException):
        """Nothing comes after it."""

    def hang() -> None:
        raise Hangs

    platform, ended = LocalPlatform(tmp_path), []
    platform.declare(cluster())
    client: Any = SimpleNamespace(declared=lambda name: name)
    method = SimpleNamespace(end_verifying=hang)
    monkeypatch.setattr(drill, "make_method", lambda platform, declared: method)
    monkeypatch.setattr(drill, "_clear", lambda client, name, scratch: ended.append(scratch))
    note = Layout(tmp_path).drill("shop")
    files.write_json(note, {"scratch": "shop-drill", "pid": 1, "started": 0})
    with pytest.raises(Hangs):
        drill.sweep(client, platform, "shop")
    assert ended == ["shop-drill"]
    assert note.exists(), "whoever comes next ends what verifies"


# a drill

BASES = {"0": ["b1"], "1": ["b1", "b2"]}
COPIED = ["copied:0", "copied:1", "copied"]
CLEAN = {group: pages.Pages(True, blocks=7).as_json() for group in BASES}


class Field(Ground):
    """A scratch that is there and sound, or fails."""

    name, scratch = "shop", "shop-drill"

    def __init__(self, found: Any = None, restored: Any = None, error: Exception | None = None) -> None:
        self.found, self.error = found, error
        self.asked: list[tuple[int, Any]] = []
        self.state = {"bases": BASES, "steps": COPIED, pages.KEY: CLEAN} if restored is None else restored

    def method(self) -> BackupMethod:
        def verify(copies: Any, group: int, stopping: Any, watch: Any) -> Any:
            watch("")
            self.asked.append((group, copies))
            found = self.found(group) if callable(self.found) else self.found
            if isinstance(found, Exception):
                raise found
            return found

        method: Any = SimpleNamespace(verifier="verifier", verify=verify)
        return method  # type: ignore[no-any-return]

    def world(self, name: str) -> Any:
        addresses: dict[int, list[Any]] = {0: [], 1: []}
        return SimpleNamespace(databases=SimpleNamespace(addresses=lambda: addresses))

    def plan(self, point: str | None) -> tuple[str, str]:
        return "p1", "t"

    def declare(self, restore_point: str) -> None:
        return

    def wait(self, wish: Wish) -> None:
        if self.error is not None:
            raise self.error

    def amcheck(self, world: Any, group: int, watch: Any) -> None:
        return

    def restored(self) -> Mapping[str, Any]:
        if isinstance(self.state, Exception):
            raise self.state
        return dict(self.state)

    def pause(self, seconds: float) -> None:
        return


@pytest.fixture(autouse=True)
def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "findings", lambda world: [])


def drilled(ground: Field, **wish: Any) -> dict[str, Any]:
    return Drill(ground, Wish(**wish), Course("a1", "2026-11-22T17:00:00+00:00")).run()


def done(result: Mapping[str, Any]) -> dict[str, str]:
    """Why each check was not made; empty: it was."""
    return {each["check"]: "" if each["done"] else each["why"] for each in result["checks"]}


def test_a_drill_that_passes_has_made_all_its_checks_and_says_which() -> None:
    ground = Field(Verified([]))
    result = drilled(ground)
    assert (result["passed"], result["problems"]) == (True, [])
    assert done(result) == {"copies": "", "pages": "", "catalogue": "", "rows": NO_TABLES, "relations": ""}
    assert {each["check"]: each["by"] for each in result["checks"]}["copies"] == "verifier"
    assert ground.asked == [(0, ["b1"]), (1, ["b1", "b2"])], "each group's set"
    assert verdict(result) == "drilled the backups: p1 was restored and is sound"


def test_damage_in_copies_and_in_pages_fails_a_drill_and_is_told_with_group_and_file() -> None:
    torn = pages.Pages(True, blocks=7, problems=("the page checksum of base/5/1, page 2, is wrong",))
    state = {"bases": BASES, "steps": COPIED, pages.KEY: {**CLEAN, "0": torn.as_json()}}
    ground = Field(lambda group: Verified(["L/bundle/1 is missing"] if group else []), state)
    result = drilled(ground)
    assert not result["passed"]
    assert result["problems"] == [
        "coordinator: the page checksum of base/5/1, page 2, is wrong",
        "segment-1: L/bundle/1 is missing",
    ]
    assert done(result)["copies"] == done(result)["pages"] == ""
    assert "segment-1: L/bundle/1 is missing" in verdict(result)


def test_the_copies_of_a_restore_that_failed_are_verified_and_the_damaged_file_is_named() -> None:
    ground = Field(
        lambda group: Verified(["L/bundle/1 is missing"] if group else []),
        {"bases": BASES, "steps": ["copied:0"]},
        PgherdError("L can't be restored"),
    )
    result = drilled(ground)
    assert result["problems"] == ["L can't be restored", "segment-1: L/bundle/1 is missing"]
    made = done(result)
    assert made["copies"] == ""
    assert made["pages"] == made["catalogue"] == made["relations"] == "the drill ended before"


def test_native_copies_were_verified_when_they_were_restored_and_no_others_are_said_to_be() -> None:
    assert done(drilled(Field(None)))["copies"] == ""
    state = {"bases": BASES, "steps": ["copied:0"]}
    result = drilled(Field(None, state, PgherdError("segment-1 is damaged (base/5/1)")))
    assert result["problems"] == ["segment-1 is damaged (base/5/1)"]
    assert done(result)["copies"] == "the drill ended before (segment-1)"


def test_what_was_not_checked_is_told_and_is_no_damage() -> None:
    off = pages.Pages(False, pages.OFF).as_json()
    state = {"bases": BASES, "steps": COPIED, pages.KEY: {**CLEAN, "1": off}}
    result = drilled(Field(Verified(why="no verify here"), state))
    assert result["passed"]
    assert done(result)["pages"] == "data checksums are off (segment-1)"
    text = (
        "; not checked: the files of the base copies (no verify here (coordinator, segment-1)), page checksums "
        "(data checksums are off (segment-1))"
    )
    assert unchecked(result) == text
    assert verdict(result).endswith(f"is sound{text}")
    assert unchecked({"passed": True}) == "", "a result of an older version"


def test_a_repository_that_does_not_answer_is_asked_again_and_then_not_verified() -> None:
    ground = Field(Unavailable("no member of shop runs"))
    result = drilled(ground)
    assert result["passed"]
    assert len(ground.asked) == 2 * module.TRIES
    assert done(result)["copies"] == "no member of shop runs (coordinator, segment-1)"


def test_a_state_that_can_not_be_read_leaves_the_checks_undone() -> None:
    result = drilled(Field(Verified([]), PgherdError("restore.json is damaged")))
    assert done(result)["pages"] == done(result)["copies"] == "restore.json is damaged"
    assert done(result)["relations"] == "", "it was made"


def test_a_state_that_can_not_be_asked_for_just_now_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Field(Verified([]))
    answers = iter([Unavailable("the API server is away"), ground.state])

    def restored() -> Mapping[str, Any]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    monkeypatch.setattr(ground, "restored", restored)
    made = done(drilled(ground))
    assert made["pages"] == made["copies"] == ""


def test_a_drill_that_has_no_time_left_verifies_nothing_and_fails() -> None:
    ground = Field(Verified([]), error=TimeIsUp("it was not done"))
    result = drilled(ground, timeout=1.0)
    (problem,) = result["problems"]
    assert problem.startswith("it was not done after 1 s: restoring p1")
    assert not ground.asked
    assert done(result)["copies"] == "the drill ended before"


def test_a_process_that_is_to_end_leaves_the_verdict_to_the_next() -> None:
    with pytest.raises(Cancelled):
        drilled(Field(Cancelled("stop")))


def test_a_drill_whose_time_is_up_while_copies_are_verified_fails_and_keeps_what_it_has_found() -> None:
    torn = pages.Pages(True, blocks=7, problems=("the page checksum of base/5/1, page 2, is wrong",))
    state = {"bases": BASES, "steps": COPIED, pages.KEY: {**CLEAN, "1": torn.as_json()}}
    result = drilled(Field(TimeIsUp("it was not done after 9 s: verifying"), state))
    assert result["problems"] == [
        "segment-1: the page checksum of base/5/1, page 2, is wrong",
        "it was not done after 9 s: verifying",
    ]
    assert done(result)["copies"] == "the drill ended before"


def test_damage_in_copies_is_told_also_if_time_is_up_before_all_of_them_are_verified() -> None:
    late = TimeIsUp("it was not done after 9 s: verifying")
    result = drilled(Field(lambda group: late if group else Verified(["L/bundle/1 is missing"])))
    assert result["problems"] == [
        "coordinator: L/bundle/1 is missing",
        "it was not done after 9 s: verifying",
    ]
    assert done(result)["copies"] == "the drill ended before (segment-1)"


class Slow(Runner):
    """Runs what takes more time in one group than the drill has."""

    command = ("pgbackrest",)

    def __init__(self, group: int) -> None:
        self.late, self.seconds = group, 0.0

    def prepare(self, settings: Any) -> None:
        return

    def at(self, host: str) -> Any:
        return None

    def of(self, group: int | None) -> Any:
        def run(command: Any, *, watch: Any, **how: Any) -> None:
            self.seconds += 100.0 if group == self.late else 1.0
            watch(report(status="ok"))

        return SimpleNamespace(run=run)

    def end_strays(self, group: int, argument: str) -> None:
        return

    def lock(self, group: int) -> Path:
        return Path("/tmp/lock")

    def environment(self, host: str, password: str) -> Mapping[str, str]:
        return {}


@pytest.mark.parametrize("late", [0, 1])
def test_a_drill_whose_time_runs_out_while_pgbackrest_verifies_fails_whichever_group_it_is(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Method(PgBackRest):
        def _copy_of(self, backup: str, group: int) -> Any:
            return SimpleNamespace(system="7", label=DIFF, start=START)

    place: Any = SimpleNamespace(settings=lambda: None, is_current=lambda: True)
    runner, ground = Slow(late), Field()
    monkeypatch.setattr(ground, "method", lambda: Method(place, runner))
    monkeypatch.setattr(records, "seconds_since", lambda since: runner.seconds)
    result = drilled(ground, timeout=50.0)
    (problem,) = result["problems"]
    assert problem == f"it was not done after 50 s: {module.VERIFYING}: {('coordinator', 'segment-1')[late]}"
    assert not result["passed"]
    assert done(result)["copies"].startswith("it was not done after 50 s")
    runner.late, runner.seconds = 2, 0.0
    assert drilled(ground, timeout=50.0)["passed"], "there was time"


def test_copies_of_a_cluster_without_backups_any_more_are_not_said_to_be_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Field()
    monkeypatch.setattr(ground, "method", NoBackups)
    result = drilled(ground)
    assert done(result)["copies"] == "no backups are declared any more (coordinator, segment-1)"
    assert "not checked: the files of the base copies (no backups" in verdict(result)


# where the pages are verified


class Yard:
    """A drill's scratch whose data are restored, and not in their places yet."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform = LocalPlatform(home)
        declared = cluster(name="shop-drill", engine="fdw", segments=2)
        self.platform.declare(declared)
        self.workshop = self.platform.workshop("shop-drill")
        self.steps: list[str] = []
        state = {"phase": "copying", "point": point(1).as_json(), "bases": {"0": ["b1"], "1": ["b1"]}}
        self.workshop.write_state(
            {
                **state,
                "steps": ["copied", "reached", "opened", "settled"],
                "startedAt": "2026-11-22T17:00:00+00:00",
            }
        )
        monkeypatch.setattr(restore, "pages", SimpleNamespace(KEY=pages.KEY, verify=self._verify))
        monkeypatch.setattr(LocalWorkshop, "place", lambda _, member, data: self.steps.append(member.name))
        nothing: Any = None
        method: Any = SimpleNamespace(repository=SimpleNamespace(require=lambda: None))
        stopping = lambda: False  # noqa: E731
        self.site = Site(self.platform, declared, method, nothing, stopping, "shop")
        self.fails: Exception | None = None

    def _verify(self, machine: Any, server: Any, settings: Any, stopping: Any) -> pages.Pages:
        group = server.data.parent.name
        if self.fails is not None and "segment" in group:
            raise self.fails
        self.steps.append(f"pages of {group}")
        return pages.Pages(True, blocks=7, problems=("torn",))

    def run(self) -> dict[str, Any]:
        Restore(self.site).run()
        return self.workshop.read_state() or {}


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    return Yard(tmp_path / "home", monkeypatch)


def test_the_pages_of_a_scratch_are_verified_before_anything_runs_on_them_and_what_is_found_ends_nothing(
    yard: Yard,
) -> None:
    files.write_json(Layout(yard.platform.home).drill("shop"), {"scratch": "shop-drill", "pid": 1})
    state = yard.run()
    assert sorted(yard.steps[:2]) == ["pages of shop-drill-coordinator-0", "pages of shop-drill-segment-1-0"]
    assert yard.steps[2:] == ["shop-drill-coordinator-0", "shop-drill-segment-1-0"]
    assert state["phase"] == restore.DONE
    assert of_pages(state) == (["coordinator: torn", "segment-1: torn"], "")


def test_a_restore_that_is_no_drill_does_not_wait_for_its_pages(yard: Yard) -> None:
    state = yard.run()
    assert yard.steps == ["shop-drill-coordinator-0", "shop-drill-segment-1-0"]
    assert of_pages(state) == ([], "the drill ended before")


def test_who_goes_on_after_a_kill_verifies_the_pages_that_are_left(yard: Yard) -> None:
    files.write_json(Layout(yard.platform.home).drill("shop"), {"scratch": "shop-drill", "pid": 1})
    yard.fails = Cancelled("this process ends")
    with pytest.raises(Cancelled):
        yard.run()
    assert yard.steps == ["pages of shop-drill-coordinator-0"], "nothing is in its place"
    yard.fails = None
    assert of_pages(yard.run()) == (["coordinator: torn", "segment-1: torn"], "")
    assert yard.steps[1] == "pages of shop-drill-segment-1-0"
