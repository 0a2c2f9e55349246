"""What is asked of a cluster besides its declaration: to stop, or to go. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.platform.kubernetes import names

Object = Mapping[str, Any]


def is_stopped(found: Object) -> bool:
    """Whether its members are to be gone, data kept."""
    return (found["metadata"].get("annotations") or {}).get(names.STOPPED_ANNOTATION) == "true"


def is_purging(found: Object) -> bool:
    """Whether its data go with it: of what is declared now, whatever else of it is refused."""
    return bool((found.get("spec") or {}).get("deletionPolicy") == "Delete")


def is_winding_down(found: Object) -> bool:
    """Whether nothing of it is to run any more."""
    return is_stopped(found) or "deletionTimestamp" in found["metadata"]
