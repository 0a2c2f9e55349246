"""``kubectl pgherd`` against a real cluster: the commands of one machine, with the same answers and exit codes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.kube import ENGINE, Cluster, Namespace, kubectl, wait_for
from tests.kubernetes.pgherd import Done, pgherd

pytestmark = pytest.mark.kubernetes

ROWS = 5000
NAME = "cli"


class Commands:
    """The commands about one cluster."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.cluster = Cluster(namespace, NAME)

    def __call__(self, command: str, *arguments: str, **how: Any) -> Done:
        return pgherd("-n", self.namespace.name, command, *arguments, **how)

    def sql(self, *statements: str, **how: Any) -> str:
        """Run SQL through ``psql``."""
        given = [part for statement in statements for part in ("-c", statement)]
        return self("psql", NAME, "--", "-qXAt", "-v", "ON_ERROR_STOP=1", *given, **how).out.strip()

    def rows(self) -> int:
        """How many rows the table has, and that none is there twice."""
        count, distinct = self.sql("SELECT count(*), count(DISTINCT id) FROM orders").split("|")
        assert count == distinct
        return int(count)

    def file(self, **declared: Any) -> str:
        """A declaration as a file's text."""
        return yaml.safe_dump(self.cluster.declaration(**declared))


@pytest.fixture(scope="module")
def run(namespace: Namespace) -> Iterator[Commands]:
    """A cluster of one segment without standby and a coordinator with one, and a table in it."""
    commands = Commands(namespace)
    declared = commands.cluster.declaration(segments=1, standbys=1)
    declared["spec"]["segments"]["standbys"] = 0
    try:
        done = commands("up", "-f", "-", stdin=yaml.safe_dump(declared))
        assert f"{NAME}: ready after " in done.out
        commands.sql(
            "CREATE TABLE orders (id bigint PRIMARY KEY, note text)",
            "SELECT create_distributed_table('orders', 'id')",
            f"INSERT INTO orders SELECT g, repeat('x', 50) FROM generate_series(1, {ROWS}) g",
        )
        yield commands
    finally:
        commands("delete", NAME, "--purge", "--yes", check=False)


def test_status_and_list_tell_what_is_there(run: Commands) -> None:
    status = run("status", NAME, "-o", "json").json()
    assert (status["name"], status["phase"], status["engine"]) == (NAME, "Running", ENGINE)
    assert [group["name"] for group in status["groups"]] == ["coordinator", "segment-1"]
    assert [one["name"] for one in run("list", "-o", "json").json()] == [NAME]
    assert NAME in run("list").out
    assert "segment-1" in run("status", NAME).out


def test_doing_it_again_changes_nothing(run: Commands) -> None:
    before = run.cluster.resource["metadata"]["generation"]
    declared = yaml.safe_load(kubectl("-n", run.namespace.name, "get", "pgc", NAME, "-o", "yaml"))
    again = {key: declared[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": NAME}}
    run("up", "-f", "-", stdin=yaml.safe_dump(again))
    assert run.cluster.resource["metadata"]["generation"] == before


def test_psql_carries_data_and_exit_codes(run: Commands, tmp_path: Path) -> None:
    assert run.rows() == ROWS
    much = tmp_path / "much.csv"
    run(
        "psql",
        NAME,
        "--",
        "-qXc",
        f"\\copy (SELECT g, repeat('y', 990) FROM generate_series(1, 30000) g) TO '{much}'",
    )
    assert len(much.read_text().splitlines()) == 30000
    load = ["-c", "CREATE TABLE much (g int, y text)", "-c", f"\\copy much FROM '{much}'"]
    run("psql", NAME, "--", "-qX", *load)
    assert run.sql("SELECT count(*) FROM much", "DROP TABLE much") == "30000"
    failed = run("psql", NAME, "--", "-qXc", "SELECT 1/0", check=False)
    assert (failed.code, "division by zero" in failed.err) == (1, True)


def test_dsn_works_inside_kubernetes(run: Commands) -> None:
    host = f"{NAME}.{run.namespace.name}.svc:5432"
    for role, attributes in (("rw", "read-write"), ("ro", "prefer-standby")):
        uri = run("dsn", NAME, "--role", role).out.strip()
        assert host in uri
        assert f"target_session_attrs={attributes}" in uri
        pod = f"{NAME}-coordinator-0"
        command = (
            "exec",
            pod,
            "--",
            "psql",
            uri,
            "-qXAtc",
            "SELECT count(*), pg_is_in_recovery() FROM orders",
        )
        count, standby = run.namespace.kubectl(*command).strip().split("|")
        assert (count, standby) == (str(ROWS), "t" if role == "ro" else "f")
    segment = run("dsn", NAME, "--group", "segment-1").out
    assert f"{NAME}-segment-1-0.{NAME}-segment-1.{run.namespace.name}.svc:5432" in segment


def test_scaled_rebalanced_and_checked(run: Commands) -> None:
    done = run("scale", NAME, "--segments", "2")
    assert f"{NAME}: 2 segments" in done.out
    assert "shard groups moved" in done.out
    assert run.rows() == ROWS
    assert "balanced" in run("rebalance", NAME).out
    assert run("rebalance", NAME, "--dry-run", "-o", "json").json() == []
    assert run("check", NAME).out == f"{NAME}: nothing found wrong\n"


def begin_shrink_while_paused(run: Commands) -> None:
    assert "the next one will wait" in run("pause", NAME).out
    run("scale", NAME, "--segments", "1", "--no-wait")
    wait_for(
        lambda: (run.cluster.status.get("operation") or {}).get("kind") == "shrink", "the shrink is there"
    )


def test_paused_and_cancelled(run: Commands) -> None:
    begin_shrink_while_paused(run)
    run("cancel", NAME)
    run.cluster.wait_phase("Running")
    assert run.cluster.resource["spec"]["segments"]["count"] == 2
    assert run.cluster.status["lastOperation"]["phase"] == "cancelled"
    assert run.rows() == ROWS
    refused = run("cancel", NAME, check=False)
    assert (refused.code, refused.err) == (2, f"pgherd: {NAME}: no operation is running\n")


def test_paused_and_resumed(run: Commands) -> None:
    begin_shrink_while_paused(run)
    assert "goes on" in run("resume", NAME).out
    status = run.cluster.wait_phase("Running")
    assert (status["segments"], status["lastOperation"]["phase"]) == (1, "done")
    assert run.rows() == ROWS
    run("scale", NAME, "--segments", "2")


def test_switchover_and_restart(run: Commands) -> None:
    before = run.cluster.member("coordinator", "primary")
    done = run("switchover", NAME, "--group", "coordinator")
    after = run.cluster.leader("coordinator")
    assert after != before
    assert done.out == f"{NAME}: {after} is the primary of coordinator now\n"
    assert run("restart", NAME, "--group", "coordinator").out == f"{NAME}: restarted coordinator\n"
    assert run.rows() == ROWS


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["status", "nope"], 2, "no cluster 'nope' in namespace"),
        (["delete", "nope", "--purge", "--yes"], 2, "no cluster 'nope' in namespace"),
        (["status", "../../api"], 2, "no cluster '../../api' in namespace"),
        (["scale", NAME, "--segments", "0"], 2, "spec.segments.count: must be >= 1, got 0"),
        (
            ["switchover", NAME, "--group", "segment-9"],
            2,
            f"{NAME} has no segment-9: it has coordinator, segment-1",
        ),
        (["switchover", NAME, "--group", "coordinator", "--to", "x"], 2, "x is not a member of coordinator"),
        (
            ["switchover", NAME, "--group", "segment-1"],
            1,
            "segment-1 has no running standby to switch over to",
        ),
        (["dsn", NAME, "--group", "segment-9"], 2, f"{NAME} has no segment-9"),
        (["logs", NAME, "x"], 2, f"{NAME} has no member x: it has {NAME}-coordinator-0"),
        (["delete", NAME], 2, f"{NAME} was not deleted: add --yes to delete it (its data is kept)"),
    ],
)
def test_what_can_not_be_is_one_line(run: Commands, arguments: list[str], code: int, says: str) -> None:
    done = run(*arguments, check=False)
    assert done.code == code
    assert done.err.startswith(f"pgherd: {says}"), done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_what_may_not_change_is_refused_before_anything(run: Commands) -> None:
    refused = run("up", "-f", "-", stdin=run.file(segments=2, shards=16, database="other"), check=False)
    assert refused.code == 2
    assert refused.err.splitlines() == [
        "pgherd: spec.database: can't be changed: is 'app', got 'other'",
        "pgherd: spec.shardCount: can't be changed: is 8, got 16",
    ]


def test_logs_of_all_members_by_time(run: Commands) -> None:
    lines = run("logs", NAME).out.splitlines()
    assert {line.split()[0] for line in lines} == {member["name"] for member in all_members(run)}
    one = run("logs", NAME, f"{NAME}-segment-1-0").out
    assert f"({NAME}-segment-1-0)" in one


def all_members(run: Commands) -> list[dict[str, Any]]:
    return [member for group in run.cluster.status["groups"] for member in group["members"]]


def test_stopped_deleted_and_back_with_its_data(run: Commands) -> None:
    assert "its data is kept" in run("stop", NAME).out
    assert run.cluster.pods() == []
    assert run("psql", NAME, check=False).err.startswith(f"pgherd: {NAME} is stopped: ")
    assert f"{NAME}: ready after " in run("start", NAME).out
    assert run.rows() == ROWS
    declared = run.cluster.declaration(segments=2)
    declared["spec"]["segments"]["standbys"] = 0
    assert run("delete", NAME, "--yes").out == f"{NAME}: deleted, its data is kept\n"
    run("up", "-f", "-", stdin=yaml.safe_dump(declared))
    assert run.rows() == ROWS


def test_purged_after_it_was_deleted(run: Commands) -> None:
    run("delete", NAME, "--yes")
    assert run.namespace.list("pvc", f"pgherd.io/cluster={NAME}")
    assert run("delete", NAME, "--purge", "--yes").out == f"{NAME}: deleted, its data is destroyed\n"
    for kind in ("pvc", "secret", "configmap", "service", "statefulset"):
        wait_for(lambda kind=kind: not run.namespace.list(kind, f"pgherd.io/cluster={NAME}"), f"no {kind}")  # type: ignore[misc]


# Those who may not, and what is not there.


@pytest.fixture(scope="module")
def stranger(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kubeconfig of somebody with no rights."""
    namespace.kubectl("create", "serviceaccount", "stranger")
    token = namespace.kubectl("create", "token", "stranger").strip()
    view: dict[str, Any] = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    view["users"] = [{"name": "stranger", "user": {"token": token}}]
    view["contexts"][0]["context"]["user"] = "stranger"
    path = tmp_path_factory.mktemp("stranger") / "kubeconfig"
    path.write_text(json.dumps(view))
    return str(path)


def test_who_may_not_is_told_so(namespace: Namespace, stranger: str) -> None:
    for arguments in (["list"], ["status", "x"], ["up", "-f", "-"]):
        done = pgherd(
            "-n",
            namespace.name,
            *arguments,
            stdin=yaml.safe_dump(Cluster(namespace, "x").declaration()),
            check=False,
            KUBECONFIG=stranger,
        )
        assert done.code == 1
        assert done.err.startswith("pgherd: the Kubernetes API does not allow it: ")
        assert done.err.count("\n") == 1


def test_an_api_that_is_not_there_is_one_line(namespace: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(
        "current-context: a\ncontexts: [{name: a, context: {cluster: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\n"
    )
    begun = time.monotonic()
    done = pgherd("list", check=False, KUBECONFIG=str(path))
    assert done.code == 1
    assert done.err == (
        "pgherd: the Kubernetes API at https://127.0.0.1:1 can't be reached: [Errno 111] Connection refused\n"
    )
    assert time.monotonic() - begun < 10


def test_a_namespace_that_is_not_there_is_named(namespace: Namespace) -> None:
    declared = yaml.safe_dump(Cluster(namespace, "x").declaration())
    done = pgherd("-n", "pgherd-nowhere", "up", "-f", "-", stdin=declared, check=False)
    assert done.code == 2
    assert "'kubectl create namespace pgherd-nowhere'" in done.err
