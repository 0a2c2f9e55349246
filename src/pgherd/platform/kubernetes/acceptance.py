"""Whether what was declared can be: by itself, and after what was accepted before. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgherd.errors import BadInput
from pgherd.model.spec import PostgresCluster, from_mapping, load, validate_change
from pgherd.model.tuning import check_fit
from pgherd.platform.kubernetes.cluster_objects import ACCEPTED_KEY

Object = Mapping[str, Any]


def judge(found: Object, kept: Object | None) -> tuple[PostgresCluster, Sequence[str]]:
    """What was declared, or if that can't be what was accepted last, and why.

    The API server refuses most of it already; what it let pass (an older definition, a rule with a hole) must not
    reach databases either.

    :param kept: the config map with what was accepted before
    :raises BadInput: it can't be, and none was accepted before
    """
    before = accepted_before(kept)
    try:
        now = parse(found)
        check_fit(now)
        if before is not None:
            validate_change(before, now)
    except BadInput as error:
        if before is None:
            raise
        return before, error.problems
    return now, ()


def accepted_before(kept: Object | None) -> PostgresCluster | None:
    """The declaration in this config map; None where there is none, or none that makes sense any more."""
    text = ((kept or {}).get("data") or {}).get(ACCEPTED_KEY, "")
    try:
        return load(text, source="what was accepted before", platform="kubernetes", kept=True)
    except BadInput:
        return None


def parse(found: Object) -> PostgresCluster:
    """The declaration in a resource.

    :raises BadInput: with every problem
    """
    metadata = found["metadata"]
    plain = {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": metadata.get("labels") or {},
        },
        "spec": found.get("spec") or {},
    }
    return from_mapping(plain, source=metadata["name"], platform="kubernetes")
