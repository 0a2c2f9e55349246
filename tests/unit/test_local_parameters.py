"""Declared parameters, as the installed PostgreSQL itself judges them (real programs, no server)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgherd.errors import BadInput
from pgherd.model.spec import ParameterValue, PostgresSpec
from pgherd.platform.local import binaries
from pgherd.platform.local.binaries import Binaries
from pgherd.platform.local.parameters import access_problems, memory_problems, problems
from pgherd.platform.local.platform import LocalPlatform
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


LINES = """
host all all all ldap ldapprefix=a
host all all all pam
host all all all gss
hostssl all all all cert
host all all all md5
"""


def built(folder: Path, said: str | None, version: str = "18.1") -> Binaries:
    """An installation whose ``pg_config --configure`` says this."""
    if said is not None:
        program = folder / "pg_config"
        program.write_text(f"#!/bin/sh\n[ $1 = --configure ] && cat <<'END'\n{said}\nEND\n")
        program.chmod(0o755)
    return Binaries(folder, version)


@pytest.mark.parametrize(
    ("said", "lacking"),
    [
        (" '--prefix=/usr' '--without-icu'", ["ldap", "pam", "gss", "cert"]),
        ("'--with-ldap' '--with-pam' '--with-gssapi' '--with-ssl=openssl'", []),
        (
            "'--with-ldap=yes' '--with-pam=no' '--with-gssapi' '--without-gssapi' '--with-openssl'",
            ["pam", "gss"],
        ),
        ("", []),
        ("'-Dldap=enabled'", []),
        (None, []),
    ],
)
def test_methods_that_the_server_was_built_without_are_refused(
    tmp_path: Path, said: str | None, lacking: list[str]
) -> None:
    found = access_problems(built(tmp_path, said), PostgresSpec(host_based_authentication=LINES))
    numbers = {"ldap": 2, "pam": 3, "gss": 4, "cert": 5}
    assert found == [
        f"spec.postgres.hostBasedAuthentication: line {numbers[method]} has authentication method {method}, which the "
        f"PostgreSQL in {tmp_path} was built without: take another, or name the directory of one that has it with "
        "--bin-dir"
        for method in lacking
    ]


def test_lines_are_judged_by_the_version_that_is_installed(tmp_path: Path) -> None:
    declared = PostgresSpec(
        parameters={"oauth_validator_libraries": "own"},
        host_based_authentication="host all all all oauth issuer=https://x scope=y",
    )
    assert access_problems(built(tmp_path, None), declared) == []
    [problem] = access_problems(built(tmp_path, None, "17.5"), declared)
    assert problem.endswith("which PostgreSQL 17 does not know yet")


def test_a_cluster_whose_lines_the_installed_server_would_not_read_is_refused(tmp_path: Path) -> None:
    declared = cluster(postgres="{hostBasedAuthentication: host all all all ldap ldapprefix=a}")
    with pytest.raises(BadInput, match="line 1 has authentication method ldap, which the PostgreSQL in"):
        LocalPlatform(tmp_path / "home").check_supported(declared)
