"""kill -9 of a primary's postmaster with the engine citus; see ``failover``."""

from __future__ import annotations

from bench.scenarios import failover
from bench.scenarios.base import Lab, Result


def run(lab: Lab, runs: int) -> Result:
    """``runs`` crashes of each kind, one after the other on one cluster that heals in between."""
    return failover.run(lab, runs, engine="citus")
