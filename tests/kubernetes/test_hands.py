"""What people do by hand, by mistake or in a hurry: things deleted, wishes changed half-way. No row is lost, nothing
is left behind, and the status says what is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from functools import partial

import pytest

from pgherd.platform.kubernetes import views
from tests.kubernetes.kube import Cluster, Namespace, scale_operator, wait_for
from tests.kubernetes.test_life import nothing, rows
from tests.kubernetes.test_operator import kill_operator
from tests.kubernetes.writer import writers

pytestmark = pytest.mark.kubernetes

KINDS = (
    "pod",
    "pvc",
    "statefulset",
    "service",
    "configmap",
    "secret",
    "pdb",
    "serviceaccount",
    "networkpolicy",
)


def data(cluster: Cluster, name: str) -> dict[str, str]:
    found: dict[str, str] = cluster.namespace.get("secret", name)["data"]
    return found


def test_deleted_objects_are_made_again_and_nobody_notices(shop: Cluster) -> None:
    namespace = shop.namespace
    passwords = data(shop, "shop-credentials")
    owner = data(shop, "shop-owner")
    with writers(shop) as at_work:
        for kind, name in (
            ("secret", "shop-credentials"),
            ("secret", "shop-owner"),
            ("secret", "shop-ca"),
            ("configmap", "shop"),
            ("configmap", "shop-segment-1"),
            ("service", "shop-segment-1"),
            ("service", "shop"),
            ("role", "shop"),
            ("statefulset", "shop-segment-2"),
        ):
            how = ["--cascade=orphan"] if kind == "statefulset" else []
            namespace.kubectl("delete", kind, name, *how)
            wait_for(partial(namespace.exists, kind, name), f"{kind} {name} is back", 30)
        at_work.go_on()
        shop.wait_phase("Running")
        final = at_work.finish()
    print(final)
    told = namespace.kubectl("get", "events", "--field-selector", "involvedObject.name=shop")
    assert "restore Service shop: somebody removed it" in told
    assert data(shop, "shop-credentials") == passwords
    assert data(shop, "shop-owner")["password"] == owner["password"]


@pytest.mark.parametrize("label", ["pgherd.io/group", "pgherd.io/cluster", "app.kubernetes.io/managed-by"])
def test_labels_taken_off_by_hand_are_put_back(shop: Cluster, label: str) -> None:
    namespace = shop.namespace
    pods = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in shop.pods()}
    with writers(shop) as at_work:
        for kind, name in (
            ("statefulset", "shop-segment-1"),
            ("pdb", "shop-segment-1"),
            ("networkpolicy", "shop"),
            ("service", "shop"),
            ("pvc", "data-shop-segment-1-1"),
            ("pod", shop.member("segment-1", "standby")),
        ):
            before = namespace.get(kind, name)["metadata"]["labels"]
            if label not in before:
                continue
            namespace.kubectl("label", kind, name, f"{label}-")
            wait_for(
                lambda kind=kind, name=name, before=before: (  # type: ignore[misc]
                    namespace.get(kind, name)["metadata"]["labels"] == before
                ),
                f"{kind} {name} has its label again",
                30,
            )
        at_work.go_on()
        shop.wait_phase("Running")
        at_work.finish()
    assert {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in shop.pods()} == pods
    told = namespace.kubectl("get", "events", "--field-selector", "involvedObject.name=shop")
    assert "restore StatefulSet shop-segment-1: somebody changed it" in told


def test_lost_passwords_are_named_and_not_replaced_by_ones_that_no_database_knows(
    shop: Cluster, operator: Namespace
) -> None:
    """With nobody left who remembers them."""
    namespace = shop.namespace
    kept = namespace.get("secret", "shop-credentials")
    scale_operator(operator, 0)
    wait_for(lambda: not operator.list("pods"), "the operator is gone", 60)
    namespace.kubectl("delete", "secret", "shop-credentials")
    scale_operator(operator)
    wait_for(
        lambda: "shop-credentials is lost" in shop.condition("Degraded").get("message", ""), "it says so", 60
    )
    assert shop.condition("Ready")["status"] == "Unknown"
    assert not namespace.exists("secret", "shop-credentials")
    passwords = recovered(shop)
    assert {key: passwords[key] for key in ("superuser", "replication", "rest")} == {
        key: kept["data"][key] for key in ("superuser", "replication", "rest")
    }
    namespace.apply({**kept, "metadata": {"name": "shop-credentials", "labels": kept["metadata"]["labels"]}})
    shop.wait_phase("Running", timeout=60)


def recovered(cluster: Cluster) -> dict[str, str]:
    """The passwords as docs/kubernetes.md gets them back: from what a running member was started with."""
    import base64

    text = cluster.namespace.kubectl("exec", "shop-coordinator-0", "--", "env")
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    named = {
        "superuser": "PATRONI_SUPERUSER_PASSWORD",
        "replication": "PATRONI_REPLICATION_PASSWORD",
        "rest": "PATRONI_RESTAPI_PASSWORD",
    }
    return {key: base64.b64encode(found[variable].encode()).decode() for key, variable in named.items()}


def delete_volume(cluster: Cluster, member: str) -> None:
    """Delete a member's volume under it, its pod too, and wait for what is made anew."""
    namespace = cluster.namespace

    def volume() -> str:
        return str(namespace.get("pvc", f"data-{member}")["metadata"]["uid"])

    before = volume()
    namespace.kubectl("delete", "pvc", f"data-{member}", "--wait=false")
    namespace.kubectl("delete", "pod", member, "--wait=false")
    wait_for(lambda: volume() != before, "a new volume", 90)
    cluster.wait_phase("Running", timeout=120)


def test_a_standbys_volume_deleted_by_hand_is_built_anew(shop: Cluster) -> None:
    with writers(shop) as at_work:
        delete_volume(shop, shop.member("segment-1", "standby"))
        at_work.go_on()
        at_work.finish()


def test_a_primarys_volume_deleted_by_hand_costs_nothing(shop: Cluster) -> None:
    primary = str(shop.leader("segment-1"))
    with writers(shop) as at_work:
        delete_volume(shop, primary)
        assert shop.leader("segment-1") != primary
        at_work.go_on()
        at_work.finish()


def test_patronis_store_deleted_by_hand_founds_no_second_history(shop: Cluster) -> None:
    namespace = shop.namespace
    with writers(shop) as at_work:
        for part in ("leader", "config", "sync"):
            namespace.kubectl("delete", "configmap", f"shop-segment-1-{part}", "--ignore-not-found")
        at_work.go_on(timeout=120)
        shop.wait_phase("Running", timeout=120)
        at_work.finish()


def test_a_wish_changed_in_the_middle_and_paused_and_cancelled(shop: Cluster, operator: Namespace) -> None:
    with writers(shop) as at_work:
        shop.patch({"expansion": {"paused": True}, "segments": {"count": 4}})
        wait_for(lambda: (shop.status.get("operation") or {}).get("kind") == "expand", "it has begun", 90)
        wait_for(
            lambda: "paused" in (shop.status.get("operation") or {}).get("message", ""),
            "it says that it is paused",
            60,
        )
        kill_operator(operator)
        shop.patch({"expansion": {"paused": False}, "segments": {"count": 3}})
        kill_operator(operator)
        status = shop.wait_phase("Running", timeout=240)
        assert sum(1 for group in status["groups"] if group["shards"]) == 3
        shop.patch({"segments": {"count": 2}})
        wait_for(lambda: (shop.status.get("operation") or {}).get("kind") == "shrink", "it shrinks", 60)
        shop.patch({"segments": {"count": 3}})
        shop.wait_phase("Running", timeout=240)
        shop.patch({"segments": {"count": 2}})
        status = shop.wait_phase("Running", timeout=240)
        assert [group["shards"] for group in status["groups"]] == [0, 4, 4]
        at_work.go_on()
        final = at_work.finish()
    print(final)
    assert final["unknown"] == 0
    gone = "pgherd.io/cluster=shop,pgherd.io/group in (segment-3,segment-4)"
    for kind in KINDS:
        wait_for(partial(nothing, shop.namespace, kind, gone), f"no {kind} of old segments is left")


def test_a_resource_that_was_corrupted_is_refused_and_put_right(shop: Cluster) -> None:
    """Also what the API server can't refuse: fields that make no sense together, annotations gone, a stray status."""
    namespace = shop.namespace
    before = rows_or_zero(shop)
    namespace.kubectl("annotate", "pgc", "shop", "pgherd.io/stopped=perhaps", "--overwrite")
    shop.patch({"postgres": {"hostBasedAuthentication": "let everybody in"}})
    wait_for(lambda: shop.condition("SpecRefused").get("status") == "True", "it is refused", 30)
    patch = json.dumps({"status": {"phase": "Nonsense", "conditions": "gone", "groups": 7}})
    namespace.kubectl("patch", "pgc", "shop", "--subresource=status", "--type=merge", "-p", patch)
    shop.patch({"postgres": {"hostBasedAuthentication": None}})
    shop.wait_phase("Running")
    assert not shop.condition("SpecRefused")
    namespace.kubectl("annotate", "pgc", "shop", "pgherd.io/stopped-")
    assert rows_or_zero(shop) == before


def rows_or_zero(cluster: Cluster) -> int:
    try:
        return rows(cluster)
    except Exception:
        return 0


def test_two_operators_never_work_at_once(shop: Cluster, operator: Namespace) -> None:
    """A second one waits, and takes over when the first is gone."""

    def holder() -> str:
        [lease] = operator.list("leases")
        return str(lease["spec"].get("holderIdentity") or "")

    first = holder()
    scale_operator(operator, 2)
    others = wait_for(
        lambda: [
            pod["metadata"]["name"]
            for pod in operator.list("pods")
            if pod["metadata"]["name"] != first and views.is_ready(pod)
        ],
        "there are two, and the one that waits is ready",
    )
    said = f"{first} has it"
    wait_for(lambda: said in operator.kubectl("logs", others[0]), "the second one says that it waits")
    assert holder() == first
    operator.kubectl("delete", "pod", first, "--grace-period=0", "--force")
    wait_for(lambda: holder() not in ("", first), "another one has taken over", 45)
    shop.patch({"postgres": {"parameters": {"work_mem": "7MB"}}})
    member = shop.member("segment-1", "primary")
    wait_for(lambda: shop.psql(member, "SHOW work_mem") == "7MB", "the wish is fulfilled", 90)


@pytest.fixture
def doomed(namespace: Namespace) -> Iterator[Cluster]:
    cluster = Cluster(namespace, f"doomed-{secrets.token_hex(2)}")
    cluster.apply(segments=1, standbys=0, shards=4)
    cluster.wait_phase("Running")
    yield cluster
    cluster.namespace.kubectl(
        "delete", "pgc", cluster.name, "--ignore-not-found", "--timeout=120s", timeout=130
    )


def test_deleted_in_the_middle_of_an_expansion_it_goes_and_comes_back_whole(
    doomed: Cluster, operator: Namespace
) -> None:
    with writers(doomed) as at_work:
        doomed.patch({"segments": {"count": 2}})
        wait_for(lambda: (doomed.status.get("operation") or {}).get("kind") == "expand", "it has begun", 90)
        at_work.finish()
    before = rows(doomed)
    doomed.namespace.kubectl("delete", "pgc", doomed.name, "--wait=false")
    kill_operator(operator)
    wait_for(lambda: not doomed.namespace.exists("pgc", doomed.name), "it is gone", 120)
    assert not doomed.pods()
    doomed.apply(segments=2, standbys=0, shards=4)
    doomed.wait_phase("Running", timeout=180)
    assert rows(doomed) == before
    doomed.patch({"deletionPolicy": "Delete", "segments": {"count": 1}})
    wait_for(lambda: (doomed.status.get("operation") or {}).get("kind") == "shrink", "it shrinks", 60)
    # Not even lost passwords keep it from going.
    doomed.namespace.kubectl("delete", "pgc", doomed.name, "--wait=false")
    doomed.namespace.kubectl("delete", "secret", f"{doomed.name}-credentials")
    kill_operator(operator)
    doomed.delete()
    for kind in KINDS:
        wait_for(
            partial(nothing, doomed.namespace, kind, f"pgherd.io/cluster={doomed.name}"),
            f"no {kind} is left",
            60,
        )
