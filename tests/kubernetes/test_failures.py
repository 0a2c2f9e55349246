"""Pods, nodes, the API server and the operator fail under writers; no acknowledged row is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.kubernetes.kube import Cluster, Namespace, kubectl, lab, scale_operator, wait_for
from tests.kubernetes.pgherd import pgherd
from tests.kubernetes.writer import Writers, writers

pytestmark = pytest.mark.kubernetes

POD_SECONDS = 5.0
"""after a primary's container was killed, writes go on within this time (95th percentile)"""
IN_FLIGHT = 0.5
"""seconds in which a process that was told of a standby's acknowledgement before a cut may pass it on"""
NODE_SECONDS = 25.0
"""the same after a node was killed"""


@pytest.fixture
def breakable(in_lab: bool) -> None:
    """These break nodes."""
    if not in_lab:
        pytest.skip("breaks nodes: runs in the lab only")


@pytest.fixture(autouse=True)
def _healthy(shop: Cluster) -> None:
    shop.wait_phase("Running", timeout=180)


def percentile_95(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[-1] if len(ordered) < 20 else statistics.quantiles(ordered, n=20)[-1]


def segment_of(group: str) -> str | None:
    """Where to write so that an outage of this group shows in every write: everything goes through the coordinator."""
    return None if group == "coordinator" else group


def processes(pod_uid: str) -> dict[int, str]:
    """What runs in a pod's container, with its command line, seen from its node (in the lab: from here)."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            inside = process.name.isdecimal() and pod_uid in (process / "cgroup").read_text()
            command = (process / "cmdline").read_text().replace("\0", " ") if inside else ""
        except OSError:
            continue
        if command and "pause" not in command.split(" ")[0]:
            found[int(process.name)] = command
    return found


def signal_all(pids: list[int], what: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def kill_container(cluster: Cluster, member: str) -> None:
    """``kill -9`` of everything in a member's container."""
    found = list(processes(cluster.namespace.get("pod", member)["metadata"]["uid"]))
    assert found, f"no processes of {member}"
    signal_all(found, signal.SIGKILL)


def outage(at_work: Writers, broken_at: float, timeout: float = 60.0) -> float:
    """Seconds until rows are acknowledged again, seen from here."""
    time.sleep(1.0)
    wait_for(lambda: (at_work.report()["silence"] or 99) < 0.3, "writes go on", timeout, every=0.1)
    at_work.go_on(50)
    return time.monotonic() - broken_at


@pytest.mark.parametrize("how", ["gently", "by force"])
@pytest.mark.parametrize("role", ["primary", "standby"])
@pytest.mark.parametrize("group", ["coordinator", "segment-1"])
def test_a_deleted_pod(shop: Cluster, group: str, role: str, how: str) -> None:
    member = shop.member(group, role)
    with writers(shop) as at_work:
        force = ["--grace-period=0", "--force"] if how == "by force" else ["--wait=false"]
        uid = shop.namespace.get("pod", member)["metadata"]["uid"]
        shop.namespace.kubectl("delete", "pod", member, *force)
        wait_for(
            lambda: shop.namespace.get("pod", member)["metadata"]["uid"] != uid, "there is a new pod", 60
        )
        at_work.go_on()
        shop.wait_phase("Running", timeout=90)
        final = at_work.finish()
    print(group, role, how, final)
    assert final["gaps"][0] <= 10.0


def starts(cluster: Cluster, member: str) -> int:
    """How often a member's container was started again."""
    return int(cluster.namespace.get("pod", member)["status"]["containerStatuses"][0]["restartCount"])


def is_back(cluster: Cluster, member: str, before: int) -> bool:
    """Whether a member's container was started again since then, and serves."""
    found = cluster.namespace.get("pod", member)["status"]["containerStatuses"][0]
    return bool(found["restartCount"] > before and found["ready"])


@pytest.mark.alone
@pytest.mark.parametrize("group", ["coordinator", "segment-1"])
def test_a_primarys_container_killed(shop: Cluster, breakable: None, group: str) -> None:
    rounds = int(os.environ.get("PGHERD_E2E_KILLS", "3"))
    with writers(shop, segment=segment_of(group), gaps=rounds) as at_work:
        for _ in range(rounds):
            member = str(shop.leader(group))
            before = starts(shop, member)
            kill_container(shop, member)
            at_work.go_on(200)
            wait_for(partial(is_back, shop, member, before), f"{member} is back", 90)
            shop.wait_phase("Running", timeout=90)
        # The longest of all: of every kill its own at least.
        gaps = at_work.finish()["gaps"]
    assert len(gaps) == rounds
    print(f"{group}: longest silence of writers per kill: {gaps}, p95 {percentile_95(gaps):.1f} s")
    assert percentile_95(gaps) <= POD_SECONDS


def servers(pod_uid: str) -> list[int]:
    """PostgreSQL's processes in a pod."""
    return [pid for pid, command in processes(pod_uid).items() if "postgres" in command.split(" ")[0]]


def both_serve(new: str, old: str) -> bool:
    """Whether both pods' containers have servers. In this order: the old one's never come back."""
    return bool(servers(new) and servers(old))


def waits(namespace: Namespace, member: str, new: str, old: str) -> bool:
    """Whether the new pod has said that it waits; at no look may it serve beside the old one."""
    assert not both_serve(new, old)
    return "still uses this volume" in namespace.kubectl("logs", member)


def test_two_containers_never_share_a_volume(shop: Cluster, breakable: None) -> None:
    """A primary's pod is forgotten while its container can't end: its namesake waits for the volume."""
    namespace, member = shop.namespace, str(shop.leader("segment-1"))
    old = namespace.get("pod", member)["metadata"]["uid"]
    stuck = [pid for pid, command in processes(old).items() if "checkpointer" in command]
    assert stuck
    with writers(shop) as at_work:
        signal_all(stuck, signal.SIGSTOP)
        try:
            namespace.kubectl("delete", "pod", member, "--grace-period=0", "--force")
            wait_for(lambda: namespace.get("pod", member)["metadata"]["uid"] != old, "there is a new pod", 60)
            new = namespace.get("pod", member)["metadata"]["uid"]
            # A busy node takes its time to start it, and two minutes to end the other one by force.
            wait_for(partial(waits, namespace, member, new, old), "it waits for the volume", 110)
            at_work.go_on(timeout=90)
        finally:
            signal_all(stuck, signal.SIGCONT)
        wait_for(lambda: servers(new), "it serves again", 120)
        assert not servers(old)
        shop.wait_phase("Running", timeout=180)
        at_work.go_on()
        final = at_work.finish()
    print(final)
    assert shop.psql(member, "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database") == "0"
    check = "PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD pg_amcheck -h /run/postgresql -U postgres -d app"
    namespace.kubectl(
        "exec", str(shop.leader("segment-1")), "--", "sh", "-c", f"{check} --install-missing", timeout=120
    )
    namespace.kubectl("exec", member, "--", "sh", "-c", check, timeout=120)


@pytest.mark.alone
def test_the_api_server_away_for_a_minute(shop: Cluster, breakable: None) -> None:
    before = {group: shop.leader(group) for group in ("coordinator", "segment-1", "segment-2")}
    with writers(shop) as at_work:
        lab("stop-api")
        try:
            time.sleep(60)
        finally:
            lab("start-api")
        wait_for(at_work.report, "the API server answers", 60)
        at_work.go_on()
        final = at_work.finish()
    print(final)
    assert {group: shop.leader(group) for group in before} == before
    assert final["gaps"][0] <= 5.0
    assert final["unknown"] == 0


@pytest.mark.alone
@pytest.mark.parametrize("group", ["coordinator", "segment-1"])
def test_a_node_killed(shop: Cluster, breakable: None, group: str) -> None:
    old = str(shop.leader(group))
    node = shop.node_of(old)
    with writers(shop, avoid=node, segment=segment_of(group)) as at_work:
        lab("kill-node", node.removeprefix("node"))
        try:
            took = outage(at_work, time.monotonic(), 90)
            wait_for(lambda: f"unlabel {old}" in events(shop), "it is told that another one leads", 30)
        finally:
            lab("mend", node.removeprefix("node"))
        shop.wait_phase("Running", timeout=180)
        final = at_work.finish()
    print(f"{group} on {node}: writes went on {took:.1f} s after its death; {final}")
    assert final["gaps"][0] <= NODE_SECONDS


LONELY_WRITER = """\
import os, sys, time, psycopg
connection = psycopg.connect(host="/run/postgresql", user="postgres", password=os.environ["PATRONI_SUPERUSER_PASSWORD"],
                             dbname="app", autocommit=True)
connection.execute("SET synchronous_commit = on")
connection.execute("CREATE TABLE IF NOT EXISTS public.lonely (n int PRIMARY KEY, at float8)")
with open("/var/lib/postgresql/lonely", "w", buffering=1) as journal:
    for n in range(1000000):
        connection.execute("INSERT INTO public.lonely VALUES (%s, %s)", [n, time.time()])
        journal.write(f"{n} {time.time()}\\n")
        time.sleep(0.02)
"""


@pytest.mark.alone
@pytest.mark.parametrize("group", ["coordinator", "segment-1"])
def test_a_node_cut_off(shop: Cluster, breakable: None, namespace: Namespace, group: str) -> None:
    """Its primary, alone with a writer beside it, acknowledges nothing that the others will not know."""
    old = str(shop.leader(group))
    node = shop.node_of(old)
    shop.psql(old, "DROP TABLE IF EXISTS public.lonely")
    namespace.kubectl(
        "exec", old, "--", "sh", "-c", 'nohup python3 -c "$0" > /tmp/lonely.log 2>&1 &', LONELY_WRITER
    )
    with writers(shop, avoid=node, segment=segment_of(group)) as at_work:
        began = time.monotonic()
        lab("cut", node.removeprefix("node"))
        cut_at = time.time()
        try:
            took = outage(at_work, began, 90)
        finally:
            lab("mend", node.removeprefix("node"))
        new = str(shop.leader(group))
        assert new != old
        shop.wait_phase("Running", timeout=180)
        assert shop.member(group, "standby") == old, "it is back, behind the other one"
        final = at_work.finish()
    journal = namespace.kubectl("exec", old, "--", "cat", "/var/lib/postgresql/lonely").splitlines()
    acknowledged = {int(line.split()[0]): float(line.split()[1]) for line in journal if " " in line}
    kept = {int(n) for n in shop.psql(new, "SELECT n FROM public.lonely").split()}
    late = [at for at in acknowledged.values() if at > cut_at + IN_FLIGHT]
    assert any(cut_at - 2 < at <= cut_at for at in acknowledged.values()), "it acknowledged until the cut"
    print(
        f"{group}: {took:.1f} s; beside the old primary: {len(acknowledged)} rows, {len(late)} after the cut; {final}"
    )
    assert set(acknowledged) <= kept
    assert not late
    assert final["gaps"][0] <= NODE_SECONDS + 5
    shop.psql(new, "DROP TABLE public.lonely")


@pytest.mark.alone
@pytest.mark.parametrize("group", ["coordinator", "segment-1"])
def test_a_kubelet_stopped_alone(shop: Cluster, breakable: None, group: str) -> None:
    """Its members live, but nobody vouches for them: a primary there hands over to one that Services lead to."""
    old = str(shop.leader(group))
    node = shop.node_of(old)
    with writers(shop, avoid=node) as at_work:
        lab("stop-kubelet", node.removeprefix("node"))
        try:
            wait_for(lambda: shop.leader(group) != old, "the primary is on another node", 60)
            at_work.go_on()
        finally:
            lab("mend", node.removeprefix("node"))
        shop.wait_phase("Running", timeout=180)
        final = at_work.finish()
    print(group, final)
    assert final["gaps"][0] <= 10.0


@pytest.mark.alone
def test_a_node_that_is_off_for_sure_gives_its_members_back_with_their_volumes(
    shop: Cluster, breakable: None
) -> None:
    """Only once somebody says that it is off; until then nobody touches what may be alive."""
    shop.patch({"fencing": "out-of-service", "segments": {"standbys": 0}})
    shop.wait_phase("Running", timeout=120)
    lonely = str(shop.leader("segment-1"))
    node = shop.node_of(lonely)
    volume = shop.namespace.get("pvc", f"data-{lonely}")["metadata"]["uid"]
    with writers(shop, avoid=node) as at_work:
        before = at_work.acknowledged
        lab("kill-node", node.removeprefix("node"))
        try:
            wait_for(lambda: f"wait for node {node}" in events(shop), "it is told what it waits for", 60)
            assert shop.node_of(lonely) == node
            kubectl(
                "annotate",
                "node",
                node,
                "--overwrite",
                f"pgherd.io/powered-off={datetime.now(UTC).isoformat()}",
            )
            wait_for(lambda: shop.node_of(lonely) not in ("", node), "it is elsewhere", 90)
            assert shop.namespace.get("pvc", f"data-{lonely}")["metadata"]["uid"] == volume
            wait_for(lambda: shop.leader("segment-1") == lonely, "it leads again", 60)
            at_work.go_on()
            # Whatever it is declared as when the node comes back.
            shop.patch({"fencing": None})
        finally:
            lab("mend", node.removeprefix("node"))
        wait_for(lambda: not fences(node), "the fence is down again", 60)
        shop.patch({"segments": {"standbys": 1}})
        shop.wait_phase("Running", timeout=180)
        final = at_work.finish()
    print(final)
    assert final["acknowledged"] > before


def events(cluster: Cluster) -> str:
    """What was told about a cluster."""
    return cluster.namespace.kubectl(
        "get", "events", "--field-selector", f"involvedObject.name={cluster.name}"
    )


def fences(node: str) -> list[str]:
    """Taints that keep everything off a node."""
    taints = json.loads(kubectl("get", "node", node, "-o", "json"))["spec"].get("taints") or []
    return [taint["key"] for taint in taints if "out-of-service" in taint["key"]]


@pytest.mark.alone
def test_a_member_on_a_dead_node_is_built_anew_elsewhere(shop: Cluster, breakable: None) -> None:
    """The StatefulSet alone would wait for its node for ever; it gets a new volume, and the old one is nobody's."""
    shop.patch({"replaceLostAfter": 20})
    shop.wait_phase("Running")
    standby = shop.member("segment-1", "standby")
    node = shop.node_of(standby)
    claim = shop.namespace.get("pvc", f"data-{standby}")["metadata"]["uid"]
    with writers(shop, avoid=node) as at_work:
        lab("kill-node", node.removeprefix("node"))
        try:
            wait_for(
                lambda: (
                    shop.node_of(standby) != node
                    and shop.namespace.get("pvc", f"data-{standby}")["metadata"]["uid"] != claim
                ),
                "the member is somewhere else, on another volume",
                150,
            )
            wait_for(
                lambda: shop.namespace.get("pod", standby)["status"]["containerStatuses"][0]["ready"],
                "it runs",
                90,
            )
            at_work.go_on()
        finally:
            lab("mend", node.removeprefix("node"))
        shop.wait_phase("Running", timeout=180)
        final = at_work.finish()
    print(final)
    shop.patch({"replaceLostAfter": None})


ROWS = 100


def as_owner(cluster: Cluster, *statements: str) -> str:
    """Run SQL through the command line."""
    given = [part for statement in statements for part in ("-c", statement)]
    options = ("-qXAt", "-v", "ON_ERROR_STOP=1", *given)
    return pgherd("-n", cluster.namespace.name, "psql", cluster.name, "--", *options).out.strip()


def rows(cluster: Cluster) -> str:
    """How many rows its table has, and how many different ones."""
    return as_owner(cluster, "SELECT count(*), count(DISTINCT n) FROM kept")


@contextmanager
def dead_standby(cluster: Cluster) -> Iterator[str]:
    """The node of segment-1's standby dies, and comes back at the end; every group has a primary elsewhere."""
    node = cluster.node_of(cluster.member("segment-1", "standby"))
    lab("kill-node", node.removeprefix("node"))
    try:
        wait_for(
            lambda: (
                cluster.condition("Ready").get("status") == "True"
                and f"its node {node} does not report" in cluster.condition("Degraded").get("message", "")
            ),
            "it serves without the node, and says so",
            120,
        )
        assert cluster.status["phase"] == "Degraded"
        yield node
    finally:
        lab("mend", node.removeprefix("node"))


def only_the_lost_are_left(cluster: Cluster, node: str) -> bool:
    """Whether nothing runs on living nodes any more."""
    return {pod["spec"].get("nodeName") for pod in cluster.pods()} == {node}


def await_what_it_waits_for(cluster: Cluster, node: str) -> None:
    """Its primaries are gone, and the status names what is not."""
    wait_for(lambda: only_the_lost_are_left(cluster, node), "whatever lives has ended", 120)
    wait_for(
        lambda: f"kubectl delete node {node}" in cluster.condition("Degraded").get("message", ""),
        "the status names the node and a way out",
        30,
    )
    assert "not known to have ended" in cluster.condition("Progressing")["message"]
    time.sleep(10)
    assert only_the_lost_are_left(cluster, node), "nothing comes back, and nothing is over"


@pytest.mark.alone
def test_a_stop_and_a_deletion_with_a_dead_node_end_what_lives_and_say_what_they_wait_for(
    namespace: Namespace, breakable: None
) -> None:
    ends = Cluster(namespace, "ends")
    try:
        ends.apply(segments=1)
        ends.wait_phase("Running")
        as_owner(
            ends,
            "CREATE TABLE kept (n bigint PRIMARY KEY)",
            "SELECT create_distributed_table('kept', 'n')",
            f"INSERT INTO kept SELECT generate_series(1, {ROWS})",
        )
        with dead_standby(ends) as node:
            pgherd("-n", namespace.name, "stop", ends.name, "--no-wait")
            await_what_it_waits_for(ends, node)
            assert ends.status["phase"] == "Updating"
            waited = pgherd("-n", namespace.name, "stop", ends.name, "--timeout", "5", check=False)
            assert waited.code == 1
            assert f"its node {node} does not report" in " ".join(waited.err.split())
        ends.wait_phase("Stopped", timeout=180)
        assert not ends.pods()
        pgherd("-n", namespace.name, "start", ends.name)
        ends.wait_phase("Running", timeout=180)
        assert rows(ends) == f"{ROWS}|{ROWS}"
        with dead_standby(ends) as node:
            pgherd("-n", namespace.name, "delete", ends.name, "--yes", "--no-wait")
            await_what_it_waits_for(ends, node)
            assert ends.status["phase"] == "Deleting"
        wait_for(lambda: not namespace.exists("pgc", ends.name), "it is gone", 180)
        ends.apply(segments=1)
        ends.wait_phase("Running", timeout=180)
        assert rows(ends) == f"{ROWS}|{ROWS}"
    finally:
        pgherd("-n", namespace.name, "delete", ends.name, "--purge", "--yes", check=False)


def test_the_operator_away(shop: Cluster, operator: Namespace) -> None:
    """Databases fail over by themselves; what was asked for meanwhile is done afterwards."""
    scale_operator(operator, 0)
    try:
        wait_for(lambda: not operator.list("pods"), "the operator is gone", 60)
        with writers(shop) as at_work:
            old = str(shop.leader("coordinator"))
            shop.namespace.kubectl("delete", "pod", old, "--grace-period=0", "--force")
            at_work.go_on(200)
            final = at_work.finish()
        print(final)
        shop.patch({"postgres": {"parameters": {"work_mem": "9MB"}}})
    finally:
        scale_operator(operator)
    member = shop.member("segment-1", "primary")
    wait_for(lambda: shop.psql(member, "SHOW work_mem") == "9MB", "the wish is fulfilled", 60)
