"""How the names of Services end, as the operator's pod knows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgherd.model.topology import Member
from pgherd.platform.kubernetes import certificates, names, zone


@pytest.fixture(autouse=True)
def nothing_is_known(tmp_path: Path) -> Iterator[Path]:
    resolver = tmp_path / "resolv.conf"
    zone.learn(resolver)
    yield resolver
    zone.learn(tmp_path / "none")


def test_in_a_pod_names_are_complete(nothing_is_known: Path) -> None:
    nothing_is_known.write_text(
        "# what Kubernetes writes\nsearch herd.svc.k8s.example svc.k8s.example k8s.example corp.example\n"
        "nameserver 10.96.0.10\noptions ndots:5\n"
    )
    assert zone.learn(nothing_is_known) == "k8s.example"
    host = names.host(Member("shop", 1, 0), zone.of("prod"))
    assert host == "shop-segment-1-0.shop-segment-1.prod.svc.k8s.example"
    assert host.count(".") >= 5, "else a resolver with ndots: 5 tries other endings first"
    hosts = certificates.hosts("shop", 1, "prod")
    assert "*.shop-segment-1.prod.svc.k8s.example" in hosts


@pytest.mark.parametrize("text", ["", "nameserver 127.0.0.53\nsearch corp.example\n", "search\n"])
def test_elsewhere_a_resolver_completes_them(nothing_is_known: Path, text: str) -> None:
    nothing_is_known.write_text(text)
    assert zone.learn(nothing_is_known) is None
    assert names.host(Member("shop", 0, 1), zone.of("prod")) == "shop-coordinator-1.shop-coordinator.prod.svc"


def test_no_file_says_nothing(nothing_is_known: Path) -> None:
    assert zone.learn(nothing_is_known) is None
    assert zone.of("prod") == "prod.svc"
