"""The images do their work where they will have to: in pods of a namespace that enforces `restricted`, with a root that
nobody can write to.

In the cluster that KUBECONFIG names, or in the lab.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from lab.settings import Settings

from tests.kubernetes.conftest import OPERATOR_IMAGE
from tests.kubernetes.kube import POSTGRES_IMAGE

pytestmark = pytest.mark.kubernetes

PATRONI_POD = Path(__file__).parent / "patroni_pod.yaml"
VOLUMES = {"tmp": "/tmp", "run": "/run/postgresql", "data": "/var/lib/postgresql"}
LOCKED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

WRITABLE = "find / -xdev -writable ! -type l 2>/dev/null || true"  # mount points, not what is in them


class Namespace:
    """A namespace of our own, and kubectl in it."""

    def __init__(self, name: str) -> None:
        lab = Settings.from_environment()
        kubeconfig = os.environ.get("KUBECONFIG") or str(lab.kubeconfig)
        assert Path(kubeconfig).exists(), "no cluster: set KUBECONFIG, or `make lab-up`"
        self.name = name
        self._environment = {
            **os.environ,
            "KUBECONFIG": kubeconfig,
            "PATH": f"{os.environ['PATH']}:{lab.bin}",
        }

    def kubectl(self, *words: str, stdin: str = "", timeout: float = 240) -> str:
        done = subprocess.run(
            ["kubectl", "--namespace", self.name, *words],
            input=stdin,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def run(self, pod: str, script: str, timeout: float = 240) -> str:
        """A shell script in a pod; it ends at its first failure, which is ours."""
        return self.kubectl(
            "exec", "-i", pod, "--", "bash", "-euo", "pipefail", stdin=dedent(script), timeout=timeout
        )

    def start(self, name: str, image: str, volumes: dict[str, str], user: int) -> str:
        """A pod that does nothing, locked up as ours will be."""
        container = {
            "name": "main",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "securityContext": LOCKED,
            "volumeMounts": [{"name": key, "mountPath": path} for key, path in volumes.items()],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "containers": [container],
                "volumes": [{"name": key, "emptyDir": {}} for key in volumes],
                "terminationGracePeriodSeconds": 0,
                "securityContext": {
                    "runAsNonRoot": True,
                    "fsGroup": user,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            },
        }
        self.kubectl("apply", "--filename=-", stdin=json.dumps(pod))
        self.kubectl("wait", "--for=condition=Ready", "--timeout=180s", f"pod/{name}")
        return name

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "--output=json"))


@pytest.fixture(scope="module")
def namespace(images: None) -> Iterator[Namespace]:
    found = Namespace(f"image-test-{uuid.uuid4().hex[:6]}")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    wanted = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": found.name, "labels": labels}}
    found.kubectl("apply", "--filename=-", stdin=json.dumps(wanted))
    try:
        yield found
    finally:
        found.kubectl("delete", "namespace", found.name, "--wait=false")


@pytest.fixture(scope="module")
def postgres(namespace: Namespace) -> str:
    return namespace.start("postgres", POSTGRES_IMAGE, VOLUMES, 999)


@pytest.fixture(scope="module")
def operator(namespace: Namespace) -> str:
    return namespace.start("operator", OPERATOR_IMAGE, {"tmp": "/tmp"}, 65532)


@pytest.fixture(scope="module")
def server(namespace: Namespace, postgres: str) -> str:
    """The pod with a server running in it."""
    script = """
        initdb --data-checksums --encoding UTF8 --locale C --locale-provider builtin --builtin-locale C.UTF-8
        cat >> $PGDATA/postgresql.conf <<END
            archive_mode = on
            archive_command = 'pgbackrest --stanza herd archive-push %p'
            shared_preload_libraries = pg_stat_statements
            listen_addresses = '127.0.0.1'
        END
        export PGBACKREST_REPO1_PATH=/var/lib/postgresql/backups PGBACKREST_PG1_PATH=$PGDATA
        pg_ctl start --wait --silent --log /tmp/server.log
        psql -d postgres -c 'create extension postgres_fdw' -c 'create extension pg_stat_statements'
        psql -d postgres -c 'create table kept as select generate_series(1, 1000) as n'
    """
    namespace.run(postgres, script)
    return postgres


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("postgres --version", "postgres (PostgreSQL) 17."),
        ("psql --version", "psql (PostgreSQL) 17."),
        ("initdb --version", "initdb (PostgreSQL) 17."),
        ("pg_rewind --version", "pg_rewind (PostgreSQL) 17."),
        ("pg_basebackup --version", "pg_basebackup (PostgreSQL) 17."),
        ("patroni --version", "patroni 4.1."),
        ("patronictl --help", "Usage: patronictl"),
        ("pgbackrest version", "pgBackRest 2."),
        ("pgbouncer --version", "PgBouncer 1."),
        ("prometheus-postgres-exporter --version 2>&1", "postgres_exporter, version 0."),
        ("python --version", "Python 3.13"),
        ("python -c 'import psycopg; print(psycopg.__version__)'", "3."),
        ("command -v postgres", "/usr/lib/postgresql/current/bin/postgres"),
        ("readlink -f $(command -v psql)", "/usr/lib/postgresql/17/bin/psql"),
        ("id -u; id -g", "999\n999"),
    ],
)
def test_every_program_of_the_server_image_runs(
    namespace: Namespace, postgres: str, command: str, expected: str
) -> None:
    assert namespace.run(postgres, command).startswith(expected)


def test_only_the_volumes_can_be_written_to(namespace: Namespace, postgres: str) -> None:
    for path in ("/", "/etc", "/opt/patroni", "/usr/lib", "/var/lib", "/var/log"):
        namespace.run(postgres, f"! touch {path}/new")
    assert set(namespace.run(postgres, WRITABLE).split()) == set(VOLUMES.values())
    for path in VOLUMES.values():
        namespace.run(postgres, f"touch {path}/new && rm {path}/new")


@pytest.mark.parametrize("pod", ["postgres", "operator"])
def test_an_image_holds_nothing_of_its_making(
    namespace: Namespace, pod: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(pod)
    assert namespace.run(pod, "find / -xdev -type f -perm /6000 2>/dev/null || true") == ""
    assert namespace.run(pod, "grep -rlI 'PRIVATE KEY-----' /etc /var/lib /root 2>/dev/null || true") == ""
    unwanted = "/etc/pip.conf /run/secrets/ca.crt /run/secrets/pip.conf /opt/build /opt/source /opt/wheel"
    namespace.run(pod, f"for path in {unwanted}; do [ ! -e $path ] || {{ echo $path >&2; exit 1; }}; done")
    assert namespace.run(pod, "ls /var/lib/apt/lists") == ""
    namespace.run(pod, "! command -v pip && ! command -v gcc && ! python -c 'import pip' 2>/dev/null")


def test_the_server_runs_with_extensions_and_its_compiler(namespace: Namespace, server: str) -> None:
    said = namespace.run(server, "psql -d postgres -Atc 'select pg_jit_available(), count(*) from kept'")
    assert said.strip() == "t|1000"


def test_a_backup_is_made_and_restored(namespace: Namespace, server: str) -> None:
    script = """
        export PGBACKREST_REPO1_PATH=/var/lib/postgresql/backups PGBACKREST_PG1_PATH=$PGDATA PGBACKREST_STANZA=herd
        pgbackrest stanza-create
        pgbackrest check
        pgbackrest backup --type full --start-fast
        pgbackrest restore --pg1-path /var/lib/postgresql/restored
        printf '%s\\n' "port = 5433" "archive_mode = off" >> /var/lib/postgresql/restored/postgresql.conf
        pg_ctl start --wait --silent --pgdata /var/lib/postgresql/restored --log /tmp/restored.log
        psql -p 5433 -d postgres -Atc 'select count(*) from kept'
        pg_ctl stop --silent --mode fast --pgdata /var/lib/postgresql/restored
    """
    assert namespace.run(server, script).strip().endswith("1000")


def test_the_pooler_pools(namespace: Namespace, server: str) -> None:
    script = """
        printf '%s\\n' '[databases]' '* = host=/run/postgresql' '[pgbouncer]' 'listen_port = 6432' \\
            'unix_socket_dir = /tmp' 'auth_type = any' 'pidfile = /tmp/pooler.pid' > /tmp/pooler.ini
        sed -i '/^\\* =/s/$/ user=postgres/' /tmp/pooler.ini
        pgbouncer --quiet --daemon /tmp/pooler.ini 2>/tmp/pooler.log
        psql -h /tmp -p 6432 -d postgres -Atc 'select count(*) from kept'
        kill $(cat /tmp/pooler.pid)
    """
    assert namespace.run(server, script).strip() == "1000"


def test_the_exporter_measures(namespace: Namespace, server: str) -> None:
    script = """
        export DATA_SOURCE_NAME='postgresql:///postgres?host=/run/postgresql&sslmode=disable'
        prometheus-postgres-exporter --web.listen-address=127.0.0.1:9187 2>/tmp/exporter.log & exporter=$!
        trap 'kill $exporter' EXIT
        python -c "
        import time, urllib.request
        for _ in range(100):
            try:
                print(urllib.request.urlopen('http://127.0.0.1:9187/metrics', timeout=5).read().decode())
                break
            except OSError:
                time.sleep(0.1)
        "
    """
    assert "\npg_up 1\n" in namespace.run(server, script)


def test_patroni_is_the_first_process_and_leads_its_server_to_a_clean_end(namespace: Namespace) -> None:
    pod = next(item for item in yaml.safe_load_all(PATRONI_POD.read_text()) if item["kind"] == "Pod")
    assert pod["spec"]["containers"][0]["image"] == POSTGRES_IMAGE
    namespace.kubectl("apply", "--filename", str(PATRONI_POD))
    namespace.kubectl("wait", "--for=condition=Ready", "--timeout=180s", "pod/patroni")
    assert "patroni" in namespace.run("patroni", "tr '\\0' ' ' < /proc/1/cmdline")
    assert "Leader" in namespace.run("patroni", "patronictl list")
    # Orphans are collected: a grandchild whose parent has gone, like a server's children after a kill -9.
    namespace.run("patroni", "(sleep 0.2 &) ; sleep 1; ! grep -l '^State:.Z' /proc/[0-9]*/status")
    psql = "psql -h /run/postgresql -d postgres -U postgres"
    namespace.run("patroni", f"{psql} -c 'create table kept as select 1'")
    begin = time.monotonic()
    namespace.kubectl("delete", "pod", "patroni")
    print(f"\n  measured: clean end after {time.monotonic() - begin:.1f} s")
    pod["metadata"]["name"] = "after"
    pod["spec"]["containers"][0]["command"] = ["pg_controldata"]
    pod["spec"]["containers"][0].pop("readinessProbe")
    pod["spec"]["restartPolicy"] = "Never"
    namespace.kubectl("apply", "--filename=-", stdin=json.dumps(pod))
    namespace.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s", "pod/after")
    said = namespace.kubectl("logs", "after")
    assert "Database cluster state:               shut down\n" in said, said


def test_the_operator_image_can_import_all_of_the_package(namespace: Namespace, operator: str) -> None:
    script = """
        [ "$(id -u)" = 65532 ]
        python -c '
        import importlib, pkgutil, kopf, lightkube, pgherd
        assert pgherd.__file__.startswith("/opt/pgherd/"), pgherd.__file__
        names = [module.name for module in pkgutil.walk_packages(pgherd.__path__, "pgherd.")]
        for name in names:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        print(len(names))
        '
        pgherd --help > /tmp/said
    """
    assert int(namespace.run(operator, script)) > 50


def test_the_operator_image_can_write_nowhere_but_to_tmp(namespace: Namespace, operator: str) -> None:
    assert namespace.run(operator, WRITABLE).split() == ["/tmp"]
    namespace.run(operator, "touch /tmp/new; ! command -v postgres; ! command -v patroni")
