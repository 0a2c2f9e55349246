"""What a member's log tells of why it does not come up."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.platform.local.last_words import LONGEST, TAIL, last_words

STAMP = "2026-11-22 06:10:49.809 UTC [46] "
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
            "/pg/bin/initdb: error while loading shared libraries: libpq.so.5: cannot open shared object file",
            "/pg/bin/initdb: error while loading shared libraries: libpq.so.5: cannot open shared object file",
        ),
        ("initdb: error: invalid locale name", "initdb: error: invalid locale name"),
        ("OSError: [Errno 28] No space left on device", "OSError: [Errno 28] No space left on device"),
    ],
)
def test_the_last_reason_is_told(tmp_path: Path, line: str, told: str) -> None:
    assert (
        said(tmp_path, READY, line, "Traceback (most recent call last):", "2026 INFO: trying again") == told
    )


@pytest.mark.parametrize(
    "line",
    [
        '2026-11-22 06:10:49.809 UTC [77] eve@app psql FATAL:  password authentication failed for user "eve"',
        f"{STAMP}FATAL:  terminating walreceiver process due to administrator command",
        f"{STAMP}FATAL:  the database system is starting up",
        f"{STAMP}FATAL:  could not connect to the primary server: connection refused",
        f"{STAMP}LOG:  database system is shut down",
    ],
)
def test_what_is_no_reason_is_not_told(tmp_path: Path, line: str) -> None:
    assert said(tmp_path, line) == ""


def test_what_came_before_the_server_served_counts_no_more(tmp_path: Path) -> None:
    assert said(tmp_path, f"{STAMP}FATAL:  out of luck", READY, "2026 INFO: no action") == ""


def test_long_logs_and_long_lines_are_cut(tmp_path: Path) -> None:
    assert said(tmp_path, f"{STAMP}FATAL:  early", "x" * TAIL) == ""
    assert len(said(tmp_path, f"{STAMP}FATAL:  {'x' * 1000}")) == LONGEST


def test_no_log_says_nothing(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none.log") == ""
