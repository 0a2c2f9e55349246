"""Backups on a volume that all members mount, on a real Kubernetes whose pods may do next to nothing (``restricted``).

The lab's volumes are directories that all of its nodes see: one with ReadWriteMany is shared, as an NFS server's is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgherd.backup.records import now
from tests.kubernetes.kube import Cluster, Namespace, wait_for
from tests.kubernetes.test_backups import PATIENCE, Bank

pytestmark = pytest.mark.kubernetes

CLAIM = "backups"
REPOSITORY = {"volume": {"claimName": CLAIM, "prefix": "pgherd"}}
BACKUP = {"method": "pgbackrest", "repository": REPOSITORY, "restorePointEvery": "2s"}
ROWS = 500


def claim(name: str, mode: str) -> dict[str, Any]:
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": spec,
    }


def health(cluster: Cluster) -> str:
    found = cluster.condition("BackupsHealthy")
    return str(found.get("message")) if found.get("status") == "False" else ""


def mounting(cluster: Cluster) -> set[str]:
    """The members that have the claim."""
    return {
        pod["metadata"]["name"]
        for pod in cluster.pods()
        if "pgherd.io/group" in pod["metadata"]["labels"]
        and any(
            each.get("persistentVolumeClaim", {}).get("claimName") == CLAIM for each in pod["spec"]["volumes"]
        )
    }


@pytest.fixture(scope="module")
def depot(namespace: Namespace) -> Iterator[Bank]:
    made = Bank(namespace, "depot")
    try:
        yield made
    finally:
        for name in ("depot", "depot-copy"):
            made.run("delete", name, "--purge", "--yes", check=False)
        namespace.kubectl("delete", "pvc", CLAIM, "--wait=false", check=False)


def test_a_claim_that_members_can_not_share_is_told_and_databases_do_not_wait(depot: Bank) -> None:
    depot.namespace.apply(claim(CLAIM, "ReadWriteOnce"))
    depot.cluster.apply(segments=1, backup=BACKUP)
    begun = time.monotonic()
    wait_for(
        lambda: "has ReadWriteOnce, but members on several nodes share it" in health(depot.cluster),
        "the claim's access mode is told",
        PATIENCE,
    )
    print(f"told after {time.monotonic() - begun:.1f} s")
    depot.cluster.wait_phase("Running", timeout=PATIENCE)
    assert not mounting(depot.cluster)
    depot.namespace.kubectl("delete", "pvc", CLAIM, timeout=120.0)
    begun = time.monotonic()
    wait_for(
        lambda: f"there is no PersistentVolumeClaim {CLAIM}" in health(depot.cluster),
        "the missing claim is told",
        30,
    )
    print(f"told after {time.monotonic() - begun:.1f} s")


def test_once_there_is_one_members_mount_it_one_after_the_other_and_backups_are_made(depot: Bank) -> None:
    depot.namespace.apply(claim(CLAIM, "ReadWriteMany"))
    four = {f"depot-{group}-{ordinal}" for group in ("coordinator", "segment-1") for ordinal in (0, 1)}
    wait_for(lambda: mounting(depot.cluster) == four, "all members mount the volume", PATIENCE, every=2)
    depot.cluster.wait_phase("Running", timeout=PATIENCE)
    with depot.connected() as connection:
        connection.execute("CREATE TABLE kept (id int PRIMARY KEY, text text)")
        connection.execute("SELECT create_distributed_table('kept', 'id')")
    done = depot.await_backup()
    assert set(done["groups"]) == {"0", "1"}
    assert depot.cluster.status["backups"]["repository"] == f"volume://{CLAIM}/pgherd/depot"
    nodes = {pod["spec"]["nodeName"] for pod in depot.cluster.pods("segment-1")}
    assert len(nodes) == 2, "it is shared between nodes"


def test_a_group_archives_one_after_the_other_and_nothing_is_left_half_written(depot: Bank) -> None:
    folder = f"/repository/{CLAIM}/pgherd/depot"
    found = depot.namespace.kubectl("exec", "depot-segment-1-0", "--", "find", folder, "-type", "f")
    assert f"{folder}/.archive-segment-1" in found
    assert f"{folder}/repository.json" in found
    for member in ("depot-segment-1-0", "depot-segment-1-1"):
        with depot.connected() as connection:
            connection.execute("INSERT INTO kept SELECT n, 'early' FROM generate_series(900, 950) n")
            connection.execute("DELETE FROM kept")
        depot.await_point_after(now())
        failed = depot.cluster.psql(
            member, "SELECT last_failed_time > now() - interval '20 s' FROM pg_stat_archiver"
        )
        assert failed != "t", f"{member} archives, and is in nobody's way"


def test_it_is_restored_in_place_from_it(depot: Bank) -> None:
    with depot.connected() as connection:
        connection.execute("INSERT INTO kept VALUES (1, 'before')")
    point = depot.await_point_after(now())
    with depot.connected() as connection:
        connection.execute("DELETE FROM kept")
    depot.run("restore", depot.name, "--in-place", "--yes", "--point", point["name"], timeout=600.0)
    with depot.connected() as connection:
        assert connection.execute("SELECT text FROM kept").fetchall() == [("before",)]
        connection.execute("DELETE FROM kept")
    depot.run("restore", depot.name, "--confirm")
    depot.cluster.wait_phase("Running", timeout=PATIENCE)


def test_a_new_cluster_is_made_of_it_when_the_old_one_is_gone(depot: Bank, tmp_path: Path) -> None:
    with depot.connected() as connection:
        connection.execute("INSERT INTO kept SELECT n, 'row ' || n FROM generate_series(1, %s) n", [ROWS])
    point = depot.await_point_after(now())
    with depot.connected() as connection:
        connection.execute("DELETE FROM kept WHERE id > 10")
    depot.run("delete", depot.name, "--purge", "--yes", timeout=PATIENCE)
    wait_for(
        lambda: not depot.namespace.list("pods", "pgherd.io/cluster=depot"),
        "nothing of the old cluster runs",
        PATIENCE,
    )
    source = tmp_path / "source.yaml"
    source.write_text(yaml.safe_dump({"method": "pgbackrest", "repository": REPOSITORY}))
    shape = tmp_path / "shape.yaml"
    shape.write_text(
        yaml.safe_dump(Cluster(depot.namespace, "depot-copy").declaration(segments=1, standbys=0))
    )
    restored = depot.run(
        "restore", depot.name, "depot-copy", "--repository", str(source), "--file", str(shape),
        "--point", point["name"], timeout=600.0,
    )  # fmt: skip
    assert "depot-copy: restored after " in restored.out, restored
    with depot.connected("depot-copy") as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT id), min(text), max(id) FROM kept"
        ).fetchone()
    assert found == (ROWS, ROWS, "row 1", ROWS)
    assert depot.run("check", "depot-copy", check=False).code == 0
