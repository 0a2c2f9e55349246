"""A pgherd home of a test's own, driven as people drive it: by the command line.

Everything started in it is gone afterwards, whatever happened in between; the last word of every test is that no
process of the home is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from pgherd.platform.local import binaries

DEFAULTS = {"engine": "fdw", "bin_dir": ""}
"""of declarations and homes; see ``engines``"""

DECLARATION = """\
apiVersion: pgherd.io/v1alpha1
kind: PostgresCluster
metadata: {{name: {name}}}
spec:
  engine: {engine}
  shardCount: {shards}
  coordinator: {{standbys: {standbys}}}
  segments: {{count: {segments}, standbys: {standbys}}}
"""


def declaration(
    name: str = "shop",
    *,
    segments: int = 2,
    standbys: int = 1,
    shards: int = 8,
    extra: str = "",
    engine: str | None = None,
) -> str:
    """A declaration as YAML; ``extra`` is appended to ``spec`` (indented by two)."""
    engine = engine or DEFAULTS["engine"]
    text = DECLARATION.format(name=name, segments=segments, standbys=standbys, shards=shards, engine=engine)
    return text + extra


def programs() -> binaries.Binaries:
    """PostgreSQL's programs that homes use."""
    return binaries.find(Path(DEFAULTS["bin_dir"]) if DEFAULTS["bin_dir"] else None)


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60.0, every: float = 0.1) -> Any:
    """Until ``condition`` is truthy; returns its value. Psycopg's errors count as "not yet"."""
    deadline = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
        except (psycopg.Error, OSError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(every)
    raise AssertionError(f"not within {timeout:.0f} s: {what} (last: {last!r})")


class Home:
    """One home under ``path`` and the command line on it."""

    def __init__(self, path: Path, env: dict[str, str] | None = None) -> None:
        self.path = path
        chosen = {"PGHERD_BIN_DIR": DEFAULTS["bin_dir"]} if DEFAULTS["bin_dir"] else {}
        self.env = {
            **os.environ,
            **chosen,
            "PGHERD_HOME": str(path),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **(env or {}),
        }

    def run(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 180.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; with ``check`` it must exit 0."""
        done = subprocess.run(
            [sys.executable, "-m", "pgherd.cli.main", *arguments],
            input=stdin,
            text=True,
            capture_output=True,
            env=self.env,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        if check:
            assert done.returncode == 0, (
                f"pgherd {' '.join(arguments)}: {done.stdout}{done.stderr}{self.tail()}"
            )
        return done

    def tail(self, lines: int = 30) -> str:
        """The end of the supervisor's log, for a failure's message."""
        log = self.path / "supervisor.log"
        if not log.exists():
            return ""
        return "\n--- supervisor.log\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

    def describe(self) -> str:
        """What a failed test's reader wants to see: the load, the status, the end of the supervisor's log."""
        try:
            status = self.run("status", "shop", check=False, timeout=30).stdout
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            status = f"no status: {error}"
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        return f"load {load}\n{status}{self.tail(120)}"

    def up(self, text: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``pgherd up`` of a declaration given as text."""
        return self.run("up", "-f", "-", *arguments, stdin=text, **options)

    def status(self, name: str = "shop") -> dict[str, Any]:
        """``pgherd status -o json``."""
        return dict(json.loads(self.run("status", name, "-o", "json").stdout))

    def dsn(self, name: str = "shop", *arguments: str) -> str:
        """``pgherd dsn``."""
        return self.run("dsn", name, *arguments).stdout.strip()

    def connect(
        self, name: str = "shop", *arguments: str, autocommit: bool = True
    ) -> psycopg.Connection[Any]:
        """A session of the owner at the coordinator (or as ``arguments`` of ``dsn`` say)."""
        return psycopg.connect(self.dsn(name, *arguments), autocommit=autocommit)

    def query(self, sql: str, name: str = "shop") -> list[tuple[Any, ...]]:
        """Rows of one query as the owner."""
        with self.connect(name) as connection:
            return connection.execute(sql).fetchall()

    def member(self, group: str, role: str, name: str = "shop") -> dict[str, Any]:
        """The first member of a group that has this role."""
        return next(iter(self.members(group, role, name)))

    def members(self, group: str, role: str, name: str = "shop") -> list[dict[str, Any]]:
        """All members of a group that have this role; during a failover nobody may be its primary."""
        groups = {entry["name"]: entry for entry in self.status(name)["groups"]}
        return [dict(member) for member in groups[group]["members"] if member["role"] == role]

    def await_another_primary(self, group: str, before: str, timeout: float = 90.0) -> str:
        """Until a group is led by another member than ``before``; returns its name. Meanwhile it may have none."""

        def other() -> str | None:
            led = [str(member["name"]) for member in self.members(group, "primary")]
            return next((name for name in led if name != before), None)

        return str(wait_for(other, f"another one than {before} leads", timeout, every=0.3))

    def fail_over(self, group: str, timeout: float = 90.0) -> None:
        """Kill the server of a group's primary, and wait until another member leads."""
        before = self.member(group, "primary")["name"]
        settings = self.path / "shop" / "members" / before / "data" / "postgresql.auto.conf"
        good = settings.read_text()
        if DEFAULTS["engine"] == "citus":  # it would start again where it is, and go on leading
            settings.write_text(f"{good}this is no setting\n")
        try:
            psutil.Process(self.postmaster(before)).kill()
            self.await_another_primary(group, before, timeout)
        finally:
            settings.write_text(good)

    def await_restart(self, group: str, name: str, killed: int, timeout: float = 90.0) -> None:
        """Until this member leads, by another server than the one that was killed."""

        def leads() -> bool:
            note = self.path / "shop" / "members" / name / "data" / "postmaster.pid"
            started = note.read_text().split("\n", 1)[0] != str(killed)
            return started and [each["name"] for each in self.members(group, "primary")] == [name]

        wait_for(leads, f"{name} leads again", timeout, every=0.3)

    def wait_phase(self, phase: str, name: str = "shop", timeout: float = 90.0) -> dict[str, Any]:
        """Until the status has this phase, and nothing is left to do."""

        def reached() -> dict[str, Any] | None:
            now = self.status(name)
            return now if now["phase"] == phase and now["operation"] is None else None

        try:
            return dict(wait_for(reached, f"{name} is {phase}", timeout, every=0.3))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.run('status', name).stdout}{self.tail()}") from None

    # processes

    def processes(self) -> list[psutil.Process]:
        """Every process whose command line or working directory is in this home."""
        mark, found = str(self.path), []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if any(mark in part for part in process.cmdline()) or process.cwd().startswith(mark):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def running(self, mark: str) -> list[psutil.Process]:
        """The home's processes with this text in their command line."""
        return [process for process in self.processes() if mark in " ".join(_cmdline(process))]

    def supervisor(self) -> psutil.Process | None:
        """The home's daemon."""
        return next(iter(self.running("pgherd.supervisor")), None)

    def postmaster(self, member: str, name: str = "shop") -> int:
        """PID of a member's postmaster."""
        return int((self.path / name / "members" / member / "data" / "postmaster.pid").read_text().split()[0])

    def kill_all(self) -> None:
        """A power cut: SIGKILL for every process of the home at once."""

        def gone() -> bool:
            # Again and again: what was killed may just have started another.
            for process in (found := self.processes()):
                _kill(process)
            return not found

        wait_for(gone, "all processes are gone", 20)

    def destroy(self) -> None:
        """Leave nothing behind."""
        for _ in range(3):
            for process in self.processes():
                _kill(process)
        shutil.rmtree(self.path, ignore_errors=True)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


@contextmanager
def temporary_home(env: dict[str, str] | None = None) -> Iterator[Home]:
    """A home in a fresh folder, destroyed at the end."""
    path = Path(tempfile.mkdtemp(prefix="herd-"))
    home = Home(path / "home", env)
    try:
        yield home
    finally:
        home.destroy()
        shutil.rmtree(path, ignore_errors=True)
