"""The script that a member's container runs: nobody begins on a volume that somebody else still uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgherd.backup import restore
from pgherd.patroni.config import REMEMBERED
from pgherd.platform.bench import Ending
from pgherd.platform.kubernetes import endings, patroni_files
from pgherd.platform.kubernetes.stands import Stands
from tests.support.waiting import until
from tests.unit.test_kubernetes_objects import objects

PATRONI = """\
#!{python}
# Starts a server as Patroni does, by Patroni's own hand, and stays beside it.
import os, signal, sys
from patroni.postgresql.postmaster import PostmasterProcess
if __name__ == "__main__":
    server = PostmasterProcess.start("{bin}/postgres", os.environ["DATA"], "none", [])
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(f"{{os.getpid()}} {{server.pid}}\\n")
    signal.pause()
"""


CONTROLDATA = """\
#!/bin/sh
echo "pg_control version number:            1700"
echo "Database cluster state:               shut down"
echo "Latest checkpoint location:           0/5000028"
echo "Latest checkpoint's REDO location:    0/5000028"
echo "Latest checkpoint's TimeLineID:       3"
"""


class Containers:
    """Containers of one volume, as plain processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.volume, self.journal = folder / "volume", folder / "journal"
        for each in (self.volume, folder / "bin", folder / "tls", folder / "etc"):
            each.mkdir()
        for name in ("tls.crt", "ca.crt"):
            (folder / "tls" / name).touch()
        self._program("patroni", PATRONI.format(python=sys.executable, bin=folder / "bin"))
        self._program("postgres", "#!/bin/sh\nexec sleep 600\n")
        self._program("pg_controldata", CONTROLDATA)
        self._program("python3", '#!/bin/sh\nbasename "$1" >> "$JOURNAL.python"\neval "$PYTHON_DOES"\n')
        script = objects()["ConfigMap"]["data"]["start.sh"]
        for path, here in (
            (patroni_files.VOLUME_PATH, self.volume),
            (patroni_files.TLS_DIRECTORY, folder / "tls"),
            (patroni_files.DIRECTORY, folder / "etc"),
            ("/dev/termination-log", folder / "log"),
            ("/usr/lib/postgresql/17/bin", folder / "bin"),
        ):
            script = script.replace(path, str(here))
        self._script = script
        self.started: list[subprocess.Popen[str]] = []

    def ask(self, text: str) -> None:
        """What a new cluster's containers run first."""
        (self._folder / "etc" / patroni_files.FIRST_FILE).write_text(text)

    def _program(self, name: str, text: str) -> None:
        path = self._folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """Another container."""
        environment = {
            **os.environ,
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
            "DATA": str(self.volume / "data"),
            "JOURNAL": str(self.journal),
            "PGHERD_AUTHORITY": str(self._folder / "authority"),
            "POD_IP": "10.1.0.2",
            "PYTHON_DOES": "",
            **variables,
        }
        out = (self._folder / f"out{len(self.started)}").open("w")
        made = subprocess.Popen(
            ["/bin/sh", "-c", self._script], env=environment, text=True, stdout=out, start_new_session=True
        )
        self.started.append(made)
        return made

    def mark(self) -> None:
        """What Patroni runs when its server is up."""
        script = objects()["ConfigMap"]["data"]["mark.sh"]
        script = script.replace(patroni_files.VOLUME_PATH, str(self.volume))
        subprocess.run(["/bin/sh", "-c", script], check=True)

    def said(self, number: int) -> str:
        """What a container printed."""
        return (self._folder / f"out{number}").read_text()

    def last_words(self) -> str:
        """What Kubernetes would be told."""
        path = self._folder / "log"
        return path.read_text() if path.exists() else ""

    def asked(self) -> str:
        """The Python programs that the script ran."""
        journal = Path(f"{self.journal}.python")
        return journal.read_text() if journal.exists() else ""

    def servers(self) -> list[tuple[int, int]]:
        """Patroni's and the server's process, of every container that came so far."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    made = Containers(tmp_path)
    yield made
    for shell in made.started:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait(10)
    for _, server in made.servers():
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


def test_a_second_container_waits_for_the_last_process_of_the_first(containers: Containers) -> None:
    first = containers.start()
    until(containers.servers, "the first serves")
    _, server = containers.servers()[0]
    containers.start()
    until(lambda: "still uses this volume" in containers.said(1), "the second says that it waits")
    # Even when all but the server itself is gone.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    time.sleep(1.0)
    assert len(containers.servers()) == 1
    os.kill(server, signal.SIGKILL)
    until(lambda: len(containers.servers()) == 2, "the second serves")


def test_who_waits_for_a_volume_can_be_told_to_go(containers: Containers) -> None:
    containers.start()
    until(containers.servers, "the first serves")
    second = containers.start()
    until(lambda: "still uses this volume" in containers.said(1), "the second says that it waits")
    second.terminate()
    assert second.wait(10) == 143
    assert len(containers.servers()) == 1


def test_nothing_on_the_volume_is_touched_before_it_is_ours(containers: Containers) -> None:
    containers.start()
    until(containers.servers, "the first serves")
    # A copy under way: whoever comes second would remove it.
    (containers.volume / "data" / "half").touch()
    containers.start()
    until(lambda: "still uses this volume" in containers.said(1), "the second says that it waits")
    assert (containers.volume / "data" / "half").exists()


def test_a_restore_that_nobody_knows_of_any_more_is_not_taken_for_a_database(containers: Containers) -> None:
    (containers.volume / restore.FOLDER).mkdir()
    assert containers.start().wait(10) == 2
    assert "a restore that was not finished" in containers.said(0)
    assert not containers.servers()


def test_who_is_refused_before_the_first_data_begins_nothing(containers: Containers) -> None:
    containers.ask("echo no; exit 78")
    assert containers.start().wait(10) == 78
    assert containers.said(0).splitlines() == ["no"]
    assert not containers.servers()
    assert not list((containers.volume / "data").iterdir())


def test_who_has_data_is_asked_nothing(containers: Containers) -> None:
    containers.ask("exit 78")
    for folder in ("global", "base/5"):
        (containers.volume / "data" / folder).mkdir(parents=True)
    for file in ("global/pg_control", "base/5/16384"):
        (containers.volume / "data" / file).touch()
    containers.start()
    until(containers.servers, "it serves")


def test_what_was_put_in_place_is_asked_about_until_its_first_server_is_up(containers: Containers) -> None:
    """A restored cluster has data before anybody has run with what is declared."""
    containers.ask("exit 78")
    for folder in ("global", "base/5"):
        (containers.volume / "data" / folder).mkdir(parents=True)
    kept = containers.volume / "data" / "base" / "5" / "16384"
    for file in (containers.volume / "data" / "global" / "pg_control", kept):
        file.touch()
    (containers.volume / patroni_files.UNTRIED).touch()
    (containers.volume / "founded").touch()
    assert containers.start().wait(10) == 78
    assert kept.exists(), "nothing is lost by that"
    containers.mark()
    containers.start()
    until(containers.servers, "it serves")


def test_what_is_put_in_place_is_untried(tmp_path: Path) -> None:
    made = tmp_path / "from-backup" / "data"
    (made / "global").mkdir(parents=True)
    (made / "global" / "pg_control").write_text("control")

    def shell(script: str, *arguments: str) -> None:
        script = script.replace(patroni_files.VOLUME_PATH, str(tmp_path))
        subprocess.run(["/bin/bash", "-c", script, "place", *arguments], check=True)

    for _ in range(2):  # whoever was killed right after it does it again
        Stands.place(cast(Any, None), cast(Any, SimpleNamespace(shell=shell)), made)
        assert (tmp_path / "data" / "global" / "pg_control").read_text() == "control"
        assert (tmp_path / patroni_files.UNTRIED).exists()
        assert (tmp_path / "founded").exists()


def noted(address: str) -> str:
    """What Patroni notes on a pod, as the container finds it in its environment."""
    status = {"conn_url": f"postgres://{address}:5432/postgres", "api_url": f"https://{address}:8008/patroni"}
    return json.dumps(status, separators=(",", ":"))


def test_a_pod_with_a_new_address_forgets_the_old_one_before_patroni_starts(containers: Containers) -> None:
    """Patroni finds its former address there, asks who has it now, and would not start for ever."""
    containers.start(PGHERD_NOTED=noted("10.1.0.22"))
    until(containers.servers, "it serves")
    until(
        lambda: containers.asked() == "forget.py\norphans.py\n", "it forgets, and nothing else comes before"
    )


@pytest.mark.parametrize("found", ["", noted("10.1.0.2")], ids=["new pod", "same address"])
def test_a_pod_with_its_own_address_has_nothing_to_forget(containers: Containers, found: str) -> None:
    containers.start(PGHERD_NOTED=found)
    until(containers.servers, "it serves")
    until(lambda: containers.asked() == "orphans.py\n", "it forgets nothing")


def test_a_pod_that_can_not_forget_its_old_address_starts_all_the_same(containers: Containers) -> None:
    containers.start(PGHERD_NOTED=noted("10.1.0.22"), PYTHON_DOES="echo no way >&2; exit 1")
    until(containers.servers, "it serves")
    assert "that failed" in containers.said(0)


def test_a_pod_that_is_told_to_go_meanwhile_goes(containers: Containers) -> None:
    first = containers.start(PGHERD_NOTED=noted("10.1.0.22"), PYTHON_DOES="sleep 2")
    until(containers.asked, "it forgets")
    first.terminate()
    assert first.wait(20) == 143
    assert not containers.servers()


def test_a_container_that_is_told_to_end_says_how_its_server_ended(containers: Containers) -> None:
    told = containers.start()
    until(containers.servers, "it serves")
    control = containers.volume / "data" / "global" / "pg_control"
    control.parent.mkdir()
    control.touch()
    told.terminate()
    told.wait(20)
    pod = {
        "metadata": {"deletionTimestamp": "now"},
        "status": {
            "containerStatuses": [
                {"name": "postgres", "state": {"terminated": {"message": containers.last_words()}}}
            ]
        },
    }
    assert endings.of_pod(pod) == Ending(True, 3, 0x5000028)


def test_a_container_whose_patroni_ends_by_itself_says_nothing_of_its_server(containers: Containers) -> None:
    ended = containers.start()
    until(containers.servers, "it serves")
    control = containers.volume / "data" / "global" / "pg_control"
    control.parent.mkdir()
    control.touch()
    patroni, _ = containers.servers()[0]
    os.kill(patroni, signal.SIGKILL)
    ended.wait(20)
    assert containers.last_words() == ""


def test_what_patroni_was_told_of_another_group_does_not_come_with_a_copy_of_it(
    containers: Containers,
) -> None:
    data = containers.volume / "data"
    (data / "global").mkdir(parents=True)
    (data / "global/pg_control").touch()
    (data / "backup_label").touch()
    told = data / REMEMBERED
    told.write_text('{"slots": {}}')
    containers.start()
    until(containers.servers, "it serves")
    assert not told.exists()
    # It may have been killed before: when the server is up, and nobody has written this group's own down.
    told.write_text('{"slots": {}}')
    containers.mark()
    assert not told.exists()
    told.write_text('{"standby_cluster": {}}')
    containers.mark()
    assert told.exists(), "this is its own"


def test_what_patroni_was_told_of_this_group_stays(containers: Containers) -> None:
    data = containers.volume / "data"
    (data / "global").mkdir(parents=True)
    (data / "global/pg_control").touch()
    (containers.volume / "founded").touch()
    (data / REMEMBERED).write_text("{}")
    containers.start()
    until(containers.servers, "it serves")
    assert (data / REMEMBERED).exists()
