"""What the operator's benchmark measures: of two operators the one that works."""

from __future__ import annotations

import pytest
from bench.operator import at_work

PODS = [{"metadata": {"name": name, "uid": f"uid-of-{name}"}} for name in ("operator-a", "operator-b")]


def lease(holder: str | None) -> dict[str, object]:
    return {"spec": {"holderIdentity": holder}}


def test_it_is_the_one_that_has_the_lease() -> None:
    assert at_work(PODS, [lease("operator-b")]) == "uid-of-operator-b"


@pytest.mark.parametrize("leases", [[], [lease(None)], [lease("operator-of-yesterday")]])
def test_nobody_is_measured_for_one_who_only_waits(leases: list[dict[str, object]]) -> None:
    with pytest.raises(SystemExit, match="no operator has the lease"):
        at_work(PODS, leases)
