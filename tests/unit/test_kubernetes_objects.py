"""Objects of a cluster as pure functions: what Kubernetes is asked for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from patroni.dcs import AbstractDCS
from patroni.dcs.kubernetes import Kubernetes
from patroni.postgresql.mpp import get_mpp

from pgherd.deploy import manifests
from pgherd.engine.citus.engine import CitusEngine
from pgherd.model.spec import PostgresCluster, from_mapping
from pgherd.model.topology import Credentials
from pgherd.patroni.config import dynamic_config
from pgherd.platform.kubernetes import names, patroni_files, pods
from pgherd.platform.kubernetes.certificates import Authority
from pgherd.platform.kubernetes.cluster_objects import cluster_objects, decoded
from pgherd.platform.kubernetes.crd import crd
from pgherd.platform.kubernetes.ensure import owned
from pgherd.platform.kubernetes.group_objects import group_objects
from pgherd.postgres.connections import Databases

PASSWORDS = Credentials("super-secret", "replication-secret", "owner/secret", "rest-secret")


def cluster(**spec: Any) -> PostgresCluster:
    manifest = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": "shop", "labels": {"team": "sales"}},
        "spec": {"engine": "fdw", **spec},
    }
    return from_mapping(manifest, platform="kubernetes")


def objects(
    declared: PostgresCluster | None = None,
    group: int = 1,
    epoch: int = 0,
    volumes: int | None = None,
    first: str = "",
) -> dict[str, dict[str, Any]]:
    declared = declared or cluster()
    found = group_objects(
        declared,
        group,
        namespace="prod",
        replicas=2,
        image="pg:17",
        server_major=17,
        dcs_config=dynamic_config(declared, group, {}, (), networks=["0.0.0.0/0"], local=False, tls=True),
        epoch=epoch,
        volumes=volumes,
        first=first,
    )
    return {each["kind"]: each for each in found}


def pod(declared: PostgresCluster | None = None, group: int = 1) -> dict[str, Any]:
    spec: dict[str, Any] = objects(declared, group)["StatefulSet"]["spec"]["template"]["spec"]
    return spec


def test_pods_meet_the_restricted_standard() -> None:
    spec = pod()
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostPath"} & {key for volume in spec["volumes"] for key in volume}


def test_no_password_is_in_a_config_map_or_a_pod() -> None:
    text = json.dumps(objects())
    for password in (PASSWORDS.superuser, PASSWORDS.replication, PASSWORDS.rest):
        assert password not in text
    assert {each["name"] for each in pod()["containers"][0]["env"] if "secretKeyRef" in str(each)} == {
        "PATRONI_SUPERUSER_PASSWORD",
        "PATRONI_REPLICATION_PASSWORD",
        "PATRONI_RESTAPI_PASSWORD",
    }


def test_a_recovering_primary_is_not_killed_by_a_probe() -> None:
    container = pod()["containers"][0]
    liveness = container["livenessProbe"]
    assert liveness["httpGet"]["path"] == "/liveness"
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"


def test_members_of_a_group_keep_apart_as_declared() -> None:
    def rules(how: str) -> dict[str, Any]:
        found: dict[str, Any] = (
            pod(cluster(segments={"antiAffinity": how})).get("affinity", {}).get("podAntiAffinity", {})
        )
        return found

    assert "requiredDuringSchedulingIgnoredDuringExecution" in rules("required")
    assert "preferredDuringSchedulingIgnoredDuringExecution" in rules("preferred")
    assert rules("none") == {}
    term = rules("required")["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["labelSelector"]["matchLabels"] == names.selector("shop", 1)


def test_node_selector_and_tolerations_pass_through() -> None:
    declared = cluster(
        segments={"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "db", "operator": "Exists"}]}
    )
    assert pod(declared)["nodeSelector"] == {"disk": "fast"}
    assert {"key": "db", "operator": "Exists"} in pod(declared)["tolerations"]
    assert "nodeSelector" not in pod(declared, 0)


def test_resources_bound_memory_and_ask_for_cores() -> None:
    declared = cluster(segments={"resources": {"cpu": "500m", "memory": "4Gi"}})
    resources = pod(declared)["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": "500m", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}


def test_a_change_of_the_pod_changes_its_fingerprint_and_a_change_of_parameters_does_not() -> None:
    def fingerprint(declared: PostgresCluster) -> str:
        template = objects(declared)["StatefulSet"]["spec"]["template"]
        return str(template["metadata"]["annotations"][names.TEMPLATE_ANNOTATION])

    before = fingerprint(cluster())
    assert fingerprint(cluster(postgres={"parameters": {"work_mem": "8MB"}})) == before
    assert fingerprint(cluster(segments={"resources": {"memory": "4Gi"}})) != before
    assert fingerprint(cluster(coordinator={"resources": {"memory": "4Gi"}})) == before


def template_mark(declared: PostgresCluster | None = None, group: int = 1) -> str:
    template = objects(declared, group)["StatefulSet"]["spec"]["template"]
    return str(template["metadata"]["annotations"][names.TEMPLATE_ANNOTATION])


def test_pods_of_older_scripts_or_settings_are_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were mounted into running pods, which do not look at them again."""
    marks = [template_mark()]
    assert template_mark(cluster(postgres={"parameters": {"work_mem": "9MB"}})) == marks[0]
    monkeypatch.setattr(patroni_files, "MARK_SCRIPT", "#!/bin/sh\n")
    marks.append(template_mark())
    monkeypatch.setattr(names, "SCOPE_LABEL", "pgherd.io/other")
    marks.append(template_mark())
    monkeypatch.setattr(patroni_files, "START_SCRIPT", "#!/bin/sh\n")
    marks.append(template_mark())
    assert len(set(marks)) == len(marks)


def test_the_network_lets_everybody_to_postgresql_and_members_and_operators_alone_to_patroni() -> None:
    found = cluster_objects(cluster(), "prod", PASSWORDS, Authority("", ""))
    [policy] = [each for each in found if each["kind"] == "NetworkPolicy"]
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["podSelector"] == {"matchLabels": names.selector("shop")}
    assert names.selector("shop").items() <= names.pod_labels(cluster(), 1, 0).items()
    everybody, few = spec["ingress"]
    assert everybody == {"ports": [{"protocol": "TCP", "port": 5432}]}
    assert few["ports"] == [{"protocol": "TCP", "port": 8008}]
    members, operators = few["from"]
    assert members == {"podSelector": {"matchLabels": names.selector("shop")}}
    # The labels that the operator's pods have, wherever they are.
    assert operators["namespaceSelector"] == {}
    labels = manifests.operator(manifests.Settings())["spec"]["template"]["metadata"]["labels"]
    assert operators["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_disruption_budget_lets_one_go_at_a_time() -> None:
    budget = objects()["PodDisruptionBudget"]["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": names.selector("shop", 1)}}


def test_the_stateful_set_keeps_volumes_and_leaves_replacing_to_us() -> None:
    spec = objects()["StatefulSet"]["spec"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    assert spec["serviceName"] == objects()["Service"]["metadata"]["name"] == "shop-segment-1"


def test_patroni_takes_what_differs_from_the_environment() -> None:
    config = yaml.safe_load(objects()["ConfigMap"]["data"]["patroni.yml"])
    assert config["scope"] == "shop-segment-1"
    assert config["kubernetes"]["use_endpoints"] is False
    assert config["kubernetes"]["labels"] == names.labels("shop", 1)
    assert "name" not in config
    assert "connect_address" not in config["postgresql"]
    assert config["postgresql"]["parameters"]["ssl"] == "on"
    lines = config["bootstrap"]["dcs"]["postgresql"]["pg_hba"]
    assert all(line.startswith(("hostssl ", "local ")) for line in lines if not line.endswith(" reject"))
    environment = {each["name"] for each in patroni_files.environment(cluster(), 1, "prod")}
    assert {"PATRONI_NAME", "PATRONI_POSTGRESQL_CONNECT_ADDRESS", "PATRONI_RESTAPI_PASSWORD"} <= environment


def test_the_clusters_own_objects() -> None:
    authority = Authority("certificate", "key")
    found = {
        (each["kind"], each["metadata"]["name"]): each
        for each in cluster_objects(cluster(), "prod", PASSWORDS, authority)
    }
    assert found["Service", "shop"]["spec"]["selector"][names.ROLE_LABEL] == "primary"
    assert found["Service", "shop-ro"]["spec"]["selector"][names.ROLE_LABEL] == "replica"
    owner = decoded(found["Secret", "shop-owner"])
    assert owner["uri"] == "postgresql://app:owner%2Fsecret@shop.prod.svc:5432/app?sslmode=require"
    assert owner["ca.crt"] == "certificate"
    assert "key" not in str(found["ConfigMap", "shop-ca"]["data"].values())
    for each in found.values():
        labels = each["metadata"]["labels"]
        assert labels[names.CLUSTER_LABEL] == "shop"
        assert labels[names.MANAGED_BY] == "pgherd"
        assert labels["team"] == "sales"


def test_pods_may_do_only_what_patroni_does() -> None:
    authority = Authority("certificate", "key")
    made = cluster_objects(cluster(), "prod", PASSWORDS, authority)
    rules = next(each for each in made if each["kind"] == "Role")["rules"]
    allowed = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert ("secrets", "get") not in allowed
    assert not {verb for _, verb in allowed} & {"*", "delete", "deletecollection"}
    assert ("pods", "create") not in allowed


def test_what_is_owned_goes_with_its_cluster() -> None:
    owner = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": "shop", "uid": "1"},
    }
    obj = owned(objects()["Service"], owner)
    assert obj["metadata"]["ownerReferences"][0]["uid"] == "1"
    assert "ownerReferences" not in objects()["Service"]["metadata"]


def test_the_longest_names_fit() -> None:
    longest = from_mapping(
        {
            "apiVersion": "pgherd.io/v1alpha1",
            "kind": "PostgresCluster",
            "metadata": {"name": "a" * 40},
            "spec": {"engine": "fdw"},
        },
        platform="kubernetes",
    )
    made = pods.stateful_set(
        longest, 256, namespace="n", replicas=9, image="pg:17", files={}, epoch=999, volumes=999, marks={}
    )
    # Kubernetes adds a hash of 10 letters and a hyphen for its revisions' label.
    assert len(made["metadata"]["name"]) + 11 <= 63
    assert len(made["spec"]["template"]["metadata"]["labels"][names.SCOPE_LABEL]) <= 63


def test_the_definition_has_what_kubectl_shows() -> None:
    version = crd()["spec"]["versions"][0]
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Phase",
        "Segments",
        "Ready",
        "Engine",
        "Seen",
        "Age",
    ]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.segments.count"
    assert crd()["spec"]["names"]["shortNames"] == ["pgc"]


# an engine whose groups know of one another

CITUS = cluster(engine="citus")


def test_groups_of_citus_share_one_scope_and_keep_their_own_pods() -> None:
    made = [objects(CITUS, group) for group in (0, 2)]
    for group, found in zip((0, 2), made, strict=True):
        config = yaml.safe_load(found["ConfigMap"]["data"]["patroni.yml"])
        labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
        assert config["scope"] == "shop"
        assert config["citus"] == {"group": group, "database": "app"}
        # Patroni finds the pods of all groups by these, and each group's by the last.
        assert config["kubernetes"]["labels"] == names.labels("shop")
        assert {**config["kubernetes"]["labels"], names.SCOPE_LABEL: "shop"}.items() <= labels.items()
        assert labels["citus-group"] == str(group)
        assert found["Service"]["spec"]["selector"] == names.selector("shop", group)
    assert names.store_object(CITUS, 2, "leader", 0) == "shop-2-leader"
    assert names.store_object(cluster(), 2, "leader", 0) == "shop-segment-2-leader"
    assert "citus-group" not in json.dumps(objects())


def test_nodes_of_citus_have_stable_names_and_check_one_another() -> None:
    address = {each["name"]: each for each in patroni_files.environment(CITUS, 1, "prod")}[
        "PATRONI_POSTGRESQL_CONNECT_ADDRESS"
    ]
    assert address["value"] == "$(PATRONI_NAME).shop-segment-1.prod.svc:5432"
    databases = Databases("app", PASSWORDS, dict, options={"sslmode": "verify-full", "sslrootcert": "/ca"})
    conninfo = CitusEngine(databases).parameters(1, 32)["citus.node_conninfo"]
    assert str(conninfo).startswith("sslmode=verify-full sslrootcert=/ca ")


def test_an_image_without_citus_ends_with_one_line_that_says_so(tmp_path: Path) -> None:
    required = [
        "/usr/share/postgresql/17/extension/citus.control",
        "/usr/lib/postgresql/17/lib/citus.so",
    ]
    script = objects(CITUS)["ConfigMap"]["data"]["start.sh"]
    assert f"for file in {' '.join(required)}; do" in script
    script = script.replace(required[0], str(tmp_path / "none")).replace(
        "/dev/termination-log", str(tmp_path / "log")
    )
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False, env={})
    assert done.returncode == 2
    assert (tmp_path / "log").read_text() == done.stdout
    assert (
        done.stdout
        == f"spec.engine: citus is not in this image (no {tmp_path}/none): name one that has it with"
        " spec.postgres.image\n"
    )
    assert "for file in ; do" in objects()["ConfigMap"]["data"]["start.sh"]


@pytest.mark.parametrize("epoch", [0, 1, 12])
@pytest.mark.parametrize(("declared", "group"), [(CITUS, 0), (CITUS, 2), (cluster(), 2)])
def test_patroni_s_own_config_maps_are_called_as_patroni_calls_them(
    declared: PostgresCluster, group: int, epoch: int
) -> None:
    config = yaml.safe_load(objects(declared, group, epoch)["ConfigMap"]["data"]["patroni.yml"])
    mpp = get_mpp(config)
    store = Kubernetes.__new__(Kubernetes)
    common = {"scope": config["scope"], "namespace": "", "name": "any", "loop_wait": 1}
    AbstractDCS.__init__(store, common, mpp)
    store._api = SimpleNamespace(use_endpoints=False)
    asked = (store.leader_path, store.config_path, store.sync_path, store.failover_path)
    parts = ("leader", "config", "sync", "failover")
    assert asked == tuple(names.store_object(declared, group, part, epoch) for part in parts)
    assert names.epoch_of_scope(config["scope"]) == epoch
    labels = names.store_labels(declared, group)
    assert labels == ({mpp.k8s_group_label: str(group)} if mpp.is_enabled() else {})
