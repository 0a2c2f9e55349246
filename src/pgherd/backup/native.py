"""The method ``native``: PostgreSQL's own tools into a directory.

A base copy is what ``pg_basebackup`` writes in plain format, with its manifest and without log; a differential or
incremental one holds the blocks that changed since its parent (by the servers' log summaries, PostgreSQL 17 and later).
It is made as ``GROUP.partial`` and renamed when it is complete and on disk. To restore, every copy of the chain is
verified against its manifest and ``pg_combinebackup`` makes a data directory of them.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psycopg

from pgherd.backup import archive, presence, wal
from pgherd.backup.base import REMEMBERED, BackupMethod, Report
from pgherd.backup.records import BackupType, GroupBackup, GroupPoint, now
from pgherd.backup.repository import Repository
from pgherd.errors import PgherdError
from pgherd.faults import crash_point
from pgherd.model.topology import group_id, group_name
from pgherd.platform.base import Owner, Programs
from pgherd.platform.local import files, tools

SUMMARIES_SINCE = 17
"""the first PostgreSQL that can tell which blocks changed"""
LEFTOVER_SECONDS = 3600.0
"""age from which a temporary file of an archiving that was killed may go"""
VERIFIER_TELLS_SINCE = 16
"""the first PostgreSQL whose ``pg_verifybackup`` says how far it is"""
_LOST_SUMMARIES = ("summaries", "summarize", "manifest")


class Native(BackupMethod):
    """See :class:`~pgherd.backup.base.BackupMethod`.

    :param root: ``PATH/CLUSTER``
    :param programs: asked for when one is needed
    :param with_log: a copy brings the log along that was written while it was made: it waits for no archiving
    :param let_go: with so many bytes waiting a member lets go of what the repository does not take; None: never
    :param owner: tells which cluster asks
    """

    name = "native"
    verifier = "pg_verifybackup"

    def __init__(
        self,
        root: Path,
        programs: Callable[[], Programs],
        *,
        with_log: bool = False,
        let_go: int | None = None,
        owner: Callable[[], Owner] = Owner,
    ) -> None:
        self._repository = Repository(root, owner)
        self._owner = owner
        self._programs = programs
        self._with_log = with_log
        self._let_go = let_go

    @property
    def repository(self) -> Repository:
        return self._repository

    @property
    def location(self) -> str:
        return self._repository.location

    def parameters(self, group: int) -> Mapping[str, str]:
        limit = ["--let-go", str(self._let_go)] if self._let_go is not None else []
        me = self._owner().id
        push = [*_SCRIPT, "push", *(["--owner", me] if me else []), *limit, str(self._repository.logs(group))]
        return {
            # Every member archives: what a primary did not get rid of before it died, its standbys have.
            "archive_mode": "always",
            "archive_command": f"{_quoted(push)} %p %f",
            "summarize_wal": "on",
        }

    # making

    def back_up(
        self,
        backup: str,
        group: int,
        kind: BackupType,
        parent: str | None,
        connection: Mapping[str, str],
        report: Report,
        stopping: Callable[[], bool],
    ) -> GroupBackup:
        # What copies would make all folders above its own, on whatever disk that is.
        self._repository.require()
        final = self._repository.copy_of(backup, group)
        partial = final.with_name(f"{final.name}.partial")
        tools.end_strays(partial)
        files.remove(partial)
        files.remove(final)
        begun, note = time.monotonic(), ""
        try:
            self._copy(partial, group, parent, connection, report, stopping)
        except PgherdError as error:
            if parent is None or not any(word in str(error) for word in _LOST_SUMMARIES):
                raise
            # A primary that is younger than the parent does not know what changed before its time.
            files.remove(partial)
            parent, note = None, f"made whole: {error}"
            self._copy(partial, group, parent, connection, report, stopping)
        crash_point("backup:group:copied")
        made = _describe(partial, kind if parent else "full", parent, time.monotonic() - begun, note)
        with files.explained(f"complete {final}"):
            partial.rename(final)
            files.sync_directory(final.parent)
        crash_point("backup:group:renamed")
        return made

    def _copy(
        self,
        target: Path,
        group: int,
        parent: str | None,
        connection: Mapping[str, str],
        report: Report,
        stopping: Callable[[], bool],
    ) -> None:
        programs = self._programs()
        secret = dict(connection)
        password = secret.pop("password", "")
        command: list[str | Path] = [
            *programs.prefix,
            programs.find("pg_basebackup"),
            f"--dbname={psycopg.conninfo.make_conninfo('', **secret)}",
            "--pgdata",
            target,
            f"--wal-method={'stream' if self._with_log else 'none'}",
            *("--format=plain", "--checkpoint=fast", "--progress", "--label=pgherd"),
        ]
        if parent is not None:
            command.append(f"--incremental={self._repository.copy_of(parent, group) / 'backup_manifest'}")

        def watch(text: str) -> None:
            if amount := tools.kilobytes(text):
                report(*amount)

        tools.run(command, environment={"PGPASSWORD": password}, stopping=stopping, watch=watch)

    # restoring

    def restore(
        self, copies: Sequence[str], group: int, target: Path, report: Report, stopping: Callable[[], bool]
    ) -> None:
        with presence.watched(self, stopping) as stopping:
            self._restore(copies, group, target, report, stopping)

    def _restore(
        self, copies: Sequence[str], group: int, target: Path, report: Report, stopping: Callable[[], bool]
    ) -> None:
        programs = self._programs()
        sources = [self._repository.copy_of(copy, group) for copy in copies]
        tools.end_strays(target)
        files.remove(target)
        # Every byte is read twice, first to be verified: both take their time.
        sizes = list(map(size_of, sources))
        total, checked = 2 * sum(sizes), 0
        for source, size in zip(sources, sizes, strict=True):
            _verify(programs, source, stopping, functools.partial(_report_above, report, checked, total))
            checked += size
            report(checked, total)
        command: list[str | Path]
        if len(sources) == 1:
            command = ["cp", "-a", "--reflink=auto", sources[0], target]
        else:
            command = [programs.find("pg_combinebackup"), "--output", target, *sources]
        last = time.monotonic()

        def watch(text: str) -> None:
            nonlocal last
            if time.monotonic() - last > 1.0:
                report(min(checked + size_of(target), total), total)
                last = time.monotonic()

        tools.run([*programs.prefix, *command], stopping=stopping, watch=watch)
        # The caller writes down that it is there, and that must not be on the disk before it is.
        tools.run(
            [*programs.prefix, programs.find("initdb"), "--sync-only", "--pgdata", target], stopping=stopping
        )
        files.sync_directory(target.parent)
        report(total, total)

    def restore_command(self, group: int, system: str) -> str:
        return f"{_quoted([*_SCRIPT, 'fetch', str(self._repository.logs(group) / system)])} %f %p"

    def hindrance(self, said: str) -> str | None:
        found = _AWAY.findall(said.rpartition("restored log file")[2])
        return str(found[-1]) if found else None

    # the log

    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        archived = self._repository.log_files(group, at.system)
        return wal.readable_timeline(
            at.timeline, wal.parse_lsn(at.lsn), self._repository.histories(group, at.system), archived
        )

    def histories(self, group: int, system: str) -> Sequence[wal.History]:
        return self._repository.histories(group, system)

    def major_of(self, backup: str, group: int) -> int:
        path = self._repository.copy_of(backup, group) / "PG_VERSION"
        with files.explained(f"read {path}"):
            return int(path.read_text())

    # the end of things

    def complete(self, backup: str) -> None:
        files.sync_directory(self._repository.folder(backup))

    def discard(self, backup: str, groups: Collection[int] | None = None) -> None:
        names = None if groups is None else {group_name(group) for group in groups}
        for path in self._repository.folder(backup).iterdir():
            if path.is_dir() and (names is None or path.name.removesuffix(".partial") in names):
                with suppress(PgherdError):
                    files.remove(path)

    def systems(self) -> Sequence[tuple[int, str]]:
        return [
            (group_id(group.name), system.name)
            for group in sorted((self._repository.root / "wal").iterdir())
            if group.is_dir()
            for system in sorted(group.iterdir())
            if system.is_dir() and not system.name.startswith(".")
        ]

    def sweep(self) -> None:
        root, limit = self._repository.root, time.time() - LEFTOVER_SECONDS
        for path in (root / "wal").glob("*/*/.*.tmp"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()
        self._hide_nameless(limit)
        for folder in (*REMEMBERED, "wal/[!.]*"):
            self._repository.store.sweep(folder)

    def _hide_nameless(self, limit: float) -> None:
        """Let go of what was begun by somebody who was killed before there was a record, or whose record is torn.

        A record is there before anything is made, and is written under the lock: under it nobody is about to begin. A
        complete copy may be good, whatever happened to its record: it stays, and the status tells of it.
        """
        with self._repository.locked():
            for name in self._repository.nameless():
                folder = self._repository.folder(name)
                if not _has_copy(folder) and _changed_at(folder) < limit:
                    files.hide(folder)

    def log_names(self, group: int, system: str) -> Collection[str]:
        return self._repository.log_files(group, system).keys()

    def remove_log(self, group: int, system: str, before: int | None) -> int:
        found = self._repository.log_files(group, system)
        if before is None:
            files.remove(self._repository.logs(group) / system)
            return len(found)
        first = before // wal.SEGMENT_BYTES
        numbers = ((entry, wal.segment_number(name)) for name, entry in found.items())
        old = [entry for entry, number in numbers if number is not None and number < first]
        for entry in old:
            with files.explained(f"remove {entry.path}"), suppress(FileNotFoundError):
                Path(entry.path).unlink()
        return len(old)


def _has_copy(backup: Path) -> bool:
    """Whether a base copy in a backup's folder is complete: until then it has another name."""
    return any(
        path.is_dir() and not path.name.startswith(".") and path.suffix != ".partial"
        for path in backup.iterdir()
    )


def _changed_at(folder: Path) -> float:
    """When something was last made or removed in a folder, or directly below."""
    return max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))


_AWAY = re.compile(rf"^pgherd: ({archive.NOWHERE} .*)$", re.MULTILINE)
_SCRIPT = (sys.executable, "-I", "-S", archive.__file__)


def _quoted(command: Sequence[str]) -> str:
    """For the shell that PostgreSQL runs it with, and for PostgreSQL, to which % means something."""
    return shlex.join(command).replace("%", "%%")


def _report_above(report: Report, before: int, total: int, done: int) -> None:
    report(min(before + done, total), total)


def _verify(
    programs: Programs, copy: Path, stopping: Callable[[], bool], report: Callable[[int], None]
) -> None:
    def watch(text: str) -> None:
        if amount := tools.kilobytes(text):
            report(amount[0])

    if not (copy / "backup_manifest").is_file():
        raise PgherdError(f"{copy} is damaged (no manifest): restore to a point that another backup serves")
    program = programs.find("pg_verifybackup")
    try:
        loud = "--progress" if programs.major >= VERIFIER_TELLS_SINCE else "--quiet"
        command: list[str | Path] = [*programs.prefix, program, "--no-parse-wal", loud, copy]
        tools.run(command, stopping=stopping, watch=watch)
    except PgherdError as error:
        raise PgherdError(
            f"{copy} is damaged ({error}): restore to a point that another backup serves"
        ) from error


def _describe(copy: Path, kind: BackupType, parent: str | None, seconds: float, note: str) -> GroupBackup:
    with files.explained(f"read {copy / 'backup_manifest'}"):
        manifest = json.loads((copy / "backup_manifest").read_text())
    ranges = manifest["WAL-Ranges"]
    # The copy is consistent once the log of its last timeline is replayed to the end.
    last = max(ranges, key=lambda each: int(each["Timeline"]))
    first = min(ranges, key=lambda each: int(each["Timeline"]))
    return GroupBackup(
        system=archive.system_of(str(copy)),
        timeline=int(last["Timeline"]),
        start=first["Start-LSN"],
        stop=last["End-LSN"],
        stopped_at=now(),
        type=kind,
        parent=parent,
        bytes=size_of(copy),
        seconds=round(seconds, 3),
        note=note,
    )


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    stack = [folder]
    while stack:
        with suppress(OSError):
            for path in stack.pop().iterdir():
                with suppress(OSError):
                    if path.is_dir() and not path.is_symlink():
                        stack.append(path)
                    else:
                        total += path.lstat().st_size
    return total
