"""A namespace of a real Kubernetes, driven as people drive it: by kubectl and the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pgherd.model.topology import group_id
from pgherd.remote import objects
from tests.kubernetes.reads import KubectlError as KubectlError
from tests.kubernetes.reads import reader

LAB_STATE = Path(os.environ.get("LAB_STATE", "/var/lib/pgherd-lab"))
LAB_BIN = Path(os.environ.get("LAB_CACHE", Path.home() / ".cache" / "pgherd-lab")) / "bin"
ENGINE = os.environ.get("PGHERD_E2E_ENGINE", "fdw")
"""of the clusters that tests make; one other than the default needs an image that has it (PGHERD_POSTGRES_IMAGE)"""
POSTGRES_IMAGE = os.environ.get("PGHERD_POSTGRES_IMAGE", "localhost/pgherd-postgres:17")
"""what members run, and writers"""
OPERATORS = 2
"""pods of an installed operator: one works, one waits"""
ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60.0, every: float = 0.3) -> Any:
    """Until ``condition`` is truthy; returns its value. A look or a kubectl that fails counts as "not yet"."""
    deadline = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
        except (subprocess.SubprocessError, OSError, KubectlError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(every)
    raise AssertionError(f"not within {timeout:.0f} s: {what} (last: {str(last)[:500]})")


def kubectl(*arguments: str, stdin: str | None = None, timeout: float = 60.0, check: bool = True) -> str:
    """Run kubectl and return what it printed.

    :raises KubectlError: it failed
    """
    program = shutil.which("kubectl") or str(LAB_BIN / "kubectl")
    done = subprocess.run(
        [program, *arguments], input=stdin, text=True, capture_output=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise KubectlError(done.stderr.strip())
    return done.stdout if check else done.stdout + done.stderr


def lab(*arguments: str, timeout: float = 120.0) -> None:
    """A command of the lab: break something, mend something."""
    subprocess.run(
        [sys.executable, "-m", "lab", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=timeout
    )


class Namespace:
    """One namespace and what is in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *arguments: str, **how: Any) -> str:
        """kubectl in this namespace."""
        return kubectl("-n", self.name, *arguments, **how)

    def apply(self, manifest: Mapping[str, Any] | str) -> None:
        """``kubectl apply``"""
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(dict(manifest))
        self.kubectl("apply", "-f", "-", stdin=text)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        found = reader().get(self.name, kind, name)
        if found is None:
            raise KubectlError(f"Error from server (NotFound): {kind} {name!r} not found in {self.name}")
        return found

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects, by labels."""
        return reader().list(self.name, kind, selector)

    def exists(self, kind: str, name: str) -> bool:
        """Whether there is such an object."""
        return reader().get(self.name, kind, name) is not None


def scale_operator(operator: Namespace, count: int = OPERATORS) -> None:
    """Have so many of its pods."""
    operator.kubectl("scale", "deployment/pgherd-operator", f"--replicas={count}")


class Cluster:
    """One PostgresCluster in a namespace."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        self.namespace = namespace
        self.name = name

    def declaration(
        self,
        *,
        segments: int = 2,
        standbys: int = 1,
        shards: int = 8,
        group: Mapping[str, Any] | None = None,
        **spec: Any,
    ) -> dict[str, Any]:
        """A small cluster; ``group`` goes into both kinds of groups, ``spec`` beside them."""
        small = {
            "standbys": standbys,
            "resources": {"cpu": "50m", "memory": "256Mi"},
            "storage": {"size": "1Gi"},
            **(group or {}),
        }
        return {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresCluster",
            "metadata": {"name": self.name},
            "spec": {
                "engine": ENGINE,
                "shardCount": shards,
                "coordinator": small,
                "segments": {**small, "count": segments},
                **spec,
            },
        }

    def apply(self, **declared: Any) -> None:
        """Declare it, or declare it anew."""
        self.namespace.apply(self.declaration(**declared))

    def patch(self, spec: Mapping[str, Any]) -> None:
        """Change some fields of its spec."""
        self.namespace.kubectl("patch", "pgc", self.name, "--type", "merge", "-p", json.dumps({"spec": spec}))

    @property
    def resource(self) -> dict[str, Any]:
        """The resource as it is."""
        return self.namespace.get("pgc", self.name)

    @property
    def status(self) -> dict[str, Any]:
        """What the operator says of it."""
        found: dict[str, Any] = self.resource.get("status") or {}
        return found

    def wait_phase(self, *phases: str, timeout: float = 120.0) -> dict[str, Any]:
        """Until it is in one of these phases, as an operator that is not silent says of the last declaration."""

        def there() -> dict[str, Any] | None:
            found = self.resource
            status: dict[str, Any] = found.get("status") or {}
            current = status.get("generation") == found["metadata"]["generation"]
            fresh = "Stopped" in phases or objects.age(status, datetime.now(UTC)) <= objects.STALE_SECONDS
            return status if current and fresh and status.get("phase") in phases else None

        try:
            return dict(wait_for(there, f"{self.name} is {'/'.join(phases)}", timeout))
        except AssertionError as error:
            status = self.status
            raise AssertionError(f"{error}; {status.get('phase')}: {status.get('conditions')}") from None

    def condition(self, kind: str) -> dict[str, Any]:
        """One of its conditions."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def pods(self, group: str | None = None, role: str | None = None) -> list[dict[str, Any]]:
        """Its members' pods."""
        labels = {"pgherd.io/cluster": self.name, "pgherd.io/group": group, "pgherd.io/role": role}
        return self.namespace.list(
            "pods", ",".join(f"{key}={value}" for key, value in labels.items() if value)
        )

    def member(self, group: str, role: str) -> str:
        """The name of a member with this role, as the operator sees it."""
        for each in self.status["groups"]:
            for member in each["members"]:
                if each["name"] == group and member["role"] == role:
                    return str(member["name"])
        raise AssertionError(f"{group} has no {role}: {self.status['groups']}")

    def leader(self, group: str) -> str | None:
        """Who holds the group's leader lock in Patroni's store."""
        # Groups of Citus share a scope, in which they have numbers.
        known_as = group_id(group) if ENGINE == "citus" else group
        found = self.namespace.get("configmap", f"{self.name}-{known_as}-leader")
        leader: str | None = (found["metadata"].get("annotations") or {}).get("leader")
        return leader

    def node_of(self, member: str) -> str:
        """The node a member's pod is on; nothing while it has none."""
        return str(self.namespace.get("pod", member)["spec"].get("nodeName", ""))

    def psql(self, member: str, sql: str, database: str = "app") -> str:
        """Run SQL in a member's pod, as the superuser."""
        secret = self.namespace.get("secret", f"{self.name}-credentials")
        import base64

        password = base64.b64decode(secret["data"]["superuser"]).decode()
        return self.namespace.kubectl(
            "exec", member, "--", "env", f"PGPASSWORD={password}",
            "psql", "-h", "/run/postgresql", "-U", "postgres", "-d", database, "-XAtc", sql,
        ).strip()  # fmt: skip

    def purge(self) -> None:
        """Delete it with its data and wait until it is gone."""
        self.patch({"deletionPolicy": "Delete"})
        self.delete()

    def delete(self, timeout: float = 120.0) -> None:
        """Delete the resource and wait until it is gone."""
        self.namespace.kubectl(
            "delete",
            "pgc",
            self.name,
            "--ignore-not-found",
            f"--timeout={timeout:.0f}s",
            timeout=timeout + 10,
        )
