"""What to do about what Kubernetes complains of."""

from __future__ import annotations

import pytest

from pgherd.platform.kubernetes.advice import advised


@pytest.mark.parametrize(
    ("complaint", "way"),
    [
        ('ProvisioningFailed: storageclass.storage.k8s.io "nowhere" not found', "create the class"),
        ("FailedCreate: pods x is forbidden: exceeded quota: tight", "raise the quota"),
        ("0/3 nodes are available: 3 Insufficient cpu.", "smaller resources"),
        ("ImagePullBackOff: Back-off pulling image", "postgres.image"),
        ('nodes "n1" is forbidden: User "x" cannot patch resource "nodes" in API group ""', "--fencing"),
        (
            'persistentvolumes "v" is forbidden: User "x" cannot get resource "persistentvolumes" in API group ""',
            "pgherd install",
        ),
    ],
)
def test_a_complaint_comes_with_its_way_out(complaint: str, way: str) -> None:
    assert advised(complaint).startswith(complaint.rstrip(". "))
    assert way in advised(complaint)


def test_several_reasons_have_several_ways_out() -> None:
    both = advised(
        "1 node(s) didn't match Pod's node affinity/selector, 2 node(s) had untolerated taint {x: }"
    )
    assert "nodeSelector" in both
    assert "tolerations" in both


def test_what_nobody_knows_stays_as_it_is() -> None:
    assert advised("Something: else.") == "Something: else."
