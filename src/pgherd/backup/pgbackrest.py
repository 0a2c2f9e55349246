"""The method ``pgbackrest``: base copies and logs are pgBackRest's, in a directory or an object store.

What is remembered (points, backups, whose it is) lies beside them (``catalogue``), sealed where pgBackRest encrypts. A
base copy of ours is one of pgBackRest's, annotated with the backup that it belongs to: a process that was killed after
pgBackRest had ended finds it again. pgBackRest never removes anything by itself; pgherd's own rule says what goes, and
pgBackRest removes that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from pgherd.backup import pgbackrest_config as config
from pgherd.backup import pgbackrest_verify as verification
from pgherd.backup import pins, presence, wal
from pgherd.backup.base import REMEMBERED, BackupMethod, Report, Verified
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.pgbackrest_log import ArchivedLog
from pgherd.backup.pgbackrest_program import Runner
from pgherd.backup.records import BackupType, GroupBackup, GroupPoint, now
from pgherd.backup.store import Store
from pgherd.errors import Cancelled, PgherdError, Unavailable, Withheld, one_line
from pgherd.faults import crash_point
from pgherd.model.topology import SUPERUSER
from pgherd.platform.base import Owner
from pgherd.postgres.connections import Databases

TYPES: Mapping[BackupType, str] = {"full": "full", "differential": "diff", "incremental": "incr"}
_NOBODY = "none"
"""whose a copy is that nothing may build on any more"""
_NAMES: Mapping[str, BackupType] = {short: name for name, short in TYPES.items()}


@dataclass(frozen=True)
class Place:
    """Where one cluster's backups are, and how to get at them.

    :param location: what to call it
    :param declared: differs whenever what is declared changed
    :param stamp: differs whenever the keys changed
    :param open: the store of records, and the same without a seal; refuses keys that won't do
    :param settings: what pgBackRest's configuration is made of; refuses keys that won't do
    :param owner: tells who asks
    :param shared: where it is, if members archive into it as files, one after the other
    :param is_current: whether the keys are still those that are declared, as far as members get theirs from here
    :param let_go: with so many bytes waiting a member lets go of what the repository does not take; None: never
    """

    location: str
    declared: str
    stamp: str
    open: Callable[[], tuple[Store, Store]]
    settings: Callable[[], config.Settings]
    owner: Callable[[], Owner] = Owner
    shared: str | None = None
    is_current: Callable[[], bool] = lambda: True
    let_go: int | None = None


@dataclass(frozen=True)
class _Primary:
    """The server that a group is backed up from."""

    data: str
    host: str
    port: int
    system: str
    bytes: int


class PgBackRest(BackupMethod):
    """See :class:`~pgherd.backup.base.BackupMethod`.

    :param runner: who runs pgBackRest
    """

    name = "pgbackrest"
    verifier = "pgbackrest verify"
    user = SUPERUSER

    def __init__(self, place: Place, runner: Runner) -> None:
        self._place = place
        self._runner = runner
        self._admitted: set[str] = set()

    @property
    def location(self) -> str:
        return self._place.location

    def fingerprint(self) -> str:
        return f"{self._place.declared}{self._place.stamp}"

    def differs_in_keys_only(self, other: BackupMethod) -> bool:
        return (
            isinstance(other, PgBackRest)
            and self._place.declared == other._place.declared
            and self._place.stamp != other._place.stamp
        )

    @cached_property
    def _stores(self) -> tuple[Store, Store]:
        return self._place.open()

    @cached_property
    def repository(self) -> Catalogue:
        return Catalogue(self._stores[0], self.name, self._place.owner)

    @cached_property
    def _log(self) -> ArchivedLog:
        return ArchivedLog(self._stores[1], lambda name: self._output(["repo-get", name]))

    def check(self) -> None:
        self._runner.check()
        self._place.settings()

    def is_own(self) -> bool:
        return self.repository.is_own()

    def equip(self) -> None:
        # Keys that were changed since are unknown here, and may be wrong: with them members would archive no more.
        # Whoever keeps the cluster brings them once the repository takes them.
        if self._place.is_current():
            self._runner.prepare(self._place.settings())

    def unequip(self) -> None:
        self._runner.withdraw()

    def parameters(self, group: int) -> Mapping[str, str]:
        runner = self._runner
        place = self._place
        command = config.archive_command(runner.command, runner.script, group, place.shared, place.let_go)
        return {"archive_mode": "always", "archive_command": command}

    # the program

    def _output(self, arguments: Sequence[str], group: int | None = None) -> bytes:
        """What a command prints that can be run anywhere."""
        self.equip()
        return self._runner.output(arguments, self._runner.of(group))

    def admit(self, systems: Mapping[int, str], databases: Databases) -> None:
        self.equip()
        for group, system in systems.items():
            if config.stanza(group, system) not in self._admitted:
                parameters = databases.parameters(group, user=self.user, database=SUPERUSER)
                self._create_stanza(group, _primary_of(parameters))

    def _create_stanza(self, group: int, primary: _Primary) -> None:
        """Made in one place only: two that make it at once would not agree on its keys."""
        stanza = config.stanza(group, primary.system)
        if stanza not in self._admitted and not self._has(f"backup/{stanza}", "backup.info"):
            if self._has(f"archive/{stanza}") and not self._has(f"backup/{stanza}"):
                # Killed in the middle: pgBackRest refuses to go on. There is no copy, so nothing needs this log.
                self._stores[1].remove(f"{config.FOLDER}/archive/{stanza}")
            options = [f"--stanza={stanza}", f"--pg1-path={primary.data}", "--no-online"]
            self._runner.output(
                [*options, f"--lock-path={self._runner.lock(group)}", "stanza-create"],
                self._runner.at(primary.host),
            )
        self._admitted.add(stanza)

    def _has(self, folder: str, name: str | None = None) -> bool:
        """Whether this is in a folder of pgBackRest's; without a name: anything at all."""
        plain, path = self._stores[1], f"{config.FOLDER}/{folder}"
        found = {entry.name.removeprefix(f"{path}/") for entry in plain.names(path)}
        return name in found if name else bool(found or plain.folders(path))

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
        # A directory that is away has no stanza and no records, and what is made anew then lies on another disk.
        self.repository.require()
        begun = time.monotonic()
        primary = _primary_of(connection)
        stanza = config.stanza(group, primary.system)
        self.equip()
        self._runner.end_strays(group, f"--lock-path={self._runner.lock(group)}")
        self._create_stanza(group, primary)
        made = self._made_for(stanza, backup)
        if made is None:
            self._expire_orphans(group, stanza)
            self._copy(
                backup, group, stanza, kind if parent else "full", primary, connection, report, stopping
            )
            made = self._made_for(stanza, backup)
            if made is None:
                raise PgherdError(f"pgbackrest made a copy in {stanza} that it does not tell of")
        crash_point("backup:group:copied")
        return self._described(made, primary.system, kind, time.monotonic() - begun)

    def _copy(
        self,
        backup: str,
        group: int,
        stanza: str,
        kind: BackupType,
        primary: _Primary,
        connection: Mapping[str, str],
        report: Report,
        stopping: Callable[[], bool],
    ) -> None:
        def watch(text: str) -> None:
            if (share := config.share_done(text)) is not None:
                report(int(share * primary.bytes), primary.bytes)

        self._runner.run(
            [
                *(
                    f"--stanza={stanza}",
                    f"--type={TYPES[kind]}",
                    f"--annotation={config.ANNOTATION}={backup}",
                ),
                *(f"--pg1-path={primary.data}", f"--pg1-port={primary.port}", f"--pg1-user={self.user}"),
                *(f"--lock-path={self._runner.lock(group)}", "--log-level-console=detail", "backup"),
            ],
            self._runner.at(primary.host),
            environment=self._runner.environment(primary.host, connection.get("password", "")),
            stopping=stopping,
            watch=watch,
        )

    def _info(self, stanza: str) -> list[dict[str, Any]]:
        """pgBackRest's copies in a stanza, oldest first; none if there is no such stanza."""
        found = self._told(stanza)
        return list(found[0].get("backup", ())) if found else []

    def _told(self, stanza: str) -> list[dict[str, Any]]:
        text = self._output(["info", "--output=json", f"--stanza={stanza}"])
        try:
            return list(json.loads(text))
        except (ValueError, TypeError) as error:
            begin = text[:60].decode(errors="replace")
            raise PgherdError(
                f"what pgbackrest tells of {stanza} can't be read ({error}): {begin!r}..."
            ) from None

    def _made_for(self, stanza: str, backup: str) -> dict[str, Any] | None:
        return next(
            (each for each in self._info(stanza) if _owner(each) == backup and not each.get("error")), None
        )

    def _expire_orphans(self, group: int, stanza: str) -> None:
        """Remove what was made for backups that failed: nothing may build on it."""
        held = self.repository.held()
        kept = {backup.id for backup in held.backups if backup.phase != "failed"}
        kept.update(held.unread)  # only their records may be damaged, or another version's
        for each in reversed(self._info(stanza)):
            if _owner(each) not in {None, *kept}:
                self._expire(group, stanza, each["label"])

    def _described(
        self, made: Mapping[str, Any], system: str, kind: BackupType, seconds: float
    ) -> GroupBackup:
        became = _NAMES[made["type"]]
        prior = made.get("prior")
        parent = self._backup_called(prior) if prior else None
        if prior and parent is None:
            raise PgherdError(f"pgbackrest built on {prior}, which no backup here knows: make a full one")
        return GroupBackup(
            system=system,
            timeline=int(made["archive"]["stop"][:8], 16),
            start=made["lsn"]["start"],
            stop=made["lsn"]["stop"],
            stopped_at=now(),
            type=became,
            parent=parent,
            bytes=int(made["info"]["repository"]["delta"]),
            seconds=round(seconds, 3),
            note="" if became == kind else f"made {became}: there was nothing in this log to build on",
            label=made["label"],
        )

    def _backup_called(self, label: str) -> str | None:
        return next(
            (
                backup.id
                for backup in self.repository.backups()
                if any(made.label == label for made in backup.groups.values())
            ),
            None,
        )

    # restoring

    def restore(
        self, copies: Sequence[str], group: int, target: Path, report: Report, stopping: Callable[[], bool]
    ) -> None:
        with presence.watched(self, stopping) as stopping:
            self._restore(copies, group, target, report, stopping)

    def _restore(
        self, copies: Sequence[str], group: int, target: Path, report: Report, stopping: Callable[[], bool]
    ) -> None:
        made = self._copy_of(copies[-1], group)
        total = sum(self._copy_of(copy, group).bytes for copy in copies)
        self.equip()
        machine = self._runner.of(group)
        for argument in (f"--lock-path={target}.lock", f"--pg1-path={target}"):
            machine.end_strays(argument)
        # pgBackRest leaves its manifest in what it has not finished: it goes on there, and checks what it finds.
        begun = "backup.manifest" in machine.names(target, "backup.manifest")
        if not begun:
            machine.remove(target)
            machine.make_folder(target)

        def watch(text: str) -> None:
            if (share := config.share_done(text)) is not None:
                report(int(share * total), total)

        try:
            self._runner.run(
                [
                    *(f"--stanza={config.stanza(group, made.system)}", f"--set={made.label}", "--type=none"),
                    # What a spool holds of the stanza it empties first: there is none here, and the machine's own,
                    # where there is one, is somebody else's.
                    *(f"--pg1-path={target}", f"--lock-path={target}.lock", f"--spool-path={target}.lock"),
                    *(["--delta"] if begun else []),
                    *("--log-level-console=detail", "restore"),
                ],
                machine,
                stopping=stopping,
                watch=watch,
            )
        except (Cancelled, Unavailable, Withheld):
            raise
        except PgherdError as error:
            raise PgherdError(
                f"{made.label} of {config.stanza(group, made.system)} in {self.location} can't be restored ({error}): "
                "restore to a point that another backup serves"
            ) from error
        finally:
            machine.remove(Path(f"{target}.lock"))
        report(total, total)

    def _copy_of(self, backup: str, group: int) -> GroupBackup:
        return self.repository.backup(backup).groups[group]

    def verify(
        self,
        copies: Sequence[str],
        group: int,
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> Verified:
        try:
            made = [self._copy_of(copy, group) for copy in copies]
            said = self._verify(made[-1], group, stopping, watch)
            found = verification.read(said, [each.label for each in made], made[-1].start)
            if found.problems and not self._are_there(copies):
                return Verified(why="retention has removed them meanwhile, or is about to")
            return found
        except (Cancelled, Unavailable):
            raise
        except PgherdError as error:
            return Verified(why=one_line(error))

    def _verify(
        self,
        made: GroupBackup,
        group: int,
        stopping: Callable[[], bool],
        watch: Callable[[str], None],
    ) -> str:
        """What pgBackRest says of a copy and of what it builds on."""
        self.equip()
        said = ""

        def listen(text: str) -> None:
            nonlocal said
            said = text
            watch(text)

        mark = self._end_verifying(group)
        stanza = f"--stanza={config.stanza(group, made.system)}"
        self._runner.run(
            [stanza, f"--set={made.label}", *verification.OPTIONS, mark, "verify"],
            self._runner.of(group),
            stopping=stopping,
            watch=listen,
        )
        return said

    def end_verifying(self) -> None:
        for group, _ in self.systems():
            self._end_verifying(group)

    def _end_verifying(self, group: int) -> str:
        """End what works on a group; returns by which option it is known, for it takes no lock and writes no log."""
        mark = f"--log-path={self._runner.lock(group)}-verify"
        self._runner.end_strays(group, mark)
        return mark

    def _are_there(self, copies: Sequence[str]) -> bool:
        # First what is to go: once it is gone, that is told no more.
        if pins.is_any_to_go(self.repository, copies):
            return False
        return set(copies) <= {each.id for each in self.repository.backups()}

    def restore_command(self, group: int, system: str) -> str:
        return config.restore_command(self._runner.command, group, system)

    def hindrance(self, said: str) -> str | None:
        return config.hindrance(said, near=self.repository.store.near)

    def major_of(self, backup: str, group: int) -> int:
        stanza = config.stanza(group, self._copy_of(backup, group).system)
        found = self._told(stanza)
        try:
            return int(str(found[0]["db"][-1]["version"]).split(".")[0])
        except (LookupError, ValueError, TypeError):
            raise PgherdError(f"{self.location} lost the stanza {stanza}") from None

    # the log

    def readable_timeline(self, group: int, at: GroupPoint) -> int | None:
        return self._log.readable_timeline(config.stanza(group, at.system), at)

    def histories(self, group: int, system: str) -> Sequence[wal.History]:
        return self._log.histories(config.stanza(group, system))

    def log_names(self, group: int, system: str) -> Collection[str]:
        return self._log.names(config.stanza(group, system))

    def systems(self) -> Sequence[tuple[int, str]]:
        plain = self._stores[1]
        names = {name for kind in ("archive", "backup") for name in plain.folders(f"{config.FOLDER}/{kind}")}
        return [parsed for name in sorted(names) if (parsed := config.parse_stanza(name)) is not None]

    def remove_log(self, group: int, system: str, before: int | None) -> int:
        stanza = config.stanza(group, system)
        if before is None:
            self._admitted.discard(stanza)
            for kind in ("backup", "archive"):
                self._stores[1].remove(f"{config.FOLDER}/{kind}/{stanza}")
            return 0
        copies = len(self._info(stanza))
        if copies:
            # Of all copies that are left, the oldest begins where the log has to begin.
            keep = [f"--repo1-retention-archive={copies}", "--repo1-retention-archive-type=incr"]
            self._output([f"--stanza={stanza}", *keep, f"--lock-path={self._runner.lock(group)}", "expire"])
        return 0

    # the end of things

    def discard(self, backup: str, groups: Collection[int] | None = None) -> None:
        for group, system in self.systems():
            if groups is not None and group not in groups:
                continue
            stanza = config.stanza(group, system)
            for each in reversed(self._info(stanza)):
                if _owner(each) == backup:
                    self._expire(group, stanza, each["label"])
            if groups is not None and (left := self._made_for(stanza, backup)) is not None:
                self._disown(group, stanza, left["label"])

    def _disown(self, group: int, stanza: str, label: str) -> None:
        """The last full copy stays until there is another one, but it is not to be taken for the one that is due."""
        options = [f"--stanza={stanza}", f"--set={label}", f"--lock-path={self._runner.lock(group)}"]
        self._output([*options, f"--annotation={config.ANNOTATION}={_NOBODY}", "annotate"])

    def remove_backup(self, backup: str) -> None:
        for group, made in self.repository.backup(backup).groups.items():
            self._expire(group, config.stanza(group, made.system), made.label)
        self.repository.remove_backup(backup)

    def sweep(self) -> None:
        for folder in (*REMEMBERED, f"{config.FOLDER}/archive", f"{config.FOLDER}/backup"):
            self._stores[1].sweep(folder)

    def _expire(self, group: int, stanza: str, label: str) -> None:
        if label not in {each["label"] for each in self._info(stanza)}:
            return
        try:
            self._output(
                [f"--stanza={stanza}", f"--set={label}", f"--lock-path={self._runner.lock(group)}", "expire"]
            )
        except PgherdError as error:
            # The last full copy of a stanza goes with the stanza (remove_log).
            if "until another full backup" not in str(error):
                raise


def _owner(made: Mapping[str, Any]) -> str | None:
    """The backup of ours that a copy was made for."""
    found = (made.get("annotation") or {}).get(config.ANNOTATION)
    return None if found is None else str(found)


def _primary_of(connection: Mapping[str, str]) -> _Primary:
    try:
        with psycopg.connect(autocommit=True, **connection) as session:  # type: ignore[arg-type]
            row = session.execute(
                "SELECT current_setting('data_directory'), s.system_identifier::text,"
                " (SELECT sum(pg_database_size(oid))::bigint FROM pg_database) FROM pg_control_system() s"
            ).fetchone()
            assert row is not None
            return _Primary(row[0], session.info.host, session.info.port, row[1], row[2])
    except psycopg.OperationalError as error:
        raise Unavailable(f"the group can't be reached: {str(error).strip()}") from error


def cores() -> int:
    """How many processes copy side by side."""
    return max(1, len(os.sched_getaffinity(0)))
