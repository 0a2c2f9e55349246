"""How long ``pgherd up`` of a fresh cluster takes until everything is ready: 1+1 coordinator, 2 x (1+1) segments."""

from __future__ import annotations

from bench.scenarios.base import Lab, Result
from bench.support import percentile, timed


def run(lab: Lab, runs: int) -> Result:
    """``runs`` times from nothing."""
    seconds = []
    for _ in range(runs):
        context = lab.cluster("ready")
        took, _pgherd = timed(context.__enter__)
        context.__exit__(None, None, None)
        seconds.append(took)
        lab.say(f"ready after {took:.1f} s")
    result = Result()
    median = percentile(seconds, 50)
    result.add(
        "ready_s",
        [round(s, 2) for s in seconds],
        "ready after 'pgherd up', median",
        f"{median:.1f} s of {runs} runs",
    )
    return result
