"""Writers in a pod of their own, through the cluster's Service, and the audit of what they were told.

The pod runs ``tests/support/writers.py`` itself, in the image of the members (which has a Python with psycopg).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kubernetes.kube import POSTGRES_IMAGE, Cluster, KubectlError, wait_for
from tests.support import writers as module

RUNNER = """\
import json, os, sys, threading, time
sys.path.insert(0, "/scripts")
import psycopg, writers

def connect():
    return psycopg.connect(
        host=os.environ["HOST"], user=os.environ["USERNAME"], password=os.environ["PASSWORD"],
        dbname=os.environ["DATABASE"], target_session_attrs="read-write", autocommit=True,
        connect_timeout=2, keepalives_idle=1, keepalives_interval=1, keepalives_count=3, tcp_user_timeout=3000,
        options="-c statement_timeout=30s", **json.loads(os.environ.get("OPTIONS", "{}")))

for attempt in range(60):
    try:
        connect().close()
        break
    except psycopg.Error as error:
        print(error, flush=True)
        time.sleep(1)
with connect() as connection:
    connection.execute("DROP TABLE IF EXISTS ledger")
    writers.make_table(connection)

def report(journal):
    ends = sorted(began + took for began, took in list(journal.latencies))
    gaps = sorted(((b - a, a) for a, b in zip(ends, ends[1:])), reverse=True)[:int(os.environ["GAPS"])]
    now = time.monotonic()
    return {
        "acknowledged": len(journal.acknowledged), "unknown": len(journal.unknown), "errors": journal.errors[:5],
        "silence": now - ends[-1] if ends else None, "gaps": [round(gap, 2) for gap, _ in gaps],
        "slowest": round(max((took for _, took in list(journal.latencies)), default=0), 2),
    }

marks = {}

def spans(journal):
    # Latencies in milliseconds between one mark and the next.
    begins = sorted((at, name) for name, at in marks.items())
    ends = [at for at, _ in begins[1:]] + [time.monotonic()]
    found = {}
    for (begin, name), end in zip(begins, ends):
        took = sorted(1000 * took for began, took in list(journal.latencies) if begin <= began < end)
        pick = lambda share: round(took[min(len(took) - 1, int(share * len(took)))], 1) if took else None
        found[name] = {"count": len(took), "p50": pick(0.5), "p99": pick(0.99), "max": pick(1.0)}
    return found

segment = os.environ.get("SEGMENT")
make_key = writers.KeysOn(connect, segment) if segment else writers.any_key
with writers.writers(connect, count=int(os.environ.get("WRITERS", "3")), make_key=make_key) as journal:
    while not os.path.exists("/tmp/stop"):
        for name in os.listdir("/tmp"):
            if name.startswith("mark-"):
                marks.setdefault(name.removeprefix("mark-"), time.monotonic())
        with open("/tmp/report.new", "w") as file:
            json.dump(report(journal), file)
        os.rename("/tmp/report.new", "/tmp/report")
        time.sleep(0.1)
final = {**report(journal), "spans": spans(journal), "audit": "passed"}
try:
    with connect() as connection:
        writers.audit(connection, journal)
except AssertionError as error:
    final["audit"] = str(error)
with open("/tmp/final.new", "w") as file:
    json.dump(final, file)
os.rename("/tmp/final.new", "/tmp/final")
time.sleep(3600)
"""


@dataclass
class Writers:
    """Writers at work."""

    cluster: Cluster
    pod: str

    def report(self) -> dict[str, Any]:
        """What they were told so far: how many rows, the longest gaps (seconds) between two acknowledgements."""
        text = self._exec("cat", "/tmp/report")
        if not text:
            raise KubectlError("exec gave no output, as it does now and then where nodes are busy")
        found: dict[str, Any] = json.loads(text)
        return found

    @property
    def acknowledged(self) -> int:
        """Rows so far."""
        return int(self.report()["acknowledged"])

    def mark(self, name: str) -> None:
        """From now on latencies belong to a span of this name (``spans`` of :meth:`finish`)."""
        self._exec("touch", f"/tmp/mark-{name}")

    def go_on(self, more: int = 100, timeout: float = 60.0) -> None:
        """Wait until so many more rows are acknowledged."""
        done = int(wait_for(self.report, "writers report", timeout)["acknowledged"])
        wait_for(lambda: self.acknowledged > done + more, "writers go on", timeout)

    def finish(self) -> dict[str, Any]:
        """End them and audit: every acknowledged row is there, nothing twice."""
        self._exec("touch", "/tmp/stop")
        final: dict[str, Any] = json.loads(
            wait_for(lambda: self._exec("cat", "/tmp/final"), "the audit", 180)
        )
        assert final["audit"] == "passed", final
        return final

    def _exec(self, *command: str) -> str:
        return self.cluster.namespace.kubectl("exec", self.pod, "--", *command)


@contextmanager
def writers(
    cluster: Cluster,
    *,
    avoid: str | None = None,
    count: int = 3,
    segment: str | None = None,
    options: dict[str, str] | None = None,
    gaps: int = 3,
) -> Iterator[Writers]:
    """Writers in a pod until the block ends (use :meth:`Writers.finish` to audit).

    :param avoid: a node that is going to be broken
    :param segment: write only what is on this segment, so that gaps are its outages; None: anywhere
    :param options: more libpq options
    :param gaps: so many of the longest ones are reported
    """
    name = f"{cluster.name}-writers"
    namespace = cluster.namespace
    source = Path(str(module.__file__)).read_text()
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"writers.py": source, "run.py": RUNNER},
        }
    )
    namespace.kubectl("delete", "pod", name, "--ignore-not-found", "--grace-period=0", "--force")
    settings = {
        "WRITERS": str(count),
        "SEGMENT": segment or "",
        "OPTIONS": json.dumps(options or {}),
        "GAPS": str(gaps),
    }
    namespace.apply(_pod(name, cluster, avoid, settings))
    try:
        wait_for(
            lambda: namespace.get("pod", name)["status"]["phase"] == "Running", "the writers' pod runs", 120
        )
        at_work = Writers(cluster, name)
        try:
            at_work.go_on(30)
        except AssertionError as error:
            raise AssertionError(f"{error}; {namespace.kubectl('logs', name, check=False)[-2000:]}") from None
        yield at_work
    finally:
        namespace.kubectl(
            "delete", "pod", name, "--ignore-not-found", "--grace-period=0", "--force", check=False
        )


def _pod(name: str, cluster: Cluster, avoid: str | None, settings: dict[str, str]) -> dict[str, Any]:
    secret = f"{cluster.name}-owner"
    environment: list[dict[str, Any]] = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for variable, key in {
            "HOST": "host",
            "USERNAME": "username",
            "PASSWORD": "password",
            "DATABASE": "database",
        }.items()
    ]
    environment += [{"name": variable, "value": value} for variable, value in settings.items()]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # As docs/kubernetes.md advises applications: a name server on a dead node costs a second, not five.
        "dnsConfig": {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "3"}]},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 999,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "writers",
                "image": POSTGRES_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python3", "/scripts/run.py"],
                "env": environment,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
            }
        ],
        "volumes": [{"name": "scripts", "configMap": {"name": name}}],
    }
    if avoid:
        spec["affinity"] = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [avoid]}
                            ]
                        }
                    ]
                }
            }
        }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
