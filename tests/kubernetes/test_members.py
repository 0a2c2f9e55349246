"""What the members' pods promise of themselves: where they run, whom they talk to, and what does not kill them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.kube import Cluster, KubectlError, Namespace, kubectl, wait_for
from tests.kubernetes.test_failures import kill_container, processes, signal_all

pytestmark = pytest.mark.kubernetes

RECOVERY_SECONDS = 140
"""longer than a liveness probe that takes a server in recovery for dead would bear: 30 + 6 x 15 s"""
ROWS = 400_000
TAINT = "pgherd.io/test-dedicated"


@pytest.fixture(scope="module")
def shop(namespace: Namespace) -> Iterator[Cluster]:
    """One segment; the coordinator alone, the segment with a standby."""
    cluster = Cluster(namespace, "dwell")
    declared = cluster.declaration(segments=1, standbys=0)
    declared["spec"]["segments"]["standbys"] = 1
    # A line that says host would take connections of both kinds.
    declared["spec"]["postgres"] = {"hostBasedAuthentication": "host all all all scram-sha-256"}
    namespace.apply(declared)
    cluster.wait_phase("Running")
    yield cluster
    cluster.purge()


def said(cluster: Cluster, member: str, dsn: str) -> str:
    """What psql in a member's pod says to a connection by the network."""
    try:
        return cluster.namespace.kubectl(
            "exec", member, "--", "sh", "-c",
            f'PGPASSWORD="$PATRONI_SUPERUSER_PASSWORD" psql "{dsn}" -XAtc "SELECT \'in\'"',
        )  # fmt: skip
    except KubectlError as error:
        return str(error)


def test_members_of_a_group_are_on_different_nodes(shop: Cluster) -> None:
    nodes = [pod["spec"]["nodeName"] for pod in shop.pods("segment-1")]
    assert len(nodes) == 2
    assert len(set(nodes)) == 2


def test_nobody_talks_to_postgresql_in_plain_text(shop: Cluster) -> None:
    member = shop.member("segment-1", "standby")
    address = f"host=dwell-segment-1.{shop.namespace.name}.svc user=postgres dbname=app"
    assert "rejects connection" in said(shop, member, f"{address} sslmode=disable")
    assert said(shop, member, f"{address} sslmode=require").strip() == "in"
    named = address.replace("host=", f"host={shop.member('segment-1', 'primary')}.")
    assert (
        said(shop, member, f"{named} sslmode=verify-full sslrootcert=/etc/pgherd-tls/ca.crt").strip() == "in"
    )


def test_nobody_talks_to_patroni_in_plain_text_or_without_the_password(shop: Cluster) -> None:
    member = shop.member("segment-1", "primary")
    ask = """\
import ssl, sys, urllib.request, urllib.error
def call(scheme, path, method):
    context = ssl._create_unverified_context() if scheme == "https" else None
    request = urllib.request.Request(f"{scheme}://127.0.0.1:8008{path}", method=method, data=b"{}")
    try:
        return urllib.request.urlopen(request, timeout=10, context=context).status
    except urllib.error.HTTPError as error:
        return error.code
    except Exception as error:
        return type(error).__name__
print(call("http", "/config", "GET"), call("https", "/config", "GET"), call("https", "/config", "PATCH"))
"""
    plain, read, change = shop.namespace.kubectl("exec", member, "--", "python3", "-c", ask).split()
    assert not plain.isdecimal()
    assert (read, change) == ("200", "401")


@pytest.mark.alone
def test_members_go_to_the_nodes_that_are_kept_for_them(namespace: Namespace, in_lab: bool) -> None:
    """A taint keeps others off, a toleration lets members in, a selector brings them there."""
    if not in_lab:
        pytest.skip("taints a node: runs in the lab only")
    node = "node3"
    kubectl("taint", "node", node, f"{TAINT}=yes:NoSchedule", "--overwrite")
    kubectl("label", "node", node, f"{TAINT}=yes", "--overwrite")
    kept = Cluster(namespace, "kept")
    try:
        kept.apply(
            segments=1, standbys=0,
            group={
                "nodeSelector": {TAINT: "yes"},
                "tolerations": [{"key": TAINT, "operator": "Exists", "effect": "NoSchedule"}],
            },
        )  # fmt: skip
        kept.wait_phase("Running")
        assert {pod["spec"]["nodeName"] for pod in kept.pods()} == {node}
    finally:
        kubectl("taint", "node", node, f"{TAINT}-")
        kubectl("label", "node", node, f"{TAINT}-")
        kept.purge()


def startups(pod_uid: str) -> list[int]:
    """The processes that replay the log, in a pod."""
    return [pid for pid, command in processes(pod_uid).items() if "startup" in command]


def restarts(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def test_a_primary_in_a_long_recovery_is_not_killed(shop: Cluster, in_lab: bool) -> None:
    """The one member of a group: nobody else could take over."""
    if not in_lab:
        pytest.skip("stops a process of a pod from outside: runs in the lab only")
    member = str(shop.leader("coordinator"))
    shop.psql(member, "CREATE TABLE public.long (n int PRIMARY KEY)")
    shop.psql(member, f"INSERT INTO public.long SELECT generate_series(1, {ROWS})")
    before = restarts(shop.namespace.get("pod", member))
    uid = shop.namespace.get("pod", member)["metadata"]["uid"]
    kill_container(shop, member)
    replaying = wait_for(lambda: startups(uid), "it replays its log", 60, every=0.01)
    signal_all(replaying, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            assert all(os.path.exists(f"/proc/{pid}") for pid in replaying), "nobody ends it"
            time.sleep(2)
    finally:
        signal_all(replaying, signal.SIGCONT)
    shop.wait_phase("Running")
    assert restarts(shop.namespace.get("pod", member)) == before + 1
    assert shop.psql(member, "SELECT count(*) FROM public.long") == str(ROWS)


def patronis(pod_uid: str) -> list[int]:
    """Patroni's processes, in a pod."""
    return [pid for pid, command in processes(pod_uid).items() if "bin/patroni" in command]


def test_a_member_whose_former_address_is_another_members_starts_again(shop: Cluster, in_lab: bool) -> None:
    """Pods get new addresses when their node was away. Patroni asks at its old one whether it runs already."""
    if not in_lab:
        pytest.skip("kills processes of a pod from outside: runs in the lab only")
    member, other = str(shop.leader("segment-1")), str(shop.leader("coordinator"))
    pods = {name: shop.namespace.get("pod", name) for name in (member, other)}
    uid, own, foreign = (pods[member]["metadata"]["uid"], *(pod["status"]["podIP"] for pod in pods.values()))
    signal_all(patronis(uid), signal.SIGSTOP)  # or it would write its own address again
    note = pods[member]["metadata"]["annotations"]["status"]
    assert own in note
    shop.namespace.kubectl("annotate", "pod", member, "--overwrite", f"status={note.replace(own, foreign)}")
    kill_container(shop, member)

    def knows_itself() -> bool:
        pod = shop.namespace.get("pod", member)
        return f"//{pod['status']['podIP']}:" in pod["metadata"]["annotations"].get("status", "")

    wait_for(knows_itself, "it serves under its own address", 60)
    shop.wait_phase("Running")
    assert restarts(shop.namespace.get("pod", member)) == restarts(pods[member]) + 1
    assert "has another address than before" in shop.namespace.kubectl("logs", member)
