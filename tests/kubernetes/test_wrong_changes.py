"""A wrong change to a running cluster harms nobody: applications go on, a condition tells, and it can be taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kubernetes.kube import ENGINE, Cluster, KubectlError, Namespace, kubectl, wait_for
from tests.kubernetes.test_complaints import told
from tests.kubernetes.writer import writers

pytestmark = pytest.mark.kubernetes

GAP_SECONDS = 5.0
"""how long nothing may be acknowledged, at most"""
TOLD_SECONDS = 60.0
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True)
class Wrong:
    """A change, how it is taken back, and what the operator says of it."""

    change: Mapping[str, Any]
    back: Mapping[str, Any]
    says: str
    condition: str = "Degraded"


def groups(**fields: Any) -> dict[str, Any]:
    return {"coordinator": fields, "segments": fields}


def parameter(name: str, value: str, says: str) -> Wrong:
    """One that members' own PostgreSQL does not take."""
    changed, back = ({"postgres": {"parameters": {name: each}}} for each in (value, None))
    return Wrong(changed, back, f"spec.postgres.parameters.{says}", "SpecRefused")


WRONG = {
    "image": Wrong(
        {"postgres": {"image": "localhost/no-such-image:1"}}, {"postgres": {"image": None}}, "no-such-image"
    ),
    "node": Wrong(groups(nodeSelector={"disk": "imaginary"}), groups(nodeSelector=None), "nodeSelector"),
    "node and image": Wrong(
        {**groups(nodeSelector={"disk": "imaginary"}), "postgres": {"image": "localhost/no-such-image:1"}},
        {**groups(nodeSelector=None), "postgres": {"image": None}},
        "nodeSelector",
    ),
    "cores": Wrong(groups(resources={"cpu": "500"}), groups(resources={"cpu": "50m"}), "Insufficient cpu"),
    "buffers": Wrong(
        {"postgres": {"parameters": {"shared_buffers": "900GB"}}},
        {"postgres": {"parameters": {"shared_buffers": None}}},
        "spec.postgres.parameters.shared_buffers",
        "SpecRefused",
    ),
    "library": parameter(
        "shared_preload_libraries", "nope", "shared_preload_libraries: there is no library nope"
    ),
    "timezone": parameter("timezone", "Mars/Olympus", "timezone: invalid value"),
    "typo": parameter("wrok_mem", "4MB", "wrok_mem: unrecognized configuration parameter"),
}


@pytest.fixture(scope="module")
def lone(namespace: Namespace) -> Iterator[Cluster]:
    """A cluster without any standby."""
    cluster = Cluster(namespace, "lone")
    cluster.apply(segments=1, standbys=0)
    cluster.wait_phase("Running")
    yield cluster
    cluster.purge()


def members(cluster: Cluster) -> dict[str, str]:
    """Its members' pods by name, without those that only try something."""
    pods = [pod["metadata"] for pod in cluster.pods() if "pgherd.io/group" in pod["metadata"]["labels"]]
    return {pod["name"]: pod["uid"] for pod in pods}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("kind", ["shop", "lone"])
def test_a_wrong_change_harms_nobody(kind: str, wrong: Wrong, request: pytest.FixtureRequest) -> None:
    harms_nobody(request.getfixturevalue(kind), wrong)


def test_members_that_may_not_share_the_one_node_left_to_them_stay(shop: Cluster) -> None:
    """The primary's own node, so that only its standby's trial stands in the way."""
    [primary] = shop.pods("coordinator", "primary")
    node = json.loads(kubectl("get", "node", primary["spec"]["nodeName"], "-o", "json"))
    selector = {HOSTNAME: node["metadata"]["labels"][HOSTNAME]}
    wrong = Wrong(
        {"coordinator": {"antiAffinity": "required", "nodeSelector": selector}},
        {"coordinator": {"antiAffinity": None, "nodeSelector": None}},
        "anti-affinity",
    )
    harms_nobody(shop, wrong)


def harms_nobody(cluster: Cluster, wrong: Wrong) -> None:
    before = members(cluster)
    with writers(cluster) as at_work:
        cluster.patch(wrong.change)
        wait_for(
            lambda: wrong.says in cluster.condition(wrong.condition).get("message", ""),
            f"{wrong.condition} says {wrong.says}",
            TOLD_SECONDS,
        )
        at_work.go_on(500)
        assert cluster.condition("Ready")["status"] == "True"
        assert members(cluster) == before
        cluster.patch(wrong.back)
        cluster.wait_phase("Running")
        at_work.go_on()
        final = at_work.finish()
    assert final["gaps"][0] <= GAP_SECONDS, final
    assert cluster.condition(wrong.condition).get("status", "False") == "False"
    wait_for(
        lambda: not cluster.namespace.list("pods", f"pgherd.io/trial,pgherd.io/cluster={cluster.name}"),
        "nothing is tried any more",
    )


def test_an_access_rule_that_no_server_can_read_harms_nobody_and_is_said(shop: Cluster) -> None:
    """What members are needs no restart meanwhile: none would come back."""
    before = members(shop)
    says = "line 2 (host all /^( all scram-sha-256) can't be read: invalid regular expression"
    lines = "host all app all scram-sha-256\nhost all /^( all scram-sha-256\n"
    with writers(shop) as at_work:
        shop.patch({"postgres": {"hostBasedAuthentication": lines, "parameters": {"max_connections": 120}}})
        wait_for(
            lambda: says in shop.condition("AccessRulesUnread").get("message", "") and says in told(shop),
            "condition and event say so",
            30,
        )
        at_work.go_on(500)
        assert shop.condition("Ready")["status"] == "True"
        member = shop.member("segment-1", "standby")
        assert shop.psql(member, "SHOW max_connections") != "120", "nobody has restarted"
        shop.patch({"postgres": {"hostBasedAuthentication": None, "parameters": None}})
        wait_for(lambda: not shop.condition("AccessRulesUnread"), "nothing is said any more")
        shop.wait_phase("Running")
        at_work.go_on()
        final = at_work.finish()
    assert final["gaps"][0] <= GAP_SECONDS, final
    assert members(shop) == before


def test_a_standby_does_not_stay_behind_a_primary_that_restarted_before_it(shop: Cluster) -> None:
    """A primary may start again with raised values while restarts wait for somebody elsewhere: PostgreSQL pauses
    replay on a standby that has lower ones, and its Patroni starts it again with the new."""
    primary, standby, away = (
        shop.member(*who)
        for who in (("segment-1", "primary"), ("segment-1", "standby"), ("segment-2", "standby"))
    )
    data, config = "/var/lib/postgresql/data", "/var/lib/postgresql/data/postgresql.base.conf"
    shell = ("exec", away, "--", "sh", "-c")
    shop.namespace.kubectl(*shell, f"echo nonsense >> {config}; kill -9 $(head -n 1 {data}/postmaster.pid)")
    try:
        wait_for(lambda: away in shop.condition("Degraded").get("message", ""), "it is away")
        shop.patch({"postgres": {"parameters": {"max_connections": 210, "max_worker_processes": 40}}})
        wait_for(lambda: pending(shop) >= {primary, standby}, "both wait for a restart")
        shop.namespace.kubectl("exec", primary, "--", "sh", "-c", RESTART)
        assert shop.psql(primary, "SHOW max_connections") == "210"
        wait_for(
            lambda: (
                shop.psql(standby, "SELECT current_setting('max_connections'), pg_is_wal_replay_paused()")
                == "210|f"
            ),
            "its standby has the new values and replays",
            30,
        )
        assert shop.member("segment-1", "primary") == primary
        assert away in shop.condition("Degraded")["message"], "and nobody waited for that one"
    finally:
        shop.namespace.kubectl(*shell, f"sed -i /nonsense/d {config}")
        shop.patch({"postgres": {"parameters": None}})
    shop.wait_phase("Running", timeout=180)


RESTART = (
    'python3 -c "import base64, os, ssl, urllib.request as u; '
    "told = base64.b64encode(('pgherd:' + os.environ['PATRONI_RESTAPI_PASSWORD']).encode()).decode(); "
    "u.urlopen(u.Request('https://localhost:8008/restart', b'{}', {'Authorization': 'Basic ' + told}), "
    'context=ssl._create_unverified_context())"'
)
"""has a member's Patroni restart its server, as somebody's hand would"""


def pending(cluster: Cluster) -> set[str]:
    """Members that wait for a restart."""
    groups = cluster.status["groups"]
    return {each["name"] for group in groups for each in group["members"] if each["pendingRestart"]}


OTHER_ENGINE = "fdw" if ENGINE == "citus" else "citus"
BY_DEFAULT = [] if ENGINE == "citus" else [{"engine": None}]
"""what is left out is citus on Kubernetes"""


@pytest.mark.parametrize(
    "change", [{"engine": OTHER_ENGINE}, *BY_DEFAULT, {"postgres": {"version": 16}}], ids=str
)
def test_what_databases_are_made_of_can_not_be_changed(shop: Cluster, change: dict[str, Any]) -> None:
    before = members(shop)
    with pytest.raises(KubectlError, match="can't be changed"):
        shop.patch(change)
    assert shop.wait_phase("Running")["phase"] == "Running"
    assert members(shop) == before


def test_a_larger_memory_is_one_switchover_per_group(shop: Cluster) -> None:
    """Not a restart in the old pod's smaller memory before."""
    before = members(shop)
    with writers(shop) as at_work:
        shop.patch({"segments": {"resources": {"memory": "512Mi"}}})
        wait_for(
            lambda: (
                {name for name, uid in members(shop).items() if before.get(name) != uid}
                == {name for name in before if "segment" in name}
            ),
            "all segments' members are new",
            240,
        )
        shop.wait_phase("Running")
        at_work.go_on()
        final = at_work.finish()
    print(final)
    member = shop.member("segment-1", "primary")
    assert shop.psql(member, "SHOW shared_buffers") == "128MB"
    assert final["gaps"][0] <= 10.0


def test_where_a_groups_volumes_are_gone_nothing_empty_is_put(lone: Cluster) -> None:
    """Last of all: there is no way back from it."""
    wait_for(lambda: lone.status.get("admitted") == [1], "the status knows who takes part")
    [pod] = lone.pods("segment-1")
    name, claim = pod["metadata"]["name"], f"data-{pod['metadata']['name']}"
    volume = lone.namespace.get("pvc", claim)["metadata"]["uid"]
    lone.namespace.kubectl("delete", "pvc", claim, "--wait=false")
    lone.namespace.kubectl("delete", "pod", name)
    wait_for(
        lambda: lone.namespace.get("pvc", claim)["metadata"]["uid"] != volume,
        "Kubernetes makes a new one",
        90,
    )
    wait_for(
        lambda: "the data of segment-1 are gone" in lone.condition("DataLost").get("message", ""),
        "a condition says so",
        TOLD_SECONDS,
    )
    assert lone.condition("Ready")["status"] == "False"
    assert not lone.pods("segment-1", "primary")
