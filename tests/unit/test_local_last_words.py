"""What a member's log tells of why it does not come up."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.platform.local.last_words import LONGEST, TAIL, last_words, serves

STAMP = "2026-11-22 06:10:49.809 UTC [46] "
CLIENT = "2026-11-22 06:10:49.809 UTC [77] eve@app psql "
READY = f"{STAMP}LOG:  database system is ready to accept connections"


def said(folder: Path, *lines: str) -> str:
    log = folder / "member.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    return last_words(log)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            f'{STAMP}FATAL:  could not load library "citus": no such file',
            'FATAL:  could not load library "citus": no such file',
        ),
        (
            f'{STAMP}FATAL:  could not write lock file "postmaster.pid": No space left on device',
            'FATAL:  could not write lock file "postmaster.pid": No space left on device',
        ),
        (
            "/pg/bin/initdb: error while loading shared libraries: libpq.so.5: cannot open shared object file",
            "/pg/bin/initdb: error while loading shared libraries: libpq.so.5: cannot open shared object file",
        ),
        ("initdb: error: invalid locale name", "initdb: error: invalid locale name"),
        ("OSError: [Errno 28] No space left on device", "OSError: [Errno 28] No space left on device"),
        (f"{STAMP}FATAL:  a\x1b[31mred one", "FATAL:  a [31mred one"),
    ],
)
def test_the_last_reason_is_told(tmp_path: Path, line: str, told: str) -> None:
    assert (
        said(tmp_path, READY, line, "Traceback (most recent call last):", "2026 INFO: trying again") == told
    )


@pytest.mark.parametrize(
    "line",
    [
        f'{CLIENT}FATAL:  password authentication failed for user "eve"',
        f'{CLIENT}ERROR:  could not write to file "base/pgsql_tmp/x": No space left on device',
        f"{CLIENT}STATEMENT:  ALTER ROLE eve PASSWORD 'secret' /* No space left on device */",
        '2026-11-22 06:10:49.809 UTC [77] x/a: error: BUY@app FATAL:  password authentication failed for user "x"',
        "2026-11-22 06:10:49.809 UTC [77] eve@app [1] FATAL: spoof LOG:  connection authorized",
        "\tx: error: spoof",
        f"{STAMP}FATAL:  terminating walreceiver process due to administrator command",
        f"{STAMP}FATAL:  the database system is starting up",
        f"{STAMP}FATAL:  could not connect to the primary server: connection refused",
        f"{STAMP}FATAL:  could not start WAL streaming: no such slot",
        f"{STAMP}LOG:  database system is shut down",
    ],
)
def test_what_is_no_reason_is_not_told(tmp_path: Path, line: str) -> None:
    assert said(tmp_path, line) == ""


@pytest.mark.parametrize(
    "border",
    [
        READY,
        f"{STAMP}LOG:  received fast shutdown request",
        "2026-11-22 06:10:49,809 INFO: bootstrap from leader 'shop-1-0' in progress",
    ],
    ids=["served", "ended as told", "copied anew"],
)
def test_what_came_before_counts_no_more(tmp_path: Path, border: str) -> None:
    assert said(tmp_path, f"{STAMP}FATAL:  out of luck", border, "2026 INFO: no action") == ""


def test_long_logs_and_long_lines_are_cut(tmp_path: Path) -> None:
    assert said(tmp_path, f"{STAMP}FATAL:  early", "N" * TAIL) == ""
    assert len(said(tmp_path, f"{STAMP}FATAL:  {'x' * 1000}")) == LONGEST


def test_no_log_says_nothing(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none.log") == ""


@pytest.mark.parametrize(
    ("status", "told"), [("ready   ", True), ("standby ", True), ("starting", False), ("stopping", False)]
)
def test_a_server_notes_whether_it_serves(tmp_path: Path, status: str, told: bool) -> None:
    assert not serves(tmp_path)
    (tmp_path / "postmaster.pid").write_text(
        f"123\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  1 2\n{status}\n"
    )
    assert serves(tmp_path) is told
