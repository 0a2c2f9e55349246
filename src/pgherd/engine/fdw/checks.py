"""Catalogue against world."""

from __future__ import annotations

from collections.abc import Sequence

from pgherd.engine.base import Finding
from pgherd.postgres.connections import Databases


def check(databases: Databases) -> Sequence[Finding]:
    """Compare."""
    return ()
