"""From pods, claims and StatefulSets to members."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgherd.model.topology import Member
from pgherd.platform.kubernetes import certificates, events, names, views
from pgherd.platform.kubernetes.nodes import silent_since
from pgherd.platform.kubernetes.recent import Recent


def labelled(group: int = 1) -> dict[str, str]:
    return names.labels("shop", group)


def a_pod(
    ordinal: int = 0, *, state: dict[str, Any] | None = None, ready: bool = True, **status: Any
) -> dict[str, Any]:
    state = {"running": {}} if state is None else state
    return {
        "metadata": {
            "name": f"shop-segment-1-{ordinal}",
            "labels": labelled(),
            "annotations": {names.TEMPLATE_ANNOTATION: "new"},
        },
        "spec": {"nodeName": "node1"},
        "status": {
            "podIP": "10.0.0.1",
            "containerStatuses": [
                # Somebody's sidecar, which says nothing about the member.
                {"name": "mesh", "state": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}},
                {"name": "postgres", "state": state, "lastState": status.pop("last", {})},
            ],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **status,
        },
    }


def a_claim(ordinal: int = 0) -> dict[str, Any]:
    return {"metadata": {"name": f"data-shop-segment-1-{ordinal}", "labels": labelled()}}


def a_set(replicas: int = 2) -> dict[str, Any]:
    return {"metadata": {"name": "shop-segment-1", "labels": labelled()}, "spec": {"replicas": replicas}}


def seen(**given: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "pods": [],
        "claims": [],
        "sets": [],
        "winding_down": False,
        "templates": {1: "new"},
        "silent": {},
    }
    return views.members("shop", "prod", **{**known, **given})


def test_a_running_pod_with_its_volume() -> None:
    view = seen(pods=[a_pod()], claims=[a_claim()])["shop-segment-1-0"]
    assert view.member == Member("shop", 1, 0)
    assert (view.running, view.has_data, view.outdated, view.lost, view.note) == (True, True, False, None, "")
    assert view.postgres.host == "shop-segment-1-0.shop-segment-1.prod.svc"
    assert view.rest.host == "10.0.0.1"


def test_a_volume_alone_is_a_member_with_data() -> None:
    view = seen(claims=[a_claim()])["shop-segment-1-0"]
    assert (view.running, view.has_data) == (False, True)


def test_a_pod_that_can_not_start_says_why() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    assert seen(pods=[a_pod(state=waiting)])["shop-segment-1-0"].note == (
        "ImagePullBackOff: no such image: put the image where nodes find it, or declare another postgres.image"
    )
    pending = a_pod(state={})
    pending["status"]["containerStatuses"] = []
    pending["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    ]
    assert seen(pods=[pending])["shop-segment-1-0"].note == "Unschedulable: 0/3 nodes"


def test_what_a_container_said_last_tells_why_it_is_started_over_and_over() -> None:
    looping = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    last = {"terminated": {"exitCode": 2, "message": "citus is not in this image\n"}}
    assert (
        seen(pods=[a_pod(state=looping, last=last)])["shop-segment-1-0"].note == "citus is not in this image"
    )


def test_a_claim_that_is_being_deleted_lasts_as_long_as_the_pod() -> None:
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    claim = {**a_claim(), "metadata": {**a_claim()["metadata"], **going}}
    view = seen(pods=[a_pod()], claims=[claim])["shop-segment-1-0"]
    assert view.doomed == "its volume claim data-shop-segment-1-0 is being deleted"
    assert not seen(pods=[a_pod()], claims=[a_claim()])["shop-segment-1-0"].doomed
    ending = {**a_pod(), "metadata": {**a_pod()["metadata"], **going}}
    assert not seen(pods=[ending], claims=[claim])["shop-segment-1-0"].doomed, "it ends already"


def test_a_pod_of_an_older_template_is_outdated() -> None:
    assert seen(pods=[a_pod()], templates={1: "newer"})["shop-segment-1-0"].outdated


def test_who_waits_for_a_pod_on_a_silent_node_is_told_the_way_out() -> None:
    given = {"pods": [a_pod(ready=False)], "claims": [a_claim()], "silent": {"node1": 50.0}}
    dead = "its node node1 does not report any more"
    assert seen(**given)["shop-segment-1-0"].note == dead
    assert seen(**given, winding_down=True)["shop-segment-1-0"].note == (
        f"{dead}: bring it back, or once it is switched off for sure delete it with 'kubectl delete node node1',"
        " or declare fencing: out-of-service"
    )


def test_while_winding_down_whatever_could_come_back_counts_as_running() -> None:
    assert seen(sets=[a_set()], claims=[a_claim()], winding_down=True)["shop-segment-1-1"].running
    assert not seen(sets=[], claims=[a_claim()], winding_down=True)["shop-segment-1-0"].running
    ending = a_pod(state={"terminated": {}})
    assert seen(pods=[ending], winding_down=True)["shop-segment-1-0"].running


def test_a_member_on_a_silent_node_is_lost() -> None:
    view = seen(pods=[a_pod(ready=False)], silent={"node1": 12.0})["shop-segment-1-0"]
    assert view.lost == 12.0
    assert "node1" in view.note


def test_only_pods_that_are_not_ready_make_a_node_doubtful() -> None:
    assert views.doubtful_node(a_pod()) is None
    assert views.doubtful_node(a_pod(ready=False)) == "node1"


ENDED = {"finishedAt": "2026-01-01T10:00:00Z"}


@pytest.mark.parametrize(
    ("state", "last", "ended"),
    [
        ({"running": {}}, {}, False),
        ({"terminated": ENDED}, {}, True),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": ENDED}, True),
        # It runs again.
        ({"running": {}}, {"terminated": ENDED}, False),
        # A new pod of an old name: of the container before it nothing is known.
        ({"waiting": {"reason": "ContainerCreating"}}, {}, False),
    ],
)
def test_a_container_has_ended_only_if_its_node_says_so(state: Any, last: Any, ended: bool) -> None:
    at = datetime(2026, 1, 1, 10, tzinfo=UTC) if ended else None
    assert views.ended_at(a_pod(state=state, last=last)) == at


def test_a_node_is_silent_when_its_kubelet_was_given_up() -> None:
    def node(status: str) -> dict[str, Any]:
        at = "2026-01-01T00:00:00Z"
        return {"status": {"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at}]}}

    assert silent_since(node("Unknown")) == datetime(2026, 1, 1, tzinfo=UTC)
    assert silent_since(node("True")) is None
    # It reports, and says that it is not well: it is not cut off.
    assert silent_since(node("False")) is None


def test_names_of_other_things_are_nobodys() -> None:
    assert names.authority_file("shop-a", "b") != names.authority_file("shop", "b-a")
    assert names.authority_file("a-b", "c") != names.authority_file("b", "c-a")
    assert names.member_of("shop", "shop-segment-1-0") == Member("shop", 1, 0)
    assert names.member_of("data", "data-segment-1-3") == Member("data", 1, 3)
    assert names.claim_of("shop", "data-shop-segment-1-3") == (Member("shop", 1, 3), 0)
    assert names.claim_of("shop", "data12-shop-segment-1-3") == (Member("shop", 1, 3), 12)
    for claim in (
        "shop-segment-1-3",
        "data0-shop-segment-1-3",
        "data01-shop-segment-1-3",
        "datax-shop-segment-1-3",
    ):
        assert names.claim_of("shop", claim) is None
    assert names.member_of("shop", "shop-coordinator-0") == Member("shop", 0, 0)
    for other in (
        "shop-segment-1",
        "shop-segment-01-0",
        "shop-segment-1-00",
        "shopping-segment-1-0",
        "shop-0",
    ):
        assert names.member_of("shop", other) is None
    assert names.member_of("shop", "shop-segment-1-coordinator-0") is None


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_certificates_are_good_for_their_names_until_a_month_before_their_end() -> None:
    authority = certificates.make_authority("shop", NOW)
    hosts = certificates.hosts("shop", 0, "prod")
    assert {"shop.prod.svc", "*.shop-coordinator.prod.svc", "localhost"} <= set(hosts)
    issued = authority.issue(hosts, NOW)
    assert authority.is_good(issued, hosts, NOW)
    assert authority.is_good(issued, hosts, NOW + timedelta(days=59))
    assert not authority.is_good(issued, hosts, NOW + timedelta(days=61))
    assert not authority.is_good(issued, [*hosts, "other"], NOW)


def test_strict_verifiers_accept_a_certificate(tmp_path: Path) -> None:
    """As Python 3.13 verifies by default, for a name and for an address that it does not carry."""
    authority = certificates.make_authority("shop", datetime.now(UTC))
    issued = authority.issue(certificates.hosts("shop", 1, "prod"), datetime.now(UTC))
    (tmp_path / "chain.pem").write_text(issued["tls.crt"] + issued["tls.key"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "chain.pem")
    for host in ("shop-segment-1-0.shop-segment-1.prod.svc", None):
        client = ssl.create_default_context(cadata=authority.certificate)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        client.check_hostname = host is not None
        assert shaken_hands(client, server, host)


def shaken_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str | None) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return ours.getpeercert() is not None


def test_a_certificate_of_another_authority_or_damaged_is_not_good() -> None:
    hosts = certificates.hosts("shop", 1, "prod")
    ours, theirs = (certificates.make_authority("shop", NOW) for _ in range(2))
    assert not ours.is_good(theirs.issue(hosts, NOW), hosts, NOW)
    assert not ours.is_good({}, hosts, NOW)
    assert not ours.is_good({**ours.issue(hosts, NOW), "tls.key": "x"}, hosts, NOW)
    with pytest.raises(ValueError, match=r"ca\.key"):
        certificates.Authority.of({"ca.crt": ours.certificate})


def test_an_authority_whose_key_is_anothers_signs_nothing() -> None:
    """Nobody would trust what it signs: every connection of the cluster would end."""
    ours, theirs = (certificates.make_authority("shop", NOW) for _ in range(2))
    with pytest.raises(ValueError, match="the key is not the certificate's"):
        certificates.Authority.of({"ca.crt": ours.certificate, "ca.key": theirs.key})
    assert certificates.Authority.of(ours.values()) == ours


def test_an_event_is_found_again_by_what_it_says() -> None:
    about = {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": "shop", "namespace": "prod", "uid": "1"},
    }
    first = events.render(about, "start shop-coordinator-0", failed=False, now=NOW, count=1)
    again = events.render(about, "start shop-coordinator-0", failed=False, now=NOW + timedelta(1), count=2)
    assert first["metadata"]["name"] == again["metadata"]["name"]
    assert (first["reason"], first["type"]) == ("Start", "Normal")
    failed = events.render(about, "could not start it", failed=True, now=NOW, count=1)
    assert (failed["reason"], failed["type"]) == ("Failed", "Warning")


def test_a_status_that_somebody_else_wrote_is_taken_for_what_it_is_worth() -> None:
    good = {"type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "t"}
    wrong = {"phase": 7, "conditions": [good, {"type": "Ready"}, "x"], "groups": "none", "engine": "fdw"}
    assert views.sound_status(wrong) == {"conditions": [good], "engine": "fdw"}
    assert views.sound_status({"conditions": "gone"}) == {"conditions": []}
    assert views.sound_status("x") is None


def a_warning(message: str, *, uid: str = "7", minutes: int = 1, **stamps: Any) -> dict[str, Any]:
    at = (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"reason": "No", "message": message, "involvedObject": {"uid": uid}, "lastTimestamp": at, **stamps}


def test_only_what_was_said_lately_about_this_very_object_is_its_cause() -> None:
    old = a_warning("before", minutes=2)
    assert events.newest([old, a_warning("now"), old], "7", NOW) == "No: now"
    assert events.newest([a_warning("of another of that name", uid="6")], "7", NOW) == ""
    assert events.newest([a_warning("long ago", minutes=40)], "7", NOW) == ""
    again = a_warning("again and again", minutes=40, series={"lastObservedTime": NOW.isoformat()})
    assert events.newest([again], "7", NOW) == "No: again and again"
    assert events.newest([a_warning("some time", lastTimestamp=None)], "7", NOW) == ""


def test_what_keeps_a_group_from_starting_is_asked_of_what_is_there_now() -> None:
    def hint(name: str, uid: str) -> str:
        return f"{name} {uid}"

    a_new_set = {**a_set(1), "metadata": {**a_set()["metadata"], "uid": "7"}}
    assert seen(sets=[a_new_set], hint=hint)["shop-segment-1-0"].note == "shop-segment-1 7"
    assert seen(claims=[a_claim()], hint=hint)["shop-segment-1-0"].note == ""


def test_what_is_not_learnt_anew_is_forgotten() -> None:
    now = 0.0
    recent: Recent[str] = Recent(10, lambda: now)
    recent.put("a", "x")
    for now in (5.0, 10.5):
        assert recent.get("a") == (now, "x")
        recent.put("b", "y")
    now = 16.0
    recent.put("b", "z")
    now = 22.0
    assert recent.get("a") is None
    assert recent.get("b") == (6.0, "z")
    now = 100.0
    assert recent.get("b") is None
    assert len(recent) == 0
