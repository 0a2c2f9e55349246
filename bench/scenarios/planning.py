"""How long a plan for 1024 shard groups takes: expansions, a shrink and a rebalance, up to 64 segments."""

from __future__ import annotations

from bench.scenarios.base import Lab, Result
from bench.support import percentile, timed
from pgherd.model.placement import Item, plan


def run(lab: Lab, runs: int) -> Result:
    """Each plan ``runs`` times; medians."""
    result = Result()
    for key, what, items, count, rebalance in (
        ("grow_32_64", "plan 32 -> 64 segments", _items(32), 64, False),
        ("grow_1_64", "plan 1 -> 64 segments", _items(1), 64, False),
        ("shrink_64_32", "plan 64 -> 32 segments", _items(64), 32, False),
        ("rebalance_64", "plan a rebalance of 64 skewed segments", _items(64, skew=True), 64, True),
    ):
        wanted = dict.fromkeys(range(1, count + 1), 1.0)
        found = [
            timed(lambda i=items, w=wanted, r=rebalance: plan(i, w, rebalance=r))  # type: ignore[misc]
            for _ in range(runs)
        ]
        milliseconds = percentile([seconds for seconds, _ in found], 50) * 1000
        moves = len(found[0][1])
        result.add(key, {"ms": milliseconds, "moves": moves}, what, f"{milliseconds:.0f} ms, {moves} moves")
    return result


def _items(segments: int, *, skew: bool = False) -> list[Item]:
    """1024 groups of 32 colocations, of sizes that differ by up to a half."""
    return [
        Item(
            k,
            i,
            1 + (k * 7 + i * i if skew else k * 32 + i) % segments,
            1_000_000 + (k * 32 + i) * 7919 % 500_000,
        )
        for k in range(32)
        for i in range(32)
    ]
