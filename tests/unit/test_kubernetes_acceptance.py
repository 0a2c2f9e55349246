"""What of a declaration the operator itself refuses, and what stays in force then."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.errors import BadInput
from pgherd.platform.kubernetes.acceptance import judge, parse
from pgherd.platform.kubernetes.cluster_objects import accepted


def resource(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pgherd.io/v1alpha1",
        "kind": "PostgresCluster",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": spec,
    }


def kept(**spec: Any) -> dict[str, Any]:
    """The config map that was written when this was declared."""
    return accepted(parse(resource(**spec)), {})


@pytest.mark.parametrize(
    ("before", "now", "path"),
    [
        ({}, {"engine": "fdw"}, "spec.engine"),
        ({"engine": "fdw"}, {}, "spec.engine"),
        ({}, {"postgres": {"version": 16}}, "spec.postgres.version"),
        ({"postgres": {"version": 16}}, {}, "spec.postgres.version"),
        ({}, {"segments": {"storage": {"size": "1Gi"}}}, "spec.segments.storage.size"),
        ({}, {"segments": {"storage": {"storageClassName": "b"}}}, "spec.segments.storage.storageClassName"),
        ({}, {"database": "other"}, "spec.database"),
        ({}, {"shardCount": 16}, "spec.shardCount"),
        (
            {},
            {"postgres": {"parameters": {"shared_buffers": "900GB"}}},
            "spec.postgres.parameters.shared_buffers",
        ),
        ({}, {"postgres": {"parameters": {"fsync": "off"}}}, "spec.postgres.parameters.fsync"),
    ],
)
def test_what_may_not_be_leaves_what_was_accepted_before(
    before: dict[str, Any], now: dict[str, Any], path: str
) -> None:
    cluster, problems = judge(resource(**now), kept(**before))
    assert cluster.spec == parse(resource(**before)).spec
    assert problems
    assert all(problem.startswith(path) for problem in problems)


def test_a_line_that_an_older_version_accepted_stays_in_force_and_is_told() -> None:
    lines = {"hostBasedAuthentication": "hostnossl all all all md5"}
    before = kept(postgres={"hostBasedAuthentication": "hostnossl all all all reject"})
    before["data"] = {key: text.replace("all reject", "all md5") for key, text in before["data"].items()}
    cluster, problems = judge(resource(postgres=lines), before)
    assert cluster.spec.postgres.host_based_authentication == lines["hostBasedAuthentication"]
    assert [problem.split(":")[0] for problem in problems] == ["spec.postgres.hostBasedAuthentication"]


def test_without_anything_accepted_before_it_is_refused_as_a_whole() -> None:
    with pytest.raises(BadInput, match="fsync"):
        judge(resource(postgres={"parameters": {"fsync": "off"}}), None)


def test_what_may_be_is_taken() -> None:
    for before, now in (
        ({}, {"segments": {"count": 4}}),
        ({}, {"engine": "citus"}),  # what was left out, written down
        ({}, {"postgres": {"parameters": {"shared_buffers": "1GB"}}}),
    ):
        cluster, problems = judge(resource(**now), kept(**before))
        assert not problems
        assert cluster == parse(resource(**now))


def test_a_note_of_what_was_accepted_that_makes_no_sense_stands_in_nobodys_way() -> None:
    damaged = {"data": {"cluster.yaml": "apiVersion: pgherd.io/v9\n"}}
    assert judge(resource(), damaged) == (parse(resource()), ())
