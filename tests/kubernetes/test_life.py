"""A cluster's life: it is made, grows and shrinks, changes, rests, goes, and comes back with its data."""

from __future__ import annotations

import os
import time
from functools import partial

import pytest

from tests.kubernetes.kube import ENGINE, POSTGRES_IMAGE, Cluster, Namespace, lab, wait_for
from tests.kubernetes.writer import writers

pytestmark = pytest.mark.kubernetes


def rows(cluster: Cluster) -> int:
    return int(cluster.psql(cluster.member("coordinator", "primary"), "SELECT count(*) FROM ledger"))


def nothing(namespace: Namespace, kind: str, selector: str) -> bool:
    return not namespace.list(kind, selector)


@pytest.mark.alone
@pytest.mark.parametrize("segments", [1, 2])
def test_a_cluster_is_ready_within_45_seconds(namespace: Namespace, segments: int) -> None:
    cluster = Cluster(namespace, "quick")
    began = time.monotonic()
    cluster.apply(segments=segments)
    try:
        status = cluster.wait_phase("Running", timeout=90)
        took = time.monotonic() - began
        print(f"Running after {took:.1f} s")
        assert cluster.condition("Ready")["status"] == "True"
        assert status["segments"] == segments
        assert took <= 45
    finally:
        cluster.purge()
    wait_for(lambda: not namespace.list("pvc", "pgherd.io/cluster=quick"), "the volumes are gone")
    for kind in ("statefulset", "service", "configmap", "secret", "pdb", "serviceaccount", "networkpolicy"):
        assert not namespace.list(kind, "pgherd.io/cluster=quick"), kind


STALL_P50, STALL_P99, STALL_MAX = 10.0, 300.0, 1000.0
"""how much longer than before writes may take while data moves, in milliseconds: the same as on one machine"""


@pytest.mark.alone
def test_kubectl_scale_moves_the_data_under_writers(shop: Cluster) -> None:
    with writers(shop) as at_work:
        at_work.mark("quiet")
        at_work.go_on(1000)
        at_work.mark("grow")
        shop.namespace.kubectl("scale", f"pgc/{shop.name}", "--replicas=4")
        status = shop.wait_phase("Running", timeout=240)
        shards = [group["shards"] for group in status["groups"]]
        assert len(shards) == 5
        assert sum(shards) == 8
        assert all(shards[1:])
        assert status["lastOperation"]["kind"] == "expand"
        at_work.go_on()
        at_work.mark("shrink")
        shop.namespace.kubectl("scale", f"pgc/{shop.name}", "--replicas=2")
        status = shop.wait_phase("Running", timeout=240)
        assert [group["shards"] for group in status["groups"]] == [0, 4, 4]
        at_work.go_on()
        final = at_work.finish()
    print(final)
    assert not final["errors"]
    assert final["unknown"] == 0
    quiet = final["spans"]["quiet"]["p50"]
    for span in (final["spans"]["grow"], final["spans"]["shrink"]):
        assert span["p50"] - quiet < STALL_P50, final
        assert span["p99"] - quiet < STALL_P99, final
        assert span["max"] - quiet < STALL_MAX, final
    gone = "pgherd.io/cluster=shop,pgherd.io/group in (segment-3,segment-4)"
    for kind in ("pod", "pvc", "configmap", "statefulset", "service", "secret"):
        wait_for(partial(nothing, shop.namespace, kind, gone), f"no {kind} of old segments is left")


def test_parameters_change_by_reload_or_restart(shop: Cluster) -> None:
    with writers(shop) as at_work:
        shop.patch({"postgres": {"parameters": {"work_mem": "7MB", "max_connections": 150}}})
        shop.wait_phase("Updating", "Running", timeout=30)
        member = shop.member("segment-1", "primary")
        wait_for(lambda: shop.psql(member, "SHOW max_connections") == "150", "segments have restarted", 90)
        shop.wait_phase("Running")
        at_work.go_on()
        at_work.finish()
    for group in ("coordinator", "segment-1", "segment-2"):
        for role in ("primary", "standby"):
            member = shop.member(group, role)
            assert shop.psql(member, "SHOW work_mem") == "7MB"
            assert shop.psql(member, "SHOW max_connections") == "150"


@pytest.fixture
def next_image(in_lab: bool) -> str:
    """Another name for the members' image: a new version, as far as Kubernetes can tell."""
    if not in_lab:
        return os.environ.get("PGHERD_POSTGRES_IMAGE_NEXT") or pytest.skip(
            "PGHERD_POSTGRES_IMAGE_NEXT names none"
        )
    lab("tag-image", POSTGRES_IMAGE, f"{POSTGRES_IMAGE}-next")
    return f"{POSTGRES_IMAGE}-next"


def test_a_new_image_rolls_through_standbys_first_and_the_coordinator_last(
    shop: Cluster, next_image: str
) -> None:
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in shop.pods()}
    groups = ("segment-1", "segment-2", "coordinator")
    led = {group: str(shop.leader(group)) for group in groups}
    small = {"resources": {"cpu": "50m", "memory": "320Mi"}}

    def all_new() -> bool:
        now = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in shop.pods()}
        return now.keys() == before.keys() and now.items().isdisjoint(before.items())

    with writers(shop) as at_work:
        shop.patch({"postgres": {"image": next_image}, "coordinator": small, "segments": small})
        wait_for(all_new, "all pods are new", 240)
        shop.wait_phase("Running")
        at_work.go_on()
        final = at_work.finish()
    print(final)
    for pod in shop.pods():
        [container] = pod["spec"]["containers"]
        assert container["image"] == next_image
        assert container["resources"]["limits"]["memory"] == "320Mi"
    born = {p["metadata"]["name"]: p["metadata"]["creationTimestamp"] for p in shop.pods()}
    coordinator = [at for name, at in born.items() if "coordinator" in name]
    assert max(at for name, at in born.items() if "segment" in name) <= min(coordinator)
    for group in groups:
        assert shop.leader(group) != led[group], "its old primary handed over before it went"
        others = [at for name, at in born.items() if f"-{group}-" in name and name != led[group]]
        assert max(others) <= born[led[group]]
    assert final["gaps"][0] <= 10.0


def test_standbys_come_and_go(shop: Cluster) -> None:
    def counted(standbys: int) -> bool:
        volumes = shop.namespace.list("pvc", "pgherd.io/cluster=shop,pgherd.io/group=segment-1")
        return len(shop.pods("segment-1")) == len(volumes) == standbys + 1

    for count in (2, 0, 1):
        shop.patch({"segments": {"standbys": count}})
        shop.wait_phase("Running", timeout=120)
        wait_for(partial(counted, count), f"{count} standbys, a volume for each member")


def test_volumes_grow_under_running_members(shop: Cluster) -> None:
    before = {pod["metadata"]["uid"] for pod in shop.pods()}
    shop.patch({"segments": {"storage": {"size": "2Gi"}}})
    segments = "pgherd.io/cluster=shop,pgherd.io/group in (segment-1,segment-2)"

    def grown() -> bool:
        claims = shop.namespace.list("pvc", segments)
        sizes = {claim["status"].get("capacity", {}).get("storage") for claim in claims}
        return len(claims) == 4 and sizes == {"2Gi"}

    wait_for(grown, "all volumes have grown", 90)
    told = shop.namespace.kubectl("get", "events", "--field-selector", "involvedObject.name=shop")
    assert "grow volume data-shop-segment-1-0 to 2Gi" in told

    def declared() -> str:
        made = shop.namespace.get("statefulset", "shop-segment-1")["spec"]["volumeClaimTemplates"][0]
        return str(made["spec"]["resources"]["requests"]["storage"])

    wait_for(lambda: declared() == "2Gi", "so will be the volumes of later members", 30)
    shop.wait_phase("Running")
    assert {pod["metadata"]["uid"] for pod in shop.pods()} == before


SERVED = """\
import hashlib, ssl
print(hashlib.sha256(ssl.get_server_certificate(("127.0.0.1", 8008)).encode()).hexdigest())
"""


def test_connections_are_encrypted_and_certificates_renewed(shop: Cluster) -> None:
    member = shop.member("segment-1", "primary")
    plain = shop.psql(
        member, "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        " WHERE client_addr IS NOT NULL AND NOT ssl",
    )  # fmt: skip
    assert plain == "0"
    if ENGINE == "fdw":
        servers = "SELECT count(*) FROM pg_foreign_server WHERE srvoptions @> '{sslmode=verify-full}'"
        assert shop.psql(shop.member("coordinator", "primary"), servers) == "2"
    before = shop.namespace.kubectl("exec", member, "--", "python3", "-c", SERVED)
    # As good as about to end: one that is gone is made anew, too.
    shop.namespace.kubectl("delete", "secret", "shop-segment-1-tls")
    with writers(shop) as at_work:
        wait_for(
            lambda: shop.namespace.kubectl("exec", member, "--", "python3", "-c", SERVED) != before,
            "the new certificate is served",
            180,
            every=3,
        )
        at_work.go_on()
        final = at_work.finish()
    assert final["unknown"] == 0


def test_what_was_changed_by_hand_is_put_back(shop: Cluster) -> None:
    namespace = shop.namespace
    namespace.kubectl("annotate", "service", "shop", "example.com/mine=yes")
    namespace.kubectl("label", "statefulset", "shop-segment-1", "example.com/mine=yes")
    namespace.kubectl(
        "patch", "service", "shop", "--type=merge", "-p", '{"spec":{"selector":{"pgherd.io/role":"replica"}}}'
    )
    namespace.kubectl("delete", "pdb", "shop-segment-1")
    namespace.kubectl("scale", "statefulset/shop-segment-2", "--replicas=1")
    wait_for(
        lambda: namespace.get("service", "shop")["spec"]["selector"]["pgherd.io/role"] == "primary",
        "the Service is put back",
        30,
    )
    wait_for(lambda: namespace.exists("pdb", "shop-segment-1"), "the budget is back", 30)
    wait_for(lambda: len(shop.pods("segment-2")) == 2, "the standby is back", 30)
    shop.wait_phase("Running")
    assert namespace.get("service", "shop")["metadata"]["annotations"]["example.com/mine"] == "yes"
    assert namespace.get("statefulset", "shop-segment-1")["metadata"]["labels"]["example.com/mine"] == "yes"


def test_a_wrong_change_is_refused_and_harms_nothing(shop: Cluster) -> None:
    shop.patch({"postgres": {"parameters": {"port": 1}}})
    wait_for(lambda: shop.condition("SpecRefused").get("status") == "True", "it says so", 30)
    assert "spec.postgres.parameters.port" in shop.condition("SpecRefused")["message"]
    assert shop.condition("Ready")["status"] == "True"
    shop.patch({"postgres": {"parameters": {"port": None}}})
    shop.wait_phase("Running")
    assert not shop.condition("SpecRefused")


def test_stopped_and_started(shop: Cluster) -> None:
    with writers(shop) as at_work:
        at_work.finish()
    before = rows(shop)
    shop.namespace.kubectl("annotate", "pgc", shop.name, "pgherd.io/stopped=true")
    wait_for(lambda: shop.status["phase"] == "Stopped" and not shop.pods(), "it is stopped", 90)
    shop.namespace.kubectl("annotate", "pgc", shop.name, "pgherd.io/stopped-")
    wait_for(lambda: shop.status["phase"] == "Running", "it runs again", 120)
    assert rows(shop) == before


def test_deleted_and_declared_again_it_finds_its_data(shop: Cluster) -> None:
    before = rows(shop)
    assert before > 0
    shop.delete()
    assert not shop.pods()
    assert len(shop.namespace.list("pvc", "pgherd.io/cluster=shop")) == 6
    shop.apply()
    shop.wait_phase("Running")
    assert rows(shop) == before
