"""pgBackRest itself: where it is, and who runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from pgherd.backup import archive
from pgherd.backup.pgbackrest_config import Settings, complaint, is_away, render, version_problem
from pgherd.errors import BadInput, Cancelled, PgherdError, Unavailable, Withheld
from pgherd.platform.base import Programs
from pgherd.platform.local import files
from pgherd.platform.local.machine import LocalMachine
from pgherd.platform.machine import Machine, Machines

VARIABLE = "PGHERD_PGBACKREST"
CONFIG = "pgbackrest.conf"
SCRIPT = "archive.py"


def find() -> Path:
    """The program.

    :raises BadInput: it is not here
    """
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or "pgbackrest")
    if found is None:
        raise BadInput(
            f"spec.backup.method: pgbackrest is not installed here ({named or 'pgbackrest'} is no program): "
            f"install it, name it with {VARIABLE}, or leave method out"
        )
    return Path(found).absolute()


def name() -> str:
    """The program's path; its bare name where it is not installed (any more): members go on without it."""
    try:
        return str(find())
    except BadInput:
        return "pgbackrest"


def check(major: int) -> None:
    """Refuse a pgBackRest that does not know a PostgreSQL.

    :raises BadInput: with both versions
    """
    program = find()
    stamp = program.stat()
    problem = version_problem(_version(str(program), stamp.st_mtime_ns), major)
    if problem is not None:
        raise BadInput(f"spec.backup.method: {problem}")


@lru_cache(maxsize=16)
def _version(program: str, changed: int) -> str:
    try:
        done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BadInput(f"spec.backup.method: {program} does not run: {error}") from None
    return done.stdout.strip() or done.stderr.strip()


class Runner(ABC):
    """Who runs pgBackRest: on this machine, or where the members are.

    :ivar command: the program with its configuration, as members name it
    :ivar script: what helps members archive (``archive.py``)
    """

    command: Sequence[str]
    script: Sequence[str]

    def check(self) -> None:
        """Refuse a pgBackRest that won't do.

        :raises BadInput: why
        """
        return

    @abstractmethod
    def prepare(self, settings: Settings) -> None:
        """See to it that the configuration is up to date."""

    def withdraw(self) -> None:
        """See to it that there is none. Where members are pods, whoever looks after their Secret does that."""
        return

    @abstractmethod
    def at(self, host: str) -> Machine:
        """Where the server runs that is reached under this name."""

    @abstractmethod
    def of(self, group: int | None) -> Machine:
        """Where something of a group can be done; None: of any group."""

    @abstractmethod
    def end_strays(self, group: int, argument: str) -> None:
        """End what a process that was killed has left at work on a group."""

    @abstractmethod
    def lock(self, group: int) -> Path:
        """A folder for the locks of a group, which no other program uses."""

    @abstractmethod
    def environment(self, host: str, password: str) -> Mapping[str, str]:
        """What libpq has to be told where the server runs. pgBackRest names no host but a socket's folder."""

    def output(self, arguments: Sequence[str], machine: Machine) -> bytes:
        """What a command prints.

        :raises Withheld: it did not reach the repository, or was refused there
        :raises PgherdError: it failed; in its own words
        """
        quiet = ("--log-level-console=off", "--log-level-stderr=error")
        try:
            return machine.output([*self.command, *quiet, *arguments])
        except Unavailable:
            raise
        except PgherdError as error:
            raise _failed(f"pgbackrest: {complaint(str(error))}") from error

    def run(
        self,
        arguments: Sequence[str],
        machine: Machine,
        *,
        environment: Mapping[str, str] | None = None,
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> None:
        """A command that takes its time.

        :raises Cancelled: ``stopping`` said so
        :raises PgherdError: it failed; in its own words
        """
        command = [*self.command, *arguments]
        try:
            machine.run(command, environment=environment, stopping=stopping, watch=watch)
        except (Cancelled, Unavailable):
            raise
        except PgherdError as error:
            raise _failed(complaint(str(error))) from error


def _failed(said: str) -> PgherdError:
    return Withheld(said) if is_away(said) else PgherdError(said)


def _script(python: str, path: str) -> Sequence[str]:
    return (python, "-I", "-S", path)


class Here(Runner):
    """On this machine.

    :param folder: of the configuration and the locks
    :param programs: asked for when one is needed
    """

    script = _script(sys.executable, archive.__file__)

    def __init__(self, folder: Path, programs: Callable[[], Programs]) -> None:
        self._folder = folder
        self._programs = programs

    @property
    def command(self) -> Sequence[str]:  # type: ignore[override]
        return [name(), f"--config={self._config}"]

    @property
    def _config(self) -> Path:
        return self._folder / CONFIG

    def check(self) -> None:
        check(self._programs().major)

    def prepare(self, settings: Settings) -> None:
        find()
        for file, text in config_files(settings).items():
            _update(self._folder / file, text)

    def withdraw(self) -> None:
        files.remove(self._config)

    def at(self, host: str) -> Machine:
        return LocalMachine(self._programs())

    def of(self, group: int | None) -> Machine:
        return LocalMachine(self._programs())

    def end_strays(self, group: int, argument: str) -> None:
        LocalMachine(self._programs()).end_strays(argument)

    def lock(self, group: int) -> Path:
        return self._folder / f"lock-{group}"

    def environment(self, host: str, password: str) -> Mapping[str, str]:
        return {"PGHOST": host, "PGPASSWORD": password}


class WithMembers(Runner):
    """Where the members are, which have pgBackRest. What its server's password is, they know."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self.command = ["pgbackrest", f"--config={machines.folder / CONFIG}"]
        self.script = _script("python3", str(machines.folder / SCRIPT))

    def prepare(self, settings: Settings) -> None:
        script = Path(archive.__file__).read_text(encoding="utf-8")
        self._machines.equip({**config_files(settings), SCRIPT: script})

    def at(self, host: str) -> Machine:
        return self._machines.at(host)

    def of(self, group: int | None) -> Machine:
        return self._machines.of(group)

    def end_strays(self, group: int, argument: str) -> None:
        self._machines.end_strays(group, argument)

    def lock(self, group: int) -> Path:
        return Path(f"/tmp/pgherd-backup-{group}")

    def environment(self, host: str, password: str) -> Mapping[str, str]:
        return {}


def config_files(settings: Settings) -> dict[str, str]:
    """The configuration and what it refers to, by name; only their owner may read them."""
    found = {CONFIG: render(settings)}
    if settings.key_file is not None:
        found[Path(settings.key_file).name] = settings.secrets.get("service-account", "")
    if settings.authority is not None and "ca.crt" in settings.secrets:
        found[Path(settings.authority).name] = settings.secrets["ca.crt"]
    return found


def _update(path: Path, text: str) -> None:
    """Only its owner may read it; written only if it changed: members read it all the time."""
    try:
        if path.read_text() == text:
            return
    except OSError:
        pass
    files.write(path, text)
