"""Declared parameters, as the installed PostgreSQL itself judges them (real programs, no server)."""

from __future__ import annotations

import pytest

from pgherd.model.spec import ParameterValue
from pgherd.platform.local import binaries
from pgherd.platform.local.parameters import memory_problems, problems
from tests.support.looks import cluster


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("work_mem", "64MB"),
        ("Work_Mem", 1024),
        ("jit", False),
        ("random_page_cost", 1.1),
        ("DateStyle", "iso, dmy"),
        ("my.own", "x"),
        ("shared_preload_libraries", "pg_stat_statements, auto_explain"),
    ],
)
def test_what_the_server_takes_passes(name: str, value: ParameterValue) -> None:
    assert problems(binaries.find(), {name: value}) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("work_memm", "64MB", 'unrecognized configuration parameter "work_memm"'),
        ("work_mem", "plenty", 'invalid value for parameter "work_mem": "plenty"'),
        ("max_connections", 10**9, "is outside the valid range"),
        ("timezone", "Mars", 'invalid value for parameter "TimeZone": "Mars"'),
        ("shared_preload_libraries", "auto_explain,nope", "there is no library nope here"),
        ("session_preload_libraries", "nope", "there is no library nope here"),
    ],
)
def test_what_the_server_refuses_is_told_with_its_path(
    name: str, value: ParameterValue, expected: str
) -> None:
    (problem,) = problems(binaries.find(), {name: value})
    assert problem.startswith(f"spec.postgres.parameters.{name}: ")
    assert expected in problem
    assert "\n" not in problem


def test_buffers_that_the_machine_does_not_have_are_refused() -> None:
    [problem] = memory_problems(cluster(postgres="{parameters: {shared_buffers: 900TB}}"))
    assert problem.startswith(
        "spec.postgres.parameters.shared_buffers: 943718400 MiB are more than this machine has"
    )
    for value in ("64MB", "a quarter"):
        assert memory_problems(cluster(postgres=f"{{parameters: {{shared_buffers: {value}}}}}")) == []
