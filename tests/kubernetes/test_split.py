"""Scaling out by clone: a new segment begins as a standby of a present one and takes half of its shards.

What must hold whoever dies: no write fails, every acknowledged row is there once, and nothing of a copy is left, in the
databases or in Kubernetes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from pgherd.model.topology import group_id
from tests.kubernetes.kube import ENGINE, Cluster, Namespace, wait_for
from tests.kubernetes.pgherd import pgherd
from tests.kubernetes.test_operator import LOG, RESTART, patched, survived
from tests.kubernetes.writer import writers

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.citus,
    pytest.mark.skipif(
        ENGINE != "citus",
        reason="no Citus: say PGHERD_E2E_ENGINE=citus, and name an image that has it with PGHERD_POSTGRES_IMAGE",
    ),
]

ROWS = 2000
SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE slot_name ~ '^pgherd_clone'"
POINTS = [
    *(f"expand:{step}:{moment}" for step in ("check", "copies") for moment in ("started", "done")),
    *(f"expand:split:{moment}" for moment in ("started", "registered", "switched", "done")),
    "expand:clean-up:started",
    "expand:operation:done",
]


@pytest.fixture(scope="module")
def shop(namespace: Namespace) -> Iterator[Cluster]:
    """Two segments with standbys, and rows in them."""
    cluster = Cluster(namespace, "shop")
    cluster.apply(expansion={"mode": "clone"})
    cluster.wait_phase("Running", timeout=300)
    ask(
        cluster,
        "CREATE TABLE item (id bigint PRIMARY KEY, note text); SELECT create_distributed_table('item', 'id');"
        f" INSERT INTO item SELECT g, 'n' || g FROM generate_series(1, {ROWS}) g",
    )
    yield cluster
    cluster.purge()
    assert not namespace.list("pods", "pgherd.io/cluster=shop")


def ask(cluster: Cluster, sql: str, group: str = "coordinator") -> str:
    return cluster.psql(cluster.member(group, "primary"), sql)


def copies(cluster: Cluster) -> list[str]:
    """How far the copies are, by what is written down of them."""
    return ask(cluster, "SELECT state FROM pgherd.clone ORDER BY group_id").split()


def whole(cluster: Cluster, segments: int) -> None:
    """Everything is there once and spread, and nothing of a copy is left."""
    status = cluster.wait_phase("Running", timeout=300)
    groups = [group["name"] for group in status["groups"]]
    assert groups == ["coordinator", *(f"segment-{n}" for n in range(1, segments + 1))]
    assert all(group["shards"] for group in status["groups"][1:]), status["groups"]
    assert ask(cluster, "SELECT count(*), sum(id)::bigint FROM item") == f"{ROWS}|{ROWS * (ROWS + 1) // 2}"
    for table in ("pgherd.clone", "pgherd.cleanup", "pg_dist_cleanup"):
        query = f"SELECT count(*) FROM {table}"
        wait_for(partial(none, cluster, query, cluster.member("coordinator", "primary")), f"no {table}", 60)
    assert ask(cluster, "SELECT count(*) FROM pg_dist_node WHERE nodeisclone") == "0"
    primaries = (
        "SELECT string_agg(groupid::text, ',' ORDER BY groupid) FROM pg_dist_node WHERE noderole = 'primary'"
    )
    assert ask(cluster, primaries) == ",".join(str(n) for n in range(segments + 1))
    for group in status["groups"]:
        assert len(group["members"]) == 2
        for member in group["members"]:
            wait_for(partial(none, cluster, SLOTS, member["name"]), f"no slot on {member['name']}", 60)
        config = configured(cluster, group["name"])
        assert not {"standby_cluster", "pgherd_parting", "pgherd_quiet"} & {k for k, v in config.items() if v}
        assert not config.get("pause")
    selector = f"pgherd.io/cluster={cluster.name}"
    for kind in ("statefulsets", "poddisruptionbudgets"):
        assert len(cluster.namespace.list(kind, selector)) == segments + 1, kind
    for kind in ("pods", "pvc"):
        assert len(cluster.namespace.list(kind, selector)) == 2 * (segments + 1), kind


def none(cluster: Cluster, query: str, member: str) -> bool:
    return cluster.psql(member, query) == "0"


def configured(cluster: Cluster, group: str) -> dict[str, object]:
    """What Patroni is told in this group, from its store."""
    found = cluster.namespace.get("configmap", f"{cluster.name}-{group_id(group)}-config")
    config: dict[str, object] = json.loads(found["metadata"]["annotations"]["config"])
    return config


def test_a_segment_is_split_under_writers_by_an_operator_killed_at_every_step(
    shop: Cluster, operator: Namespace
) -> None:
    container = {
        "name": "operator",
        "command": ["sh", "-c", RESTART],
        "env": [
            {"name": "PGHERD_CRASH_AT", "value": ",".join(POINTS)},
            {"name": "PGHERD_CRASH_LOG", "value": LOG},
        ],
    }
    with patched(operator, container):
        with writers(shop) as at_work:
            shop.namespace.kubectl("scale", f"pgc/{shop.name}", "--replicas=3")
            shop.wait_phase("Running", timeout=500)
            at_work.go_on()
            final = at_work.finish()
        survived(operator, *POINTS)
    print(final)
    assert not final["errors"]
    assert (
        shop.status["lastOperation"]["message"] == "expanded to 3 segments: 1 of them split off from others"
    )
    whole(shop, 3)
    assert ask(shop, "SHOW citus.recover_2pc_interval", "segment-3") != "-1"


def test_a_source_that_dies_while_it_is_copied_and_a_copy_that_dies_lose_nothing(shop: Cluster) -> None:
    # So much that the copying takes a while.
    ask(
        shop,
        "CREATE TABLE bulk (id bigint, note text); SELECT create_distributed_table('bulk', 'id');"
        " INSERT INTO bulk SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 200000) g",
    )
    new = len(shop.status["groups"])
    with writers(shop) as at_work:
        shop.namespace.kubectl("scale", f"pgc/{shop.name}", f"--replicas={new}")
        wait_for(lambda: copies(shop), "a copy is begun", 120, every=0.1)
        source = f"segment-{ask(shop, 'SELECT source_id FROM pgherd.clone')}"
        first, standby = (f"{shop.name}-segment-{new}-{n}" for n in (0, 1))
        seen = wait_for(partial(patroni_state, shop, first), "it is being copied", 120, every=0.05)
        shop.namespace.kubectl(
            "delete", "pod", shop.member(source, "primary"), "--grace-period=0", "--force", "--wait=false"
        )
        # The member that follows the source goes as soon as another one could take its place.
        wait_for(
            lambda: is_ready(shop, standby) or not copies(shop), "the copy has a standby", 300, every=0.1
        )
        shop.namespace.kubectl(
            "delete", "pod", first, "--grace-period=0", "--force", "--wait=false", check=False
        )
        shop.wait_phase("Running", timeout=600)
        at_work.go_on()
        final = at_work.finish()
    print(seen, final)
    whole(shop, new)
    assert ask(shop, "SELECT count(*), count(DISTINCT id) FROM bulk") == "200000|200000"


def patroni_state(cluster: Cluster, member: str) -> str:
    """What its Patroni noted last of its server; nothing before that."""
    note = cluster.namespace.get("pod", member)["metadata"].get("annotations", {}).get("status") or "{}"
    return str(json.loads(note).get("state", ""))


def is_ready(cluster: Cluster, member: str) -> bool:
    """Whether its server is up, as Kubernetes sees it."""
    if not cluster.namespace.exists("pod", member):
        return False
    status = cluster.namespace.get("pod", member)["status"]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))


def test_a_cancelled_split_leaves_nothing(shop: Cluster, namespace: Namespace) -> None:
    groups = len(shop.status["groups"])
    with writers(shop) as at_work:
        shop.namespace.kubectl("scale", f"pgc/{shop.name}", f"--replicas={groups + 1}")
        wait_for(lambda: len(copies(shop)) == 2, "copies are begun", 120, every=0.1)
        thread = threading.Thread(
            target=pgherd, args=("-n", namespace.name, "cancel", shop.name), kwargs={"timeout": 300}
        )
        thread.start()
        wait_for(lambda: shop.status["lastOperation"]["phase"] == "cancelled", "it is cancelled", 200)
        thread.join()
        wait_for(lambda: len(shop.pods()) == 2 * groups, "the copies are gone", 200)
        at_work.go_on()
        final = at_work.finish()
    print(final)
    assert not final["errors"]
    whole(shop, groups - 1)
