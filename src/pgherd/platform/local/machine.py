"""This machine: programs are its processes, run as members run, files are its files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pgherd.errors import PgherdError
from pgherd.model.topology import SUPERUSER, Endpoint
from pgherd.platform.base import Programs
from pgherd.platform.local import files, tools
from pgherd.platform.machine import PATIENCE_SECONDS, Entrance, Machine, Process

_SOCKETS = "pgherd-"
_NOTE = "private_sockets"
_PORT = 5432
"""part of a socket's name only"""


class LocalMachine(Machine):
    """See :class:`~pgherd.platform.machine.Machine`."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    @property
    def major(self) -> int:
        return self._programs.major

    def program(self, name: str) -> str:
        return str(self._programs.find(name))

    def output(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = PATIENCE_SECONDS,
    ) -> bytes:
        try:
            done = subprocess.run(
                [*self._programs.prefix, *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                env={**_environment(), **(environment or {})},
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PgherdError(f"{command[0]} does not run: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise PgherdError(said or f"exit code {done.returncode}")
        return done.stdout

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> None:
        tools.run([*self._programs.prefix, *command], environment=environment, stopping=stopping, watch=watch)

    def start(self, command: Sequence[str], log: Path) -> Process:
        with files.explained(f"start {command[0]}"):
            log.parent.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
            begin = log.stat().st_size if log.exists() else 0
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*self._programs.prefix, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                    umask=0o077,
                )
        return _Child(process, log, begin)

    def entrance(self, folder: Path) -> Entrance:
        return _Sockets(folder)

    def end_strays(self, argument: str) -> None:
        tools.end_strays(Path(argument))

    def write(self, path: Path, text: str) -> None:
        files.write(path, text)

    def names(self, folder: Path, ending: str) -> Sequence[str]:
        return sorted(path.name for path in folder.glob(f"*{ending}")) if folder.is_dir() else []

    def make_folder(self, path: Path) -> None:
        with files.explained(f"make {path}"):
            path.mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)

    def remove(self, path: Path) -> None:
        files.remove(path)


class _Child(Process):
    """A process of ours.

    :param begin: where in its log it began to speak
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, begin: int) -> None:
        self._process, self._log, self._begin = process, log, begin

    def is_running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        with files.explained(f"read {self._log}"), self._log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def stop(self, seconds: float) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(10.0)


class _Sockets(Entrance):
    """No network, one socket in a folder that is its owner's alone.

    A short path (a socket's is limited to 107 characters); that of a killed process is removed.
    """

    access = f"local all {SUPERUSER} trust\n"

    def __init__(self, folder: Path) -> None:
        self._note = folder / _NOTE
        if self._note.exists():
            before = Path(self._note.read_text().strip())
            if before.name.startswith(_SOCKETS) and before.parent == Path(tempfile.gettempdir()):
                shutil.rmtree(before, ignore_errors=True)
        self._place = Path(tempfile.mkdtemp(prefix=_SOCKETS))
        files.write(self._note, str(self._place))
        self.endpoint = Endpoint(str(self._place), _PORT)
        self.settings = {
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": str(self._place),
        }

    def close(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        self._note.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**clean, "LC_ALL": "C"}
