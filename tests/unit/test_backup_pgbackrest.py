"""What pgBackRest is told, and what is understood of what it says and of what lies in its repository."""

from __future__ import annotations

import configparser
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pgherd.backup import archive as script
from pgherd.backup import pgbackrest_config as config
from pgherd.backup.pgbackrest_config import Settings
from pgherd.backup.pgbackrest_log import FRESH_SECONDS, SETTLED_SECONDS, ArchivedLog
from pgherd.backup.records import GroupPoint
from pgherd.backup.store import DirectoryStore
from pgherd.backup.wal import SEGMENT_BYTES
from pgherd.model.spec import RepositorySpec

SYSTEM = "7412345678901234567"
CHECKSUM = "0123456789abcdef0123456789abcdef01234567"


def settings(folder: str = "/mnt/backups/shop", *, encrypt: bool = False, **more: object) -> Settings:
    secrets = more.pop("secrets", {})
    authority = more.pop("authority", None)
    key_file = more.pop("key_file", None)
    declared = RepositorySpec.model_validate(more or {"path": "/mnt/backups"})
    return Settings(declared, folder, 4, "zst", encrypt, secrets, key_file, authority)  # type: ignore[arg-type]


def rendered(made: Settings) -> dict[str, str]:
    parser = configparser.RawConfigParser(delimiters=("=",))
    parser.read_string(config.render(made))
    return dict(parser["global"])


def test_a_path_is_written_as_it_is_and_nothing_is_removed_unasked() -> None:
    found = rendered(settings())
    assert found["repo1-path"] == "/mnt/backups/shop/pgbackrest"
    assert (found["process-max"], found["compress-type"]) == ("4", "zst")
    assert (found["repo1-bundle"], found["repo1-block"]) == ("y", "y")
    assert found["expire-auto"] == "n"
    assert found["repo1-retention-full"] == "9999999"
    assert not any("retention-archive" in name or "cipher" in name or "queue" in name for name in found)


@pytest.mark.parametrize(("flock", "alone"), [("/usr/bin/flock", True), (None, False)])
def test_members_that_archive_into_one_directory_take_turns_where_there_is_a_lock(
    monkeypatch: pytest.MonkeyPatch, flock: str | None, alone: bool
) -> None:
    """Of two that write one file at once pgBackRest may leave what is not whole, if one of them dies."""
    monkeypatch.setattr("shutil.which", lambda name: flock)
    told = config.render(settings())
    assert ("archive-async=n" in told) is alone
    assert config.archives_alone(settings().repository) is alone


def test_a_bucket_of_s3_is_asked_with_its_keys_and_its_authority() -> None:
    s3 = {"bucket": "safe", "region": "eu-central-1", "endpoint": "s3.example.com:9000", "uriStyle": "path"}
    keys = {"access-key-id": "AKIA", "secret-access-key": "a/b+c="}
    found = rendered(settings("herd/shop", s3=s3, secrets=keys, authority="/etc/ca.crt"))
    assert found["repo1-type"] == "s3"
    assert found["repo1-path"] == "/herd/shop/pgbackrest"
    assert found["repo1-s3-endpoint"] == "s3.example.com:9000"
    assert found["repo1-s3-uri-style"] == "path"
    assert (found["repo1-s3-key"], found["repo1-s3-key-secret"]) == ("AKIA", "a/b+c=")
    assert found["repo1-storage-ca-file"] == "/etc/ca.crt"
    assert found["archive-async"] == "y"
    assert "repo1-storage-verify-tls" not in found


def test_without_keys_the_machine_s_own_identity_is_taken() -> None:
    s3 = rendered(settings("shop", s3={"bucket": "safe", "region": "eu-west-1", "verifyTls": False}))
    assert s3["repo1-s3-key-type"] == "auto"
    assert s3["repo1-s3-endpoint"] == "s3.eu-west-1.amazonaws.com"
    assert s3["repo1-storage-verify-tls"] == "n"
    assert rendered(settings("shop", gcs={"bucket": "safe"}))["repo1-gcs-key-type"] == "auto"


def test_google_gets_its_key_as_a_file_and_azure_as_a_line() -> None:
    gcs = rendered(
        settings(
            "shop", gcs={"bucket": "safe"}, secrets={"service-account": "{}"}, key_file="/x/account.json"
        )
    )
    assert (gcs["repo1-gcs-key"], gcs["repo1-gcs-key-type"]) == ("/x/account.json", "service")
    azure = {"account": "herd", "container": "safe"}
    found = rendered(settings("shop", azure=azure, secrets={"account-key": "a2V5"}))
    assert (found["repo1-azure-key"], found["repo1-azure-key-type"]) == ("a2V5", "shared")
    found = rendered(settings("shop", azure=azure, secrets={"sas-token": "sv=2"}))
    assert found["repo1-azure-key-type"] == "sas"


def test_an_encrypted_repository_gets_the_passphrase_of_the_secret() -> None:
    found = rendered(settings(encrypt=True, secrets={"passphrase": "correct horse = battery"}))
    assert found["repo1-cipher-type"] == "aes-256-cbc"
    assert found["repo1-cipher-pass"] == "correct horse = battery"


FILE = "000000010000000000000004"
SCRIPT = (sys.executable, "-I", "-S", script.__file__)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as far as archiving looks at it."""
    made = tmp_path / "member" / "data"
    (made / "global").mkdir(parents=True)
    (made / "pg_wal").mkdir()
    (made / "global" / "pg_control").write_bytes(int(SYSTEM).to_bytes(8, "little") + b"rest")
    return made


def archiving(data: Path, path: str, cwd: Path | None = None) -> list[str]:
    """What pgBackRest is told when a file is archived; nothing: it is not asked."""
    program = data.parents[1] / "with 100% blank" / "pgbackrest"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    command = config.archive_command([str(program), "--config=/x/pgbackrest.conf"], SCRIPT, 2)
    ready = command.replace("%p", path).replace("%f", Path(path).name).replace("%%", "%")
    done = subprocess.run(ready, shell=True, cwd=cwd or data, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_archiving_goes_to_the_stanza_of_the_database_system_it_runs_in(data: Path) -> None:
    assert archiving(data, f"pg_wal/{FILE}") == [
        "--config=/x/pgbackrest.conf",
        f"--stanza=segment-2-{SYSTEM}",
        f"--pg1-path={data}",
        f"--spool-path={data.parent}/spool",
        f"--lock-path={data.parent}/spool/lock",
        "archive-push",
        f"pg_wal/{FILE}",
    ]


def test_patroni_archives_what_a_member_that_died_had_not(data: Path, tmp_path: Path) -> None:
    """It runs the command in a directory of its own, with an absolute path."""
    path = f"{data}/pg_wal/{FILE}"
    said = archiving(data, path, cwd=tmp_path)
    assert said[1:5] == [
        f"--stanza=segment-2-{SYSTEM}",
        f"--pg1-path={data}",
        f"--spool-path={data.parent}/spool",
        f"--lock-path={data.parent}/spool/lock",
    ]
    assert said[-1] == path


def test_pgbackrest_is_not_given_the_file_in_which_a_timeline_was_left(data: Path) -> None:
    (data / "pg_wal" / "00000002.history").write_text("1\t0/4000200\tno recovery target specified\n")
    assert archiving(data, f"pg_wal/{FILE}") == []


def test_past_its_limit_who_gets_no_answer_is_ended_and_the_next_one_sees_how_much_waits(data: Path) -> None:
    """pgBackRest looks at that once, as its process in the background begins, and a store may be silent for hours."""
    ready = data / "pg_wal" / "archive_status"
    ready.mkdir()
    command = config.archive_command(["sh", "-c", "exit 82"], SCRIPT, 2, let_go=2 * SEGMENT_BYTES)
    command = command.replace("%p", f"pg_wal/{FILE}").replace("%f", FILE)

    def background(role: str, locks: Path) -> subprocess.Popen[bytes]:
        words = [f"--lock-path={locks}", role]
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])

    own = data.parent / "spool" / "lock"
    silent = background("archive-push:async", own)
    others = [
        background("archive-push:async", data.parents[1] / "lock"),
        background("archive-get:async", own),
    ]
    try:
        for number in range(3):
            assert silent.poll() is None, "no more waits than may"
            (ready / f"{number:024X}.ready").touch()
            assert subprocess.run(["sh", "-c", command], cwd=data, check=False).returncode == 82
        assert silent.wait(10) == -signal.SIGTERM
        assert [other.poll() for other in others] == [None, None]
    finally:
        for each in (silent, *others):
            each.kill()
            each.wait()


def test_where_nothing_is_let_go_nobody_is_ended(data: Path) -> None:
    for limits in ({}, {"shared": "/mnt/shop", "let_go": 4096}):
        assert "hurry" not in config.archive_command(["pgbackrest"], SCRIPT, 2, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(("answer", "told"), [(0, 0), (1, 1), (39, 255), (103, 255), (125, 255)])
def test_only_a_file_that_is_not_there_is_the_end_of_the_log(tmp_path: Path, answer: int, told: int) -> None:
    """PostgreSQL takes every code up to 125 for a file that is not there, and opens where the log seems to end."""
    command = config.restore_command(["/bin/sh", "-c", f"exit {answer}"], 0, SYSTEM)
    command = command.replace("%f", "000000010000000000000001").replace("%p", "pg_wal/RECOVERYXLOG")
    assert subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, check=False).returncode == told


def test_no_secret_is_on_a_command_line() -> None:
    for command in (
        config.archive_command(["/usr/bin/pgbackrest", "--config=/x.conf"], SCRIPT, 0),
        config.restore_command(["/usr/bin/pgbackrest", "--config=/x.conf"], 0, SYSTEM),
    ):
        assert "key" not in command
        assert "pass" not in command


@pytest.mark.parametrize("group", [0, 1, 12])
def test_a_stanza_tells_whose_it_is(group: int) -> None:
    assert config.parse_stanza(config.stanza(group, SYSTEM)) == (group, SYSTEM)


@pytest.mark.parametrize("name", ["main", "segment-x-1", "coordinator", "segment-1-abc"])
def test_other_stanzas_are_left_alone(name: str) -> None:
    assert config.parse_stanza(name) is None


def test_complaints_are_one_line_without_numbers() -> None:
    said = "pgbackrest: P00  ERROR: [055]: unable to load info file\n        HINT: is it there?\n"
    assert config.complaint(said) == "pgbackrest: unable to load info file HINT: is it there?"


def test_progress_is_read_off_the_last_file() -> None:
    said = (
        "P01 DETAIL: backup file /d/base/1/2 (8KB, 12.50%) checksum 1\n"
        "P01 DETAIL: backup file /d/base/1/3 (bundle 1/8192, 1.1MB, 75.00%) checksum 2\n"
    )
    assert config.share_done(said) == 0.75
    assert config.share_done("P00   INFO: backup start") is None


@pytest.mark.parametrize(
    ("said", "major", "fits"),
    [
        ("pgBackRest 2.55.1", 17, True),
        ("pgBackRest 2.55.1", 18, False),
        ("pgBackRest 2.57.0", 18, True),
        ("pgBackRest 2.60.0", 18, True),
        ("pgBackRest 3.0", 18, True),
        ("pgBackRest 2.45", 17, False),
        ("command not found", 17, False),
    ],
)
def test_a_program_too_old_for_the_server_is_refused_with_both_versions(
    said: str, major: int, fits: bool
) -> None:
    problem = config.version_problem(said, major)
    assert (problem is None) == fits
    if problem is not None and "pgBackRest" in said:
        assert said in problem
        assert f"PostgreSQL {major}" in problem


# the archived log


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "pgbackrest" / "archive" / f"segment-1-{SYSTEM}" / "18-1"
    folder.mkdir(parents=True)
    return folder


def put(archive: Path, *names: str) -> None:
    for name in names:
        (archive / name[:16]).mkdir(exist_ok=True)
        (archive / name[:16] / f"{name}-{CHECKSUM}.zst").write_bytes(b"")


def timeline_of(archive: Path, timeline: int, lsn: str) -> int | None:
    log = ArchivedLog(
        DirectoryStore(archive.parents[3]), lambda name: (archive.parents[2] / name).read_bytes()
    )
    return log.readable_timeline(f"segment-1-{SYSTEM}", GroupPoint(SYSTEM, timeline, lsn))


def test_a_point_is_archived_with_the_file_that_holds_it(archive: Path) -> None:
    put(archive, "000000010000000000000003", "000000010000000000000004")
    assert timeline_of(archive, 1, "0/4000100") == 1
    assert timeline_of(archive, 1, "0/5000000") == 1, "the last byte before it is in the file before"
    assert timeline_of(archive, 1, "0/5000001") is None


def test_all_files_of_a_log_are_listed_once_each(archive: Path) -> None:
    put(archive, "000000010000000000000003", "000000010000000100000000", "000000020000000100000001")
    (archive / "00000002.history").write_text("")
    (archive / "0000000100000000" / "000000010000000000000003.00000028.backup").write_text("")
    log = ArchivedLog(DirectoryStore(archive.parents[3]), lambda name: b"")
    assert sorted(log.names(f"segment-1-{SYSTEM}")) == [
        "000000010000000000000003",
        "000000010000000100000000",
        "000000020000000100000001",
    ]


def test_what_a_member_may_let_go_is_told(archive: Path) -> None:
    assert "archive-push-queue-max=4096" in config.render(replace(settings(), let_go=4096)).splitlines()


def test_a_point_of_a_primary_that_died_is_reached_on_its_successor_s_timeline(archive: Path) -> None:
    put(archive, "000000010000000000000003", "000000020000000000000004")
    (archive / "00000002.history").write_text("1\t0/4000200\tno recovery target specified\n")
    assert timeline_of(archive, 1, "0/4000100") == 2
    assert timeline_of(archive, 1, "0/4000300") is None, "it is after the successor had left"
    put(archive, "000000010000000000000004")
    assert timeline_of(archive, 1, "0/4000300") is None, "who archived this may have had it up to there only"
    assert timeline_of(archive, 1, "0/4000100") == 1


def test_what_is_being_written_is_not_there_yet(archive: Path) -> None:
    put(archive, "000000010000000000000003")
    folder = archive / "0000000100000000"
    (folder / f"000000010000000000000004-{CHECKSUM}.zst.pgbackrest.tmp").write_bytes(b"")
    assert timeline_of(archive, 1, "0/4000100") is None


def test_the_last_files_of_a_folder_that_has_become_full_are_no_hole_in_the_log(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a distant repository a look is good for a while, and for long where nothing comes any more."""

    class Far(DirectoryStore):
        near = False

    clock = [1000.0]
    monkeypatch.setattr("pgherd.backup.pgbackrest_log.time.monotonic", lambda: clock[0])
    log = ArchivedLog(Far(archive.parents[3]), lambda name: b"")
    stanza, names = f"segment-1-{SYSTEM}", ["0000000100000000000000FD", "0000000100000000000000FE"]
    put(archive, *names)
    assert log.names(stanza) == {*names}
    clock[0] += 1
    names += ["0000000100000000000000FF", "000000010000000100000000"]
    put(archive, names[2], names[3])
    assert log.names(stanza) == {*names}
    clock[0] += FRESH_SECONDS + 1
    put(archive, late := "0000000100000000000000FC")
    assert late in log.names(stanza), "another member may still send one"
    clock[0] += SETTLED_SECONDS
    log.names(stanza)
    clock[0] += FRESH_SECONDS + 1
    put(archive, "0000000100000000000000FB")
    assert "0000000100000000000000FB" not in log.names(stanza), "nobody pays for that look"
