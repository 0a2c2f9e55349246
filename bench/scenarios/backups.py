"""Backups: how long writers wait for a restore point, and how fast copies are made and restored.

How long a group's copy and its restore take is held against ``pg_basebackup`` of the same group in the same run; what a
restore of four segments takes, against one of a single segment with as many bytes each. Eight clients write while a
hundred points are made. The same copies and restores once more with pgBackRest, where one is installed that knows the
server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from bench.scenarios.base import Lab, Result
from bench.support import Pgherd, RunError, await_true, percentile, timed
from pgherd.backup import pgbackrest_program
from pgherd.errors import PgherdError
from pgherd.platform.local import binaries

NAME = "backups"
WRITERS = 8
ROWS = int(os.environ.get("PGHERD_BENCH_BACKUP_ROWS", "400000"))
"""in each segment; a row takes about 500 bytes"""
SEGMENTS = 4
PAYLOAD = "SELECT string_agg(md5(g::text || n), '') FROM generate_series(1, 14) n"
"""what compresses no better than real rows do"""


def run(lab: Lab, runs: int) -> Result:
    """``runs`` hundred points are made under load; everything else is measured once."""
    result = Result()
    with _cluster(lab, NAME, SEGMENTS) as pgherd:
        _points(pgherd, result, 100 * runs)
        _copies(lab, pgherd, result)
    _against_one(lab, result)
    return result


def run_pgbackrest(lab: Lab, runs: int) -> Result:
    """Everything is measured once."""
    result = Result()
    with _cluster(lab, NAME, SEGMENTS, "pgbackrest") as pgherd:
        _copies(lab, pgherd, result)
    _against_one(lab, result, "pgbackrest")
    return result


def why_no_pgbackrest() -> str | None:
    """Why it can't be measured here; None if it can."""
    try:
        pgbackrest_program.check(binaries.find().major)
    except PgherdError as error:
        return str(error)
    return None


def _copies(lab: Lab, pgherd: Pgherd, result: Result) -> None:
    """Of four segments side by side."""
    _rates(lab, pgherd, result)
    result.numbers["restore_4_s"] = _restored(pgherd).placed
    _changes(pgherd, result)


def _against_one(lab: Lab, result: Result, method: str = "native") -> None:
    with _cluster(lab, NAME, 1, method) as pgherd:
        size, plain = _plain(lab, pgherd)
        pgherd("backup", NAME, timeout=1800)
        backup = json.loads(pgherd("backups", NAME, "-o", "json"))[-1]["groups"]["1"]["seconds"]
        restored = _restored(pgherd)
    four, one = result.numbers["restore_4_s"], restored.placed
    for key, what, seconds in (("backup", "backup", backup), ("restore", "restore (copy)", restored.copied)):
        result.add(
            f"one_{key}_ratio",
            plain / seconds,
            f"{what} of one segment against pg_basebackup of it (wanted: >= 0.8)",
            f"{size / seconds / 1e6:.0f} against {size / plain / 1e6:.0f} MB/s, {plain / seconds:.2f}",
        )
    result.add("restore_4_s", four, f"restore of {SEGMENTS} segments, until placed", f"{four:.1f} s")
    result.add("restore_1_s", one, "restore of one segment, until placed", f"{one:.1f} s")
    result.add("restore_ratio", four / one, "ratio (wanted: <= 1.5, where cores allow)", f"{four / one:.2f}")


@contextmanager
def _cluster(lab: Lab, name: str, segments: int, method: str = "native") -> Iterator[Pgherd]:
    repository = lab.directory / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    where = f"method: {method}, repository: {{path: {repository}}}"
    backup = f"  backup: {{{where}, restorePointEvery: 1s}}\n"
    try:
        with lab.cluster(name, segments=segments, standbys=0, more=backup) as pgherd:
            with closing(psycopg.connect(pgherd.dsn(name), autocommit=True)) as connection:
                connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, n int, filler text)")
                connection.execute("SELECT create_distributed_table('item', 'id')")
                lab.say(f"loading {ROWS * segments} rows")
                connection.execute(
                    f"INSERT INTO item SELECT g, 0, ({PAYLOAD}) FROM generate_series(1, {ROWS * segments}) g"
                )
            await_true(lambda: _ended(pgherd, name), 600, "the first backup to be done")
            yield pgherd
    finally:
        shutil.rmtree(repository, ignore_errors=True)


def _ended(pgherd: Pgherd, name: str) -> bool:
    found = json.loads(pgherd("backups", name, "-o", "json"))
    return bool(found) and all(each["phase"] == "done" for each in found)


# restore points


def _points(pgherd: Pgherd, result: Result, count: int) -> None:
    stop, errors, slowest = threading.Event(), [0], [0.0]
    dsn = pgherd.dsn(NAME)

    def write(number: int) -> None:
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            while not stop.is_set():
                begun = time.monotonic()
                try:
                    connection.execute("UPDATE item SET n = n + 1 WHERE id = %s", [number + 1])
                except psycopg.Error:
                    errors[0] += 1
                slowest[0] = max(slowest[0], time.monotonic() - begun)

    threads = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        before = _held(connection)
        await_true(lambda: len(_held(connection)) >= len(before) + count, 10 * count, f"{count} points")
        held = _held(connection)[len(before) :]
    stop.set()
    for thread in threads:
        thread.join(30)
    median = percentile(held, 50)
    result.add(
        "point_held_ms",
        [round(each, 2) for each in held],
        f"writers held by a restore point, median of {len(held)} (wanted: < 50 ms)",
        f"{median:.1f} ms; p95 {percentile(held, 95):.1f} ms; max {max(held):.1f} ms",
    )
    result.add("point_errors", errors[0], f"errors at {WRITERS} writers (wanted: 0)", str(errors[0]))
    result.add("point_slowest_s", slowest[0], "slowest write meanwhile", f"{slowest[0] * 1000:.0f} ms")


def _held(connection: psycopg.Connection[tuple[Any, ...]]) -> list[float]:
    rows = connection.execute(
        "SELECT held_ms FROM pgherd.restore_points WHERE group_id = 0 ORDER BY created_at"
    ).fetchall()
    return [float(row[0]) for row in rows]


# copies


def _rates(lab: Lab, pgherd: Pgherd, result: Result) -> None:
    size, seconds = _plain(lab, pgherd)
    plain = size / seconds
    took, _ = timed(lambda: pgherd("backup", NAME, timeout=1800))
    made = json.loads(pgherd("backups", NAME, "-o", "json"))[-1]["groups"]
    # All segments are as large, and what is stored of them may be compressed.
    rates = [size / made[str(group)]["seconds"] for group in range(1, SEGMENTS + 1)]
    together = SEGMENTS * size / took
    result.add("plain_bytes_s", plain, "pg_basebackup of one segment", f"{plain / 1e6:.0f} MB/s")
    result.add(
        "backup_bytes_s",
        rates,
        f"each of {SEGMENTS} segments backed up side by side",
        ", ".join(f"{rate / 1e6:.0f}" for rate in rates) + " MB/s",
    )
    result.add(
        "backup_ratio",
        together / plain,
        "whole backup against pg_basebackup (wanted: >= 0.8)",
        f"{together / 1e6:.0f} MB/s, {together / plain:.2f}",
    )


def _plain(lab: Lab, pgherd: Pgherd) -> tuple[int, float]:
    """The bytes of one segment, and the seconds that ``pg_basebackup`` takes for them."""
    target = lab.directory / "plain-copy"
    shutil.rmtree(target, ignore_errors=True)
    password = json.loads((pgherd.home / NAME / "credentials.json").read_text())["replication"]
    port = psycopg.conninfo.conninfo_to_dict(pgherd.dsn(NAME, "segment-1"))["port"]
    command = [
        str(binaries.find().program("pg_basebackup")),
        *(
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "replicator",
            "-D",
            str(target),
            "-X",
            "none",
            "-c",
            "fast",
        ),
    ]
    environment = {**os.environ, "PGPASSWORD": password}
    took, done = timed(
        lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    )
    if done.returncode != 0:
        raise RunError(f"pg_basebackup failed: {done.stderr.strip()}")
    size = _bytes(target)
    shutil.rmtree(target)
    return size, took


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _changes(pgherd: Pgherd, result: Result) -> None:
    with closing(psycopg.connect(pgherd.dsn(NAME), autocommit=True)) as connection:
        # Rows that lie together, as the last 1 % of a day's orders do.
        connection.execute(f"UPDATE item SET n = n + 1 WHERE id <= {ROWS * SEGMENTS // 100}")
    pgherd("backup", NAME, "--type", "incremental", timeout=1800)
    *_, full, last = json.loads(pgherd("backups", NAME, "-o", "json"))
    share = last["bytes"] / full["bytes"]
    result.add(
        "incremental_share",
        share,
        "incremental backup after 1 % of rows changed (wanted: <= 5 %)",
        f"{share * 100:.1f} % of {full['bytes'] / 1e6:.0f} MB",
    )


@dataclass(frozen=True)
class _Restored:
    """Seconds until all groups were copied, and until they were in their places."""

    copied: float
    placed: float


def _restored(pgherd: Pgherd) -> _Restored:
    name = f"{NAME}-copy"
    pgherd("restore", NAME, name, timeout=1800)
    found = _seconds_in(json.loads((pgherd.home / name / "restore.json").read_text()))
    pgherd("delete", name, "--purge", "--yes")
    return found


def _seconds_in(state: Mapping[str, Any]) -> _Restored:
    def between(begin: str, end: str) -> float:
        begun, ended = (datetime.fromisoformat(state[key]) for key in (begin, end))
        return (ended - begun).total_seconds()

    return _Restored(between("copyingSince", "copiedAt"), between("startedAt", "finishedAt"))
