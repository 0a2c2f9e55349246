"""Patroni's store: one ``patroni_raft_controller`` per home, the only voter; members take part without a vote.

Its log is kept on disk, so it may be killed at any time; while it is away nobody is elected and, thanks to Patroni's
failsafe mode, nobody is demoted. Its messages are encrypted with a password of this home: the protocol carries pickled
objects, which must not be accepted from strangers on the same machine.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pgherd.errors import PgherdError
from pgherd.platform.local import files, logs
from pgherd.platform.local.layout import Layout
from pgherd.platform.local.ports import HOST, STORE, PortBook, is_free
from pgherd.platform.local.processes import Daemons, end, listener

START_SECONDS = 10.0
ERASE_SECONDS = 20.0
READY_SECONDS = 10.0
"""a lone voter elects itself within two seconds; it is asked whether it did only after this time"""
_POLL_SECONDS = 0.02
_BAD_INPUT = re.compile(r"[\w.]*(error|Error|Exception)\b(?!.*(Errno|No module named))")
"""how Python ends that was given nonsense to read; what the system refused has a number"""
_ASK_FOR_LEADER = """
import sys, yaml
from pysyncobj.utility import TcpUtility
raft = yaml.safe_load(open(sys.argv[1]))["raft"]
status = TcpUtility(raft["password"], timeout=5.0).executeCommand(raft["self_addr"], ["status"])
sys.exit(0 if status and status.get("leader") else 1)
"""

_ERASE = """
import json, sys
from patroni.dcs import get_dcs
sys.exit("it was refused" if get_dcs(json.load(sys.stdin)).delete_cluster() is False else 0)
"""

_READ = """
import json, sys
from patroni.dcs import get_dcs
cluster = get_dcs(json.load(sys.stdin)).get_cluster()
json.dump({"lsn": cluster.status.last_lsn}, sys.stdout)
"""


class RaftStore:
    """The store of one home. Callers hold the home's lock."""

    def __init__(self, layout: Layout, ports: PortBook, daemons: Daemons) -> None:
        self._directory = layout.raft
        self._config = layout.raft / "raft.yml"
        self._log = layout.raft / "controller.log"
        self._ports = ports
        self._daemons = daemons
        self._doubted_since: float | None = time.monotonic()

    def is_running(self) -> bool:
        """Whether the controller runs."""
        return self._daemons.find(self._config) is not None

    def ensure_running(self, prefix: Sequence[str]) -> None:
        """Start the controller unless it runs; returns once it listens.

        Members that find nobody there when they start would try again only after seconds.

        :param prefix: put before its command
        :raises PgherdError: it does not start, or does not get ready
        """
        if self.is_running():
            logs.rotate(self._log)
            self._check_ready()
            return
        self._doubted_since = time.monotonic()
        port = self._port()
        if not is_free(port):
            who = listener(port)
            raise PgherdError(
                f"port {port} of Patroni's store is taken by another program ({who or 'unknown'}): end it"
            )
        self._write_config(port)
        self._drop_unborn_log()
        self._daemons.start_raft_controller(self._config, self._log, prefix)
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            if not self.is_running() or time.monotonic() > deadline:
                raise PgherdError(f"Patroni's store does not start{self._suspicion()} (see {self._log})")
            time.sleep(_POLL_SECONDS)

    def _check_ready(self) -> None:
        """A controller whose log was damaged runs but never leads: members would wait for it without a word."""
        doubted = 0.0 if self._doubted_since is None else time.monotonic() - self._doubted_since
        if doubted < READY_SECONDS:
            return
        if self._leads():
            self._doubted_since = None
        elif doubted > 3 * READY_SECONDS:  # not merely slow
            raise PgherdError(f"Patroni's store does not get ready{self._way_out()}")

    def _leads(self) -> bool:
        # In a process of its own: the library replaces functions of the module socket when it is imported.
        command = [sys.executable, "-P", "-c", _ASK_FOR_LEADER, str(self._config)]
        return subprocess.run(command, capture_output=True, timeout=30.0, check=False).returncode == 0

    def _drop_unborn_log(self) -> None:
        # Killed between making the file and giving it its size: nothing was ever in it, but it can't be opened.
        for log in (self._directory / "data").glob("*.journal"):
            if log.stat().st_size == 0:
                log.unlink()

    def stop(self) -> None:
        """End the controller; no-op if it is not running."""
        while (process := self._daemons.find(self._config)) is not None:
            end([process], signal.SIGTERM, 5.0) or end([process], signal.SIGKILL, 5.0)

    def remove(self) -> None:
        """End the controller and remove what the store holds."""
        self.stop()
        files.remove(self._directory)
        self._ports.release(STORE)

    def member_section(self) -> Mapping[str, Any]:
        """What a member's ``patroni.yml`` says about the store."""
        return {"raft": {"partner_addrs": [f"{HOST}:{self._port()}"], "password": self._password()}}

    def erase(self, scope: str, namespace: str, section: Mapping[str, Any]) -> None:
        """Remove what one Patroni cluster keeps in the store, which must run.

        :param section: what tells a group from the others of its scope
        :raises PgherdError: the store does not answer
        """
        self._ask(_ERASE, f"does not forget {scope}", scope, namespace, section)

    def last_lsn(self, scope: str, namespace: str, section: Mapping[str, Any]) -> int | None:
        """What a group's leader last said that it had written, in bytes; None: nothing is known of it.

        :param section: as above
        :raises PgherdError: the store, which must run, does not answer
        """
        told = self._ask(_READ, f"does not tell about {scope}", scope, namespace, section)
        with contextlib.suppress(ValueError, TypeError, LookupError):
            return int(json.loads(told.strip().splitlines()[-1])["lsn"]) or None
        return None

    def _ask(self, program: str, failure: str, scope: str, namespace: str, section: Mapping[str, Any]) -> str:
        config = {
            **self.member_section(),
            **section,
            "scope": scope,
            "namespace": namespace,
            "name": "pgherd",
            "patronictl": True,
            "ttl": 20,
            "loop_wait": 1,
            "retry_timeout": 3,
        }
        # In a process of its own, for the same reason as above.
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", program],
                input=json.dumps(config),
                capture_output=True,
                text=True,
                timeout=ERASE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PgherdError("Patroni's store does not answer: it is tried again") from error
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise PgherdError(f"Patroni's store {failure}: {reason}")
        return done.stdout

    def _port(self) -> int:
        if not self._ports.of_cluster(STORE) and self._config.exists():
            known = str(self._read_config()["raft"]["self_addr"]).rpartition(":")[2]
            self._ports.adopt(STORE, "raft", {"raft": int(known)})
        return self._ports.reserve(STORE, "raft", "raft")["raft"]

    def _password(self) -> str:
        return str(self._read_config()["raft"]["password"])

    def _read_config(self) -> Any:
        with files.explained(f"read {self._config}"):
            text = self._config.read_text(errors="replace")
        with contextlib.suppress(yaml.YAMLError, LookupError, TypeError, ValueError):
            config = yaml.safe_load(text)
            int(str(config["raft"]["self_addr"]).rpartition(":")[2])
            if config["raft"]["password"]:
                return config
        raise PgherdError(
            f"{self._config} is damaged (not the store's configuration): restore it from a copy; its password is also "
            "in the patroni.yml of every member"
        )

    def _write_config(self, port: int) -> None:
        with files.explained(f"make {self._directory}"):
            (self._directory / "data").mkdir(parents=True, exist_ok=True, mode=files.PRIVATE_DIRECTORY)
        password = self._password() if self._config.exists() else secrets.token_urlsafe(32)
        config = {
            "log": {"level": "INFO"},
            "raft": {
                "self_addr": f"{HOST}:{port}",
                "partner_addrs": [],
                "data_dir": str(self._directory / "data"),
                "password": password,
            },
        }
        files.write(self._config, yaml.safe_dump(config))

    def _suspicion(self) -> str:
        """What the controller's end tells: an error of the system speaks for itself, any other came from its log."""
        words = self._last_words()
        unreadable = any((self._directory / "data").iterdir()) and _BAD_INPUT.match(words)
        return f" ({words}){self._way_out()}" if unreadable else f": {words}"

    def _way_out(self) -> str:
        return (
            ", its log seems to be damaged: stop all clusters of this home and remove "
            f"{self._directory / 'data'}; databases keep their data, but start all members together then"
        )

    def _last_words(self) -> str:
        try:
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return lines[-1].strip() if lines else "it said nothing"


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True
