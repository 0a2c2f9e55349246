"""A member's pod as a place where programs work on its data: see :mod:`pgherd.platform.machine`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pgherd.errors import Cancelled, PgherdError, Unavailable
from pgherd.model.spec import VolumeSpec
from pgherd.model.topology import SUPERUSER, Endpoint, group_name
from pgherd.platform.kubernetes import names, patroni_files, views, volumes
from pgherd.platform.kubernetes.api import Object
from pgherd.platform.kubernetes.programs import PodProgram
from pgherd.platform.kubernetes.tunnel import HOST, Reach, Tunnel
from pgherd.platform.local.tools import complaint
from pgherd.platform.machine import LAST_BYTES, PATIENCE_SECONDS, Entrance, Machine, Machines, Process

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""between two looks whether a pod in which something is done is still there"""
SIGNALLED = 128
"""with the signal's number the exit code of a program that was killed, as a shell tells it"""
PRIVATE_PORT = 5433
"""of a server that nobody but the operator reaches; on its pod's loopback only"""

_WRITE = 'umask 077; printf %s "$2" > "$1.new" && sync "$1.new" && mv "$1.new" "$1"'
_NAMES = 'cd "$1" 2> /dev/null && ls -1 || true'
_MAKE = 'umask 077; mkdir -p "$1"'
_END = """\
for round in $(seq 50); do
    left=
    for each in /proc/[0-9]*; do
        { mapfile -d '' -t arguments < "$each/cmdline"; } 2> /dev/null || continue
        for argument in "${arguments[@]}"; do
            [ "$argument" = "${1#of }" ] || continue
            left=1
            kill -KILL "${each#/proc/}" 2> /dev/null
        done
    done
    [ -n "$left" ] || exit 0
    sleep 0.1
done
exit 1
"""
_REMOVE = """\
for round in $(seq 5); do
    rm -rf -- "$1" && exit 0
    sleep 1
done
exit 1
"""
_END_IN = """\
for round in $(seq 50); do
    left=
    for each in /proc/[0-9]*; do
        if [ "$each/cwd" -ef "$1" ]; then
            left=1
            kill -KILL "${each#/proc/}" 2> /dev/null
        fi
    done
    if [ -z "$left" ]; then
        # Of a server that was killed, perhaps in another pod: its number may be any process's here, and PostgreSQL
        # would refuse to start.
        rm -f "$1/postmaster.pid"
        exit 0
    fi
    sleep 0.1
done
exit 1
"""


class PodMachine(Machine):
    """One pod.

    :param major: PostgreSQL's major version in its image
    :param end: tells why nothing runs in it any more, of which its node may say nothing; empty: it does, or nobody
        knows
    """

    def __init__(self, api: Reach, pod: str, major: int, end: Callable[[], str] = str) -> None:
        self._api, self._pod, self._major, self._end = api, pod, major, end

    @property
    def major(self) -> int:
        return self._major

    def program(self, name: str) -> str:
        return f"/usr/lib/postgresql/{self._major}/bin/{name}"

    def output(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = PATIENCE_SECONDS,
    ) -> bytes:
        program = self._start(command, environment, whole=True)
        if not program.wait(seconds):
            program.abandon()
            raise Unavailable(f"{command[0]} in {self._pod} is not done after {seconds:.0f} s")
        if program.code != 0:
            said = (program.errors() or program.output()).decode(errors="replace").strip()
            raise PgherdError(said or f"exit code {program.code}")
        return program.output()

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stopping: Callable[[], bool],
        watch: Callable[[str], None] = lambda text: None,
    ) -> None:
        program, looked = self._start(command, environment), time.monotonic()
        try:
            while not program.wait(POLL_SECONDS):
                if stopping():
                    raise Cancelled(f"{command[0]} in {self._pod} was stopped")
                watch(program.said()[-4096:])
                if time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    self._require_there()
        except BaseException:
            program.abandon()
            raise
        said = program.said()[-LAST_BYTES:]
        watch(said)
        if program.code > SIGNALLED:
            # What it said last is how far it was.
            raise PgherdError(f"{command[0]} in {self._pod} was ended by signal {program.code - SIGNALLED}")
        if program.code != 0:
            raise PgherdError(f"{command[0]}: {complaint(said)}")

    def _require_there(self) -> None:
        """A connection to a node that was cut off, or lost its power, stays open for a quarter of an hour."""
        if why := self._end():
            raise Unavailable(why)

    def start(self, command: Sequence[str], log: Path) -> Process:
        return self._start(command, None)

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str] | None, *, whole: bool = False
    ) -> PodProgram:
        given = [f"{name}={value}" for name, value in (environment or {}).items()]
        full = ["/usr/bin/env", *given, *command] if given else command
        return PodProgram(self._api, self._pod, full, whole=whole)

    def entrance(self, folder: Path) -> Entrance:
        return _Loopback(self._api, self._pod)

    def shell(self, script: str, *arguments: str) -> bytes:
        """What a few lines of shell print.

        :raises PgherdError: they failed
        """
        return self.output(["/bin/bash", "-c", script, "shell", *arguments])

    def end_strays(self, argument: str) -> None:
        # In other words, so that these lines do not find themselves.
        self.shell(_END, f"of {argument}")

    def end_in(self, folder: Path) -> None:
        """End every process that works in a folder, and wait for their end."""
        self.shell(_END_IN, str(folder))

    def write(self, path: Path, text: str) -> None:
        self.shell(_WRITE, str(path), text)

    def names(self, folder: Path, ending: str) -> Sequence[str]:
        found = self.shell(_NAMES, str(folder)).decode().splitlines()
        return [name for name in found if name.endswith(ending)]

    def make_folder(self, path: Path) -> None:
        self.shell(_MAKE, str(path))

    def remove(self, path: Path) -> None:
        # What was ended a moment ago may still have been writing.
        self.shell(_REMOVE, str(path))


class _Loopback(Entrance):
    """The pod's own loopback, reached by a tunnel of the Kubernetes API: by nobody who may not do that."""

    access = f"host all {SUPERUSER} 127.0.0.1/32 trust\n"

    def __init__(self, api: Reach, pod: str) -> None:
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(PRIVATE_PORT),
            "unix_socket_directories": "",
        }
        self._tunnel = Tunnel(api, lambda: pod, PRIVATE_PORT)
        self.endpoint = Endpoint(HOST, self._tunnel.port)

    def close(self) -> None:
        self._tunnel.close()


@dataclass(frozen=True)
class MemberMachines(Machines):
    """The pods of a running cluster's members.

    :ivar claim: of the volume that the repository is on
    """

    platform: KeepsBackups
    cluster: str
    major: int
    processes: int = 1
    claim: str | None = None
    folder: Path = field(default=Path(patroni_files.BACKUP_DIRECTORY))

    def at(self, host: str) -> Machine:
        pod = host.partition(".")[0]
        if pod not in self._running(None):
            raise Unavailable(f"{pod} does not run")
        if pod not in self._equipped(None):
            raise Unavailable(
                f"{pod} has no volume {self.claim} until it is replaced, which is about to be done"
            )
        return self._machine(pod)

    def of(self, group: int | None) -> Machine:
        running = self._equipped(group) or self._equipped(None)
        if not running:
            which = f"with volume {self.claim} " if self.claim and self._running(None) else ""
            raise Unavailable(f"no member of {self.cluster} {which}runs")
        return self._machine(running[0])

    def _machine(self, pod: str) -> Machine:
        def look() -> Object | None:
            pods = self.platform.pods(self.cluster)
            return next((each for each in pods if each["metadata"]["name"] == pod), None)

        return PodMachine(self.platform.reach, pod, self.major, End(self.platform, pod, look))

    def end_strays(self, group: int, argument: str) -> None:
        for pod in self._running(group):
            try:
                PodMachine(self.platform.reach, pod, self.major).end_strays(argument)
            except Unavailable:
                continue  # its guard hears nothing from us either
            except PgherdError as error:
                raise PgherdError(f"{group_name(group)}: what an earlier try left: {error}") from error

    def _equipped(self, group: int | None) -> list[str]:
        """Those that have the repository's volume, if it is on one.

        :raises Refused: nobody can have it, and why
        """
        if self.claim is None:
            return self._running(group)
        self.platform.holders.require(self.claim)
        having = {
            pod["metadata"]["name"]
            for pod in self.platform.pods(self.cluster)
            if self.claim in volumes.mounted(pod["spec"])
        }
        return [name for name in self._running(group) if name in having]

    def holder(self, volume: VolumeSpec) -> Machine:
        return self.platform.holders.machine(self.cluster, volume.claim_name)

    def _running(self, group: int | None) -> list[str]:
        """Pods of members whose container runs, those that serve first."""
        pods = self.platform.pods(self.cluster)
        found = [
            (not views.is_ready(pod), pod["metadata"]["name"])
            for pod in pods
            if (member := names.member_of(self.cluster, pod["metadata"]["name"])) is not None
            and group in (None, member.group)
            and views.is_running(pod)
            and "deletionTimestamp" not in pod["metadata"]
        ]
        return [name for _, name in sorted(found)]

    def equip(self, files: Mapping[str, str]) -> None:
        self.platform.equip(self.cluster, names.backup_secret(self.cluster), files)


class End:
    """Tells why nothing runs in a pod any more: it is gone, or its node is silent. Empty: something does, or nobody
    knows.

    :param look: what is known of a pod of this name
    """

    def __init__(self, platform: KeepsBackups, pod: str, look: Callable[[], Object | None]) -> None:
        self._platform, self._pod, self._look = platform, pod, look
        self._uid: str | None = None

    def __call__(self) -> str:
        with suppress(PgherdError):
            found = self._look()
            self._uid = self._uid or (found or {}).get("metadata", {}).get("uid")
            if found is None or found["metadata"].get("uid") != self._uid:
                return f"{self._pod} is gone"
            if (node := self._platform.silent_node(found)) is not None:
                return f"the node of {self._pod}, {node}, does not report any more"
        return ""


def wait_until(
    done: Callable[[], bool],
    what: Callable[[], str],
    seconds: float,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Look again and again.

    :raises Cancelled: ``stopping`` said so
    :raises Unavailable: it did not come to pass
    """
    deadline = time.monotonic() + seconds
    while not done():
        if stopping():
            raise Cancelled(f"nobody waits any more: {what()}")
        if time.monotonic() > deadline:
            raise Unavailable(what())
        time.sleep(POLL_SECONDS)
